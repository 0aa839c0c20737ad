package routing

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// Peer is a BGP neighbour of a node.
type Peer struct {
	// Name is the node's name, or that of a Peer.
	Name string `json:"name"`
	AS   uint32 `json:"as"`
	// Interface is where a neighbour is that is known by that alone: in Plan.Interfaces a
	// name or pattern, in Plan.Peers the link that it was found on.
	Interface string `json:"interface,omitempty"`
	// Address and Local are the ends of the session. AS 0: any but this node's.
	Address netip.Addr `json:"address"`
	Local   netip.Addr `json:"local"`
	// Aliases are the peer's other addresses.
	Aliases []netip.Addr `json:"aliases,omitempty"`
	// NextHops are this node's addresses of the families that both have: the
	// families of the session, and the next hops of what this node announces.
	NextHops []netip.Addr `json:"nextHops"`
	// Client: this node reflects for it; Reflects: it reflects, for this node or others.
	Client   bool `json:"client,omitempty"`
	Reflects bool `json:"reflects,omitempty"`
	// Chosen: it reflects because the topology chose it; Away: it would be chosen, but
	// has been away.
	Chosen bool `json:"chosen,omitempty"`
	Away   bool `json:"away,omitempty"`
	// Configured is set for a neighbour of kind Peer, whose name Name is.
	Configured *Configured `json:"configured,omitempty"`
	// Drained says why the session is down on purpose; "": it is not.
	Drained string `json:"drained,omitempty"`
}

// Member is what a topology with reflectors depends on of a node.
type Member struct {
	Name      string               `json:"name"`
	AS        uint32               `json:"as,omitempty"` // 0: the default
	Addresses []netip.Addr         `json:"addresses"`
	Labels    map[string]string    `json:"labels,omitempty"`
	Reflector *datastore.Reflector `json:"reflector,omitempty"`
	Host      string               `json:"host,omitempty"`
	Model     int                  `json:"model,omitempty"`
	Away      bool                 `json:"away,omitempty"`
	Drained   bool                 `json:"drained,omitempty"`
}

// Plan is all that a node's speaker needs of the datastore.
type Plan struct {
	// Node is the node's name; Host is the ID of the machine that registered it,
	// "" if none has.
	Node     string     `json:"node,omitempty"`
	Host     string     `json:"host,omitempty"`
	RouterID netip.Addr `json:"routerID"`
	AS       uint32     `json:"as"`
	// OwnAS says that the node has an AS number of its own.
	OwnAS bool `json:"ownAS,omitempty"`
	// Addresses are this node's, Nodes those of all nodes.
	Addresses []netip.Addr `json:"addresses"`
	Nodes     []netip.Addr `json:"nodes"`
	Peers     []Peer       `json:"peers"`
	// Interfaces are the peers of interfaces, which AtLinks makes Peers, and Silent those
	// that it cannot.
	Interfaces []Peer   `json:"interfaces,omitempty"`
	Silent     []Silent `json:"-"`
	// Members are all nodes, where not all of them are peers.
	Members []Member `json:"members,omitempty"`
	// ClusterID is what this node reflects by.
	ClusterID netip.Addr `json:"clusterID,omitzero"`
	Pools     []Pool     `json:"pools"`
	// Tunnels are those to other nodes.
	Tunnels []Tunnel `json:"tunnels,omitempty"`
	// HoldTime, RestartTime and LongLivedTime are in seconds.
	HoldTime      int `json:"holdTime"`
	RestartTime   int `json:"restartTime"`
	LongLivedTime int `json:"longLivedTime,omitempty"`
	// BFD is that between nodes.
	BFD *datastore.BFD `json:"bfd,omitempty"`
	// DefaultAS is the AS number of nodes without one of their own; NoMesh says
	// that nodes are no peers by themselves.
	DefaultAS uint32 `json:"defaultAS,omitempty"`
	NoMesh    bool   `json:"noMesh,omitempty"`
	// PeerFilters gives filters to configured peers; Filters are those that peers have, by name.
	PeerFilters []datastore.PeerFilters `json:"peerFilters,omitempty"`
	Filters     []Filter                `json:"filters,omitempty"`
	// Topology is the configured one.
	Topology datastore.Topology `json:"topology,omitzero"`
	// Kept says that the datastore has lost some of this, which is kept for a
	// while.
	Kept bool `json:"kept,omitempty"`
	// Drain is set where this node is out of use.
	Drain *datastore.Drain `json:"drain,omitempty"`
	// Understood is what was planned with in place of objects that only a newer
	// netctl can read.
	Understood []datastore.Last `json:"understood,omitempty"`
	// Problems are one line each: what could not be planned.
	Problems []string `json:"problems,omitempty"`
}

