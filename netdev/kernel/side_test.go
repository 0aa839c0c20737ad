package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

// forward switches forwarding of both families on.
func forward(h *host) error {
	_, err4 := h.Forwarding4()
	_, err6 := h.Forwarding6()
	return errors.Join(err4, err6)
}

// wired is a host with one attached workload, whose packets flow.
func wired(t *testing.T) (h *host, inside int, w Wire) {
	t.Helper()
	h, inside = newHost(t), newNetns(t)
	w = Wire{Netns: inside, Interface: "eth0", Link: "nc0", MAC: "02:00:00:00:00:07", MTU: 1400, Addresses: addrs("10.0.0.48", "fd80::48")}
	if err := forward(h); err != nil {
		t.Fatal(err)
	}
	made, err := h.Create(w)
	if err != nil {
		t.Fatal(err)
	}
	w.Index = made.Index
	if err := h.Up(w.Link); err != nil {
		t.Fatal(err)
	}
	run(t, h.ns, "sh", "-ec", `ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8::1/128 dev lo nodad
		ip route add 169.254.1.1 dev lo scope link`)
	route(t, h)
	until(t, "the gateway's IPv6 address", func() bool {
		return strings.Contains(run(t, h.ns, "ip", "-6", "route", "show", "table", "local"), "local fe80::ecee:eeff:feee:eeee dev nc0")
	})
	return h, inside, w
}

// route makes the routes to the workload, which are another package's, anew.
func route(t *testing.T, h *host) {
	t.Helper()
	run(t, h.ns, "sh", "-ec", "ip route replace 10.0.0.48 dev nc0; ip -6 route replace fd80::48 dev nc0")
}

// flows says whether packets flow both ways, both families.
func flows(t *testing.T, h *host, inside int) {
	t.Helper()
	for ns, to := range map[int][2]string{inside: {"192.0.2.1", "2001:db8::1"}, h.ns: {"10.0.0.48", "fd80::48"}} {
		for _, a := range to {
			until(t, "ping "+a, func() bool {
				_, err := try(ns, "ping", "-n", "-c1", "-W1", a)
				return err == nil
			})
		}
	}
}

// TestHold lays each hand on a link that others may: what differs is named and put
// back, Check names it too, and packets flow again.
func TestHold(t *testing.T) {
	h, inside, w := wired(t)
	flows(t, h, inside)
	if differed, err := h.Hold(w, true); err != nil || len(differed) > 0 {
		t.Errorf("an attached link differs: %q, %v", differed, err)
	}
	run(t, h.ns, "ip", "link", "add", "br0", "type", "bridge")
	sysctl := func(setting, value string) string { return "echo " + value + " > /proc/sys/net/" + setting }
	for _, c := range []struct{ hand, says string }{
		{"ip link set nc0 down; ip link set nc0 name foo; ip link set foo up", "nc0: name is foo, not nc0"},
		{"ip link set nc0 name foo", "nc0: name is foo, not nc0"},
		{"ip link set nc0 group default", "nc0: group is 0, not 28259"},
		{"ip link set nc0 group default; ip link set nc0 name foo", "nc0: group is 0, not 28259"},
		{"ip link set nc0 master br0", "nc0: master is "},
		{"ip link set nc0 address 02:00:00:00:00:01", "nc0: mac is 02:00:00:00:00:01"},
		{"ip link set nc0 mtu 1280", "nc0: mtu is 1280, not 1400"},
		{"ip link set nc0 down", "nc0 is down"},
		{"ip link set nc0 arp off", "nc0: arp is off"},
		{"ip link set nc0 multicast off", "nc0: multicast is off"},
		{"ip -6 addr flush dev nc0", "nc0: address fe80::ecee:eeff:feee:eeee/64 is missing"},
		{"ip addr add 192.0.2.77/24 dev nc0; ip addr add 192.0.2.78/24 dev nc0; ip addr add 2001:db8::7/64 dev nc0", "nc0: it has the address of somebody else: [192.0.2.77/24 192.0.2.78/24 2001:db8::7/64]"},
		{sysctl("ipv6/conf/nc0/addr_gen_mode", "1") + "; ip link set nc0 down; ip link set nc0 up", "nc0: addr_gen_mode is 1, not 0"},
		{sysctl("ipv6/conf/nc0/disable_ipv6", "1"), "nc0: disable_ipv6 is 1, not 0"},
		{sysctl("ipv6/conf/nc0/accept_ra", "2"), "nc0: accept_ra is 2, not 0"},
		{sysctl("ipv6/conf/nc0/accept_dad", "1"), "nc0: accept_dad is 1, not 0"},
		{sysctl("ipv6/conf/nc0/dad_transmits", "1"), "nc0: dad_transmits is 1, not 0"},
		{sysctl("ipv4/conf/nc0/forwarding", "0"), "nc0: forwarding is 0, not 1"},
		{sysctl("ipv4/conf/nc0/proxy_arp", "0"), "nc0: proxy_arp is 0, not 1"},
		{sysctl("ipv4/neigh/nc0/proxy_delay", "80"), "nc0: proxy_delay is 80, not 0"},
		{"ip neigh flush dev nc0 nud permanent", "nc0: permanent neighbour entry of 10.0.0.48 is missing"},
		{"ip neigh replace fd80::48 lladdr 02:00:00:00:00:66 dev nc0 nud permanent", "nc0: neighbour entry of fd80::48 is 02:00:00:00:00:66, not 02:00:00:00:00:07"},
	} {
		t.Run(c.hand, func(t *testing.T) {
			run(t, h.ns, "sh", "-ec", c.hand)
			if err := h.Check(w); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Check: %v", err)
			}
			differed, err := h.Hold(w, true)
			if text := strings.Join(differed, "\n"); err != nil || !strings.Contains(text, c.says) {
				t.Errorf("Hold: %v, %v", text, err)
			}
			if err := h.Check(w); err != nil {
				t.Errorf("after Hold: %v", err)
			}
			route(t, h)
			flows(t, h, inside)
		})
	}
}

