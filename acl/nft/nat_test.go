package nft

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
)

func pool(cidr string, nat bool) datastore.Change {
	p := &datastore.Pool{}
	p.Spec.CIDR, p.Spec.NATOutgoing = netip.MustParsePrefix(cidr), nat
	p.SetDefaults()
	return datastore.Change{Kind: datastore.KindPool, Name: p.Metadata.Name, New: p}
}

func node(name string, addrs ...string) datastore.Change {
	n := &datastore.Node{Metadata: datastore.Metadata{Name: name}}
	for _, a := range addrs {
		n.Spec.Addresses = append(n.Spec.Addresses, netip.MustParsePrefix(a))
	}
	return datastore.Change{Kind: datastore.KindNode, Name: name, New: n}
}

// TestNATOutgoing: what another host sees of a workload's packets is the router's
// address where the pool says so and the host is in no pool or is a node, else the
// workload's.
func TestNATOutgoing(t *testing.T) { onAll(t, testNATOutgoing) }

func testNATOutgoing(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	l.router.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	l.router.Run("ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	apply := func(changes ...datastore.Change) {
		for _, c := range changes {
			x.Apply(c)
		}
		l.apply(x.Flush())
	}
	see := func(from, to, want string) {
		t.Helper()
		if got := l.source("c", from, "n", to); got.String() != want {
			t.Errorf("%s sees %s of %s, want %s", to, got, from, want)
		}
	}
	see("10.0.0.3", "192.0.2.9", "10.0.0.3")
	apply(pool("10.0.0.0/24", true), pool("fd00::/64", false))
	see("10.0.0.3", "192.0.2.9", "192.0.2.1")
	see("fd00::3", "2001:db8::9", "fd00::3")
	apply(pool("fd00::/64", true), pool("192.0.2.0/24", false), pool("2001:db8::/64", false))
	see("10.0.0.3", "192.0.2.9", "10.0.0.3")
	see("fd00::3", "2001:db8::9", "fd00::3")
	apply(node("n", "192.0.2.9/24", "2001:db8::9/64"))
	see("10.0.0.3", "192.0.2.9", "192.0.2.1")
	see("fd00::3", "2001:db8::9", "2001:db8::1")
	apply(pool("10.0.0.0/24", false), pool("fd00::/64", false))
	see("10.0.0.3", "192.0.2.9", "10.0.0.3")
	if l.rules.Chains[acl.ChainNAT] != nil {
		t.Error("the chain is there and no pool needs it")
	}
	l.list()
}

// source sends a datagram from a host's address to another's, and is what the other
// sees as its source.
func (l *lab) source(from, addr, to, dst string) netip.Addr {
	l.t.Helper()
	var in net.PacketConn
	var err error
	l.hosts[to].Do(func() { in, err = net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr(dst), 0).String()) })
	if err != nil {
		l.t.Fatal(err)
	}
	defer in.Close()
	_ = in.SetReadDeadline(time.Now().Add(10 * time.Second))
	l.hosts[from].Do(func() {
		d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 0))}
		var c net.Conn
		if c, err = d.Dial("udp", in.LocalAddr().String()); err == nil {
			_, err = c.Write([]byte("x"))
			_ = c.Close()
		}
	})
	if err != nil {
		l.t.Fatal(err)
	}
	_, sender, err := in.ReadFrom(make([]byte, 1))
	if err != nil {
		l.t.Fatal(err)
	}
	return sender.(*net.UDPAddr).AddrPort().Addr().Unmap()
}
