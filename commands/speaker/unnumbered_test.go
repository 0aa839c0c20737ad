package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// cable connects two hosts by a link of two without addresses, and returns the link-local
// ones of both ends. n tells the cables of a host apart.
func cable(t testing.TB, n int, a *netlab.Host, linkA string, b *netlab.Host, linkB string) (addrA, addrB string) {
	t.Helper()
	netlab.Must(t, a, "ip", "link", "add", linkA, "address", fmt.Sprintf("02:00:00:00:01:%02x", n),
		"type", "veth", "peer", "name", linkB, "address", fmt.Sprintf("02:00:00:00:02:%02x", n), "netns", strconv.Itoa(b.PID))
	for h, link := range map[*netlab.Host]string{a: linkA, b: linkB} {
		netlab.Must(t, h, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/"+link+"/accept_dad; ip link set "+link+" up")
	}
	return fmt.Sprintf("fe80::ff:fe00:1%02x", n), fmt.Sprintf("fe80::ff:fe00:2%02x", n)
}

// atLink is a peer of an interface as a leaf has its spine.
func atLink(link string, change func(*datastore.PeerSpec)) *datastore.Peer {
	p := &datastore.Peer{Spec: datastore.PeerSpec{Interface: link, RemoteAS: datastore.RemoteExternal,
		Accept: []string{datastore.AcceptDefault, datastore.AcceptForeign, datastore.AcceptBlocks}}}
	if change != nil {
		change(&p.Spec)
	}
	p.SetDefaults()
	return p
}

// unnumberedFRR is FRR with `neighbor LINK interface remote-as external` at each link, and
// networks of its own.
func unnumberedFRR(t testing.TB, h *netlab.Host, as int, links []string, networks []string, more string) (restart func() *netlab.Process) {
	t.Helper()
	dir, err := os.MkdirTemp("", fmt.Sprintf("netctl-frr-%d-", os.Getpid())) // FRR gives up root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, err := h.Exec(context.Background(), netlab.Cmd{Args: []string{"vtysh", "--vty_socket", dir, "-c", "show bgp neighbors", "-c", "show interface"}})
			t.Log(err)
			t.Logf("--- FRR on %s ---\n%s", h.Name, out)
		}
		_ = os.RemoveAll(dir)
	})
	netlab.Must(t, h, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	var b strings.Builder
	fmt.Fprintf(&b, `
router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp bestpath as-path multipath-relax
`, as, h.Addr.Addr())
	for _, l := range links {
		fmt.Fprintf(&b, " neighbor %[1]s interface remote-as external\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 1\n%[2]s", l, strings.ReplaceAll(more, "LINK", l))
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&b, " address-family %s unicast\n", family)
		for _, n := range networks {
			if strings.Contains(n, ":") == (family == "ipv6") {
				fmt.Fprintf(&b, "  network %s\n", n)
			}
		}
		for _, l := range links {
			fmt.Fprintf(&b, "  neighbor %s activate\n", l)
		}
		b.WriteString(" exit-address-family\n")
	}
	start, _ := frrDaemons(t, h, dir, b.String())
	return start
}

// unnumberedBIRD is BIRD at a link, which needs this side's address, and says its own by
// the protocol radv.
func unnumberedBIRD(t testing.TB, h *netlab.Host, as int, link, own, theirs string, networks []string) (restart func() *netlab.Process) {
	t.Helper()
	netlab.Must(t, h, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	dir := t.TempDir()
	conf := filepath.Join(dir, "bird.conf")
	routes := map[bool]string{}
	for _, n := range networks {
		routes[strings.Contains(n, ":")] += " route " + n + " blackhole;"
	}
	file(t, conf, fmt.Sprintf(`router id %s;
graceful restart wait 30;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; interface "%[2]s"; }
protocol static { ipv4;%[5]s }
protocol static { ipv6;%[6]s }
protocol kernel { persist; graceful restart on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel { persist; graceful restart on; ipv6 { import none; export where source = RTS_BGP; }; }
protocol radv { interface "%[2]s" { min ra interval 3; max ra interval 4; default lifetime 0; }; }
protocol bgp leaf {
  local %[3]s as %[7]d; neighbor %[4]s as 64511; interface "%[2]s"; direct; ttl security on; passive on;
  hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time 30;
  ipv4 { import all; export where source = RTS_STATIC; extended next hop on; };
  ipv6 { import all; export where source = RTS_STATIC; };
}
`, h.Addr.Addr(), link, own, theirs, routes[false], routes[true], as))
	args := []string{"/usr/sbin/bird", "-f", "-c", conf, "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid")}
	return func() *netlab.Process {
		p := daemon(t, h, "bird", args...)
		if args[len(args)-1] != "-R" {
			args = append(args, "-R")
		}
		return p
	}
}

