package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
)

// TestMSS: connections of a link whose way is narrower than its interface tell and take
// segments that fit, whoever begins them; others, and those of the link afterwards, are
// as they were.
func TestMSS(t *testing.T) { onEach(t, testMSS) }

func testMSS(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	see := func(from, to, dst string, want int) {
		t.Helper()
		if one, other := l.segments(from, to, dst); one != want || other != want {
			t.Errorf("segments of %d and %d bytes from %s to %s, want %d", one, other, from, dst, want)
		}
	}
	const timestamps = 12 // bytes in each segment that the kernel counts off (RFC 7323)
	see("a", "b", "10.0.0.2", 1460-timestamps)
	x.SetMSS("nca", 1400)
	l.apply(x.Flush())
	see("a", "b", "10.0.0.2", 1360-timestamps)
	see("b", "a", "10.0.0.1", 1360-timestamps)
	see("a", "b", "fd00::2", 1340-timestamps)
	see("b", "a", "fd00::1", 1340-timestamps)
	see("c", "n", "192.0.2.9", 1460-timestamps)
	text := ""
	if l.on == onNFT {
		text = listing(t, l.router)
	}
	for _, want := range []string{"tcp flags ! syn accept", `meta nfproto ipv4 iifname "nca" tcp option maxseg size set 1360`, `meta nfproto ipv6 oifname "nca" tcp option maxseg size set 1340`} {
		if l.on == onNFT && !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if wrote, err := l.filter.Sync(t.Context(), l.rules); err != nil || wrote {
		t.Errorf("read back as something else: %v, %v", wrote, err)
	}
	x.SetMSS("nca", 0)
	l.apply(x.Flush())
	see("a", "b", "10.0.0.2", 1460-timestamps)
	if l.rules.Chains[acl.ChainMSS] != nil {
		t.Error("the chain is there and no link needs it")
	}
}

// segments opens a connection, and is the size of segments that either end sends.
func (l *lab) segments(from, to, dst string) (one, other int) {
	l.t.Helper()
	var in net.Listener
	var err error
	l.hosts[to].Do(func() { in, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(dst), 0).String()) })
	if err != nil {
		l.t.Fatal(err)
	}
	defer in.Close()
	_ = in.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	var c net.Conn
	l.hosts[from].Do(func() { c, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial("tcp", in.Addr().String()) })
	if err != nil {
		l.t.Fatal(fmt.Errorf("%s to %s: %w", from, dst, err))
	}
	defer c.Close()
	s, err := in.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
	defer s.Close()
	size := func(c net.Conn) (n int) {
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) })
		}
		if err != nil {
			l.t.Fatal(err)
		}
		return n
	}
	return size(c), size(s)
}