// TestHoldLeavesDown: a link that is down stays so until its rules are in place.
func TestHoldLeavesDown(t *testing.T) {
	h, _, w := wired(t)
	run(t, h.ns, "sh", "-ec", "ip link set nc0 down; ip link set nc0 name foo")
	if differed, err := h.Hold(w, false); err != nil || len(differed) == 0 {
		t.Fatalf("Hold: %q, %v", differed, err)
	}
	contains(t, run(t, h.ns, "ip", "link", "show", "nc0"), "state DOWN")
	if _, err := h.Hold(w, true); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(w); err != nil {
		t.Error(err)
	}
}

// TestHoldTellsWhatItCannot: a name that somebody else took meanwhile is said.
func TestHoldTellsWhatItCannot(t *testing.T) {
	h, _, w := wired(t)
	run(t, h.ns, "sh", "-ec", "ip link set nc0 name foo; ip link add nc0 type bridge; ip link set foo group default")
	differed, err := h.Hold(w, true)
	if fmt.Sprint(err) != "nc0: name is foo, not nc0, and cannot be put back: file exists" || len(differed) != 1 {
		t.Errorf("Hold: %q, %v", differed, err)
	}
	// What is called nc0 now is nobody's of ours.
	if err := h.Detach("nc0", 0); err == nil {
		t.Error("a stranger's link of that name was detached")
	}
	if err := h.Detach("nc0", w.Index); err != nil {
		t.Error(err)
	}
	if err := h.retire.flush(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // with a stranger of that name, and without
		if _, err := h.Hold(w, true); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Hold of no link: %v", err)
		}
		_, _ = try(h.ns, "ip", "link", "del", "nc0")
	}
}

// TestDetachKnowsItsLink: whatever a link is called and marked with, its index
// tells it; one that is retired already is left alone.
func TestDetachKnowsItsLink(t *testing.T) {
	for _, hand := range []string{"true", "ip link set nc0 group default", "ip link set nc0 name foo", "ip link set nc0 name foo; ip link set foo group default"} {
		h, inside, w := wired(t)
		run(t, h.ns, "sh", "-ec", hand)
		if links, err := h.Links(w.Index); err != nil || len(links) != 1 || links[0].Index != w.Index {
			t.Errorf("after %q: Links = %+v, %v", hand, links, err)
		}
		for range 2 {
			if err := h.Detach(w.Link, w.Index); err != nil {
				t.Errorf("after %q: %v", hand, err)
			}
		}
		if err := h.retire.flush(); err != nil {
			t.Fatal(err)
		}
		if out, err := try(inside, "ip", "link", "show", "eth0"); err == nil {
			t.Errorf("after %q the workload still has\n%s", hand, out)
		}
	}
	// Without a record the name and the MAC tell.
	h, _, _ := wired(t)
	run(t, h.ns, "ip", "link", "set", "nc0", "group", "default")
	if err := h.Detach("nc0", 0); err != nil {
		t.Error(err)
	}
}

