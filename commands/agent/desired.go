package agent

import (
	"net/netip"

	"netctl/datastore"
	"netctl/routing"
)

// gatewayRoutes make the host answer for gateway addresses (docs/design.md, "The path
// of a packet").
func gatewayRoutes(gateways []netip.Addr) (out []routing.Route) {
	for _, a := range gateways {
		out = append(out, routing.Route{Prefix: single(a), NextHops: []routing.NextHop{{Link: "lo"}}})
	}
	return out
}

// blockRoute drops what no endpoint of a block of this node has.
func blockRoute(b *datastore.Block) routing.Route {
	return routing.Route{Prefix: b.Spec.CIDR, Type: routing.Blackhole}
}

// metricAdopted is that of routes to adopted endpoints, which come beside those that others
// made: no route of theirs is replaced, and none of ours is in their way.
const metricAdopted = 4087

// endpointRoutes lead to an endpoint of this node; mtu is theirs, 0: the link's.
func endpointRoutes(e *datastore.Endpoint, mtu int) (out []routing.Route) {
	metric := 0
	if e.Spec.Orchestrator == datastore.OrchestratorAdopted {
		metric = metricAdopted
	}
	for _, a := range e.Spec.Addresses {
		out = append(out, routing.Route{Prefix: single(a), NextHops: []routing.NextHop{{Link: e.Spec.Link}}, MTU: mtu, Metric: metric})
	}
	for _, r := range routing.Behind(e) {
		r.MTU, r.Metric = mtu, metric
		out = append(out, r)
	}
	return out
}

// desiredRoutes is all that the kernel's table should hold of this agent: the
// gateways' routes, one for each block of the node, and those of the endpoints whose
// links can be used.
func desiredRoutes(gateways []netip.Addr, blocks []*datastore.Block, endpoints []*datastore.Endpoint, usable func(*datastore.Endpoint) bool, narrow func(*datastore.Endpoint) int) []routing.Route {
	want := gatewayRoutes(gateways)
	for _, b := range blocks {
		want = append(want, blockRoute(b))
	}
	for _, e := range endpoints {
		if usable(e) {
			want = append(want, endpointRoutes(e, narrow(e))...)
		}
	}
	return want
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
