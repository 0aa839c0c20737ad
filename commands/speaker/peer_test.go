package speaker

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// tor is a router of another network: BIRD or FRR, of an AS of its own, with MD5 and
// GTSM towards every node. It announces the default route, a network of its own, and what
// it must not.
type tor struct {
	*foreign
	as       uint32
	lo       string // an address of its own
	sessions func() string
	set      func(lines ...string) // of FRR's configuration
	quit     func()
}

const torSecret = "between-racks"

// torRoutes are what a tor announces beside its own network.
var torRoutes = []string{"0.0.0.0/0", "10.65.0.0/16", "10.65.77.0/26", "192.168.99.128/25", "172.20.0.0/16"}

func (x *tor) peer(change func(*datastore.PeerSpec), password string) *datastore.Peer {
	p := &datastore.Peer{Metadata: datastore.Metadata{Name: x.proto}, Spec: datastore.PeerSpec{
		Address: x.host.Addr.Addr(), AS: x.as, TTLSecurity: 1, Password: &datastore.PeerPassword{File: password}, Description: "a rack's switch",
	}}
	if change != nil {
		change(&p.Spec)
	}
	p.SetDefaults()
	return p
}

// startTorBIRD: more are lines of every session, and behind the first one of all.
func startTorBIRD(r *rig, h *netlab.Host, as uint32, nodes []*netlab.Host, more ...string) *tor {
	t := r.t
	lo := "172.31.2.1"
	netlab.Must(t, h, "ip", "addr", "add", lo+"/32", "dev", "lo")
	netlab.Must(t, h, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	dir := t.TempDir()
	conf, ctl := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	var b strings.Builder
	fmt.Fprintf(&b, "router id %s;\ngraceful restart wait 30;\nprotocol device { scan time 1; }\nprotocol static s4 { ipv4; route 172.31.2.0/24 blackhole;", h.Addr.Addr())
	for _, p := range append(torRoutes, "198.51.100.9/32") {
		fmt.Fprintf(&b, " route %s blackhole;", p)
	}
	watched := len(more) > 1
	more = append(more, "", "")
	b.WriteString(" }\n" + strings.Join(more[1:], "\n") + "\nprotocol kernel k4 { persist; graceful restart on; ipv4 { import none; export where source = RTS_BGP; }; }\n")
	for i, n := range nodes {
		fmt.Fprintf(&b, `protocol bgp peer%d {
  local %s as %d; neighbor %s as 64511;
  password "%s"; ttl security on; %s
  hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time 30;
  ipv4 { import filter { if (65535, 0) ~ bgp_community then bgp_local_pref = 0; accept; }; next hop self; export filter {
    if source != RTS_STATIC then reject;
    if net = 198.51.100.9/32 then bgp_community.add((65535, 666));
    accept;
  }; };
}
`, i, h.Addr.Addr(), as, n.Addr.Addr(), torSecret, more[0])
	}
	file(t, conf, b.String())
	args := []string{"/usr/sbin/bird", "-f", "-c", conf, "-s", ctl, "-P", filepath.Join(dir, "pid")}
	p := daemon(t, h, "bird", args...)
	return &tor{as: as, lo: lo, foreign: &foreign{host: h, proto: "bird", routes: func(want ...string) []string { return torLines(32, want) },
		restart: func() { p.Kill(); p = daemon(t, h, "bird", append(args, "-R")...) }},
		sessions: func() string {
			out := netlab.Must(t, h, "/usr/sbin/birdc", "-s", ctl, "show protocols all") + netlab.Must(t, h, "/usr/sbin/birdc", "-s", ctl, "show route all")
			if watched {
				out += netlab.Must(t, h, "/usr/sbin/birdc", "-s", ctl, "show bfd sessions")
			}
			return out
		},
		quit: func() { p.Kill() }}
}

// startTorFRR: more are settings of every neighbour, in place of GTSM.
func startTorFRR(r *rig, h *netlab.Host, as uint32, nodes []*netlab.Host, more ...string) *tor {
	t := r.t
	lo := "172.31.3.1"
	netlab.Must(t, h, "ip", "addr", "add", lo+"/32", "dev", "lo")
	netlab.Must(t, h, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	dir, err := os.MkdirTemp("", fmt.Sprintf("netctl-frr-%d-", os.Getpid())) // FRR gives up root
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if len(more) == 0 {
		more = []string{"ttl-security hops 1"}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `
router bgp %d
 bgp router-id %s
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
`, as, h.Addr.Addr())
	for _, n := range nodes {
		fmt.Fprintf(&b, " neighbor %[1]s remote-as 64511\n neighbor %[1]s password %[2]s\n"+
			" neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 1\n", n.Addr.Addr(), torSecret)
		for _, m := range more {
			fmt.Fprintf(&b, " neighbor %s %s\n", n.Addr.Addr(), m)
		}
	}
	b.WriteString(" address-family ipv4 unicast\n  network 172.31.3.0/24\n")
	for _, p := range torRoutes {
		fmt.Fprintf(&b, "  network %s\n", p)
	}
	for _, n := range nodes {
		fmt.Fprintf(&b, "  neighbor %[1]s activate\n  neighbor %[1]s next-hop-self\n", n.Addr.Addr())
	}
	b.WriteString(" exit-address-family\n")
	start, _ := frrDaemons(t, h, dir, b.String())
	p := start()
	return &tor{as: as, lo: lo, foreign: &foreign{host: h, proto: "bgp", routes: func(want ...string) []string { return torLines(20, want) },
		restart: func() { p.Kill(); p = start() }},
		sessions: func() string {
			return netlab.Must(t, h, "vtysh", "--vty_socket", dir, "-c", "show bgp neighbors")
		},
		set: func(lines ...string) {
			args := []string{"vtysh", "--vty_socket", dir, "-c", "configure"}
			for _, l := range lines {
				args = append(args, "-c", l)
			}
			netlab.Until(t, 20*time.Second, "bgpd takes "+lines[len(lines)-1], func() string {
				if out, err := netlab.Try(t, h, args...); err != nil {
					return out + err.Error()
				}
				return ""
			})
		},
		quit: func() { p.Kill() }}
}

func torLines(metric int, want []string) []string {
	for i, w := range want {
		want[i] = fmt.Sprintf("%s metric %d", w, metric)
	}
	return want
}

// TestToR has BIRD and FRR as top of rack: eBGP with four-byte AS numbers, MD5 and GTSM.
// What goes each way, packets, restarts of either side without a loss, and what an
// operator changes in a running session.
func TestToR(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4})
	r.pool("10.65.0.0/16")
	hosts := r.lab.Hosts
	n1, n2 := r.node(hosts[0]), r.node(hosts[1])
	bird := startTorBIRD(r, hosts[2], 4200000001, hosts[:2])
	frr := startTorFRR(r, hosts[3], 65002, hosts[:2])
	tors := []*tor{bird, frr}
	secret := filepath.Join(r.dir, "secret")
	if err := os.WriteFile(secret, []byte(torSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range tors {
		r.create(x.peer(nil, secret))
	}
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	c1 := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")
	n1.endpoint("c3", "10.65.9.7") // borrowed

	both := " nexthop via 192.168.99.104 dev eth1 weight 1 nexthop via 192.168.99.105 dev eth1 weight 1"
	from := []string{"172.31.2.0/24 via 192.168.99.104 dev eth1", "172.31.3.0/24 via 192.168.99.105 dev eth1"}
	multi := func(p string) string { return p + " metric 32" + both }
	at := func(n *netctlNode, more ...string) []string {
		if n == n1 {
			return append(append([]string{"10.65.1.0/26 via 192.168.99.103 dev eth1"}, from...), more...)
		}
		return append(append([]string{"10.65.0.0/26 via 192.168.99.102 dev eth1", "10.65.9.7 via 192.168.99.102 dev eth1"}, from...), more...)
	}
	own := []string{"10.65.0.0/26 via 192.168.99.102 dev eth1", "10.65.1.0/26 via 192.168.99.103 dev eth1", "10.65.9.7 via 192.168.99.102 dev eth1"}
	all := func() {
		r.t.Helper()
		for _, n := range []*netctlNode{n1, n2} {
			var want []string
			for _, l := range at(n) {
				want = append(want, l+" metric 32")
			}
			want = append(want, multi("default"), multi("172.20.0.0/16"))
			slices.Sort(want)
			netlab.Until(r.t, 20*time.Second, n.host.Name+" has exactly these routes", func() string {
				got := learnt(r.t, n.host, "88")
				for i := range got {
					got[i] = strings.Join(strings.Fields(strings.ReplaceAll(got[i], "\t", " ")), " ")
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					return fmt.Sprintf("has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				return ""
			})
		}
		for _, x := range tors {
			r.expect(x.host, x.proto, x.routes(slices.Clone(own)...)...)
		}
	}
	all()
	r.settle(3)
	s, err := n1.status()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"10.65.0.0/16 from bgp (192.168.99.105): inside pool 10.65.0.0/16",
		"10.65.77.0/26 from bird (192.168.99.104): inside pool 10.65.0.0/16",
		"198.51.100.9/32 from bird (192.168.99.104): carries the community BLACKHOLE, which this peer may not use",
		"192.168.99.128/25 from bird (192.168.99.104): inside the connected subnet 192.168.99.0/24",
	} {
		if !slices.Contains(s.Refused, want) {
			t.Errorf("refused %q, want %q among them", s.Refused, want)
		}
	}
	if s.Sessions[1].Type != "global" || len(s.Problems) > 0 || len(s.Refused) != 7 {
		t.Errorf("status %+v", s)
	}
	glass(t, r, n1)
	for _, x := range tors {
		netlab.Must(t, c1, "ping", "-n", "-c1", "-W5", x.lo)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		r.sub(signal.String(), func(t *testing.T) {
			restart(t, r, signal, []*netctlNode{n1}, signal == syscall.SIGTERM, c1, bird.lo, 3)
			all()
		})
	}
	for _, x := range tors {
		r.sub(x.proto+" restarts", func(t *testing.T) {
			m := r.monitor(n1.host)
			x.restart()
			r.settle(3)
			all()
			if gone := m.deletions(t); len(gone) > 0 {
				t.Errorf("deleted routes:\n%s", strings.Join(gone, "\n"))
			}
		})
	}
	r.sub("changes", func(t *testing.T) { torChanges(t, r, n1, n2, tors, secret, all) })
}

// glass asks a speaker what it knows, as the command line does.
func glass(t *testing.T, r *rig, n *netctlNode) {
	t.Helper()
	client := control.NewSpeakerClient(filepath.Join(n.cfg.RunDir, "speaker.sock"))
	ask := func(q control.BGPQuery) (lines []string) {
		t.Helper()
		answer, err := client.BGPRoutes(r.ctx, q)
		if err != nil || answer.More > 0 {
			t.Fatal(err, answer.More)
		}
		for _, p := range answer.Paths {
			lines = append(lines, fmt.Sprintf("%v %v [%s] best %v used %v %s", p.Prefix, p.Peer, p.ASPath, p.Best, p.Used, p.Why))
		}
		return lines
	}
	for _, c := range []struct {
		q    control.BGPQuery
		want []string
	}{
		{control.BGPQuery{Prefix: netip.MustParsePrefix("172.20.0.0/16")}, []string{
			"172.20.0.0/16 192.168.99.104 [4200000001] best true used true best: that by 192.168.99.105 has router ID 192.168.99.105, not 192.168.99.104",
			"172.20.0.0/16 192.168.99.105 [65002] best false used true equal, router ID 192.168.99.105, not 192.168.99.104",
		}},
		{control.BGPQuery{Covers: netip.MustParseAddr("10.65.77.1"), View: "rejected", Peer: "bird"}, []string{
			"10.65.0.0/16 192.168.99.104 [4200000001] best false used false refused: inside pool 10.65.0.0/16",
			"10.65.77.0/26 192.168.99.104 [4200000001] best false used false refused: inside pool 10.65.0.0/16",
		}},
		{control.BGPQuery{View: "advertised", Peer: "192.168.99.105"}, []string{
			"10.65.0.0/26 invalid IP [64511] best false used false advertised", "10.65.9.7/32 invalid IP [64511] best false used false advertised",
		}},
		{control.BGPQuery{View: "received", Peer: "node2"}, []string{"10.65.1.0/26 192.168.99.103 [] best true used true best: the only one"}},
	} {
		if got := ask(c.q); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.q, got, c.want)
		}
	}
	s, err := client.BGPSession(r.ctx, "bird", false)
	if err != nil || s.AS != 4200000001 || s.Name != "bird" || s.State != "Established" || s.HoldTime != 9 || s.Local != n.host.Addr.Addr() || s.RouterID != s.Peer ||
		!slices.Contains(s.Heard, "4-byte AS numbers") || len(s.Offered) < 4 || s.Established != 1 || s.UpdatesIn == 0 || fmt.Sprint(s.Families) != "[ipv4]" {
		t.Errorf("session %+v, %v", s, err)
	}
	if again, err := client.BGPSession(r.ctx, "bird", true); err != nil || again.Established != s.Established {
		t.Errorf("a refresh: %+v, %v", again, err)
	}
	if _, err := client.BGPSession(r.ctx, "nobody", false); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("nobody's session: %v", err)
	}
}

