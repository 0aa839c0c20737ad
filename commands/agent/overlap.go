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
	for _, b := range l.view.BlocksOf(l.cfg.Node) {
		l.blocks.route(b.Metadata.Name, b)
	}
	l.noteGateway()
	l.mixed.changed = true
}

// mixed is which pools lie over subnets of this host. Its owner is the loop.
type mixed struct {
	changed bool            // pools, subnets, or what keeps them apart
	noted   map[string]bool // the problems
}

// notePools notes which pools with natOutgoing lie over such a subnet, whose machines are
// taken for endpoints. Else it does no harm, as no block is taken from there; nor does the
// nodes' own network, or what a Reservation keeps.
func (l *loop) notePools() {
	if !l.mixed.changed {
		return
	}
	l.mixed.changed = false
	was := l.mixed.noted
	l.mixed.noted = map[string]bool{}
	for _, p := range l.view.Pools() {
		for _, a := range l.links.addrs {
			if p.Spec.NATOutgoing && a.Subnet.Overlaps(p.Spec.CIDR) && !l.apart(a.Subnet, p.Spec.CIDR) {
				what := "pool " + p.Spec.CIDR.String()
				delete(was, what)
				l.mixed.noted[what] = true
				l.problems.note(what, fmt.Sprintf("overlaps %s, which this host is connected to by %s: natOutgoing takes what is there for endpoints, which get no address of it: renumber the subnet, or if it is meant so, keep it with a Reservation of %[1]s",
					a.Subnet, a.Link))
				break
			}
		}
	}
	for what := range was {
		l.problems.drop(what)
	}
}

// apart says whether what a subnet has of a pool is kept from endpoints on purpose, or is
// said of a block.
func (l *loop) apart(subnet, pool netip.Prefix) bool {
	for _, own := range l.registered() {
		if own.Masked() == subnet {
			return true
		}
	}
	both := subnet
	if pool.Bits() > subnet.Bits() {
		both = pool
	}
	for _, r := range l.view.Reservations() {
		if slices.ContainsFunc(r.Spec.CIDRs, func(c netip.Prefix) bool { return c.Bits() <= both.Bits() && c.Overlaps(both) }) {
			return true
		}
	}
	return slices.ContainsFunc(l.view.Blocks(), func(b *datastore.Block) bool { return b.Spec.CIDR.Overlaps(subnet) })
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
		if is.Spec.Affinity == l.cfg.Node && l.links.surrounds(is.Spec.CIDR) {
			text += "; until then the subnet goes on and the block has no route"
		}
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
