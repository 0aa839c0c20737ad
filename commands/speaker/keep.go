package speaker

import (
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"netctl/datastore"
	"netctl/routing"
)

// kept is what the speaker worked by and the datastore does not hold any more:
// just so much of the objects as a plan is made of. The zero value keeps nothing.
type kept struct {
	nodes   []*datastore.Node
	pools   []*datastore.Pool
	peers   []*datastore.Peer
	filters []*datastore.BGPFilter
	bgp     *datastore.BGPConfig // nil: not kept
	until   time.Time
}

// usedTunnels are this node's ends, as far as they were used.
func usedTunnels(p routing.Plan) (own []datastore.Tunnel) {
	for _, t := range p.Tunnels {
		if end := (datastore.Tunnel{Kind: t.Kind}); !slices.Contains(own, end) {
			own = append(own, end)
		}
	}
	return own
}

// planned returns the objects that plan was made of: none of the zero plan, which
// a node has before it ever saw the datastore. Nodes matter as peers only, and
// this one as theirs.
func planned(node string, p routing.Plan) kept {
	var k kept
	if p.RestartTime == 0 {
		return k
	}
	own := usedTunnels(p)
	add := func(name string, as uint32, addrs []netip.Addr) {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{AS: as}}
		for _, a := range addrs {
			n.Spec.Addresses = append(n.Spec.Addresses, netip.PrefixFrom(a, a.BitLen()))
		}
		for _, t := range p.Tunnels {
			end := datastore.Tunnel{Kind: t.Kind, MAC: t.MAC}
			if slices.Contains(addrs, t.Hop) && !slices.Contains(n.Status.Tunnels, end) {
				n.Status.Tunnels = append(n.Status.Tunnels, end)
			}
		}
		if name == node {
			n.Status.Tunnels = own
		}
		k.nodes = append(k.nodes, n)
	}
	for _, m := range p.Members {
		add(m.Name, m.AS, m.Addresses)
		n := k.nodes[len(k.nodes)-1]
		n.Metadata.Labels, n.Spec.Reflector, n.Status.Host, n.Status.Model = m.Labels, m.Reflector, m.Host, m.Model
		switch {
		case m.Name == node:
			n.Spec.Drain = p.Drain
		case m.Drained:
			n.Spec.Drain = &datastore.Drain{}
		}
		if m.Away {
			n.Status.Away = time.Unix(0, 0) // since when is nothing that a plan depends on
		}
	}
	for _, peer := range slices.Concat(p.Peers, p.Interfaces) {
		name := peer.Name
		if c := peer.Configured; c != nil {
			kept := &datastore.Peer{Metadata: datastore.Metadata{Name: peer.Name}, Spec: c.Spec}
			if c.Spec.NodeSelector != "" { // the labels may be gone, too
				kept.Spec.Node, kept.Spec.NodeSelector = node, ""
			}
			k.peers = append(k.peers, kept)
			if name = c.Node; name == "" {
				continue
			}
		}
		if len(p.Members) > 0 {
			continue // they are among these, and so is this node
		}
		add(name, peer.AS, append([]netip.Addr{peer.Address}, peer.Aliases...))
	}
	if len(p.Peers)+len(p.Interfaces) > 0 && len(p.Members) == 0 {
		as := p.AS
		if !p.OwnAS {
			as = 0
		}
		add(node, as, p.Addresses)
		self := k.nodes[len(k.nodes)-1]
		self.Status.Host, self.Spec.Drain = p.Host, p.Drain
		slices.SortFunc(k.nodes, byName)
	}
	for _, pool := range p.Pools {
		k.pools = append(k.pools, &datastore.Pool{Spec: datastore.PoolSpec{CIDR: pool.CIDR, BlockSize: pool.BlockSize, Communities: pool.Communities, Encap: pool.Encap}})
	}
	for _, f := range p.Filters {
		if !f.Missing {
			k.filters = append(k.filters, &datastore.BGPFilter{Metadata: datastore.Metadata{Name: f.Name}, Spec: f.Spec})
		}
	}
	var usual datastore.BGPConfig
	usual.SetDefaults()
	bgp := datastore.BGPConfig{Spec: datastore.BGPConfigSpec{
		DefaultAS: p.DefaultAS, Mesh: new(!p.NoMesh), Topology: p.Topology, HoldTime: new(p.HoldTime), RestartTime: p.RestartTime, Filters: p.PeerFilters, BFD: p.BFD,
		LongLivedTime: p.LongLivedTime,
	}}
	if bgp.SetDefaults(); !reflect.DeepEqual(bgp, usual) {
		k.bgp = &bgp
	}
	return k
}

