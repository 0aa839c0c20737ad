package speaker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/storetest"
	"netctl/netdev"
	"netctl/netdev/netlab"
	"netctl/routing"
	"netctl/routing/bfd"
	"netctl/routing/bgp"
	"netctl/routing/fib"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func path(prefix string, hops ...string) bgp.Route {
	r := bgp.Route{Prefix: netip.MustParsePrefix(prefix)}
	for _, h := range hops {
		r.NextHops = append(r.NextHops, netip.MustParseAddr(h))
	}
	return r
}

func connected(prefix, link string) routing.Route {
	return routing.Route{Prefix: netip.MustParsePrefix(prefix), NextHops: []routing.NextHop{{Link: link}}}
}

// teller tells an installer of best paths as an engine does.
type teller struct {
	to   *installer
	mu   sync.Mutex
	best map[netip.Prefix][]netip.Addr
}

func (e *teller) tell(paths ...bgp.Route) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var changes []bgp.Change
	for _, p := range paths {
		changes = append(changes, bgp.Change{Prefix: p.Prefix, Was: e.best[p.Prefix], Now: p.NextHops})
		e.best[p.Prefix] = p.NextHops
	}
	e.to.Install(changes)
}

func (e *teller) again(nextHops map[netip.Addr]bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for prefix, hops := range e.best {
		if slices.ContainsFunc(hops, func(a netip.Addr) bool { return nextHops[a] }) {
			e.to.Install([]bgp.Change{{Prefix: prefix, Was: hops, Now: hops}})
		}
	}
}

// TestInstaller gives best paths to a kernel that changes its mind.
func TestInstaller(t *testing.T) {
	kernel := fib.NewFake()
	kernel.Put(2, connected("192.168.99.0/24", "eth1"))
	kernel.Put(2, connected("fd00:99::/64", "eth1"))
	gateway := connected("0.0.0.0/0", "eth0")
	gateway.NextHops[0].Addr = netip.MustParseAddr("192.168.1.1")
	kernel.Put(3, gateway)
	base := kernel.String()
	i := newInstaller(kernel.Table(88), newTracker(t.Context(), kernel.Table(88), ours, quiet()), func() {}, quiet())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- i.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	expect := func(want ...string) {
		t.Helper()
		netlab.Until(t, 10*time.Second, "the kernel has the routes", func() string {
			var got []string
			for _, l := range strings.Split(strings.TrimSpace(kernel.String()), "\n") {
				if strings.Contains(l, "netctl-bgp") || strings.HasPrefix(l, "\t") {
					got = append(got, l)
				}
			}
			if !reflect.DeepEqual(got, want) {
				return fmt.Sprintf("has %q, want %q", got, want)
			}
			return ""
		})
	}
	e := &teller{to: i, best: map[netip.Prefix][]netip.Addr{}}
	i.begin(nil, e.again)
	e.tell(
		path("10.65.1.0/26", "192.168.99.103"), path("10.65.2.0/26", "192.168.99.104", "192.168.99.105"),
		path("10.65.3.0/26", "172.16.0.1", "172.16.0.2"), path("10.65.4.0/26", "0.0.0.0"), path("fd80::/122", "fd00:99::103"), path("fd80::40/122", "fd00:77::1"),
	)
	via := "10.65.1.0/26 via 192.168.99.103 dev eth1 proto netctl-bgp metric 32"
	multi := []string{"10.65.2.0/26 proto netctl-bgp metric 32", "\tnexthop via 192.168.99.104 dev eth1 weight 1", "\tnexthop via 192.168.99.105 dev eth1 weight 1"}
	discarded := "blackhole 10.65.4.0/26 proto netctl-bgp metric 32"
	behind := "10.65.3.0/26 via 192.168.1.1 dev eth0 proto netctl-bgp metric 32" // both next hops behind one gateway
	six := "fd80::/122 via fd00:99::103 dev eth1 proto netctl-bgp metric 1056 pref medium"
	expect(append(append([]string{via}, multi...), behind, discarded, six)...)
	if got := fmt.Sprint(i.unresolved()); got != "[fd80::40/122]" {
		t.Errorf("unresolved %s", got)
	}

	// The gateway goes, a better way to one next hop comes.
	kernel.Remove(gateway)
	other := connected("192.168.99.105/32", "eth2")
	kernel.Put(3, other)
	i.nextHops.recheck(nil, true)
	i.moved()
	expect(via, multi[0], multi[1], "\tnexthop via 192.168.99.105 dev eth2 weight 1", discarded, six)
	if got := fmt.Sprint(i.unresolved()); got != "[10.65.3.0/26 fd80::40/122]" {
		t.Errorf("unresolved %s", got)
	}
	kernel.Put(3, gateway)
	kernel.Remove(other)
	i.nextHops.recheck(nil, true)
	i.moved()
	expect(append(append([]string{via}, multi...), behind, discarded, six)...)

	// A path changes, the others go; what comes last counts.
	e.tell(path("10.65.1.0/26", "192.168.99.109"), path("10.65.2.0/26"))
	e.tell(path("10.65.3.0/26"), path("10.65.4.0/26"), path("fd80::/122"), path("fd80::40/122"))
	expect("10.65.1.0/26 via 192.168.99.109 dev eth1 proto netctl-bgp metric 32")
	e.tell(path("10.65.1.0/26"))
	expect()
	netlab.Until(t, 10*time.Second, "nothing is left", func() string {
		if got := kernel.String(); got != base {
			return got
		}
		return ""
	})
	i.writing.Lock()
	defer i.writing.Unlock()
	if len(i.unresolved()) > 0 || len(i.ways) > 0 {
		t.Errorf("remembered: %v, %v", i.unresolved(), i.ways)
	}
}