// Mesh plans node's sessions with other nodes: with all that share an address family
// or, where there are reflectors, with those that Arrange says; over IPv4 if both have
// it. A node that is not among nodes, or has no address, has no peers. nodes and pools
// are in a fixed order.
func Mesh(node string, nodes []*datastore.Node, pools []*datastore.Pool, bgp *datastore.BGPConfig) Plan {
	p := Plan{Node: node}
	p.HoldTime, p.RestartTime, p.LongLivedTime = *bgp.Spec.HoldTime, bgp.Spec.RestartTime, bgp.Spec.LongLivedTime
	p.DefaultAS, p.NoMesh = bgp.Spec.DefaultAS, !*bgp.Spec.Mesh
	p.Topology, p.PeerFilters, p.BFD = bgp.Spec.Topology, bgp.Spec.Filters, bgp.Spec.BFD
	for _, pool := range pools {
		size := pool.Spec.BlockSize
		if pool.Spec.Disabled { // prefixes behind endpoints may be of it
			size = pool.Spec.CIDR.Bits()
		}
		p.Pools = append(p.Pools, Pool{CIDR: pool.Spec.CIDR, BlockSize: size, Communities: pool.Spec.Communities, Encap: pool.Spec.Encap})
	}
	var self *datastore.Node
	for _, n := range nodes {
		p.Nodes = append(p.Nodes, addresses(n)...)
		if n.Metadata.Name == node {
			self = n
		}
	}
	if self == nil {
		p.Problems = append(p.Problems, fmt.Sprintf("node %s is not in the datastore: start its agent", node))
		return p
	}
	p.Addresses, p.Host = addresses(self), self.Status.Host
	p.AS, p.OwnAS = asOf(self, bgp), self.Spec.AS != 0
	if len(p.Addresses) == 0 {
		p.Problems = append(p.Problems, fmt.Sprintf("node %s has no address: set agent.addresses or agent.interface", node))
		return p
	}
	p.RouterID = routerID(node, p.Addresses)
	p.ClusterID = clusterID(self, p.Addresses)
	p.Tunnels = tunnels(self, nodes)
	if p.NoMesh {
		return p
	}
	arrangement := Arrange(nodes, bgp)
	p.Members = arrangement.list()
	for _, problem := range arrangement.Problems {
		if slices.Contains(problem.Nodes, node) {
			p.Problems = append(p.Problems, problem.Text)
		}
	}
	byAddress := make(map[netip.Addr]string, len(nodes))
	for _, n := range nodes {
		if n == self {
			continue
		}
		peer, ok := meet(p.Addresses, addresses(n))
		link := arrangement.Link(node, n.Metadata.Name)
		if ok && link == NoLink {
			continue
		}
		m := arrangement.members[n.Metadata.Name]
		peer.Client, peer.Reflects, peer.Away = link == ClientLink, m.reflects, !n.Status.Away.IsZero()
		peer.Chosen = m.reflects && m.mode() == datastore.ReflectorAuto
		if !ok {
			if len(n.Spec.Addresses) > 0 {
				p.Problems = append(p.Problems, fmt.Sprintf("node %s shares no address family with this node", n.Metadata.Name))
			}
			continue
		}
		peer.Name, peer.AS = n.Metadata.Name, asOf(n, bgp)
		if slices.Contains(p.Addresses, peer.Address) {
			p.Problems = append(p.Problems, fmt.Sprintf("node %s has this node's address %s: change one of them", n.Metadata.Name, peer.Address))
			continue
		}
		if other, taken := byAddress[peer.Address]; taken {
			p.Problems = append(p.Problems, fmt.Sprintf("nodes %s and %s have the same address %s: change one of them", other, peer.Name, peer.Address))
			continue
		}
		byAddress[peer.Address] = peer.Name
		p.Peers = append(p.Peers, peer)
	}
	return p
}

