package acl

import (
	"net/netip"
	"slices"
)

// SetSubnets tells which subnets the host is connected to.
func (x *Index) SetSubnets(list []netip.Prefix) {
	now := map[Element]struct{}{}
	for _, p := range list {
		inside := func(o netip.Prefix) bool { return o.Bits() > 0 && o.Bits() < p.Bits() && o.Overlaps(p) }
		if p = p.Masked(); p.Bits() > 0 && !slices.ContainsFunc(list, inside) {
			now[Element{Prefix: p}] = struct{}{}
		}
	}
	was := x.onLink
	x.onLink = sortedElements(now)
	for _, e := range was {
		if _, ok := now[e]; !ok {
			x.pending.element(onLinkSet(e), e, false)
		}
	}
	for _, e := range x.onLink {
		if !slices.Contains(was, e) {
			x.pending.element(onLinkSet(e), e, true)
		}
	}
}

func onLinkSet(e Element) string {
	if e.Prefix.Addr().Is4() {
		return setOnLink4
	}
	return setOnLink6
}
