package fib

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/netdev"
	"netctl/routing"
)

// many are n blackholes of each family.
func many(n int) []routing.Route {
	out := make([]routing.Route, 0, 2*n)
	for i := range n {
		out = append(out,
			routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, byte(i >> 8), byte(i)}), 32), Type: routing.Blackhole},
			routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 20, 14: byte(i >> 8), 15: byte(i)}), 128), Type: routing.Blackhole})
	}
	return out
}

// listener is a socket that hears of routes and links, as Watch's does.
func listener(t *testing.T, program []unix.SockFilter) *socket {
	t.Helper()
	s, err := dial(eventBuffer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	if program != nil {
		if err := s.attach(program); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
		if err := s.join(g); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// next returns the messages of the next datagram, but for the links that the
// namespace began with.
func next(t *testing.T, s *socket) []message {
	t.Helper()
	for {
		var all []message
		if err := s.read(func(m message) error { all = append(all, m); return nil }); err != nil {
			t.Fatal(err)
		}
		if l, err := netdev.ParseLink(all[0].body); all[0].kind != unix.RTM_NEWLINK || err != nil || l.Name == "last" {
			return all
		}
	}
}

// TestOneRouteADatagram is what the filter relies on: however many routes one
// request writes or a link takes along, the kernel tells of each by itself.
func TestOneRouteADatagram(t *testing.T) {
	namespace(t)
	ctx := context.Background()
	heard := listener(t, nil)
	table := open(t, 88)
	routes := append(many(300), route("10.1.1.0/26", "va 10.9.0.2", "vc 10.8.0.2"), route("fd11::40/122", "va fd00:9::2", "va fd00:9::3"))
	if err := table.Apply(ctx, routing.Changes{Put: routes}); err != nil {
		t.Fatal(err)
	}
	if err := table.Apply(ctx, routing.Changes{Delete: routes}); err != nil {
		t.Fatal(err)
	}
	ip(t, "link set dev va down")
	ip(t, "link add last type veth")
	told := 0
	for last := false; !last; {
		msgs := next(t, heard)
		if len(msgs) != 1 {
			t.Fatalf("%d messages in one datagram", len(msgs))
		}
		switch msgs[0].kind {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			told++
		case unix.RTM_NEWLINK:
			l, err := netdev.ParseLink(msgs[0].body)
			last = err == nil && l.Name == "last"
		}
	}
	if told < 2*len(routes) {
		t.Errorf("told of %d changes, want %d at least", told, 2*len(routes))
	}
}

// TestFilter has the kernel leave out what this table wrote and what is
// ignored: nothing but the last route is read.
func TestFilter(t *testing.T) {
	for name, c := range map[string]struct {
		ignore Ignore
		loud   []int // protocols that are heard
		quiet  []int
	}{
		"own":       {Ignore{}, []int{4, 87, 88}, nil},
		"protocols": {Ignore{Protocols: []int{87, 4}}, []int{3, 88}, []int{87, 4}},
		"foreign":   {Ignore{Foreign: true}, []int{88}, []int{3, 4, 87}},
	} {
		t.Run(name, func(t *testing.T) {
			namespace(t)
			ctx := context.Background()
			table := open(t, 88)
			heard := listener(t, filter(88, table.kernel.(*rtnetlink).requests.port, c.ignore))
			write := func(table *Table, routes []routing.Route) {
				t.Helper()
				if err := table.Apply(ctx, routing.Changes{Put: routes}); err != nil {
					t.Fatal(err)
				}
				if err := table.Apply(ctx, routing.Changes{Delete: routes}); err != nil {
					t.Fatal(err)
				}
			}
			write(table, many(50))
			for _, p := range c.quiet {
				for _, r := range []string{"blackhole 10.77.0.0/26 proto ", "blackhole fd77::/122 proto "} {
					ip(t, "route add "+r+strconv.Itoa(p))
					ip(t, "route del "+r+strconv.Itoa(p))
				}
			}
			for _, p := range c.loud {
				for _, prefix := range []string{"10.77.0.0/26", "fd77::/122"} {
					for _, verb := range []string{"add", "del"} {
						ip(t, "route "+verb+" blackhole "+prefix+" proto "+strconv.Itoa(p))
						var m routeMessage
						if err := m.parse(next(t, heard)[0].body); err != nil || int(m.protocol) != p || m.prefix.String() != prefix {
							t.Fatalf("heard of %+v, %v, want %s of protocol %d", m, err, prefix, p)
						}
					}
				}
			}
			ip(t, "link add last type veth")
			for msgs := next(t, heard); msgs[0].kind != unix.RTM_NEWLINK; msgs = next(t, heard) {
				var m routeMessage
				if err := m.parse(msgs[0].body); err != nil || !slices.Contains(c.loud, int(m.protocol)) {
					t.Fatalf("heard of %+v, %v, want a link", m, err)
				}
			}
		})
	}
}

// TestForeign tells which prefixes changed, and keeps quiet about those that no
// next hop is looked up in and about ignored links.
func TestForeign(t *testing.T) {
	namespace(t)
	table := open(t, 88)
	events := watched(t, table, Ignore{Protocols: []int{87}, Links: "nc"})
	ip(t, "link add nc0 type veth peer name nc1")
	ip(t, "link set nc0 up")
	ip(t, "link set nc1 up")
	ip(t, "route add 10.2.0.5/32 dev nc0 proto 87")
	ip(t, "link del nc0")
	ip(t, "route add 10.50.0.0/24 via 10.9.0.2")
	ip(t, "addr add 10.7.0.1/24 dev vc")
	ip(t, "-6 route add fd50::/64 via fd00:9::2 table 100")
	ip(t, "route del 10.50.0.0/24")
	got := map[string]bool{}
	want := []string{"10.50.0.0/24", "10.7.0.0/24", "10.7.0.1/32", "10.7.0.255/32", "fd50::/64"}
	eventually(t, "all prefixes", func() bool {
		for {
			select {
			case e := <-events:
				if e.Lost || len(e.Changes)+len(e.Up)+len(e.Down) > 0 {
					t.Fatalf("heard %+v", e)
				}
				for _, p := range e.Foreign {
					got[p.String()] = true
				}
			default:
				return !slices.ContainsFunc(want, func(p string) bool { return !got[p] })
			}
		}
	})
	if len(got) != len(want) {
		t.Errorf("heard of %v, want %v", got, want)
	}
}
