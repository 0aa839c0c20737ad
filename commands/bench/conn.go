package bench

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a socket whose calls block in the kernel: what the runtime adds to each message
// is not measured with it.
type conn struct {
	file *os.File
	fd   int
	stop func() bool
}

// take makes a connection a conn; the end of ctx ends what waits on it.
func take(ctx context.Context, c interface {
	File() (*os.File, error)
	Close() error
}) (*conn, error) {
	f, err := c.File()
	_ = c.Close() // f is another one of the same socket
	if err != nil {
		return nil, err
	}
	t := &conn{file: f, fd: int(f.Fd())} // Fd makes its calls block
	t.stop = context.AfterFunc(ctx, func() { _ = unix.Shutdown(t.fd, unix.SHUT_RDWR) })
	return t, nil
}

func (c *conn) Close() error {
	c.stop()
	return c.file.Close()
}

// limit bounds each call from now on.
func (c *conn) limit(d time.Duration) {
	tv := unix.NsecToTimeval(int64(d))
	_ = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv) // of a socket that is open
	_ = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
}

// noDelay has each message sent at once, or those that are small gathered.
func (c *conn) noDelay(on bool) {
	v := 0
	if on {
		v = 1
	}
	_ = unix.SetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, v)
}

// Read implements io.Reader; a wait that took too long is os.ErrDeadlineExceeded.
func (c *conn) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(c.fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, late(err)
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write implements io.Writer.
func (c *conn) Write(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := unix.Write(c.fd, b[done:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, late(err)
		}
		done += n
	}
	return done, nil
}

func late(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return os.ErrDeadlineExceeded
	}
	return err
}

// closeWrite says that nothing more will come.
func (c *conn) closeWrite() error { return unix.Shutdown(c.fd, unix.SHUT_WR) }
