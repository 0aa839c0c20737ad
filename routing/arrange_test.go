package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
)

func reflectorConfig() *datastore.BGPConfig {
	c := &datastore.BGPConfig{Spec: datastore.BGPConfigSpec{Topology: datastore.Topology{Mode: datastore.TopologyReflectors}}}
	c.SetDefaults()
	return c
}

// one is a node in a zone with addresses of the families "4", "6" or "46".
func one(i int, zone, families string) *datastore.Node {
	n := &datastore.Node{Metadata: datastore.Metadata{Name: fmt.Sprintf("n%d", i)}, Status: datastore.NodeStatus{Host: "h", Model: datastore.ModelVersion}}
	if zone != "" {
		n.Metadata.Labels = map[string]string{datastore.ZoneLabel: zone}
	}
	if strings.Contains(families, "4") {
		n.Spec.Addresses = append(n.Spec.Addresses, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 16))
	}
	if strings.Contains(families, "6") {
		n.Spec.Addresses = append(n.Spec.Addresses, netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 14: byte(i >> 8), 15: byte(i)}), 64))
	}
	return n
}

func set(n *datastore.Node, r datastore.Reflector) *datastore.Node {
	n.Spec.Reflector = &r
	return n
}

// cluster is random nodes; without odd they are willing, of one AS and of both families.
func cluster(r *rand.Rand, odd bool) []*datastore.Node {
	var nodes []*datastore.Node
	zones := 1 + r.IntN(4)
	for i := range 3 + r.IntN(40) {
		n := one(i, []string{"", "a", "b", "c"}[r.IntN(zones)], "46")
		if odd {
			n = one(i, n.Metadata.Labels[datastore.ZoneLabel], []string{"46", "46", "4", "6"}[r.IntN(4)])
			if r.IntN(8) == 0 {
				n.Spec.AS = 64600
			}
			if r.IntN(8) == 0 {
				n.Spec.Drain = &datastore.Drain{}
			}
			switch r.IntN(6) {
			case 0:
				n.Status.Host = ""
			case 1:
				set(n, datastore.Reflector{Mode: datastore.ReflectorNever})
			case 2:
				set(n, datastore.Reflector{Mode: datastore.ReflectorAlways})
			case 3:
				set(n, datastore.Reflector{Mode: datastore.ReflectorAlways, Clients: "zone == 'a' || !has(zone)"})
			}
		}
		nodes = append(nodes, n)
	}
	return nodes
}

// reached are the nodes that a route of one comes to while another is dead, by the rules
// of RFC 4456, section 6. Links of different AS pass nothing on here: they are direct.
func reached(a *Arrangement, from string, f int, dead string) map[string]bool {
	type copy struct {
		at         string
		fromClient bool
	}
	got, seen := map[string]bool{from: true}, map[copy]bool{}
	var queue []copy
	tell := func(by, to string) {
		m := a.members[to]
		if to == dead || !m.has[f] || m.as != a.members[from].as {
			return
		}
		got[to] = true
		c := copy{to, a.Link(to, by) == ClientLink}
		if m.reflects && !seen[c] {
			seen[c] = true
			queue = append(queue, c)
		}
	}
	for other := range a.members {
		if a.Link(from, other) != NoLink {
			tell(from, other)
		}
	}
	for len(queue) > 0 {
		c := queue[0]
		queue = queue[1:]
		for other := range a.members {
			if l := a.Link(c.at, other); l == ClientLink || c.fromClient && l != NoLink {
				tell(c.at, other)
			}
		}
	}
	return got
}

