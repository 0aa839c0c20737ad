package speaker

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestFabric has no mesh: each node is an AS of its own, one of them by localAS, behind a
// spine (BIRD) that carries the blocks.
func TestFabric(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 3})
	r.pool("10.65.0.0/16")
	mesh := false
	if _, err := datastore.Modify(r.ctx, r.store, datastore.DefaultName, func(c *datastore.BGPConfig) error { c.Spec.Mesh = &mesh; return nil }); err != nil {
		t.Fatal(err)
	}
	hosts := r.lab.Hosts
	n1, n2 := r.node(hosts[0]), r.node(hosts[1])
	spine := hosts[2]
	netlab.Must(t, spine, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	dir := t.TempDir()
	conf, ctl := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	var b strings.Builder
	fmt.Fprintf(&b, "router id %s;\nprotocol device { scan time 1; }\nprotocol kernel k4 { ipv4 { import none; export where source = RTS_BGP; }; }\n", spine.Addr.Addr())
	for i, as := range []uint32{65101, 4200065102} {
		fmt.Fprintf(&b, "protocol bgp n%d { local %s as 65000; neighbor %s as %d; connect delay time 1; ipv4 { import all; export all; next hop self; }; }\n",
			i, spine.Addr.Addr(), hosts[i].Addr.Addr(), as)
	}
	file(t, conf, b.String())
	daemon(t, spine, "bird", "/usr/sbin/bird", "-f", "-c", conf, "-s", ctl, "-P", filepath.Join(dir, "pid"))
	if _, err := datastore.Modify(r.ctx, r.store, n1.host.Name, func(n *datastore.Node) error { n.Spec.AS = 65101; return nil }); err != nil {
		t.Fatal(err)
	}
	accept := []string{datastore.AcceptDefault, datastore.AcceptForeign, datastore.AcceptBlocks}
	for _, p := range []*datastore.Peer{
		{Metadata: datastore.Metadata{Name: "spine-1"}, Spec: datastore.PeerSpec{Address: spine.Addr.Addr(), AS: 65000, Node: n1.host.Name, Accept: accept}},
		{Metadata: datastore.Metadata{Name: "spine-2"}, Spec: datastore.PeerSpec{Address: spine.Addr.Addr(), AS: 65000, Node: n2.host.Name, Accept: accept, LocalAS: 4200065102}},
	} {
		r.create(p)
	}
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	from := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")
	via := " via " + spine.Addr.Addr().String() + " dev eth1"
	r.expect(n1.host, "88", "10.65.1.0/26"+via)
	r.expect(n2.host, "88", "10.65.0.0/26"+via)
	netlab.Must(t, from, "ping", "-n", "-c1", "-W5", "10.65.1.5")
	answer, err := control.NewSpeakerClient(filepath.Join(n1.cfg.RunDir, "speaker.sock")).BGPRoutes(r.ctx, control.BGPQuery{Covers: netip.MustParseAddr("10.65.1.5")})
	if err != nil || len(answer.Paths) != 1 || answer.Paths[0].ASPath != "65000 4200065102" {
		t.Errorf("%+v, %v", answer, err)
	}
}

