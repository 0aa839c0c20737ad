package netlab

import (
	"net"
	"sync"
	"sync/atomic"
)

// Census is a listener that knows how many connections it had, how many are open, and how
// many were open at a time.
type Census struct {
	net.Listener
	All, Open, Most atomic.Int32
}

// Accept implements net.Listener; one goroutine may call it.
func (c *Census) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.All.Add(1)
	c.Most.Store(max(c.Most.Load(), c.Open.Add(1)))
	return &resident{conn, sync.OnceFunc(func() { c.Open.Add(-1) })}, nil
}

type resident struct {
	net.Conn
	leave func()
}

func (r *resident) Close() error {
	defer r.leave()
	return r.Conn.Close()
}

// Crowd connects as so many clients that say nothing, until the last one is let go; none
// leaves before the test ends.
func Crowd(t TB, l net.Listener, clients int) {
	t.Helper()
	var last net.Conn
	for range clients {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatalf("%v", err)
		}
		t.Cleanup(func() { conn.Close() })
		last = conn
	}
	if n, err := last.Read(make([]byte, 1)); n > 0 {
		t.Errorf("read %d bytes, %v", n, err)
	}
}
