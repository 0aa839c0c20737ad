package bgp

import (
	"cmp"
	"net/netip"
	"slices"
)

// path is a way to a prefix as one peer, or this node, announced it. A table has
// hundreds of thousands.
type path struct {
	next  *path // to the same prefix
	peer  *peer // nil: own
	attrs *attrs
	at    uint32 // place of the prefix in peer.in
	// stale: kept for a restart, not announced again yet.
	stale bool
	// due: the peer is about to repeat what it announced, and has not repeated it yet.
	due bool
	// refused: Import turned it down; peer.refused says why.
	refused bool
}

// id is the one that the peer gave the path, 0 if it has none (RFC 7911).
func (p *path) id() uint32 {
	if p.peer == nil || p.peer.ids == nil {
		return 0
	}
	return p.peer.ids[p]
}

// external reports whether the path came from another AS.
func (p *path) external() bool { return p.attrs.external }

// routerID is the BGP identifier that breaks ties: the originator's where
// a reflector stands between (RFC 4456, section 9).
func (p *path) routerID() netip.Addr {
	if p.attrs.originator.IsValid() {
		return p.attrs.originator
	}
	return p.peer.routerID
}

// copies reports whether p is, by way of a reflector, what o is from its originator.
// While that restarts nobody has anything newer than o: to take p instead would have
// reflectors that lose the same client take it from each other.
func (p *path) copies(o *path) bool {
	a, b := p.attrs, o.attrs
	return b.originator.IsValid() && b.originator == o.peer.routerID && a.originator == b.originator &&
		a.nextHop == b.nextHop && a.localPref == b.localPref && a.origin == b.origin && a.med == b.med && a.pathLen() == b.pathLen()
}

// decide is the decision process of RFC 4271, section 9.1, over paths that can be
// used: the best one, and all that are as good up to the tie-breaks (f) and (g).
// An own path beats every learnt one; what is stale loses to what is not.
func decide(paths []*path) (best *path, equal []*path) {
	for _, p := range paths {
		if p.peer == nil {
			return p, []*path{p}
		}
	}
	set := slices.Clone(paths)
	keep := func(better func(a, b *path) int) {
		if len(set) < 2 {
			return
		}
		first := slices.MinFunc(set, better)
		set = slices.DeleteFunc(set, func(p *path) bool { return better(first, p) < 0 })
	}
	// "the least preferred": what somebody keeps for long (RFC 9494, section 4.3).
	keep(func(a, b *path) int { return order(!a.attrs.longStale, !b.attrs.longStale) })
	left := slices.Clone(set)
	set = slices.DeleteFunc(set, func(p *path) bool {
		return p.stale && slices.ContainsFunc(left, func(q *path) bool { return !q.stale }) &&
			!slices.ContainsFunc(left, func(q *path) bool { return !q.stale && q.copies(p) })
	})
	// 9.1.1: "the degree of preference" is LOCAL_PREF.
	keep(func(a, b *path) int { return int(min(max(int64(b.attrs.localPref)-int64(a.attrs.localPref), -1), 1)) })
	// 9.1.2.2 a: "the smallest number of AS numbers present in their AS_PATH".
	keep(func(a, b *path) int { return a.attrs.pathLen() - b.attrs.pathLen() })
	// b: "the lowest Origin number".
	keep(func(a, b *path) int { return int(a.attrs.origin) - int(b.attrs.origin) })
	// c: "less-preferred MULTI_EXIT_DISC", comparable within one neighbouring
	// AS only; a missing one is 0.
	rivals := slices.Clone(set)
	set = slices.DeleteFunc(set, func(p *path) bool {
		return slices.ContainsFunc(rivals, func(q *path) bool {
			return q.attrs.neighbour() == p.attrs.neighbour() && q.attrs.med < p.attrs.med
		})
	})
	// d: "If at least one of the candidate routes was received via EBGP,
	// remove from consideration all routes that were received via IBGP."
	keep(func(a, b *path) int { return order(a.external(), b.external()) })
	// e: interior cost is the same for all, the next hops being connected.
	if len(set) == 0 {
		return nil, nil
	}
	return slices.MinFunc(set, prefer), set
}

// prefer orders equal paths by the tie-breaks.
func prefer(a, b *path) int {
	// f: "the lowest BGP Identifier value", then the shorter
	// CLUSTER_LIST (RFC 4456, section 9), g: "the lowest peer address".
	if c := a.routerID().Compare(b.routerID()); c != 0 {
		return c
	}
	if c := len(a.attrs.clusters) - len(b.attrs.clusters); c != 0 {
		return c
	}
	if c := a.peer.config.Address.Compare(b.peer.config.Address); c != 0 {
		return c
	}
	return cmp.Compare(a.id(), b.id()) // of one peer
}

// most are those of equal paths that lead to no more next hops than limit, by the
// tie-breaks; a limit of 0 is none.
func most(equal []*path, limit int) []*path {
	if limit == 0 || len(equal) <= limit {
		return equal
	}
	slices.SortFunc(equal, prefer)
	seen := map[netip.Addr]bool{}
	return slices.DeleteFunc(equal, func(p *path) bool {
		hop := p.attrs.nextHop
		if !seen[hop] && len(seen) == limit {
			return true
		}
		seen[hop] = true
		return false
	})
}

// order puts true before false.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// nextHops lists the next hops of paths, sorted, each once. The list of a single
// path is shared.
func nextHops(paths []*path) *hops {
	if len(paths) == 1 {
		return paths[0].attrs.hops()
	}
	var list []netip.Addr
	for _, p := range paths {
		list = append(list, p.attrs.only.list...)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return &hops{slices.Compact(list)}
}

// hops are the next hops of a best path, sorted; nil: there is none. Routes share
// them.
type hops struct{ list []netip.Addr }

func (h *hops) addrs() []netip.Addr {
	if h == nil {
		return nil
	}
	return h.list
}