// TestUnnumbered has FRR and BIRD at the other ends of links without addresses: what each
// learns, both families, packets, restarts of either side without a loss, and a link down
// and up. This side dials: that both do at once is the leaves' and spines'.
func TestUnnumbered(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 3})
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	hosts := r.lab.Hosts
	here1, frrAddr := cable(t, 1, hosts[0], "up1", hosts[1], "swp1")
	here2, birdAddr := cable(t, 2, hosts[0], "up2", hosts[2], "swp1")
	n := r.node(hosts[0])
	startFRR := unnumberedFRR(t, hosts[1], 65101, []string{"swp1"}, []string{"172.20.0.0/16", "fd77::/64"}, " neighbor LINK ttl-security hops 1\n neighbor LINK passive\n")
	startBIRD := unnumberedBIRD(t, hosts[2], 4200000001, "swp1", birdAddr, here2, []string{"172.21.0.0/16", "fd78::/64"})
	frr, bird := startFRR(), startBIRD()
	for i, lo := range []string{"172.20.0.1/32", "fd77::1/128", "172.21.0.1/32", "fd78::1/128"} {
		netlab.Must(t, hosts[1+i/2], "ip", "addr", "add", lo, "dev", "lo")
	}
	r.create(atLink("up*", func(s *datastore.PeerSpec) { s.TTLSecurity = 1 }))
	n.block("10.65.0.0/26")
	n.block("fd80:24e2:f998:72d6::/122")
	c, c6 := n.endpoint("c", "10.65.0.5"), n.endpoint("c6", "fd80:24e2:f998:72d6::5")
	toFRR := []string{"172.20.0.0/16 via inet6 " + frrAddr + " dev up1", "fd77::/64 via " + frrAddr + " dev up1"}
	toBIRD := []string{"172.21.0.0/16 via inet6 " + birdAddr + " dev up2", "fd78::/64 via " + birdAddr + " dev up2"}
	all := func() {
		r.t.Helper()
		r.expect(n.host, "88", append(slices.Clone(toFRR), toBIRD...)...)
		r.expect(hosts[1], "bgp", "10.65.0.0/26 via inet6 "+here1+" dev swp1 metric 20", "fd80:24e2:f998:72d6::/122 via "+here1+" dev swp1 metric 20 pref medium")
		r.expect(hosts[2], "bird", "10.65.0.0/26 via inet6 "+here2+" dev swp1 metric 32", "fd80:24e2:f998:72d6::/122 via "+here2+" dev swp1 metric 32 pref medium")
		r.settle(2)
	}
	pings := func() {
		r.t.Helper()
		for _, to := range []string{"172.20.0.1", "172.21.0.1"} {
			netlab.Must(r.t, c, "ping", "-n", "-c1", "-W5", to)
		}
		for _, to := range []string{"fd77::1", "fd78::1"} {
			netlab.Must(r.t, c6, "ping", "-n", "-c1", "-W5", to)
		}
	}
	all()
	pings()
	s, err := n.status()
	if err != nil || s.Sessions[0].Name() != "up1" || s.Sessions[0].Peer != netip.MustParseAddr(frrAddr+"%up1") || s.Sessions[1].Name() != "up2" {
		t.Errorf("status %+v, %v", s, err)
	}
	// lossless has a side restart: the routes of this node stay, and those of who does not
	// restart; packets to an address of the other side are answered.
	lossless := func(what, to string, at netlab.Place, stay []*netlab.Host, restart func(t *testing.T)) {
		r.sub(what, func(t *testing.T) {
			var monitors []*monitor
			for _, h := range append(stay, n.host) {
				monitors = append(monitors, r.monitor(h))
			}
			flood, err := netlab.StartFlood(c, netip.MustParseAddr(to), 2*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			stream, err := netlab.StartStream(c, at, netip.MustParseAddr(to))
			if err != nil {
				t.Fatal(err)
			}
			restart(t)
			all()
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
		})
	}
	again := func(t *testing.T, peer string, p **netlab.Process, start func() *netlab.Process) {
		before := n.ups(t, peer)
		(*p).Kill()
		*p = start()
		netlab.Until(t, 20*time.Second, "a new session", func() string {
			if n.ups(t, peer) == before {
				return "none yet"
			}
			return ""
		})
	}
	lossless("the speaker restarts", "172.20.0.1", hosts[1], hosts[1:], func(*testing.T) {
		_ = n.proc.Signal(syscall.SIGKILL)
		<-n.proc.Done()
		n.up()
	})
	lossless("FRR restarts", "172.20.0.1", hosts[1], hosts[1:], func(t *testing.T) { again(t, "up1", &frr, startFRR) })
	lossless("BIRD restarts", "172.21.0.1", hosts[2], hosts[2:], func(t *testing.T) { again(t, "up2", &bird, startBIRD) })
	r.sub("a link goes down and up", func(t *testing.T) {
		netlab.Must(t, hosts[1], "ip", "link", "set", "swp1", "down")
		r.expect(n.host, "88", toBIRD...)
		netlab.Until(t, 10*time.Second, "status says why", func() string {
			s, err := n.status()
			if err != nil || !slices.ContainsFunc(s.Sessions, func(x control.Session) bool { return x.Name() == "up1" && x.Reason == "interface up1 is down" }) {
				return fmt.Sprintf("%+v, %v", s.Sessions, err)
			}
			return ""
		})
		if s, err := control.NewSpeakerClient(filepath.Join(n.cfg.RunDir, "speaker.sock")).BGPSession(r.ctx, "up1", false); err != nil || s.Name != "up" || s.Reason != "interface up1 is down" {
			t.Errorf("session %+v, %v", s, err)
		}
		netlab.Must(t, hosts[1], "ip", "link", "set", "swp1", "up")
		all()
		pings()
	})
}

// ups is how often the session with a peer came up.
func (n *netctlNode) ups(t testing.TB, peer string) int {
	t.Helper()
	s, err := control.NewSpeakerClient(filepath.Join(n.cfg.RunDir, "speaker.sock")).BGPSession(n.rig.ctx, peer, false)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Heard, "ipv6 next hops of ipv4") {
		return 0
	}
	return s.Established
}
