package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// A host endpoint is an interface of the node itself. What the node sends and gets there is
// judged by base chains of its own, which are there only while the node has a host endpoint:
// a class of policies and profiles for its own connections, as of any endpoint, one for those
// that it forwards, and before them, where policies ask for it, one for each packet before it
// is tracked and one before its destination is translated.
//
// What comes from or goes to a workload of the node is judged as before, not by these chains;
// nor is what goes over lo. Failsafe ports, tunnels between nodes and neighbour discovery come
// before every policy.

// The base chains of host endpoints; all their names begin with hostPrefix.
const (
	hostPrefix      = "hostep_"
	ChainHostRawIn  = hostPrefix + "raw_in"  // prerouting, before tracking
	ChainHostRawOut = hostPrefix + "raw_out" // output, before tracking
	ChainHostPreNAT = hostPrefix + "prednat" // prerouting, before DNAT
	ChainHostIn     = hostPrefix + "in"      // input
	ChainHostOut    = hostPrefix + "out"     // output
	ChainHostFwdIn  = hostPrefix + "fwd_in"  // forward: what comes from host endpoints
	ChainHostFwdOut = hostPrefix + "fwd_out" // forward: what goes to them
)

// Uplink stands for an interface that is no endpoint's and that nobody names: no host
// endpoint is asked about it.
const Uplink = "-"

// use is what a policy is asked about.
type use uint8

const (
	tracked   use = iota // connections of endpoints, and of the host itself
	forwarded            // connections that the host forwards
	preDNAT              // what a host endpoint gets, before its destination is translated
	untracked            // single packets
)

// word begins the name of the classes.
func (u use) word() string {
	return [...]string{tracked: "class_", forwarded: "class_fwd_", preDNAT: "class_prednat_", untracked: "class_raw_"}[u]
}

// decidesAll says that what no policy of a tier decides is the tier's to decide.
func (u use) decidesAll() bool { return u == tracked || u == forwarded }

func (p *policy) serves(u use) bool {
	switch s := p.Spec; u {
	case untracked:
		return s.DoNotTrack
	case preDNAT:
		return s.PreDNAT
	case forwarded:
		return s.ApplyOnForward && !s.PreDNAT && !s.DoNotTrack
	default:
		return !s.PreDNAT && !s.DoNotTrack
	}
}

// hosts are the host endpoints of the node.
type hosts struct {
	own     map[string]*datastore.HostEndpoint // by name
	links   map[string][]netip.Addr            // the host's interfaces with their addresses
	doubted bool                               // the chains may be others now
	classes []string                           // those whose families are counted
}

func newHosts() hosts { return hosts{own: map[string]*datastore.HostEndpoint{}} }

func (h *hosts) doubt() { h.doubted = h.doubted || len(h.own) > 0 }

// hostMember is the name of a host endpoint among the members; no endpoint's has a blank.
func hostMember(name string) string { return "host " + name }

// setHostEndpoint takes a host endpoint: as a member of what rules name, and if it is of this
// node as what its chains are made of.
func (x *Index) setHostEndpoint(name string, h *datastore.HostEndpoint) {
	var member *datastore.Endpoint
	if h != nil {
		member = &datastore.Endpoint{Metadata: datastore.Metadata{Name: hostMember(name), Labels: h.Metadata.Labels}}
		member.Spec = datastore.EndpointSpec{Node: h.Spec.Node, Addresses: h.Spec.ExpectedIPs, Profiles: h.Spec.Profiles, Ports: h.Spec.Ports}
	}
	x.setEndpoint(hostMember(name), member)
	_, had := x.hosts.own[name]
	switch {
	case h != nil && h.Spec.Node == x.node:
		x.hosts.own[name] = h
	case had:
		delete(x.hosts.own, name)
	default:
		return
	}
	x.hosts.doubted = true
}

