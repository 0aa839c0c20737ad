package speaker

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestSource has nodes that are known by an address of `lo`: what they send to containers
// elsewhere leaves with it, as long as it is there, and what they send to others with that
// of the interface. A node that is known by the interface's address needs no hint.
func TestSource(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 2, IPv6: true})
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	hosts := r.lab.Hosts
	own := func(i int) []string {
		return []string{fmt.Sprintf("10.99.0.%d/32", i+1), fmt.Sprintf("fd99::%d/128", i+1)}
	}
	for i, h := range hosts {
		other := hosts[1-i]
		for _, a := range own(i) {
			netlab.Must(t, h, "ip", "addr", "add", a, "dev", "lo")
		}
		netlab.Must(t, h, "ip", "route", "add", own(1 - i)[0], "via", other.Addr.Addr().String())
		netlab.Must(t, h, "ip", "route", "add", own(1 - i)[1], "via", other.Addr6.Addr().String())
		n := machine(h.Name, own(i)[0])
		n.Spec.Addresses = append(n.Spec.Addresses, netip.MustParsePrefix(own(i)[1]))
		r.create(n)
		r.run(h)
	}
	n1, n2 := r.nodes[0], r.nodes[1]
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	n2.block("fd80:24e2:f998:72d6::40/122")
	n2.endpoint("c", "10.65.1.5")
	n2.endpoint("d", "fd80:24e2:f998:72d6::45")
	via, via6 := "10.65.1.0/26 via 192.168.99.103 dev eth1", "fd80:24e2:f998:72d6::40/122 via fd00:99::103 dev eth1"
	pings := func() {
		r.t.Helper()
		for _, to := range []string{"10.65.1.5", "fd80:24e2:f998:72d6::45"} {
			netlab.Must(r.t, n1.host, "ping", "-n", "-c1", "-W5", to)
		}
	}
	r.expect(n1.host, "88", via+" src 10.99.0.1", via6+" src fd99::1")
	r.settle(1)
	pings()
	if out := n1.ip("route get 192.168.99.103"); !strings.Contains(out, "src 192.168.99.102 ") {
		t.Errorf("to another host: %s", out)
	}
	for _, a := range own(0) {
		n1.ip("addr del " + a + " dev lo")
	}
	r.expect(n1.host, "88", via, via6)
	for _, a := range own(0) {
		n1.ip("addr add " + a + " dev lo")
	}
	r.expect(n1.host, "88", via+" src 10.99.0.1", via6+" src fd99::1")
	r.settle(1)
	pings()
	r.sub("restarts", func(t *testing.T) {
		m := r.monitor(n1.host)
		n1.proc.Kill()
		n1.up()
		r.settle(1)
		r.expect(n1.host, "88", via+" src 10.99.0.1", via6+" src fd99::1")
		if gone := m.deletions(t); len(gone) > 0 {
			t.Errorf("deleted routes:\n%s", strings.Join(gone, "\n"))
		}
	})
	// Other addresses of both.
	for _, h := range hosts {
		if _, err := datastore.Modify(r.ctx, r.store, h.Name, func(n *datastore.Node) error {
			n.Spec.Addresses = []netip.Prefix{h.Addr, h.Addr6}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	r.expect(n1.host, "88", via, via6)
	netlab.Until(t, 30*time.Second, "the session is between the new addresses", func() string {
		s, err := n1.status()
		if err != nil || len(s.Sessions) != 1 || s.Sessions[0].Peer != hosts[1].Addr.Addr() || s.Sessions[0].State != "Established" {
			return fmt.Sprintf("%+v, %v", s.Sessions, err)
		}
		return ""
	})
	pings()
}
