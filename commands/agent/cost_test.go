package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"netctl/acl"
	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/routing"
	"netctl/routing/fib"
)

// cost is what was asked of the store and the kernel.
type cost struct {
	reads, commits              int // of the store, reports left out
	links, dumps                int // calls that change links; that read them all
	routes, routeDumps, changed int // calls that change routes; that read them all; routes changed
	filter, filterSyncs         int // transactions of the packet filter; comparisons of all
	elements, rules             int // in the transactions
}

func (c cost) String() string {
	return fmt.Sprintf("store %d reads %d commits, links %d calls %d dumps, routes %d calls %d dumps %d changed, filter %d transactions %d comparisons %d elements %d rules",
		c.reads, c.commits, c.links, c.dumps, c.routes, c.routeDumps, c.changed, c.filter, c.filterSyncs, c.elements, c.rules)
}

// counters counts; all calls but the store's come from the loop and its callers.
type counters struct {
	reads, commits, links, dumps, routes, routeDumps, changed, filter, filterSyncs, elements, rules atomic.Int64

	heard sync.Map // by link ("" for all of them): a channel, closed once an event was handed on
	marks int
}

func (c *counters) take() (out cost) {
	for _, p := range []struct {
		from *atomic.Int64
		to   *int
	}{
		{&c.reads, &out.reads}, {&c.commits, &out.commits}, {&c.links, &out.links}, {&c.dumps, &out.dumps}, {&c.routes, &out.routes},
		{&c.routeDumps, &out.routeDumps}, {&c.changed, &out.changed}, {&c.filter, &out.filter}, {&c.filterSyncs, &out.filterSyncs},
		{&c.elements, &out.elements}, {&c.rules, &out.rules},
	} {
		*p.to = int(p.from.Swap(0))
	}
	return out
}

type countedStore struct {
	datastore.Store
	*counters
}

func (s countedStore) Get(ctx context.Context, key string) (datastore.Entry, error) {
	s.reads.Add(1)
	return s.Store.Get(ctx, key)
}

func (s countedStore) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	s.reads.Add(1)
	return s.Store.List(ctx, prefixes...)
}

func (s countedStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if len(t.Then) != 1 || !strings.HasPrefix(t.Then[0].Key, datastore.ReportPrefix) {
		s.commits.Add(1)
	}
	return s.Store.Commit(ctx, t)
}

type countedLinks struct {
	*kernel.Fake
	*counters
}

func (c *counters) event(link string) chan struct{} {
	ch, _ := c.heard.LoadOrStore(link, make(chan struct{}))
	return ch.(chan struct{})
}

// Watch is Fake.Watch.
func (l countedLinks) Watch(ctx context.Context, fn func(kernel.Event)) error {
	return l.Fake.Watch(ctx, func(e kernel.Event) {
		fn(e)
		if ch := l.event(e.Link); !closed(ch) {
			close(ch)
		}
	})
}

func closed(ch chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Create is Fake.Create. It returns once the link's event was handed on: heard after
// the link was set up, it would have that done again.
func (l countedLinks) Create(w kernel.Wire) (kernel.Made, error) {
	l.links.Add(1)
	<-l.event("")
	made, err := l.Fake.Create(w)
	if err == nil {
		<-l.event(w.Link)
	}
	return made, err
}

func (l countedLinks) Up(link string) error { l.links.Add(1); return l.Fake.Up(link) }
func (l countedLinks) Detach(link string, index int) error {
	l.links.Add(1)
	return l.Fake.Detach(link, index)
}

func (l countedLinks) Hold(w kernel.Wire, raise bool) ([]string, error) {
	l.links.Add(1)
	return l.Fake.Hold(w, raise)
}

func (l countedLinks) Links(also ...int) ([]kernel.Link, error) {
	l.dumps.Add(1)
	return l.Fake.Links(also...)
}

func (l countedLinks) Addresses() ([]kernel.Address, error) {
	l.dumps.Add(1)
	return l.Fake.Addresses()
}

type countedRoutes struct {
	unresolved
	*counters
}

func (r countedRoutes) Routes(ctx context.Context) ([]routing.Route, error) {
	r.routeDumps.Add(1)
	return r.unresolved.Routes(ctx)
}

func (r countedRoutes) Apply(ctx context.Context, c routing.Changes) error {
	r.routes.Add(1)
	r.changed.Add(int64(len(c.Put) + len(c.Delete)))
	return r.unresolved.Apply(ctx, c)
}

func (r countedRoutes) Resolve(ctx context.Context, a netip.Addr) (routing.NextHop, error) {
	return r.unresolved.Resolve(ctx, a)
}

func (r countedRoutes) Watch(ctx context.Context, ignore fib.Ignore, fn func(fib.Event)) error {
	return r.unresolved.Watch(ctx, ignore, fn)
}

type countedFilter struct {
	watchedFilter
	*counters
}

// watchedFilter is outside's filter.
type watchedFilter interface {
	filter
	Watch(ctx context.Context, fn func()) error
	WatchOthers(ctx context.Context, fn func()) error
}

func (f countedFilter) Sync(ctx context.Context, r *acl.Ruleset) (bool, error) {
	f.filterSyncs.Add(1)
	return f.watchedFilter.Sync(ctx, r)
}

func (f countedFilter) Apply(ctx context.Context, d acl.Delta) error {
	f.filter.Add(1)
	for _, s := range d.Sets {
		f.elements.Add(int64(len(s.Add) + len(s.Del)))
	}
	for _, c := range d.Chains {
		f.rules.Add(int64(len(c.Rules)))
	}
	return f.watchedFilter.Apply(ctx, d)
}

// count puts counters between the agent and what it works on.
func (c *counters) count(o *outside, w *world) {
	o.store = countedStore{o.store, c}
	o.links = countedLinks{w.links, c}
	o.routes = countedRoutes{o.routes.(unresolved), c}
	o.filter = countedFilter{w.nft, c}
}

// populate fills the store with other nodes, each with a block, an endpoint of
// profile web and one of a profile of its own.
func (w *world) populate(nodes int) {
	w.t.Helper()
	put := func(o datastore.Object) {
		o.SetDefaults()
		if err := datastore.Create(w.t.Context(), w.store, o); err != nil {
			w.t.Fatal(err)
		}
	}
	put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}})
	put(&datastore.Network{Metadata: datastore.Metadata{Name: "web"}})
	for i := range nodes {
		name := fmt.Sprint("other", i)
		at := netip.AddrFrom4([4]byte{10, 66, byte(i >> 2), byte(i << 6)})
		put(&datastore.Node{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 16)}}})
		put(&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.PrefixFrom(at, 26), Affinity: name}})
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: name}})
		for j, profile := range []string{"web", name} {
			put(remote(name, fmt.Sprint("w", j), at, profile))
			at = at.Next()
		}
	}
}

