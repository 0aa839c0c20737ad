package agent

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// advertise sends a router advertisement (RFC 4861, section 4.2) with a router
// lifetime of half an hour to all nodes on a link.
func advertise(from *netlab.Host, link string) error {
	return from.Do(func() error {
		i, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			return err
		}
		const lifetime = 1800
		ra := []byte{134, 0, 0, 0, 64, 0, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
		return unix.Sendto(fd, ra, 0, &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(i.Index)})
	})
}

// ipv6 runs the second family in a host that has a default route by router
// advertisement, which the kernel would drop once it forwards.
func ipv6(t *testing.T, s *site) {
	learnt := func() {
		t.Helper()
		s.until("default route by router advertisement", func() string {
			if err := advertise(s.lab.Fabric, "mgmt"); err != nil {
				return err.Error() // the link has no address of its own yet
			}
			if r := netlab.Must(t, s.node, "ip", "-6", "route", "show", "default", "dev", "eth0"); !strings.Contains(r, "proto ra") {
				return fmt.Sprintf("%q", r)
			}
			return ""
		})
	}
	learnt()
	forwarding := func() string {
		return strings.TrimSpace(netlab.Must(t, s.node, "cat", "/proc/sys/net/ipv6/conf/all/forwarding"))
	}
	if forwarding() != "0" {
		t.Fatal("IPv6 forwarding is on before there is an IPv6 endpoint")
	}
	six := func(r *control.AttachRequest) { r.IPv6 = true }
	c := s.container("six-early")
	if _, err := s.tryAttach(c, "dataman", six); err == nil || control.ErrorOf(err).Code != control.CodeExhausted && control.ErrorOf(err).Code != control.CodeInvalid {
		t.Errorf("IPv6 without a pool: %v", err)
	}
	s.pool("fd80:24e2:f998:72d6::/64")
	a, attached := s.attach("six-a", "dataman", six)
	_, other := s.attach("six-b", "dataman", six)
	_, foreign := s.attach("six-c", "app", six)
	if len(attached.Addresses) != 2 || !attached.Addresses[1].Is6() || len(attached.Gateways) != 2 {
		t.Fatalf("attachment = %+v", attached)
	}
	s.has("kernel", attached.Addresses[1].String()+" dev "+attached.Link, "blackhole fd80:24e2:f998:72d6:")
	if forwarding() != "1" {
		t.Error("IPv6 forwarding is off")
	}
	if r := netlab.Must(t, s.node, "ip", "-6", "route", "show", "default", "dev", "eth0"); !strings.Contains(r, "proto ra") {
		t.Errorf("the default route is gone: %q", r)
	}
	netlab.Must(t, s.node, "ip", "-6", "route", "del", "default", "dev", "eth0")
	learnt() // advertisements are still heard
	laterInterface(t, s)
	// No duplicate address detection: the first packet gets through.
	if !s.ping(a, other.Addresses[1]) {
		t.Error("no answer over IPv6")
	}
	if s.ping(a, foreign.Addresses[1]) {
		t.Error("another profile's endpoint answers over IPv6")
	}
	if s.ping(a, s.node.Addr6.Addr()) == false {
		t.Error("the host does not answer an echo request")
	}
	for _, name := range []string{"six-a", "six-b", "six-c"} {
		if err := s.client().Detach(t.Context(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: s.lab.ID + "-node1-" + name}}); err != nil {
			t.Error(err)
		}
	}
	pool, err := datastore.Get[*datastore.Pool](t.Context(), s.store, datastore.PoolName(netip.MustParsePrefix("fd80:24e2:f998:72d6::/64")))
	if err == nil {
		err = datastore.Delete(t.Context(), s.store, pool)
	}
	if err != nil {
		t.Error(err)
	}
}

// laterInterface gives the host an interface after IPv6 forwarding is on: it hears
// its router nevertheless.
func laterInterface(t *testing.T, s *site) {
	t.Helper()
	fabric := s.lab.Fabric
	netlab.Must(t, fabric, "ip", "link", "add", "late", "type", "veth", "peer", "name", "eth9", "netns", fmt.Sprint(s.node.PID))
	netlab.Must(t, fabric, "ip", "link", "set", "late", "up")
	netlab.Must(t, s.node, "ip", "link", "set", "eth9", "up")
	s.until("default route of an interface that came later", func() string {
		if err := advertise(fabric, "late"); err != nil {
			return err.Error()
		}
		if r := netlab.Must(t, s.node, "ip", "-6", "route", "show", "default", "dev", "eth9"); !strings.Contains(r, "proto ra") {
			return fmt.Sprintf("%q", r)
		}
		return ""
	})
	if log := s.agent.Output(); !strings.Contains(log, "setting=net/ipv6/conf/eth9/accept_ra old=1 new=2") {
		t.Errorf("the log does not tell:\n%s", log)
	}
	netlab.Must(t, s.node, "ip", "link", "del", "eth9")
}