// SetHostLinks tells which interfaces the host has itself, and their addresses.
func (x *Index) SetHostLinks(links map[string][]netip.Addr) {
	x.hosts.links = links
	x.hosts.doubt()
}

// SetFailsafes sets the ports that no policy closes to host endpoints (Options).
func (x *Index) SetFailsafes(in, out []HostPort) {
	if !slices.Equal(in, x.options.FailsafeInbound) || !slices.Equal(out, x.options.FailsafeOutbound) {
		x.options.FailsafeInbound, x.options.FailsafeOutbound = in, out
		x.hosts.doubt()
	}
}

// hostLink is an interface and the host endpoint that it is; link "": every other one.
type hostLink struct {
	link, name string
}

// hostLinks are the interfaces that host endpoints are: by their names first, then by their
// addresses, then all the others. Of several host endpoints the first by name has it.
func (x *Index) hostLinks() (list []hostLink) {
	taken := map[string]bool{}
	take := func(link, name string) {
		if !taken[link] && (link == "" || validLink(link)) {
			taken[link] = true
			list = append(list, hostLink{link, name})
		}
	}
	names := sortedKeys(x.hosts.own)
	for _, name := range names {
		if link := x.hosts.own[name].Spec.InterfaceName; link != "" && link != datastore.AllInterfaces {
			take(link, name)
		}
	}
	for _, name := range names {
		for _, link := range sortedKeys(x.hosts.links) {
			s := x.hosts.own[name].Spec
			expected := func(a netip.Addr) bool { return slices.Contains(s.ExpectedIPs, a.Unmap().WithZone("")) }
			if s.InterfaceName == "" && slices.ContainsFunc(x.hosts.links[link], expected) {
				take(link, name)
			}
		}
	}
	for _, name := range names {
		if x.hosts.own[name].Spec.InterfaceName == datastore.AllInterfaces {
			take("", name)
		}
	}
	return list
}

// HostEndpointAt is the host endpoint that an interface of the node is; "": none.
func (x *Index) HostEndpointAt(link string) string {
	other := ""
	for _, l := range x.hostLinks() {
		if l.link == link {
			return l.name
		}
		if l.link == "" {
			other = l.name
		}
	}
	return other
}

// settleHosts brings the chains of host endpoints up to date.
func (x *Index) settleHosts() {
	if !x.hosts.doubted {
		return
	}
	x.hosts.doubted = false
	b := hostBuilder{Index: x, links: x.hostLinks(), classes: map[string]bool{}}
	had := x.hosts.classes
	for _, c := range hostChains() {
		rules := b.rules(c)
		if rules == nil {
			if old := x.chains[c.name]; old != nil && old.refs > 0 {
				x.release(c.name)
			}
			continue
		}
		x.setHostChain(c, rules)
	}
	x.hosts.classes = sortedKeys(b.classes)
	both := families{true, true}
	for _, class := range x.hosts.classes {
		x.countClass(class, both, +1)
	}
	for _, class := range had {
		x.countClass(class, both, -1)
		x.release(class)
	}
}

// hostChain says what a base chain of host endpoints is for.
type hostChain struct {
	name  string
	hook  Hook
	use   use
	d     direction
	field Field // that has the host endpoint's interface
	group Field // of that interface
}

func hostChains() []hostChain {
	in := func(name, hook string, priority int32, u use) hostChain {
		return hostChain{name, Hook{hook, priority}, u, inbound, InLink, InGroup}
	}
	out := func(name, hook string, priority int32, u use) hostChain {
		return hostChain{name, Hook{hook, priority}, u, outbound, OutLink, OutGroup}
	}
	return []hostChain{
		in(ChainHostRawIn, "prerouting", -290, untracked), out(ChainHostRawOut, "output", -290, untracked),
		in(ChainHostPreNAT, "prerouting", -150, preDNAT),
		in(ChainHostIn, "input", -12, tracked), out(ChainHostOut, "output", -12, tracked),
		in(ChainHostFwdIn, "forward", -13, forwarded), out(ChainHostFwdOut, "forward", -12, forwarded),
	}
}

