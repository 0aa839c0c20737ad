package speaker

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestInterop has BIRD and FRR as nodes of the mesh, beside two of netctl's: the
// routes at each, packets to each, and restarts on every side.
func TestInterop(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4, IPv6: true})
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	hosts := r.lab.Hosts
	r.register(hosts[2])
	r.register(hosts[3])
	n1, n2 := r.node(hosts[0]), r.node(hosts[1])
	bird, frr := startBIRD(r, hosts[2], hosts[:2]), startFRR(r, hosts[3], hosts[:2])
	n1.block("10.65.0.0/26")
	n1.block("fd80:24e2:f998:72d6::/122")
	n1.ip("route add 169.254.1.1 dev lo scope link proto 87")
	n2.block("10.65.1.0/26")
	c1 := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")

	at := func(n *netctlNode) []string {
		routes := []string{
			"10.65.2.0/26 via 192.168.99.104 dev eth1",
			"10.65.3.0/26 via 192.168.99.105 dev eth1",
			"fd80:24e2:f998:72d6::200/122 via fd00:99::104 dev eth1",
			"fd80:24e2:f998:72d6::300/122 via fd00:99::105 dev eth1",
		}
		if n == n1 {
			return append(routes, "10.65.1.0/26 via 192.168.99.103 dev eth1")
		}
		return append(routes, "10.65.0.0/26 via 192.168.99.102 dev eth1", "fd80:24e2:f998:72d6::/122 via fd00:99::102 dev eth1")
	}
	all := func(t *testing.T) {
		t.Helper()
		r.expect(n1.host, "88", at(n1)...)
		r.expect(n2.host, "88", at(n2)...)
		for _, f := range []*foreign{bird, frr} {
			r.expect(f.host, f.proto, f.routes(
				"10.65.0.0/26 via 192.168.99.102 dev eth1", "10.65.1.0/26 via 192.168.99.103 dev eth1",
				"fd80:24e2:f998:72d6::/122 via fd00:99::102 dev eth1")...)
		}
	}
	all(t)
	// FRR's End-of-RIB comes about a second after the session.
	for _, n := range r.nodes {
		netlab.Until(t, 30*time.Second, "sessions are up", func() string { return n.settled(3) })
	}
	for _, to := range []string{"10.65.1.5", "10.65.2.1", "10.65.3.1"} {
		netlab.Must(t, c1, "ping", "-n", "-c1", "-W5", to)
	}
	for i, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		for _, c := range []struct {
			name  string
			nodes []*netctlNode
			to    string
		}{{"one", []*netctlNode{n1}, "10.65.2.1"}, {"both", []*netctlNode{n1, n2}, "10.65.3.1"}} {
			r.sub(fmt.Sprintf("%s %s", []string{"term", "kill"}[i], c.name), func(t *testing.T) {
				restart(t, r, signal, c.nodes, true, c1, c.to, 3)
				all(t)
			})
		}
	}
	r.sub("kill both without a datastore", func(t *testing.T) {
		restart(t, r, syscall.SIGKILL, []*netctlNode{n1, n2}, false, c1, "10.65.2.1", 3)
		all(t)
	})
	for _, c := range []struct {
		what string
		*foreign
		restart func()
	}{{"BIRD restarts", bird, bird.restart}, {"bgpd restarts", frr, frr.restart}, {"bgpd and zebra restart", frr, frr.reboot}} {
		r.sub(c.what, func(t *testing.T) {
			f := c.foreign
			monitors := []*monitor{r.monitor(f.host)}
			for _, n := range r.nodes {
				monitors = append(monitors, r.monitor(n.host))
			}
			to := netip.MustParseAddr(map[*foreign]string{bird: "10.65.2.1", frr: "10.65.3.1"}[f])
			flood, err := netlab.StartFlood(c1, to, 2*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			stream, err := netlab.StartStream(c1, f.host, to)
			if err != nil {
				t.Fatal(err)
			}
			c.restart()
			r.settle(3)
			f.announce("10.65.210.0/26") // comes after End-of-RIB
			for _, n := range r.nodes {
				r.expect(n.host, "88", append(at(n), fmt.Sprintf("10.65.210.0/26 via %s dev eth1", f.host.Addr.Addr()))...)
			}
			r.settle(3)
			if result := flood.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
				t.Errorf("flood: %s", result)
			}
			if result := stream.Stop(); result.Err != nil || result.Echoed == 0 {
				t.Errorf("stream: %+v", result)
			}
			for _, m := range monitors {
				if gone := m.deletions(t); len(gone) > 0 {
					t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
				}
			}
			f.withdraw("10.65.210.0/26")
			all(t)
		})
	}
	r.sub("guard", func(t *testing.T) { guarded(t, r, n1, n2, bird, at) })
	r.sub("removed", func(t *testing.T) {
		if err := datastore.Delete(r.ctx, r.store, get[*datastore.Node](t, r, bird.host.Name)); err != nil {
			t.Fatal(err)
		}
		r.expect(bird.host, bird.proto) // a Cease, although BIRD is a restart helper
		keep := slices.DeleteFunc(at(n1), func(l string) bool { return strings.Contains(l, "104") })
		r.expect(n1.host, "88", keep...)
	})
}