func remote(node, workload string, at netip.Addr, profile string) *datastore.Endpoint {
	return &datastore.Endpoint{Spec: datastore.EndpointSpec{Node: node, Orchestrator: "cni", Workload: workload, Interface: "eth0",
		Link: datastore.LinkName("nc", datastore.EndpointName(node, "cni", workload, "eth0")), Addresses: []netip.Addr{at}, Profiles: []string{profile}}}
}

// settled waits until the loop has worked off what the store holds now, and what the links told.
func (w *world) settled() {
	w.t.Helper()
	if c := w.counters; c != nil {
		c.marks++
		last := fmt.Sprint("mark", c.marks) // a link that nobody knows
		w.links.Tell(kernel.Event{Change: kernel.LinkGone, Link: last, Index: -c.marks})
		<-c.event(last)
	}
	snap, err := w.db().List(w.t.Context(), datastore.ClusterKey)
	if err != nil {
		w.t.Fatal(err)
	}
	// Something of every kind that is followed has that revision or a later one once
	// this has been seen.
	mark := &datastore.Config{Metadata: datastore.Metadata{Name: datastore.DefaultName, Labels: map[string]string{"mark": fmt.Sprint(snap.Revision)}}}
	_, op, err := datastore.OpPut(mark)
	if err != nil {
		w.t.Fatal(err)
	}
	rev, err := w.db().Commit(w.t.Context(), datastore.Txn{Then: []datastore.Op{op}})
	if err == nil {
		err = w.a.loop.Reach(w.t.Context(), rev)
	}
	for range 3 {
		if err == nil {
			err = w.a.loop.do(w.t.Context(), func() {})
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestAnEventCostsWhatItChanges counts what the agent asks of the store and of the
// kernel for one event each, in small and large clusters and with few and many
// endpoints on the node: the counts are equal.
func TestAnEventCostsWhatItChanges(t *testing.T) {
	measure := func(nodes, local int) (out []string) {
		w := newWorld(t)
		w.counters = &counters{}
		w.pool("10.65.0.0/16")
		w.populate(nodes)
		w.start()
		w.ready()
		for i := range local {
			w.mustAttach(fmt.Sprint("local", i), "web", 100+i)
		}
		w.mustAttach("before", "web", 50) // the node has a block
		step := func(what string, fn func()) {
			w.settled()
			w.counters.take()
			fn()
			w.settled()
			out = append(out, what+": "+w.counters.take().String())
		}
		put := func(o datastore.Object) {
			o.SetDefaults()
			if err := datastore.Create(t.Context(), w.store, o); err != nil {
				t.Fatal(err)
			}
		}
		step("attach", func() { w.mustAttach("w", "web", 7) })
		step("detach", func() {
			if err := w.detach("w"); err != nil {
				t.Fatal(err)
			}
		})
		step("endpoint elsewhere", func() { put(remote("other1", "new", netip.MustParseAddr("10.66.0.120"), "web")) })
		step("endpoint elsewhere of no concern", func() { put(remote("other1", "new2", netip.MustParseAddr("10.66.0.121"), "other1")) })
		step("block elsewhere", func() {
			put(&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.67.0.0/26"), Affinity: "other1"}})
		})
		step("report elsewhere", func() {
			put(&datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName("other1", datastore.ReportSpeaker)}})
		})
		step("node elsewhere", func() {
			if _, err := datastore.Modify(t.Context(), w.store, "other1", func(n *datastore.Node) error { n.Status.Version = "2"; return nil }); err != nil {
				t.Fatal(err)
			}
		})
		step("rule of web", func() {
			if _, err := datastore.Modify(t.Context(), w.store, "web", func(p *datastore.Profile) error {
				r, err := datastore.ParseRule("allow tcp to ports 80")
				p.Spec.Inbound = append(p.Spec.Inbound, r)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		})
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		return out
	}
	small := measure(10, 0)
	for _, large := range [][2]int{{1000, 0}, {10, 600}} {
		for i, got := range measure(large[0], large[1]) {
			if got != small[i] {
				t.Errorf("%d nodes, %d endpoints here:\n%s\nwith 10 nodes:\n%s", large[0], large[1], got, small[i])
			}
		}
	}
	// An attach is one transaction, one link made and set up, its route, one
	// transaction of the packet filter.
	if want := "attach: store 0 reads 1 commits, links 2 calls 0 dumps, routes 1 calls 0 dumps 1 changed, filter "; !strings.HasPrefix(small[0], want) {
		t.Errorf("got  %s\nwant %s…", small[0], want)
	}
	for _, line := range small {
		t.Log(line)
	}
}
