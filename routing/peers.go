package routing

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// Configured is what makes a neighbour one of kind Peer.
type Configured struct {
	// Type is as `status` shows it: "global" or "node-specific".
	Type string             `json:"type"`
	Spec datastore.PeerSpec `json:"spec"`
	// Node is the name of the node that has the address, "" if none has.
	Node string `json:"node,omitempty"`
	// Others are the addresses of the other nodes that have the peer, where its routes are
	// counted.
	Others []netip.Addr `json:"others,omitempty"`
}

// AddPeers adds the configured peers that a node has to its plan. Of several with one
// address the node's own comes first, then those of a selector, then the global ones.
// nodes and peers are in a fixed order, and nodes are those that p was made of.
func (p *Plan) AddPeers(nodes []*datastore.Node, peers []*datastore.Peer) {
	i := slices.IndexFunc(nodes, func(n *datastore.Node) bool { return n.Metadata.Name == p.Node })
	if i < 0 || len(p.Addresses) == 0 {
		return
	}
	self := nodes[i]
	chosen := map[string]*datastore.Peer{}
	for _, rank := range []int{ofNode, ofSelector, ofAll} {
		for _, c := range peers {
			if rankOf(c) != rank || !c.Selects(p.Node, self.Metadata.Labels) {
				continue
			}
			where := c.Spec.Neighbour()
			switch first := chosen[where]; {
			case first == nil:
				chosen[where] = c
				p.addPeer(c, nodes)
			case rankOf(first) == rank && c.Spec.Interface != "":
				p.problem("peers %s and %s have the same interface %s: remove one of them", first.Metadata.Name, c.Metadata.Name, where)
			case rankOf(first) == rank:
				p.problem("peers %s and %s have the same address %s: remove one of them", first.Metadata.Name, c.Metadata.Name, where)
			}
		}
	}
}

// The scopes of a peer, the narrowest first.
const (
	ofNode = iota
	ofSelector
	ofAll
)

// isTheirs says whether another node has this one as that peer, and not by itself.
func (p *Plan) isTheirs(c *datastore.Peer, nodes []*datastore.Node) bool {
	return slices.ContainsFunc(nodes, func(n *datastore.Node) bool {
		return n.Metadata.Name != p.Node && len(addresses(n)) > 0 && c.Selects(n.Metadata.Name, n.Metadata.Labels) && !slices.ContainsFunc(p.Peers, func(o Peer) bool { return o.Name == n.Metadata.Name })
	})
}

func rankOf(c *datastore.Peer) int {
	switch {
	case c.Spec.Node != "":
		return ofNode
	case c.Spec.NodeSelector != "":
		return ofSelector
	}
	return ofAll
}

func typeOf(c *datastore.Peer) string {
	if rankOf(c) == ofAll {
		return "global"
	}
	return "node-specific"
}

func (p *Plan) problem(format string, args ...any) {
	p.Problems = append(p.Problems, fmt.Sprintf(format, args...))
}

// addPeer adds one, or says why it cannot be.
func (p *Plan) addPeer(c *datastore.Peer, nodes []*datastore.Node) {
	name, s := c.Metadata.Name, c.Spec
	s.Filters = p.filtersOf(c)
	as := s.AS
	if s.RemoteAS == datastore.RemoteInternal {
		as = cmp.Or(s.LocalAS, p.AS)
	}
	if s.Interface != "" {
		p.Interfaces = append(p.Interfaces, Peer{Name: name, AS: as, Interface: s.Interface, Configured: &Configured{Type: typeOf(c), Spec: s}})
		return
	}
	if slices.Contains(p.Addresses, s.Address) {
		// A node that is every other node's peer by hand is none of its own.
		if !p.isTheirs(c, nodes) {
			p.problem("peer %s has this node's own address %s: remove it, or change it", name, s.Address)
		}
		return
	}
	if i := slices.IndexFunc(p.Peers, func(o Peer) bool { return o.Address == s.Address }); i >= 0 {
		// Filters could part nodes, and of what a node announces one path is enough.
		var not []string
		if len(c.Spec.Filters) > 0 {
			not = append(not, "filters")
		}
		if s.AddPath != "" {
			not = append(not, "addPath")
		}
		without := ""
		if len(not) > 0 {
			without = ", and sessions between nodes have no " + strings.Join(not, " and no ")
		}
		p.problem("peer %s has the address %s of node %s, which is a peer by itself%s: remove it, or end the mesh (`netctl bgp node-mesh off`)", name, s.Address, p.Peers[i].Name, without)
		return
	}
	peer := Peer{Name: name, AS: as, Address: s.Address, Local: s.SourceAddress, Configured: &Configured{Type: typeOf(c), Spec: s}}
	for _, n := range nodes {
		if list := addresses(n); slices.Contains(list, s.Address) {
			peer.Configured.Node = n.Metadata.Name
			peer.Aliases = slices.DeleteFunc(list, func(a netip.Addr) bool { return a == s.Address })
		} else if s.RouteBudget > 0 && n.Metadata.Name != p.Node && c.Selects(n.Metadata.Name, n.Metadata.Labels) {
			peer.Configured.Others = append(peer.Configured.Others, list...)
		}
	}
	var ends []netip.Addr // of the node, one a family
	for _, a := range p.Addresses {
		switch {
		case a.Is4() != s.Address.Is4():
			ends = append(ends, a)
		case !peer.Local.IsValid():
			peer.Local = a
		}
	}
	if peer.Local.IsValid() {
		ends = append(ends, peer.Local)
	}
	slices.SortFunc(ends, netip.Addr.Compare)
	for _, a := range ends {
		if len(s.Families) == 0 || slices.Contains(s.Families, familyName(a)) {
			peer.NextHops = append(peer.NextHops, a)
		}
	}
	switch {
	case !peer.Local.IsValid():
		p.problem("peer %s cannot be spoken to from an %s address: this node has none; set sourceAddress", name, familyName(s.Address))
	case len(peer.NextHops) == 0 && !peer.SpeaksIPv4():
		p.problem("peer %s speaks %v only, and this node has no such address", name, s.Families)
	default:
		p.Peers = append(p.Peers, peer)
	}
}

