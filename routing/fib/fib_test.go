package fib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// namespace moves the test into a new network namespace with two wires: va
// (10.9.0.1/24, fd00:9::1/64) and vc (10.8.0.1/24). The thread, and with it the
// namespace, ends with the test.
func namespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{
		"link set lo up",
		"link add va type veth peer name vb", "link set dev va up", "link set dev vb up",
		"link add vc type veth peer name vd", "link set dev vc up", "link set dev vd up",
		"addr add 10.9.0.1/24 dev va", "addr add fd00:9::1/64 dev va nodad", "addr add 10.8.0.1/24 dev vc",
	} {
		ip(t, c)
	}
	// The kernel makes its own IPv6 routes when it comes to them: fd00:9::1 and a
	// link-local address for each end.
	eventually(t, "the kernel's routes", func() bool {
		local := ip(t, "-6 route show table local")
		return strings.Contains(local, "fd00:9::1 dev va") && strings.Count(local, "local fe80::") == 4 && strings.Count(local, "ff00::/8") == 4
	})
}

func ip(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	// A machine may have names for our protocols (make install brings them).
	return strings.NewReplacer(" proto netctl-bgp ", " proto 88 ", " proto netctl ", " proto 87 ").Replace(string(out))
}

// shown is what `ip route` says of a protocol, in Line's form.
func shown(t *testing.T, protocol int) string {
	t.Helper()
	text := ip(t, "-4 route") + ip(t, "-6 route")
	text = strings.ReplaceAll(text, " \n", "\n")
	text = strings.ReplaceAll(text, "weight 1\n", "weight 1 \n")
	var out []string
	keep := false
	for _, l := range strings.Split(text, "\n") {
		if !strings.HasPrefix(l, "\t") {
			keep = strings.Contains(l+" ", fmt.Sprintf(" proto %d ", protocol)) || strings.Contains(l+" ", " proto "+routing.ProtocolName(protocol)+" ")
		}
		if keep {
			l = strings.Replace(l, fmt.Sprintf(" proto %d", protocol), " proto "+routing.ProtocolName(protocol), 1)
			out = append(out, strings.TrimRight(l, " "))
		}
	}
	return strings.Join(out, "\n")
}

func lines(protocol int, routes []routing.Route) string {
	var out []string
	for _, r := range routes {
		out = append(out, Line(r, protocol))
	}
	return strings.Join(out, "\n")
}

