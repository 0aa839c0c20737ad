package routing

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

func peer(name, address string, as uint32, change func(*datastore.PeerSpec)) *datastore.Peer {
	p := &datastore.Peer{Metadata: datastore.Metadata{Name: name}, Spec: datastore.PeerSpec{Address: netip.MustParseAddr(address), AS: as}}
	if change != nil {
		change(&p.Spec)
	}
	p.SetDefaults()
	return p
}

// TestAddPeers plans the configured peers of every node: who has which, from where, and
// what contradicts.
func TestAddPeers(t *testing.T) {
	nodes := []*datastore.Node{
		node("a", 0, "192.168.99.1/24", "fd00:99::1/64"),
		node("b", 0, "192.168.99.2/24"),
		node("c", 65003, "192.168.99.3/24"),
		node("none", 0),
	}
	nodes[0].Metadata.Labels = map[string]string{"rack": "A1"}
	peers := []*datastore.Peer{
		peer("all", "192.168.99.254", 65001, nil),
		peer("dual", "10.9.0.1", 64511, func(s *datastore.PeerSpec) { s.Node = "b" }),
		peer("dual2", "10.9.0.1", 64511, func(s *datastore.PeerSpec) { s.Node = "b" }),
		peer("hand", "192.168.99.2", 64511, nil),
		peer("own", "192.168.99.3", 65003, func(s *datastore.PeerSpec) { s.Node = "c" }),
		peer("rack", "192.168.99.254", 65002, func(s *datastore.PeerSpec) { s.NodeSelector = "rack == 'A1'" }),
		peer("six", "fd00:99::254", 65001, func(s *datastore.PeerSpec) { s.Families = []string{"ipv6"} }),
		peer("source", "10.9.0.2", 65001, func(s *datastore.PeerSpec) { s.SourceAddress = netip.MustParseAddr("10.9.0.3") }),
		peer("sixonly", "10.9.0.9", 65001, func(s *datastore.PeerSpec) { s.Node, s.Families = "b", []string{"ipv6"} }),
	}
	bgp := &datastore.BGPConfig{}
	bgp.SetDefaults()
	*bgp.Spec.Mesh = false
	plan := func(n string) Plan {
		p := Mesh(n, nodes, nil, bgp)
		p.AddPeers(nodes, peers)
		return p
	}
	var out []string
	for _, n := range nodes {
		p := plan(n.Metadata.Name)
		out = append(out, n.Metadata.Name)
		for _, peer := range p.Peers {
			out = append(out, fmt.Sprintf("  %s %s as %d: %s-%s aliases %v next hops %v node %q foreign %v", peer.Configured.Type, peer.Name, peer.AS,
				peer.Local, peer.Address, peer.Aliases, peer.NextHops, peer.Configured.Node, p.Foreign(peer)))
		}
		out = append(out, p.Problems...)
	}
	want := `a
  node-specific rack as 65002: 192.168.99.1-192.168.99.254 aliases [] next hops [192.168.99.1 fd00:99::1] node "" foreign true
  global hand as 64511: 192.168.99.1-192.168.99.2 aliases [] next hops [192.168.99.1 fd00:99::1] node "b" foreign false
  global six as 65001: fd00:99::1-fd00:99::254 aliases [] next hops [fd00:99::1] node "" foreign true
  global source as 65001: 10.9.0.3-10.9.0.2 aliases [] next hops [10.9.0.3 fd00:99::1] node "" foreign true
b
  node-specific dual as 64511: 192.168.99.2-10.9.0.1 aliases [] next hops [192.168.99.2] node "" foreign false
  global all as 65001: 192.168.99.2-192.168.99.254 aliases [] next hops [192.168.99.2] node "" foreign true
  global source as 65001: 10.9.0.3-10.9.0.2 aliases [] next hops [10.9.0.3] node "" foreign true
peers dual and dual2 have the same address 10.9.0.1: remove one of them
peer sixonly speaks [ipv6] only, and this node has no such address
peer six cannot be spoken to from an ipv6 address: this node has none; set sourceAddress
c
  global all as 65001: 192.168.99.3-192.168.99.254 aliases [] next hops [192.168.99.3] node "" foreign true
  global hand as 64511: 192.168.99.3-192.168.99.2 aliases [] next hops [192.168.99.3] node "b" foreign false
  global source as 65001: 10.9.0.3-10.9.0.2 aliases [] next hops [10.9.0.3] node "" foreign true
peer own has this node's own address 192.168.99.3: remove it, or change it
peer six cannot be spoken to from an ipv6 address: this node has none; set sourceAddress
none
node none has no address: set agent.addresses or agent.interface`
	if got := strings.Join(out, "\n"); got != want {
		t.Errorf("planned\n%s\nwant\n%s", got, want)
	}
	*bgp.Spec.Mesh = true
	p := plan("a")
	if got, want := strings.Join(p.Problems, "\n"), "peer hand has the address 192.168.99.2 of node b, which is a peer by itself: remove it, or end the mesh (`netctl bgp node-mesh off`)"; got != want {
		t.Errorf("in a mesh: %q, want %q", got, want)
	}
	p = plan("b")
	if want := "peer hand has this node's own address 192.168.99.2: remove it, or change it"; !slices.Contains(p.Problems, want) {
		t.Errorf("in a mesh: %q, want %q", p.Problems, want)
	}
	hand := peers[slices.IndexFunc(peers, func(p *datastore.Peer) bool { return p.Metadata.Name == "hand" })]
	hand.Spec.Filters, hand.Spec.AddPath = []string{"tor"}, datastore.AddPathBoth
	p = plan("a")
	if want := "which is a peer by itself, and sessions between nodes have no filters and no addPath: remove it"; !strings.Contains(strings.Join(p.Problems, "\n"), want) {
		t.Errorf("in a mesh: %q, want %q", p.Problems, want)
	}
}

