package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

const pool4, pool6 = "10.65.0.0/16", "fd80:24e2:f998:72d6::/64"

// encap sets how packets of both pools travel.
func encap(t *testing.T, h *netlab.Host, mode string) {
	t.Helper()
	for _, cidr := range []string{pool4, pool6} {
		manifest := fmt.Sprintf(`{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": %q, "encap": %q, "natOutgoing": true}}`, cidr, mode)
		netlab.Must(t, h, "sh", "-c", "echo '"+manifest+"' | netctl apply -f -")
	}
}

// goes waits until every route of the speaker's on a host that leads to an address goes
// over a link.
func goes(t *testing.T, h *netlab.Host, link string, to ...netip.Addr) {
	t.Helper()
	for _, a := range to {
		netlab.Until(t, patience, "route to "+a.String()+" over "+link, func() string {
			out, err := netlab.Try(t, h, "ip", "route", "get", a.String())
			if err != nil || !strings.Contains(out, " dev "+link+" ") {
				return fmt.Sprint(h.Name, ": ", out, err)
			}
			return ""
		})
	}
}

func pings(t *testing.T, from netlab.Place, to netip.Addr, options ...string) {
	t.Helper()
	netlab.Until(t, patience, "ping "+to.String(), func() string {
		out, err := netlab.Try(t, from, append(append([]string{"ping", "-n", "-c1", "-W1"}, options...), to.String())...)
		if err != nil {
			return fmt.Sprint(out, err)
		}
		return ""
	})
}