// torChanges is what an operator does to running sessions.
func torChanges(t *testing.T, r *rig, n1, n2 *netctlNode, tors []*tor, secret string, all func()) {
	bird, frr := tors[0], tors[1]
	put := func(x *tor, change func(*datastore.PeerSpec)) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, x.proto, func(p *datastore.Peer) error {
			*p = datastore.Peer{Metadata: p.Metadata, Spec: x.peer(change, secret).Spec}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	since := func(n *netctlNode) string {
		t.Helper()
		s, err := n.status()
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, x := range s.Sessions {
			out = append(out, fmt.Sprint(x.Peer, x.State, x.Since))
		}
		return strings.Join(out, " ")
	}
	before := since(n1)
	// In place: all nodes' blocks to FRR, and nothing believed of it but the default route.
	put(frr, func(s *datastore.PeerSpec) {
		s.Announce, s.Accept, s.Description, s.PrefixLimit = datastore.AnnounceAll, []string{datastore.AcceptDefault}, "another", 7
	})
	netlab.Until(t, 20*time.Second, "nothing but the default route is believed, and all is told", func() string {
		for _, l := range learnt(t, n1.host, "88") {
			if strings.HasPrefix(l, "172.31.3.0/24") {
				return l
			}
		}
		if s, err := n1.status(); err != nil || len(s.Problems) != 1 || s.Problems[0] != "peer bgp (192.168.99.105) sends 6 prefixes; its limit is 7" {
			return fmt.Sprintf("%q %v", s.Problems, err)
		}
		return ""
	})
	put(frr, nil)
	all()
	// Communities of a peer and of a pool, and BLACKHOLE honoured.
	pool := func(communities ...string) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, "10.65.0.0-16", func(p *datastore.Pool) error { p.Spec.Communities = communities; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	put(bird, func(s *datastore.PeerSpec) {
		s.Communities, s.Accept = []string{"64512:7", "4200000001:1:2"}, []string{datastore.AcceptDefault, datastore.AcceptForeign, datastore.AcceptBlackhole}
	})
	pool("64512:9")
	netlab.Until(t, 20*time.Second, "the communities are there", func() string {
		out := bird.sessions()
		if strings.Count(out, "BGP.community: (64512,7) (64512,9)")+strings.Count(out, "BGP.community: (64512,9) (64512,7)") < 3 || strings.Count(out, "BGP.large_community: (4200000001, 1, 2)") < 3 {
			return out
		}
		if got := learnt(t, n1.host, "88"); !slices.Contains(got, "blackhole 198.51.100.9 metric 32") {
			return strings.Join(got, "\n")
		}
		return ""
	})
	pool("no-export")
	r.expect(bird.host, bird.proto)
	r.expect(frr.host, frr.proto)
	pool()
	put(bird, nil)
	all()
	if after := since(n1); after != before {
		t.Errorf("sessions were\n%s\nand are\n%s", before, after)
	}
	// Shut down, with a text; then back.
	put(bird, func(s *datastore.PeerSpec) { s.Shutdown = "power supply" })
	r.expect(bird.host, bird.proto)
	netlab.Until(t, 20*time.Second, "BIRD is told why", func() string {
		if out := bird.sessions(); !strings.Contains(out, "Message:        power supply") {
			return out
		}
		return ""
	})
	netlab.Until(t, 20*time.Second, "the session is off", func() string {
		if s, err := n1.status(); err != nil || !s.Sessions[1].Off || s.Sessions[1].Reason != "shut down: power supply" {
			return fmt.Sprintf("%+v %v", s.Sessions, err)
		}
		return ""
	})
	put(bird, nil)
	all()
	// Another password on our side: none of its segments passes.
	if err := os.WriteFile(secret+"2", []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(bird, func(s *datastore.PeerSpec) { s.Password = &datastore.PeerPassword{File: secret + "2"} })
	netlab.Until(t, 60*time.Second, "the session ends, and why is said", func() string {
		if s, err := n2.status(); err != nil || s.Sessions[1].State == "Established" || !strings.Contains(s.Sessions[1].Reason, "another password") {
			return fmt.Sprintf("%+v %v", s.Sessions, err)
		}
		return ""
	})
	// A file that is not there.
	put(bird, func(s *datastore.PeerSpec) { s.Password = &datastore.PeerPassword{File: secret + "3"} })
	netlab.Until(t, 20*time.Second, "a password that cannot be read is said", func() string {
		s, err := n2.status()
		if want := "password: open " + secret + "3: no such file or directory"; err != nil || s.Sessions[1].Reason != want || len(s.Problems) != 1 || !strings.HasSuffix(s.Problems[0], want) {
			return fmt.Sprintf("%+v %q %v", s.Sessions, s.Problems, err)
		}
		return ""
	})
	put(bird, nil)
	all()
	// Removed.
	if err := datastore.Delete(r.ctx, r.store, get[*datastore.Peer](t, r, "bgp")); err != nil {
		t.Fatal(err)
	}
	r.expect(frr.host, frr.proto)
	netlab.Until(t, 20*time.Second, "FRR's routes are gone", func() string {
		if got := strings.Join(learnt(t, n1.host, "88"), "\n"); strings.Contains(got, "192.168.99.105") {
			return got
		}
		return ""
	})
}
