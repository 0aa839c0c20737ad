package routing

import (
	"iter"
	"net/netip"
)

// Announced keeps what a node announces as the kernel's routes of the agent's
// protocol come and go. It is Exports, at the cost of what changes: an endpoint's
// route inside a block costs a look-up; a block costs the endpoints' routes, which
// it may cover. Not safe for concurrent use.
type Announced struct {
	ours  func(link string) bool // an endpoint's
	pools []netip.Prefix

	routes map[Key]Route
	byLink map[string]map[Key]bool
	blocks map[netip.Prefix]int // how many blackholes there are; metrics differ
	hosts  map[netip.Prefix]int // how many routes over endpoints' links
	widths [129]int             // how many blocks there are of each length, of both families
	out    map[netip.Prefix]bool
	added  map[netip.Prefix]bool // since Take; false: withdrawn
}

// NewAnnounced is without routes and pools; ours says which links are endpoints'.
func NewAnnounced(ours func(link string) bool) *Announced {
	return &Announced{
		ours: ours, routes: map[Key]Route{}, byLink: map[string]map[Key]bool{}, blocks: map[netip.Prefix]int{}, hosts: map[netip.Prefix]int{},
		out: map[netip.Prefix]bool{}, added: map[netip.Prefix]bool{},
	}
}

// Put takes a route that came or changed.
func (a *Announced) Put(r Route) {
	a.Remove(r.Key())
	a.routes[r.Key()] = r
	for _, h := range r.NextHops {
		if a.byLink[h.Link] == nil {
			a.byLink[h.Link] = map[Key]bool{}
		}
		a.byLink[h.Link][r.Key()] = true
	}
	a.count(r, +1)
}

// Remove takes a route that went.
func (a *Announced) Remove(k Key) {
	r, ok := a.routes[k]
	if !ok {
		return
	}
	delete(a.routes, k)
	for _, h := range r.NextHops {
		delete(a.byLink[h.Link], k)
		if len(a.byLink[h.Link]) == 0 {
			delete(a.byLink, h.Link)
		}
	}
	a.count(r, -1)
}

// Down takes a link that went down: the kernel drops its routes without a word.
func (a *Announced) Down(link string) {
	for k := range a.byLink[link] {
		a.Remove(k)
	}
}

// Replace takes all routes there are.
func (a *Announced) Replace(routes []Route) {
	there := make(map[Key]bool, len(routes))
	for _, r := range routes {
		there[r.Key()] = true
		if old, ok := a.routes[r.Key()]; !ok || !old.Equal(r) {
			a.Put(r)
		}
	}
	for k := range a.routes {
		if !there[k] {
			a.Remove(k)
		}
	}
}

// SetPools takes the pools; nothing outside of them is announced.
func (a *Announced) SetPools(pools []netip.Prefix) {
	a.pools = pools
	for k := range a.routes {
		a.judge(k.Prefix)
	}
}

// Prefixes yields those of all routes, announced or not.
func (a *Announced) Prefixes() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for k := range a.routes {
			if !yield(k.Prefix) {
				return
			}
		}
	}
}

// Take returns what changed since it was called last, sorted by nothing.
func (a *Announced) Take() (add, withdraw []netip.Prefix) {
	for p, now := range a.added {
		if now {
			add = append(add, p)
		} else {
			withdraw = append(withdraw, p)
		}
	}
	clear(a.added)
	return add, withdraw
}

// All is what is announced now, as Take would tell it to somebody who knows nothing.
func (a *Announced) All() (all []netip.Prefix) {
	for p := range a.out {
		all = append(all, p)
	}
	clear(a.added)
	return all
}

// count takes a route in or out, and judges what that concerns: the route's prefix,
// and with a block the endpoints' in it.
func (a *Announced) count(r Route, n int) {
	defer a.judge(r.Prefix)
	if r.Type != Blackhole {
		if onLinks(r.NextHops, a.ours) {
			add(a.hosts, r.Prefix, n)
		}
		return
	}
	was := a.blocks[r.Prefix] > 0
	add(a.blocks, r.Prefix, n)
	if was == (a.blocks[r.Prefix] > 0) {
		return
	}
	a.widths[r.Prefix.Bits()] += n
	for p := range a.hosts {
		if r.Prefix.Contains(p.Addr()) { // also where it is shorter, which it does not cover
			a.judge(p)
		}
	}
}

func add(m map[netip.Prefix]int, p netip.Prefix, n int) {
	if m[p] += n; m[p] == 0 {
		delete(m, p)
	}
}

// judge works out whether a prefix is announced.
func (a *Announced) judge(p netip.Prefix) {
	now := a.announces(p)
	if now == a.out[p] {
		return
	}
	if now {
		a.out[p] = true
	} else {
		delete(a.out, p)
	}
	if was, told := a.added[p]; told && was != now {
		delete(a.added, p) // back to what was taken
		return
	}
	a.added[p] = now
}

func (a *Announced) announces(p netip.Prefix) bool {
	return (a.blocks[p] > 0 || a.hosts[p] > 0 && !a.inBlock(p)) && inside(p, a.pools)
}

func (a *Announced) inBlock(of netip.Prefix) bool {
	for bits, n := range a.widths[:of.Bits()+1] {
		if n == 0 {
			continue
		}
		if p, err := of.Addr().Prefix(bits); err == nil && a.blocks[p] > 0 {
			return true
		}
	}
	return false
}
