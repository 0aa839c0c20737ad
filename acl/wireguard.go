package acl

import "slices"

// The chains that keep the port of WireGuard tunnels to the nodes, while the host has
// such tunnels: others cannot make it compute, and a workload cannot have it reach one.
const (
	ChainWireGuardIn  = "wireguard_in"  // input
	ChainWireGuardFwd = "wireguard_fwd" // forward: what workloads send
)

// SetWireGuard opens a UDP port to the nodes alone; 0: there are no such tunnels. It
// says whether that is news.
func (x *Index) SetWireGuard(port uint16) bool {
	if x.wireguard == port {
		return false
	}
	x.wireguard = port
	x.hosts.doubt()
	for _, c := range []struct {
		name, hook string
		compile    func(port uint16, o Options) program
	}{{ChainWireGuardIn, "input", compileWireGuardIn}, {ChainWireGuardFwd, "forward", compileWireGuardFwd}} {
		if port == 0 {
			x.release(c.name)
			continue
		}
		chain := x.chains[c.name]
		if chain == nil {
			chain = x.newChain(c.name)
			chain.hook = &Hook{c.hook, -11}
		}
		chain.refs = 1
		x.recompile(chain, c.compile(port, x.options))
	}
	return true
}

// nodeTerms are whether the address in a field is a node's, of both families.
func (p *program) nodeTerms(field4, field6 Field, not bool) [2][]Term {
	p.used = map[string]bool{}
	term := func(proto uint32, f Field, name string, typ SetType) []Term {
		return []Term{num(NFProto, proto), {Field: f, Set: p.use(setRef{name: name, typ: typ, source: fromNodes}), Not: not}}
	}
	return [2][]Term{term(nfIPv4, field4, "nodes4", Addr4), term(nfIPv6, field6, "nodes6", Addr6)}
}

func compileWireGuardIn(port uint16, _ Options) (p program) {
	p.families = families{true, true}
	for _, from := range p.nodeTerms(SrcIP4, SrcIP6, true) {
		p.rules = append(p.rules, refuse("WireGuard: not from a node", append(from, num(L4Proto, protoUDP), num(DstPort, uint32(port)))...))
	}
	return p
}

func compileWireGuardFwd(port uint16, o Options) (p program) {
	p.families = families{true, true}
	from := []Term{num(InGroup, o.Group)}
	if o.Adopts {
		from = append(from, inSet(InLink, setAdopted))
	}
	for _, to := range p.nodeTerms(DstIP4, DstIP6, false) {
		for _, f := range from {
			match := append([]Term{f}, append(slices.Clone(to), num(L4Proto, protoUDP), num(DstPort, uint32(port)))...)
			p.rules = append(p.rules, refuse("encapsulation guard", match...))
		}
	}
	return p
}
