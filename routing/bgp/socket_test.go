package bgp

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// guarded runs two speakers on two hosts, the second with what change makes of its peer,
// and both with what both does.
func guarded(t *testing.T, both, change func(*PeerConfig)) (a, b *Speaker, configure func(*Speaker, func(*PeerConfig))) {
	t.Helper()
	ha, hb := newHost(t), newHost(t)
	wire(ha, hb, []string{"10.9.0.1/24", "fd00:9::1/64"}, []string{"10.9.0.2/24", "fd00:9::2/64"})
	peers := map[*Speaker]PeerConfig{}
	side := func(h *host, us, them string, change func(*PeerConfig)) *Speaker {
		p := PeerConfig{Address: addr(them), AS: 64511, LocalAddress: addr(us), HoldTime: 9 * time.Second, ConnectRetry: time.Second}
		both(&p)
		change(&p)
		listen := addr(us)
		if p.Address.Is6() {
			listen = p.LocalAddress
		}
		s, err := New(Config{RouterID: addr(us), AS: 64511, Listen: []netip.AddrPort{netip.AddrPortFrom(listen, Port)}})
		if err != nil {
			t.Fatal(err)
		}
		h.settle(s)
		if err := s.Configure([]PeerConfig{p}); err != nil {
			t.Fatal(err)
		}
		run(t, s)
		peers[s] = p
		return s
	}
	a, b = side(ha, "10.9.0.1", "10.9.0.2", func(*PeerConfig) {}), side(hb, "10.9.0.2", "10.9.0.1", change)
	return a, b, func(s *Speaker, change func(*PeerConfig)) {
		t.Helper()
		p := peers[s]
		change(&p)
		peers[s] = p
		if err := s.Configure([]PeerConfig{p}); err != nil {
			t.Fatal(err)
		}
	}
}

// over6 has a peer spoken to over IPv6.
func over6(p *PeerConfig) {
	p.Address = netip.AddrFrom16([16]byte{0: 0xfd, 3: 9, 15: p.Address.As4()[3]})
	p.LocalAddress = netip.AddrFrom16([16]byte{0: 0xfd, 3: 9, 15: p.LocalAddress.As4()[3]})
}

func isUp(s *Speaker) func() bool { return func() bool { return only(s).State == "Established" } }

// TestPassword: with the same password there is a session, whoever dials; with another
// one, or on one side only, there is none, and the reason says so. A password that
// changes on both sides changes under the session.
func TestPassword(t *testing.T) {
	secret := func(p *PeerConfig) { p.Password = "secret" }
	for name, passive := range map[string]bool{"either dials": false, "one dials": true, "ipv6": true} {
		t.Run(name, func(t *testing.T) {
			both := secret
			if name == "ipv6" {
				both = func(p *PeerConfig) { secret(p); over6(p); p.Families = []Family{IPv4, IPv6} }
			}
			a, b, configure := guarded(t, both, func(p *PeerConfig) { p.Passive = passive })
			eventually(t, "session", isUp(a))
			eventually(t, "session", isUp(b))
			for _, s := range []*Speaker{a, b} {
				configure(s, func(p *PeerConfig) { p.Password = "another" })
			}
			for _, s := range []*Speaker{a, b} { // what is sent now is signed with it
				s.Originate(prefixes("10.0.0.0/26", "fd80::/122"), nil)
				eventually(t, "a route", func() bool { return only(a).Received+only(b).Received > 0 })
			}
			if passive && (only(a).Established != 1 || only(b).Established != 1) { // else one connection may replace another
				t.Errorf("sessions %+v and %+v", only(a), only(b))
			}
		})
	}
	for name, change := range map[string]func(*PeerConfig){
		"another":        func(p *PeerConfig) { p.Password = "other" },
		"none":           func(p *PeerConfig) { p.Password = "" },
		"none, and dial": func(p *PeerConfig) { p.Password, p.Passive = "", true },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, configure := guarded(t, secret, change)
			eventually(t, "the reason", func() bool {
				return strings.HasPrefix(only(a).Reason, "no answer: it has another password or none")
			})
			if only(a).Established+only(b).Established > 0 {
				t.Error("a session")
			}
			configure(b, func(p *PeerConfig) { secret(p); p.Passive = false })
			eventually(t, "session with the right password", isUp(b))
			configure(a, func(p *PeerConfig) { p.Password = "" })
			configure(b, func(p *PeerConfig) { p.Password = "" })
			eventually(t, "session without", func() bool { return isUp(a)() && only(a).Established > 1 })
		})
	}
}

// TestTTLSecurity: both sides prove that they are neighbours, over either family; one
// that does not is not heard. Switched on and off in a session it stays.
func TestTTLSecurity(t *testing.T) {
	near := func(p *PeerConfig) { p.TTLSecurity = 1 }
	six := func(p *PeerConfig) { near(p); over6(p) }
	for name, both := range map[string]func(*PeerConfig){"ipv4": near, "ipv6": six} {
		for _, passive := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				a, b, configure := guarded(t, both, func(p *PeerConfig) { p.Passive = passive })
				eventually(t, "session", isUp(a))
				eventually(t, "session", isUp(b))
				configure(a, func(p *PeerConfig) { p.TTLSecurity = 0 })
				configure(b, func(p *PeerConfig) { p.TTLSecurity = 0 })
				configure(b, near)
				a.Originate(prefixes("10.0.0.0/26"), nil)
				b.Originate(prefixes("10.0.0.0/26"), nil)
				if passive && (only(a).Established != 1 || only(b).Established != 1) { // else one connection may replace another
					t.Errorf("sessions %+v and %+v", only(a), only(b))
				}
			})
		}
	}
	for name, change := range map[string]func(*PeerConfig){
		"either dials":    func(p *PeerConfig) { p.TTLSecurity, p.TTL = 0, 64 },
		"the other dials": func(p *PeerConfig) { p.TTLSecurity, p.TTL, p.Passive = 0, 64, true },
	} {
		t.Run(name, func(t *testing.T) {
			a, b, configure := guarded(t, near, change)
			eventually(t, "the reason", func() bool { return strings.HasSuffix(only(a).Reason, "or has no TTL security") })
			if only(a).Established+only(b).Established > 0 {
				t.Error("a session")
			}
			configure(b, near)
			eventually(t, "session once both have it", isUp(a))
		})
	}
}