// TestAddDrains: who is drained has no sessions, nor have others with it; before that it
// only says so.
func TestAddDrains(t *testing.T) {
	nodes := []*datastore.Node{node("a", 0, "192.168.99.1/24"), node("b", 0, "192.168.99.2/24"), node("c", 0, "192.168.99.3/24")}
	peers := []*datastore.Peer{peer("b-by-hand", "192.168.99.2", 64511, nil), peer("tor", "192.168.99.254", 65001, nil)}
	bgp := &datastore.BGPConfig{}
	bgp.SetDefaults()
	for _, mesh := range []bool{true, false} {
		*bgp.Spec.Mesh = mesh
		for _, c := range []struct {
			drain *datastore.Drain
			want  string
		}{
			{nil, "a: <nil> []\nb: <nil> []"},
			{&datastore.Drain{Reason: "x"}, "a: <nil> []\nb: &{x false} []"},
			{&datastore.Drain{Shutdown: true}, "a: <nil> [192.168.99.2 drained]\nb: &{ true} [192.168.99.1 drained 192.168.99.3 drained 192.168.99.254 drained]"},
		} {
			nodes[1].Spec.Drain = c.drain
			var lines []string
			for _, n := range nodes[:2] {
				p := Mesh(n.Metadata.Name, nodes, nil, bgp)
				p.AddPeers(nodes, peers)
				p.AddDrains(nodes)
				var down []string
				for _, peer := range p.Peers {
					if peer.Drained != "" {
						down = append(down, peer.Address.String()+" "+peer.Drained)
					}
				}
				lines = append(lines, fmt.Sprintf("%s: %v %v", n.Metadata.Name, p.Drain, down))
			}
			want := c.want
			if !mesh {
				want = strings.Replace(want, "192.168.99.1 drained 192.168.99.3 drained ", "", 1)
			}
			if got := strings.Join(lines, "\n"); got != want {
				t.Errorf("mesh %v, drain %+v:\n%s\nwant\n%s", mesh, c.drain, got, want)
			}
		}
	}
}