// TestSpines has two spines (BIRD) announce the same routes to a leaf. They are one route
// each to both; when a spine dies its routes are moved by the object that they name, and
// so they are when it is back, and a restarted speaker goes on with that object.
func TestSpines(t *testing.T) {
	const routes = 5000
	r := newRig(t, netlab.Options{Nodes: 3})
	leaf := r.node(r.lab.Hosts[0])
	var vias []string
	start := map[int]func() *netlab.Process{}
	spines := map[int]*netlab.Process{}
	for i, spine := range r.lab.Hosts[1:] {
		dir := t.TempDir()
		conf := filepath.Join(dir, "bird.conf")
		var b strings.Builder
		fmt.Fprintf(&b, `router id %[1]s;
protocol device { }
protocol bgp leaf { local %[1]s as %[2]d; neighbor %[3]s as 64511; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart off; ipv4 { import none; export all; next hop self; }; }
protocol static { ipv4;
`, spine.Addr.Addr(), 65001+i, leaf.host.Addr.Addr())
		a := netip.MustParseAddr("20.0.0.0")
		for range routes {
			fmt.Fprintf(&b, "route %s/32 blackhole;\n", a)
			a = a.Next()
		}
		file(t, conf, b.String()+"}\n")
		start[i] = func() *netlab.Process {
			return daemon(t, spine, "bird", "/usr/sbin/bird", "-f", "-c", conf, "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid"))
		}
		spines[i] = start[i]()
		vias = append(vias, "nexthop via "+spine.Addr.Addr().String()+" dev eth1 weight 1")
		r.create(&datastore.Peer{Metadata: datastore.Metadata{Name: fmt.Sprint("spine-", i)}, Spec: datastore.PeerSpec{Address: spine.Addr.Addr(), AS: 65001 + uint32(i)}})
	}
	// objects are what each route names.
	objects := func() map[string]string {
		out := netlab.Must(t, leaf.host, "ip", "-o", "route", "show", "proto", "88")
		named := map[string]string{}
		for _, line := range strings.Split(out, "\n") {
			if f := strings.Fields(line); len(f) > 2 && f[1] == "nhid" {
				named[f[0]] = f[2]
			}
		}
		return named
	}
	through := func(what string, want ...string) {
		t.Helper()
		netlab.Until(t, 20*time.Second, what, func() string {
			out := netlab.Must(t, leaf.host, "ip", "route", "show", "20.0.0.77")
			for _, via := range vias {
				hop := strings.TrimPrefix(strings.TrimSuffix(via, " weight 1"), "nexthop ")
				if strings.Contains(out, hop) != strings.Contains(strings.Join(want, "\n"), via) {
					return out
				}
			}
			if len(objects()) != routes {
				return netlab.Must(t, leaf.host, "sh", "-c", "ip nexthop; ip route show proto 88 | head -3")
			}
			return ""
		})
	}
	through("every route goes to both spines", vias...)
	before := objects()
	spines[0].Kill()
	through("to the other one", vias[1])
	moved := 0
	for route, id := range objects() {
		if id != before[route] {
			moved++
		}
	}
	if moved > 64 {
		t.Errorf("%d routes name another object after a spine died", moved)
	}
	start[0]()
	through("to both again", vias...)
	leaf.proc.Kill()
	<-leaf.proc.Done()
	leaf.up()
	netlab.Until(t, 20*time.Second, "nothing is stale", func() string {
		s, err := leaf.status()
		if err != nil || len(s.Sessions) != 2 {
			return fmt.Sprint(s, err)
		}
		for _, x := range s.Sessions {
			if x.State != "Established" || x.Stale > 0 || x.Accepted != routes {
				return fmt.Sprintf("%+v", x)
			}
		}
		return ""
	})
	through("to both after a restart", vias...)
	if out := netlab.Must(t, leaf.host, "ip", "nexthop"); strings.Count(out, "\n") > 12 {
		t.Errorf("objects are left:\n%s", out)
	}
}

// TestTable has a node's routes go to a table of their own and back to the main one, the
// speaker's and then the agent's, as the configuration says at each start: not a packet
// is lost, and what the node announces stays announced.
func TestTable(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 2})
	r.pool("10.65.0.0/16")
	n1, n2 := r.node(r.lab.Hosts[0]), r.node(r.lab.Hosts[1])
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	from := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")
	via := "10.65.1.0/26 via " + n2.host.Addr.Addr().String() + " dev eth1"
	r.expect(n1.host, "88", via)
	netlab.Must(t, from, "ping", "-n", "-c1", "-W5", "10.65.1.5")
	flood, err := netlab.StartFlood(from, netip.MustParseAddr("10.65.1.5"), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	gone := r.monitor(n2.host)
	n1.ip("rule add priority 8700 lookup 1000 suppress_prefixlength 0 protocol 87") // as the agent does
	for i, table := range []int{1000, 0} {
		n1.proc.Kill()
		<-n1.proc.Done()
		n1.cfg.Table = table
		n1.up()
		r.settle(1)
		netlab.Until(t, 20*time.Second, fmt.Sprint("the route is in table ", table), func() string {
			number := cmp.Or(table, 254)
			out := n1.ip("route show table all proto 88")
			if in := n1.ip(fmt.Sprintf("route show table %d proto 88", number)); !strings.Contains(in, via) || strings.Count(out, "\n") != 1 {
				return out
			}
			return ""
		})
		if rules := n1.ip("rule"); (table != 0) != strings.Contains(rules, "8800:") {
			t.Errorf("with table %d the rules are\n%s", table, rules)
		}
		// The agent's, as Gather has them go.
		to, was := "1000", "254"
		if table == 0 {
			to, was = was, to
		}
		n1.ip("route add 10.65.0.5 dev ncc1 proto 87 table " + to)
		n1.ip("route add blackhole 10.65.0.0/26 proto 87 table " + to)
		n1.ip("route del blackhole 10.65.0.0/26 table " + was)
		n1.ip("route del 10.65.0.5 table " + was)
		// All that came before is heard of once this is.
		more := fmt.Sprintf("10.65.%d.0/26", 10+i)
		n1.ip("route add blackhole " + more + " proto 87 table " + to)
		netlab.Until(t, 20*time.Second, "the other node hears of one more block", func() string {
			if out := n2.ip("route show proto 88"); !strings.Contains(out, more) {
				return out
			}
			return ""
		})
	}
	if result := flood.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
		t.Errorf("flood: %s", result)
	}
	if lost := gone.deletions(t); len(lost) > 0 {
		t.Errorf("the other node lost %q", lost)
	}
}

