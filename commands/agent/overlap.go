package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

// Addresses that netctl hands out or answers for, against the subnets that this host is
// connected to: what is in both is unreachable from here or from there.

// noteOverlaps looks at all of them, after the host's addresses changed.
func (l *loop) noteOverlaps() {
	for _, b := range l.view.Blocks() {
		l.overlap(nil, b)
	}
	l.noteGateway()
}

// overlap notes whether a block (nil: it is gone) lies over such a subnet. was is what
// it was before.
func (l *loop) overlap(was, is *datastore.Block) {
	what := func(b *datastore.Block) string {
		return fmt.Sprintf("block %s of node %s", b.Spec.CIDR, b.Spec.Affinity)
	}
	if was != nil && (is == nil || what(was) != what(is)) {
		l.problems.drop(what(was))
	}
	if is == nil {
		return
	}
	text := ""
	if a := l.links.overlapping(is.Spec.CIDR); a != nil {
		text = fmt.Sprintf("overlaps %s, which this host is connected to by %s: detach the block's endpoints, and it goes by itself, or renumber the subnet", a.Subnet, a.Link)
	}
	l.problems.note(what(is), text)
}

// noteGateway notes whether the workloads' gateway is an address that somebody else may
// have: a machine of such a subnet, or an endpoint.
func (l *loop) noteGateway() {
	gateway, text := l.cfg.Gateway, ""
	if a := l.links.overlapping(netip.PrefixFrom(gateway, gateway.BitLen())); a != nil {
		text = fmt.Sprintf("%s, the workloads' gateway, lies in %s, which this host is connected to by %s: what has that address there cannot be reached; set agent.gateway to one that nothing has",
			gateway, a.Subnet, a.Link)
	}
	for _, p := range l.view.Pools() {
		if p.Spec.CIDR.Contains(gateway) {
			text = fmt.Sprintf("%s, the workloads' gateway, lies in pool %s: set agent.gateway to an address that nothing has", gateway, p.Spec.CIDR)
		}
	}
	l.problems.note("gateway", text)
}

// poolless notes whether a block of this node (nil: it is gone) with addresses in use is
// in no pool: nobody announces or believes it. was is what it was before.
func (l *loop) poolless(was, is *datastore.Block) {
	what := func(b *datastore.Block) string { return "block " + b.Spec.CIDR.String() }
	if is == nil || is.Spec.Affinity != l.cfg.Node {
		if was != nil {
			l.problems.drop(what(was))
		}
		return
	}
	text := ""
	if len(is.Spec.Allocations) > 0 && !slices.ContainsFunc(l.view.Pools(), func(p *datastore.Pool) bool { return p.Spec.CIDR.Overlaps(is.Spec.CIDR) }) {
		text = ipam.NoPool(is.Spec.CIDR)
	}
	l.problems.note(what(is), text)
}
