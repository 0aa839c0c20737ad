package commands

import (
	"net"
	"net/netip"
	"slices"

	"netctl/acl"
	"netctl/datastore"
)

// hostWords is a host endpoint as a side of a packet's way.
func hostWords(name string) string { return labelOf(datastore.KindHostEndpoint, name) }

// hostEndpoints are those of a node.
func (x *explainer) hostEndpoints(node string) []*datastore.HostEndpoint {
	return slices.DeleteFunc(x.view.HostEndpoints(), func(h *datastore.HostEndpoint) bool { return h.Spec.Node != node })
}

func (x *explainer) hasHosts(node string) bool { return len(x.hostEndpoints(node)) > 0 }

func (x *explainer) hostPorts(node string) (list []datastore.Port) {
	for _, h := range x.hostEndpoints(node) {
		list = append(list, h.Spec.Ports...)
	}
	return list
}

// judges says whether rules of the one end are asked: an endpoint's always, a host endpoint's of
// what its node itself sends or gets, but not of its own endpoints.
func (x *explainer) judges(own, other party) bool {
	return own.endpoint != nil || x.hasHosts(own.Node) && own.Node != other.Node
}

// uplinkName stands for the interface that has a node's addresses, where nobody says its name.
const uplinkName = "uplink"

// nodeLinks are the interfaces of a node that host endpoints may know by its addresses.
func (x *explainer) nodeLinks(node string) map[string][]netip.Addr {
	var own []netip.Addr
	if n := x.view.Node(node); n != nil {
		for _, p := range n.Spec.Addresses {
			own = append(own, p.Addr().Unmap())
		}
	}
	return map[string][]netip.Addr{x.via(node): own}
}

// hostAt is the host endpoint of this node that an interface is; "": none.
func (x *explainer) hostAt(link string) string {
	list := x.hostEndpoints(x.settings.Node)
	if link == "" || len(list) == 0 {
		return ""
	}
	index := acl.NewIndex(x.settings.Node, acl.Options{})
	for _, h := range list {
		index.Apply(datastore.Change{Kind: datastore.KindHostEndpoint, Name: h.Metadata.Name, New: h})
	}
	var own []netip.Addr
	if i, err := net.InterfaceByName(link); err == nil {
		addrs, _ := i.Addrs() // without them it is known by its name
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				addr, _ := netip.AddrFromSlice(n.IP)
				own = append(own, addr.Unmap())
			}
		}
	}
	index.SetHostLinks(map[string][]netip.Addr{link: own})
	return index.HostEndpointAt(link)
}

// via is the interface by which a node reaches others, as far as the datastore knows: that of a
// host endpoint that expects the node's address, or else of its only one that has a name.
func (x *explainer) via(node string) string {
	list := x.hostEndpoints(node)
	if len(list) == 0 {
		return acl.Uplink
	}
	expects := func(h *datastore.HostEndpoint) bool {
		n := x.view.Node(node)
		return n != nil && slices.ContainsFunc(n.Spec.Addresses, func(p netip.Prefix) bool { return slices.Contains(h.Spec.ExpectedIPs, p.Addr().Unmap()) })
	}
	named := slices.DeleteFunc(slices.Clone(list), func(h *datastore.HostEndpoint) bool {
		return h.Spec.InterfaceName == "" || h.Spec.InterfaceName == datastore.AllInterfaces
	})
	if i := slices.IndexFunc(named, expects); i >= 0 {
		return named[i].Spec.InterfaceName
	}
	if slices.ContainsFunc(list, func(h *datastore.HostEndpoint) bool { return h.Spec.InterfaceName == "" && expects(h) }) {
		return uplinkName
	}
	if len(named) == 1 {
		x.note("packets of %s are taken to go by %s, the interface of hostendpoint %s: no host endpoint has the node's address among its expectedIPs", node, named[0].Spec.InterfaceName, named[0].Metadata.Name)
		return named[0].Spec.InterfaceName
	}
	return uplinkName
}
