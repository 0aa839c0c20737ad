package iptables

import (
	"slices"

	"netctl/acl"
)

// asksMAC says that a rule is for packets of links with another MAC than its set has of them.
func asksMAC(r *acl.Rule) bool {
	return slices.ContainsFunc(r.Match, func(t acl.Term) bool { return t.Field == acl.LinkSrcMAC && t.Not })
}

// macs writes such a rule: one for each link of the set, since no set has interfaces and MACs.
// What has no MAC (another kind of interface) does not match, as in nftables.
func (e *emitter) macs(chain string, r *acl.Rule, after func() *frame) (ended bool) {
	i := slices.IndexFunc(r.Match, func(t acl.Term) bool { return t.Field == acl.LinkSrcMAC })
	name := r.Match[i].Set
	set := e.writer.rules.Sets[name]
	if set == nil {
		return false
	}
	return e.links(name, "-i ", set.Sorted(), func(e *emitter, x acl.Element) {
		e.add("-i "+x.Link+" -m mac ! --mac-source "+x.MAC().String()+commentOf(r), r.String(), chain, "-j DROP")
	}, after)
}
