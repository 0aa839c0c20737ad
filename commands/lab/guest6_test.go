package lab

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestGuestWireGuardIPv6: packets of both families go encrypted, as large as the endpoints'
// interfaces take, between nodes that have both families (over IPv4) and between nodes that
// have IPv6 only.
func TestGuestWireGuardIPv6(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("runs in the guest of TestInGuest")
	}
	for _, c := range []struct {
		name   string
		config Config
		mtu    int
	}{{"over IPv4", Config{IPv6: true}, 1440}, {"over IPv6", Config{IPv6Only: true}, 1420}} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Nodes, c.config.Subnets, c.config.Ready = 2, 2, 6*time.Minute
			l := forTest(t, c.config)
			n1, n2 := l.Hosts[0], l.Hosts[1]
			for _, pool := range []string{pool4, pool6} {
				manifest := fmt.Sprintf(`{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": %q, "encap": "wireguard"}}`, pool)
				netlab.Must(t, n1, "sh", "-c", "echo '"+manifest+"' | netctl apply -f -")
			}
			netlab.Must(t, n1, "netctl", "network", "create", "dual", "--ipv6")
			a, a4, a6 := attach(t, n1, "a", "dual")
			b, b4, b6 := attach(t, n2, "b", "dual")
			const wg = "wg.netctl"
			goes(t, n1, wg, b4, b6)
			goes(t, n2, wg, a4, a6)
			for _, to := range []netip.Addr{b4, b6} {
				pings(t, a, to)
			}
			fits(t, a, b, b4, c.mtu)
			pings(t, a, b6, "-M", "do", "-s", fmt.Sprint(c.mtu-48))
			transfer(t, a, b, b6)
			wire := capture(t, n1, "eth1", "udp port 51820", func() { pings(t, a, b6) })
			ends := fmt.Sprintf("%s.51820 > %s.51820: ", n1.Addr.Addr(), n2.Addr.Addr())
			if !strings.Contains(wire, ends) || strings.Contains(wire, a6.String()) || strings.Contains(wire, "ICMP") {
				t.Errorf("on the wire:\n%s", wire)
			}
			pings(t, b, a4)
			pings(t, b, a6)
			healthyStatus(t, l)
		})
	}
}

// TestGuestWireGuardFamily: of two nodes with both families one is reached by IPv6 while
// IPv4 does not get through, whether it is lost on the way or has no route, and by IPv4
// after; packets of both families go encrypted all the time.
func TestGuestWireGuardFamily(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("runs in the guest of TestInGuest")
	}
	l := forTest(t, Config{Nodes: 2, Subnets: 2, IPv6: true, Ready: 6 * time.Minute})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	for _, pool := range []string{pool4, pool6} {
		manifest := fmt.Sprintf(`{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": %q, "encap": "wireguard"}}`, pool)
		netlab.Must(t, n1, "sh", "-c", "echo '"+manifest+"' | netctl apply -f -")
	}
	netlab.Must(t, n1, "netctl", "network", "create", "dual", "--ipv6")
	a, a4, a6 := attach(t, n1, "a", "dual")
	b, b4, b6 := attach(t, n2, "b", "dual")
	const wg = "wg.netctl"
	all := func() {
		t.Helper()
		goes(t, n1, wg, b4, b6)
		goes(t, n2, wg, a4, a6)
		for _, to := range []netip.Addr{b4, b6} {
			pings(t, a, to)
		}
		for _, to := range []netip.Addr{a4, a6} {
			pings(t, b, to)
		}
	}
	by := func(h *netlab.Host, remote netip.Addr) {
		t.Helper()
		wire := capture(t, h, "eth1", "udp port 51820", func() { pings(t, a, b4) })
		if !strings.Contains(wire, remote.String()+".51820: ") || strings.Contains(wire, "ICMP") {
			t.Errorf("on the wire of %s:\n%s", h.Name, wire)
		}
	}
	moved := func(what string, since time.Time) {
		t.Logf("%s: %s", what, time.Since(since).Round(100*time.Millisecond))
	}
	all()
	by(n1, n2.Addr.Addr())

	netlab.Must(t, n1, "nft", `add table ip lost
add chain ip lost in { type filter hook input priority 0; }
add chain ip lost out { type filter hook output priority 0; }
add rule ip lost in iifname eth1 meta l4proto { udp, icmp } drop
add rule ip lost out oifname eth1 meta l4proto { udp, icmp } drop`)
	since := time.Now()
	all()
	moved("IPv4 is lost", since)
	by(n1, n2.Addr6.Addr())
	// As large as with IPv4 around it.
	pings(t, a, b4, "-M", "do", "-s", fmt.Sprint(1440-28))
	pings(t, a, b6, "-M", "do", "-s", fmt.Sprint(1440-48))
	transfer(t, a, b, b4)
	netlab.Must(t, n1, "nft", "delete", "table", "ip", "lost")
	since = time.Now()
	netlab.Until(t, time.Minute, "IPv4 again", func() string {
		if wire := capture(t, n1, "eth1", "udp port 51820", func() { pings(t, a, b4) }); !strings.Contains(wire, n2.Addr.Addr().String()+".51820: ") {
			return wire
		}
		return ""
	})
	moved("IPv4 is back", since)
	all()

	// n2 knows no way by IPv4 any more.
	netlab.Must(t, n2, "ip", "route", "add", "unreachable", n1.Addr.Addr().String())
	since = time.Now()
	all()
	moved("no IPv4 route", since)
	by(n2, n1.Addr6.Addr())
}