// hostBuilder makes the rules of the base chains, and acquires the classes that they name.
type hostBuilder struct {
	*Index
	links   []hostLink
	classes map[string]bool
}

// class is that of a host endpoint for a use; "": no policy is to be asked.
func (b *hostBuilder) class(name string, u use, d direction) string {
	f := b.members[hostMember(name)].facts
	var list []stage
	if u == tracked {
		list = b.stages(d, f, b.hosts.own[name].Spec.Profiles)
	} else {
		list, _ = b.tierStages(u, d, f)
	}
	if len(list) == 0 {
		return ""
	}
	class := className(u, d, list)
	if !b.classes[class] {
		b.acquireClass(u, d, list)
		b.classes[class] = true
	}
	return class
}

// rules are those of a base chain but for what is before them; nil: nobody needs it.
func (b *hostBuilder) rules(c hostChain) (list []Rule) {
	asked := false
	for _, l := range b.links {
		var at []Term
		if l.link != "" {
			at = []Term{{Field: c.field, Text: l.link}}
		}
		to := func(v Verdict, more ...Term) {
			list = append(list, Rule{Match: slices.Concat(at, more), Verdict: v, Comment: clip("hostendpoint " + l.name)})
		}
		// Who was let through by an earlier kind of policy is not asked by a later one. No mark
		// says so: the same rules say the same of the same packet.
		if c.use != untracked && c.d == inbound || c.name == ChainHostOut {
			if class := b.class(l.name, untracked, c.d); class != "" {
				to(Verdict{Kind: Jump, Chain: class}, num(CTState, uint32(Untracked)))
			}
		}
		if (c.use == tracked || c.use == forwarded) && c.d == inbound {
			if class := b.class(l.name, preDNAT, c.d); class != "" {
				to(Verdict{Kind: Jump, Chain: class}, Term{Field: CTStatus, Number: statusDNAT, Not: true})
			}
		}
		if class := b.class(l.name, c.use, c.d); class != "" {
			to(goTo(class))
			asked = true
		} else {
			to(accept())
		}
	}
	if !asked {
		return nil
	}
	return list
}

// setHostChain writes a base chain: first what no policy is asked about.
func (x *Index) setHostChain(c hostChain, rules []Rule) {
	p := program{families: families{true, true}, used: map[string]bool{}}
	if c.use != untracked {
		p.rules = append(p.rules, known(x.options)...)
	}
	p.rules = append(p.rules, match(accept(), num(c.group, x.options.Group)))
	p.rules = append(p.rules, adopted(x.options, match(accept(), inSet(c.field, setAdopted)))...)
	if c.use != forwarded {
		p.rules = append(p.rules, match(accept(), Term{Field: c.field, Text: "lo"}))
		p.always(c, x.options, x.wireguard)
	}
	if c.d == inbound {
		p.rules = append(p.rules, reversePath(x.options, c.use != forwarded)...)
	}
	p.rules = append(p.rules, rules...)
	chain := x.chains[c.name]
	if chain == nil {
		chain = x.newChain(c.name)
		chain.hook = &c.hook
	}
	chain.refs = 1
	x.recompile(chain, p)
}

