package datastore

import (
	"fmt"
	"net/netip"
	"slices"
)

// Dead says in words what of the filter can never matter: rules that no route matches, or
// that come behind one that takes all they would. pools are those of the cluster.
func (f *BGPFilter) Dead(pools []netip.Prefix) (out []string) {
	s := f.Spec
	if len(s.Import)+len(s.Export) == 0 && s.ImportDefault == "" && s.ExportDefault == "" {
		return []string{"it has no rules and no default: it says nothing"}
	}
	for _, side := range []struct {
		name  string
		rules []FilterRule
	}{{"import", s.Import}, {"export", s.Export}} {
		var spaces [][]PrefixRange
		for i, r := range side.rules {
			space, why := r.space(side.name == "import", pools)
			for j := 0; why == "" && j < i; j++ {
				if side.rules[j].takes(r, space, spaces[j], pools) {
					why = fmt.Sprintf("rule %d takes all that it would", j+1)
				}
			}
			if why != "" {
				out = append(out, fmt.Sprintf("%s rule %d never matches: %s", side.name, i+1, why))
			}
			spaces = append(spaces, space)
		}
	}
	return out
}

// everything is every prefix.
func everything() []PrefixRange {
	return []PrefixRange{{netip.MustParsePrefix("0.0.0.0/0"), 0, 32}, {netip.MustParsePrefix("::/0"), 0, 128}}
}

// ranges are the prefixes that a term is about; false: it is about something else.
func (t FilterTerm) ranges(pools []netip.Prefix) (out []PrefixRange, is bool) {
	switch {
	case t.Kind == TermPrefix:
		return t.Prefixes, true
	case t.Kind != TermPool:
		return nil, false
	case len(t.Nets) > 0:
		pools = t.Nets
	}
	for _, n := range pools {
		out = append(out, PrefixRange{n, n.Bits(), n.Addr().BitLen()})
	}
	return out, true
}

// space is what prefixes the rule may match; why it matches nothing, if it does not.
func (r FilterRule) space(imports bool, pools []netip.Prefix) (space []PrefixRange, why string) {
	space = everything()
	for i, t := range r.Terms {
		for _, other := range r.Terms[:i] {
			if opposite := other; opposite.Not != t.Not {
				if opposite.Not = t.Not; opposite.String() == t.String() {
					return nil, fmt.Sprintf("%s and the opposite", other)
				}
			}
		}
		if t.Kind == TermPool {
			for _, n := range t.Nets {
				if !slices.ContainsFunc(pools, func(p netip.Prefix) bool { return p.Overlaps(n) }) {
					return nil, fmt.Sprintf("there is no pool %s", n)
				}
			}
		}
		ranges, is := t.ranges(pools)
		switch {
		case !is:
			continue
		case t.Not:
			space = slices.DeleteFunc(slices.Clone(space), func(p PrefixRange) bool { return p.within(ranges) })
		default:
			space = common(space, ranges)
		}
		if len(space) == 0 {
			return nil, fmt.Sprintf("no prefix is left by %s", t)
		}
	}
	if !r.hasSource(imports) {
		return nil, "no route is from there"
	}
	if !r.hasNextHop() {
		return nil, "no next hop lies in all of that"
	}
	return space, ""
}

// common is what two lists of ranges have in common.
func common(a, b []PrefixRange) (out []PrefixRange) {
	for _, x := range a {
		for _, y := range b {
			if !x.Prefix.Overlaps(y.Prefix) {
				continue
			}
			z := PrefixRange{x.Prefix, max(x.Min, y.Min), min(x.Max, y.Max)}
			if y.Prefix.Bits() > x.Prefix.Bits() {
				z.Prefix = y.Prefix
			}
			if z.Min = max(z.Min, z.Prefix.Bits()); z.Min <= z.Max {
				out = append(out, z)
			}
		}
	}
	return out
}

// within says whether one of the ranges holds all of p.
func (p PrefixRange) within(ranges []PrefixRange) bool {
	return slices.ContainsFunc(ranges, func(q PrefixRange) bool {
		return q.Prefix.Bits() <= p.Prefix.Bits() && q.Prefix.Contains(p.Prefix.Addr()) && q.Min <= max(p.Min, p.Prefix.Bits()) && p.Max <= q.Max
	})
}

// takes says whether all that a later rule matches is matched by r, whatever else a route
// has. Each may match prefixes of its space only.
func (r FilterRule) takes(later FilterRule, space, own []PrefixRange, pools []netip.Prefix) bool {
	if own == nil { // it matches nothing itself
		return false
	}
	for _, t := range r.Terms {
		if slices.ContainsFunc(later.Terms, func(o FilterTerm) bool { return o.String() == t.String() }) {
			continue
		}
		ranges, is := t.ranges(pools)
		if t.Not || !is || slices.ContainsFunc(space, func(p PrefixRange) bool { return !p.within(ranges) }) {
			return false
		}
	}
	return true
}

// hasSource says whether a route can be from where the terms want it.
func (r FilterRule) hasSource(imports bool) bool {
	var terms []FilterTerm
	peers := []netip.Addr{{}} // any other
	for _, t := range r.Terms {
		if t.Kind == TermSource {
			terms = append(terms, t)
			for _, s := range t.Sources {
				if s.Peer.IsValid() {
					peers = append(peers, s.Peer)
				}
			}
		}
	}
	holds := func(is func(FilterSource) bool) bool {
		return !slices.ContainsFunc(terms, func(t FilterTerm) bool { return slices.ContainsFunc(t.Sources, is) == t.Not })
	}
	if !imports && holds(func(s FilterSource) bool { return s.Word == SourceLocal }) {
		return true
	}
	for _, words := range [][]string{{SourceInternal}, {SourceInternal, SourceReflected}, {SourceExternal}} {
		for _, side := range []string{SourceNode, SourceOutside} {
			for _, a := range peers {
				if holds(func(s FilterSource) bool {
					return s.Peer.IsValid() && s.Peer == a || s.Word == side || slices.Contains(words, s.Word)
				}) {
					return true
				}
			}
		}
	}
	return false
}

// hasNextHop says whether the next hops that are wanted have one in common.
func (r FilterRule) hasNextHop() bool {
	var nets []netip.Prefix
	for _, t := range r.Terms {
		if t.Kind != TermNextHop || t.Not {
			continue
		}
		if nets == nil {
			nets = t.Nets
			continue
		}
		var both []netip.Prefix
		for _, a := range nets {
			for _, b := range t.Nets {
				if a.Overlaps(b) && a.Bits() >= b.Bits() {
					both = append(both, a)
				} else if a.Overlaps(b) {
					both = append(both, b)
				}
			}
		}
		if nets = both; len(nets) == 0 {
			return false
		}
	}
	return true
}