// TestDrain drains a node that others are reached through: n1 tells a switch of all nodes'
// blocks, as n2 does, and the switch's way to n3 is n1. Not a packet between the others is
// lost, when it is drained and when it is taken into use again.
func TestDrain(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4})
	r.pool("10.65.0.0/16")
	hosts := r.lab.Hosts
	n1, n2, n3 := r.node(hosts[0]), r.node(hosts[1]), r.node(hosts[2])
	bird := startTorBIRD(r, hosts[3], 65001, hosts[:2])
	secret := filepath.Join(r.dir, "secret")
	if err := os.WriteFile(secret, []byte(torSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*netctlNode{n1, n2} {
		p := bird.peer(func(s *datastore.PeerSpec) { s.Node, s.Announce = n.host.Name, datastore.AnnounceAll }, secret)
		p.Metadata.Name = "tor-" + n.host.Name
		r.create(p)
	}
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	n3.block("10.65.2.0/26")
	from := n2.endpoint("c2", "10.65.1.5")
	n3.endpoint("c3", "10.65.2.5")
	mesh := func(n *netctlNode, blocks ...string) []string {
		var lines []string
		for i, b := range blocks {
			if b != "" && r.nodes[i] != n {
				lines = append(lines, fmt.Sprintf("%s via %s dev eth1", b, r.nodes[i].host.Addr.Addr()))
			}
		}
		return lines
	}
	all := []string{"10.65.0.0/26", "10.65.1.0/26", "10.65.2.0/26"}
	r.expect(n3.host, "88", mesh(n3, all...)...)
	told := func(preferred string) {
		t.Helper()
		netlab.Until(t, 20*time.Second, "the switch goes through "+preferred, func() string {
			if out := netlab.Must(t, bird.host, "ip", "route", "show", "10.65.2.0/26"); !strings.Contains(out, "via "+preferred+" ") {
				return out + bird.sessions()
			}
			return ""
		})
	}
	told(hosts[0].Addr.Addr().String()) // the lower router ID of two equal ones
	flood, err := netlab.StartFlood(from, netip.MustParseAddr("10.65.2.5"), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	switched, err := netlab.StartFlood(bird.host, netip.MustParseAddr("10.65.2.5"), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	set := func(d *datastore.Drain) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, n1.host.Name, func(n *datastore.Node) error { n.Spec.Drain = d; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	set(&datastore.Drain{Reason: "new disks"})
	told(hosts[1].Addr.Addr().String())
	set(&datastore.Drain{Reason: "new disks", Shutdown: true})
	r.expect(n3.host, "88", mesh(n3, "", all[1], all[2])...)
	r.expect(n1.host, "88")
	for _, n := range r.nodes {
		s, err := n.status()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range s.Sessions {
			gone := n == n1 || x.Peer == n1.host.Addr.Addr()
			if x.Off != gone || gone && x.Reason != "shut down: drained: new disks" {
				t.Errorf("%s: %+v", n.host.Name, x)
			}
		}
	}
	set(nil)
	r.expect(n3.host, "88", mesh(n3, all...)...)
	told(hosts[0].Addr.Addr().String())
	for _, f := range []*netlab.Flood{flood, switched} {
		if result := f.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
			t.Errorf("flood: %s", result)
		}
	}
}
