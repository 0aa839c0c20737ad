package nft

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// TestMACGuard: an endpoint that asks for it sends with its own MAC alone, whatever it
// sends, and others as before; what nft lists of it nft reads.
func TestMACGuard(t *testing.T) { onAll(t, testMACGuard) }

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
			want := !guard || mac.String() == own.String()
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

// addTAP has a machine behind a TAP of the router, as an emulator holds it.
func (l *lab) addTAP(name, link, addr string) *host {
	l.t.Helper()
	h := &host{netns: l.router, link: link, group: testGroup, receive: -1, addrs: []netip.Addr{netip.MustParseAddr(addr)}, mac: net.HardwareAddr{2, 0, 0, 0, 0, 0x11}}
	l.hosts[name] = h
	l.router.Run("ip", "tuntap", "add", link, "mode", "tap")
	l.router.Do(func() {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			l.t.Error(err)
			return
		}
		ifr, _ := unix.NewIfreq(link)
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			l.t.Error(err)
		}
		h.tap = os.NewFile(uintptr(fd), link)
	})
	if h.tap == nil {
		l.t.FailNow()
	}
	l.t.Cleanup(func() { _ = h.tap.Close() })
	l.router.Run("ip", "link", "set", link, "group", strconv.Itoa(testGroup), "address", hostMAC, "up")
	l.router.Run("ip", "route", "add", addr, "dev", link)
	return h
}

// TestMACGuardOfMachines: as of containers so behind TAPs, however many have it; who has its own
// MAC loses nothing when it is switched.
func TestMACGuardOfMachines(t *testing.T) { onAll(t, testMACGuardOfMachines) }

func testMACGuardOfMachines(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	vm := l.addTAP("vm", "ncvm", "10.0.0.4")
	own := vm.mac
	endpointOf := func(n int, link, mac, addr string, guard bool) datastore.Change {
		c := endpoint("n1", fmt.Sprintf("n1/manual/vm%d/eth0", n), link, []string{"web"}, addr)
		s := &c.New.(*datastore.Endpoint).Spec
		s.MAC, s.GuardMAC = mac, guard
		return c
	}
	for n := range 20 {
		x.Apply(endpointOf(n+1, fmt.Sprintf("ncx%d", n), fmt.Sprintf("02:00:00:00:01:%02x", n), fmt.Sprintf("10.0.9.%d", n), true))
	}
	flip := func(guard bool) {
		x.Apply(endpointOf(0, "ncvm", own.String(), "10.0.0.4", guard))
		l.apply(x.Flush())
	}
	flip(true)
	sent, b := udp("10.0.0.4", "10.0.0.2", 7), l.hosts["b"]
	for _, mac := range []net.HardwareAddr{own, {2, 0, 0, 0, 0, 0x77}, {2, 0, 0, 0, 1, 3}} { // the last is another endpoint's
		vm.mac = mac
		if got := l.try([]probe{{"vm", l.uniquePort(sent)}})[0]; got != (mac.String() == own.String()) {
			t.Errorf("from %s: arrives %v", mac, got)
		}
	}
	vm.mac = own
	stop, lost := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for id := uint64(1); ; id++ {
			l.transmit(vm, sent, id)
			for deadline := time.Now().Add(2 * time.Second); !slices.Contains(b.received(), id); {
				if time.Now().After(deadline) {
					n++
					break
				}
			}
			select {
			case <-stop:
				lost <- n
				return
			default:
			}
		}
	}()
	for i := range 6 {
		flip(i%2 == 1)
	}
	close(stop)
	if n := <-lost; n > 0 {
		t.Errorf("%d packets were lost while the guard was switched", n)
	}
}
