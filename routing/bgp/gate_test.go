package bgp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// knock opens a connection from one address of lo to another, and says whether the
// kernel answered. On lo it does so within the call.
func knock(t *testing.T, from, to netip.AddrPort) (answered bool) {
	t.Helper()
	family, address := unix.AF_INET, func(a netip.AddrPort) unix.Sockaddr {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	if to.Addr().Is6() {
		family, address = unix.AF_INET6, func(a netip.AddrPort) unix.Sockaddr {
			return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
		}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, address(from)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fd, address(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		t.Fatal(err)
	}
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	const established = 1
	return info.State == established
}

// TestPortIsOpenToPeersAlone: the kernel itself answers peers and nobody else, also
// those that come and go while it listens, by either family and on a socket of both.
func TestPortIsOpenToPeersAlone(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		t.Run(listen, func(t *testing.T) {
			l, err := openListener(t.Context(), netip.MustParseAddrPort(listen))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			port := l.Addr().(*net.TCPAddr).AddrPort().Port()
			var hosts []netip.Addr
			if listen != "[::1]:0" {
				for i := range 6 {
					hosts = append(hosts, netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i)}))
				}
			}
			if listen != "127.0.0.1:0" {
				hosts = append(hosts, netip.IPv6Loopback())
			}
			g := newPortGate()
			if err := g.add(l); err != nil {
				t.Fatal(err)
			}
			for round := range 20 {
				var peers []netip.Addr
				is := map[netip.Addr]bool{}
				for i, h := range hosts {
					if is[h] = round>>i%2 == 1; is[h] {
						peers = append(peers, h)
					}
				}
				if err := g.admit(anyTTL(append(peers, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"))...)); err != nil {
					t.Fatal(err)
				}
				for _, h := range hosts {
					to := netip.AddrPortFrom(hosts[0], port)
					if h.Is6() {
						to = netip.AddrPortFrom(h, port)
					}
					if got := knock(t, netip.AddrPortFrom(h, 0), to); got != is[h] {
						t.Errorf("%v of %v: answered %v", h, peers, got)
					}
				}
			}
		})
	}
}

// TestALargeFilterIsReplaced: the kernel bounds the filters of a socket, the old and the
// new one together. Peers that came last are let in all the same.
func TestALargeFilterIsReplaced(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("no namespace of its own: ", err)
	}
	if err := os.WriteFile("/proc/sys/net/core/optmem_max", []byte("20480"), 0); err != nil {
		t.Skip("the kernel has the bound for all namespaces: ", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l, err := openListener(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	peer, stranger := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3")
	g := newPortGate()
	if err := g.add(l); err != nil {
		t.Fatal(err)
	}
	var peers []netip.Addr
	for i := range 2000 {
		peers = append(peers, netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}))
	}
	for _, n := range []int{800, 900, 2000} {
		err := g.admit(anyTTL(append(peers[:n:n], peer)...))
		if !knock(t, netip.AddrPortFrom(peer, 0), to) {
			t.Errorf("%d peers: the last one is kept out: %v", n, err)
		}
		if in := knock(t, netip.AddrPortFrom(stranger, 0), to); in != (err != nil) {
			t.Errorf("%d peers: a stranger is let in: %v, and the error is %v", n, in, err)
		}
	}
}

// anyTTL are peers of which nothing else is demanded.
func anyTTL(peers ...netip.Addr) map[netip.Addr]uint8 {
	m := map[netip.Addr]uint8{}
	for _, a := range peers {
		m[a] = 0
	}
	return m
}

// judge is what a filter says of a packet with an IP header.
func judge(p []unix.SockFilter, header []byte) uint32 {
	var a uint32
	for pc := 0; ; pc++ {
		switch i := p[pc]; i.Code {
		case loadByte:
			a = uint32(header[i.K-ipHeader])
		case loadWord:
			at := i.K - ipHeader
			a = uint32(header[at])<<24 | uint32(header[at+1])<<16 | uint32(header[at+2])<<8 | uint32(header[at+3])
		case shift:
			a >>= i.K
		case ifEqual:
			if a == i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case ifLeast:
			if a >= i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case jump:
			pc += int(i.K)
		case verdict:
			return i.K
		}
	}
}

// TestGateProgram holds programs for random peers, few and many, against the list.
func TestGateProgram(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	some := func() netip.Addr {
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(4)), byte(rnd.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(rnd.IntN(2)), 11: byte(rnd.IntN(2)), 15: byte(rnd.IntN(256))})
	}
	for _, n := range []int{0, 1, 2, 10, 300, 1500} {
		peers := map[netip.Addr]uint8{}
		for i := range n {
			peers[some()] = []uint8{0, 0, 0, 255, 250}[i%5]
		}
		p, err := gateProgram(peers)
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			a := some()
			header := make([]byte, 40)
			if header[0] = 0x60; a.Is4() {
				header[0] = 0x45
				copy(header[12:], a.AsSlice())
			} else {
				copy(header[8:], a.AsSlice())
			}
			for _, ttl := range []uint8{1, 249, 250, 254, 255} {
				header[8] = ttl
				if a.Is6() {
					copy(header[8:], a.AsSlice())
					header[7] = ttl
				}
				least, is := peers[a]
				if got := judge(p, header) != 0; got != (is && ttl >= least) {
					t.Fatalf("%d peers: %v with TTL %d of %d passes %v", n, a, ttl, least, got)
				}
			}
		}
		if judge(p, make([]byte, 40)) != 0 {
			t.Errorf("%d peers: neither IPv4 nor IPv6 passes", n)
		}
	}
	var many []netip.Addr
	for i := range 3900 {
		many = append(many, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	if _, err := gateProgram(anyTTL(many...)); err != nil {
		t.Error(err)
	}
	if _, err := gateProgram(anyTTL(append(many, many[0].Next().Next().Next(), netip.MustParseAddr("fd00::1"))...)); err != nil {
		t.Error(err)
	}
	for i := range 300 {
		many = append(many, netip.MustParseAddr(fmt.Sprintf("10.2.%d.1", i%256)), netip.MustParseAddr(fmt.Sprintf("10.3.%d.1", i%256)))
	}
	if _, err := gateProgram(anyTTL(many...)); err == nil {
		t.Error("a program that the kernel refuses")
	}
}
