package join

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestCrowd: a member that has no room for a connection is asked until others were closed,
// and what is said at last says so.
func TestCrowd(t *testing.T) {
	w := newWorld(t, time.Hour)
	token := w.token(false, time.Hour)
	for refused, good := range map[int]bool{askRounds + 2: true, crowdRounds: false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for n := 0; ; n++ {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if n < refused {
					_ = conn.Close()
					continue
				}
				inner, err := net.Dial("tcp", w.at.String())
				if err != nil {
					_ = conn.Close()
					continue
				}
				go func() { _, _ = io.Copy(inner, conn); _ = inner.Close() }()
				go func() { _, _ = io.Copy(conn, inner); _ = conn.Close() }()
			}
		}()
		c := w.client(token)
		c.Endpoints, c.pause = []netip.AddrPort{netip.MustParseAddrPort(l.Addr().String())}, time.Millisecond
		if _, err := c.Join(t.Context(), token, "n2", key(t), ""); good && err != nil {
			t.Errorf("%d refused: %v", refused, err)
		} else if !good {
			says(t, "a crowd", err, "too many others are open there")
		}
	}
}
