package acl

import (
	"fmt"
	"net/netip"
	"slices"
)

// ReversePath is how the sources of pools are judged that come from other machines: rules
// that go by tag or selector believe them, and whoever is on the wire can write them. It is
// asked as a flow begins, or of each of its packets while nobody has answered, so that no
// change of a route ends what is established. Addresses of nodes are not asked about.
type ReversePath uint8

// The ways to judge.
const (
	// ReversePathOff believes all.
	ReversePathOff ReversePath = iota
	// ReversePathLoose wants a route to the source, and one that leads to no workload of
	// this host.
	ReversePathLoose
	// ReversePathStrict wants of what is sent to endpoints a route to the source, one path of
	// which leads out by the link that the packet came in by (RFC 3704, section 2.3). Of the
	// paths of an IPv6 route the kernel looks at one, which the flow's hash chose: the host's
	// uplinks count as one way there, and each tunnel as another. What is sent to an address
	// of the host itself, and led on to an endpoint too, is judged as ReversePathLoose: the
	// way to a node is another one than that to its endpoints, where these are tunnelled.
	ReversePathStrict
)

// ReversePathDrops is what the drops of ChainReverse are counted as (DenyingChains).
const ReversePathDrops = "reverse path"

const (
	reverseLog    = "DPR|reverse"
	reverseReason = "it came by another way than its source is reached by (agent.reversePath)"
)

// reversePath are the rules that judge what comes from other machines, to the host itself or
// to endpoints.
func reversePath(o Options, toHost bool) (list []Rule) {
	for _, f := range []struct {
		proto      uint32
		src        Field
		pool, node string
	}{{nfIPv4, SrcIP4, setPool4, setNode4}, {nfIPv6, SrcIP6, setPool6, setNode6}} {
		for _, j := range o.elsewhere(f.proto, toHost) {
			list = append(list, match(goTo(ChainReverse), slices.Concat([]Term{{Field: InGroup, Number: o.Group, Not: true}, num(NFProto, f.proto),
				inSet(f.src, f.pool), {Field: f.src, Set: f.node, Not: true}}, j)...))
		}
	}
	return list
}

// elsewhere are the alternatives of a source of the family that is reached by another way.
func (o Options) elsewhere(family uint32, toHost bool) [][]Term {
	if o.ReversePath == ReversePathOff {
		return nil
	}
	list := [][]Term{{num(SrcRoute, 0)}, {{Field: SrcLink, Text: o.LinkPrefix + "*"}}}
	if o.ReversePath == ReversePathLoose || toHost {
		return list
	}
	led := Term{Field: CTStatus, Number: statusDNAT, Not: true}
	if family == nfIPv4 {
		return append(list, []Term{num(SrcReturn, 0), led})
	}
	for _, name := range o.Tunnels {
		list = append(list, []Term{{Field: InLink, Text: name, Not: true}, {Field: SrcLink, Text: name}, led},
			[]Term{{Field: InLink, Text: name}, {Field: SrcLink, Text: name, Not: true}, led})
	}
	return list
}

// SetReversePath sets Options.ReversePath. It is in what Ruleset returns from now on; of the
// chains of host endpoints Flush tells.
func (x *Index) SetReversePath(r ReversePath) {
	if x.options.ReversePath != r {
		x.options.ReversePath = r
		x.hosts.doubt()
	}
}

// kin calls fn for each element of the static sets of pools and nodes.
func (x *Index) kin(fn func(set string, e Element)) {
	for _, e := range elementsOf(x.nat.all) {
		fn(poolSet(e), e)
	}
	for a := range x.nat.held {
		fn(nodeSet(addrElement(a)), addrElement(a))
	}
}

// kinChange notes which elements a static set lost and got.
func (x *Index) kinChange(was, now []Element, set func(Element) string) {
	for _, e := range was {
		if !slices.Contains(now, e) {
			x.pending.element(set(e), e, false)
		}
	}
	for _, e := range now {
		if !slices.Contains(was, e) {
			x.pending.element(set(e), e, true)
		}
	}
}

// countNodes notes that n more nodes have the addresses.
func (x *Index) countNodes(list []netip.Addr, n int) {
	for _, a := range list {
		before := x.nat.held[a]
		if x.nat.held[a] = before + n; before+n == 0 {
			delete(x.nat.held, a)
		}
		if e := addrElement(a); (before == 0) != (before+n == 0) {
			x.pending.element(nodeSet(e), e, n > 0)
		}
	}
}

func elementsOf(list []netip.Prefix) (out []Element) {
	for _, p := range list {
		out = append(out, Element{Prefix: p})
	}
	return out
}

func poolSet(e Element) string { return [...]string{setPool4, setPool6}[index4or6(e)] }
func nodeSet(e Element) string { return [...]string{setNode4, setNode6}[index4or6(e)] }

// ParseReversePath reads strict, loose or off; any other text is an error.
func ParseReversePath(s string) (ReversePath, error) {
	i := slices.Index([]string{ReversePathOff: "off", ReversePathLoose: "loose", ReversePathStrict: "strict"}, s)
	if i < 0 {
		return 0, fmt.Errorf("%q: must be auto, strict, loose or off", s)
	}
	return ReversePath(i), nil
}
