package agent

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
)

func TestBlockOverASubnet(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.ready()
	block := &datastore.Block{Metadata: datastore.Metadata{Name: "192.168.99.64-26"}, Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("192.168.99.64/26"), Affinity: "n2"}}
	if err := datastore.Create(t.Context(), w.store, block); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if got := strings.Join(w.status().Problems, "\n"); !strings.Contains(got, "block 192.168.99.64/26 of node n2: overlaps 192.168.99.0/24") {
			return "problems: " + got
		}
		return ""
	})
	w.until(func() string {
		r, err := datastore.Get[*datastore.Report](t.Context(), w.store, datastore.ReportName("n1", datastore.ReportAgent))
		if err != nil || len(r.Status.Problems) == 0 {
			return fmt.Sprintf("report: %+v, %v", r, err)
		}
		return ""
	})
	if err := datastore.Delete(t.Context(), w.store, block); err != nil {
		t.Fatal(err)
	}
	w.until(func() string { return strings.Join(w.status().Problems, "\n") })

	// One of its own would take from it what is there; the subnet may come later, too.
	used := []datastore.Allocation{{Ordinal: 1, Handle: "somebody", Node: "n1"}}
	own := &datastore.Block{Metadata: datastore.Metadata{Name: "192.168.99.64-26"}, Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("192.168.99.64/26"), Affinity: "n1", Allocations: used}}
	far := &datastore.Block{Metadata: datastore.Metadata{Name: "10.0.0.0-26"}, Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.0.0/26"), Affinity: "n1", Allocations: used}}
	if err := errors.Join(datastore.Create(t.Context(), w.store, own), datastore.Create(t.Context(), w.store, far)); err != nil {
		t.Fatal(err)
	}
	routes := func(problem string, has, lacking string) {
		t.Helper()
		w.until(func() string {
			all := w.fib.String()
			if strings.Contains(all, lacking) {
				return all
			}
			return cmp.Or(lacks(strings.Join(w.status().Problems, "\n"), problem), lacks(all, has))
		})
	}
	routes("the subnet goes on and the block has no route", "blackhole 10.0.0.0/26", "blackhole 192.168.99.64/26")
	uplink := on("eth1", "192.168.99.102/24")
	w.links.SetAddresses(uplink, on("eth2", "10.0.0.5/8"))
	routes("block 10.0.0.0/26 of node n1: overlaps 10.0.0.0/8", "", "blackhole")
	w.links.SetAddresses(uplink)
	routes("", "blackhole 10.0.0.0/26", "blackhole 192.168.99.64/26")
}

// TestGatewayIsSomebodys: the workloads' gateway is an address of a subnet that the
// host is connected to, or of a pool.
func TestGatewayIsSomebodys(t *testing.T) {
	w := newWorld(t)
	eth1 := on("eth1", "192.168.99.102/24")
	w.links.SetAddresses(eth1, on("eth2", "169.254.1.5/24"))
	w.start()
	says := func(want string) {
		t.Helper()
		w.until(func() string {
			if got := strings.Join(w.status().Problems, "\n"); got != want {
				return "problems: " + got
			}
			return ""
		})
	}
	says("gateway: 169.254.1.1, the workloads' gateway, lies in 169.254.1.0/24, which this host is connected to by eth2: what has that address there cannot be reached; set agent.gateway to one that nothing has")
	w.links.SetAddresses(eth1, on("eth2", "169.254.2.5/24"))
	says("")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.cfg.Gateway = netip.MustParseAddr("10.0.0.1")
	w.start()
	w.ready()
	w.pool("10.0.0.0/24")
	says("gateway: 10.0.0.1, the workloads' gateway, lies in pool 10.0.0.0/24: set agent.gateway to an address that nothing has")
}