// TestArrangement: whatever the nodes, every route comes to every node; where the nodes
// are willing, also while any one of them is dead. Both ends say the same of a session.
func TestArrangement(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		odd := i%2 == 1
		nodes := cluster(r, odd)
		a := Arrange(nodes, reflectorConfig())
		var reflectors [2]map[uint32]int
		for f := range reflectors {
			reflectors[f] = map[uint32]int{}
			for _, m := range a.members {
				if m.reflects && m.has[f] {
					reflectors[f][m.as]++
				}
			}
		}
		for _, n := range nodes {
			x := a.members[n.Metadata.Name]
			for _, o := range nodes {
				y := a.members[o.Metadata.Name]
				if l, back := a.Link(x.name(), y.name()), a.Link(y.name(), x.name()); back != [...]Link{NoLink, PlainLink, ClientLink, ServerLink}[l] {
					t.Fatalf("%s to %s: %v, back %v", x.name(), y.name(), l, back)
				}
				if _, meets := meet(x.addrs, y.addrs); meets && x.as != y.as && a.Link(x.name(), y.name()) != PlainLink {
					t.Fatalf("%s of AS %d and %s of AS %d have no session", x.name(), x.as, y.name(), y.as)
				}
			}
		}
		for f := range reflectors {
			dead := []string{""}
			for _, m := range a.members {
				if n := reflectors[f][m.as]; n >= least || !odd {
					dead = append(dead, m.name())
				}
			}
			for _, d := range dead {
				from := a.members[nodes[r.IntN(len(nodes))].Metadata.Name]
				if from.name() == d || !from.has[f] || d != "" && a.members[d].as != from.as {
					continue
				}
				got := reached(a, from.name(), f, d)
				for _, m := range a.members {
					if m.name() != d && m.has[f] && m.as == from.as && !got[m.name()] {
						t.Fatalf("route of %s (family %d) does not come to %s while %q is dead\n%+v", from.name(), f, m.name(), d, a.Zones())
					}
				}
			}
		}
	}
}

// TestArrangementIsSmall: two reflectors a zone, two sessions a client, and no more.
func TestArrangementIsSmall(t *testing.T) {
	for _, zones := range []int{1, 2, 5} {
		var nodes []*datastore.Node
		for i := range 200 {
			nodes = append(nodes, one(i, fmt.Sprint("z", i%zones), "46"))
		}
		a := Arrange(nodes, reflectorConfig())
		reflectors := 0
		for _, m := range a.members {
			switch {
			case m.reflects:
				reflectors++
			case len(m.servers) != least || m.servers[0].zone != m.zone || m.servers[1].zone != m.zone:
				t.Errorf("%s is a client of %v", m.name(), names(m.servers))
			}
		}
		if reflectors != least*zones {
			t.Errorf("%d reflectors in %d zones", reflectors, zones)
		}
		want := 2*(200-reflectors) + reflectors*(reflectors-1)/2
		if n, mesh := a.Sessions(); n != want || mesh != 200*199/2 {
			t.Errorf("%d sessions of %d, want %d", n, mesh, want)
		}
		if len(a.Problems) > 0 {
			t.Errorf("problems %v", a.Problems)
		}
	}
}

// TestArrangementMoves: a node that comes or goes moves one reflector at most, its own
// place; and the order of the nodes means nothing.
func TestArrangementMoves(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		nodes := cluster(r, false)
		chosen := func(nodes []*datastore.Node) map[string]bool {
			out := map[string]bool{}
			for _, m := range Arrange(nodes, reflectorConfig()).members {
				if m.reflects {
					out[m.name()] = true
				}
			}
			return out
		}
		before := chosen(nodes)
		i := r.IntN(len(nodes))
		after := chosen(slices.Delete(slices.Clone(nodes), i, i+1))
		gone, moved := nodes[i].Metadata.Name, 0
		for name := range before {
			if name != gone && !after[name] {
				t.Fatalf("%s is none any more since %s went", name, gone)
			}
		}
		for name := range after {
			if !before[name] {
				moved++
			}
		}
		if moved > 1 || !before[gone] && moved > 0 {
			t.Fatalf("%d new reflectors since %s went", moved, gone)
		}
		r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		if again := chosen(nodes); fmt.Sprint(again) != fmt.Sprint(before) {
			t.Fatalf("%v, in another order %v", before, again)
		}
	}
}

// TestTopologyModes: who decides what the shape is.
func TestTopologyModes(t *testing.T) {
	nodes := func(n int) (out []*datastore.Node) {
		for i := range n {
			out = append(out, one(i, "", "4"))
		}
		return out
	}
	for _, c := range []struct {
		mode     datastore.TopologyMode
		limit, n int
		reflects bool
	}{
		{"", 0, 50, false}, {"", 0, 51, true}, {"auto", 3, 3, false}, {"auto", 3, 4, true},
		{"mesh", 0, 200, false}, {"reflectors", 0, 3, true},
	} {
		b := &datastore.BGPConfig{Spec: datastore.BGPConfigSpec{Topology: datastore.Topology{Mode: c.mode, MeshLimit: c.limit}}}
		b.SetDefaults()
		list := nodes(c.n)
		p := Mesh("n0", list, nil, b)
		q := Mesh("n1", list, nil, b)
		if got := len(p.Members) > 0; got != c.reflects {
			t.Errorf("%+v: reflects %v", c, got)
		}
		if !c.reflects && (len(p.Peers) != c.n-1 || p.Peers[0].Type() != "node-to-node mesh") {
			t.Errorf("%+v: %d peers", c, len(p.Peers))
		}
		if c.n > 60 && c.reflects && len(p.Peers) != 2 && len(q.Peers) != 2 {
			t.Errorf("%+v: %d and %d peers", c, len(p.Peers), len(q.Peers))
		}
	}
}

