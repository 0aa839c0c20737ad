package control

import (
	"fmt"
	"net"
	"sync"
	"syscall"
)

// Bound has a listener take so many connections at a time; one more is closed at once, so
// that strangers cannot use up the process's descriptors.
func Bound(l net.Listener, most int) net.Listener { return &bounded{l, make(chan struct{}, most)} }

type bounded struct {
	net.Listener
	room chan struct{}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		conn, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.room <- struct{}{}:
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { <-b.room })}, nil
		default:
			_ = conn.Close()
		}
	}
}

// counted is a connection of a bounded listener.
type counted struct {
	net.Conn
	leave func()
}

// SyscallConn implements syscall.Conn.
func (c *counted) SyscallConn() (syscall.RawConn, error) {
	s, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is no socket", c.Conn)
	}
	return s.SyscallConn()
}

// Close implements net.Conn.
func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
