package speaker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/identity"
	"netctl/datastore/storetest"
	"netctl/netdev/netlab"
	"netctl/routing"
)

// said is what was logged.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

// lossy is a follower whose datastore loses what it held.
type lossy struct {
	*follower
	t    *testing.T
	log  said
	all  []datastore.Entry
	self *datastore.Node
	plan routing.Plan // as it was
}

func newLossy(t *testing.T, restartTime int) *lossy {
	t.Helper()
	l := &lossy{t: t, self: machine("a", "192.168.99.1/24")}
	l.follower = newFollower("a", hostFile(t, "a"), &state{}, func() {}, slog.New(slog.NewTextHandler(&l.log, nil)))
	other := machine("b", "192.168.99.2/24")
	other.Spec.Addresses = append(other.Spec.Addresses, netip.MustParsePrefix("fd00:99::2/64"))
	third := machine("c", "192.168.99.3/24")
	l.self.Status.Tunnels = []datastore.Tunnel{{Kind: datastore.TunnelIPIP}, {Kind: datastore.TunnelVXLAN, MAC: "02:00:00:00:00:01"}}
	other.Status.Tunnels = []datastore.Tunnel{{Kind: datastore.TunnelIPIP}, {Kind: datastore.TunnelVXLAN, MAC: "02:00:00:00:00:02"}}
	third.Spec.AS = 65003
	hold := 9
	for i, o := range []datastore.Object{
		l.self, other, third,
		&datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.65.0.0/16"), BlockSize: 28, Encap: datastore.EncapVXLAN}},
		&datastore.BGPConfig{Metadata: datastore.Metadata{Name: "default"}, Spec: datastore.BGPConfigSpec{DefaultAS: 64600, HoldTime: &hold, RestartTime: restartTime, LongLivedTime: 3600,
			Filters: []datastore.PeerFilters{{Peers: "role == 'tor'", Filters: []string{"all"}}}}},
		&datastore.Peer{Metadata: datastore.Metadata{Name: "tor", Labels: map[string]string{"role": "tor"}},
			Spec: datastore.PeerSpec{Address: netip.MustParseAddr("192.168.99.254"), AS: 65001, Node: "a", Filters: []string{"tor"}}},
		&datastore.BGPFilter{Metadata: datastore.Metadata{Name: "all"}, Spec: datastore.BGPFilterSpec{Import: storetest.FilterRules(t, "reject pool any"), Export: storetest.FilterRules(t, "accept then med 1")}},
		&datastore.BGPFilter{Metadata: datastore.Metadata{Name: "tor"}, Spec: datastore.BGPFilterSpec{ExportDefault: datastore.FilterNext}},
	} {
		o.SetDefaults()
		l.all = append(l.all, stored(t, int64(i+1), o))
	}
	l.replace(l.all...)
	l.plan = l.next()
	return l
}

