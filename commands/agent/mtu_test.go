package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"netctl/commands/control"
	"netctl/netdev/kernel"
)

// TestMTUAboveTheUplinks: an endpoint whose packets may be larger than what leads to the
// other nodes is said at the attach and as long as it is there, with both numbers.
func TestMTUAboveTheUplinks(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	uplink := kernel.Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1", Index: 2, MTU: 1500}
	w.links.SetAddresses(uplink)
	w.start()
	w.ready()
	attach := func(workload string, ns, mtu int) string {
		a, err := w.api.attach(t.Context(), control.AttachRequest{
			Target: control.Target{Orchestrator: "cni", Workload: workload, Interface: "eth0"}, Network: "web", NetnsFD: ns, MTU: mtu,
		})
		if err != nil {
			t.Fatal(err)
		}
		return a.Warning
	}
	const has = "has an MTU of 9000, and eth1, which leads to the other nodes, one of 1500: what is larger is lost or cut up; lower the one or raise the other"
	problems := func(want ...string) {
		t.Helper()
		w.until(func() string {
			if got := w.status().Problems; !slices.Equal(got, want) {
				return fmt.Sprintf("problems %q, want %q", got, want)
			}
			return ""
		})
	}
	if got := attach("fits", 101, 1500); got != "" {
		t.Errorf("of one that fits: %s", got)
	}
	problems()
	if got, want := attach("large", 102, 9000), "endpoint n1/cni/large/eth0 "+has; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	problems("mtu: an endpoint " + has)
	attach("larger", 103, 9000)
	problems("mtu: 2 of the endpoints each " + has)
	for _, c := range []string{"large", "larger"} {
		if err := w.detach(c); err != nil {
			t.Fatal(err)
		}
	}
	problems()
}
