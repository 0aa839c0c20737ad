package routing

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// TestAnnouncedIsExports: after any history what was taken adds up to what a look
// at all routes says.
func TestAnnouncedIsExports(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	allPools := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("fd00::/64")}
	a := NewAnnounced(ours)
	routes, told := map[Key]Route{}, map[netip.Prefix]bool{}
	var pools []netip.Prefix
	for step := range 5000 {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(rng.IntN(3)), byte(rng.IntN(64))})
		if rng.IntN(4) == 0 {
			addr = netip.MustParseAddr(fmt.Sprintf("fd00::%x", rng.IntN(64)))
		}
		link := []string{"nc1", "nc2", "eth0"}[rng.IntN(3)]
		switch rng.IntN(12) {
		case 0:
			pools = allPools[:rng.IntN(4)]
			a.SetPools(pools)
		case 1:
			a.Down(link)
			maps.DeleteFunc(routes, func(_ Key, r Route) bool {
				return slices.ContainsFunc(r.NextHops, func(h NextHop) bool { return h.Link == link })
			})
		case 2, 3, 4:
			p, _ := addr.Prefix(addr.BitLen() - rng.IntN(7))
			r := Route{Prefix: p, Type: Blackhole, Metric: rng.IntN(2)}
			routes[r.Key()] = r
			a.Put(r)
		case 5, 6, 7, 8:
			r := Route{Prefix: netip.PrefixFrom(addr, addr.BitLen()-rng.IntN(2)*rng.IntN(7)).Masked(), NextHops: []NextHop{{Link: link}}, Metric: rng.IntN(2)}
			routes[r.Key()] = r
			a.Put(r)
		case 9:
			kept := slices.Collect(maps.Values(routes))
			kept = kept[:rng.IntN(len(kept)+1)]
			clear(routes)
			for _, r := range kept {
				routes[r.Key()] = r
			}
			a.Replace(kept)
		default:
			for k := range routes {
				delete(routes, k)
				a.Remove(k)
				break
			}
		}
		if rng.IntN(2) == 0 {
			continue
		}
		add, withdraw := a.Take()
		for _, p := range add {
			if told[p] {
				t.Fatalf("step %d: %s is added twice", step, p)
			}
			told[p] = true
		}
		for _, p := range withdraw {
			if !told[p] {
				t.Fatalf("step %d: %s is withdrawn and was not announced", step, p)
			}
			delete(told, p)
		}
		want := Exports(slices.Collect(maps.Values(routes)), pools, ours)
		got := slices.SortedFunc(maps.Keys(told), ComparePrefixes)
		if !slices.Equal(got, want) {
			t.Fatalf("step %d: announced %v, want %v", step, got, want)
		}
	}
}

// TestAnAttachIsALookUp: an endpoint's route inside a block touches nothing but
// itself, however many there are.
func TestAnAttachIsALookUp(t *testing.T) {
	for _, n := range []int{10, 10_000} {
		a := NewAnnounced(ours)
		a.SetPools([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
		a.Put(Route{Prefix: netip.MustParsePrefix("10.0.0.0/16"), Type: Blackhole})
		for i := range n {
			a.Put(Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32), NextHops: []NextHop{{Link: fmt.Sprint("nc", i)}}})
		}
		a.Take()
		one := Route{Prefix: netip.MustParsePrefix("10.0.255.255/32"), NextHops: []NextHop{{Link: "ncx"}}}
		if allocs := testing.AllocsPerRun(100, func() { a.Put(one); a.Down("ncx") }); allocs > 8 {
			t.Errorf("with %d endpoints %v allocations", n, allocs)
		}
		if add, withdraw := a.Take(); len(add)+len(withdraw) > 0 {
			t.Errorf("announced %v, withdrawn %v", add, withdraw)
		}
	}
}

func ours(link string) bool { return strings.HasPrefix(link, "nc") }
