package routing

import (
	"net/netip"
	"slices"

	"netctl/datastore"
)

// Behind are the routes of an endpoint's node to the networks behind it, by its address of
// their family.
func Behind(e *datastore.Endpoint) (out []Route) {
	for _, p := range e.Spec.AllowedPrefixes {
		i := slices.IndexFunc(e.Spec.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() })
		if i >= 0 {
			out = append(out, Route{Prefix: p, NextHops: []NextHop{{Addr: e.Spec.Addresses[i], Link: e.Spec.Link, Onlink: true}}})
		}
	}
	return out
}
