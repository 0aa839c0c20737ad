package agent

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/netdev/netlab"
)

// TestHandsOnAHost changes what an attach and the agent set, as other programs do,
// while traffic runs: it runs on, the status is healthy again, and one line each says
// who lost what.
func TestHandsOnAHost(t *testing.T) {
	s := newSite(t, netlab.Options{Nodes: 1, IPv6: true}, nil)
	s.pool("10.0.0.0/24")
	s.pool("fd80:24e2:f998:72d6::/64")
	six := func(r *control.AttachRequest) { r.IPv6 = true }
	c1, a1 := s.attach("c1", "web", six)
	c2, a2 := s.attach("c2", "web", six)
	link := a2.Link
	whole := func() string {
		if st := s.status(); len(st.Problems) > 0 {
			return strings.Join(st.Problems, "; ")
		}
		ns, err := os.Open(c2.Path())
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		target := control.Target{Orchestrator: "cni", Workload: c2.ID, Interface: "eth0"}
		if err := s.client().Check(t.Context(), control.CheckRequest{Target: target, NetnsFD: int(ns.Fd())}); err != nil {
			return err.Error()
		}
		return ""
	}
	reaches := func(from netlab.Place, to netip.Addr) {
		t.Helper()
		s.until("ping "+to.String(), func() string {
			out, err := netlab.Try(t, from, "ping", "-n", "-c", "1", "-W", "1", to.String())
			if err != nil {
				return out
			}
			return ""
		})
	}
	arrives := func() {
		t.Helper()
		s.until("whole", whole)
		for _, a := range a2.Addresses {
			reaches(c1, a)
		}
		for _, a := range a1.Addresses {
			reaches(c2, a)
		}
		reaches(c2, s.node.Addr6.Addr())
	}
	arrives()
	for _, hand := range []struct{ do, says string }{
		{"ip link set $0 down; ip link set $0 name foo; ip link set foo up || true", "name is foo, not " + link},
		{"ip link set $0 name bar", "name is bar, not " + link},
		{"ip link set $0 group default", "group is 0, not 28259"},
		{"ip link set $0 down; ip link set $0 up", ""},
		{"ip -6 addr flush dev $0 || true", "address fe80::ecee:eeff:feee:eeee/64 is missing"},
		{"ip addr add 192.0.2.77/24 dev $0", "it has the address of somebody else: [192.0.2.77/24]"},
		{"echo 1 > /proc/sys/net/ipv6/conf/$0/addr_gen_mode; ip link set $0 down; ip link set $0 up", "addr_gen_mode is 1, not 0"},
		{"echo 1 > /proc/sys/net/ipv6/conf/$0/disable_ipv6", "disable_ipv6 is 1, not 0"},
		{"ip link add br0 type bridge; ip link set br0 up; ip link set $0 master br0", "master is "},
		{"ip link set $0 address 02:00:00:00:00:01", "mac is 02:00:00:00:00:01"},
		{"ip link set $0 mtu 1280", "mtu is 1280"},
		{"echo 0 > /proc/sys/net/ipv4/conf/$0/forwarding", "forwarding is 0, not 1"},
		{"echo 0 > /proc/sys/net/ipv4/conf/$0/proxy_arp", "proxy_arp is 0, not 1"},
		{"ip neigh flush dev $0 nud permanent || true", "permanent neighbour entry of"},
		{"ip link set $0 arp off", "arp is off"},
		{"echo 0 > /proc/sys/net/ipv4/ip_forward", `setting="ipv4 forwarding"`},
		{"echo 0 > /proc/sys/net/ipv6/conf/all/forwarding", `setting="ipv6 forwarding"`},
		{"echo 0 > /proc/sys/net/ipv4/conf/eth1/forwarding", `setting="ipv4 forwarding by eth1"`},
		// What has no say in what is forwarded, or drops nothing that comes the way it goes.
		{"cd /proc/sys/net/ipv6/conf; echo 0 > $0/forwarding; echo 0 > eth1/forwarding", ""},
		{"cd /proc/sys/net/ipv4/conf; echo 1 > $0/rp_filter; echo 1 > eth1/rp_filter", ""},
		{"ip link set lo down", "setting=lo"},
		{"ip route del 169.254.1.1 dev lo", "routes put back"},
	} {
		before := len(s.agent.Output())
		netlab.Must(t, s.node, "sh", "-c", hand.do, link)
		s.until(hand.do, func() string { return lacks(s.agent.Output()[before:], hand.says) })
		arrives()
		if t.Failed() {
			t.Fatalf("after %q", hand.do)
		}
	}
	// What the kernel tells nobody of is put back by a CHECK.
	delay := "/proc/sys/net/ipv4/neigh/" + link + "/proxy_delay"
	netlab.Must(t, s.node, "sh", "-c", "echo 80 > "+delay)
	s.until("whole", whole) // one that comes upon so many hands may say that they are at it still
	if v := strings.TrimSpace(netlab.Must(t, s.node, "cat", delay)); v != "0" {
		t.Errorf("proxy_delay is %s after a CHECK", v)
	}
	netlab.Must(t, c2, "sh", "-c", "ip neigh del 169.254.1.1 dev eth0; ip -6 neigh del fe80::ecee:eeff:feee:eeee dev eth0")
	s.until("whole", whole)
	s.until("the line", func() string {
		return lacks(s.agent.Output(), "eth0: permanent neighbour entry of 169.254.1.1 is missing; eth0: permanent neighbour entry of fe80::ecee:eeff:feee:eeee is missing")
	})
	if is := netlab.Must(t, c2, "ip", "neigh", "show", "nud", "permanent"); strings.Count(is, "ee:ee:ee:ee:ee:ee") != 2 {
		t.Errorf("after a CHECK: %s", is)
	}
	if v := strings.TrimSpace(netlab.Must(t, s.node, "cat", "/proc/sys/net/ipv4/conf/eth1/forwarding")); v != "1" {
		t.Errorf("forwarding of eth1 is %s", v)
	}
	// While the agent is away, and then the store.
	s.agent.Kill()
	<-s.agent.Done()
	netlab.Must(t, s.node, "sh", "-c", "ip link set $0 name foo; ip link set foo group default; echo 0 > /proc/sys/net/ipv4/ip_forward", link)
	s.agent = s.startAgent(s.node, s.cfg)
	s.synced()
	arrives()
	s.until("the line", func() string { return lacks(s.agent.Output(), `setting="ipv4 forwarding"`) })
	// Of links that were there before it started it hears all the same.
	netlab.Must(t, s.node, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/$0/proxy_arp; ip -6 addr flush dev $0 || true", link)
	s.until("the line", func() string { return lacks(s.agent.Output(), "proxy_arp is 0, not 1") })
	s.until("the line", func() string { return lacks(s.agent.Output(), "eeee/64 is missing") })
	arrives()
	s.stopStore()
	netlab.Must(t, s.node, "sh", "-c", "ip link set $0 name foo; echo 0 > /proc/sys/net/ipv4/ip_forward", link)
	for _, a := range a2.Addresses {
		reaches(c1, a)
	}
	s.startStore()
	s.synced()
	arrives()
	// The workload's own MAC.
	netlab.Must(t, c2, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
	netlab.Must(t, c2, "sh", "-c", "ip neigh flush all")
	reaches(c1, a2.Addresses[0])
	// A detach knows its link, whatever it is called, while no agent puts it back.
	if err := s.agent.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, s.node, "ip", "link", "set", link, "name", "foo", "group", "default") // at once: some thread may run still
	if err := s.agent.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.until("detach", func() string { // the store's connection broke a moment ago
		if err := s.detach(c2); err != nil {
			return err.Error()
		}
		return ""
	})
	s.until("no link left", func() string {
		if out := netlab.Must(t, s.node, "ip", "-o", "link"); strings.Contains(out, "foo") || strings.Contains(out, link) {
			return out
		}
		return ""
	})
}
