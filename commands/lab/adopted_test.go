package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// routedNIC makes what Incus makes of a routed NIC: a veth whose host side has a gateway's
// addresses, and a route to each of the container's.
func routedNIC(t *testing.T, h *netlab.Host, c *netlab.Container, link string, addrs ...netip.Addr) {
	t.Helper()
	netlab.Must(t, h, "sh", "-ec", fmt.Sprintf(`ip link add %[1]s type veth peer name eth0 netns %[2]s
echo 0 >/proc/sys/net/ipv6/conf/%[1]s/accept_dad
ip link set %[1]s up
ip addr add 169.254.0.1/32 dev %[1]s
ip addr add fe80::1/128 dev %[1]s nodad`, link, c.Path()))
	netlab.Must(t, c, "sh", "-ec", `echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set lo up; ip link set eth0 up; ip route add 169.254.0.1 dev eth0; ip route add default via 169.254.0.1 dev eth0; ip -6 route add default via fe80::1 dev eth0`)
	for _, a := range addrs {
		netlab.Must(t, c, "ip", "addr", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0")
		netlab.Must(t, h, "ip", "route", "add", a.String(), "dev", link)
	}
}

func newContainer(t *testing.T, h *netlab.Host, name string) *netlab.Container {
	t.Helper()
	c, err := h.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Remove() })
	return c
}