// TestNeighborsDoNotDependOnSettings: neither side asks the other anything, so what
// either is set to answer does not matter, in a namespace that inherited it too.
func TestNeighborsDoNotDependOnSettings(t *testing.T) {
	h, inside, w := wired(t)
	run(t, inside, "sh", "-ec", "cd /proc/sys/net/ipv4/conf; echo 2 > all/arp_ignore; echo 2 > all/arp_announce; echo 1 > all/arp_filter")
	run(t, h.ns, "sh", "-ec", "cd /proc/sys/net/ipv4; echo 8 > conf/all/arp_ignore; echo 0 > conf/nc0/proxy_arp; echo 800 > neigh/nc0/proxy_delay")
	for _, ns := range []int{h.ns, inside} {
		run(t, ns, "ip", "neigh", "flush", "all") // what is permanent stays
	}
	flows(t, h, inside)
	contains(t, run(t, h.ns, "ip", "neigh", "show", "nud", "permanent"), "10.0.0.48 dev nc0 lladdr 02:00:00:00:00:07", "fd80::48 dev nc0 lladdr 02:00:00:00:00:07")
	contains(t, run(t, inside, "ip", "neigh", "show", "nud", "permanent"), "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee", "fe80::ecee:eeff:feee:eeee dev eth0 lladdr ee:ee:ee:ee:ee:ee")
	run(t, inside, "ip", "neigh", "replace", "169.254.1.1", "lladdr", "02:00:00:00:00:66", "dev", "eth0", "nud", "permanent")
	if err := h.Check(w); err == nil || !strings.Contains(err.Error(), "eth0: neighbour entry of 169.254.1.1 is 02:00:00:00:00:66, not ee:ee:ee:ee:ee:ee") {
		t.Errorf("Check: %v", err)
	}
	run(t, inside, "sh", "-ec", "ip -6 neigh del fe80::ecee:eeff:feee:eeee dev eth0")
	if err := h.Check(w); err == nil || !strings.Contains(err.Error(), "eth0: permanent neighbour entry of fe80::ecee:eeff:feee:eeee is missing") {
		t.Errorf("Check: %v", err)
	}
	if differed, err := h.Mend(w); err != nil || len(differed) != 2 {
		t.Errorf("Mend: %q, %v", differed, err)
	}
	if differed, err := h.Mend(w); err != nil || len(differed) != 0 {
		t.Errorf("once more: %q, %v", differed, err)
	}
	if _, err := h.Hold(w, true); err != nil {
		t.Error(err)
	}
	if err := h.Check(w); err != nil {
		t.Error(err)
	}
	if _, err := h.MendAt(w, Place{Path: "/run/netns/gone"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("MendAt of a namespace that is gone: %v", err)
	}
	w.Interface = "eth9"
	if _, err := h.Mend(w); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Mend without the interface: %v", err)
	}
}

