package fib

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"netctl/routing"
)

// through are n routes over the same next hops.
func through(n int, hops ...string) []routing.Route {
	way := route("10.1.0.0/26", hops...)
	var out []routing.Route
	for i := range n {
		r := way
		r.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)}), 32)
		if way.NextHops[0].Addr.Is6() {
			r.Prefix = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x20, 14: byte(i >> 8), 15: byte(i)}), 128)
		}
		out = append(out, r)
	}
	return out
}

// follows says whether the table has these routes and no others, and misses none.
func follows(t *testing.T, table *Table, want []routing.Route) bool {
	t.Helper()
	have, err := table.Routes(t.Context())
	return err == nil && routing.Diff(want, have).Empty() && len(table.Missing()) == 0
}

// TestObjectMoves counts what is written when all routes over next hops go elsewhere:
// the same for few and for many routes.
func TestObjectMoves(t *testing.T) {
	a, b, c := "va 10.9.0.2", "vc 10.8.0.2", "vc 10.8.0.3"
	counts := map[int]string{}
	for _, n := range []int{200, 5000} {
		synctest.Test(t, func(t *testing.T) {
			f := NewFake()
			table := f.Open(Config{Protocol: 88, Groups: true})
			table.Adopt(nil)
			follow(t, table)
			other := route("10.7.0.0/24", c)
			step := func(name string, put []routing.Route) {
				t.Helper()
				f.Messages()
				if err := table.Apply(t.Context(), routing.Changes{Put: put}); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				counts[n] += fmt.Sprintf("%s %d\n", name, f.Messages())
				if !follows(t, table, append(slices.Clone(put), other)) {
					t.Fatalf("%d routes, %s:\n%s", n, name, f)
				}
			}
			if err := table.Apply(t.Context(), routing.Changes{Put: append(through(n, a, b), other)}); err != nil {
				t.Fatal(err)
			}
			step("one of two dies", through(n, b))
			step("it is back", through(n, b, a))
			step("another in its place", through(n, c, a))
			step("some go elsewhere", append(through(10, c), through(n, c, b)[10:]...))
			step("and are back with the others", through(n, c))
			f.Messages()
			if err := table.Apply(t.Context(), routing.Changes{Delete: through(n, c)}); err != nil || len(f.objects) > 0 {
				t.Errorf("%d objects are left, %v", len(f.objects), err)
			}
		})
	}
	if counts[200] != counts[5000] {
		t.Errorf("of 200 routes\n%sof 5000\n%s", counts[200], counts[5000])
	}
	t.Logf("messages:\n%s", counts[5000])
}

// TestObjectsOfSingle: many routes over one next hop name an object, few do not.
func TestObjectsOfSingle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		table := f.Open(Config{Protocol: 88, Groups: true})
		follow(t, table)
		if err := table.Apply(t.Context(), routing.Changes{Put: through(fewUsers, "va 10.9.0.2")}); err != nil || len(f.objects) > 0 {
			t.Fatalf("%v, objects %v", err, f.objects)
		}
		if err := table.Apply(t.Context(), routing.Changes{Put: through(5000, "va 10.9.0.2")}); err != nil || len(f.objects) != 2 {
			t.Fatalf("%v, objects %v", err, f.objects)
		}
		f.Messages()
		want := through(5000, "vc 10.8.0.2")
		if err := table.Apply(t.Context(), routing.Changes{Put: want}); err != nil {
			t.Fatal(err)
		}
		if n := f.Messages(); n > fewUsers+4 {
			t.Errorf("%d messages", n)
		}
		if !follows(t, table, want) {
			t.Errorf("routes:\n%s", f)
		}
	})
}

// TestObjectsRepaired takes objects away as links and other programs do.
func TestObjectsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		table := f.Open(Config{Protocol: 88, Groups: true})
		follow(t, table)
		want := append(through(100, "va 10.9.0.2", "vc 10.8.0.2"), route("10.1.0.0/26", "va 10.9.0.2", "va 10.9.0.3"))
		if err := table.Apply(t.Context(), routing.Changes{Put: want}); err != nil {
			t.Fatal(err)
		}
		f.Flush()
		synctest.Wait()
		if !follows(t, table, want) {
			t.Errorf("after a flush:\n%s", f)
		}
		f.Link("va", false)
		synctest.Wait()
		if have, err := table.Routes(t.Context()); err != nil || !routing.Diff(through(100, "vc 10.8.0.2"), have).Empty() || len(table.Missing()) != 1 {
			t.Errorf("without va: %v, %d missing\n%s", err, len(table.Missing()), f)
		}
		f.Link("va", true)
		synctest.Wait()
		if !follows(t, table, want) {
			t.Errorf("after va was down:\n%s", f)
		}
		f.Unheard(f.Flush)
		if made, err := table.Compare(t.Context()); err != nil || len(made.Put) != len(want) || !follows(t, table, want) {
			t.Errorf("after a flush that nobody heard of: %d, %v\n%s", len(made.Put), err, f)
		}
	})
}

