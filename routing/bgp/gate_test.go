package bgp

import (
	"errors"
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
			if err := g.add(l, ""); err != nil {
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
	if err := g.add(l, ""); err != nil {
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