// TestReflectorsByHand: what a person says of nodes, and what is wrong with it.
func TestReflectorsByHand(t *testing.T) {
	never := datastore.Reflector{Mode: datastore.ReflectorNever}
	always := datastore.Reflector{Mode: datastore.ReflectorAlways}
	with := func(id, clients string) datastore.Reflector {
		r := always
		r.Clients = clients
		if id != "" {
			r.ClusterID = netip.MustParseAddr(id)
		}
		return r
	}
	foreign := one(9, "", "4")
	foreign.Status.Host = ""
	gone := func(n *datastore.Node) *datastore.Node {
		n.Status.Away = time.Unix(1, 0)
		return n
	}
	drained := func(n *datastore.Node) *datastore.Node {
		n.Spec.Drain = &datastore.Drain{}
		return n
	}
	older := func(n *datastore.Node) *datastore.Node {
		n.Status.Model = reflectorModel - 1
		return n
	}
	for name, c := range map[string]struct {
		nodes []*datastore.Node
		node  string
		want  string // its peers, and its problems
	}{
		"two by hand": {[]*datastore.Node{set(one(0, "", "4"), always), set(one(1, "", "4"), always), one(2, "", "4"), one(3, "", "4")},
			"n2", "n0 reflector, n1 reflector"},
		"seen by one": {[]*datastore.Node{set(one(0, "", "4"), always), set(one(1, "", "4"), always), one(2, "", "4"), one(3, "", "4")},
			"n0", "n1 reflector, n2 client, n3 client"},
		"somebody else's is one if told": {[]*datastore.Node{set(foreign, always), set(one(1, "", "4"), always), one(2, "", "4")},
			"n2", "n1 reflector, n9 reflector"},
		"one willing in the zone": {[]*datastore.Node{one(0, "a", "4"), set(one(1, "a", "4"), never), set(one(2, "b", "4"), always), set(one(3, "b", "4"), never)},
			"n1", "n0 reflector, n2 reflector"},
		"one willing in the zone, said there": {[]*datastore.Node{one(0, "a", "4"), set(one(1, "a", "4"), never), set(one(2, "b", "4"), always), set(one(3, "b", "4"), always)},
			"n0", "n1 client, n2 reflector, n3 reflector; n0 is the only reflector of zone \"a\", whose nodes use those of other zones too; `netctl node NAME set reflector always` makes another there"},
		"one away, another by hand": {[]*datastore.Node{gone(one(0, "", "4")), one(1, "", "4"), set(gone(one(2, "", "4")), always)},
			"n0", "n1 reflector, n2 reflector"},
		"drained, another by hand": {[]*datastore.Node{set(drained(one(0, "", "4")), always), set(one(1, "", "4"), always), one(2, "", "4"), set(one(3, "", "4"), never)},
			"n0", "n1 reflector, n2 reflector"},
		"drained, another can": {[]*datastore.Node{set(drained(one(0, "", "4")), always), one(1, "", "4"), one(2, "", "4"), set(one(3, "", "4"), never)},
			"n3", "n1 reflector, n2 reflector"},
		"drained, nobody else": {[]*datastore.Node{set(drained(one(0, "", "4")), always), set(one(1, "", "4"), never), set(one(2, "", "4"), never)},
			"n2", "n0 reflector"},
		"drained, nobody else of IPv6": {[]*datastore.Node{set(drained(one(0, "", "46")), always), set(one(1, "", "4"), always), set(one(2, "", "46"), never)},
			"n2", "n0 reflector, n1 reflector"},
		"of an older netctl": {[]*datastore.Node{older(one(0, "", "4")), set(older(one(1, "", "4")), always), one(2, "", "4"), one(3, "", "4")},
			"n0", "n1 reflector, n3 reflector"},
		"one willing at all": {[]*datastore.Node{one(0, "", "4"), set(one(1, "", "4"), never), set(one(2, "", "4"), never)},
			"n0", "n1 client, n2 client; n0 is the only reflector of AS 64511 with IPv4: no route is learnt while it is away; `netctl node NAME set reflector always` makes another"},
		"none willing": {[]*datastore.Node{set(one(0, "", "4"), never), set(one(1, "", "4"), never), set(one(2, "", "4"), never)},
			"n0", "n1 node-to-node mesh, n2 node-to-node mesh; no node of AS 64511 with IPv4 is willing to be a reflector, so these are a mesh: `netctl node NAME set reflector always` makes one"},
		"one ID": {[]*datastore.Node{set(one(0, "", "4"), with("1.1.1.1", "zone == 'x'")), set(one(1, "", "4"), with("1.1.1.1", "zone == 'y'")), set(one(2, "x", "4"), never), set(one(3, "y", "4"), never), set(one(4, "x", "4"), always)},
			"n1", "n0 reflector, n3 client, n4 reflector; reflectors n0 and n1 have one cluster ID 1.1.1.1 and other clients, so that neither believes what the other reflects: give one of them another with `netctl node n1 set reflector --cluster-id ID`"},
		"one ID that is meant": {[]*datastore.Node{set(one(0, "", "4"), with("1.1.1.1", "")), set(one(1, "", "4"), with("1.1.1.1", "")), one(2, "", "4")},
			"n1", "n0 reflector, n2 client"},
		"no client": {[]*datastore.Node{set(one(0, "", "4"), always), set(one(1, "", "4"), always), one(2, "", "4"), set(one(3, "c", "4"), always)},
			"n3", "n0 reflector, n1 reflector; reflector n3 has no client: no node that is none itself has its label zone=c"},
		"nobody selected": {[]*datastore.Node{set(one(0, "", "4"), always), set(one(1, "", "4"), always), one(2, "", "4"), set(one(3, "", "4"), with("", "rack == 'z'"))},
			"n3", "n0 reflector, n1 reflector; reflector n3 has no client: no other node has the labels that its clients are to have: rack == 'z'"},
		"another AS": {[]*datastore.Node{set(one(0, "", "4"), always), set(one(1, "", "4"), always), one(2, "", "4"), {Metadata: datastore.Metadata{Name: "x"},
			Spec: datastore.NodeSpec{AS: 1, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.9.9/16")}}}},
			"n2", "n0 reflector, n1 reflector, x node-to-node mesh"},
	} {
		t.Run(name, func(t *testing.T) {
			p := Mesh(c.node, c.nodes, nil, reflectorConfig())
			var peers []string
			for _, peer := range p.Peers {
				peers = append(peers, peer.Name+" "+peer.Type())
			}
			slices.Sort(peers)
			got := strings.Join(append([]string{strings.Join(peers, ", ")}, p.Problems...), "; ")
			if got != c.want {
				t.Errorf("%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// TestReflectorsAreFewAndShared: those with both families come first, clients of a zone
// without willing nodes are spread over the others, and who reflects for somebody else
// alone does not stand in for its own zone.
func TestReflectorsAreFewAndShared(t *testing.T) {
	var mixed, far, lent []*datastore.Node
	for i := range 40 {
		mixed = append(mixed, one(i, "", []string{"4", "6", "4", "46"}[i%4]))
		if n := one(i, []string{"a", "b", "c", "far"}[i%4], "4"); i%4 == 3 {
			far = append(far, set(n, datastore.Reflector{Mode: datastore.ReflectorNever}))
		} else {
			far = append(far, n)
		}
		n := one(i, "", "4")
		if i < 2 {
			set(n, datastore.Reflector{Mode: datastore.ReflectorAlways, Clients: "rack == 'x'"})
		} else if i == 9 {
			n.Metadata.Labels = map[string]string{"rack": "x", datastore.ZoneLabel: "x"}
		}
		lent = append(lent, n)
	}
	if z := Arrange(mixed, reflectorConfig()).Zones(); len(z) != 1 || len(z[0].Reflectors) != 2 {
		t.Errorf("of mixed families: %+v", z)
	}
	used := map[string]int{}
	for _, z := range Arrange(far, reflectorConfig()).Zones() {
		for _, c := range z.Clients {
			for _, r := range c.Reflectors {
				if z.Name == "far" {
					used[r]++
				}
			}
		}
	}
	if len(used) < 5 {
		t.Errorf("20 sessions of a zone without reflectors go to %v", used)
	}
	for _, z := range Arrange(lent, reflectorConfig()).Zones() {
		if z.Name == "" && len(z.Reflectors) != 4 {
			t.Errorf("beside two reflectors for others: %v", z.Reflectors)
		}
	}
}
