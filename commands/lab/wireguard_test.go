package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestWithoutWireGuard: on a kernel that has no WireGuard a pool that asks for it is said
// in `status`, in words, its packets go as they would without, and nothing else is harmed.
func TestWithoutWireGuard(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	if _, err := netlab.Try(t, n1, "ip", "link", "add", "wg.test", "type", "wireguard"); err == nil {
		t.Skip("this kernel has WireGuard")
	}
	netlab.Must(t, n1, "netctl", "pool", "add", pool4)
	a, _, _ := attach(t, n1, "a", "web")
	_, b4, _ := attach(t, n2, "b", "web")
	pings(t, a, b4)
	flood, err := netlab.StartFlood(a, b4, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	encap4 := func(mode string) {
		netlab.Must(t, n1, "sh", "-c", fmt.Sprintf(`echo '{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": %q, "encap": %q}}' | netctl apply -f -`, pool4, mode))
	}
	encap4("wireguard")
	for _, h := range l.Hosts {
		netlab.Until(t, patience, "status of "+h.Name, func() string {
			out, err := netlab.Try(t, h, "netctl", "status")
			if err == nil || !strings.Contains(out, "tunnel wg.netctl: this kernel has no wireguard devices, nor a module for them") ||
				!strings.Contains(out, "reached without the tunnel that a pool asks for") {
				return fmt.Sprint(out, err)
			}
			return ""
		})
	}
	goes(t, n1, "eth1", b4)
	if _, err := netlab.Try(t, n1, "netctl", "node", "rotate-key", n1.Name); err == nil || !strings.Contains(err.Error(), "no pool asks for WireGuard") {
		t.Errorf("a new key without WireGuard: %v", err)
	}
	c, c4, _ := attach(t, n1, "c", "web")
	pings(t, a, c4)
	pings(t, c, b4)
	encap4("none")
	for _, h := range l.Hosts {
		netlab.Until(t, patience, "status of "+h.Name, func() string {
			out, err := netlab.Try(t, h, "netctl", "status")
			if err != nil {
				return fmt.Sprint(out, err)
			}
			return ""
		})
	}
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("packets of the pool: %s", r)
	}
}
