package nft

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
)

// TestReversePath: what another machine sends with the source of a pool passes if the route to
// that source leads back, for each of the ways to judge; what is established stays.
func TestReversePath(t *testing.T) {
	l, _ := wiredLab(t, onNFT)
	options := testOptions()
	options.Tunnels = []string{"vx6"}
	x := wiredIndex(t, options)
	l.addHost("m", "up1", 0, "198.51.100.9", "2001:db8:1::9")
	l.addHost("v", "vx6", 0, "203.0.113.9", "2001:db8:2::9")
	remote := endpoint("n2", "n2/cni/r/eth0", "ncr", []string{"web"}, "10.1.0.5", "fd00:1::5")
	x.Apply(remote)
	for _, cidr := range []string{"10.0.0.0/8", "fd00::/16"} {
		p := netip.MustParsePrefix(cidr)
		x.Apply(datastore.Change{Kind: datastore.KindPool, Name: cidr, New: &datastore.Pool{Spec: datastore.PoolSpec{CIDR: p}}})
	}
	l.apply(x.Flush())
	can, err := l.table.probePaths()
	if tables := l.router.Run("nft", "list", "tables"); err != nil || strings.Contains(tables, probeTable) {
		t.Fatalf("whether the kernel can judge: %v, %s", err, tables)
	}
	if known := judges(release()); known && !can {
		t.Fatalf("Linux %s cannot judge by which way packets come", release())
	}
	if !can {
		t.Skip("this kernel cannot judge by which way packets come")
	}
	judge := func(r acl.ReversePath) {
		t.Helper()
		x.SetReversePath(r)
		l.rules = x.Ruleset()
		l.sync()
		if wrote, err := l.table.Sync(t.Context(), l.rules); err != nil || wrote {
			t.Fatalf("read back as something else: %v, %v", wrote, err)
		}
		// Whoever saves a host's rules for its next boot can load them; not an element of a meter without a name.
		if out, err := l.router.input(l.router.Run("nft", "-t", "list", "ruleset"), "nft", "-c", "-f", "-"); err != nil {
			t.Fatalf("nft does not take what it lists: %v\n%s", err, out)
		}
	}
	// route has the member's prefixes reached by uplinks, by none, or by a blackhole.
	prefixes := map[string]string{"-4": "10.1.0.0/24", "-6": "fd00:1::/64"}
	route := func(by ...string) {
		t.Helper()
		for family, prefix := range prefixes {
			l.router.Run("ip", family, "route", "flush", prefix)
			args := []string{"ip", family, "route", "add"}
			for _, link := range by {
				via := map[string]string{"-4up0": "192.0.2.9", "-6up0": "2001:db8::9", "-4up1": "198.51.100.9", "-6up1": "2001:db8:1::9", "-4vx6": "203.0.113.9", "-6vx6": "2001:db8:2::9"}[family+link]
				switch {
				case link == "blackhole":
					args = append(args, link, prefix)
				case len(by) == 1:
					args = append(args, prefix, "via", via, "dev", link)
				default:
					if len(args) == 4 {
						args = append(args, prefix)
					}
					args = append(args, "nexthop", "via", via, "dev", link)
				}
			}
			if len(by) > 0 {
				l.router.Run(args...)
			}
		}
	}
	// passes sends from both families' member elsewhere, which the route to leads by a link.
	// Of IPv6 the host's uplinks are one way.
	const neither, both, six = 0, 1, 2
	passes := func(want int, from, leads string) {
		t.Helper()
		for src, dst := range map[string]string{"10.1.0.5": "10.0.0.1", "fd00:1::5": "fd00::1"} {
			p := l.uniquePort(udp(src, dst, 7))
			p.Route, p.Unrouted = leads, leads == "none"
			l.expect(want == both || want == six && p.Src.Is6(), from, p)
		}
	}
	local := func(want bool) {
		t.Helper()
		for src, dst := range map[string]string{"10.0.0.2": "10.0.0.1", "fd00::2": "fd00::1"} {
			p := l.uniquePort(udp(src, dst, 7))
			p.Route = "ncb"
			l.expect(want, "n", p)
		}
	}

	route("up0")
	judge(acl.ReversePathOff)
	local(true) // anyone is believed to be a member
	passes(both, "m", "up0")

	judge(acl.ReversePathStrict)
	local(false)
	passes(both, "n", "up0")
	passes(six, "m", "up0")
	judge(acl.ReversePathStrict)
	local(false)
	l.expect(true, "b", l.uniquePort(udp("10.0.0.2", "10.0.0.1", 7)))
	route("up0", "up1")
	for range 8 { // whichever path a flow's answers take
		passes(both, "n", "")
		passes(both, "m", "")
	}
	route("vx6")
	passes(both, "v", "vx6")
	passes(neither, "n", "vx6")
	route("up0")
	passes(neither, "v", "up0")
	judge(acl.ReversePathStrict)
	passes(six, "m", "up0")
	route("blackhole")
	passes(neither, "n", "none")
	x.Apply(node("n2", "10.1.0.5/24", "fd00:1::5/64")) // a node's own address, in a pool
	l.apply(x.Flush())
	l.rules = x.Ruleset()
	passes(both, "n", "none")
	x.Apply(datastore.Change{Kind: datastore.KindNode, Name: "n2"})
	l.apply(x.Flush())
	l.rules = x.Ruleset()

	judge(acl.ReversePathLoose)
	passes(neither, "n", "none")
	local(false)
	route("up0")
	passes(both, "m", "up0")

	// The answer of a flow that began passes while no route leads to who answers.
	judge(acl.ReversePathStrict)
	n := l.hosts["n"]
	n.addrs = append(n.addrs, netip.MustParseAddr("10.1.0.5"))
	l.expect(true, "a", udp("10.0.0.1", "10.1.0.5", 4000))
	route()
	answer := udp("10.1.0.5", "10.0.0.1", 9)
	answer.SrcPort, answer.State, answer.Unrouted = 4000, acl.Established, true
	l.expect(true, "n", answer)
	passes(neither, "n", "none")

	denied, err := l.table.Denied(t.Context())
	if err != nil || denied[acl.ReversePathDrops] == 0 {
		t.Errorf("denied: %v, %v", denied, err)
	}
	var text strings.Builder
	for _, r := range l.rules.Chains["to_wl"].Rules {
		text.WriteString(r.String() + "\n")
	}
	if !strings.Contains(text.String(), "fib saddr . iif oif missing") {
		t.Error(text.String())
	}
	listing(t, l.router)
	published(t, l, x)
}

