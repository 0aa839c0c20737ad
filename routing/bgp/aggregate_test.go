package bgp

import (
	"net/netip"
	"slices"
	"testing"

	"netctl/routing"
)

// TestAggregates: who asks for it is told a pool in place of what lies in it, as long as
// anything does that it would be told, and what is nobody's there is dropped.
func TestAggregates(t *testing.T) {
	peers := []PeerConfig{
		bgpPeer("10.9.0.2", robotAS, nil),
		bgpPeer("10.9.0.4", 65004, func(p *PeerConfig) { p.Aggregate, p.OwnOnly = true, true }),
		bgpPeer("10.9.0.5", 65005, func(p *PeerConfig) { p.Aggregate = true }),
		bgpPeer("10.9.0.6", 65006, nil),
		bgpPeer("10.9.0.7", 65007, func(p *PeerConfig) { p.Outside = true }),
	}
	tags := Communities{Standard: []uint32{64512<<16 | 1}}
	c := Config{Tags: func(p netip.Prefix) Communities {
		if prefixes("10.65.0.0/16")[0].Contains(p.Addr()) {
			return tags
		}
		return Communities{}
	}}
	play(t, c, peers, func(g *stage) {
		g.s.Aggregate(prefixes("10.65.0.0/16", "10.66.0.0/16"))
		g.s.Originate(prefixes("10.70.0.0/26"), nil)
		c := perform(g, peers, nil)
		us := " via " + usID + " path 64511"
		other := "10.70.0.0/26" + us
		pool := "10.65.0.0/16" + us + " {Communities: 64512:1}"
		c.knows("10.9.0.4", other)
		c.knows("10.9.0.5", other)
		// What is learnt from outside is no reason.
		c.sends("10.9.0.7", &attrs{}, "10.65.77.0/26")
		c.knows("10.9.0.5", other)
		// What another node announces is, for those that are told of it.
		c.sends("10.9.0.2", &attrs{nextHop: addr("10.9.0.2"), localPref: 100}, "10.65.1.0/26", "10.65.2.0/26")
		c.knows("10.9.0.4", other)
		c.knows("10.9.0.5", pool, other)
		c.knows("10.9.0.6", "10.65.1.0/26"+us, "10.65.2.0/26"+us, other)
		g.has("10.65.0.0/16 via 0.0.0.0", "10.65.1.0/26 via 10.9.0.2", "10.65.2.0/26 via 10.9.0.2", "10.65.77.0/26 via 10.9.0.7")
		if n := g.s.Burden(addr("10.9.0.4"), map[netip.Addr]bool{addr("10.9.0.2"): true}); n != 2 {
			t.Errorf("others would tell it in all %d routes, want the pool and one more", n)
		}
		// An own one: for all. Who knows it already hears nothing.
		g.s.Originate(prefixes("10.65.0.0/26", "10.65.9.7/32"), nil)
		c.knows("10.9.0.4", pool, other)
		c.robots["10.9.0.5"].expect(0)
		c.knows("10.9.0.6", "10.65.0.0/26"+us+" {Communities: 64512:1}", "10.65.1.0/26"+us, "10.65.2.0/26"+us, "10.65.9.7/32"+us+" {Communities: 64512:1}", other)
		c.robots["10.9.0.2"].heard(c.known["10.9.0.2"])
		paths, _ := g.s.Look(Query{Prefix: prefixes("10.65.0.0/16")[0], Limit: 9})
		if len(paths) != 1 || paths[0].Why != "best: the aggregate of what lies in it; what is nobody's there is dropped" {
			t.Errorf("%+v", paths)
		}
		for _, r := range g.s.Routes() {
			if r.Prefix == prefixes("10.65.0.0/16")[0] && (r.Peer.IsValid() || r.Stale) {
				t.Errorf("%+v", r)
			}
		}
		// Its communities are the pool's, also when they change.
		g.s.order(func() { tags = Communities{} })
		g.s.Retag()
		g.quiet()
		pool = "10.65.0.0/16" + us
		c.knows("10.9.0.4", pool, other)
		c.knows("10.9.0.5", pool, other)
		// A filter sees the aggregate.
		set := func(change func(p *PeerConfig)) {
			t.Helper()
			change(&peers[1])
			if err := g.s.Configure(slices.Clone(peers)); err != nil {
				t.Fatal(err)
			}
			g.quiet()
		}
		set(func(p *PeerConfig) {
			p.ExportFilter = policy(t, routing.Export, "accept prefix 10.65.0.0/16 then med 4 and add community 1:1")
		})
		c.knows("10.9.0.4", pool+" med 4 {Communities: 1:1}")
		// In a running session: no more, and again.
		set(func(p *PeerConfig) { p.ExportFilter, p.Aggregate = nil, false })
		c.knows("10.9.0.4", "10.65.0.0/26"+us, "10.65.9.7/32"+us, other)
		set(func(p *PeerConfig) { p.Aggregate = true })
		c.knows("10.9.0.4", pool, other)
		// The last own part goes, and then the last one.
		g.s.Originate(nil, prefixes("10.65.0.0/26"))
		g.quiet()
		c.knows("10.9.0.4", pool, other)
		g.s.Originate(nil, prefixes("10.65.9.7/32"))
		g.quiet()
		c.knows("10.9.0.4", other)
		c.knows("10.9.0.5", pool, other)
		c.robots["10.9.0.2"].send(withdrawal("10.65.1.0/26", "10.65.2.0/26"))
		c.knows("10.9.0.5", other)
		g.has("10.65.77.0/26 via 10.9.0.7")
		// Another list of pools.
		g.s.Originate(prefixes("10.65.3.0/26", "10.66.0.0/26"), nil)
		g.quiet()
		c.knows("10.9.0.5", pool, "10.66.0.0/16"+us, other)
		g.s.Aggregate(prefixes("10.66.0.0/16"))
		g.quiet()
		c.knows("10.9.0.5", "10.65.3.0/26"+us, "10.66.0.0/16"+us, other)
		g.has("10.65.77.0/26 via 10.9.0.7", "10.66.0.0/16 via 0.0.0.0")
		g.s.Aggregate(nil)
		g.quiet()
		c.knows("10.9.0.5", "10.65.3.0/26"+us, "10.66.0.0/26"+us, other)
		g.has("10.65.77.0/26 via 10.9.0.7")
	})
}