// guarded has a node announce what a node must not.
func guarded(t *testing.T, r *rig, n1, n2 *netctlNode, bird *foreign, at func(*netctlNode) []string) {
	n1.ip("link add lan type veth peer name lan2")
	n1.ip("addr add 10.65.99.1/24 dev lan")
	n1.ip("link set lan up")
	n1.ip("link set lan2 up")
	n1.ip("route add 172.31.0.7 dev ncc1 proto 87")
	bad := []string{"0.0.0.0/0", "172.30.0.0/26", "10.65.99.64/26", "10.65.128.0/17", "10.65.212.0/26 via 10.65.1.5", "10.65.213.0/26 via 172.31.0.7"}
	for _, p := range bad {
		bird.announce(p)
	}
	bird.announce("10.65.211.0/26")
	good := "10.65.211.0/26 via 192.168.99.104 dev eth1"
	r.expect(n1.host, "88", append(at(n1), good)...)
	// On node2 nothing is wrong with that subnet and that next hop.
	r.expect(n2.host, "88", append(at(n2), good, "10.65.99.64/26 via 192.168.99.104 dev eth1", "10.65.213.0/26 via 192.168.1.1 dev eth0 src 192.168.99.103")...)
	s, err := n1.status()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"0.0.0.0/0 from node3 (192.168.99.104): a default route",
		"10.65.128.0/17 from node3 (192.168.99.104): shorter than the /26 blocks of pool 10.65.0.0/16",
		"10.65.99.64/26 from node3 (192.168.99.104): overlaps the connected subnet 10.65.99.0/24",
		"172.30.0.0/26 from node3 (192.168.99.104): outside every pool",
		"10.65.212.0/26 from node3 (192.168.99.104): its next hop 10.65.1.5 is inside pool 10.65.0.0/16",
		"10.65.213.0/26 from node3 (192.168.99.104): its next hop 172.31.0.7 is behind the endpoint interface ncc1",
	}
	slices.Sort(s.Refused)
	slices.Sort(want)
	if !slices.Equal(s.Refused, want) {
		t.Errorf("refused %q, want %q", s.Refused, want)
	}
	// What the kernel says now decides, not what it said when the prefix came.
	n1.ip("link del lan")
	r.expect(n1.host, "88", append(at(n1), good, "10.65.99.64/26 via 192.168.99.104 dev eth1")...)
	n1.ip("link add lan type veth peer name lan2")
	n1.ip("addr add 10.65.99.1/24 dev lan")
	n1.ip("link set lan up")
	n1.ip("link set lan2 up")
	r.expect(n1.host, "88", append(at(n1), good)...)
	for _, p := range append(bad, "10.65.211.0/26") {
		bird.withdraw(p)
	}
	r.expect(n1.host, "88", at(n1)...)
}

// foreign is a node that runs somebody else's speaker. It has the blocks
// 10.65.N.0/26 and fd80:24e2:f998:72d6::N00/122, N being 2 and 3.
type foreign struct {
	host               *netlab.Host
	proto              string
	routes             func(want ...string) []string // as its `ip route` prints them
	restart, reboot    func()                        // reboot: what it has besides, too; may be nil
	announce, withdraw func(prefix string)
}

