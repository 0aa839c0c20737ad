package fib

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"netctl/routing"
)

// TestLookup asks for an address of each kind, in both families, and of a table of our own.
func TestLookup(t *testing.T) {
	namespace(t)
	table, _ := counted(t, Config{Protocol: 88, Number: 1000, Groups: true})
	if err := table.Gather(t.Context()); err != nil {
		t.Fatal(err)
	}
	put := []routing.Route{route("10.65.0.0/26", "va 10.9.0.2", "vc 10.8.0.2"), route("10.65.1.0/26"), route("fd11::/122", "va fd00:9::2"), route("fd11::40/122")}
	if err := table.Apply(t.Context(), routing.Changes{Put: put}); err != nil {
		t.Fatal(err)
	}
	ip(t, "link set dev va mtu 1400")
	ip(t, "route add unreachable 10.66.0.0/24")
	for addr, want := range map[string]string{
		"10.65.0.7":       "10.65.0.0/26 nexthop via 10.8.0.2 dev vc nexthop via 10.9.0.2 dev va, 88, 1000, false, [1500 1400]",
		"10.65.1.7":       ErrDiscarded.Error(),
		"10.66.0.7":       ErrRejected.Error(),
		"10.67.0.7":       ErrUnreachable.Error(),
		"10.9.0.1":        "10.9.0.1 dev va src 10.9.0.1, 2, 255, true, [1400]",
		"10.9.0.7":        "10.9.0.0/24 dev va src 10.9.0.1, 2, 254, false, [1400]",
		"::ffff:10.9.0.7": "10.9.0.0/24 dev va src 10.9.0.1, 2, 254, false, [1400]",
		"fd11::7":         "fd11::/122 via fd00:9::2 dev va, 88, 1000, false, [1400]",
		"fd11::47":        ErrDiscarded.Error(),
		"fd12::7":         ErrUnreachable.Error(),
	} {
		m, err := Lookup(t.Context(), netip.MustParseAddr(addr))
		got := fmt.Sprintf("%s, %d, %d, %v, %v", m.Route, m.Protocol, m.Table, m.Local, m.MTUs)
		if err != nil {
			got = err.Error()
			for _, known := range []error{ErrDiscarded, ErrRejected, ErrUnreachable} {
				if errors.Is(err, known) {
					got = known.Error()
				}
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}