// TestInstallerBegins gives the installer the routes of an earlier run: they
// follow their next hops, and what the engine before knew is forgotten.
func TestInstallerBegins(t *testing.T) {
	kernel := fib.NewFake()
	kernel.Put(2, connected("192.168.99.0/24", "eth1"))
	held := connected("10.65.1.0/26", "eth1")
	held.NextHops[0].Addr, held.Metric = netip.MustParseAddr("192.168.99.103"), routing.SpeakerMetric(held.Prefix)
	table := kernel.Table(88)
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{held}}); err != nil {
		t.Fatal(err)
	}
	i := newInstaller(table, newTracker(context.Background(), table, ours, quiet()), func() {}, quiet())
	step := func() {
		t.Helper()
		i.write(t.Context())
	}
	before := &teller{to: i, best: map[netip.Prefix][]netip.Addr{}}
	before.tell(path("10.65.9.0/26", "172.16.0.1"), path("10.65.8.0/26", "192.168.99.107"))
	before.tell(path("10.65.8.0/26", "192.168.99.108")) // what comes last counts
	step()
	before.tell(path("10.65.7.0/26", "192.168.99.108"))
	i.end()
	step()
	have, err := table.Routes(t.Context())
	if err != nil || len(have) != 2 || have[1].NextHops[0].Addr.String() != "192.168.99.108" {
		t.Fatalf("routes %v, %v", have, err)
	}
	if err := table.Apply(t.Context(), routing.Changes{Delete: have[1:]}); err != nil { // as foreign
		t.Fatal(err)
	}
	table.Adopt(have[:1])
	e := &teller{to: i, best: map[netip.Prefix][]netip.Addr{}}
	e.best[held.Prefix] = []netip.Addr{held.NextHops[0].Addr}
	i.begin([]bgp.Route{path("10.65.1.0/26", "192.168.99.103")}, e.again)
	step()
	kernel.Put(3, connected("192.168.99.103/32", "eth2"))
	i.nextHops.recheck(nil, true)
	i.moved()
	step()
	step()
	routes, err := table.Routes(t.Context())
	if got := fmt.Sprint(routes); err != nil || got != "[10.65.1.0/26 via 192.168.99.103 dev eth2 metric 32]" {
		t.Errorf("routes %s, %v", got, err)
	}
	if len(i.unresolved()) > 0 || len(i.ways) != 1 {
		t.Errorf("remembered: %v, %v", i.unresolved(), i.ways)
	}
}