// published has a member whose pool is tunnelled send to a port that is published at an address
// of the host: to that it has no tunnel.
func published(t *testing.T, l *lab, x *acl.Index) {
	c := endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1")
	c.New.(*datastore.Endpoint).Spec.HostPorts = []datastore.HostPort{{Protocol: "udp", HostPort: 8080, Port: 80}}
	x.Apply(c)
	l.apply(x.Flush())
	l.router.Run("ip", "addr", "add", "198.51.100.1/32", "dev", "lo")
	l.router.Run("ip", "route", "replace", "10.1.0.0/24", "dev", "vx6")
	m := l.hosts["m"]
	m.Run("ip", "addr", "add", "10.1.0.5/32", "dev", "eth0")
	var in net.PacketConn
	var err error
	l.hosts["a"].Do(func() { in, err = net.ListenPacket("udp4", "10.0.0.1:80") })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	m.Do(func() {
		var out net.Conn
		if out, err = (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(10, 1, 0, 5)}}).Dial("udp4", "198.51.100.1:8080"); err == nil {
			_, err = out.Write([]byte("hello"))
			_ = out.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = in.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, from, err := in.ReadFrom(make([]byte, 10)); err != nil || n != 5 || !strings.HasPrefix(from.String(), "10.1.0.5:") {
		t.Errorf("what a member sends to a published port: %d bytes of %v, %v", n, from, err)
	}
}