// TestObjectsStay: as long as nobody said what is wanted, routes and objects of a life
// before stay whatever happens; then they are gone on with.
func TestObjectsStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		before := f.Open(Config{Protocol: 88, Groups: true})
		want := append(through(200, "va 10.9.0.2", "vc 10.8.0.2"), through(400, "vc 10.8.0.3")[200:]...)
		if err := before.Apply(t.Context(), routing.Changes{Put: want}); err != nil {
			t.Fatal(err)
		}
		table := f.Open(Config{Protocol: 88, Groups: true})
		follow(t, table)
		f.Link("vd", false)
		f.Link("vd", true)
		f.mu.Lock()
		for _, k := range f.tables {
			k.tell(func(h *heard) { h.objects = true })
		}
		f.mu.Unlock()
		synctest.Wait()
		if !follows(t, table, want) {
			t.Fatalf("before Adopt:\n%s", f)
		}
		have, err := table.Routes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		table.Adopt(have)
		f.Messages()
		f.Link("vd", false)
		synctest.Wait()
		if made, err := table.Compare(t.Context()); err != nil || !made.Empty() || f.Messages() > 0 || !follows(t, table, want) {
			t.Errorf("after Adopt: %v, %v\n%s", made, err, f)
		}
	})
}

// TestObjectsOfBefore: routes that a version without objects wrote are moved one by one
// at first, and right.
func TestObjectsOfBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := NewFake()
		before := f.Open(Config{Protocol: 88})
		old := append(through(200, "va 10.9.0.2"), route("10.1.0.0/26", "va 10.9.0.2", "vc 10.8.0.2"))
		if err := before.Apply(t.Context(), routing.Changes{Put: old}); err != nil {
			t.Fatal(err)
		}
		table := f.Open(Config{Protocol: 88, Groups: true})
		have, err := table.Routes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		table.Adopt(have)
		follow(t, table)
		for _, hop := range []string{"va 10.9.0.2", "vc 10.8.0.2", "vc 10.8.0.3"} {
			want := append(through(400, hop), route("10.1.0.0/26", hop, "vc 10.8.0.7"))
			if err := table.Apply(t.Context(), routing.Changes{Put: want}); err != nil {
				t.Fatal(err)
			}
			if !follows(t, table, want) {
				t.Fatalf("through %s:\n%s", hop, f)
			}
		}
	})
}

// TestObjectsReadBack writes objects of every kind of next hop: the kernel has them as
// they were meant.
func TestObjectsReadBack(t *testing.T) {
	namespace(t)
	table, messages := counted(t, Config{Protocol: 88, Groups: true})
	table.Adopt(nil)
	want := slices.Concat(
		through(100, "va 10.77.0.2 onlink"), // as through a tunnel
		[]routing.Route{
			route("10.1.0.0/26", "va 10.77.0.2 onlink", "vc 10.8.0.2"), route("10.1.1.0/26", "va 10.9.0.2", "vc 10.8.0.2"), route("10.1.2.0/26", "va 10.9.0.2"),
			route("fd11::/122", "va fd00:9::2", "vc fe80::1"), route("fd11::40/122", "va fe80::2 onlink", "va fe80::3 onlink"),
		})
	if err := table.Apply(t.Context(), routing.Changes{Put: want}); err != nil {
		t.Fatal(err)
	}
	messages.count = 0
	if made, err := table.Compare(t.Context()); err != nil || !made.Empty() || messages.count > 0 || !follows(t, table, want) {
		t.Errorf("%v, %v, %d messages\n%s%s%s", made, err, messages.count, ip(t, "nexthop"), ip(t, "route"), ip(t, "-6 route"))
	}
	if out := ip(t, "route show 10.1.2.0/26"); strings.Contains(out, "nhid") {
		t.Errorf("a single route: %s", out)
	}
}

// messages counts what is written to the kernel.
type messages struct {
	kernel
	count int
}

func (m *messages) write(changes []change, refused func(int, error)) {
	m.count += len(changes)
	m.kernel.write(changes, refused)
}

func (m *messages) putObject(o object, replace bool) error {
	m.count++
	return m.kernel.putObject(o, replace)
}

func (m *messages) deleteObject(id uint32) error {
	m.count++
	return m.kernel.deleteObject(id)
}

