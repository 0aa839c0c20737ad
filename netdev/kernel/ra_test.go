package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// router is the other end of a host's interface; it sends router advertisements.
type router struct {
	conn net.PacketConn
	t    *testing.T
}

// advertise sends one to all nodes (RFC 4861, section 4.2), good for an hour, if
// the interface has got its address and its multicast route already.
func (r router) advertise() {
	r.t.Helper()
	const lifetime = 3600
	ra := []byte{134, 0, 0, 0, 64, 0, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	if _, err := r.conn.WriteTo(ra, &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: "r0"}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EINVAL) {
		r.t.Fatalf("router advertisement: %v", err)
	}
}

// newRouter wires an interface of the host to a router.
func newRouter(t *testing.T, h *host, link string) router {
	t.Helper()
	ns := newNetns(t)
	for _, n := range []int{h.ns, ns} {
		run(t, n, "sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad")
	}
	run(t, ns, "ip", "link", "add", "r0", "type", "veth", "peer", "name", link, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.ns))
	run(t, ns, "ip", "link", "set", "r0", "up")
	run(t, h.ns, "ip", "link", "set", link, "up")
	r := router{t: t}
	err := inNetns(ns, func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) {
				const hops = 255 // RFC 4861, section 6.1.2
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, hops)
			})
			if err != nil {
				return err
			}
			return set
		}}
		r.conn, err = lc.ListenPacket(t.Context(), "ip6:ipv6-icmp", "::")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.conn.Close() })
	return r
}

func hasDefault6(t *testing.T, h *host, link string) bool {
	t.Helper()
	return strings.Contains(run(t, h.ns, "ip", "-6", "route", "show", "dev", link), "default via fe80:")
}

func TestForwarding6KeepsTheDefaultRoute(t *testing.T) {
	h := newHost(t)
	r := newRouter(t, h, "up0")
	learn := func() bool {
		r.advertise()
		return hasDefault6(t, h, "up0")
	}
	until(t, "default route from a router advertisement", learn)
	if _, err := h.Forwarding6(); err != nil {
		t.Fatal(err)
	}
	if !hasDefault6(t, h, "up0") {
		t.Error("switching forwarding on dropped the host's default route")
	}
	run(t, h.ns, "ip", "-6", "route", "flush", "proto", "ra")
	until(t, "default route from a later router advertisement", learn)
}

// TestForwarding6OfALaterInterface: an interface that came after forwarding was
// switched on hears its router once it is called again.
func TestForwarding6OfALaterInterface(t *testing.T) {
	h := newHost(t)
	if _, err := h.Forwarding6(); err != nil {
		t.Fatal(err)
	}
	r := newRouter(t, h, "up1")
	if _, err := h.Forwarding6(); err != nil {
		t.Fatal(err)
	}
	until(t, "default route from a router advertisement", func() bool {
		r.advertise()
		return hasDefault6(t, h, "up1")
	})
	contains(t, h.log.String(), "setting=net/ipv6/conf/up1/accept_ra old=1 new=2")
}