func open(t *testing.T, protocol int) *Table {
	t.Helper()
	table, err := Open(Config{Protocol: protocol}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

func route(prefix string, hops ...string) routing.Route {
	r := routing.Route{Prefix: netip.MustParsePrefix(prefix), Type: routing.Blackhole}
	for _, h := range hops {
		r.Type = routing.Unicast
		f := strings.Fields(h)
		hop := routing.NextHop{Link: f[0]}
		if len(f) > 1 {
			hop.Addr = netip.MustParseAddr(f[1])
		}
		hop.Onlink = len(f) > 2
		r.NextHops = append(r.NextHops, hop)
	}
	return r
}

func every() []routing.Route {
	metric := route("10.1.5.0/26", "va 10.9.0.2")
	metric.Metric = 7
	narrow, narrow6 := route("10.1.4.2/32", "va"), route("fd11::82/128", "va")
	narrow.MTU, narrow6.MTU = 1400, 1300
	routes := []routing.Route{
		route("10.1.0.0/26", "va 10.9.0.2"),
		route("10.1.1.0/26", "va 10.9.0.2", "vc 10.8.0.2"),
		route("10.1.2.0/26", "va 10.77.0.2 onlink"),
		route("10.1.3.0/26"), route("10.1.4.1/32", "va"),
		metric, narrow, narrow6, route("10.1.6.0/26", "va fd00:9::2"), route("10.1.7.0/26", "va fe80::2"),
		route("10.1.8.0/26", "va fe80::2", "vc fe80::3"), route("10.1.9.0/26", "va 10.9.0.2", "vc fe80::3"),
		route("169.254.1.1/32", "lo"), route("fd11::/122"), route("fd11::100/122", "va fe80::2"),
		route("fd11::40/122", "va fd00:9::2", "va fd00:9::3"),
		route("fd11::81/128", "va"), route("fd11::c0/122", "va fd00:9::2"),
	}
	slices.SortFunc(routes, routing.Compare)
	return routes
}

// TestApplyReadsBack writes every kind of route and compares what the Table
// reads, what `ip route` says, and what the Fake prints.
func TestApplyReadsBack(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	table, other := open(t, 88), open(t, 87)
	want := every()
	if err := table.Apply(ctx, routing.Changes{Put: want}); err != nil {
		t.Fatal(err)
	}
	have, err := table.Routes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if c := routing.Diff(want, have); !c.Empty() {
		t.Errorf("read back, missing %v, too much %v", c.Put, c.Delete)
	}
	sort := func(s string) []string { l := strings.Split(s, "\n"); slices.Sort(l); return l }
	if got, want := sort(shown(t, 88)), sort(lines(88, want)); !slices.Equal(got, want) {
		t.Errorf("ip route shows\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	fake := NewFake()
	if err := fake.Table(88).Apply(ctx, routing.Changes{Put: want}); err != nil {
		t.Fatal(err)
	}
	if got, want := sort(strings.TrimSpace(fake.String())), sort(lines(88, want)); !slices.Equal(got, want) {
		t.Errorf("the fake prints %q, want %q", got, want)
	}
	if none, err := other.Routes(ctx); err != nil || len(none) > 0 {
		t.Errorf("another protocol's table reads %v, %v", none, err)
	}
	// Replacing in place: another gateway, more hops, fewer hops, another type.
	changed := []routing.Route{
		route("10.1.0.0/26", "vc 10.8.0.9"), route("10.1.1.0/26", "va 10.9.0.2"), route("10.1.2.0/26"),
		route("10.1.3.0/26", "va 10.9.0.2"), route("fd11::/122", "va fd00:9::2"), route("fd11::40/122", "va fd00:9::7"),
		route("fd11::c0/122", "va fd00:9::2", "va fd00:9::9"), route("10.1.4.2/32", "va"),
	}
	gone := []routing.Route{route("10.1.4.1/32"), route("fd11::81/128"), route("fd11::82/128"), route("10.99.0.0/26"),
		route("10.1.7.0/26"), route("10.1.8.0/26"), route("10.1.9.0/26"), route("fd11::100/122")}
	if err := table.Apply(ctx, routing.Changes{Put: append(changed, route("10.1.6.0/26", "vc fe80::4")), Delete: gone}); err != nil {
		t.Fatal(err)
	}
	have, err = table.Routes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	metric := want[slices.IndexFunc(want, func(r routing.Route) bool { return r.Metric == 7 })]
	expect := append(slices.Clone(changed), metric, route("10.1.6.0/26", "vc fe80::4"), route("169.254.1.1/32", "lo"))
	if c := routing.Diff(expect, have); !c.Empty() {
		t.Errorf("after replacing, missing %v, too much %v", c.Put, c.Delete)
	}
}

// TestOthersStay has other programs' routes in the place of ours: they are
// neither replaced nor deleted, and the rest of the batch is applied.
func TestOthersStay(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	ip(t, "route add 10.1.0.0/26 via 10.9.0.5 proto static")
	ip(t, "-6 route add fd11::/122 via fd00:9::5 proto static")
	ip(t, "route add 10.1.1.0/26 via 10.9.0.5 proto 87")
	table := open(t, 88)
	err := table.Apply(ctx, routing.Changes{Put: []routing.Route{
		route("10.1.0.0/26", "va 10.9.0.2"), route("10.1.1.0/26", "va 10.9.0.2"), route("10.1.2.0/26", "va 10.9.0.2"),
		route("fd11::/122", "va fd00:9::2"), route("10.1.3.0/26", "va 172.16.0.1"), route("10.1.4.0/26", "nosuch 10.9.0.2"),
	}})
	var failed []string
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			var r *RouteError
			if !errors.As(e, &r) {
				t.Fatalf("%v is no RouteError", e)
			}
			failed = append(failed, e.Error())
		}
	}
	slices.Sort(failed)
	want := []string{
		"add route 10.1.0.0/26 via 10.9.0.2 dev va: another program's route is in its place",
		"add route 10.1.1.0/26 via 10.9.0.2 dev va: another program's route is in its place",
		"add route 10.1.3.0/26 via 172.16.0.1 dev va: network is unreachable (Nexthop has invalid gateway)",
		"add route 10.1.4.0/26 via 10.9.0.2 dev nosuch: interface nosuch: no such device",
		"add route fd11::/122 via fd00:9::2 dev va: another program's route is in its place",
	}
	if !slices.Equal(failed, want) {
		t.Errorf("failed\n%s\nwant\n%s", strings.Join(failed, "\n"), strings.Join(want, "\n"))
	}
	if have, _ := table.Routes(ctx); len(have) != 1 || have[0].Prefix != netip.MustParsePrefix("10.1.2.0/26") {
		t.Errorf("table holds %v", have)
	}
	if err := table.Apply(ctx, routing.Changes{Delete: []routing.Route{route("10.1.0.0/26"), route("10.1.1.0/26"), route("10.1.2.0/26"), route("fd11::/122"), route("10.9.0.0/24"), route("fd00:9::/64")}}); err != nil {
		t.Error(err)
	}
	text := ip(t, "-4 route") + ip(t, "-6 route")
	for _, l := range []string{"10.1.0.0/26 via 10.9.0.5 dev va proto static", "fd11::/122 via fd00:9::5 dev va proto static", "10.1.1.0/26 via 10.9.0.5 dev va proto 87", "10.9.0.0/24 dev va proto kernel", "fd00:9::/64 dev va proto kernel"} {
		if !strings.Contains(text, l) {
			t.Errorf("%q is gone:\n%s", l, text)
		}
	}
}

// watched starts Watch and returns a channel of its events.
func watched(t *testing.T, table *Table, ignore Ignore) <-chan Event {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan Event, 4096)
	done := make(chan error, 1)
	go func() { done <- table.Watch(ctx, ignore, func(e Event) { events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	if e := <-events; !e.Lost {
		t.Fatalf("first event %+v", e)
	}
	return events
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s\n%s%s", what, ip(t, "-4 route"), ip(t, "-6 route"))
		}
		runtime.Gosched()
		unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil)
	}
}

// TestPutBack takes routes away in every way and expects them back.
func TestPutBack(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	table := open(t, 88)
	want := every()
	if err := table.Apply(ctx, routing.Changes{Put: want}); err != nil {
		t.Fatal(err)
	}
	watched(t, table, Ignore{})
	whole := func() bool {
		have, err := table.Routes(ctx)
		return err == nil && routing.Diff(want, have).Empty() && len(table.Missing()) == 0
	}
	eventually(t, "all there at first", whole)

	ip(t, "link set dev va down")
	eventually(t, "routes over va gone", func() bool { return !strings.Contains(shown(t, 88), "10.1.0.0/26") && len(table.Missing()) >= 7 })
	ip(t, "link set dev va up")
	ip(t, "addr add fd00:9::1/64 dev va nodad") // the kernel drops IPv6 addresses with the link
	eventually(t, "back after the link", whole)

	ip(t, "route del 10.1.0.0/26")
	ip(t, "route del blackhole 10.1.3.0/26")
	ip(t, "-6 route del fd11::c0/122")
	eventually(t, "back after deletion", whole)

	ip(t, "route replace 10.1.0.0/26 via 10.9.0.77 proto 88")
	eventually(t, "back after a change", whole)

	for _, a := range []string{"10.9.0.1/24", "fd00:9::1/64"} {
		other := strings.Replace(a, "1/", "88/", 1)
		ip(t, "addr del "+a+" dev va")
		ip(t, "addr add "+other+" dev va")
		eventually(t, "back after another address in place of "+a, whole)
		ip(t, "addr del "+other+" dev va")
		ip(t, "addr add "+a+" dev va")
		eventually(t, "back after "+a, whole)
	}

	ip(t, "route flush proto 88")
	ip(t, "-6 route flush proto 88")
	eventually(t, "back after a flush", whole)

	ip(t, "route replace 10.1.0.0/26 via 10.9.0.77 proto static")
	eventually(t, "another program's route counted", func() bool { return len(table.Missing()) == 1 })
	ip(t, "route del 10.1.0.0/26 proto static")
	eventually(t, "back after the other program's route went", whole)

	if err := table.Apply(ctx, routing.Changes{Delete: want}); err != nil {
		t.Fatal(err)
	}
	ip(t, "link set dev va down")
	ip(t, "link set dev va up")
	eventually(t, "deleted routes stay away", func() bool { have, err := table.Routes(ctx); return err == nil && len(have) == 0 })
}

// TestWatchTells what another table of the same protocol hears.
func TestWatchTells(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	agent, reader := open(t, 87), open(t, 87)
	events := watched(t, reader, Ignore{})
	await := func(what string, ok func(Event) bool) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			select {
			case e := <-events:
				if ok(e) {
					return
				}
			case <-deadline:
				t.Fatalf("not heard within 20 s: %s", what)
			}
		}
	}
	block := route("10.1.3.0/26")
	if err := agent.Apply(ctx, routing.Changes{Put: []routing.Route{block}}); err != nil {
		t.Fatal(err)
	}
	await("the block", func(e Event) bool {
		return len(e.Changes) == 1 && !e.Changes[0].Gone && e.Changes[0].Route.Equal(block)
	})
	if err := agent.Apply(ctx, routing.Changes{Delete: []routing.Route{block}}); err != nil {
		t.Fatal(err)
	}
	await("its end", func(e Event) bool { return len(e.Changes) == 1 && e.Changes[0].Gone && e.Changes[0].Route.Equal(block) })
	ip(t, "route add 10.50.0.0/24 via 10.9.0.2")
	await("another program's route", func(e Event) bool { return slices.Contains(e.Foreign, netip.MustParsePrefix("10.50.0.0/24")) })
	ip(t, "link set dev va down")
	await("a link going down", func(e Event) bool { return slices.Contains(e.Down, "va") })
	ip(t, "link set dev va up")
	await("a link coming up", func(e Event) bool { return slices.Contains(e.Up, "va") })
	ip(t, "link del va")
	await("a link that is deleted", func(e Event) bool { return slices.Contains(e.Down, "va") })
}