func (l *lossy) replace(entries ...datastore.Entry) {
	l.t.Helper()
	if err := l.Replace(datastore.Snapshot{Revision: 10, Entries: entries}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lossy) apply(entries ...datastore.Entry) {
	l.t.Helper()
	if err := l.Apply(datastore.Batch{Revision: 11, Events: entries}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lossy) next() routing.Plan {
	l.t.Helper()
	select {
	case p := <-l.plans:
		return p
	case <-time.After(20 * time.Second):
		l.t.Fatal("no plan")
	}
	panic("unreachable")
}

// plain is a plan without what only tells that it is kept.
func plain(p routing.Plan) string {
	p.Kept, p.Problems = false, nil
	b, _ := json.Marshal(p)
	return string(b)
}

func detach(f *follower) { f.Lost(fmt.Errorf("%w: it is empty", datastore.ErrDetached)) }

// TestKept: an adopted datastore that is empty takes nothing away before the
// restart time is over, and then all of it.
func TestKept(t *testing.T) {
	for name, lose := range map[string]func(l *lossy){
		"detached": func(l *lossy) { detach(l.follower); l.replace() },
		"detached, then away": func(l *lossy) {
			detach(l.follower)
			l.Lost(datastore.ErrUnavailable)
			l.replace(l.all[0])
		},
		"the node itself is gone": func(l *lossy) { l.replace(l.all[1:2]...) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLossy(t, 1)
			lose(l)
			p := l.next()
			if plain(p) != plain(l.plan) || !p.Kept || len(p.Problems) != 1 || !strings.HasPrefix(p.Problems[0], "gone from the datastore, kept until ") {
				t.Fatalf("kept %s %q\nwant %s", plain(p), p.Problems, plain(l.plan))
			}
			p = l.next()
			if len(p.Pools) > 0 || p.Kept || p.HoldTime != 90 || p.DefaultAS != 64511 || len(p.Peers) > 1 {
				t.Errorf("afterwards %+v", p)
			}
			if l.log.count("not put back into the datastore, removed") != 1 || l.log.count("pools 10.65.0.0/16; peers tor; filters all, tor; bgpconfig default") != 2 {
				t.Errorf("said %s", l.log.b.String())
			}
		})
	}
}

// TestNothingKeptAtFirst: a new node is not in the datastore yet, and has nothing
// to keep.
func TestNothingKeptAtFirst(t *testing.T) {
	f := newFollower("a", hostFile(t, "a"), &state{}, func() {}, quiet())
	f.resume(routing.Plan{})
	if err := f.Replace(datastore.Snapshot{Revision: 1, Entries: []datastore.Entry{stored(t, 1, machine("a", "192.168.99.1/24"))}}); err != nil {
		t.Fatal(err)
	}
	if p := <-f.plans; p.Kept || p.HoldTime != 90 || f.expiry != nil {
		t.Errorf("plan %+v", p)
	}
}

// TestKeptComesBack: what returns replaces what is kept, at once and changed;
// what is new is used at once; what is deleted goes at once.
func TestKeptComesBack(t *testing.T) {
	l := newLossy(t, 3600)
	detach(l.follower)
	l.replace()
	l.next()
	moved := machine("b", "192.168.99.22/24")
	l.apply(l.all[0], stored(t, 11, moved), stored(t, 11, machine("d", "192.168.99.4/24")))
	p := l.next()
	if len(p.Peers) != 4 || p.Peers[0].Address.String() != "192.168.99.22" || p.Peers[1].AS != 65003 || p.Peers[2].AS != 64600 || !p.Kept {
		t.Fatalf("%+v", p)
	}
	key := func(e datastore.Entry) datastore.Entry { return datastore.Entry{Key: e.Key, Revision: 12} }
	l.apply(key(l.all[2]))
	if p = l.next(); len(p.Peers) != 3 || len(p.Pools) != 1 {
		t.Fatalf("a deleted node: %+v", p)
	}
	// Again, in the middle: what is kept is kept on.
	detach(l.follower)
	l.replace(l.all[0])
	if p = l.next(); len(p.Peers) != 3 || len(p.Pools) != 1 {
		t.Fatalf("detached again: %+v", p)
	}
	// A renamed node is not two.
	l.apply(stored(t, 12, machine("e", "192.168.99.4/24")))
	if p = l.next(); len(p.Peers) != 3 || p.Peers[1].Name != "e" {
		t.Fatalf("renamed: %+v", p)
	}
	l.apply(append([]datastore.Entry{stored(t, 13, moved)}, l.all[3:]...)...)
	if p = l.next(); p.Kept || len(p.Problems) > 0 || l.expiry != nil {
		t.Fatalf("all is back: %+v", p)
	}
	// And now a deletion is one.
	l.apply(key(l.all[3]))
	if p = l.next(); len(p.Pools) > 0 {
		t.Fatalf("a deleted pool: %+v", p)
	}
	l.apply(key(l.all[0]))
	if p = l.next(); len(p.Peers) > 0 {
		t.Fatalf("deleted itself: %+v", p)
	}
	l.replace(l.all[4], stored(t, 13, moved))
	select {
	case p := <-l.plans:
		if len(p.Peers) > 0 {
			t.Errorf("a deleted node keeps peers: %+v", p)
		}
	default:
	}
}

// TestKeptOverARestart: a speaker that starts while it is detached, or in the time
// after it, keeps too; one that starts in good order does not.
func TestKeptOverARestart(t *testing.T) {
	was := newLossy(t, 3600)
	fresh := func(p routing.Plan) *lossy {
		return &lossy{t: t, follower: func() *follower {
			f := newFollower("a", hostFile(t, "a"), &state{}, func() {}, quiet())
			f.resume(p)
			return f
		}()}
	}
	l := fresh(was.plan)
	detach(l.follower)
	l.replace(was.all[0])
	p := l.next()
	if plain(p) != plain(was.plan) || !p.Kept {
		t.Fatalf("detached %+v", p)
	}
	l = fresh(p)
	l.replace(was.all[0])
	if again := l.next(); plain(again) != plain(p) || !again.Kept {
		t.Fatalf("while kept %+v", again)
	}
	// The first start of a cluster: there was nothing before.
	l = fresh(routing.Plan{})
	l.Lost(datastore.ErrUnidentified)
	l.replace(was.all[0])
	if p := l.next(); p.Kept || p.HoldTime != 90 || l.expiry != nil {
		t.Fatalf("nothing before: %+v", p)
	}
	l = fresh(was.plan)
	l.replace(was.all[0], was.all[2])
	if p := l.next(); p.Kept || len(p.Peers) != 1 || len(p.Pools) > 0 {
		t.Fatalf("in good order %+v", p)
	}
}

// TestAdoptedEmpty empties the etcd under two nodes with traffic between them,
// adopts it and fills it again; then once more without filling it.
func TestAdoptedEmpty(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 2})
	r.restartTime(600)
	r.pool("10.65.0.0/16")
	n1, n2 := r.node(r.lab.Hosts[0]), r.node(r.lab.Hosts[1])
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	c1 := n1.endpoint("c1", "10.65.0.5")
	n2.endpoint("c2", "10.65.1.5")
	to1, to2 := "10.65.1.0/26 via 192.168.99.103 dev eth1", "10.65.0.0/26 via 192.168.99.102 dev eth1"
	r.expect(n1.host, "88", to1)
	r.expect(n2.host, "88", to2)
	r.settle(1)

	var monitors []*monitor
	for _, h := range r.lab.Hosts {
		monitors = append(monitors, r.monitor(h))
	}
	flood, err := netlab.StartFlood(c1, netip.MustParseAddr("10.65.1.5"), 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	more := func() {
		t.Helper()
		answered := flood.Answered()
		netlab.Until(t, 20*time.Second, "pings are answered", func() string {
			if flood.Answered() < answered+200 {
				return "waiting"
			}
			return ""
		})
	}
	r.empty()
	more()
	r.adopt(n1)
	r.settle(1)
	if err := n1.proc.Signal(syscall.SIGKILL); err != nil { // in between
		t.Fatal(err)
	}
	<-n1.proc.Done()
	n1.up()
	r.settle(1)
	r.kept("nodes node1, node2; pools 10.65.0.0/16; bgpconfig default")
	more()
	r.register(n1.host)
	r.register(n2.host)
	r.kept("kept until")
	r.settle(1)
	more()
	r.pool("10.65.0.0/16")
	hold := 9
	r.create(&datastore.BGPConfig{Metadata: datastore.Metadata{Name: datastore.DefaultName}, Spec: datastore.BGPConfigSpec{HoldTime: &hold, RestartTime: 600}})
	r.kept("")
	r.settle(1)
	more()
	for _, m := range monitors {
		if gone := m.deletions(t); len(gone) > 0 {
			t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
		}
	}
	if result := flood.Stop(); len(result.Lost) > 0 || result.Sent == 0 {
		t.Errorf("flood: %s", result)
	}

	r.restartTime(2)
	r.settle(1)
	r.empty()
	r.adopt(n2)
	r.register(n1.host)
	r.register(n2.host)
	r.expect(n1.host, "88")
	r.expect(n2.host, "88")
	netlab.Until(t, 20*time.Second, "it is said", func() string {
		if out := n2.proc.Output(); !strings.Contains(out, "not put back into the datastore, removed") {
			return out
		}
		return ""
	})
}

