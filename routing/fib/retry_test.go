package fib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// attempts makes a Fake refuse everything that matches, and returns at which
// second each attempt was made.
func attempts(f *Fake, match string) func() string {
	began := time.Now()
	var at []string
	f.Fail(func(op string, r routing.Route) error {
		if !strings.Contains(op+" "+r.String(), match) {
			return nil
		}
		at = append(at, fmt.Sprint(time.Since(began).Seconds()))
		return unix.ENOMEM
	})
	return func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		return strings.Join(at, " ")
	}
}

func follow(t *testing.T, table *Table) (events chan Event) {
	t.Helper()
	events = make(chan Event, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- table.Watch(ctx, Ignore{}, func(e Event) { events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	<-events
	return events
}

// TestRetry refuses one addition and one deletion: each is tried again by a time
// of its own, whatever else happens, until it goes well.
func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		table := f.Table(88)
		follow(t, table)
		gone, bad := route("10.1.0.0/26", "va 10.9.0.2"), route("10.2.0.0/26", "va 10.9.0.2")
		if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{gone}}); err != nil {
			t.Fatal(err)
		}
		made := attempts(f, "10.")
		err := table.Apply(t.Context(), routing.Changes{Delete: []routing.Route{gone}, Put: []routing.Route{bad}})
		if want := "delete route 10.1.0.0/26: cannot allocate memory\nadd route 10.2.0.0/26 via 10.9.0.2 dev va: cannot allocate memory"; err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if missing := table.Missing(); len(missing) != 1 || !missing[0].Equal(bad) {
			t.Errorf("missing %v", missing)
		}
		for range 300 { // unrelated events, and other routes that go well
			f.Put(3, route("10.50.0.0/26", "vc 10.8.0.9"))
			synctest.Wait()
		}
		time.Sleep(70 * time.Second)
		synctest.Wait()
		if got, want := made(), "0 0 1 1 3 3 7 7 15 15 31 31 61 61"; got != want {
			t.Errorf("tried at %s, want %s", got, want)
		}
		f.Fail(nil)
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if routes, _ := table.Routes(t.Context()); len(routes) != 1 || !routes[0].Equal(bad) || len(table.Missing()) > 0 {
			t.Errorf("%v are there, missing %v", routes, table.Missing())
		}
	})
}

// TestRetryWhatConcerns tries a refused route again at once when its link comes up
// or the way to its gateway changes, and at nothing else.
func TestRetryWhatConcerns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		table := f.Table(88)
		follow(t, table)
		made := attempts(f, "10.2.0.0/26")
		bad := route("10.2.0.0/26", "va 10.9.0.2")
		if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{bad}}); err == nil {
			t.Fatal("it was not refused")
		}
		count := func() int { synctest.Wait(); return len(strings.Fields(made())) }
		for _, c := range []struct {
			what string
			do   func()
			more int
		}{
			{"another link comes up", func() { f.Link("vc", false); f.Link("vc", true) }, 0},
			{"a route elsewhere", func() { f.Put(3, route("10.50.0.0/26", "vc 10.8.0.9")) }, 0},
			{"a route to the gateway", func() { f.Put(2, route("10.9.0.0/24", "va")) }, 1},
			{"its link comes up", func() { f.Link("va", false); f.Link("va", true) }, 1},
		} {
			before := count()
			c.do()
			if got := count() - before; got != c.more {
				t.Errorf("%s: %d attempts, want %d", c.what, got, c.more)
			}
		}
		if err := table.Apply(t.Context(), routing.Changes{Delete: []routing.Route{bad}}); err == nil {
			t.Fatal("it was not refused")
		}
	})
}