// TestWatchTellsHands: what the kernel tells of a hand on a link or a host setting
// is an event, and what an attach does itself is none.
func TestWatchTellsHands(t *testing.T) {
	h, inside, w := wired(t)
	run(t, h.ns, "sh", "-ec", "ip link add d0 type bridge; ip addr add 192.168.99.1/24 dev d0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, done := make(chan Event, 10000), make(chan error, 2)
	go func() { done <- h.Watch(ctx, func(ev Event) { events <- ev }) }()
	go func() { done <- h.WatchPeers(ctx, func(ev Event) { events <- ev }) }()
	seen := func(what string, ok func(Event) bool) {
		t.Helper()
		until(t, what, func() bool {
			select {
			case ev := <-events:
				return ok(ev)
			default:
				return false
			}
		})
	}
	resyncs := 0
	seen("ready", func(ev Event) bool {
		if ev.Change == Resync {
			resyncs++
		}
		return resyncs == 2
	})
	other := Wire{Netns: inside, Interface: "eth1", Link: "nc1", MAC: "02:00:00:00:00:08", Addresses: addrs("10.0.0.49", "fd80::49")}
	made, err := h.Create(other)
	if err == nil {
		err = h.Up("nc1")
	}
	if err != nil {
		t.Fatal(err)
	}
	run(t, h.ns, "ip", "link", "set", "d0", "up") // comes after all of that
	seen("the end", func(ev Event) bool {
		if ev.Change == SideChanged && ev.Index == made.Index {
			t.Errorf("an attach is news: %+v", ev)
		}
		return ev.Link == "d0" && ev.Up
	})
	for _, c := range []struct {
		ns   int
		hand string
		ok   func(Event) bool
	}{
		{h.ns, "ip neigh flush dev nc0 nud permanent", func(e Event) bool { return e.Change == SideChanged && e.Index == w.Index }},
		{h.ns, "ip neigh add 10.0.0.48 lladdr 02:00:00:00:00:66 dev nc0 nud permanent", func(e Event) bool { return e.Change == SideChanged && e.Index == w.Index }},
		{h.ns, "ip -6 addr flush dev nc0", func(e Event) bool { return e.Change == SideChanged && e.Index == w.Index }},
		{h.ns, "echo 0 > /proc/sys/net/ipv4/conf/nc0/proxy_arp", func(e Event) bool { return e.Change == SideChanged && e.Index == w.Index }},
		{h.ns, "echo 0 > /proc/sys/net/ipv4/conf/nc0/forwarding", func(e Event) bool { return e.Change == SideChanged && e.Index == w.Index }},
		{h.ns, "echo 0 > /proc/sys/net/ipv4/conf/d0/forwarding", func(e Event) bool { return e.Change == SettingChanged && e.Index != w.Index }},
		{h.ns, "echo 1 > /proc/sys/net/ipv4/conf/d0/rp_filter", func(e Event) bool { return e.Change == SettingChanged && e.Index != w.Index }},
		{h.ns, "echo 0 > /proc/sys/net/ipv4/ip_forward", func(e Event) bool { return e.Change == ForwardingOff && e.V4 }},
		{h.ns, "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding", func(e Event) bool { return e.Change == ForwardingOff && !e.V4 }},
		{h.ns, "ip link set nc0 name foo", func(e Event) bool { return e.Change == LinkChanged && e.Index == w.Index && e.Link == "foo" }},
		{h.ns, "ip link set foo name nc0", func(e Event) bool { return e.Change == LinkChanged && e.Index == w.Index && e.Link == "nc0" }},
		{h.ns, "ip link set nc0 arp off", func(e Event) bool { return e.Change == LinkChanged && e.Index == w.Index && e.Altered }},
		{h.ns, "ip link set nc0 arp on; ip link set d0 up; ip link set nc0 master d0", func(e Event) bool { return e.Change == LinkChanged && e.Index == w.Index && e.Altered }},
		{h.ns, "ip link set nc0 nomaster", func(e Event) bool { return e.Change == LinkChanged && e.Index == w.Index && !e.Altered }},
		{h.ns, "ip link set nc0 group default", func(e Event) bool { return e.Change == HostChanged && e.Index == w.Index && e.Altered }},
		{inside, "ip link set eth0 address 02:00:00:00:00:09", func(e Event) bool {
			return e.Change == PeerChanged && e.Index == w.Index && e.MAC == "02:00:00:00:00:09"
		}},
	} {
		run(t, c.ns, "sh", "-ec", c.hand)
		seen(c.hand, func(e Event) bool {
			if e.Change == LinkGone || e.Gone {
				t.Errorf("after %q: %+v, and the link is there", c.hand, e)
			}
			return c.ok(e)
		})
	}
	d0, err := h.link(0, "d0")
	if err != nil {
		t.Fatal(err)
	}
	for _, was := range []bool{true, false} {
		if got, err := h.Forwarding4By(d0.Index); err != nil || got != was {
			t.Errorf("Forwarding4By = %t, %v; want %t", got, err, was)
		}
	}
	if was, err := h.Forwarding4By(1 << 30); was || err != nil {
		t.Errorf("Forwarding4By of no interface = %t, %v", was, err)
	}
	// The workload's new MAC is what the entries lead to.
	if _, err := h.Hold(w, true); err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, h.ns, "ip", "neigh", "show", "nud", "permanent"), "10.0.0.48 dev nc0 lladdr 02:00:00:00:00:09")
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
}