// TestAggregateIPv6: the discard route is of the pool's family.
func TestAggregateIPv6(t *testing.T) {
	play(t, Config{}, nil, func(g *stage) {
		g.s.Aggregate(prefixes("10.65.0.0/16", "fd80::/64"))
		g.s.Originate(prefixes("fd80::/122", "fd80:0:0:1::/122"), nil)
		g.has("fd80::/64 via ::")
		g.s.Originate(nil, prefixes("fd80::/122"))
		g.has()
	})
}

// TestBurden counts what a switch hears from all nodes together.
func TestBurden(t *testing.T) {
	peers := []PeerConfig{bgpPeer("10.9.0.2", robotAS, nil), bgpPeer("10.9.0.3", robotAS, nil), bgpPeer("10.9.0.4", 65004, func(p *PeerConfig) { p.OwnOnly = true }), bgpPeer("10.9.0.5", 65005, nil)}
	play(t, Config{}, peers, func(g *stage) {
		if n := g.s.Burden(addr("10.9.0.4"), nil); n != 0 {
			t.Errorf("%d routes without a session", n)
		}
		g.s.Originate(prefixes("10.65.0.0/26", "10.65.0.64/26"), nil)
		c := perform(g, peers, nil)
		c.sends("10.9.0.2", &attrs{nextHop: addr("10.9.0.2"), localPref: 100}, "10.65.1.0/26", "10.65.1.64/26", "10.65.1.128/26")
		c.sends("10.9.0.3", &attrs{nextHop: addr("10.9.0.3"), localPref: 100}, "10.65.2.0/26")
		g.quiet()
		others := map[netip.Addr]bool{addr("10.9.0.2"): true}
		if n := g.s.Burden(addr("10.9.0.4"), others); n != 5 {
			t.Errorf("%d routes, want 5", n)
		}
		if n := g.s.Burden(addr("10.9.0.5"), others); n != 6 { // it is told all by each
			t.Errorf("%d routes, want 6", n)
		}
		peers[2].ExportFilter = policy(t, routing.Export, "reject prefix 10.65.1.0/25 le 32", "accept source local")
		_ = g.s.Configure(slices.Clone(peers))
		if n := g.s.Burden(addr("10.9.0.4"), others); n != 3 {
			t.Errorf("%d routes by a filter, want 3", n)
		}
	})
}
