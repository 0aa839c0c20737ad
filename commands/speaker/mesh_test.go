package speaker

import (
	"context"
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
	"netctl/datastore/identity"
	"netctl/netdev/netlab"
)

// TestMesh runs two speakers and checks what they announce, learn, report and
// keep, through every way to restart.
func TestMesh(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 2, IPv6: true})
	r.pool("10.65.0.0/16")
	r.pool("192.168.0.0/16") // as in the documents: it holds the nodes' own subnets
	r.pool("fd80:24e2:f998:72d6::/64")
	n1, n2 := r.node(r.lab.Hosts[0]), r.node(r.lab.Hosts[1])

	for _, n := range r.nodes {
		n.ip("route add 169.254.1.1 dev lo scope link proto 87")
	}
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	n1.block("fd80:24e2:f998:72d6::/122")
	n2.block("fd80:24e2:f998:72d6::40/122")
	c1, c2 := n1.endpoint("c1", "10.65.0.5"), n2.endpoint("c2", "10.65.1.5")
	d1 := n1.endpoint("d1", "fd80:24e2:f998:72d6::5")
	n2.endpoint("d2", "fd80:24e2:f998:72d6::45")
	n2.endpoint("c3", "10.65.0.9") // borrowed from node1's block

	to2 := []string{
		"10.65.0.0/26 via 192.168.99.102 dev eth1",
		"fd80:24e2:f998:72d6::/122 via fd00:99::102 dev eth1",
	}
	to1 := []string{
		"10.65.0.9 via 192.168.99.103 dev eth1",
		"10.65.1.0/26 via 192.168.99.103 dev eth1",
		"fd80:24e2:f998:72d6::40/122 via fd00:99::103 dev eth1",
	}
	r.expect(n1.host, "88", to1...)
	r.expect(n2.host, "88", to2...)
	r.settle(1)
	for from, to := range map[*netlab.Container]string{c1: "10.65.1.5", c2: "10.65.0.5", d1: "fd80:24e2:f998:72d6::45"} {
		if out := netlab.Must(t, from, "ping", "-n", "-c1", "-W5", to); !strings.Contains(out, "ttl=62") {
			t.Errorf("ping %s: %s", to, out)
		}
	}
	netlab.Must(t, c1, "ping", "-n", "-c1", "-W5", "10.65.0.9")

	r.sub("status", func(t *testing.T) { checkStatus(t, r, n1) })
	r.sub("second", func(t *testing.T) {
		p := r.start(n1.host, "speaker", n1.cfg)
		<-p.Done()
		if !strings.Contains(p.Output(), "speaker runs already") {
			t.Errorf("a second speaker says %q", p.Output())
		}
	})
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		nodes  []*netctlNode
		store  bool
	}{
		{"term one", syscall.SIGTERM, []*netctlNode{n1}, true},
		{"kill one", syscall.SIGKILL, []*netctlNode{n2}, true},
		{"term both", syscall.SIGTERM, []*netctlNode{n1, n2}, true},
		{"kill both", syscall.SIGKILL, []*netctlNode{n1, n2}, true},
		{"kill both without a datastore", syscall.SIGKILL, []*netctlNode{n1, n2}, false},
	} {
		r.sub(c.name, func(t *testing.T) {
			restart(t, r, c.signal, c.nodes, c.store, c1, "10.65.1.5", 1)
			r.expect(n1.host, "88", to1...)
			r.expect(n2.host, "88", to2...)
		})
	}
	r.sub("changes", func(t *testing.T) { followChanges(t, r, n1, n2, to1, to2) })
	r.sub("vanished", func(t *testing.T) { vanished(t, r, n1, n2, to1, to2) })
	r.sub("reboot", func(t *testing.T) { reboot(t, r, n1, n2, to1, to2) })
	r.sub("removed", func(t *testing.T) {
		n := get[*datastore.Node](t, r, "node2")
		if err := datastore.Delete(r.ctx, r.store, n); err != nil {
			t.Fatal(err)
		}
		r.expect(n1.host, "88")
		r.expect(n2.host, "88")
		if s, err := n2.status(); err != nil || len(s.Sessions) > 0 || !strings.Contains(strings.Join(s.Problems, "\n"), "node node2 is not in the datastore") {
			t.Errorf("status of a removed node: %+v, %v", s, err)
		}
		r.register(n2.host)
		r.expect(n1.host, "88", to1...)
		r.expect(n2.host, "88", to2...)
	})
	r.sub("detached", func(t *testing.T) { detached(t, r, n1, n2, to1, to2) })
}

