package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// TestLook asks about a prefix that each peer has something else to say of.
func TestLook(t *testing.T) {
	peers := []PeerConfig{}
	for i := range 8 {
		peers = append(peers, bgpPeer(fmt.Sprintf("10.9.0.%d", i+2), 65004, nil))
	}
	peers[7].AS = robotAS
	peers[0].Communities, peers[0].LocalAS = Communities{Standard: []uint32{5}}, 64999
	c := Config{Import: func(p netip.Addr, _ netip.Prefix, _ netip.Addr) (bool, string) {
		return p != addr("10.9.0.8"), "not from there"
	}}
	play(t, c, peers, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		c := perform(g, peers, nil)
		long := []segment{{codec.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{65099}}, {codec.BGP_ASPATH_ATTR_TYPE_SET, []uint32{1, 2}}}
		c.sends("10.9.0.2", &attrs{rest: attached(Communities{Standard: []uint32{GracefulShutdown, 64512<<16 | 3}, Large: [][3]uint32{{1, 2, 3}}}.wire())}, "10.1.0.0/26")
		c.sends("10.9.0.3", &attrs{path: long}, "10.1.0.0/26")
		c.sends("10.9.0.4", &attrs{origin: 2}, "10.1.0.0/26")
		c.sends("10.9.0.6", &attrs{}, "10.1.0.0/26")
		c.sends("10.9.0.5", &attrs{}, "10.1.0.0/26", "10.0.0.0/26")
		c.sends("10.9.0.8", &attrs{}, "10.1.0.0/26")
		c.sends("10.9.0.9", &attrs{nextHop: addr("10.9.0.9"), localPref: 100, path: []segment{{codec.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{65004}}}}, "10.1.0.0/26")
		// MED as a peer of another AS sends it; our own packer keeps it inside.
		look := outlook{as4: true, localAS: 65004, nextHop: [2]netip.Addr{addr("10.9.0.7")}}
		b, _ := look.announce(&attrs{med: 7, hasMED: true, path: []segment{{codec.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{65004}}}}, bare(prefixes("10.1.0.0/26")), IPv4)
		c.robots["10.9.0.7"].send(b.bytes)
		check := func(q Query, want ...string) {
			t.Helper()
			q.Limit = 100
			paths, more := g.s.Look(q)
			var got []string
			for _, p := range paths {
				got = append(got, fmt.Sprintf("%v by %v via %v path [%s] %s pref %d med %v %d %v best %v used %v: %s", p.Prefix, p.Peer, p.NextHop, p.ASPath, p.Origin, p.LocalPref,
					p.HasMED, p.MED, p.Communities, p.Best, p.Used, p.Why))
			}
			if !slices.Equal(got, want) || more > 0 {
				t.Errorf("%+v:\n%s\nwant\n%s", q, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		one := func(peer, rest string) string {
			return "10.1.0.0/26 by " + peer + " via " + peer + " path [65004" + rest
		}
		all := []string{
			one("10.9.0.5", "] igp pref 100 med false 0 [] best true used true: best: that by 10.9.0.2 has LOCAL_PREF 0, not 100; that by 10.9.0.3 has an AS path of 3, not 1; "+
				"that by 10.9.0.4 has origin incomplete, not igp; that by 10.9.0.6 has router ID 10.9.0.6, not 10.9.0.5; that by 10.9.0.7 has MED 7, that by 10.9.0.5 has 0; "+
				"that by 10.9.0.9 has a source inside the AS, not in another one"),
			one("10.9.0.2", "] igp pref 0 med false 0 [64512:3 graceful-shutdown 1:2:3] best false used false: LOCAL_PREF 0, not 100"),
			one("10.9.0.3", " 65099 {1,2}] igp pref 100 med false 0 [] best false used false: an AS path of 3, not 1"),
			one("10.9.0.4", "] incomplete pref 100 med false 0 [] best false used false: origin incomplete, not igp"),
			one("10.9.0.6", "] igp pref 100 med false 0 [] best false used true: equal, router ID 10.9.0.6, not 10.9.0.5"),
			one("10.9.0.7", "] igp pref 100 med true 7 [] best false used false: MED 7, that by 10.9.0.5 has 0"),
			one("10.9.0.8", "] igp pref 100 med false 0 [] best false used false: refused: not from there"),
			one("10.9.0.9", "] igp pref 100 med false 0 [] best false used false: a source inside the AS, not in another one"),
		}
		check(Query{Prefix: prefixes("10.1.0.0/26")[0]}, all...)
		check(Query{Covers: addr("10.1.0.9"), View: ViewRejected}, all[6])
		check(Query{Peer: addr("10.9.0.4"), View: ViewReceived}, all[3])
		check(Query{Covers: addr("10.0.0.9")},
			"10.0.0.0/26 by invalid IP via invalid IP path [] igp pref 100 med false 0 [] best true used false: best: this node's own",
			"10.0.0.0/26 by 10.9.0.5 via 10.9.0.5 path [65004] igp pref 100 med false 0 [] best false used false: a peer's word against this node's own")
		check(Query{Peer: addr("10.9.0.2"), View: ViewAdvertised},
			"10.0.0.0/26 by invalid IP via "+usID+" path [64999] igp pref 0 med false 0 [0:5] best false used false: advertised",
			"10.1.0.0/26 by 10.9.0.5 via "+usID+" path [64999 65004] igp pref 0 med false 0 [0:5] best false used false: advertised")
		check(Query{Peer: addr("10.9.0.99"), View: ViewAdvertised})
		// A question beside what has just arrived.
		g.s.order(func() {
			a := *g.s.rib.dest(prefixes("10.1.0.0/26")[0]).best.attrs
			for _, who := range []string{"10.9.0.3", "10.9.0.4"} {
				g.s.rib.set(g.s.rib.peers[addr(who)], prefixes("10.6.0.0/26")[0], 0, &a, false)
			}
		})
		if paths, _ := g.s.Look(Query{Prefix: prefixes("10.6.0.0/26")[0], Limit: 9}); len(paths) != 2 || !paths[0].Best {
			t.Errorf("what has just arrived: %+v", paths)
		}
		g.s.order(func() {
			for _, who := range []string{"10.9.0.3", "10.9.0.4"} {
				p, d := g.s.rib.peers[addr(who)], g.s.rib.dest(prefixes("10.6.0.0/26")[0])
				g.s.rib.remove(p, d, d.from(p, 0))
			}
		})
		if paths, more := g.s.Look(Query{Limit: 3}); len(paths) != 3 || more != 7 {
			t.Errorf("%d paths and %d more", len(paths), more)
		}
	})
}
