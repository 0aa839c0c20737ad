package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/routing"
	"netctl/routing/fib"
)

// countedTable counts what the role asks of the kernel.
type countedTable struct {
	*fib.Table
	calls map[string]int
}

func (c countedTable) Routes(ctx context.Context) ([]routing.Route, error) {
	c.calls["routes"]++
	return c.Table.Routes(ctx)
}

func (c countedTable) Connected(ctx context.Context) ([]routing.Route, error) {
	c.calls["connected"]++
	return c.Table.Connected(ctx)
}

func (c countedTable) Reach(ctx context.Context, a netip.Addr) (routing.NextHop, netip.Addr, error) {
	c.calls["resolve"]++
	return c.Table.Reach(ctx, a)
}

func (c countedTable) Apply(ctx context.Context, ch routing.Changes) error {
	c.calls["apply"]++
	return c.Table.Apply(ctx, ch)
}

// TestAnEventCostsTheSpeakerWhatItChanges counts plans and kernel calls of one event
// each with 10 and with 1,000 nodes.
func TestAnEventCostsTheSpeakerWhatItChanges(t *testing.T) {
	measure := func(nodes int) (out []string) {
		host := fib.NewFake()
		host.Put(2, connected("172.16.0.0/16", "eth1"))
		calls := map[string]int{}
		s := newSpeaker(t.Context(), Config{Node: "n0", StateDir: filepath.Dir(hostFile(t, "n0")), LinkPrefix: "nc", BootFile: "/proc/sys/kernel/random/boot_id"},
			countedTable{host.Table(87), calls}, countedTable{host.Table(88), calls}, memory.New(), nil, quiet())
		var entries []datastore.Entry
		node := func(i int) *datastore.Node {
			return machine(fmt.Sprint("n", i), netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}).Next(), 16).String())
		}
		for i := range nodes {
			entries = append(entries, stored(t, int64(i+1), node(i)))
		}
		if err := s.follower.Replace(datastore.Snapshot{Entries: entries, Revision: int64(nodes)}); err != nil {
			t.Fatal(err)
		}
		l := &loop{speaker: s, announced: routing.NewAnnounced(ours)}
		l.plan = <-s.follower.plans
		for _, a := range l.plan.Nodes { // next hops of what reflectors tell are no peers'
			l.nextHops.resolve(a)
		}
		step := func(what string, fn func()) {
			clear(calls)
			s.follower.meshes = 0
			fn()
			plans := len(s.follower.plans)
			for range plans {
				<-s.follower.plans
			}
			out = append(out, fmt.Sprint(what, ": ", s.follower.meshes, " meshes, ", plans, " plans, calls ", calls))
		}
		apply := func(o datastore.Object) {
			if err := s.follower.Apply(datastore.Batch{Events: []datastore.Entry{stored(t, 5000, o)}, Revision: 5000}); err != nil {
				t.Fatal(err)
			}
		}
		step("node elsewhere says what does not matter here", func() {
			n := node(1)
			n.Status.Version, n.Status.Subnets = "2", []netip.Prefix{netip.MustParsePrefix("192.168.5.0/24")}
			apply(n)
		})
		step("node elsewhere gets another address", func() {
			n := node(1)
			n.Spec.Addresses = []netip.Prefix{netip.MustParsePrefix("172.16.200.200/16")}
			apply(n)
		})
		one := routing.Route{Prefix: netip.MustParsePrefix("10.65.0.7/32"), NextHops: []routing.NextHop{{Link: "nc1"}}}
		step("attach", func() {
			l.heard(t.Context(), kernelEvent{true, fib.Event{Changes: []fib.Change{{Route: one}}, Up: []string{"nc1"}}})
		})
		step("detach", func() { l.heard(t.Context(), kernelEvent{true, fib.Event{Down: []string{"nc1"}}}) })
		step("foreign route to nowhere of ours", func() {
			l.heard(t.Context(), kernelEvent{false, fib.Event{Foreign: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}})
		})
		step("foreign route to one peer", func() {
			l.heard(t.Context(), kernelEvent{false, fib.Event{Foreign: []netip.Prefix{netip.MustParsePrefix("172.16.0.3/32")}}})
		})
		return out
	}
	small, large := measure(10), measure(1000)
	for i := range small {
		if small[i] != large[i] {
			t.Errorf("with 10 nodes %s\nwith 1000 nodes %s", small[i], large[i])
		}
	}
	want := []string{
		"node elsewhere says what does not matter here: 0 meshes, 0 plans, calls map[]",
		"node elsewhere gets another address: 1 meshes, 1 plans, calls map[]",
		"attach: 0 meshes, 0 plans, calls map[]",
		"detach: 0 meshes, 0 plans, calls map[]",
		"foreign route to nowhere of ours: 0 meshes, 0 plans, calls map[connected:1]",
		"foreign route to one peer: 0 meshes, 0 plans, calls map[connected:1 resolve:1]",
	}
	for i := range want {
		if small[i] != want[i] {
			t.Errorf("got  %s\nwant %s", small[i], want[i])
		}
	}
}
