package acl

// ChainVXLANIn keeps the VXLAN tunnels of nodes to nodes, while the host has such tunnels:
// what another machine puts into one would come out as from the tunnel, and so by the way to
// any source of its pools. Other virtual networks on the port are others' business.
const ChainVXLANIn = "vxlan_in" // input

// SetVXLAN opens a virtual network (RFC 7348, section 5) to the nodes alone; 0: there are no
// such tunnels. It says whether that is news.
func (x *Index) SetVXLAN(id uint32) bool {
	if x.vxlan == id {
		return false
	}
	if x.vxlan = id; id == 0 {
		x.release(ChainVXLANIn)
		return true
	}
	chain := x.chains[ChainVXLANIn]
	if chain == nil {
		chain = x.newChain(ChainVXLANIn)
		chain.hook = &Hook{"input", -11}
	}
	chain.refs = 1
	x.recompile(chain, compileVXLAN(id))
	return true
}

func compileVXLAN(id uint32) (p program) {
	p.families = families{true, true}
	for _, from := range p.nodeTerms(SrcIP4, SrcIP6, true) {
		p.rules = append(p.rules, refuse("VXLAN: not from a node", append(from, num(L4Proto, protoUDP), num(DstPort, vxlanPort), num(VNI, id))...))
	}
	return p
}
