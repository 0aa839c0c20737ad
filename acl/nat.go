package acl

import (
	"cmp"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// ChainNAT gives what endpoints of a pool with natOutgoing send out of the pools the
// host's address. It is there while a pool asks for it: a base chain of its kind costs
// each new flow.
const ChainNAT = "nat_out"

// bgpPort is that of BGP (RFC 4271, section 8).
const bgpPort = 179

// nat is what the chain depends on. The addresses of nodes count as outside, inside a
// pool too: a node answers to another's address by a way of its own.
type nat struct {
	pools   map[string]*datastore.Pool
	nodes   map[string][]netip.Addr // by name
	held    map[netip.Addr]int      // by how many nodes
	all     []netip.Prefix          // of the pools; none lies in another
	sources []netip.Prefix          // of those with natOutgoing
}

func newNAT() nat {
	return nat{pools: map[string]*datastore.Pool{}, nodes: map[string][]netip.Addr{}, held: map[netip.Addr]int{}}
}

func (x *Index) setPool(name string, p *datastore.Pool) {
	if p != nil {
		x.nat.pools[name] = p
	} else {
		delete(x.nat.pools, name)
	}
	var all, sources []netip.Prefix
	for _, p := range x.nat.pools {
		all = append(all, p.Spec.CIDR)
		if p.Spec.NATOutgoing {
			sources = append(sources, p.Spec.CIDR)
		}
	}
	x.nat.all = x.recount(fromPools, x.nat.all, outermost(all))
	x.nat.sources = x.recount(fromNAT, x.nat.sources, outermost(sources))
	var f families
	for _, s := range x.nat.sources {
		f[index4or6(Element{Prefix: s})] = true
	}
	c := x.chains[ChainNAT]
	switch {
	case f == families{} && (c == nil || c.refs == 0):
	case f == families{}:
		x.release(ChainNAT)
	default:
		if c == nil {
			c = x.newChain(ChainNAT)
			c.hook = &Hook{"postrouting", 100}
		}
		c.refs = 1
		x.recompile(c, compileNAT(f, x.options.BGPPort))
	}
}

// recount replaces the prefixes that are counted under a source.
func (x *Index) recount(s source, was, now []netip.Prefix) []netip.Prefix {
	count := func(list, other []netip.Prefix, n int) {
		for _, p := range list {
			if !slices.Contains(other, p) {
				x.countElement(populationKey{source: s}, Element{Prefix: p}, n)
			}
		}
	}
	count(was, now, -1)
	count(now, was, +1)
	if s == fromPools {
		x.kinChange(elementsOf(was), elementsOf(now), poolSet)
	}
	return now
}

// setNode takes a node's addresses; none: it is gone.
func (x *Index) setNode(name string, n *datastore.Node) {
	var now []netip.Addr
	if n != nil {
		for _, p := range n.Spec.Addresses {
			now = append(now, p.Addr().Unmap())
		}
	}
	was := x.nat.nodes[name]
	if slices.Equal(was, now) {
		return
	}
	x.countAddrs(populationKey{source: fromNodes}, was, -1)
	x.countAddrs(populationKey{source: fromNodes}, now, +1)
	x.countNodes(was, -1)
	x.countNodes(now, +1)
	if x.nat.nodes[name] = now; len(now) == 0 {
		delete(x.nat.nodes, name)
	}
}

// outermost are the prefixes that lie in no other of the list, each once.
func outermost(list []netip.Prefix) (out []netip.Prefix) {
	for _, p := range list {
		p = p.Masked()
		inside := func(o netip.Prefix) bool { return o.Bits() < p.Bits() && o.Overlaps(p) }
		if !slices.ContainsFunc(list, inside) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// compileNAT leaves BGP to nodes as it is: with the node's address a workload would be a peer
// of theirs, whom they believe.
func compileNAT(f families, bgp uint16) program {
	p := program{families: f, used: map[string]bool{}}
	for _, nf := range []uint32{nfIPv4, nfIPv6} {
		if !f.has(nf) {
			continue
		}
		digit, src, dst, net, addr := "4", SrcIP4, DstIP4, Net4, Addr4
		if nf == nfIPv6 {
			digit, src, dst, net, addr = "6", SrcIP6, DstIP6, Net6, Addr6
		}
		from := inSet(src, p.use(setRef{name: "nat" + digit, typ: net, source: fromNAT}))
		pools := p.use(setRef{name: "pools" + digit, typ: net, source: fromPools})
		nodes := p.use(setRef{name: "nodes" + digit, typ: addr, source: fromNodes})
		masquerade := func(comment string, to Term) Rule {
			return Rule{Match: []Term{num(NFProto, nf), from, to}, Counter: true, Verdict: Verdict{Kind: Masquerade}, Comment: comment}
		}
		p.rules = append(p.rules,
			Rule{Match: []Term{num(NFProto, nf), from, inSet(dst, nodes), num(L4Proto, protoTCP), num(DstPort, uint32(cmp.Or(bgp, bgpPort)))}, Verdict: accept(), Comment: "natOutgoing: BGP to a node is the workload's own"},
			masquerade("natOutgoing: to a node", inSet(dst, nodes)),
			masquerade("natOutgoing: out of the pools", Term{Field: dst, Set: pools, Not: true}))
	}
	return p
}
