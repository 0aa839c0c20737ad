package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"netctl/acl"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
	"netctl/routing/fib"
)

// TestTableIsWhatIsWanted: after any history, with flushes and rereads anywhere in
// it, the kernel holds what the owners want.
func TestTableIsWhatIsWanted(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	host := fib.NewFake()
	tab := newTable(host.Table(87))
	wants := map[string][]routing.Route{}
	for i := range 3000 {
		owner := fmt.Sprint("endpoint ", rng.IntN(12))
		var list []routing.Route
		for range rng.IntN(3) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(16))}), 32)
			if !slices.ContainsFunc(list, func(r routing.Route) bool { return r.Prefix == p }) {
				list = append(list, routing.Route{Prefix: p, NextHops: []routing.NextHop{{Link: fmt.Sprint("nc", rng.IntN(3))}}})
			}
		}
		wants[owner] = list
		tab.want(owner, list...)
		if rng.IntN(10) == 0 {
			tab.resync = true
			host.Remove(routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(16))}), 32)})
		}
		if rng.IntN(3) > 0 {
			continue
		}
		if err := tab.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := map[routing.Key]routing.Route{} // the first owner of a route has it
		for _, o := range slices.Backward(slices.Sorted(maps.Keys(wants))) {
			for _, r := range wants[o] {
				want[r.Key()] = r
			}
		}
		have, err := tab.kernel.Routes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if c := routing.Diff(slices.Collect(maps.Values(want)), have); !c.Empty() {
			t.Fatalf("step %d: missing %v, too many %v", i, c.Put, c.Delete)
		}
		if all := tab.all(); len(all) != len(want) {
			t.Fatalf("step %d: all are %v, want %v", i, all, want)
		}
	}
}

// failing is a kernel whose writes fail, and are counted.
type failing struct {
	*kernel.Fake
	*fib.Table
	fail                      bool
	up, apply, sync, forward4 int
}

var errNo = errors.New("no")

func (f *failing) err() error {
	if f.fail {
		return errNo
	}
	return nil
}

func (f *failing) Up(string) error            { f.up++; return f.err() }
func (f *failing) Forwarding4() (bool, error) { f.forward4++; return false, f.err() }

type failingTable struct{ *failing }

func (f failingTable) Apply(ctx context.Context, c routing.Changes) error {
	f.apply++
	if f.fail {
		return errNo
	}
	return f.Table.Apply(ctx, c)
}
func (f failingTable) Routes(ctx context.Context) ([]routing.Route, error) {
	return f.Table.Routes(ctx)
}

type failingFilter struct{ *failing }

func (f failingFilter) Sync(context.Context, *acl.Ruleset) (bool, error) {
	f.sync++
	return false, f.err()
}
func (f failingFilter) Adjust(ctx context.Context, r *acl.Ruleset) (bool, error) {
	return f.Sync(ctx, r)
}

func (f failingFilter) Shut(ctx context.Context, r *acl.Ruleset) (bool, error) { return f.Sync(ctx, r) }

func (f failingFilter) Apply(context.Context, acl.Delta) error { f.sync++; return f.err() }

// TestEachProblemIsTriedAtItsOwnTime: 300 events that have nothing to do with what
// failed do not have it tried once more.
func TestEachProblemIsTriedAtItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &failing{Fake: &kernel.Fake{}, Table: fib.NewFake().Table(87), fail: true}
		l := newLoop(Config{Node: "n1", LinkPrefix: "nc", Gateway: netdev.Gateway4(), StateDir: t.TempDir()}, slog.New(slog.DiscardHandler), f, failingTable{f}, failingFilter{f})
		l.standing.stage, l.standing.admitted = ready, true
		ctx, stop := context.WithCancel(t.Context())
		go func() { _ = l.run(ctx) }()
		for range 300 { // in 29.9 seconds
			if err := l.do(ctx, func() {
				l.table.want("other", routing.Route{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Type: routing.Blackhole})
			}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		// At 0, 1, 3, 7 and 15 seconds.
		if f.apply != 5 || f.sync != 5 || f.forward4 != 5 {
			t.Errorf("in 300 events routes were tried %d times, the filter %d times, forwarding %d times; want 5", f.apply, f.sync, f.forward4)
		}
		if err := l.do(ctx, func() { f.fail = false }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(retryMax)
		synctest.Wait()
		if len(l.problems.text) != 0 {
			t.Errorf("problems %v", l.problems.text)
		}
		stop()
		<-l.ended
	})
}