// always lets through what no policy can lock out; in prerouting of what is not forwarded, as
// far as that is known there.
func (p *program) always(c hostChain, o Options, wireguard uint16) {
	from := len(p.rules)
	defer func() {
		for i := range p.rules[from:] {
			if r := &p.rules[from+i]; c.hook.Name == "prerouting" {
				r.Match = append(r.Match, Term{Field: DstType, Number: typeUnicast, Not: true})
			}
		}
	}()
	for _, set := range []string{setLink6, setRouter6} {
		p.rules = append(p.rules, match(accept(), num(L4Proto, protoICMP6), inSet(ICMP6Type, set)))
	}
	own, other := o.FailsafeInbound, o.FailsafeOutbound
	node4, node6 := SrcIP4, SrcIP6
	if c.d == outbound {
		own, other, node4, node6 = other, own, DstIP4, DstIP6
	}
	p.failsafe(own, DstPort)
	if c.use == untracked { // an answer would be untracked, or denied, if its question is not
		p.failsafe(other, SrcPort)
	}
	tunnels := [][]Term{{num(L4Proto, protoIPIP)}, {num(L4Proto, protoUDP), num(DstPort, vxlanPort)}}
	if wireguard != 0 {
		tunnels = append(tunnels, []Term{num(L4Proto, protoUDP), num(DstPort, uint32(wireguard))})
	}
	for _, f := range []struct {
		proto uint32
		field Field
		set   setRef
	}{{nfIPv4, node4, setRef{name: "nodes4", typ: Addr4, source: fromNodes}}, {nfIPv6, node6, setRef{name: "nodes6", typ: Addr6, source: fromNodes}}} {
		for _, t := range tunnels {
			p.rules = append(p.rules, Rule{Match: append(slices.Clone(t), num(NFProto, f.proto), inSet(f.field, p.use(f.set))), Verdict: accept(), Comment: "failsafe: tunnel of a node"})
		}
	}
}

// failsafe lets ports through whatever policies say.
func (p *program) failsafe(list []HostPort, field Field) {
	for _, proto := range []uint32{protoTCP, protoUDP, protoSCTP} {
		var side datastore.Side
		for _, h := range list {
			if uint32(h.Protocol) == proto {
				side.Ports = append(side.Ports, datastore.PortRange{First: h.Port, Last: h.Port})
			}
		}
		if len(side.Ports) == 0 {
			continue
		}
		for _, terms := range p.portTerms(side, field, 0) {
			p.rules = append(p.rules, Rule{Match: append([]Term{num(L4Proto, proto)}, terms...), Counter: true, Verdict: accept(), Comment: "failsafe port"})
		}
	}
}

// untrack has what the rules allow untracked.
func (p *program) untrack() {
	for i := range p.rules {
		if p.rules[i].Verdict.Kind == Accept {
			p.rules[i].Verdict.Kind = Untrack
		}
	}
}

// ofHosts says that a chain is a base chain of host endpoints.
func ofHosts(chain string) bool { return strings.HasPrefix(chain, hostPrefix) }

// closed is a base chain of host endpoints that lets nothing new through but what no policy
// can lock out. It asks no class.
func (c *Chain) closed() *Chain {
	out := &Chain{Name: c.Name, Hook: c.Hook}
	for _, r := range c.Rules {
		switch {
		case r.Verdict.Kind == Jump, r.Verdict.Kind == Goto && (c.Name == ChainHostRawIn || c.Name == ChainHostRawOut): // they judge answers too
		case r.Verdict.Kind == Goto:
			out.Rules = append(out.Rules, refuse(fmt.Sprintf("%s: closed for a moment", r.Comment), r.Match...))
		default:
			out.Rules = append(out.Rules, r)
		}
	}
	return out
}

// DefaultFailsafes are the ports that no policy closes unless settings say others: as of
// other policy engines' hosts SSH, DHCP, DNS, BGP and etcd.
func DefaultFailsafes() (in, out []string) {
	return []string{"tcp/22", "udp/68", "udp/546", "tcp/179", "tcp/2379", "tcp/2380"},
		[]string{"udp/53", "tcp/53", "udp/67", "udp/547", "tcp/179", "tcp/2379", "tcp/2380"}
}

// unnamed says that the interface that the chain of host endpoints asks for is not known.
func (p Packet) unnamed(chain string) bool {
	for _, c := range hostChains() {
		if c.name == chain {
			return c.field == InLink && p.InLink == Uplink || c.field == OutLink && p.OutLink == Uplink
		}
	}
	return false
}