// TestOverrun floods the socket of a reader that does not read; what was lost
// is made good.
func TestOverrun(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	table, writer := open(t, 88), open(t, 87)
	mine := route("10.1.0.0/26", "va 10.9.0.2")
	if err := table.Apply(ctx, routing.Changes{Put: []routing.Route{mine}}); err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	lost := make(chan bool, 1)
	wctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	first := true
	go func() {
		done <- table.Watch(wctx, Ignore{}, func(e Event) {
			if first {
				first = false
				<-release
			} else if e.Lost {
				select {
				case lost <- true:
				default:
				}
			}
		})
	}()
	many := make([]routing.Route, 30000)
	for i := range many {
		many[i] = routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Type: routing.Blackhole}
	}
	if err := writer.Apply(ctx, routing.Changes{Put: many}); err != nil {
		t.Fatal(err)
	}
	ip(t, "route del 10.1.0.0/26")
	close(release)
	eventually(t, "an overrun", func() bool {
		select {
		case <-lost:
			return true
		default:
			return false
		}
	})
	eventually(t, "the route deleted meanwhile", func() bool { have, err := table.Routes(ctx); return err == nil && len(have) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	have, err := writer.Routes(ctx)
	if err != nil || len(have) != len(many) {
		t.Errorf("read %d routes, %v", len(have), err)
	}
}

// TestConnected reads the connected subnets and nothing else.
func TestConnected(t *testing.T) {
	namespace(t)
	ip(t, "route add 10.60.0.0/16 via 10.8.0.7")
	got, err := open(t, 88).Connected(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, r := range got {
		if !r.Prefix.Addr().IsLinkLocalUnicast() {
			text = append(text, r.String())
		}
	}
	if want := []string{"10.8.0.0/24 dev vc src 10.8.0.1", "10.9.0.0/24 dev va src 10.9.0.1", "fd00:9::/64 dev va metric 256"}; !slices.Equal(text, want) {
		t.Errorf("connected: %q, want %q", text, want)
	}
}

// TestResolve asks the kernel for the way to next hops.
func TestResolve(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	ip(t, "route add 10.60.0.0/16 via 10.8.0.7")
	table := open(t, 88)
	for addr, want := range map[string]string{
		"10.9.0.2": "via 10.9.0.2 dev va", "10.60.3.4": "via 10.8.0.7 dev vc", "fd00:9::2": "via fd00:9::2 dev va",
		"10.9.0.1":   "resolve 10.9.0.1: no route (an address of this machine)",
		"172.16.0.1": "resolve 172.16.0.1: no route (network is unreachable)",
		"fd00:7::1":  "resolve fd00:7::1: no route (network is unreachable)",
	} {
		hop, err := table.Resolve(ctx, netip.MustParseAddr(addr))
		got := hop.String()
		if err != nil {
			got = err.Error()
			if !errors.Is(err, ErrUnreachable) {
				t.Errorf("%s: %v is not ErrUnreachable", addr, err)
			}
		}
		if got != want {
			t.Errorf("%s: %q, want %q", addr, got, want)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	table, err := Open(Config{Protocol: 88}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	ctx := context.Background()
	many := make([]routing.Route, 10000)
	for i := range many {
		many[i] = routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)}), 32), NextHops: []routing.NextHop{{Link: "lo"}}}
	}
	work := make(chan func())
	defer close(work)
	go func() { // on a thread of its own choice, as in a role
		for f := range work {
			f()
		}
	}()
	done := make(chan error)
	run := func(f func() error) {
		work <- func() { done <- f() }
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		run(func() error { return table.Apply(ctx, routing.Changes{Put: many}) })
		run(func() error { _, err := table.Routes(ctx); return err })
		run(func() error { return table.Apply(ctx, routing.Changes{Delete: many}) })
	}
}
