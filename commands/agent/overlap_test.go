package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// TestPoolOverASubnet: a subnet of the host that lies in a pool is said, with what to do, as
// long as it does; the nodes' own network, and what a Reservation keeps, are meant so.
func TestPoolOverASubnet(t *testing.T) {
	w := newWorld(t)
	w.pool("192.168.0.0/16") // the nodes' own subnet lies in it
	w.pool("10.65.0.0/16")
	w.start()
	w.ready()
	w.settled()
	if p := w.status().Problems; len(p) > 0 {
		t.Errorf("at first: %q", p)
	}
	uplink, err := w.links.Addresses()
	if err != nil {
		t.Fatal(err)
	}
	address := func(cidr, link string) []kernel.Address {
		p := netip.MustParsePrefix(cidr)
		return append(uplink[:1:1], kernel.Address{Prefix: p, Subnet: p.Masked(), Link: link, Index: 7})
	}
	says := func(want string) {
		t.Helper()
		w.until(func() string {
			p := w.status().Problems
			switch {
			case want == "" && len(p) > 0:
				return fmt.Sprintf("%q", p)
			case want != "":
				return lacks(strings.Join(p, "; "), want)
			}
			return ""
		})
	}
	w.links.SetAddresses(address("10.65.200.5/24", "eth2")...)
	w.settled()
	says("") // no block is taken from there
	pool, err := datastore.Get[*datastore.Pool](t.Context(), w.store, "10.65.0.0-16")
	if err != nil {
		t.Fatal(err)
	}
	pool.Spec.NATOutgoing = true
	if err := datastore.Update(t.Context(), w.store, pool); err != nil {
		t.Fatal(err)
	}
	const said = "pool 10.65.0.0/16: overlaps 10.65.200.0/24, which this host is connected to by eth2: "
	w.links.SetAddresses(address("10.65.200.5/24", "eth2")...)
	says(said)
	says("keep it with a Reservation of 10.65.200.0/24")
	w.links.SetAddresses(uplink...)
	says("")
	w.links.SetAddresses(address("10.0.0.5/8", "eth2")...)
	says("pool 10.65.0.0/16: overlaps 10.0.0.0/8")
	w.links.SetAddresses(address("10.65.200.5/24", "eth2")...)
	says(said)
	kept := &datastore.Reservation{Metadata: datastore.Metadata{Name: "kept"}, Spec: datastore.ReservationSpec{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.65.200.0/24")}}}
	if err := datastore.Create(t.Context(), w.store, kept); err != nil {
		t.Fatal(err)
	}
	says("")
	if err := datastore.Delete(t.Context(), w.store, kept); err != nil {
		t.Fatal(err)
	}
	says(said)
	if err := datastore.Delete(t.Context(), w.store, &datastore.Pool{Metadata: datastore.Metadata{Name: "10.65.0.0-16"}}); err != nil {
		t.Fatal(err)
	}
	says("")
}
