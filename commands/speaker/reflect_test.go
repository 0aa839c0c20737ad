package speaker

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// shape makes the cluster's topology another one.
func (r *rig) shape(mode datastore.TopologyMode) {
	r.t.Helper()
	c, err := datastore.Get[*datastore.BGPConfig](r.ctx, r.store, datastore.DefaultName)
	if err == nil {
		c.Spec.Topology.Mode = mode
		err = datastore.Update(r.ctx, r.store, c)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// reflector says whether a host is a reflector.
func (r *rig) reflector(h *netlab.Host, mode datastore.ReflectorMode) {
	r.t.Helper()
	n, err := datastore.Get[*datastore.Node](r.ctx, r.store, h.Name)
	if err == nil {
		n.Spec.Reflector = &datastore.Reflector{Mode: mode}
		err = datastore.Update(r.ctx, r.store, n)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// settleEach waits until every node has so many sessions, up and nothing stale.
func (r *rig) settleEach(sessions map[*netctlNode]int) {
	r.t.Helper()
	netlab.Until(r.t, 40*time.Second, "every session is up and nothing is stale", func() string {
		for n, count := range sessions {
			if why := n.settled(count); why != "" {
				return why
			}
		}
		return ""
	})
}

// types are the kinds of a node's sessions, by peer.
func (n *netctlNode) types() string {
	s, err := n.status()
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, x := range s.Sessions {
		out = append(out, x.Peer.String()+" "+x.Type)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// steady checks that nothing was lost while act ran: no ping, no route of any host but
// those of without.
func steady(t *testing.T, r *rig, from *netlab.Container, to string, act func(), without ...*netlab.Host) {
	t.Helper()
	var monitors []*monitor
	for _, h := range r.lab.Hosts {
		if !slices.Contains(without, h) {
			monitors = append(monitors, r.monitor(h))
		}
	}
	flood, err := netlab.StartFlood(from, netip.MustParseAddr(to), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	act()
	answered := flood.Answered()
	netlab.Until(t, 30*time.Second, "pings", func() string {
		if flood.Answered() < answered+50 {
			return "too few"
		}
		return ""
	})
	for _, m := range monitors {
		if gone := m.deletions(t); len(gone) > 0 {
			t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
		}
	}
	if result := flood.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
		t.Errorf("flood: %s", result)
	}
}

// TestReflectors has node1 and node2 reflect for node3, node4, BIRD and FRR: routes at
// each, packets, restarts of every kind, and changes of the topology under traffic.
func TestReflectors(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 6, IPv6: true})
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	r.shape(datastore.TopologyReflectors)
	hosts := r.lab.Hosts
	for i, h := range hosts {
		r.register(h)
		r.reflector(h, []datastore.ReflectorMode{datastore.ReflectorAlways, datastore.ReflectorNever}[min(i/2, 1)])
	}
	var nodes []*netctlNode
	counts := map[*netctlNode]int{}
	for i, h := range hosts[:4] {
		n := r.run(h)
		n.block(fmt.Sprintf("10.65.1%d.0/26", i+1))
		n.block(fmt.Sprintf("fd80:24e2:f998:72d6::1%d00/122", i+1))
		nodes, counts[n] = append(nodes, n), []int{5, 5, 2, 2}[i]
	}
	rr1, rr2, n3, n4 := nodes[0], nodes[1], nodes[2], nodes[3]
	bird, frr := startBIRD(r, hosts[4], hosts[:2]), startFRR(r, hosts[5], hosts[:2])
	c3 := n3.endpoint("c3", "10.65.13.5")
	n4.endpoint("c4", "10.65.14.5")
	// at is what a host has of the others, each over its own node.
	at := func(h *netlab.Host) []string {
		routes := []string{
			"10.65.2.0/26 via 192.168.99.106 dev eth1", "fd80:24e2:f998:72d6::200/122 via fd00:99::106 dev eth1",
			"10.65.3.0/26 via 192.168.99.107 dev eth1", "fd80:24e2:f998:72d6::300/122 via fd00:99::107 dev eth1",
		}
		for i, n := range nodes {
			routes = append(routes, fmt.Sprintf("10.65.1%d.0/26 via %s dev eth1", i+1, n.host.Addr.Addr()),
				fmt.Sprintf("fd80:24e2:f998:72d6::1%d00/122 via %s dev eth1", i+1, n.host.Addr6.Addr()))
		}
		return slices.DeleteFunc(routes, func(l string) bool {
			return strings.Contains(l, " via "+h.Addr.Addr().String()+" ") || strings.Contains(l, " via "+h.Addr6.Addr().String()+" ")
		})
	}
	all := func(t *testing.T) {
		t.Helper()
		for _, n := range nodes {
			r.expect(n.host, "88", at(n.host)...)
		}
		for _, f := range []*foreign{bird, frr} {
			r.expect(f.host, f.proto, f.routes(at(f.host)...)...)
		}
	}
	all(t)
	r.settleEach(counts)
	if got, want := n3.types(), "192.168.99.102 reflector, 192.168.99.103 reflector"; got != want {
		t.Errorf("node3 has %s, want %s", got, want)
	}
	if got, want := rr1.types(), "192.168.99.103 reflector, 192.168.99.104 client, 192.168.99.105 client, 192.168.99.106 client, 192.168.99.107 client"; got != want {
		t.Errorf("node1 has %s, want %s", got, want)
	}
	for _, to := range []string{"10.65.14.5", "10.65.2.1", "10.65.3.1"} {
		netlab.Must(t, c3, "ping", "-n", "-c1", "-W5", to)
	}
	for _, n := range nodes {
		if s, err := n.status(); err != nil || len(s.Problems)+len(s.Refused) > 0 {
			t.Errorf("%s: problems %v, refused %v, %v", n.host.Name, s.Problems, s.Refused, err)
		}
	}
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		nodes  []*netctlNode
	}{
		{"term a reflector", syscall.SIGTERM, []*netctlNode{rr1}},
		{"kill both reflectors", syscall.SIGKILL, []*netctlNode{rr1, rr2}},
		{"kill a client", syscall.SIGKILL, []*netctlNode{n3}},
		{"kill all", syscall.SIGKILL, nodes},
	} {
		r.sub(c.name, func(t *testing.T) {
			steady(t, r, c3, "10.65.14.5", func() {
				for _, n := range c.nodes {
					_ = n.proc.Signal(c.signal)
				}
				for _, n := range c.nodes {
					<-n.proc.Done()
				}
				for _, n := range c.nodes {
					n.up()
				}
				r.settleEach(counts)
				n4.block("10.65.77.0/26") // comes after End-of-RIB
				for _, h := range []*netlab.Host{n3.host, bird.host, frr.host} {
					netlab.Until(t, 20*time.Second, h.Name+" learns a new block", func() string {
						if out := netlab.Must(t, h, "ip", "route", "show", "10.65.77.0/26"); !strings.Contains(out, " via 192.168.99.105") {
							return "not there: " + out
						}
						return ""
					})
				}
			})
			n4.ip("route del blackhole 10.65.77.0/26 proto 87")
			all(t)
		})
	}
	for _, f := range []*foreign{bird, frr} {
		r.sub(f.proto+" restarts", func(t *testing.T) {
			steady(t, r, c3, "10.65.14.5", func() {
				f.restart()
				r.settleEach(counts)
				all(t)
			}, f.host)
		})
	}
}

// TestTopologyMoves changes the topology under traffic between two nodes whose
// sessions are all others afterwards: no packet and no route is lost.
func TestTopologyMoves(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 6})
	r.pool("10.65.0.0/16")
	r.shape(datastore.TopologyReflectors)
	reflectors := func(list ...int) {
		for i, h := range r.lab.Hosts {
			if slices.Contains(list, i) {
				r.reflector(h, datastore.ReflectorAlways)
			}
		}
		for i, h := range r.lab.Hosts {
			if !slices.Contains(list, i) {
				r.reflector(h, datastore.ReflectorNever)
			}
		}
	}
	for _, h := range r.lab.Hosts {
		r.register(h)
	}
	reflectors(0, 1)
	for i, h := range r.lab.Hosts {
		r.run(h).block(fmt.Sprintf("10.65.%d.0/26", i))
	}
	n5, n6 := r.nodes[4], r.nodes[5]
	c5 := n5.endpoint("c5", "10.65.4.5")
	n6.endpoint("c6", "10.65.5.5")
	settled := func(counts ...int) {
		t.Helper()
		now := map[*netctlNode]int{}
		for i, n := range r.nodes {
			now[n] = counts[i]
		}
		r.settleEach(now)
		for i, n := range r.nodes {
			var want []string
			for j, o := range r.nodes {
				if i != j {
					want = append(want, fmt.Sprintf("10.65.%d.0/26 via %s dev eth1", j, o.host.Addr.Addr()))
				}
			}
			r.expect(n.host, "88", want...)
		}
	}
	settled(5, 5, 2, 2, 2, 2)
	for _, c := range []struct {
		name   string
		change func()
		counts []int
	}{
		{"other reflectors", func() { reflectors(2, 3) }, []int{2, 2, 5, 5, 2, 2}},
		{"mesh", func() { r.shape(datastore.TopologyMesh) }, []int{5, 5, 5, 5, 5, 5}},
		{"reflectors", func() { r.shape(datastore.TopologyReflectors) }, []int{2, 2, 5, 5, 2, 2}},
		{"one at a time", func() { reflectors(0, 3) }, []int{5, 2, 2, 5, 2, 2}},
		{"with the new ones dead at first", func() {
			for _, n := range r.nodes[1:3] {
				n.proc.Kill()
			}
			reflectors(1, 2)
			// Whoever would miss the old ones keeps them.
			netlab.Until(t, 20*time.Second, "node5 has the plan", func() string {
				if s, err := n5.status(); err != nil || len(s.Sessions) != 4 {
					return fmt.Sprintf("%d sessions, %v", len(s.Sessions), err)
				}
				return ""
			})
			for _, n := range r.nodes[1:3] {
				n.up()
			}
		}, []int{2, 5, 5, 2, 2, 2}},
	} {
		r.sub(c.name, func(t *testing.T) {
			steady(t, r, c5, "10.65.5.5", func() {
				c.change()
				settled(c.counts...)
			})
		})
	}
}

// TestForeignReflectors has BIRD and FRR reflect for two of ours.
func TestForeignReflectors(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4, IPv6: true})
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	r.shape(datastore.TopologyReflectors)
	hosts := r.lab.Hosts
	for i, h := range hosts {
		r.register(h)
		r.reflector(h, []datastore.ReflectorMode{datastore.ReflectorNever, datastore.ReflectorAlways}[i/2])
	}
	n1, n2 := r.run(hosts[0]), r.run(hosts[1])
	both := hosts[:2]
	bird := startReflectingBIRD(r, hosts[2], []*netlab.Host{hosts[0], hosts[1], hosts[3]}, both)
	frr := startReflectingFRR(r, hosts[3], []*netlab.Host{hosts[0], hosts[1], hosts[2]}, both)
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	n2.block("fd80:24e2:f998:72d6::40/122")
	c1 := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")
	want := []string{
		"10.65.1.0/26 via 192.168.99.103 dev eth1", "fd80:24e2:f998:72d6::40/122 via fd00:99::103 dev eth1",
		"10.65.2.0/26 via 192.168.99.104 dev eth1", "10.65.3.0/26 via 192.168.99.105 dev eth1",
		"fd80:24e2:f998:72d6::200/122 via fd00:99::104 dev eth1", "fd80:24e2:f998:72d6::300/122 via fd00:99::105 dev eth1",
	}
	r.expect(n1.host, "88", want...)
	r.settle(2)
	netlab.Must(t, c1, "ping", "-n", "-c1", "-W5", "10.65.1.5")
	if s, err := n1.status(); err != nil || len(s.Problems)+len(s.Refused) > 0 {
		t.Errorf("problems %v, refused %v, %v", s.Problems, s.Refused, err)
	}
	for _, c := range []struct {
		name string
		act  func()
	}{
		{"ours restarts", func() { n1.proc.Kill(); n1.up() }},
		{"BIRD restarts", bird.restart},
		{"FRR restarts", frr.restart},
	} {
		r.sub(c.name, func(t *testing.T) {
			steady(t, r, c1, "10.65.1.5", func() {
				c.act()
				r.settle(2)
				r.expect(n1.host, "88", want...)
			}, bird.host, frr.host)
		})
	}
	r.sub("withdrawal", func(t *testing.T) {
		n2.ip("route del blackhole 10.65.1.0/26 proto 87")
		// The endpoint is announced by itself now.
		r.expect(n1.host, "88", append([]string{"10.65.1.5 via 192.168.99.103 dev eth1"}, want[1:]...)...)
	})
}