// counted is a table of the kernel's whose messages are counted.
func counted(t *testing.T, c Config) (*Table, *messages) {
	t.Helper()
	table, err := Open(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	m := &messages{kernel: table.kernel}
	table.kernel = m
	return table, m
}

// TestObjectsInKernel: 10,000 routes over two next hops, and some of IPv6, are moved by a
// few messages, and are there again after each way to lose them.
func TestObjectsInKernel(t *testing.T) {
	t.Run("plain", func(t *testing.T) { testObjectsInKernel(t, false, 10_000) })
	t.Run("resilient", func(t *testing.T) { testObjectsInKernel(t, true, 300) })
}

func testObjectsInKernel(t *testing.T, resilient bool, routes int) {
	namespace(t)
	const routes6 = 300
	config := Config{Protocol: 88, Groups: true, Resilient: resilient}
	table, messages := counted(t, config)
	if !table.wanted.groups {
		t.Skip("this kernel has no next-hop objects")
	}
	table.Adopt(nil)
	ip(t, "addr add fd00:8::1/64 dev vc nodad")
	// Others' objects, one of them where the first of ours would be.
	ip(t, "nexthop add id 5 via 10.9.0.5 dev va protocol static")
	ip(t, "nexthop add id 880000001 via 10.9.0.6 dev va protocol static")
	a, b := []string{"va 10.9.0.2", "va fd00:9::2"}, []string{"vc 10.8.0.2", "vc fd00:8::2"}
	both := append(through(routes, a[0], b[0]), through(routes6, a[1], b[1])...)
	one := append(through(routes, b[0]), through(routes6, b[1])...)
	stop := watchedUntil(t, table)
	apply := func(want []routing.Route) {
		t.Helper()
		if err := table.Apply(t.Context(), routing.Changes{Put: want}); err != nil {
			t.Fatal(err)
		}
		if !follows(t, table, want) {
			t.Fatalf("routes are not as applied:\n%s", ip(t, "nexthop"))
		}
	}
	apply(both)
	messages.count = 0
	apply(one)
	apply(both)
	if messages.count > 20 {
		t.Errorf("%d messages for one next hop that went and came", messages.count)
	}
	if resilient != strings.Contains(ip(t, "nexthop"), "type resilient") {
		t.Errorf("objects:\n%s", ip(t, "nexthop"))
	}
	if out := ip(t, "nexthop"); strings.Count(out, "proto static") != 2 {
		t.Errorf("others' objects were touched:\n%s", out)
	}
	there := func() bool { return follows(t, table, both) }

	ip(t, "link set dev vb down")
	eventually(t, "the other next hop alone", func() bool {
		return strings.Contains(ip(t, "route get 20.0.0.1"), "via 10.8.0.2") && !strings.Contains(ip(t, "nexthop"), "via 10.9.0.2 ")
	})
	ip(t, "link set dev vb up")
	eventually(t, "back after the carrier was away", there)

	for _, link := range []string{"va", "vc"} {
		ip(t, "link set dev "+link+" down")
	}
	eventually(t, "no routes without links", func() bool { return len(table.Missing()) == routes+routes6 })
	for _, link := range []string{"va", "vc"} {
		ip(t, "link set dev "+link+" up")
	}
	ip(t, "addr add fd00:9::1/64 dev va nodad") // the kernel drops IPv6 addresses with the link
	ip(t, "addr add fd00:8::1/64 dev vc nodad")
	eventually(t, "back after the links", there)

	ip(t, "nexthop flush protocol 88")
	eventually(t, "back after a flush", there)
	for _, line := range strings.Split(ip(t, "nexthop"), "\n") {
		if f := strings.Fields(line); strings.Contains(line, " via 10.9.0.2 ") {
			ip(t, "nexthop replace id "+f[1]+" via 10.9.0.77 dev va protocol 88")
		}
	}
	eventually(t, "back after a change", func() bool { return there() && !strings.Contains(ip(t, "nexthop"), "10.9.0.77") })

	for _, a := range []string{"10.9.0.1/24", "fd00:9::1/64"} {
		other := strings.Replace(a, "1/", "88/", 1)
		ip(t, "addr del "+a+" dev va")
		ip(t, "addr add "+other+" dev va")
		eventually(t, "back after another address in place of "+a, there)
	}

	// Another life of the program goes on with what it finds.
	stop()
	again, messages := counted(t, config)
	have, err := again.Routes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again.Adopt(have)
	watched(t, again, Ignore{})
	if err := again.Apply(t.Context(), routing.Changes{Put: one}); err != nil || messages.count > 10 || !follows(t, again, one) {
		t.Errorf("after a restart: %d messages, %v", messages.count, err)
	}
	if _, err := again.Compare(context.Background()); err != nil {
		t.Error(err)
	}
	if err := again.Apply(t.Context(), routing.Changes{Delete: one}); err != nil {
		t.Error(err)
	}
	if out := ip(t, "nexthop"); out != "" {
		t.Errorf("objects are left:\n%s", out)
	}
}

// watchedUntil has the table watched until it is told to stop.
func watchedUntil(t *testing.T, table *Table) (stop func()) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	began, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- table.Watch(ctx, Ignore{}, func(Event) {
			select {
			case began <- struct{}{}:
			default:
			}
		})
	}()
	<-began
	return func() {
		t.Helper()
		end()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}
