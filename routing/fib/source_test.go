package fib

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/routing"
)

// TestSource has the source address of routes come and go, on the Fake and in the kernel,
// with objects and without: a route has it while it is an address of the machine, and is
// there all the time.
func TestSource(t *testing.T) {
	for _, groups := range []bool{false, true} {
		name := map[bool]string{false: "plain", true: "objects"}[groups]
		t.Run("fake "+name, func(t *testing.T) {
			f := NewFake()
			table := f.Open(Config{Protocol: 88, Groups: groups})
			testSource(t, table, func(a string, there bool) { f.Address(netip.MustParseAddr(a), there) })
			if out := f.String(); !strings.Contains(out, "10.1.0.0/26 via 10.9.0.2 dev va proto netctl-bgp src 10.7.0.1\n") ||
				!strings.Contains(out, "fd11::/122 via fd00:9::2 dev va proto netctl-bgp src fd00:7::1 metric 1024 pref medium\n") {
				t.Errorf("the Fake has\n%s", out)
			}
		})
		t.Run("kernel "+name, func(t *testing.T) {
			namespace(t)
			table, _ := counted(t, Config{Protocol: 88, Groups: groups})
			if groups && !table.wanted.groups {
				t.Skip("this kernel has no next-hop objects")
			}
			testSource(t, table, func(a string, there bool) {
				verb, bits := map[bool]string{true: "add", false: "del"}[there], "/32"
				if strings.Contains(a, ":") {
					bits = "/128"
				}
				ip(t, "addr "+verb+" "+a+bits+" dev lo")
			})
			// What the machine sends, with the neighbours' addresses known.
			for to, want := range map[string]string{"10.1.0.5": "src 10.7.0.1 ", "fd11::5": "src fd00:7::1 "} {
				if out := ip(t, "route get "+to); !strings.Contains(out, want) {
					t.Errorf("to %s: %s", to, out)
				}
			}
			if got, err := table.Routes(t.Context()); err != nil || shown(t, 88) != lines(88, got) {
				t.Errorf("%v\nkernel %s\nread   %s", err, shown(t, 88), lines(88, got))
			}
			// A route of ours that another program takes the source of.
			ip(t, "route replace 10.1.0.0/26 via 10.9.0.2 dev va proto 88")
			eventually(t, "the source is back", func() bool { return strings.Contains(ip(t, "route get 10.1.0.5"), "src 10.7.0.1 ") })
		})
	}
}

func testSource(t *testing.T, table *Table, address func(a string, there bool)) {
	t.Helper()
	const four, six = "10.7.0.1", "fd00:7::1"
	routes := []routing.Route{
		route("10.1.0.0/26", "va 10.9.0.2"), route("10.1.2.0/26", "va 10.9.0.2", "vc 10.8.0.2"), route("10.1.3.0/26", "va fe80::2"),
		route("fd11::/122", "va fd00:9::2"), route("fd11::40/122", "va fd00:9::2", "va fd00:9::3"),
	}
	plain := append(slices.Clone(routes), route("10.1.1.0/26", "va 10.9.0.2"), route("fd11::c0/122", "va fd00:9::2"))
	wanted := slices.Clone(plain)
	for i, r := range routes {
		wanted[i].Source = netip.MustParseAddr(four)
		if r.Prefix.Addr().Is6() {
			wanted[i].Source = netip.MustParseAddr(six)
		}
	}
	slices.SortFunc(wanted, routing.Compare)
	slices.SortFunc(plain, routing.Compare)
	with := func(families ...string) []routing.Route {
		out := slices.Clone(plain)
		for i, r := range wanted {
			if r.Source.IsValid() && slices.Contains(families, r.Source.String()) {
				out[i] = r
			}
		}
		return out
	}
	has := func(what string, want []routing.Route) {
		t.Helper()
		var got []routing.Route
		eventually(t, what, func() bool {
			var err error
			if got, err = table.Routes(context.Background()); err != nil {
				t.Fatal(err)
			}
			same := slices.EqualFunc(got, want, routing.Route.Equal)
			if !same && testing.Verbose() {
				t.Logf("has\n%s\nwant\n%s", lines(88, got), lines(88, want))
			}
			return same
		})
		if missing := table.Missing(); len(missing) > 0 {
			t.Errorf("%s: missing %v", what, missing)
		}
	}
	address(four, true) // six is no address of the machine at first
	table.Adopt(nil)
	watched(t, table, Ignore{})
	if err := table.Apply(t.Context(), routing.Changes{Put: wanted}); err != nil {
		t.Fatal(err)
	}
	has("an address that is not there is left out", with(four))
	address(six, true)
	has("an address that came is the source", with(four, six))
	address(four, false)
	has("routes are there without an address that went", with(six))
	if changes, err := table.Compare(t.Context()); err != nil || !changes.Empty() {
		t.Errorf("compared: %+v, %v", changes, err)
	}
	address(six, false)
	has("both are gone", plain)
	// While it is not there, another route asks for it.
	more := route("10.1.9.0/26", "va 10.9.0.2")
	more.Source = netip.MustParseAddr(four)
	for _, at := range []*[]routing.Route{&wanted, &plain} {
		r := more
		if at == &plain {
			r.Source = netip.Addr{}
		}
		*at = append(slices.Clone(*at), r)
		slices.SortFunc(*at, routing.Compare)
	}
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{more}}); err != nil {
		t.Error(err)
	}
	has("a further route", plain)
	address(four, true)
	address(six, true)
	has("both are back", wanted)
	// Another source, and none.
	less := slices.Clone(wanted)
	for i := range less {
		if less[i].Prefix == netip.MustParsePrefix("10.1.2.0/26") || less[i].Prefix == netip.MustParsePrefix("fd11::/122") {
			less[i].Source = netip.Addr{}
		}
	}
	if err := table.Apply(t.Context(), routing.Changes{Put: less}); err != nil {
		t.Error(err)
	}
	has("some without", less)
	if err := table.Apply(t.Context(), routing.Changes{Put: wanted}); err != nil {
		t.Error(err)
	}
	has("all with", wanted)
}