// TestCompare has changes happen that no notification tells of.
func TestCompare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		f := NewFake()
		table := f.Table(88)
		events := follow(t, table)
		routes := []routing.Route{route("10.1.0.0/26", "va 10.9.0.2"), route("10.2.0.0/26", "va 10.9.0.2"), route("10.3.0.0/26")}
		if err := table.Apply(ctx, routing.Changes{Put: routes}); err != nil {
			t.Fatal(err)
		}
		static, more := route("10.7.0.0/26", "va 10.9.0.9"), route("10.4.0.0/26", "va 10.9.0.2")
		f.Put(3, static)
		f.Unheard(func() {
			f.Remove(routes[0])
			f.Put(88, route("10.2.0.0/26", "vc 10.8.0.2"))
			f.Put(88, more)
		})
		synctest.Wait()
		if len(events) != 1 { // the static one
			t.Errorf("%d events", len(events))
		}
		made, err := table.Compare(ctx)
		if err != nil || fmt.Sprint(made.Put) != fmt.Sprint(routes[:2]) || fmt.Sprint(made.Delete) != fmt.Sprint([]routing.Route{more}) {
			t.Errorf("put right %v, %v", made, err)
		}
		if have, err := table.Routes(ctx); err != nil || !routing.Diff(routes, have).Empty() || !strings.Contains(f.String(), static.String()) {
			t.Errorf("kernel has\n%s", f)
		}
		if made, err := table.Compare(ctx); err != nil || !made.Empty() {
			t.Errorf("second comparison: %v, %v", made, err)
		}
		f.Unheard(func() { f.Remove(routes[0]) })
		attempts(f, "10.1.0.0")
		made, err = table.Compare(ctx)
		var refused *RouteError
		if !made.Empty() || !errors.As(err, &refused) || len(table.Missing()) != 1 {
			t.Errorf("with a refusal: %v, %v", made, err)
		}
	})
}

// TestWritten counts what is written for one more route, one that changes and one
// that goes, with few and with many others there.
func TestWritten(t *testing.T) {
	counts := map[int]string{}
	for _, n := range []int{10, 1000} {
		synctest.Test(t, func(t *testing.T) {
			ctx := t.Context()
			f := NewFake()
			counter := &countingKernel{fakeKernel: &fakeKernel{fake: f, protocol: 88, poke: make(chan struct{}, 1)}}
			f.tables = append(f.tables, counter.fakeKernel)
			table := newTable(Config{Protocol: 88}, counter, slog.New(slog.DiscardHandler))
			follow(t, table)
			if err := table.Apply(ctx, routing.Changes{Put: many(n)}); err != nil {
				t.Fatal(err)
			}
			*counter = countingKernel{fakeKernel: counter.fakeKernel}
			one := route("10.1.0.0/26", "va 10.9.0.2")
			for _, c := range []routing.Changes{
				{Put: []routing.Route{one}}, {Put: many(n)}, {Put: []routing.Route{route("10.1.0.0/26", "va 10.9.0.3")}}, {Delete: []routing.Route{one}},
			} {
				if err := table.Apply(ctx, c); err != nil {
					t.Fatal(err)
				}
			}
			f.Put(3, route("10.50.0.0/26", "vc 10.8.0.9"))
			f.Link("vc", false)
			synctest.Wait()
			counts[n] = fmt.Sprint(counter.written, counter.dumps)
		})
	}
	if want := "[add replace delete] 0"; counts[10] != want || counts[1000] != want {
		t.Errorf("wrote %v, want %s", counts, want)
	}
}

// countingKernel notes what is written and how often everything is read.
type countingKernel struct {
	*fakeKernel
	written []string
	dumps   int
}

func (c *countingKernel) write(changes []change, refused func(int, error)) {
	for _, x := range changes {
		c.written = append(c.written, x.op.String())
	}
	c.fakeKernel.write(changes, refused)
}

func (c *countingKernel) dump(ctx context.Context, protocol uint8) ([]routing.Route, error) {
	c.dumps++
	return c.fakeKernel.dump(ctx, protocol)
}

// TestPartlyRefused writes more than a batch of which the kernel takes all but a
// few: exactly these are reported.
func TestPartlyRefused(t *testing.T) {
	namespace(t)
	table := open(t, 88)
	var c routing.Changes
	var want []string
	for i := range 2*batch + 10 {
		r := routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)}), 32), NextHops: []routing.NextHop{{Addr: netip.MustParseAddr("10.9.0.2"), Link: "va"}}}
		if i%200 == 7 || i == batch-1 {
			r.NextHops[0].Addr = netip.MustParseAddr("172.16.0.1") // not reachable there
			want = append(want, r.String())
		}
		c.Put = append(c.Put, r)
	}
	err := table.Apply(t.Context(), c)
	var got []string
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		var refused *RouteError
		if !errors.As(e, &refused) || !errors.Is(e, unix.ENETUNREACH) {
			t.Fatal(e)
		}
		got = append(got, refused.Route.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("refused %q, want %q", got, want)
	}
	if have, err := table.Routes(t.Context()); err != nil || len(have) != len(c.Put)-len(want) {
		t.Errorf("%d routes, %v", len(have), err)
	}
}

