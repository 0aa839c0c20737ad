package routing

import (
	"net/netip"
	"slices"
)

// Exports returns the prefixes a node announces, sorted, given the kernel's
// routes of the agent's protocol: the blackholes (its blocks), and the
// routes on interfaces that are endpoints', as ours says, that lie outside every
// block (borrowed addresses, and prefixes behind endpoints). Nothing outside every pool is announced, and
// nothing else: no gateway route, no connected subnet.
func Exports(kernel []Route, pools []netip.Prefix, ours func(link string) bool) []netip.Prefix {
	var out []netip.Prefix
	blocks := map[netip.Prefix]bool{}
	var lengths []int // of blocks, to look addresses up by masking
	for _, r := range kernel {
		if r.Type != Blackhole || !inside(r.Prefix, pools) || blocks[r.Prefix] {
			continue
		}
		blocks[r.Prefix] = true
		out = append(out, r.Prefix)
		if !slices.Contains(lengths, r.Prefix.Bits()) {
			lengths = append(lengths, r.Prefix.Bits())
		}
	}
	inBlock := func(of netip.Prefix) bool {
		for _, n := range lengths {
			if p, err := of.Addr().Prefix(n); err == nil && n <= of.Bits() && blocks[p] {
				return true
			}
		}
		return false
	}
	for _, r := range kernel {
		if r.Type == Unicast && onLinks(r.NextHops, ours) && inside(r.Prefix, pools) && !inBlock(r.Prefix) {
			out = append(out, r.Prefix)
		}
	}
	slices.SortFunc(out, ComparePrefixes)
	return slices.Compact(out)
}

func onLinks(hops []NextHop, ours func(link string) bool) bool {
	for _, h := range hops {
		if !ours(h.Link) {
			return false
		}
	}
	return len(hops) > 0
}

// inside says whether one of the pools holds all of p.
func inside(p netip.Prefix, pools []netip.Prefix) bool {
	return slices.ContainsFunc(pools, func(pool netip.Prefix) bool {
		return pool.Bits() <= p.Bits() && pool.Contains(p.Addr())
	})
}
