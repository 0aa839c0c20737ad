package bgp

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/routing/gate"
)

// linkPeer is a neighbour of a link: of whatever other AS.
func linkPeer(address, local string) PeerConfig {
	return PeerConfig{
		Address: addr(address), LocalAddress: addr(local), External: true, Families: []Family{IPv4, IPv6},
		HoldTime: 9 * time.Second, ConnectRetry: time.Second, TTLSecurity: 1,
	}
}

// onLink starts a speaker that has a neighbour of a link only.
func onLink(t *testing.T, h *host, k *kernel, id string, as uint32, peer PeerConfig, own ...string) *Speaker {
	t.Helper()
	s, err := New(Config{
		RouterID: addr(id), AS: as, Listen: []netip.AddrPort{netip.AddrPortFrom(addr("127.0.0.1"), Port)},
		RestartTime: 30 * time.Second, Installer: k, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.settle(s)
	if err := s.Configure([]PeerConfig{peer}); err != nil {
		t.Fatal(err)
	}
	s.Originate(prefixes(own...), nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// TestLinkLocalSession is one between link-local addresses, with whatever AS the other has:
// both families, next hops of the link, an end that is the link's, and nobody else let in.
func TestLinkLocalSession(t *testing.T) {
	a, b := newHost(t), newHost(t)
	wire(a, b, []string{"fe80::1/64"}, []string{"fe80::2/64", "fe80::bad/64"})
	ka, kb := &kernel{}, &kernel{}
	sa := onLink(t, a, ka, "10.9.0.1", 64511, linkPeer("fe80::2%eth0", "fe80::1%eth0"), "10.0.0.0/26", "fd80::/122")
	sb := onLink(t, b, kb, "10.9.0.2", 4200000001, linkPeer("fe80::1%eth0", "fe80::2%eth0"), "10.1.0.0/26", "fd80:1::/122")
	for _, c := range []struct {
		k    *kernel
		want []string
	}{
		{ka, []string{"10.1.0.0/26 via fe80::2%eth0", "fd80:1::/122 via fe80::2%eth0"}},
		{kb, []string{"10.0.0.0/26 via fe80::1%eth0", "fd80::/122 via fe80::1%eth0"}},
	} {
		eventually(t, "routes over the link", func() bool { return slices.Equal(c.k.text(), c.want) })
	}
	for s, as := range map[*Speaker]uint32{sa: 4200000001, sb: 64511} {
		st := only(s)
		if st.AS != as || st.Local.Zone() != "eth0" || st.Peer.Zone() != "eth0" || !slices.Contains(st.Heard, "ipv6 next hops of ipv4") {
			t.Errorf("session %+v", st)
		}
	}
	var err error
	if e := b.within(func() {
		d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP("fe80::bad"), Zone: index(t)}}
		var c net.Conn
		if c, err = d.Dial("tcp", "[fe80::1%"+index(t)+"]:179"); err == nil {
			_ = c.Close()
		}
	}); e != nil {
		t.Fatal(e)
	}
	if !os.IsTimeout(err) {
		t.Errorf("a stranger of the link knocks: %v", err)
	}
}

// index is that of eth0 in the thread's namespace.
func index(t *testing.T) string {
	t.Helper()
	a, err := numbered(addr("fe80::%eth0"))
	if err != nil {
		t.Fatal(err)
	}
	return a.Zone()
}

// TestGateOfALink: on the listener of a link only that link's peers are let in, and none of
// them elsewhere.
func TestGateOfALink(t *testing.T) {
	g := newPortGate()
	peers := map[netip.Addr]uint8{addr("fe80::2%eth0"): 0, addr("fe80::3%eth1"): 255, addr("fd00:9::2"): 0, addr("10.9.0.2"): 0}
	if err := g.admit(peers); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{"", "eth0", "eth1", "eth2"} {
		there := map[netip.Addr]uint8{}
		for a, least := range peers {
			if a.Zone() == link {
				there[a] = least
			}
		}
		want, err := gate.Program(there)
		if err != nil {
			t.Fatal(err)
		}
		if program, err := g.program(link); err != nil || !slices.Equal(program, want) {
			t.Errorf("the listener of %q does not let in %v alone, %v", link, there, err)
		}
	}
}

// TestAnyExternalAS: a peer of any other AS is let in, one of this side's or of a reserved
// number is not.
func TestAnyExternalAS(t *testing.T) {
	for as, want := range map[uint32]string{
		64600: "Established", 4200000001: "Established",
		robotAS: "Idle: bad peer AS 64511: this side's, and not an external one, retry in 1 s", asTrans: "Idle: bad peer AS 23456: reserved, retry in 1 s",
		0: "Idle: bad peer AS 0: reserved, retry in 1 s",
	} {
		c := robotPeer("10.9.0.2")
		c.AS, c.External = 0, true
		play(t, Config{}, []PeerConfig{c}, func(g *stage) {
			r := <-g.dialled
			if change := func(o *open) { o.as = as }; want == "Established" {
				r.establish(change)
			} else { // whose NOTIFICATION may come before any OPEN of this side's
				r.send(theirOpen(change))
			}
			g.words(want)
			if want == "Established" {
				look := outlook{as4: true, external: true, localAS: as, nextHop: [2]netip.Addr{addr("10.9.0.2")}}
				b, _ := look.announce(&attrs{}, bare(prefixes("10.1.0.0/26")), IPv4)
				r.send(b.bytes)
				g.has("10.1.0.0/26 via 10.9.0.2")
				if st := g.session(); st.AS != as {
					t.Errorf("session %+v", st)
				}
			}
		})
	}
	for _, bad := range []PeerConfig{
		{Address: addr("10.9.0.2")}, {Address: addr("10.9.0.2"), AS: 7, External: true}, {Address: addr("fe80::2"), AS: 7},
		{Address: addr("fe80::2%eth0"), AS: 7}, {Address: addr("fe80::2%eth0"), AS: 7, LocalAddress: addr("fe80::1%eth1")},
	} {
		if err := bad.check(); err == nil || !strings.HasPrefix(err.Error(), "peer ") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