func stored(t *testing.T, revision int64, o datastore.Object) datastore.Entry {
	t.Helper()
	_, op, err := datastore.OpPut(o)
	if err != nil {
		t.Fatal(err)
	}
	return datastore.Entry{Key: op.Key, Value: op.Value, Revision: revision}
}

func machine(name, addr string) *datastore.Node {
	return &datastore.Node{
		Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix(addr)}},
		Status: datastore.NodeStatus{Host: hostOf(name), Model: datastore.ModelVersion},
	}
}

// hostOf is the ID of the machine that is the node.
func hostOf(node string) string { return fmt.Sprintf("%016x", node) }

// hostFile is that machine's file.
func hostFile(t testing.TB, node string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(file, []byte(hostOf(node)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestFollower turns events into plans, and only those that matter.
func TestFollower(t *testing.T) {
	st := &state{}
	f := newFollower("a", hostFile(t, "a"), st, func() {}, quiet())
	next := func() *routing.Plan {
		select {
		case p := <-f.plans:
			return &p
		default:
			return nil
		}
	}
	a, b := machine("a", "192.168.99.1/24"), machine("b", "192.168.99.2/24")
	if err := f.Replace(datastore.Snapshot{Revision: 5, Entries: []datastore.Entry{stored(t, 1, a), stored(t, 2, b)}}); err != nil {
		t.Fatal(err)
	}
	if p := next(); p == nil || len(p.Peers) != 1 || p.Peers[0].Name != "b" || len(p.Problems) > 0 {
		t.Fatalf("plan %+v", p)
	}
	apply := func(e ...datastore.Entry) {
		t.Helper()
		if err := f.Apply(datastore.Batch{Events: e, Revision: e[len(e)-1].Revision}); err != nil {
			t.Fatal(err)
		}
	}
	b.Status.Version = "next"
	apply(stored(t, 6, b))
	if p := next(); p != nil {
		t.Errorf("a node's status makes a new plan: %+v", p)
	}
	apply(stored(t, 7, machine("c", "192.168.99.3/24")))
	apply(stored(t, 8, machine("d", "192.168.99.4/24")))
	if p := next(); p == nil || len(p.Peers) != 3 || next() != nil {
		t.Errorf("only the last plan is to be taken: %+v", p)
	}
	key := stored(t, 9, b).Key
	apply(datastore.Entry{Key: key, Value: []byte(`{"kind":"Node"}`), Revision: 9})
	if p := next(); p == nil || len(p.Peers) != 3 || len(p.Problems) != 0 { // it is b's own problem
		t.Errorf("a bad entry: %+v", p)
	}
	gone := func(names ...string) datastore.Batch {
		var b datastore.Batch
		for _, n := range names {
			k, err := datastore.Key(datastore.KindNode, n)
			if err != nil {
				t.Fatal(err)
			}
			b.Events = append(b.Events, datastore.Entry{Key: k, Revision: 10})
		}
		return b
	}
	if f.Suspicious(gone("a", "b", "c")) || !f.Suspicious(gone("d", "a", "b", "c")) {
		t.Error("suspicion is wrong")
	}
	if back := append(gone("d", "a", "b", "c").Events, stored(t, 11, machine("c", "192.168.99.3/24"))); f.Suspicious(datastore.Batch{Events: back}) {
		t.Error("a node that is written again is not gone")
	}
	f.Lost(fmt.Errorf("reason: %w", datastore.ErrDetached))
	if _, attached := st.sessions(); attached || st.detached == "" || st.away != "" {
		t.Errorf("detached: %+v", st)
	}
	f.Lost(fmt.Errorf("reason: %w", datastore.ErrUnavailable))
	if _, attached := st.sessions(); attached || st.detached != "" || st.away == "" {
		t.Errorf("away: %+v", st)
	}
	if p := next(); p != nil {
		t.Errorf("a lost datastore makes a plan: %+v", p)
	}
}

// TestMemory writes, reads and survives what is no speaker.json.
func TestMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "speaker.json")
	if m, err := recall(file); err != nil || m.Boot != "" {
		t.Fatalf("without a file: %+v, %v", m, err)
	}
	nodes := []*datastore.Node{machine("a", "192.168.99.1/24"), machine("b", "192.168.99.2/24")}
	c := &datastore.BGPConfig{}
	c.SetDefaults()
	m := lastRun{Boot: "x", Plan: routing.Mesh("a", nodes, nil, c)}
	m.Plan.Filters = []routing.Filter{{Name: "gone", Missing: true}, {Name: "tor", Spec: datastore.BGPFilterSpec{
		Import: storetest.FilterRules(t, `accept prefix 10.0.0.0/8 le 24 and as-path "_1_" then community 1:1`), ImportDefault: datastore.FilterReject}}}
	for range 2 {
		if err := remember(control.Keep(filepath.Dir(file), datastore.FileOptions{}), m); err != nil {
			t.Fatal(err)
		}
	}
	got, err := recall(file)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("recalled %+v, %v, want %+v", got, err, m)
	}
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if all, err := os.ReadDir(filepath.Dir(file)); err != nil || len(all) != 1 {
		t.Errorf("left behind: %v, %v", all, err)
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recall(file); err == nil || !strings.HasPrefix(err.Error(), "read "+file+": ") {
		t.Errorf("a broken file: %v", err)
	}
	if err := remember(control.Keep(file, datastore.FileOptions{}), m); err == nil || !strings.HasPrefix(err.Error(), "write ") {
		t.Errorf("no folder: %v", err)
	}
}

// FuzzMemory: whatever the file holds, the plan in it can be run or is refused,
// and what can be read is written back the same.
func FuzzMemory(f *testing.F) {
	nodes := []*datastore.Node{machine("a", "192.168.99.1/24"), machine("b", "fd00:99::2/64"), machine("c", "192.168.99.3/24")}
	c := &datastore.BGPConfig{}
	c.SetDefaults()
	seed, err := json.Marshal(lastRun{Boot: "x", Plan: routing.Mesh("a", nodes, nil, c)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"boot":"x","plan":{"as":1,"routerID":"1.2.3.4","peers":[{"nextHops":[""]}],"pools":[{"cidr":""}]}}`))
	f.Add([]byte(`{"plan":{"bfd":{"interval":-1,"multiplier":256},"peers":[{"address":"1.2.3.4"}]}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var m lastRun
		if json.Unmarshal(text, &m) != nil {
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back lastRun
		if err := json.Unmarshal(again, &back); err != nil {
			t.Fatalf("%v: %s", err, again)
		}
		kernel := fib.NewFake()
		s := &speaker{cfg: Config{Node: "a"}, log: quiet(), agent: kernel.Table(87), own: kernel.Table(88), state: &state{}}
		s.installer = newInstaller(s.own, newTracker(context.Background(), s.own, ours, quiet()), func() {}, s.log)
		s.reporter = control.NewReporter("a", datastore.ReportSpeaker, nil, nil, s.log)
		s.nextHops = newTracker(t.Context(), s.own, ours, s.log)
		l := &loop{speaker: s, plan: m.Plan}
		l.believe()
		l.cfg.Tunnels = netdev.DefaultTunnels()
		l.travel(t.Context())
		_, _ = l.adopt(t.Context(), nil)
		if ok, _ := l.imports(netip.Addr{}, netip.MustParsePrefix("0.0.0.0/0"), netip.Addr{}); ok {
			t.Error("a default route is believed")
		}
		b, err := bgp.New(bgp.Config{RouterID: m.Plan.RouterID, AS: m.Plan.AS, Installer: s.installer})
		if err == nil {
			_ = b.Configure(l.peers())
		}
		bfd.New(bfd.Config{}).Configure(watchable(l.plan, func(netip.Addr) bool { return true }))
	})
}

func TestFirstOf(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	if got := firstOf(fmt.Errorf("both: %w", errors.Join(one, two))); got.Error() != "one" {
		t.Errorf("first of two: %v", got)
	}
	if got := firstOf(two); got.Error() != "two" {
		t.Errorf("first of one: %v", got)
	}
}
