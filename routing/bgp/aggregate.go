package bgp

import (
	"fmt"
	"net/netip"
	"slices"

	"netctl/routing"
)

// aggregate is a prefix that peers may be told in place of what lies in it. As long as
// anything does that could be announced it is a path of this node's, to be discarded: what
// is nobody's must not circle between a peer and this node.
type aggregate struct {
	prefix netip.Prefix
	// own and all count what lies in it: what this node originates, and that with what it
	// learnt.
	own, all int
}

// What of an aggregate there is.
const (
	aggregateLearnt uint8 = iota + 1 // only what was learnt lies in it
	aggregateOwn                     // own prefixes lie in it
)

// Aggregate names all prefixes that peers are told in place of what lies in them, where
// PeerConfig.Aggregate asks for it. None may be announced by anybody as it is.
func (s *Speaker) Aggregate(list []netip.Prefix) {
	list = masked(list)
	s.order(func() { s.rib.aggregate(list) })
}

func (r *rib) aggregate(list []netip.Prefix) {
	if slices.EqualFunc(r.aggregates, list, func(g *aggregate, p netip.Prefix) bool { return g.prefix == p }) {
		return
	}
	for _, g := range r.aggregates {
		r.originate(nil, []netip.Prefix{g.prefix})
	}
	r.aggregates, r.parts = nil, map[*dest]part{}
	for _, p := range list {
		r.aggregates = append(r.aggregates, &aggregate{prefix: p})
	}
	// Everything is counted again, and told in the one way or the other.
	for _, d := range r.dests {
		r.mark(d)
	}
}

// part is what a destination counts for.
type part struct {
	of  *aggregate
	own bool
}

// aggregateOf is the aggregate that a prefix is a part of; nil: none.
func (r *rib) aggregateOf(p netip.Prefix) *aggregate {
	for _, g := range r.aggregates {
		if g.prefix.Bits() < p.Bits() && g.prefix.Contains(p.Addr()) {
			return g
		}
	}
	return nil
}

// gather counts d, about which was decided, and returns the aggregate that this changed.
func (r *rib) gather(d *dest) *aggregate {
	if len(r.aggregates) == 0 {
		return nil
	}
	was := r.parts[d]
	var now part
	if b := d.best; b != nil && !b.attrs.adopted && !b.attrs.noAdvertise && !(b.peer != nil && b.external() && b.peer.config.Outside) {
		now = part{r.aggregateOf(d.key.Prefix()), b.peer == nil}
	}
	if now.of == nil {
		now = part{}
	}
	if was == now {
		return nil
	}
	delete(r.parts, d)
	was.count(-1)
	now.count(+1)
	if now.of == nil {
		return was.of
	}
	r.parts[d] = now
	return now.of
}

func (p part) count(n int) {
	if p.of == nil {
		return
	}
	if p.of.all += n; p.own {
		p.of.own += n
	}
}

// state is what of the aggregate there is; 0: nothing.
func (g *aggregate) state() uint8 {
	switch {
	case g.own > 0:
		return aggregateOwn
	case g.all > 0:
		return aggregateLearnt
	}
	return 0
}

// assemble makes the own path of an aggregate what its parts say, and returns its
// destination if that changed.
func (r *rib) assemble(g *aggregate) *dest {
	d := r.dest(g.prefix)
	var have *path
	if d != nil {
		have = d.from(nil, 0)
	}
	state := g.state()
	switch {
	case have == nil && state == 0:
		return nil
	case state == 0:
		d.take(have)
		r.mark(d)
		return d
	}
	a := r.ownAttrs(ownKind{aggregate: state, family: FamilyOf(g.prefix.Addr())}, r.tags(g.prefix))
	if have != nil && have.attrs == a {
		return nil
	}
	if have == nil {
		d = r.touch(g.prefix)
		d.paths = &path{next: d.paths, attrs: a}
		return d
	}
	have.attrs = a
	r.mark(d)
	return d
}

// ownKind is what sets own attributes apart beside communities.
type ownKind struct {
	aggregate uint8 // 0: it is none
	family    Family
}

// shape makes attributes those of an aggregate. What lies in it may have come over other
// AS numbers, which its path does not name (RFC 4271, section 5.1.6).
func (k ownKind) shape(a *attrs) {
	if a.aggregate = k.aggregate; k.aggregate == 0 {
		return
	}
	a.id = fmt.Sprintf("aggregate %v", a.rest) // of either state: peers need not be told them apart
	a.carry(carried{flagTransitive, attrAtomic, nil})
	a.only.list = []netip.Addr{netip.IPv4Unspecified()}
	if k.family == IPv6 {
		a.only.list = []netip.Addr{netip.IPv6Unspecified()}
	}
}

// hides says whether the group is told an aggregate in place of d.
func (g *group) hides(d *dest) bool {
	return g.look.aggregate && g.rib.aggregateOf(d.key.Prefix()) != nil
}

// Burden counts the routes that a peer is told by this node and by others that have it,
// too: those over the next hops in others are told by them. 0 if there is no session.
func (s *Speaker) Burden(peer netip.Addr, others map[netip.Addr]bool) (n int) {
	s.ask(func() { n = s.rib.burden(peer, others) })
	return n
}

func (r *rib) burden(peer netip.Addr, others map[netip.Addr]bool) int {
	p := r.peers[peer]
	if p == nil || p.session == nil {
		return 0
	}
	g := p.session.group
	n := len(g.sent) - g.sources[p]
	if !g.look.ownOnly {
		return n // all that there is
	}
	told := map[netip.Prefix]bool{}
	for _, d := range r.dests {
		b := d.best
		if b == nil || b.peer == nil || !others[b.attrs.nextHop] || b.attrs.noAdvertise || b.attrs.noExport && g.look.external || b.attrs.blackhole || !g.look.families[d.family()] {
			continue
		}
		prefix := d.key.Prefix()
		if a := r.aggregateOf(prefix); g.look.aggregate && a != nil {
			prefix = a.prefix
		}
		if told[prefix] || len(g.told(routing.Pack(prefix))) > 0 {
			continue
		}
		// To them it is their own.
		if g.look.export == nil || g.look.export.Decide(announcement(prefix, nil, &attrs{rest: b.attrs.rest})).Accept {
			told[prefix] = true
		}
	}
	return n + len(told)
}
