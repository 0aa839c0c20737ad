package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// TestIPv6Only: hosts without an IPv4 address in two subnets, the datastore over IPv6,
// the pool in VXLAN between them. Containers reach each other, whatever is restarted,
// and with reflectors in place of the mesh.
func TestIPv6Only(t *testing.T) {
	l := forTest(t, Config{Nodes: 3, Subnets: 2, IPv6Only: true})
	n1, n2, n3 := l.Hosts[0], l.Hosts[1], l.Hosts[2] // the second is in the other subnet
	for _, h := range l.Hosts {
		if out := netlab.Must(t, h, "ip", "-4", "-br", "addr", "show", "scope", "global"); out != "" {
			t.Fatalf("%s has IPv4 addresses: %s", h.Name, out)
		}
	}
	netlab.Must(t, n1, "netctl", "pool", "add", pool6, "--vxlan-cross-subnet")
	a, none, a6 := attach(t, n1, "a", "web")
	b, _, b6 := attach(t, n2, "b", "web")
	_, _, c6 := attach(t, n3, "c", "web")
	if none.IsValid() || !a6.IsValid() {
		t.Fatalf("the endpoint has %s and %s", none, a6)
	}
	const vxlan = "vxlan6.netctl"
	goes(t, n1, vxlan, b6)
	goes(t, n2, vxlan, a6, c6)
	goes(t, n1, "eth1", c6)
	for _, to := range []netip.Addr{b6, c6} {
		pings(t, a, to)
		pings(t, a, to, "-M", "do", "-s", "1382") // 1430 with its headers
	}
	pings(t, b, c6)
	waitHealthy(t, l)
	flood, err := netlab.StartFlood(a, b6, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	back, err := netlab.StartFlood(b, c6, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{"speaker", "agent", "datastore"} {
		before := pid(t, n1, role, 0)
		if err := unix.Kill(before, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid(t, n1, role, before)
		waitHealthy(t, l)
	}
	// Nobody may have missed the datastore yet.
	netlab.Until(t, patience, "the datastore", func() string {
		out, err := netlab.Try(t, n1, "netctl", "bgp", "topology", "reflectors")
		if err != nil {
			return out + err.Error()
		}
		return ""
	})
	netlab.Until(t, patience, "reflectors", func() string {
		out, _ := netlab.Try(t, n1, "netctl", "bgp", "topology", "show")
		status, _ := netlab.Try(t, n1, "netctl", "status")
		if !strings.Contains(out, "set to reflectors") || !strings.Contains(status, "reflector") && !strings.Contains(status, "client") {
			return fmt.Sprint(out, status)
		}
		return ""
	})
	waitHealthy(t, l)
	for _, f := range []*netlab.Flood{flood, back} {
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("across the restarts: %s", r)
		}
	}
	if out := netlab.Must(t, n1, "netctl", "ipam", "check"); !strings.Contains(out, "nothing wrong") {
		t.Errorf("ipam check: %s", out)
	}
}