// settle lets go what the view holds itself, a node also by its address.
func (k *kept) settle(v *datastore.View) {
	if k.empty() {
		return
	}
	taken := map[netip.Addr]bool{}
	for _, n := range v.Nodes() {
		for _, a := range n.Spec.Addresses {
			taken[a.Addr()] = true
		}
	}
	k.nodes = slices.DeleteFunc(k.nodes, func(n *datastore.Node) bool {
		return v.Node(n.Metadata.Name) != nil || slices.ContainsFunc(n.Spec.Addresses, func(a netip.Prefix) bool { return taken[a.Addr()] })
	})
	k.peers = slices.DeleteFunc(k.peers, func(p *datastore.Peer) bool {
		return v.Peer(p.Metadata.Name) != nil ||
			slices.ContainsFunc(v.Peers(), func(o *datastore.Peer) bool { return o.Spec.Neighbour() == p.Spec.Neighbour() })
	})
	k.pools = slices.DeleteFunc(k.pools, func(p *datastore.Pool) bool { return v.Pool(datastore.PoolName(p.Spec.CIDR)) != nil })
	k.filters = slices.DeleteFunc(k.filters, func(f *datastore.BGPFilter) bool { return v.BGPFilter(f.Metadata.Name) != nil })
	if v.Object(datastore.KindBGPConfig, datastore.DefaultName) != nil {
		k.bgp = nil
	}
}

// deleted lets go what was deleted while the datastore was followed.
func (k *kept) deleted(key string) {
	kind, name, err := datastore.ParseKey(key)
	switch {
	case err != nil:
	case kind == datastore.KindNode:
		k.nodes = slices.DeleteFunc(k.nodes, func(n *datastore.Node) bool { return n.Metadata.Name == name })
	case kind == datastore.KindPeer:
		k.peers = slices.DeleteFunc(k.peers, func(p *datastore.Peer) bool { return p.Metadata.Name == name })
	case kind == datastore.KindPool:
		k.pools = slices.DeleteFunc(k.pools, func(p *datastore.Pool) bool { return datastore.PoolName(p.Spec.CIDR) == name })
	case kind == datastore.KindBGPFilter:
		k.filters = slices.DeleteFunc(k.filters, func(f *datastore.BGPFilter) bool { return f.Metadata.Name == name })
	case kind == datastore.KindBGPConfig:
		k.bgp = nil
	}
}

func (k *kept) empty() bool {
	return len(k.nodes) == 0 && len(k.pools) == 0 && len(k.peers) == 0 && len(k.filters) == 0 && k.bgp == nil
}

func (k *kept) withNodes(nodes []*datastore.Node) []*datastore.Node {
	if len(k.nodes) == 0 {
		return nodes
	}
	return slices.SortedFunc(slices.Values(slices.Concat(nodes, k.nodes)), byName)
}

func byName(a, b *datastore.Node) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) }

func (k *kept) withPools(pools []*datastore.Pool) []*datastore.Pool {
	if len(k.pools) == 0 {
		return pools
	}
	return slices.SortedFunc(slices.Values(slices.Concat(pools, k.pools)), func(a, b *datastore.Pool) int { return a.Spec.CIDR.Compare(b.Spec.CIDR) })
}

func (k *kept) withPeers(peers []*datastore.Peer) []*datastore.Peer {
	if len(k.peers) == 0 {
		return peers
	}
	return slices.SortedFunc(slices.Values(slices.Concat(peers, k.peers)), func(a, b *datastore.Peer) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
}

func (k *kept) config(v *datastore.View) *datastore.BGPConfig {
	if k.bgp != nil {
		return k.bgp
	}
	return v.BGP()
}

// String names what is kept: "nodes n1, n2; pools 10.65.0.0/16".
func (k *kept) String() string {
	var words []string
	if len(k.nodes) > 0 {
		var names []string
		for _, n := range k.nodes {
			names = append(names, n.Metadata.Name)
		}
		words = append(words, "nodes "+bounded(names))
	}
	if len(k.pools) > 0 {
		var names []string
		for _, p := range k.pools {
			names = append(names, p.Spec.CIDR.String())
		}
		words = append(words, "pools "+bounded(names))
	}
	if len(k.peers) > 0 {
		var names []string
		for _, p := range k.peers {
			names = append(names, p.Metadata.Name)
		}
		words = append(words, "peers "+bounded(names))
	}
	if len(k.filters) > 0 {
		var names []string
		for _, f := range k.filters {
			names = append(names, f.Metadata.Name)
		}
		words = append(words, "filters "+bounded(names))
	}
	if k.bgp != nil {
		words = append(words, "bgpconfig "+datastore.DefaultName)
	}
	return strings.Join(words, "; ")
}

// mostNamed bounds how many objects a line names.
const mostNamed = 10

func bounded(names []string) string {
	if n := len(names) - mostNamed; n > 0 {
		return strings.Join(names[:mostNamed], ", ") + " and " + strconv.Itoa(n) + " more"
	}
	return strings.Join(names, ", ")
}