// TestEncap: three nodes in two subnets that the fabric does not route pools between.
// Packets go through tunnels as the pools say, both families, and no change of that, of
// a role or of a device loses one that could go on.
func TestEncap(t *testing.T) {
	l := forTest(t, Config{Nodes: 3, Subnets: 2, IPv6: true})
	n1, n2, n3 := l.Hosts[0], l.Hosts[1], l.Hosts[2] // the second is in the other subnet
	const vxlan, plain = "vxlan.netctl", "eth1"
	netlab.Must(t, n1, "netctl", "pool", "add", pool4, pool6)
	netlab.Must(t, n1, "netctl", "network", "create", "dual", "--ipv6")
	a, a4, a6 := attach(t, n1, "a", "dual")
	b, b4, b6 := attach(t, n2, "b", "dual")
	c, c4, c6 := attach(t, n3, "c", "dual")
	pings(t, a, c4)
	pings(t, a, c6)
	var floods []*netlab.Flood
	flood := func(from netlab.Place, to ...netip.Addr) {
		t.Helper()
		for _, addr := range to {
			f, err := netlab.StartFlood(from, addr, 5*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			floods = append(floods, f)
		}
	}
	flood(a, c4, c6)
	flood(c, a4, a6)
	// Packets as large as a link takes at first, which routers may cut up.
	for from, to := range map[netlab.Place]netip.Addr{a: c4, c: a4} {
		f, err := netlab.StartLargeFlood(from, to, 5*time.Millisecond, 1500)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	size := func(of netlab.Place, mtu int) {
		t.Helper()
		netlab.Until(t, patience, "MTU", func() string {
			if out := netlab.Must(t, of, "ip", "link", "show", "eth0"); !strings.Contains(out, fmt.Sprintf(" mtu %d ", mtu)) {
				return out
			}
			return ""
		})
	}
	near := func(link string) {
		t.Helper()
		goes(t, n1, link, c4, c6)
		goes(t, n3, link, a4, a6)
		for _, f := range floods { // some more go that way
			more := f.Answered() + 20
			netlab.Until(t, patience, "traffic", func() string {
				if f.Answered() < more {
					return "none"
				}
				return ""
			})
		}
	}
	far := func(link string) {
		t.Helper()
		goes(t, n1, link, b4, b6)
		goes(t, n2, link, a4, a6, c4, c6)
		goes(t, n3, link, b4, b6)
	}
	near(plain)

	encap(t, n1, "vxlan")
	near(vxlan)
	far(vxlan)
	// Who runs follows, before the first packet takes the tunnel.
	for _, e := range []netlab.Place{a, b, c} {
		size(e, 1450)
	}
	pings(t, b, a4)
	pings(t, b, a6)
	flood(a, b4, b6)
	flood(b, c4, c6)
	stream, err := netlab.StartStream(b, a, a4)
	if err != nil {
		t.Fatal(err)
	}
	// A new endpoint has the MTU that fits; what is larger is cut up by the workload.
	d, _, _ := attach(t, n1, "d", "dual")
	if out := netlab.Must(t, d, "ip", "link", "show", "eth0"); !strings.Contains(out, " mtu 1450 ") {
		t.Errorf("a new endpoint: %s", out)
	}
	pings(t, d, b4, "-M", "do", "-s", "1422")
	pings(t, d, b6, "-M", "do", "-s", "1402")
	pings(t, a, b4, "-s", "1472")
	// What the host sends itself is answered through the tunnel too.
	pings(t, n1, tunnelAddress(t, n2, "-4"))
	pings(t, n1, tunnelAddress(t, n2, "-6"))

	encap(t, n1, "vxlan-cross-subnet")
	near(plain)
	far(vxlan)
	for _, role := range []string{"agent", "speaker"} {
		before := pid(t, n1, role, 0)
		if err := unix.Kill(before, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid(t, n1, role, before)
		netlab.Until(t, patience, "status", func() string {
			out, err := netlab.Try(t, n1, "netctl", "status")
			if err != nil || !strings.Contains(out, "in sync") || strings.Count(out, "Established") != 2 || strings.Count(out, "\n! ") > 0 {
				return out
			}
			return ""
		})
	}
	far(vxlan)
	if r := stream.Stop(); r.Err != nil || r.Echoed == 0 {
		t.Errorf("TCP across the changes: %+v", r)
	}
	for _, f := range floods[6:] {
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("between the subnets: %s", r)
		}
	}
	floods = floods[:6]

	encap(t, n1, "none")
	far(plain)
	waitHealthy(t, l)
	encap(t, n1, "vxlan")
	near(vxlan)
	for _, f := range floods {
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("in the subnet: %s", r)
		}
	}
	floods = nil

	// A device that somebody deletes is made again, with what it knew.
	netlab.Must(t, n1, "ip", "link", "del", vxlan)
	far(vxlan)
	pings(t, a, b4)
	pings(t, a, b6)

	// To a node a packet goes by its own address, and by the plain way.
	pings(t, a, netip.MustParseAddr("192.168.100.103"))
	if out := netlab.Must(t, n1, "nft", "list", "chain", "inet", "netctl", "nat_out"); !strings.Contains(out, `comment "natOutgoing: to a node"`) || strings.Contains(out, "ip daddr @nodes4 counter packets 0 ") {
		t.Errorf("natOutgoing: %s", out)
	}
	// With the node's address it would be a peer of the other one's, whose routes are believed.
	if err := a.Do(func() error {
		c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(t.Context(), "tcp", "192.168.100.103:179")
		if err == nil {
			_ = c.Close()
		}
		return err
	}); err == nil {
		t.Error("a workload of a pool with natOutgoing reaches BGP of another node")
	}
	if out := netlab.Must(t, n1, "netctl", "ipam", "check"); !strings.Contains(out, "nothing wrong") {
		t.Errorf("ipam check: %s", out)
	}
}

// tunnelAddress is a host's own address in its VXLAN tunnel.
func tunnelAddress(t *testing.T, h *netlab.Host, family string) (addr netip.Addr) {
	t.Helper()
	netlab.Until(t, patience, "address of the tunnel", func() string {
		f := strings.Fields(netlab.Must(t, h, "ip", family, "-br", "addr", "show", "vxlan.netctl"))
		if len(f) < 3 {
			return fmt.Sprint(f)
		}
		addr = netip.MustParsePrefix(f[2]).Addr()
		return ""
	})
	return addr
}

// TestEncapOneFamilyLost: between two nodes with both families IPv4 does not get through
// any more. Packets in VXLAN go by IPv6 then, those of both families, and by IPv4 again
// when the session does.
func TestEncapOneFamilyLost(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "sh", "-c", `echo '{"apiVersion": "netctl/v1", "kind": "BGPConfig", "metadata": {"name": "default"}, "spec": {"holdTime": 3}}' | netctl apply -f -`)
	encap(t, n1, "vxlan")
	netlab.Must(t, n1, "netctl", "network", "create", "dual", "--ipv6")
	a, a4, a6 := attach(t, n1, "a", "dual")
	_, b4, b6 := attach(t, n2, "b", "dual")
	restart := func() {
		t.Helper()
		old, err := n1.Find("netctl-speaker")
		if err != nil || len(old) != 1 {
			t.Fatal(old, err)
		}
		if err := unix.Kill(old[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		netlab.Until(t, patience, "another speaker, with its session", func() string {
			out, err := netlab.Try(t, n1, "netctl", "status")
			if now, e := n1.Find("netctl-speaker"); err != nil || e != nil || len(now) != 1 || now[0] == old[0] || !strings.Contains(out, "Established") {
				return fmt.Sprint(now, out, err)
			}
			return ""
		})
	}
	by := func(link string) {
		t.Helper()
		goes(t, n1, link, b4, b6)
		goes(t, n2, link, a4, a6)
		pings(t, a, b4)
		pings(t, a, b6)
		pings(t, a, b4, "-s1400", "-Mdo") // larger than IPv6 leaves room for: the sender is told
		pings(t, a, b6, "-s1372")
	}
	by("vxlan.netctl")
	if out := netlab.Must(t, a, "ip", "link", "show", "eth0"); !strings.Contains(out, " mtu 1450 ") {
		t.Errorf("the way that is in use leaves room for 1450 bytes: %s", out)
	}
	restart() // the hold time counts from the next session on
	netlab.Must(t, n1, "nft", "add table ip cut; add chain ip cut in { type filter hook input priority 0; }; add chain ip cut out { type filter hook output priority 0; }; add rule ip cut in iifname eth1 drop; add rule ip cut out oifname eth1 drop")
	by("vxlan6.netctl")
	// A speaker that starts again goes on so, and loses nothing.
	var floods []*netlab.Flood
	for _, to := range []netip.Addr{b4, b6} {
		f, err := netlab.StartFlood(a, to, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	restart()
	goes(t, n1, "vxlan6.netctl", b4, b6)
	for _, f := range floods {
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("a speaker that starts again: %s", r)
		}
	}
	netlab.Must(t, n1, "nft", "delete table ip cut")
	restart()
	by("vxlan.netctl")
}