// TestAdopted: an interface that somebody else made is an endpoint as soon as it has a route
// to an address, and as long: reached from other nodes, by the rules of its network, and
// unable to be somebody else. Nothing of it is changed.
func TestAdopted(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true, Settings: "agent:\n    adopt: [\"in*=web\", \"vm*=db\"]\n"})
	waitHealthy(t, l)
	one, two := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.0.0.0/16")
	netlab.Must(t, one, "netctl", "pool", "add", pool6)
	netlab.Must(t, one, "netctl", "network", "create", "web", "--ipv6", "--runtime", "none")
	netlab.Must(t, one, "netctl", "network", "create", "other", "--ipv6", "--runtime", "none")
	friend, friend4, friend6 := attach(t, two, "friend", "web")
	other, other4, _ := attach(t, one, "other", "other")
	v4, v6 := netip.MustParseAddr("10.0.7.7"), netip.MustParseAddr("fd80:24e2:f998:72d6::77")
	shown := func(what string) string { // what of it is somebody else's
		return netlab.Must(t, one, "sh", "-ec", "ip -d -o link show "+what+" | sed 's/ qlen .*//'; ip -o addr show dev "+what+"; ip route show dev "+what+"; ip -6 route show dev "+what) +
			netlab.Must(t, one, "sh", "-ec", "cd /proc/sys/net/ipv4; cat conf/"+what+"/* neigh/"+what+"/*; cd ../ipv6; cat conf/"+what+"/forwarding conf/"+what+"/accept_ra")
	}
	unchanged := func(before string) {
		t.Helper()
		if now := strings.Join(notOurs(shown("in1")), "\n"); now != before {
			t.Errorf("changed, from\n%s\nto\n%s", before, now)
		}
	}
	endpoints := func(want string) {
		t.Helper()
		netlab.Until(t, patience, "endpoints "+want, func() string {
			var have []string
			for _, line := range strings.Split(netlab.Must(t, two, "netctl", "get", "endpoints", "-o", "yaml"), "\n") {
				if _, name, ok := strings.Cut(line, "/adopted/"); ok && strings.Contains(line, " name: ") {
					have = append(have, name)
				}
			}
			if got := strings.Join(have, " "); got != want {
				return got
			}
			return ""
		})
	}
	pings := func(from netlab.Place, to netip.Addr, want bool, args ...string) {
		t.Helper()
		netlab.Until(t, patience, fmt.Sprintf("ping %s %v: %t", to, args, want), func() string {
			out, failed := netlab.Try(t, from, append(append([]string{"ping", "-n", "-c1", "-W1"}, args...), to.String())...)
			if (failed == nil) != want {
				return fmt.Sprint(out, failed)
			}
			return ""
		})
	}

	c := newContainer(t, one, "c")
	routedNIC(t, one, c, "xn1", v4, v6)
	netlab.Must(t, one, "sh", "-ec", "ip link set xn1 down; ip link set xn1 name in1")
	netlab.Must(t, one, "sh", "-ec", "echo 0 >/proc/sys/net/ipv6/conf/in1/accept_dad; ip link set in1 up")
	says(t, one, "interface in1 (agent.adopt): is not adopted: no route leads to a single address by it")
	netlab.Must(t, one, "sh", "-ec", "ip addr replace fe80::1/128 dev in1 nodad; ip route replace "+v4.String()+" dev in1; ip route replace "+v6.String()+" dev in1")
	endpoints("in1/in1")
	netlab.Until(t, patience, "it is shown with the address of the second route, too", func() string {
		out := netlab.Must(t, two, "netctl", "endpoint", "show", "--detailed", "in1")
		if strings.Contains(out, v4.String()) && strings.Contains(out, v6.String()) && strings.Contains(out, "web") {
			return ""
		}
		return out
	})
	pings(friend, v4, true)
	pings(c, friend4, true)
	pings(c, friend6, true)
	pings(other, v4, false)
	pings(other, v6, false)
	pings(c, other4, false)
	netlab.Must(t, one, "ping", "-n", "-c1", "-W1", v6.String())
	netlab.Must(t, c, "sh", "-ec", "ip addr add 10.0.99.99/32 dev eth0")
	pings(c, friend4, false, "-I", "10.0.99.99")
	if out, failed := netlab.Try(t, c, "busybox", "nc", "-w1", one.Addr.Addr().String(), "22"); failed == nil {
		t.Errorf("its host is open: %s", out)
	}
	netlab.Must(t, one, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "icmp", "from", "tag", "other")
	netlab.Must(t, one, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "icmpv6", "from", "tag", "other")
	pings(other, v4, true)
	pings(other, v6, true)
	before := strings.Join(notOurs(shown("in1")), "\n")

	// What is somebody else's is neither given nor taken.
	for _, try := range [][]string{{"netctl", "endpoint", "remove", "--force", one.Name + "/adopted/in1/in1"}} {
		if out, failed := netlab.Try(t, one, try...); failed == nil || !strings.Contains(out+failed.Error(), "comes and goes with its interface") {
			t.Errorf("%v: %s%v", try, out, failed)
		}
	}

	// The agent's end costs it nothing, and an object that somebody deletes is made again.
	was := pid(t, one, "agent", 0)
	if err := unix.Kill(was, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pings(friend, v4, true)
	pid(t, one, "agent", was)
	pings(other, v4, true)
	netlab.Must(t, one, "netctl", "delete", "endpoint", "--force", one.Name+"/adopted/in1/in1")
	endpoints("in1/in1")
	pings(friend, v4, true)
	unchanged(before)

	// Another one with its address is refused, on this node and on the other.
	d := newContainer(t, one, "d")
	routedNIC(t, one, d, "in2")
	netlab.Must(t, one, "ip", "route", "add", v4.String(), "dev", "in2", "metric", "7")
	says(t, one, "interface in2 (agent.adopt): 10.0.7.7 is behind in1 too")
	netlab.Must(t, one, "ip", "link", "del", "in2")
	e := newContainer(t, two, "e")
	routedNIC(t, two, e, "vm2", v4)
	says(t, two, "10.0.7.7: in use: held by "+one.Name+"/adopted/in1/in1")
	endpoints("in1/in1")

	// A name that means nothing ends it; the other node's may have the address then.
	netlab.Must(t, one, "sh", "-ec", "ip link set in1 down; ip link set in1 name xn1; ip link set xn1 up; ip route add "+v4.String()+" dev xn1")
	endpoints("vm2/vm2")
	netlab.Must(t, one, "ip", "link", "del", "xn1")
	pings(other, v4, false) // it is in another network
	netlab.Must(t, one, "netctl", "profile", "db", "rule", "add", "inbound", "allow", "icmp")
	pings(other, v4, true)

	// It goes with the interface, and leaves nothing.
	netlab.Must(t, two, "ip", "link", "del", "vm2")
	endpoints("")
	netlab.Until(t, patience, "no route, no problem", func() string {
		routes := netlab.Must(t, two, "ip", "route", "show", v4.String())
		status, _ := netlab.Try(t, two, "netctl", "status")
		if routes != "" || strings.Contains(status, "agent.adopt") {
			return routes + status
		}
		return ""
	})
	if out, failed := netlab.Try(t, one, "netctl", "ipam", "check"); failed != nil {
		t.Errorf("ipam check: %s%v", out, failed)
	}
}

func notOurs(text string) (kept []string) {
	for _, line := range strings.Split(text, "\n") {
		if !strings.Contains(line, "proto netctl") && !strings.Contains(line, "proto 87") {
			kept = append(kept, line)
		}
	}
	return kept
}
