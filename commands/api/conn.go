package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"
)

// conn is a client's connection. Once it is prompt, a write to it waits for nobody: what
// the kernel does not take at once is kept for drain. TLS is above it.
type conn struct {
	net.Conn
	raw syscall.RawConn

	mu     sync.Mutex
	prompt bool
	left   []byte // what the kernel did not take
	err    error  // of a write, for good
}

// connListener makes conns.
type connListener struct{ net.Listener }

// Accept implements net.Listener.
func (l connListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		s, ok := c.(syscall.Conn)
		if !ok {
			_ = c.Close()
			return nil, fmt.Errorf("accept: %T is no socket", c)
		}
		if raw, err := s.SyscallConn(); err == nil {
			return &conn{Conn: c, raw: raw}, nil
		}
		_ = c.Close() // it is gone already
	}
}

type connKey struct{}

// withConn is http.Server's ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// connOf is the connection of a request, as one writes to it, and the conn under it; nil:
// it has none.
func connOf(ctx context.Context) (net.Conn, *conn) {
	outer, _ := ctx.Value(connKey{}).(net.Conn)
	inner := outer
	if t, ok := outer.(*tls.Conn); ok {
		inner = t.NetConn()
	}
	c, _ := inner.(*conn)
	return outer, c
}

// becomePrompt makes it so, without the deadline that writes had.
func (c *conn) becomePrompt() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.prompt = true
	return c.SetWriteDeadline(time.Time{})
}

// Write implements net.Conn.
func (c *conn) Write(b []byte) (int, error) {
	c.mu.Lock()
	if !c.prompt {
		c.mu.Unlock()
		return c.Conn.Write(b)
	}
	defer c.mu.Unlock()
	n := 0
	if len(c.left) == 0 && c.err == nil {
		n, c.err = c.now(b)
	}
	if c.err != nil {
		return n, c.err
	}
	c.left = append(c.left, b[n:]...)
	return len(b), nil
}

// now writes what the kernel takes at once.
func (c *conn) now(b []byte) (n int, err error) {
	gone := c.raw.Write(func(fd uintptr) bool {
		for {
			n, err = syscall.Write(int(fd), b)
			if !errors.Is(err, syscall.EINTR) {
				return true
			}
		}
	})
	if gone != nil {
		return 0, gone
	}
	if errors.Is(err, syscall.EAGAIN) {
		return 0, nil
	}
	return max(n, 0), err
}

// waits says whether something is kept for drain, as it is too when a write failed.
func (c *conn) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.left) > 0 || c.err != nil
}

// drain writes what is kept, each piece within writeTime.
func (c *conn) drain() error {
	for {
		c.mu.Lock()
		left, err := c.left, c.err
		c.mu.Unlock()
		if len(left) == 0 || err != nil {
			return err
		}
		_ = c.SetWriteDeadline(time.Now().Add(writeTime))
		n, err := c.Conn.Write(left[:min(len(left), maxPiece)])
		_ = c.SetWriteDeadline(time.Time{})
		c.mu.Lock()
		if c.left, c.err = c.left[n:], err; len(c.left) == 0 {
			c.left = nil
		}
		c.mu.Unlock()
	}
}
