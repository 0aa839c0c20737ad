package routing

import (
	"net"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// Tunnel is a way to another node inside packets between the two nodes' addresses.
type Tunnel struct {
	Kind datastore.TunnelKind `json:"kind"`
	// Hop is the address that the node is the next hop by, and Remote the one that
	// packets are sent to.
	Hop    netip.Addr `json:"hop"`
	Remote netip.Addr `json:"remote"`
	// Gateway is what routes through the tunnel name: Hop, but of IPv6 the link-local
	// address that follows from MAC, since the kernel takes no gateway on a device that
	// it knows another way to.
	Gateway netip.Addr `json:"gateway"`
	// MAC is the hardware address of the node's end, of VXLAN.
	MAC string `json:"mac,omitempty"`
	// Spare is the address that packets are sent to if Remote is not reached: of WireGuard,
	// where both nodes have both families.
	Spare netip.Addr `json:"spare,omitzero"`
}

// gatewayOf is what routes to hop through the tunnel to mac name.
func gatewayOf(hop netip.Addr, mac string) (netip.Addr, bool) {
	if hop.Is4() {
		return hop, true
	}
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 {
		return netip.Addr{}, false
	}
	// RFC 4291, appendix A.
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}), true
}

// Ends says whether a gateway is that of a tunnel which ends at a node: see Tunnel.Gateway.
func Ends(n *datastore.Node, gateway netip.Addr) bool {
	return slices.ContainsFunc(n.Status.Tunnels, func(t datastore.Tunnel) bool {
		a, ok := gatewayOf(netip.IPv6Unspecified(), t.MAC)
		return ok && a == gateway
	})
}

// tunnels are those from a node to the others: of each kind that both take packets
// from, for each address of the other. WireGuard goes over IPv4 if it can.
func tunnels(self *datastore.Node, nodes []*datastore.Node) (list []Tunnel) {
	for _, n := range nodes {
		if n == self {
			continue
		}
		vxlan := false
		for _, kind := range []datastore.TunnelKind{datastore.TunnelIPIP, datastore.TunnelVXLAN, datastore.TunnelVXLAN6, datastore.TunnelWireGuard} {
			v6 := kind == datastore.TunnelVXLAN6 || kind == datastore.TunnelWireGuard && !Between(self, n).Is4()
			_, ours := endOf(self, kind)
			end, theirs := endOf(n, kind)
			remote := n.Address(v6)
			var spare netip.Addr
			if kind == datastore.TunnelWireGuard && self.Address(!v6).IsValid() {
				spare = n.Address(!v6)
			}
			if !ours || !theirs || !remote.IsValid() {
				continue
			}
			vxlan = vxlan || kind == datastore.TunnelVXLAN
			for _, hop := range addresses(n) {
				if vxlan && kind == datastore.TunnelVXLAN6 && hop.Is4() {
					continue // IPv6 gets through alone: then that is the next hop, too
				}
				if gateway, ok := gatewayOf(hop, end.MAC); ok {
					list = append(list, Tunnel{Kind: kind, Hop: hop, Remote: remote, Gateway: gateway, MAC: end.MAC, Spare: spare})
				}
			}
		}
	}
	return list
}