func get[T datastore.Object](t *testing.T, r *rig, name string) T {
	t.Helper()
	o, err := datastore.Get[T](r.ctx, r.store, name)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// checkStatus compares socket, datastore and file.
func checkStatus(t *testing.T, r *rig, n *netctlNode) {
	s, err := n.status()
	if err != nil {
		t.Fatal(err)
	}
	if s.Node != "node1" || s.AS != 64511 || s.ASSource != "inherited" || s.RouterID.String() != "192.168.99.102" || s.Store != "" || s.Detached != "" || len(s.Problems) > 0 || len(s.Refused) > 0 {
		t.Errorf("status %+v", s)
	}
	netlab.Until(t, 20*time.Second, "the datastore has the sessions", func() string {
		report, err := datastore.Get[*datastore.Report](r.ctx, r.store, datastore.ReportName("node1", datastore.ReportSpeaker))
		if err != nil {
			return err.Error()
		}
		got := report.Status.Sessions
		if len(got) != 1 || got[0].Peer.String() != "192.168.99.103" || got[0].State != "Established" || got[0].Type != "node-to-node mesh" {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	if e := s.Sessions; len(e) != 1 || e[0].Received != 3 || e[0].Accepted != 3 || e[0].Sent != 2 {
		t.Errorf("sessions %+v", e)
	}
	st, err := os.Stat(filepath.Join(n.cfg.StateDir, "speaker.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("speaker.json: %v, %v", st, err)
	}
	listens := netlab.Must(t, n.host, "ss", "-Hltn", "sport = :179")
	var at []string
	for _, l := range strings.Split(strings.TrimSpace(listens), "\n") {
		at = append(at, strings.Fields(l)[3])
	}
	slices.Sort(at)
	if want := []string{"192.168.99.102:179", "[fd00:99::102]:179"}; !slices.Equal(at, want) {
		t.Errorf("listens at %v, want %v", at, want)
	}
}

// restart restarts speakers under a flood of pings and expects no lost packet
// and no deleted route anywhere.
func restart(t *testing.T, r *rig, signal syscall.Signal, nodes []*netctlNode, store bool, from *netlab.Container, to string, sessions int) {
	var monitors []*monitor
	for _, h := range r.lab.Hosts {
		monitors = append(monitors, r.monitor(h))
	}
	flood, err := netlab.StartFlood(from, netip.MustParseAddr(to), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if !store {
		r.etcd.Kill()
		netlab.Until(t, 20*time.Second, "the speakers miss the datastore", func() string {
			for _, n := range r.nodes {
				if s, err := n.status(); err != nil || s.Store == "" {
					return n.host.Name + " has it"
				}
			}
			return ""
		})
	}
	for _, n := range nodes {
		if err := n.proc.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		<-n.proc.Done()
		if signal == syscall.SIGTERM && strings.Contains(n.proc.Output(), "level=ERROR") {
			t.Errorf("%s ended with %s", n.host.Name, n.proc.Output())
		}
	}
	answered := flood.Answered()
	for _, n := range nodes {
		n.up()
	}
	netlab.Until(t, 30*time.Second, "sessions are back", func() string {
		for _, n := range r.nodes {
			if why := n.settled(sessions); why != "" {
				return why
			}
		}
		if flood.Answered() < answered+100 {
			return "waiting for pings"
		}
		return ""
	})
	// What is announced now comes after End-of-RIB.
	for _, n := range nodes {
		n.block("10.65.200.0/26")
		for _, h := range r.lab.Hosts {
			if h != n.host {
				netlab.Until(t, 20*time.Second, h.Name+" learns a new block", func() string {
					if out := netlab.Must(t, h, "ip", "route", "show", "10.65.200.0/26"); !strings.Contains(out, " via "+n.host.Addr.Addr().String()) && !strings.HasPrefix(out, "blackhole") {
						return "not there: " + out
					}
					return ""
				})
			}
		}
		if len(nodes) > 1 {
			break
		}
	}
	for _, m := range monitors {
		if gone := m.deletions(t); len(gone) > 0 {
			t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
		}
	}
	if result := flood.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
		t.Errorf("flood: %s", result)
	}
	nodes[0].ip("route del blackhole 10.65.200.0/26 proto 87")
	if !store {
		r.startStore()
		netlab.Until(t, 30*time.Second, "everybody has the datastore", func() string {
			if _, err := r.store.Get(r.ctx, datastore.ClusterKey); err != nil {
				return err.Error()
			}
			for _, n := range r.nodes {
				if s, err := n.status(); err != nil || s.Store != "" {
					return n.host.Name + ": " + s.Store
				}
			}
			return ""
		})
	}
}

// followChanges changes what the kernel and the datastore say.
func followChanges(t *testing.T, r *rig, n1, n2 *netctlNode, to1, to2 []string) {
	// A block and a borrowed address come and go.
	n1.block("10.65.7.0/26")
	r.expect(n2.host, "88", append(slices.Clone(to2), "10.65.7.0/26 via 192.168.99.102 dev eth1")...)
	n1.ip("route del blackhole 10.65.7.0/26")
	r.expect(n2.host, "88", to2...)

	// Nothing outside every pool, until there is a pool.
	n1.block("10.66.0.0/26")
	n1.block("10.65.8.0/26")
	r.expect(n2.host, "88", append(slices.Clone(to2), "10.65.8.0/26 via 192.168.99.102 dev eth1")...)
	r.pool("10.66.0.0/16")
	r.expect(n2.host, "88", append(slices.Clone(to2), "10.65.8.0/26 via 192.168.99.102 dev eth1", "10.66.0.0/26 via 192.168.99.102 dev eth1")...)
	n1.ip("route del blackhole 10.66.0.0/26")
	n1.ip("route del blackhole 10.65.8.0/26")

	// An endpoint of this node wins over what a peer says of its address.
	n1.ip("route add 10.65.0.9 dev ncc1 scope link proto 87")
	if got := netlab.Must(t, n1.host, "ip", "route", "get", "10.65.0.9"); !strings.Contains(got, "dev ncc1") {
		t.Errorf("10.65.0.9 is reached by %s", got)
	}
	n1.ip("route del 10.65.0.9 dev ncc1 proto 87")

	// Another program takes a route, a link takes all of them.
	n2.ip("route del 10.65.0.0/26 proto 88")
	r.expect(n2.host, "88", to2...)
	n2.ip("link set eth1 down")
	n2.ip("link set eth1 up")
	n2.ip("addr replace " + n2.host.Addr6.String() + " dev eth1 nodad")
	r.expect(n2.host, "88", to2...)

	// An own AS number makes the session an external one.
	node := get[*datastore.Node](t, r, "node2")
	node.Spec.AS = 65002
	if err := datastore.Update(r.ctx, r.store, node); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, 30*time.Second, "the AS number changes", func() string {
		s, err := n2.status()
		if err != nil || s.AS != 65002 || s.ASSource != "node" {
			return text(err) + " AS is " + s.ASSource
		}
		if why := n2.settled(1); why != "" {
			return why
		}
		return n1.settled(1)
	})
	r.expect(n1.host, "88", to1...)
	r.expect(n2.host, "88", to2...)
}

// vanished withdraws what was announced while the other speaker is away.
func vanished(t *testing.T, r *rig, n1, n2 *netctlNode, to1, to2 []string) {
	n1.block("10.65.9.0/26")
	r.expect(n2.host, "88", append(slices.Clone(to2), "10.65.9.0/26 via 192.168.99.102 dev eth1")...)
	n2.proc.Kill()
	n1.ip("route del blackhole 10.65.9.0/26")
	n2.ip("route add 10.65.77.0/26 via 192.168.99.77 metric 32 proto 88") // of a node that is gone
	n2.ip("route add 10.65.78.0/26 dev eth1 metric 32 proto 88")          // of nobody
	n2.up()
	r.expect(n2.host, "88", to2...)
	r.settle(1)
	r.expect(n1.host, "88", to1...)
}

// reboot ends a speaker, empties its host as a boot does, and starts it again:
// then the others must not keep its routes.
func reboot(t *testing.T, r *rig, n1, n2 *netctlNode, to1, to2 []string) {
	n1.proc.Kill()
	r.expect(n2.host, "88", to2...)
	n1.ip("route flush proto 87")
	n1.ip("route flush proto 88")
	n1.ip("-6 route flush proto 87")
	n1.ip("-6 route flush proto 88")
	n1.reboot("second")
	n1.block("10.65.0.0/26") // the agent is faster; still, nothing was forwarded meanwhile
	n1.up()
	r.expect(n2.host, "88", to2[0])
	r.expect(n1.host, "88", to1...)
	if out := n1.proc.Output(); !strings.Contains(out, "restarting=true kept=false") {
		t.Errorf("after a boot the speaker says\n%s", out)
	}
	n1.block("fd80:24e2:f998:72d6::/122")
	n1.ip("route add 10.65.0.5 dev ncc1 proto 87")
	r.expect(n2.host, "88", to2...)
}

// detached takes the cluster's key away: nothing may change but by the kernel.
func detached(t *testing.T, r *rig, n1, n2 *netctlNode, to1, to2 []string) {
	e, err := r.store.Get(r.ctx, datastore.ClusterKey)
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.store.List(r.ctx, datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range r.nodes { // as the agent does
		id, err := identity.Open(n.cfg.StateDir, true, quiet())
		if err != nil {
			t.Fatal(err)
		}
		if err := id.Check(r.ctx, r.store, all); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.store.Commit(r.ctx, datastore.Txn{Then: []datastore.Op{{Key: datastore.ClusterKey}}}); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, 20*time.Second, "the speakers are detached", func() string {
		for _, n := range r.nodes {
			if s, err := n.status(); err != nil || s.Detached == "" {
				return n.host.Name + " is not"
			}
		}
		return ""
	})
	nodes := []*datastore.Node{get[*datastore.Node](t, r, "node1"), get[*datastore.Node](t, r, "node2")}
	for _, n := range nodes {
		n.Metadata.Revision = 0
		if err := datastore.Delete(r.ctx, r.store, n); err != nil {
			t.Fatal(err)
		}
	}
	n1.block("10.65.9.0/26")
	r.expect(n2.host, "88", append(slices.Clone(to2), "10.65.9.0/26 via 192.168.99.102 dev eth1")...)
	r.expect(n1.host, "88", to1...)
	n1.ip("route del blackhole 10.65.9.0/26")
	r.expect(n2.host, "88", to2...)

	// It is adopted, and the nodes write themselves back one after the other.
	monitors := []*monitor{r.monitor(n1.host), r.monitor(n2.host)}
	if _, err := r.store.Commit(r.ctx, datastore.Txn{Then: []datastore.Op{{Key: datastore.ClusterKey, Value: e.Value}}}); err != nil {
		t.Fatal(err)
	}
	for i, missing := range nodes {
		netlab.Until(t, 20*time.Second, "the speakers are attached", func() string {
			for _, n := range r.nodes {
				if s, err := n.status(); err != nil || s.Detached != "" || !strings.Contains(n.proc.Output(), "gone from the datastore, kept for now") {
					return n.host.Name + " is not"
				}
			}
			return ""
		})
		if err := datastore.Create(r.ctx, r.store, missing); err != nil {
			t.Fatal(i, err)
		}
	}
	r.kept("")
	r.settle(1)
	for _, m := range monitors {
		if gone := m.deletions(t); len(gone) > 0 {
			t.Errorf("%s deleted %q", m.host.Name, gone)
		}
	}
}

// TestRefusals: what Run says without touching anything.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	err := Run(context.Background(), Config{Node: "n", StateDir: dir, RunDir: dir, AgentProtocol: 88}, nil)
	if err == nil || err.Error() != "route protocol 88: agent and speaker need different numbers" {
		t.Errorf("equal protocols: %v", err)
	}
	lock, err := control.Lock(dir, "speaker")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	err = Run(context.Background(), Config{Node: "n", StateDir: dir, RunDir: dir}, nil)
	if err == nil || !strings.HasPrefix(err.Error(), "speaker runs already: PID ") {
		t.Errorf("second speaker: %v", err)
	}
}

// BenchmarkRestart is the time from the start of a killed speaker's process
// until its session is Established again and nothing is stale.
func BenchmarkRestart(b *testing.B) {
	r := newRig(b, netlab.Options{Nodes: 2})
	r.pool("10.65.0.0/16")
	n1, n2 := r.node(r.lab.Hosts[0]), r.node(r.lab.Hosts[1])
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	r.settle(1)
	var worst time.Duration
	for b.Loop() {
		b.StopTimer()
		n1.proc.Kill()
		b.StartTimer()
		began := time.Now()
		n1.up()
		r.settle(1)
		worst = max(worst, time.Since(began))
	}
	b.ReportMetric(float64(worst.Microseconds())/1000, "worst-ms")
}
