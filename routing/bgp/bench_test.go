package bgp

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// The size of the fan-out that is compared.
const (
	fanRoutes  = 10000
	fanClients = 50
	fanAS      = 64511
	feederAS   = 64600
)

var fanTarget = netip.MustParseAddrPort("127.0.0.1:1792")

func fanClient(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 1, 0, byte(i + 1)}) }

// client is a minimal BGP peer: it counts prefixes and does nothing else.
type client struct {
	net.Conn
	gained, lost chan struct{}
}

// enter opens a session from an own loopback address of h. routes, if not 0, are
// the routes after which gained and lost are signalled.
func enter(b *testing.B, h *host, from netip.Addr, as uint32, routes int) *client {
	var c net.Conn
	var err error
	b.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		e := h.within(func() {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: time.Second}
			c, err = d.DialContext(context.Background(), "tcp", fanTarget.String())
		})
		if e != nil {
			b.Fatal(e)
		}
		if err == nil {
			o := &open{as: as, id: from, families: [2]bool{true, false}}
			m, _ := o.message()
			_, _ = c.Write(m)
			_, _ = c.Write(keepalive())
			// The OPEN says that the session was wanted.
			if _, err = io.ReadFull(c, m[:1]); err == nil {
				break
			}
		}
		if time.Now().After(deadline) {
			b.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	n := &client{c, make(chan struct{}, 1), make(chan struct{}, 1)}
	b.Cleanup(func() { _ = c.Close() })
	go n.read(routes)
	return n
}

// read counts announced and withdrawn IPv4 prefixes.
func (c *client) read(routes int) {
	buf := []byte{0xff}
	chunk := make([]byte, 256<<10)
	gained, lost := 0, 0
	skip := func(b []byte) (n int) {
		for len(b) > 0 {
			b = b[1+(int(b[0])+7)/8:]
			n++
		}
		return n
	}
	for {
		n, err := c.Read(chunk)
		if err != nil {
			return
		}
		buf = append(buf, chunk[:n]...)
		rest := buf
		for len(rest) >= headerLen {
			n := int(binary.BigEndian.Uint16(rest[16:]))
			if len(rest) < n {
				break
			}
			if rest[18] == codec.BGP_MSG_UPDATE {
				body := rest[headerLen:n]
				w, body, _ := cut(body)
				_, body, _ = cut(body)
				lost += skip(w)
				gained += skip(body)
			}
			rest = rest[n:]
		}
		buf = buf[:copy(buf, rest)]
		if routes > 0 && gained >= routes {
			gained = 0
			c.gained <- struct{}{}
		}
		if routes > 0 && lost >= routes {
			lost = 0
			c.lost <- struct{}{}
		}
	}
}

// fanOut measures from the first byte of 10k routes by one peer until the last
// of 50 others has them all. The speaker under test listens at fanTarget in h.
func fanOut(b *testing.B, h *host) {
	b.Helper()
	var clients []*client
	for i := range fanClients {
		clients = append(clients, enter(b, h, fanClient(i), fanAS, fanRoutes))
	}
	feeder := enter(b, h, fanClient(200), feederAS, 0)
	var list []netip.Prefix
	for i := range fanRoutes {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 26))
	}
	look := outlook{external: true, as4: true, localAS: feederAS, nextHop: [2]netip.Addr{fanClient(200)}}
	all, _ := look.announce(&attrs{}, list, IPv4)
	none := withdraw(list, IPv4)
	b.ResetTimer()
	for range b.N {
		_, _ = feeder.Write(all.bytes)
		for _, c := range clients {
			await(b, c.gained)
		}
		b.StopTimer()
		_, _ = feeder.Write(none.bytes)
		for _, c := range clients {
			await(b, c.lost)
		}
		b.StartTimer()
	}
}

func await(b *testing.B, done <-chan struct{}) {
	b.Helper()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		b.Fatal("routes do not arrive")
	}
}

// BenchmarkFanout is the engine: 10k routes of one peer to 50 others.
func BenchmarkFanout(b *testing.B) {
	h := newHost(b)
	s, err := New(Config{RouterID: addr("127.0.0.1"), AS: fanAS, Listen: []netip.AddrPort{fanTarget}})
	if err != nil {
		b.Fatal(err)
	}
	h.settle(s)
	peers := []PeerConfig{{Address: fanClient(200), AS: feederAS, Passive: true}}
	for i := range fanClients {
		peers = append(peers, PeerConfig{Address: fanClient(i), AS: fanAS, Passive: true})
	}
	if err := s.Configure(peers); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	fanOut(b, h)
}

// BenchmarkFanoutBIRD is the same with BIRD in the middle.
func BenchmarkFanoutBIRD(b *testing.B) {
	h := newHost(b)
	var conf strings.Builder
	fmt.Fprintf(&conf, "router id 127.0.0.1;\nprotocol device {}\nprotocol static { ipv4; route 127.0.0.0/8 via \"lo\"; }\n")
	peer := func(i int, as uint32) {
		fmt.Fprintf(&conf, `protocol bgp p%d { local 127.0.0.1 port %d as %d; neighbor %v as %d; multihop; passive; hold time 0;
  ipv4 { import all; export where source = RTS_BGP; }; }`+"\n", i, fanTarget.Port(), fanAS, fanClient(i), as)
	}
	peer(200, feederAS)
	for i := range fanClients {
		peer(i, fanAS)
	}
	startDaemonBIRD(h, conf.String())
	fanOut(b, h)
}