// ordered notes the order of changes.
type ordered struct {
	*fib.Table
	puts, deletes []string
}

func (o *ordered) Apply(ctx context.Context, c routing.Changes) error {
	for _, r := range c.Put {
		o.puts = append(o.puts, r.String())
	}
	for _, r := range c.Delete {
		o.deletes = append(o.deletes, r.String())
	}
	return o.Table.Apply(ctx, c)
}

// TestABlockOutlivesItsEndpoints: a block's route comes before those of its endpoints
// and goes after them, since alone an endpoint's would be announced.
func TestABlockOutlivesItsEndpoints(t *testing.T) {
	o := &ordered{Table: fib.NewFake().Table(87)}
	tab := newTable(o)
	block := routing.Route{Prefix: netip.MustParsePrefix("10.0.0.0/26"), Type: routing.Blackhole}
	for round := range 20 { // a map's order is not always the wrong one
		tab.want("block", block)
		for i := range 5 {
			tab.want(fmt.Sprint("endpoint ", i), routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 32), NextHops: []routing.NextHop{{Link: "nc"}}})
		}
		o.puts, o.deletes = nil, nil
		if err := tab.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for owner := range maps.Clone(tab.wants) {
			tab.want(owner)
		}
		if err := tab.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(o.puts) != 6 || len(o.deletes) != 6 || o.puts[0] != block.String() || o.deletes[5] != block.String() {
			t.Fatalf("round %d: put %q, deleted %q", round, o.puts, o.deletes)
		}
	}
}

// recovering is a table that cannot write, and knows of a missing route until it is told
// that it is there.
type recovering struct {
	*fib.Table
	missing []routing.Route
}

func (r *recovering) Apply(_ context.Context, c routing.Changes) error { r.missing = c.Put; return nil }
func (r *recovering) Missing() []routing.Route                         { return r.missing }
func (r *recovering) Adopt(routes []routing.Route)                     { r.missing = nil; r.Table.Adopt(routes) }

// TestAReadFindsWhatWasMissing: a route that was missing and is found in the kernel, so
// that nothing is to be written, is held.
func TestAReadFindsWhatWasMissing(t *testing.T) {
	kernel := &recovering{Table: fib.NewFake().Table(87)}
	r := routing.Route{Prefix: netip.MustParsePrefix("10.0.0.1/32"), NextHops: []routing.NextHop{{Link: "nc1"}}}
	tab := newTable(kernel)
	tab.want("endpoint 1", r)
	if err := tab.flush(t.Context()); err != nil || tab.holds(r.Key()) {
		t.Fatalf("%v, missing %v", err, tab.missing)
	}
	if err := kernel.Table.Apply(t.Context(), routing.Changes{Put: []routing.Route{r}}); err != nil {
		t.Fatal(err)
	}
	tab.resync = true
	if err := tab.flush(t.Context()); err != nil || !tab.holds(r.Key()) {
		t.Errorf("%v, missing %v", err, tab.missing)
	}
}

// gathering notes in which order the kernel's routes are asked for.
type gathering struct {
	*fib.Table
	calls []string
}

func (g *gathering) Gather(ctx context.Context) error {
	g.calls = append(g.calls, "gather")
	return g.Table.Gather(ctx)
}

func (g *gathering) Routes(ctx context.Context) ([]routing.Route, error) {
	g.calls = append(g.calls, "read")
	return g.Table.Routes(ctx)
}

// TestTableGathers: what another configuration had elsewhere is brought to the table
// before that is read, at the start and whenever it is read anew.
func TestTableGathers(t *testing.T) {
	g := &gathering{Table: fib.NewFake().Table(87)}
	tab := newTable(g)
	for range 2 {
		tab.resync = true
		if err := tab.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(g.calls); got != "[gather read gather read]" {
		t.Errorf("called %s", got)
	}
}