// Between is the address of another node that a node sends to: of IPv4 if both have one.
// The zero Addr: there is none.
func Between(self, other *datastore.Node) netip.Addr {
	for _, v6 := range []bool{false, true} {
		if a := other.Address(v6); a.IsValid() && self.Address(v6).IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// endOf is a node's end that others may send by.
func endOf(n *datastore.Node, kind datastore.TunnelKind) (datastore.Tunnel, bool) {
	i := slices.IndexFunc(n.Status.Tunnels, func(t datastore.Tunnel) bool { return t.Kind == kind && !t.Pending })
	if i < 0 {
		return datastore.Tunnel{}, false
	}
	return n.Status.Tunnels[i], true
}

// Fabric decides how packets to other nodes travel. It is not changed after it is
// made; nil: without tunnels.
type Fabric struct {
	pools   []Pool
	subnets []netip.Prefix
	links   map[datastore.TunnelKind]string
	tunnels map[netip.Addr][]Tunnel // by next hop
	own     []netip.Addr
	crossed map[netip.Addr]bool
}

// NewFabric is that of a plan on a host that is connected to subnets; links are the
// devices of its tunnels. crossed are the IPv6 addresses of nodes that IPv4 does not get
// through to, although they have it.
func NewFabric(p Plan, subnets []netip.Prefix, links map[datastore.TunnelKind]string, crossed map[netip.Addr]bool) *Fabric {
	f := &Fabric{pools: p.Pools, subnets: subnets, links: links, own: p.Addresses, crossed: crossed, tunnels: map[netip.Addr][]Tunnel{}}
	for _, t := range p.Tunnels {
		f.tunnels[t.Hop] = append(f.tunnels[t.Hop], t)
	}
	return f
}

// Pool is the pool that holds a prefix; the zero Prefix: none does.
func (f *Fabric) Pool(p netip.Prefix) netip.Prefix {
	if f != nil {
		for _, pool := range f.pools {
			if pool.CIDR.Bits() <= p.Bits() && pool.CIDR.Contains(p.Addr()) {
				return pool.CIDR
			}
		}
	}
	return netip.Prefix{}
}

// SamePools says whether both know the same pools.
func (f *Fabric) SamePools(o *Fabric) bool {
	if f == nil || o == nil {
		return f == o
	}
	return slices.EqualFunc(f.pools, o.pools, func(a, b Pool) bool { return a.CIDR == b.CIDR })
}

// Via is how packets to addresses of a pool go to a BGP next hop that the kernel
// reaches by plain: through a tunnel where the pool asks for one. lacking says that it
// does and that not both ends have it. Then packets take another that both have, as
// while a pool goes from one kind to the other, before they go without.
func (f *Fabric) Via(pool netip.Prefix, hop netip.Addr, plain NextHop) (via NextHop, lacking bool) {
	if f == nil {
		return plain, false
	}
	i := slices.IndexFunc(f.pools, func(p Pool) bool { return p.CIDR == pool })
	if i < 0 {
		return plain, false
	}
	kinds, near := f.pools[i].Encap.Tunnels()
	if len(kinds) == 0 || !near && slices.ContainsFunc(f.subnets, func(s netip.Prefix) bool { return s.Contains(hop) }) {
		return plain, false
	}
	if f.crossed[hop] { // over IPv6 then, which is the latter
		kinds = slices.Clone(kinds)
		slices.Reverse(kinds)
	}
	for _, kind := range kinds {
		for _, t := range f.tunnels[hop] {
			if via, ok := t.via(f.links); ok && t.Kind == kind {
				return via, false
			}
		}
	}
	for _, t := range f.tunnels[hop] {
		if via, ok := t.via(f.links); ok {
			return via, true
		}
	}
	return plain, true
}

// Spares are the addresses that a way by a next hop goes by where no way leads to the next
// hop itself: see Tunnel.Spare.
func (f *Fabric) Spares(hop netip.Addr, via NextHop) (list []netip.Addr) {
	if f == nil {
		return nil
	}
	for _, t := range f.tunnels[hop] {
		if v, ok := t.via(f.links); ok && v == via {
			for _, a := range []netip.Addr{t.Remote, t.Spare} {
				if t.Spare.IsValid() && a != hop {
					list = append(list, a)
				}
			}
		}
	}
	return list
}

// Source is the address that this node's own packets to addresses of a pool are to leave
// with, where they go by a next hop without a tunnel and the kernel takes another than one
// of the node's, or where it is not known what it takes (chosen is invalid, or of the other
// family), since the next hop is at the end of a link or of the other family. Invalid: the
// kernel's choice is right, or the node has no address of the family.
func (f *Fabric) Source(pool netip.Prefix, hop, chosen netip.Addr) netip.Addr {
	if f == nil || !pool.IsValid() {
		return netip.Addr{}
	}
	four := pool.Addr().Is4()
	if known := hop.Zone() == "" && hop.Is4() == four; known && (!chosen.IsValid() || slices.Contains(f.own, chosen)) {
		return netip.Addr{}
	}
	if i := slices.IndexFunc(f.own, func(a netip.Addr) bool { return a.Is4() == four }); i >= 0 {
		return f.own[i]
	}
	return netip.Addr{}
}

// via is the next hop of routes through the tunnel; false: it has no device.
func (t Tunnel) via(links map[datastore.TunnelKind]string) (NextHop, bool) {
	link := links[t.Kind]
	return NextHop{Addr: t.Gateway, Link: link, Onlink: true}, link != ""
}

// Behind are the BGP next hops that routes through tunnels are for, by what these name.
func (p Plan) Behind(links map[datastore.TunnelKind]string) map[NextHop][]netip.Addr {
	out := map[NextHop][]netip.Addr{}
	for _, t := range p.Tunnels {
		if via, ok := t.via(links); ok && t.Gateway != t.Hop {
			out[via] = append(out[via], t.Hop)
		}
	}
	return out
}

// Neighbour is what the device of a VXLAN tunnel has to know of another node: frames
// for Gateway go to the hardware address MAC, and those to Remote.
type Neighbour struct {
	Link            string
	Gateway, Remote netip.Addr
	MAC             string
}

// Neighbours are those that a plan's tunnels need, of the devices links.
func (p Plan) Neighbours(links map[datastore.TunnelKind]string) (list []Neighbour) {
	for _, t := range p.Tunnels {
		if link := links[t.Kind]; link != "" && (t.Kind == datastore.TunnelVXLAN || t.Kind == datastore.TunnelVXLAN6) {
			list = append(list, Neighbour{Link: link, Gateway: t.Gateway, Remote: t.Remote, MAC: t.MAC})
		}
	}
	return list
}