func file(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func daemon(t testing.TB, h *netlab.Host, name string, args ...string) *netlab.Process {
	t.Helper()
	p, err := h.Start(name, netlab.Cmd{Args: args})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// startBIRD: settings as in docs of BIRD 2; static routes are announced.
func startBIRD(r *rig, h *netlab.Host, peers []*netlab.Host) *foreign {
	return startReflectingBIRD(r, h, peers, nil)
}

// startReflectingBIRD has some of its peers as clients.
func startReflectingBIRD(r *rig, h *netlab.Host, peers, clients []*netlab.Host) *foreign {
	t := r.t
	netlab.Must(t, h, "ip", "addr", "add", "10.65.2.1/32", "dev", "lo")
	dir := t.TempDir()
	conf, ctl := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	extra := map[string]bool{}
	write := func() {
		var b strings.Builder
		fmt.Fprintf(&b, `
router id %[1]s;
graceful restart wait 30;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol static s4 { ipv4; route 10.65.2.0/26 blackhole;`, h.Addr.Addr())
		for p := range extra {
			fmt.Fprintf(&b, " route %s blackhole;", strings.Fields(p)[0])
		}
		b.WriteString(` }
protocol static s6 { ipv6; route fd80:24e2:f998:72d6::200/122 blackhole; }
protocol kernel k4 { persist; graceful restart on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel k6 { persist; graceful restart on; ipv6 { import none; export where source = RTS_BGP; }; }
`)
		nextHop, set := "next hop self;", ""
		for p := range extra {
			if prefix, hop, ok := strings.Cut(p, " via "); ok { // a filter's next hop yields to `next hop self`
				nextHop, set = "", set+fmt.Sprintf("if net = %s then bgp_next_hop = %s; ", prefix, hop)
			}
		}
		for i, p := range peers {
			reflect, set6 := "", ""
			if len(clients) > 0 { // own routes have the own next hop all the same
				set6 = "if source = RTS_BGP then accept;"
				nextHop, set = "", set6
			}
			if slices.Contains(clients, p) {
				reflect = "rr client;"
			}
			fmt.Fprintf(&b, `protocol bgp peer%d { %s
  local %s as 64511;
  neighbor %s as 64511;
  hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time 30;
  ipv4 { import all; export filter { %s if source != RTS_STATIC then reject; accept; }; %s };
  ipv6 { import all; export filter { %s if source != RTS_STATIC then reject; accept; }; next hop address %s; };
}
`, i, reflect, h.Addr.Addr(), p.Addr.Addr(), set, nextHop, set6, h.Addr6.Addr())
		}
		file(t, conf, b.String())
	}
	write()
	args := []string{"/usr/sbin/bird", "-f", "-c", conf, "-s", ctl, "-P", filepath.Join(dir, "pid")}
	p := daemon(t, h, "bird", args...)
	configure := func() {
		write()
		netlab.Must(t, h, "/usr/sbin/birdc", "-s", ctl, "configure")
	}
	return &foreign{
		host: h, proto: "bird",
		routes: func(want ...string) []string {
			for i, w := range want {
				want[i] = w + " metric 32"
				if strings.HasPrefix(w, "fd") {
					want[i] += " pref medium"
				}
			}
			return want
		},
		restart: func() {
			p.Kill()
			p = daemon(t, h, "bird", append(args, "-R")...)
		},
		announce: func(p string) { extra[p] = true; configure() },
		withdraw: func(p string) { delete(extra, p); configure() },
	}
}

func startFRR(r *rig, h *netlab.Host, peers []*netlab.Host) *foreign {
	return startReflectingFRR(r, h, peers, nil)
}

// startReflectingFRR has some of its peers as clients.
func startReflectingFRR(r *rig, h *netlab.Host, peers, clients []*netlab.Host) *foreign {
	t := r.t
	netlab.Must(t, h, "ip", "addr", "add", "10.65.3.1/32", "dev", "lo")
	// FRR gives up root, so the folders above must be open to it.
	dir, err := os.MkdirTemp("", fmt.Sprintf("netctl-frr-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var b strings.Builder
	fmt.Fprintf(&b, `
router bgp 64511
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
`, h.Addr.Addr())
	for _, p := range peers {
		fmt.Fprintf(&b, " neighbor %[1]s remote-as 64511\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 1\n", p.Addr.Addr())
	}
	for family, network := range map[string]string{"ipv4": "10.65.3.0/26", "ipv6": "fd80:24e2:f998:72d6::300/122"} {
		fmt.Fprintf(&b, " address-family %s unicast\n  network %s\n", family, network)
		for _, p := range peers {
			fmt.Fprintf(&b, "  neighbor %[1]s activate\n  neighbor %[1]s next-hop-self\n", p.Addr.Addr())
			if slices.Contains(clients, p) {
				fmt.Fprintf(&b, "  neighbor %s route-reflector-client\n", p.Addr.Addr())
			}
		}
		b.WriteString(" exit-address-family\n")
	}
	start, zebra := frrDaemons(t, h, dir, b.String())
	p := start()
	vtysh := func(line string) {
		netlab.Must(t, h, "vtysh", "--vty_socket", dir, "-c", "configure", "-c", "router bgp 64511", "-c", "address-family ipv4 unicast", "-c", line)
	}
	return &foreign{
		host: h, proto: "bgp",
		routes: func(want ...string) []string {
			for i, w := range want {
				want[i] = w + " metric 20"
				if strings.HasPrefix(w, "fd") {
					want[i] += " pref medium"
				}
			}
			return want
		},
		restart:  func() { p.Kill(); p = start() },
		reboot:   func() { p.Kill(); zebra(); p = start() },
		announce: func(p string) { vtysh("network " + p) },
		withdraw: func(p string) { vtysh("no network " + p) },
	}
}

// TestIPv6Only has two nodes without an IPv4 address; IPv4 goes by IPv6 next hops.
func TestIPv6Only(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 2, IPv6: true})
	r.pool("fd80:24e2:f998:72d6::/64")
	r.pool("10.65.0.0/16")
	for _, h := range r.lab.Hosts {
		netlab.Must(t, h, "ip", "addr", "flush", "dev", "eth1", "to", h.Addr.String())
	}
	n1, n2 := r.node6(r.lab.Hosts[0]), r.node6(r.lab.Hosts[1])
	n1.block("fd80:24e2:f998:72d6::/122")
	n2.block("fd80:24e2:f998:72d6::40/122")
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	d1 := n1.endpoint("d1", "10.65.0.5")
	n2.endpoint("d2", "10.65.1.5")
	c1 := n1.endpoint("c1", "fd80:24e2:f998:72d6::5")
	n2.endpoint("c2", "fd80:24e2:f998:72d6::45")
	to1 := []string{"fd80:24e2:f998:72d6::40/122 via fd00:99::103 dev eth1", "10.65.1.0/26 via inet6 fd00:99::103 dev eth1"}
	r.expect(n1.host, "88", to1...)
	r.expect(n2.host, "88", "fd80:24e2:f998:72d6::/122 via fd00:99::102 dev eth1", "10.65.0.0/26 via inet6 fd00:99::102 dev eth1")
	s, err := n1.status()
	if err != nil || len(s.Sessions) != 1 || s.Sessions[0].Peer.String() != "fd00:99::103" || !s.RouterID.Is4() {
		t.Errorf("status %+v, %v", s, err)
	}
	netlab.Must(t, c1, "ping", "-n", "-c1", "-W5", "fd80:24e2:f998:72d6::45")
	netlab.Must(t, d1, "ping", "-n", "-c1", "-W5", "10.65.1.5")
	for _, m := range []*monitor{r.monitor(n1.host), r.monitor(n2.host)} {
		defer func() {
			if gone := m.deletions(t); len(gone) > 0 {
				t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
			}
		}()
	}
	n1.proc.Kill()
	n2.proc.Kill()
	n1.up()
	n2.up()
	r.settle(1)
	r.expect(n1.host, "88", to1...)
}

// TestGateway has nodes in two subnets behind a router that knows their blocks:
// next hops resolve to the router, for two of its peers alike.
func TestGateway(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4, Subnets: 2})
	r.pool("10.65.0.0/16")
	var from *netlab.Container
	for i, h := range r.lab.Hosts {
		n := r.node(h)
		n.block(fmt.Sprintf("10.65.%d.0/26", i))
		c := n.endpoint(fmt.Sprintf("c%d", i), fmt.Sprintf("10.65.%d.5", i))
		if i == 0 {
			from = c
		}
		netlab.Must(t, r.lab.Fabric, "ip", "route", "add", fmt.Sprintf("10.65.%d.0/26", i), "via", h.Addr.Addr().String())
	}
	want := []string{"10.65.1.0/26 via 192.168.99.1 dev eth1", "10.65.2.0/26 via 192.168.99.104 dev eth1", "10.65.3.0/26 via 192.168.99.1 dev eth1"}
	n1 := r.nodes[0]
	r.expect(n1.host, "88", want...)
	r.settle(3)
	// A closer way to a next hop appears and goes.
	n1.ip("route add 192.168.100.103/32 via 192.168.99.104")
	r.expect(n1.host, "88", "10.65.1.0/26 via 192.168.99.104 dev eth1", want[1], want[2])
	n1.ip("route del 192.168.100.103/32")
	r.expect(n1.host, "88", want...)

	m := r.monitor(n1.host)
	flood, err := netlab.StartFlood(from, netip.MustParseAddr("10.65.3.5"), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	n1.proc.Kill()
	n1.up()
	r.settle(3)
	n1.block("10.65.9.0/26")
	r.expect(r.lab.Hosts[2], "88", "10.65.0.0/26 via 192.168.99.102 dev eth1", "10.65.1.0/26 via 192.168.99.1 dev eth1",
		"10.65.3.0/26 via 192.168.99.1 dev eth1", "10.65.9.0/26 via 192.168.99.102 dev eth1")
	if gone := m.deletions(t); len(gone) > 0 {
		t.Errorf("deleted routes:\n%s", strings.Join(gone, "\n"))
	}
	if result := flood.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
		t.Errorf("flood: %s", result)
	}
	r.expect(n1.host, "88", want...)
}

