package bgp

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// contender is a path of the given peer, changed as told.
func contender(peerAddress string, change func(*path)) *path {
	p := &path{
		peer:  &peer{config: PeerConfig{Address: addr(peerAddress)}, routerID: addr(peerAddress)},
		attrs: &attrs{nextHop: addr(peerAddress), localPref: 100, path: []segment{{2, []uint32{64601, 64602}}}},
	}
	if change != nil {
		change(p)
	}
	return p
}

// Each step of RFC 4271, section 9.1.2.2, in turn; the first path wins whatever
// the order they are given in, and alone unless equal says how many are as good.
func TestDecide(t *testing.T) {
	same := func(*path) {}
	for name, c := range map[string]struct {
		winner, other func(*path)
		equal         int
	}{
		"own":             {func(p *path) { p.peer = nil; p.attrs.localPref = 0 }, same, 1},
		"not stale":       {same, func(p *path) { p.stale = true; p.attrs.localPref = 200 }, 1},
		"LOCAL_PREF":      {func(p *path) { p.attrs.localPref = 4294967295; p.attrs.path = append(p.attrs.path, p.attrs.path...) }, same, 1},
		"path length":     {func(p *path) { p.attrs.path = p.attrs.path[:0]; p.attrs.origin = 2 }, same, 1},
		"set counts once": {func(p *path) { p.attrs.path = []segment{{1, []uint32{1, 2, 3}}} }, same, 1},
		"confederation":   {func(p *path) { p.attrs.path = []segment{{3, []uint32{1, 2, 3}}, {2, []uint32{9}}} }, same, 1},
		"origin":          {func(p *path) { p.attrs.med = 9 }, func(p *path) { p.attrs.origin = 1 }, 1},
		"MED":             {same, func(p *path) { p.attrs.med, p.attrs.hasMED = 5, true }, 1},
		"MED of other AS": {func(p *path) { p.attrs.med = 5; p.attrs.path = []segment{{2, []uint32{7, 8}}} }, same, 2},
		"external":        {func(p *path) { p.attrs.external = true }, same, 1},
		"router ID":       {same, func(p *path) { p.peer.routerID = addr("10.9.0.99") }, 2},
		"originator":      {func(p *path) { p.attrs.originator = addr("10.0.0.1"); p.peer.routerID = addr("10.9.0.99") }, same, 2},
		"cluster list": {func(p *path) { p.peer.config.Address = addr("10.9.0.99") }, func(p *path) {
			p.peer.routerID, p.attrs.clusters = addr("10.9.0.2"), make([]netip.Addr, 1)
		}, 2},
		"peer address": {same, func(p *path) { p.peer.routerID = addr("10.9.0.2") }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := contender("10.9.0.2", c.winner), contender("10.9.0.3", c.other)
			for _, list := range [][]*path{{a, b}, {b, a}} {
				best, equal := decide(list)
				if best != a || len(equal) != c.equal {
					t.Errorf("wins: %v, %d equal", best == a, len(equal))
				}
			}
		})
	}
	if best, equal := decide(nil); best != nil || equal != nil {
		t.Error("best of none")
	}
}

// The outcome does not depend on the order of the paths.
func TestDecideAnyOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var list []*path
		for i := range 2 + rnd.IntN(6) {
			list = append(list, contender(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}).String(), func(p *path) {
				p.attrs.med = rnd.Uint32N(3)
				p.attrs.origin = uint8(rnd.UintN(2))
				p.attrs.external = rnd.UintN(2) == 0
				p.attrs.path = []segment{{2, []uint32{rnd.Uint32N(2) + 1, 9}}}
				p.stale = rnd.UintN(3) == 0
			}))
		}
		best, equal := decide(list)
		hops := nextHops(equal).addrs()
		for range 5 {
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			again, equal := decide(list)
			if again != best || !slices.Equal(nextHops(equal).addrs(), hops) {
				t.Fatalf("%v or %v", best.attrs, again.attrs)
			}
		}
	}
}

// Of more equal paths than a route may have next hops, those that the tie-breaks prefer
// stay, whatever the order they are given in; paths to one next hop count once.
func TestMostPaths(t *testing.T) {
	var list []*path
	for _, a := range []string{"10.9.0.2", "10.9.0.3", "10.9.0.4", "10.9.0.5"} {
		list = append(list, contender(a, func(p *path) {
			if a == "10.9.0.3" {
				p.attrs.nextHop = addr("10.9.0.2") // a reflector's
			}
			p.attrs.only = hops{[]netip.Addr{p.attrs.nextHop}}
		}))
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for limit, want := range [][]netip.Addr{
		{addr("10.9.0.2"), addr("10.9.0.4"), addr("10.9.0.5")}, {addr("10.9.0.2")}, {addr("10.9.0.2"), addr("10.9.0.4")},
		{addr("10.9.0.2"), addr("10.9.0.4"), addr("10.9.0.5")},
	} {
		for range 10 {
			rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
			if got := nextHops(most(slices.Clone(list), limit)).addrs(); !slices.Equal(got, want) {
				t.Errorf("of %d next hops: %v, want %v", limit, got, want)
			}
		}
	}
}