// TestBareReflector is the role on two machines without an agent: the nodes have routes
// through them, they have none, and one that dies or restarts costs nothing. With an
// agent it is the machine's speaker.
func TestBareReflector(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4})
	r.pool("10.65.0.0/16")
	r.shape(datastore.TopologyReflectors)
	hosts := r.lab.Hosts
	var bares []*netctlNode
	for i, h := range hosts {
		r.register(h)
		if i < 2 {
			r.reflector(h, datastore.ReflectorNever)
			continue
		}
		r.reflector(h, datastore.ReflectorAlways)
		n := get[*datastore.Node](t, r, h.Name)
		n.Status.Host = "" // a person registered it
		if err := datastore.Update(r.ctx, r.store, n); err != nil {
			t.Fatal(err)
		}
		bare := &netctlNode{rig: r, host: h, boot: filepath.Join(r.dir, h.Name+".boot")}
		bare.reboot("first")
		bare.cfg = Config{
			Store: r.options(), Node: h.Name, StateDir: filepath.Join(r.dir, h.Name), RunDir: filepath.Join(r.dir, h.Name),
			Version: "test", BootFile: bare.boot, Reflector: true,
		}
		bare.up()
		bares = append(bares, bare)
	}
	n1, n2 := r.run(hosts[0]), r.run(hosts[1])
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	c1 := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")
	to1 := "10.65.1.0/26 via 192.168.99.103 dev eth1"
	r.expect(n1.host, "88", to1)
	counts := map[*netctlNode]int{n1: 2, n2: 2, bares[0]: 3, bares[1]: 3}
	r.settleEach(counts)
	for _, b := range bares {
		r.expect(b.host, "88")
		if s, err := b.status(); err != nil || !s.Bare || len(s.Problems) > 0 {
			t.Errorf("%s: %+v, %v", b.host.Name, s, err)
		}
	}
	restarted := func(boot string) {
		for _, b := range bares {
			b.proc.Kill()
		}
		for _, b := range bares {
			b.reboot(boot)
			b.up()
		}
		r.settleEach(counts)
		r.expect(n1.host, "88", to1)
	}
	r.sub("both killed", func(t *testing.T) { steady(t, r, c1, "10.65.1.5", func() { restarted("first") }) })
	r.sub("both rebooted", func(t *testing.T) { steady(t, r, c1, "10.65.1.5", func() { restarted("second") }) })
	r.sub("without a datastore", func(t *testing.T) {
		r.etcd.Kill()
		steady(t, r, c1, "10.65.1.5", func() { restarted("second") })
		r.startStore()
	})
	r.sub("an agent comes", func(t *testing.T) {
		b := bares[0]
		b.block("10.65.2.0/26")
		<-b.proc.Done()
		if out := b.proc.Output(); !strings.Contains(out, errEndpoints.Error()) {
			t.Fatalf("ended with %s", out)
		}
		b.up()
		r.expect(n1.host, "88", to1, "10.65.2.0/26 via 192.168.99.104 dev eth1")
		r.expect(b.host, "88", "10.65.0.0/26 via 192.168.99.102 dev eth1", to1)
		if s, err := b.status(); err != nil || s.Bare {
			t.Errorf("%+v, %v", s, err)
		}
	})
}
