package nft

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// TestMACGuard: an endpoint that asks for it sends with its own MAC alone, whatever it
// sends, and others as before; what nft lists of it nft reads.
func TestMACGuard(t *testing.T) { onEach(t, testMACGuard) }

func testMACGuard(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	a, other := l.hosts["a"], net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	own := a.mac
	guarded := func(is bool) datastore.Change {
		c := endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1")
		s := &c.New.(*datastore.Endpoint).Spec
		s.MAC, s.GuardMAC, s.AllowedPrefixes = own.String(), is, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}
		return c
	}
	sent := map[string]acl.Packet{
		"IPv4": udp("10.0.0.1", "10.0.0.2", 7), "IPv6": udp("fd00::1", "fd00::2", 7), "a network behind it": udp("10.1.2.3", "10.0.0.2", 7),
	}
	try := func(guard bool, mac net.HardwareAddr) {
		t.Helper()
		a.mac = mac
		for what, p := range sent {
			p := l.uniquePort(p)
			want := !guard || on != onNFT || mac.String() == own.String()
			if got := l.try([]probe{{"a", p}})[0]; got != want {
				t.Errorf("%s with guard %v from %s: arrives %v", what, guard, mac, got)
			}
		}
		a.mac = own
	}
	for _, guard := range []bool{false, true, false, true} {
		x.Apply(guarded(guard))
		l.apply(x.Flush())
		try(guard, own)
		try(guard, other)
		l.expect(true, "b", l.uniquePort(udp("10.0.0.2", "10.0.0.1", 7)))
	}
	if on != onNFT {
		return
	}
	l.router.Run("sysctl", "-q", "-w", "net.ipv4.conf.nca.proxy_arp=1", "net.ipv4.neigh.nca.proxy_delay=0")
	count := func(chain string) int {
		return strings.Count(l.router.Run("nft", "list", "chain", "arp", acl.TableName, chain), "counter packets 1 ")
	}
	for i, mac := range []struct{ frame, sender net.HardwareAddr }{{own, own}, {other, own}, {own, other}} {
		l.router.Run("ip", "neigh", "flush", "dev", "nca", "nud", "all")
		a.mac = mac.sender
		packet := arpRequest(a, a.addrs[0])
		a.mac = mac.frame
		before := count(acl.ChainARP)
		l.frames(a, unix.ETH_P_ARP, 1, func(int) []byte { return packet })
		l.eventually("ARP to be judged", func() bool {
			if i == 0 {
				return strings.Contains(strings.Join(l.neighbours("-4", "nca"), " "), "10.0.0.1")
			}
			return count(acl.ChainARP) == before+1
		})
	}
	a.mac = own
	text := l.router.Run("nft", "list", "ruleset")
	for _, want := range []string{`iifname . ether saddr != @mac counter`, `iifname . arp saddr ether != @arp_mac`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if out, err := l.router.input("flush ruleset\n"+text, "nft", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	try(true, other)
}
