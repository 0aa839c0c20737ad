package bfd

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// place is an Engine in a namespace, and what it took from the kernel.
type place struct {
	*Engine
	ns    *netlab.Netns
	mu    sync.Mutex
	taken []string // "ADDRESS TEXT"
	ports []int    // that it spoke from
}

// spy is a receiver that notes what it gets.
type spy struct {
	receiver
	of *place
}

func (s spy) receive(b []byte) (int, netip.Addr, error) {
	n, from, err := s.receiver.receive(b)
	if err == nil {
		s.of.mu.Lock()
		defer s.of.mu.Unlock()
		s.of.taken = append(s.of.taken, fmt.Sprintf("%v %s", from, b[:n]))
	}
	return n, from, err
}

// newPlace has its sockets in ns.
func newPlace(t *testing.T, ns *netlab.Netns) *place {
	p := &place{Engine: New(Config{}), ns: ns}
	p.open = func(ctx context.Context, local netip.Addr, peers []netip.Addr) (r receiver, err error) {
		ns.Do(func() { r, err = openReceiver(ctx, local, peers) })
		if err != nil {
			return nil, err
		}
		return spy{r, p}, nil
	}
	p.dial = func(peer Peer) (c net.Conn, err error) {
		ns.Do(func() { c, err = dial(peer) })
		if err == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.ports = append(p.ports, c.LocalAddr().(*net.UDPAddr).Port)
		}
		return c, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

// took says whether a text came, and how many came from strangers.
func (p *place) took(text string) (is bool, strange int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.taken {
		is = is || strings.HasSuffix(l, text)
		if strings.HasSuffix(l, "stranger") {
			strange++
		}
	}
	return is, strange
}

// words waits for what an Engine says of its only session.
func (p *place) words(t *testing.T, want string) {
	t.Helper()
	netlab.Until(t, 20*time.Second, "BFD is "+want, func() string {
		st := p.Status()
		if len(st) != 1 || st[0].Words() != want {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
}

// wired are two namespaces on one link, with two addresses each of both families.
func wired(t *testing.T) (a, b *netlab.Netns) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	a, b = netlab.NetnsForTest(t), netlab.NetnsForTest(t)
	a.Run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.Name)
	for ns, list := range map[*netlab.Netns][]string{a: {"10.9.0.1/24", "fd00:9::1/64"}, b: {"10.9.0.2/24", "10.9.0.3/24", "fd00:9::2/64", "fd00:9::3/64"}} {
		for _, address := range list {
			args := []string{"ip", "addr", "add", address, "dev", "eth0"}
			if strings.Contains(address, "::") {
				args = append(args, "nodad")
			}
			ns.Run(args...)
		}
		ns.Run("ip", "link", "set", "eth0", "up")
	}
	return a, b
}

func peer(local, address string) Peer {
	return Peer{Address: netip.MustParseAddr(address), Local: netip.MustParseAddr(local), Interval: 50 * time.Millisecond, Multiplier: 20}
}

// utter sends a text to a's port from an address of b, with a TTL.
func utter(t *testing.T, b *netlab.Netns, from, to, text string, ttl int) {
	t.Helper()
	var err error
	b.Do(func() {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}, Control: func(_, _ string, c syscall.RawConn) (err error) {
			return c.Control(func(fd uintptr) {
				if netip.MustParseAddr(to).Is4() {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, ttl)
				} else {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
				}
			})
		}}
		var c net.Conn
		if c, err = d.Dial("udp", net.JoinHostPort(to, fmt.Sprint(Port))); err == nil {
			_, err = c.Write([]byte(text))
			_ = c.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestEngine has two of them on a link: by both families they find each other, from the
// ports and with the TTL that the standard says, and the kernel keeps all others' packets
// from them, and a neighbour's that came through a router.
func TestEngine(t *testing.T) {
	nsA, nsB := wired(t)
	for _, c := range [][3]string{{"10.9.0.1", "10.9.0.2", "10.9.0.3"}, {"fd00:9::1", "fd00:9::2", "fd00:9::3"}} {
		a, b := newPlace(t, nsA), newPlace(t, nsB)
		a.Configure([]Peer{peer(c[0], c[1])})
		a.words(t, "down: the neighbour has no BFD: nothing listens on its port")
		b.Configure([]Peer{peer(c[1], c[0])})
		a.words(t, "up")
		b.words(t, "up")
		for _, p := range append(a.ports, b.ports...) {
			if p < 49152 {
				t.Errorf("source port %d", p)
			}
		}
		for range 20 {
			utter(t, nsB, c[2], c[0], "stranger", 255)
			utter(t, nsB, c[1], c[0], "stranger", 254)
		}
		utter(t, nsB, c[1], c[0], "marker", 255)
		netlab.Until(t, 20*time.Second, "the marker came", func() string {
			if is, _ := a.took("marker"); !is {
				return "not yet"
			}
			return ""
		})
		if _, strange := a.took("marker"); strange > 0 {
			t.Errorf("%d packets of strangers came through", strange)
		}
		// It is let in as soon as it is one of ours, and not any more when it is none.
		other := peer(c[0], c[2])
		a.Configure([]Peer{peer(c[0], c[1]), other})
		netlab.Until(t, 20*time.Second, "the other one is let in", func() string {
			utter(t, nsB, c[2], c[0], "other", 255)
			if is, _ := a.took("other"); !is {
				return "not yet"
			}
			return ""
		})
		a.Configure(nil)
		b.words(t, "down: switched off by the neighbour")
		b.Configure(nil)
	}
}

// TestPortTaken: another program has the port. That is said, and over once it is gone.
func TestPortTaken(t *testing.T) {
	nsA, nsB := wired(t)
	var taken net.PacketConn
	var err error
	nsA.Do(func() { taken, err = net.ListenPacket("udp", "10.9.0.1:3784") })
	if err != nil {
		t.Fatal(err)
	}
	a, b := newPlace(t, nsA), newPlace(t, nsB)
	a.Configure([]Peer{peer("10.9.0.1", "10.9.0.2")})
	b.Configure([]Peer{peer("10.9.0.2", "10.9.0.1")})
	const want = "BFD is not heard on 10.9.0.1: address already in use"
	a.words(t, "down: "+want)
	if got := a.Problems(); len(got) != 1 || got[0] != want {
		t.Errorf("problems %q", got)
	}
	_ = taken.Close()
	a.words(t, "up")
	if got := a.Problems(); len(got) > 0 {
		t.Errorf("problems %q", got)
	}
}
