package agent

import (
	"net/netip"

	"netctl/datastore"
	"netctl/routing"
)

// desiredRoutes is what the kernel's table should hold of this agent: the route
// that makes the host answer for the gateway address (DESIGN section 7), a
// blackhole for each block of the node, and a route for each address of an
// endpoint whose link can be used.
func desiredRoutes(gateway netip.Addr, blocks []*datastore.Block, endpoints []*datastore.Endpoint, usable func(*datastore.Endpoint) bool) []routing.Route {
	want := []routing.Route{{Prefix: single(gateway), NextHops: []routing.NextHop{{Link: "lo"}}}}
	for _, b := range blocks {
		want = append(want, routing.Route{Prefix: b.Spec.CIDR, Type: routing.Blackhole})
	}
	for _, e := range endpoints {
		if !usable(e) {
			continue
		}
		for _, a := range e.Spec.Addresses {
			want = append(want, routing.Route{Prefix: single(a), NextHops: []routing.NextHop{{Link: e.Spec.Link}}})
		}
	}
	return want
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// usesIPv6 says whether a route of IPv6 is among them.
func usesIPv6(routes []routing.Route) bool {
	for _, r := range routes {
		if r.Prefix.Addr().Is6() {
			return true
		}
	}
	return false
}
