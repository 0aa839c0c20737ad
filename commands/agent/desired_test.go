package agent

import (
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/netdev"
)

func TestDesiredRoutes(t *testing.T) {
	blocks := []*datastore.Block{{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.0.0/26")}}, {Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("fd80::/122")}}}
	endpoint := func(link string, addrs ...string) *datastore.Endpoint {
		e := &datastore.Endpoint{Spec: datastore.EndpointSpec{Link: link}}
		for _, a := range addrs {
			e.Spec.Addresses = append(e.Spec.Addresses, netip.MustParseAddr(a))
		}
		return e
	}
	endpoints := []*datastore.Endpoint{endpoint("nc1", "10.0.0.48", "fd80::5"), endpoint("nc2", "10.0.0.49")}
	want := desiredRoutes([]netip.Addr{netdev.Gateway4()}, blocks, endpoints, func(e *datastore.Endpoint) bool { return e.Spec.Link != "nc2" },
		func(*datastore.Endpoint) int { return 1400 })
	var got []string
	for _, r := range want {
		got = append(got, r.String())
	}
	if text := strings.Join(got, "\n"); text != `169.254.1.1 dev lo
blackhole 10.0.0.0/26
blackhole fd80::/122
10.0.0.48 dev nc1 mtu 1400
fd80::5 dev nc1 mtu 1400` {
		t.Errorf("routes:\n%s", text)
	}
}