// SpeaksIPv4 says whether a session carries IPv4 whatever addresses this node has: over
// IPv6 it can, with IPv6 next hops (RFC 8950).
func (p Peer) SpeaksIPv4() bool { return p.Address.Is6() && p.offers(datastore.FamilyIPv4) }

// SpeaksIPv6 says whether a session may carry IPv6.
func (p Peer) SpeaksIPv6() bool { return p.offers(datastore.FamilyIPv6) }

func (p Peer) offers(family string) bool {
	return p.Configured == nil || len(p.Configured.Spec.Families) == 0 || slices.Contains(p.Configured.Spec.Families, family)
}

// filtersOf are the names of a peer's filters, in order: its own, and then those that the
// cluster's configuration gives it.
func (p *Plan) filtersOf(c *datastore.Peer) []string {
	names := slices.Clone(c.Spec.Filters)
	for _, f := range p.PeerFilters {
		if s, err := datastore.ParseSelector(f.Peers); err == nil && s.Matches(c.Metadata.Labels) {
			names = append(names, slices.DeleteFunc(slices.Clone(f.Filters), func(name string) bool { return slices.Contains(names, name) })...)
		}
	}
	return names
}

// AddFilters adds the filters that the plan's peers name. Who names one that is not there
// believes nothing, and tells nothing.
func (p *Plan) AddFilters(filters []*datastore.BGPFilter) {
	peers := map[string][]string{} // by filter
	for _, peer := range slices.Concat(p.Peers, p.Interfaces) {
		if c := peer.Configured; c != nil {
			for _, name := range c.Spec.Filters {
				peers[name] = append(peers[name], peer.Name)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		f := Filter{Name: name}
		if i := slices.IndexFunc(filters, func(o *datastore.BGPFilter) bool { return o.Metadata.Name == name }); i >= 0 {
			f.Spec = filters[i].Spec
		} else {
			f.Missing = true
			p.problem("filter %s does not exist, or cannot be read: nothing is taken from the peers that name it, and they are told nothing: %s; "+
				"put it back (`netctl bgp filter add`), or take it out of them", name, strings.Join(peers[name], ", "))
		}
		p.Filters = append(p.Filters, f)
	}
}

// FiltersOf are a peer's filters, in their order.
func (p *Plan) FiltersOf(peer Peer) (out []Filter) {
	if peer.Configured == nil {
		return nil
	}
	for _, name := range peer.Configured.Spec.Filters {
		f := Filter{Name: name, Missing: true}
		if i := slices.IndexFunc(p.Filters, func(f Filter) bool { return f.Name == name }); i >= 0 {
			f = p.Filters[i]
		}
		out = append(out, f)
	}
	return out
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return datastore.FamilyIPv4
	}
	return datastore.FamilyIPv6
}

// External says whether a peer is of another AS than the node, as the node speaks to it.
func (p *Plan) External(peer Peer) bool {
	if c := peer.Configured; c != nil && c.Spec.LocalAS != 0 {
		return peer.AS != c.Spec.LocalAS
	}
	return peer.AS != p.AS
}

// Accepts is what a peer is believed.
func (p *Plan) Accepts(peer Peer) Accept {
	c := peer.Configured
	switch {
	case c != nil && len(c.Spec.Accept) > 0:
		has := func(word string) bool { return slices.Contains(c.Spec.Accept, word) }
		return Accept{Default: has(datastore.AcceptDefault), Foreign: has(datastore.AcceptForeign), Blocks: has(datastore.AcceptBlocks)}
	case p.Foreign(peer):
		return Accept{Default: true, Foreign: true}
	}
	return Accept{Blocks: true}
}

// Foreign says whether a peer is another network's: a configured one of another AS that
// is no node.
func (p *Plan) Foreign(peer Peer) bool {
	return peer.Configured != nil && peer.Configured.Node == "" && p.External(peer)
}
