package telemetry

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"

	"netctl/netdev/netlab"
)

// TestSilentClients: who connects and says nothing, however often, holds a bounded number
// of descriptors.
func TestSilentClients(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &netlab.Census{Listener: l}
	r := &Role{cfg: Config{Role: "agent"}, log: slog.New(slog.DiscardHandler), asking: make(chan struct{}, 1), events: &recorder{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.serve(ctx, c) }()
	const strangers = 4 * mostConnected
	netlab.Crowd(t, c, strangers)
	if c.All.Load() != strangers || c.Most.Load() > mostConnected+1 { // the one is about to be closed
		t.Errorf("%d of %d connections at once", c.Most.Load(), c.All.Load())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestRoomComesBack: connections that end leave their place to others.
func TestRoomComesBack(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Role{cfg: Config{Role: "agent"}, log: slog.New(slog.DiscardHandler), asking: make(chan struct{}, 1), events: &recorder{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.serve(ctx, l) }()
	for range 3 * mostConnected {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "GET /healthz HTTP/1.0\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		_, _ = io.Copy(io.Discard, conn) // the server closes it
		conn.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
