package bgp

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"
)

// tcpConn has the two ends of a TCP connection, ours without a writer.
func tcpConn(t *testing.T) (*conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	return newConn(ours, false, &counters{}), theirs
}

// TestQueueAtOnce: a message goes out without the writer as long as nothing is in front of
// it; what the socket does not take is the writer's, and nothing overtakes it.
func TestQueueAtOnce(t *testing.T) {
	c, theirs := tcpConn(t)
	if !c.queue(blob{[]byte("first"), 1}, true) || c.size != 0 || len(c.waiting) != 0 {
		t.Fatalf("%d bytes wait", c.size)
	}
	c.queue(blob{[]byte(", second"), 1}, false)
	c.queue(blob{[]byte(", third"), 1}, true)
	if len(c.waiting) != 2 {
		t.Fatalf("%d blobs wait: one has overtaken another", len(c.waiting))
	}
	c.waiting, c.size = nil, 0
	want := []byte("first")
	for n := byte(0); c.size == 0; n++ { // until the socket is full
		piece := bytes.Repeat([]byte{n}, 4000)
		want = append(want, piece...)
		if !c.queue(blob{piece, 1}, true) {
			t.Fatal("refused")
		}
	}
	if c.size > 4000 {
		t.Errorf("%d bytes wait of 4000", c.size)
	}
	c.queue(blob{[]byte("last"), 1}, true)
	want = append(want, "last"...)
	go c.write()
	got := make([]byte, len(want))
	_ = theirs.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadFull(theirs, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v; what arrives is not what was sent", err)
	}
	c.end(context.Background(), nil)
}

// speaking is a connection on which something else happens while the last words are said.
type speaking struct {
	*net.TCPConn
	meanwhile func()
}

func (s speaking) Write(b []byte) (int, error) {
	s.meanwhile()
	return s.TCPConn.Write(b)
}

// TestQueueAtOnceEnds: nothing comes between or behind the last words.
func TestQueueAtOnceEnds(t *testing.T) {
	c, theirs := tcpConn(t)
	more := func() { c.queue(blob{[]byte("more"), 1}, true) }
	c.Conn = speaking{c.Conn.(*net.TCPConn), more}
	last := cease(ceaseShutdown, "")
	c.end(context.Background(), last)
	more()
	_ = theirs.SetReadDeadline(time.Now().Add(time.Minute))
	got, err := io.ReadAll(theirs)
	if err != nil || !bytes.Equal(got, last.message()) {
		t.Errorf("%x, %v; want %x", got, err, last.message())
	}
}

// TestQueueAtOnceFailed: nothing follows a message of which half may be out.
func TestQueueAtOnceFailed(t *testing.T) {
	c, _ := tcpConn(t)
	c.hold.Store(0)
	_ = c.SetWriteDeadline(time.Unix(1, 0))
	c.queue(blob{[]byte("half"), 1}, false)
	c.write()
	if !c.over || c.size != 0 {
		t.Errorf("over: %v; %d bytes wait", c.over, c.size)
	}
}

// deaf is what a peer that reads nothing holds after so many changes, in bytes, and what
// the other one was told meanwhile: in how many messages, and when it had the last.
func deaf(t *testing.T, rounds int, silent bool) (holds int, told uint64, took time.Duration) {
	const routes = 4096
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2"), robotPeer("10.9.0.3")}, func(g *stage) {
		fast := g.incoming("10.9.0.2")
		fast.establish(func(o *open) { o.hold = 0 })
		slow := g.incoming("10.9.0.3")
		slow.establish(func(o *open) { o.hold, o.id = 0, addr("10.9.0.3") })
		if silent {
			slow.pause.Lock()
			defer slow.pause.Unlock()
		}
		var all []netip.Prefix
		for i := range routes {
			all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 4), byte(i << 4)}), 28))
		}
		known := map[netip.Prefix]netip.Addr{}
		began := time.Now()
		for range rounds {
			g.s.Originate(all, nil)
			g.session()
			g.s.Originate(nil, all)
			g.session()
			fast.told(known)
		}
		took = time.Since(began)
		g.s.ask(func() {
			for _, p := range g.s.rib.peers {
				if p.config.Address == addr("10.9.0.2") {
					told = p.fsm.count.messagesOut.Load()
					continue
				}
				c := p.session.conn
				c.mu.Lock()
				for _, b := range c.waiting {
					holds += cap(b)
				}
				c.mu.Unlock()
				holds += len(p.session.behind) * int(unsafe.Sizeof(nlri{}))
			}
		})
	})
	return holds, told, took
}

// TestDeafPeer: what a peer that reads nothing costs has a bound that further changes do
// not move, and the others are told the same, in as many messages and as soon, as without it.
func TestDeafPeer(t *testing.T) {
	_, alone, asSoon := deaf(t, 100, false)
	few, told, took := deaf(t, 100, true)
	if told != alone || took != asSoon {
		t.Errorf("beside a peer that reads nothing another gets %d messages in %v, else %d in %v", told, took, alone, asSoon)
	}
	many, _, _ := deaf(t, 200, true)
	// A queue may be over its limit by the last it took, and slices have room to spare.
	bound := 2*queueLimit + 4096*int(unsafe.Sizeof(nlri{}))
	if few < queueLimit/2 || few != many || many > bound {
		t.Errorf("it holds %d bytes after 100 rounds, %d after 200; the bound is %d", few, many, bound)
	}
}