// frrDaemons starts zebra and bfdd, the latter if the configuration has to do with it, and
// returns what starts bgpd with a configuration, and what starts zebra again.
func frrDaemons(t testing.TB, h *netlab.Host, dir, conf string) (start func() *netlab.Process, again func()) {
	t.Helper()
	api := filepath.Join(dir, "zserv")
	file(t, filepath.Join(dir, "bgpd.conf"), conf)
	file(t, filepath.Join(dir, "zebra.conf"), "")
	netlab.Must(t, h, "chown", "-R", "frr:frr", dir)
	common := func(name string) []string {
		return []string{"/usr/lib/frr/" + name, "-f", filepath.Join(dir, name+".conf"), "-i", filepath.Join(dir, name+".pid"), "-z", api,
			"--vty_socket", dir, "-u", "frr", "-g", "frr", "-P", "0", "--log", "stdout"}
	}
	var p *netlab.Process
	zebra := func() {
		// Unless told so, zebra deletes an IPv6 route and adds it anew where it replaces an
		// IPv4 one, and removes as it starts what is left of bgpd's.
		p = daemon(t, h, "zebra", append(common("zebra"), "--v6-rr-semantics", "--graceful_restart", "60")...)
		netlab.Until(t, 20*time.Second, "zebra", func() string { _, err := os.Stat(api); return text(err) })
	}
	zebra()
	if strings.Contains(conf, " bfd") {
		file(t, filepath.Join(dir, "bfdd.conf"), "bfd\n profile lab\n  detect-multiplier 50\n  transmit-interval 100\n  receive-interval 100\n"+
			" profile fast\n  detect-multiplier 3\n  transmit-interval 100\n  receive-interval 100\n")
		ctl := filepath.Join(dir, "bfdd.sock")
		daemon(t, h, "bfdd", append(common("bfdd"), "--bfdctl", ctl)...)
		netlab.Until(t, 20*time.Second, "bfdd", func() string { _, err := os.Stat(ctl); return text(err) })
	}
	start = func() *netlab.Process { return daemon(t, h, "bgpd", common("bgpd")...) }
	return start, func() {
		p.Kill()
		_ = os.Remove(api)
		zebra()
	}
}