func FuzzRouteMessage(f *testing.F) {
	p4, p6 := netip.MustParsePrefix("10.1.0.0/26"), netip.MustParsePrefix("fd11::/122")
	for _, hops := range [][]hopMessage{
		{{netip.MustParseAddr("fe80::2"), 3, false}},
		{{netip.MustParseAddr("fe80::2"), 3, false}, {netip.MustParseAddr("10.9.0.3"), 4, true}},
		{{netip.MustParseAddr("10.9.0.2"), 3, false}},
		{{netip.MustParseAddr("10.9.0.2"), 3, false}, {netip.MustParseAddr("10.9.0.3"), 4, true}},
	} {
		f.Add(appendHops(appendNumber(appendAddress(appendRtMsg(nil, p4, 254, 88, 0, 1, 0), unix.RTA_DST, p4.Addr()), unix.RTA_PRIORITY, 7), true, hops))
	}
	f.Add(appendAddress(appendRtMsg(nil, p6, 254, 88, 0, 6, 0), unix.RTA_DST, p6.Addr()))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = split(b, func(m message) error { _ = refusal(m); return nil })
		var m routeMessage
		if m.parse(b) != nil {
			return
		}
		if !m.prefix.IsValid() || len(m.hops) == 0 {
			t.Fatalf("read %+v", m)
		}
		// What was read can be written and read again.
		var o routeMessage
		b = appendAddress(appendRtMsg(nil, m.prefix, uint8(m.table), m.protocol, 0, m.kind, m.flags), unix.RTA_DST, m.prefix.Addr())
		b = appendHops(appendNumber(appendNumber(b, unix.RTA_TABLE, m.table), unix.RTA_PRIORITY, m.metric), m.prefix.Addr().Is4(), m.hops)
		if err := o.parse(b); err != nil || o.key() != m.key() || len(o.hops) != len(m.hops) || o.hops[0].addr != m.hops[0].addr {
			t.Fatalf("read %+v, %v, then %+v", m, err, o)
		}
	})
}

// TestAdoptIsAllThatIsWanted: after Adopt a table wants what it was given and nothing
// from before, so that a route which is wanted again is written again.
func TestAdoptIsAllThatIsWanted(t *testing.T) {
	fake := NewFake()
	table := fake.Table(88)
	route := func(prefix string) routing.Route {
		return routing.Route{Prefix: netip.MustParsePrefix(prefix), Type: routing.Blackhole}
	}
	kept, lost := route("10.1.0.0/26"), route("10.2.0.0/26")
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{kept, lost}}); err != nil {
		t.Fatal(err)
	}
	table.failed[keyOf(lost.Key())] = retry{}
	table.Adopt([]routing.Route{kept})
	if len(table.failed) > 0 || len(table.Missing()) > 0 {
		t.Errorf("to be tried again: %v", table.failed)
	}
	table.watching = true // what is wanted is in the kernel
	fake.Remove(lost)
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{kept, lost}}); err != nil {
		t.Fatal(err)
	}
	if have, err := table.Routes(t.Context()); err != nil || len(have) != 2 {
		t.Errorf("%v %v", have, err)
	}
}

// TestAnAddressThatNothingNeeds: routes over a link that lost an address are looked at
// again, though the subnet of that is nobody's.
func TestAnAddressThatNothingNeeds(t *testing.T) {
	table := NewFake().Table(88)
	r := route("10.1.0.0/26", "va 10.9.0.2")
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{r}}); err != nil {
		t.Fatal(err)
	}
	table.lostWith([]string{"va"})
	if keys := table.touched(heard{unaddressed: []string{"va"}}); len(keys) != 1 {
		t.Errorf("looked at again: %v", keys)
	}
}
