package bgp

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// kernel is an Installer that keeps what it was told, and counts deletions.
type kernel struct {
	mu      sync.Mutex
	routes  map[netip.Prefix][]netip.Addr
	deleted []netip.Prefix
	batches int
}

func (k *kernel) Install(changes []Change) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.routes == nil {
		k.routes = map[netip.Prefix][]netip.Addr{}
	}
	k.batches++
	for _, c := range changes {
		if len(c.Now) > 0 {
			k.routes[c.Prefix] = c.Now
			continue
		}
		delete(k.routes, c.Prefix)
		k.deleted = append(k.deleted, c.Prefix)
	}
}

// text is the table as sorted lines "prefix via hop hop".
func (k *kernel) text() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	lines := []string{}
	for p, hops := range k.routes {
		line := p.String() + " via"
		for _, h := range hops {
			line += " " + h.String()
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

func (k *kernel) deletions() []netip.Prefix {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.deleted)
}

// count is the number of batches.
func (k *kernel) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.batches
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// start runs a speaker until the test or stop ends it.
func start(t *testing.T, c Config, peers []PeerConfig, own ...string) (s *Speaker, stop func()) {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Configure(peers); err != nil {
		t.Fatal(err)
	}
	s.Originate(prefixes(own...), nil)
	return s, run(t, s)
}

// run runs a speaker until the test or stop ends it.
func run(t *testing.T, s *Speaker) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s %s", time.Now().Format("05.000"), b[:len(b)-1])
	return len(b), nil
}

func prefixes(list ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, p := range list {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestTwoSpeakers(t *testing.T) {
	both := []Family{IPv4, IPv6}
	var ka, kb kernel
	a, _ := start(t, Config{RouterID: addr("127.0.1.1"), AS: 64511, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.1.1:1790")}, Installer: &ka},
		[]PeerConfig{{Address: addr("127.0.1.2"), Port: 1790, AS: 64511, LocalAddress: addr("127.0.1.1"), Families: both, NextHopSelf: []netip.Addr{addr("fd00::1")}, HoldTime: 9 * time.Second}},
		"10.0.0.0/26", "fd80::/122")
	b, _ := start(t, Config{RouterID: addr("127.0.1.2"), AS: 64511, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.1.2:1790")}, Installer: &kb},
		[]PeerConfig{{Address: addr("127.0.1.1"), Port: 1790, AS: 64511, LocalAddress: addr("127.0.1.2"), Families: both, NextHopSelf: []netip.Addr{addr("fd00::2")}, HoldTime: 9 * time.Second}},
		"10.0.1.0/26", "fd80:1::/122")
	eventually(t, "routes both ways", func() bool { return len(ka.text()) == 2 && len(kb.text()) == 2 })
	if got, want := ka.text(), []string{"10.0.1.0/26 via 127.0.1.2", "fd80:1::/122 via fd00::2"}; !slices.Equal(got, want) {
		t.Errorf("a has %q, want %q", got, want)
	}
	if got, want := kb.text(), []string{"10.0.0.0/26 via 127.0.1.1", "fd80::/122 via fd00::1"}; !slices.Equal(got, want) {
		t.Errorf("b has %q, want %q", got, want)
	}
	a.Originate(prefixes("10.0.0.64/26"), prefixes("10.0.0.0/26"))
	eventually(t, "change", func() bool {
		return slices.Equal(kb.text(), []string{"10.0.0.64/26 via 127.0.1.1", "fd80::/122 via fd00::1"})
	})
	t.Logf("%+v", b.Status())
}

// Both sides start at the same moment, over and over, as after a power cut of
// a rack: each time there is a session, and no route is deleted on either side.
func TestBothRestart(t *testing.T) {
	a, b := addr("127.0.3.1"), addr("127.0.3.2")
	side := func(us, them netip.Addr, prefix string, k *kernel, stale []Route) (*Speaker, func()) {
		return start(t, Config{
			RouterID: us, AS: 64511, Listen: []netip.AddrPort{netip.AddrPortFrom(us, 1793)}, Installer: k, Restarting: true,
			ForwardingPreserved: map[Family]bool{IPv4: true}, Stale: stale, Log: slog.New(slog.DiscardHandler),
		}, []PeerConfig{{Address: them, Port: 1793, AS: 64511, LocalAddress: us, HoldTime: 9 * time.Second, ConnectRetry: time.Second}}, prefix)
	}
	var ka, kb kernel
	var staleA, staleB []Route
	slowest := time.Duration(0)
	for range 20 {
		begun := time.Now()
		sa, stopA := side(a, b, "10.0.0.0/26", &ka, staleA)
		sb, stopB := side(b, a, "10.0.1.0/26", &kb, staleB)
		for _, s := range []*Speaker{sa, sb} {
			eventually(t, "session", func() bool {
				st := only(s)
				return st.State == "Established" && st.Received == 1 && st.Stale == 0
			})
		}
		slowest = max(slowest, time.Since(begun))
		staleA, staleB = sa.Routes(), sb.Routes()
		stopA()
		stopB()
	}
	if d := append(ka.deletions(), kb.deletions()...); len(d) != 0 {
		t.Errorf("deleted %v", d)
	}
	if ka.count() != 1 || kb.count() != 1 {
		t.Errorf("%d and %d batches", ka.count(), kb.count())
	}
	t.Logf("slowest %v", slowest)
}

// A listener that cannot be opened is named, and comes when it can.
func TestListenProblem(t *testing.T) {
	at := netip.MustParseAddrPort("127.0.4.1:1794")
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	s, _ := start(t, Config{RouterID: addr("127.0.4.1"), AS: 64511, Listen: []netip.AddrPort{at}}, nil)
	eventually(t, "problem", func() bool {
		return slices.Equal(s.Problems(), []string{"listen on 127.0.4.1:1794: address already in use"})
	})
	_ = l.Close()
	eventually(t, "no problem", func() bool { return len(s.Problems()) == 0 })
}

// A peer's local address is listened on while the peer is there.
func TestListensForPeers(t *testing.T) {
	at := func(a string) netip.AddrPort { return netip.AddrPortFrom(addr(a), 1795) }
	peer := func(to, from string, passive bool) []PeerConfig {
		return []PeerConfig{{Address: addr(to), LocalAddress: addr(from), Port: 1795, AS: 64511, Passive: passive, HoldTime: 9 * time.Second}}
	}
	s, _ := start(t, Config{RouterID: addr("127.0.5.1"), AS: 64511, Listen: []netip.AddrPort{at("127.0.5.1")}}, peer("127.0.5.3", "127.0.5.2", true))
	start(t, Config{RouterID: addr("127.0.5.3"), AS: 64511, Listen: []netip.AddrPort{at("127.0.5.3")}}, peer("127.0.5.2", "127.0.5.3", false))
	eventually(t, "session to the second address", func() bool { return only(s).State == "Established" })
	if err := s.Configure(nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the address is free again", func() bool {
		l, err := net.Listen("tcp", at("127.0.5.2").String())
		if err == nil {
			_ = l.Close()
		}
		return err == nil
	})
}
