package lab

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestAllowedPrefixes: networks behind an endpoint are routed to it, also from other nodes, it may
// send from them, rules take them for its own, and nothing is lost as they come and go.
func TestAllowedPrefixes(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.0.0.0/16", "fd80:24e2:f998:72d6::/64")
	netlab.Must(t, n1, "netctl", "pool", "add", "10.9.0.0/24", "fd09::/64", "--disabled")
	netlab.Must(t, n1, "netctl", "network", "create", "web", "--ipv6")
	netlab.Must(t, n1, "netctl", "network", "create", "db", "--ipv6")
	waitHealthy(t, l)
	r, r4, _ := attach(t, n1, "r", "web")
	b, b4, b6 := attach(t, n2, "b", "web")
	near, _, _ := attach(t, n1, "near", "web")
	stranger, _, _ := attach(t, n2, "stranger", "db")
	behind4, behind6 := netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("fd09::5")
	netlab.Must(t, r, "ip", "address", "add", "10.9.0.5/32", "dev", "lo")
	netlab.Must(t, r, "ip", "address", "add", "fd09::5/128", "dev", "lo")
	id := "node1/cni/" + r.ID + "/eth0"
	pings(t, b, r4)
	from := func(src, dst netip.Addr) bool {
		_, failed := netlab.Try(t, r, "ping", "-n", "-c", "1", "-W", "0.5", "-I", src.String(), dst.String())
		return failed == nil
	}
	if from(behind4, b4) {
		t.Error("it sends from an address that is not its own")
	}

	flood, err := netlab.StartFlood(b, r4, 2*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, n1, "netctl", "endpoint", id, "prefix", "add", "10.9.0.0/24", "fd09::/64")
	for _, a := range []netip.Addr{behind4, behind6} {
		pings(t, b, a)
		pings(t, near, a)
		if _, failed := netlab.Try(t, stranger, "ping", "-n", "-c", "1", "-W", "0.3", a.String()); failed == nil {
			t.Errorf("another profile's endpoint reaches %s", a)
		}
	}
	if !from(behind4, b4) || !from(behind6, b6) {
		t.Error("what is behind it does not reach a member elsewhere")
	}
	for _, words := range [][]string{{"10.9.0.5", b.ID}, {b.ID, "fd09::5"}, {"10.9.0.5", near.ID}} {
		if out, code := exitOf(t, n2, append([]string{"netctl", "explain"}, append(words, "tcp", "80")...)...); code != 0 || !strings.Contains(out, id) {
			t.Errorf("explain %v: exit %d\n%s", words, code, out)
		}
	}
	if out := netlab.Must(t, n1, "netctl", "endpoint", "show", "--detailed"); !strings.Contains(out, "10.9.0.0/24,fd09::/64") {
		t.Errorf("endpoint show --detailed:\n%s", out)
	}
	for prefix, says := range map[string]string{
		"10.9.0.0/25":    "overlaps 10.9.0.0/24 of endpoint " + id,
		"10.0.0.0/28":    "from which addresses are given out",
		"10.7.0.0/24":    "`netctl pool add 10.7.0.0/24 --disabled` first",
		"192.168.0.0/16": "of node node",
		"0.0.0.0/0":      "cannot be routed",
	} {
		if out, code := exitOf(t, n1, "netctl", "endpoint", "node1/cni/"+near.ID+"/eth0", "prefix", "add", prefix); code == 0 || !strings.Contains(out, says) || strings.Count(out, "\n") != 1 {
			t.Errorf("prefix add %s: exit %d: %s", prefix, code, out)
		}
	}
	gone := func(how string) {
		t.Helper()
		netlab.Until(t, patience, how+": the routes are gone", func() string {
			out := netlab.Must(t, n2, "sh", "-c", "ip route; ip -6 route") + netlab.Must(t, n1, "sh", "-c", "ip route; ip -6 route")
			if strings.Contains(out, "10.9.0.0/24") || strings.Contains(out, "fd09::/64") {
				return out
			}
			return ""
		})
	}
	netlab.Must(t, n1, "netctl", "endpoint", id, "prefix", "remove", "10.9.0.0/24", "fd09::/64")
	gone("removed")
	if from(behind4, b4) {
		t.Error("it still sends from what was behind it")
	}
	if lost := flood.Stop().Lost; len(lost) > 0 {
		t.Errorf("lost of its own packets: %v", lost)
	}
	netlab.Must(t, n1, "netctl", "endpoint", id, "prefix", "add", "10.9.0.0/24", "fd09::/64")
	pings(t, b, behind4)
	if _, err := r.CNI(t.Context(), "DEL", netlab.Conf("web"), ""); err != nil {
		t.Fatal(err)
	}
	gone("detached")
}