func (r *rig) restartTime(seconds int) {
	r.t.Helper()
	if _, err := datastore.Modify(r.ctx, r.store, datastore.DefaultName, func(c *datastore.BGPConfig) error {
		c.Spec.RestartTime = seconds
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
}

// empty makes the etcd anew, and waits until the speakers find out; before, it
// does what the agents do: remember whose it was.
func (r *rig) empty() {
	r.t.Helper()
	snap, err := r.store.List(r.ctx, datastore.ClusterKey)
	if err != nil {
		r.t.Fatal(err)
	}
	id, err := r.store.ID(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	c, _, err := snap.Cluster()
	if err != nil {
		r.t.Fatal(err)
	}
	own, err := json.Marshal(datastore.Identity{UUID: c.UUID, Generation: c.Generation, Store: id, Revision: snap.Revision})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, n := range r.nodes {
		if err := os.WriteFile(filepath.Join(n.cfg.StateDir, identity.FileName), own, 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.etcd.Kill()
	if err := os.RemoveAll(filepath.Join(r.dir, "etcd")); err != nil {
		r.t.Fatal(err)
	}
	r.startStore()
	r.each(30*time.Second, "the speakers are detached", func(n *netctlNode) string {
		if s, err := n.status(); err != nil || s.Detached == "" {
			return "it is not"
		}
		return ""
	})
}

// adopt does as `netctl datastore adopt` on n.
func (r *rig) adopt(n *netctlNode) {
	r.t.Helper()
	if _, err := identity.Adopt(r.ctx, r.store, n.cfg.StateDir); err != nil {
		r.t.Fatal(err)
	}
	r.each(30*time.Second, "the speakers are attached", func(n *netctlNode) string {
		s, err := n.status()
		if err != nil {
			return err.Error()
		}
		return s.Detached + s.Store
	})
}

// kept waits until every speaker says that it keeps what; "": nothing.
func (r *rig) kept(what string) {
	r.t.Helper()
	r.each(30*time.Second, "they keep "+what, func(n *netctlNode) string {
		s, err := n.status()
		if err != nil {
			return err.Error()
		}
		if got := strings.Join(s.Problems, "\n"); (got == "") != (what == "") || !strings.Contains(got, what) {
			return "problems: " + got
		}
		return ""
	})
}

func (r *rig) each(patience time.Duration, what string, ask func(*netctlNode) string) {
	r.t.Helper()
	netlab.Until(r.t, patience, what, func() string {
		for _, n := range r.nodes {
			if why := ask(n); why != "" {
				return n.host.Name + ": " + why
			}
		}
		return ""
	})
}

// TestKeptMembers: what a topology with reflectors was made of comes back whole, so that
// nodes that the datastore lost are arranged as before.
func TestKeptMembers(t *testing.T) {
	config := &datastore.BGPConfig{Spec: datastore.BGPConfigSpec{Topology: datastore.Topology{Mode: datastore.TopologyReflectors}}}
	config.SetDefaults()
	var nodes []*datastore.Node
	for i := range 12 {
		n := machine(fmt.Sprintf("n%02d", i), fmt.Sprintf("192.168.99.%d/24", i+1))
		n.Metadata.Labels = map[string]string{datastore.ZoneLabel: []string{"a", "b"}[i%2], "rack": "x"}
		if i == 3 {
			n.Spec.Reflector = &datastore.Reflector{Mode: datastore.ReflectorAlways, Clients: "rack == 'x'"}
		}
		nodes = append(nodes, n)
	}
	for _, clients := range []string{"rack == 'x'", ""} {
		nodes[3].Spec.Reflector.Clients = clients
		for _, n := range nodes {
			p := routing.Mesh(n.Metadata.Name, nodes, nil, config)
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var back routing.Plan
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			k := planned(n.Metadata.Name, back)
			if again := routing.Mesh(n.Metadata.Name, k.nodes, nil, k.bgp); !reflect.DeepEqual(again, p) {
				t.Fatalf("%s planned\n%+v\nof what is kept\n%+v", n.Metadata.Name, p, again)
			}
		}
	}
}

// TestKeptPeersOfInterfaces: they come back as they were, also from the file and without
// the labels that chose them; one that is there again is not kept.
func TestKeptPeersOfInterfaces(t *testing.T) {
	config := &datastore.BGPConfig{}
	config.SetDefaults()
	*config.Spec.Mesh = false
	self := machine("n1", "192.168.99.1/24")
	self.Metadata.Labels = map[string]string{"rack": "a"}
	p := routing.Mesh("n1", []*datastore.Node{self}, nil, config)
	p.AddPeers([]*datastore.Node{self}, []*datastore.Peer{
		atLink("eth*", func(s *datastore.PeerSpec) { s.NodeSelector = "rack == 'a'" }), atLink("swp1", nil),
	})
	text, err := json.Marshal(lastRun{Plan: p, Ends: []routing.End{{Link: "swp1", Remote: netip.MustParseAddr("fe80::1%swp1")}}})
	if err != nil {
		t.Fatal(err)
	}
	var back lastRun
	if err := json.Unmarshal(text, &back); err != nil || back.Ends[0].Remote != netip.MustParseAddr("fe80::1%swp1") {
		t.Fatal(back, err)
	}
	k := planned("n1", back.Plan)
	var again routing.Plan
	again.Node, again.Addresses, again.AS = p.Node, p.Addresses, p.AS
	again.AddPeers(k.nodes, k.peers)
	var got []string
	for _, x := range again.Interfaces {
		got = append(got, fmt.Sprintf("%s %s %v", x.Name, x.Interface, x.Configured.Spec.Accept))
	}
	if want := []string{"eth eth* [default foreign blocks]", "swp1 swp1 [default foreign blocks]"}; !slices.Equal(got, want) {
		t.Errorf("kept %q, want %q", got, want)
	}
	v := datastore.NewView()
	value, err := datastore.Encode(atLink("swp1", func(s *datastore.PeerSpec) { s.RemoteAS = datastore.RemoteInternal }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Replace(datastore.Snapshot{Entries: []datastore.Entry{{Key: "/netctl/v1/peers/swp1", Value: value}}}); err != nil {
		t.Fatal(err)
	}
	if k.settle(v); len(k.peers) != 1 || k.peers[0].Metadata.Name != "eth" {
		t.Errorf("kept %+v", k.peers)
	}
}