// TestDrainedIsNoReflector: who is drained is not chosen, and another one is.
func TestDrainedIsNoReflector(t *testing.T) {
	var list []*datastore.Node
	for i := range 60 {
		n := node(fmt.Sprintf("n%d", i), 0, fmt.Sprintf("192.168.99.%d/24", i+1))
		n.Status.Host, n.Status.Model = fmt.Sprintf("%016x", i), datastore.ModelVersion
		list = append(list, n)
	}
	bgp := &datastore.BGPConfig{}
	bgp.SetDefaults()
	reflectors := func() (names []string) {
		for _, peer := range Mesh("n0", list, nil, bgp).Peers {
			if peer.Reflects {
				names = append(names, peer.Name)
			}
		}
		return names
	}
	before := reflectors()
	for _, n := range list {
		if n.Metadata.Name == before[0] {
			n.Spec.Drain = &datastore.Drain{}
		}
	}
	if after := reflectors(); len(before) != 2 || len(after) != 2 || slices.Contains(after, before[0]) || !slices.Contains(after, before[1]) {
		t.Errorf("reflectors were %v and are %v", before, after)
	}
}

// TestAddFilters: a peer's own filters come first, then those of the cluster, each once;
// who names one that is not there is said.
func TestAddFilters(t *testing.T) {
	bgp := &datastore.BGPConfig{Spec: datastore.BGPConfigSpec{Filters: []datastore.PeerFilters{
		{Peers: "role == 'tor'", Filters: []string{"racks", "own"}}, {Peers: "all()", Filters: []string{"all"}},
	}}}
	bgp.SetDefaults()
	nodes := []*datastore.Node{{Metadata: datastore.Metadata{Name: "a"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.99.1/24")}}},
		{Metadata: datastore.Metadata{Name: "b"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.99.2/24")}}},
		{Metadata: datastore.Metadata{Name: "c", Labels: map[string]string{"rack": "c"}}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.99.3/24")}}}}
	tor := peer("tor", "192.168.99.254", 65001, func(s *datastore.PeerSpec) {
		s.Filters, s.RouteBudget, s.NodeSelector = []string{"own"}, 7, "!has(rack)"
	})
	tor.Metadata.Labels = map[string]string{"role": "tor"}
	other := peer("other", "192.168.99.253", 65001, nil)
	p := Mesh("a", nodes, nil, bgp)
	p.AddPeers(nodes, []*datastore.Peer{other, tor})
	p.AddFilters([]*datastore.BGPFilter{
		{Metadata: datastore.Metadata{Name: "all"}, Spec: datastore.BGPFilterSpec{ImportDefault: datastore.FilterAccept}},
		{Metadata: datastore.Metadata{Name: "own"}}, {Metadata: datastore.Metadata{Name: "unused"}},
	})
	got := map[string]string{}
	for _, x := range p.Peers {
		var words []string
		for _, f := range p.FiltersOf(x) {
			words = append(words, fmt.Sprintf("%s %v %s", f.Name, f.Missing, f.Spec.ImportDefault))
		}
		got[x.Name] = strings.Join(words, ", ")
		if x.Name == "tor" && fmt.Sprint(x.Configured.Others) != "[192.168.99.2]" {
			t.Errorf("others that have it: %v", x.Configured.Others)
		}
	}
	if want := map[string]string{"tor": "own false , racks true , all false accept", "other": "all false accept", "b": "", "c": ""}; !maps.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if len(p.Filters) != 3 || len(p.Problems) != 1 || !strings.HasPrefix(p.Problems[0], "filter racks does not exist, or cannot be read: nothing is taken from the peers that name it, and they are told nothing: tor;") {
		t.Errorf("%+v %q", p.Filters, p.Problems)
	}
}
