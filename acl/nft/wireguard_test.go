package nft

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"netctl/acl"
	"netctl/netdev/netlab"
)

// TestWireGuardPort: while the host has WireGuard tunnels, nodes alone reach their port, a
// workload reaches that of no node, and every other port is as it was.
func TestWireGuardPort(t *testing.T) { onEach(t, testWireGuardPort) }

func testWireGuardPort(t *testing.T, on string) {
	const port, other = 51820, 51821
	l, x := wiredLab(t, on)
	l.router.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	l.router.Run("ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	netlab.Until(t, 10*time.Second, "the address", func() string { // the kernel makes it local by itself, later
		if l.router.Run("ip", "-6", "route", "show", "table", "local", "2001:db8::1") == "" {
			return "not local yet"
		}
		return ""
	})
	reach := func(port uint16, want bool) {
		t.Helper()
		for from, to := range map[string]string{"192.0.2.9": "192.0.2.1", "2001:db8::9": "2001:db8::1"} {
			if got := l.reaches("n", from, netip.AddrPortFrom(netip.MustParseAddr(to), port)); got != want {
				t.Errorf("%s reaches port %d of the host: %v, want %v", from, port, got, want)
			}
		}
	}
	reach(port, true)
	x.SetWireGuard(port)
	l.apply(x.Flush())
	reach(port, false)
	reach(other, true)
	l.expect(true, "c", udp("10.0.0.3", "192.0.2.9", port))
	x.Apply(node("n", "192.0.2.9/24", "2001:db8::9/64"))
	l.apply(x.Flush())
	reach(port, true)
	reach(other, true)
	l.expect(false, "c", l.uniquePort(udp("10.0.0.3", "192.0.2.9", port)))
	l.expect(false, "c", udp("fd00::3", "2001:db8::9", port))
	l.expect(true, "c", udp("10.0.0.3", "192.0.2.9", other))
	l.expect(true, "a", udp("10.0.0.1", "10.0.0.2", port)) // a workload's own
	if wrote, err := l.filter.Sync(t.Context(), l.rules); err != nil || wrote {
		t.Errorf("read back as something else: %v, %v", wrote, err)
	}
	x.SetWireGuard(0)
	l.apply(x.Flush())
	l.expect(true, "c", l.uniquePort(udp("10.0.0.3", "192.0.2.9", port)))
	if l.rules.Chains[acl.ChainWireGuardIn] != nil || l.rules.Chains[acl.ChainWireGuardFwd] != nil {
		t.Error("the chains are there and the host has no such tunnels")
	}
}

// reaches says whether datagrams from a host's address arrive at the router's. Those of
// another port, which nothing holds up, tell when they would have.
func (l *lab) reaches(from, addr string, to netip.AddrPort) bool {
	l.t.Helper()
	listen := func(port uint16) (in net.PacketConn) {
		var err error
		l.router.Do(func() { in, err = net.ListenPacket("udp", netip.AddrPortFrom(to.Addr(), port).String()) })
		if err != nil {
			l.t.Fatal(err)
		}
		return in
	}
	in, mark := listen(to.Port()), listen(0)
	defer in.Close()
	defer mark.Close()
	send := func(at net.PacketConn, what string) {
		var err error
		l.hosts[from].Do(func() {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0))}
			var c net.Conn
			if c, err = d.Dial("udp", at.LocalAddr().String()); err == nil {
				_, err = c.Write([]byte(what))
				_ = c.Close()
			}
		})
		if err != nil {
			l.t.Fatal(err)
		}
	}
	arrived := func(at net.PacketConn, within time.Duration) string {
		_ = at.SetReadDeadline(time.Now().Add(within))
		what := make([]byte, 1)
		n, _, _ := at.ReadFrom(what)
		return string(what[:n])
	}
	netlab.Until(l.t, 20*time.Second, "a way to "+to.String(), func() string { // the first ones may go before there is one
		if send(mark, "1"); arrived(mark, 200*time.Millisecond) == "" {
			return "nothing arrives"
		}
		return ""
	})
	send(in, "2")
	send(mark, "2")
	for what := ""; what != "2"; {
		if what = arrived(mark, 10*time.Second); what == "" {
			l.t.Fatalf("nothing more arrives at %v", to)
		}
	}
	return arrived(in, 100*time.Millisecond) != "" // what has arrived is there at once
}