// meet makes the session between two nodes' addresses, IPv4 first.
func meet(own, other []netip.Addr) (Peer, bool) {
	var p Peer
	for _, local := range own {
		i := slices.IndexFunc(other, func(a netip.Addr) bool { return a.Is4() == local.Is4() })
		if i < 0 {
			continue
		}
		if !p.Address.IsValid() {
			p.Local, p.Address = local, other[i]
		}
		p.NextHops = append(p.NextHops, local)
	}
	for _, a := range other {
		if a != p.Address {
			p.Aliases = append(p.Aliases, a)
		}
	}
	return p, p.Address.IsValid()
}

// addresses returns a node's addresses, IPv4 first.
func addresses(n *datastore.Node) []netip.Addr {
	var out []netip.Addr
	for _, a := range n.Spec.Addresses {
		out = append(out, a.Addr())
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func asOf(n *datastore.Node, bgp *datastore.BGPConfig) uint32 {
	if n.Spec.AS != 0 {
		return n.Spec.AS
	}
	return bgp.Spec.DefaultAS
}

// routerID is the node's IPv4 address, or without one a hash of its name: any
// non-zero 32 bits that are unique in the AS (RFC 6286, section 2.1). It is one that a
// host might have as address, since other speakers may ask for that.
func routerID(node string, addrs []netip.Addr) netip.Addr {
	if addrs[0].Is4() {
		return addrs[0]
	}
	h := fnv.New32a()
	h.Write([]byte(node))
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], h.Sum32())
	if b[0] == 0 || b[0] == 127 || b[0] >= 224 {
		b[0] = 128 + b[0]%64
	}
	return netip.AddrFrom4(b)
}

// CIDRs returns the pools' prefixes.
func (p Plan) CIDRs() []netip.Prefix {
	out := make([]netip.Prefix, len(p.Pools))
	for i, pool := range p.Pools {
		out[i] = pool.CIDR
	}
	return out
}

// ASSource says where the AS number is from: "node" or "inherited".
func (p Plan) ASSource() string {
	if p.OwnAS {
		return "node"
	}
	return "inherited"
}

// Type is what `status` calls the session with the peer.
func (p Peer) Type() string {
	switch {
	case p.Configured != nil:
		return p.Configured.Type
	case p.Client:
		return "client"
	case p.Reflects:
		return "reflector"
	}
	return "node-to-node mesh"
}

// NodeCount is how many nodes the sessions were planned for.
func (p Plan) NodeCount() int {
	if len(p.Members) > 0 {
		return len(p.Members)
	}
	n := 1
	for _, peer := range p.Peers {
		if peer.Configured == nil {
			n++
		}
	}
	return n
}

// Names says who peers and nodes are, by their addresses: "n2 (192.168.99.103)".
func (p Plan) Names(addrs []netip.Addr) string {
	names := make([]string, len(addrs))
	for i, a := range addrs {
		names[i] = a.String()
		if name := p.name(a); name != "" {
			names[i] = name + " (" + a.String() + ")"
		}
	}
	return strings.Join(names, ", ")
}

// name is that of the peer or node that has an address.
func (p Plan) name(a netip.Addr) string {
	for _, peer := range p.Peers {
		if peer.Address == a || slices.Contains(peer.Aliases, a) {
			return peer.Name
		}
	}
	for _, m := range p.Members {
		if slices.Contains(m.Addresses, a) {
			return m.Name
		}
	}
	return ""
}
