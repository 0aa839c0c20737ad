package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// answersUnderWay has others begin flows while nothing filters or tracks: a neighbour to a
// container that it may not reach, and a container to the host. Their servers go on by
// themselves: one of datagrams that takes its time, and one of TCP that pushes. What they have
// under way when the filter is back is no flow of theirs, which they might begin: it
// lets nothing through.
func answersUnderWay(t *testing.T, s *site, denied, server *netlab.Container, to netip.Addr) {
	neighbour := s.lab.Hosts[1]
	netlab.Must(t, neighbour, "ip", "route", "replace", to.String(), "via", s.node.Addr.Addr().String())
	in := func(p interface{ Do(func() error) error }, fn func() error) {
		t.Helper()
		if err := p.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	host := s.node.Addr.Addr()
	_ = s.agent.Signal(unix.SIGKILL)
	<-s.agent.Done()
	netlab.Must(t, s.node, "nft", "flush", "ruleset")
	answered := map[string]*atomic.Int64{"datagrams": {}, "the host's datagrams": {}, "a stream": {}}
	in(server, func() error { return slowServer(t, to) })
	in(s.node, func() error { return slowServer(t, host) })
	in(server, func() error { return pusher(t, netip.AddrPortFrom(to, 7001)) })
	in(neighbour, func() error {
		return dial(t, "udp", ":0", netip.AddrPortFrom(to, 7000).String(), true, answered["datagrams"])
	})
	in(denied, func() error {
		return dial(t, "udp", ":0", netip.AddrPortFrom(host, 7000).String(), true, answered["the host's datagrams"])
	})
	in(neighbour, func() error {
		return dial(t, "tcp", ":0", netip.AddrPortFrom(to, 7001).String(), false, answered["a stream"])
	})
	for what, n := range answered {
		s.until("open for "+what, func() string {
			if n.Load() < 10 {
				return fmt.Sprint(n.Load(), " answers")
			}
			return ""
		})
	}
	s.agent = s.startAgent(s.node, s.cfg)
	s.synced()
	drops := func() int { return s.unseen("") }
	// The stream's end sends again what nobody acknowledges, later each time.
	s.until("closed", func() string {
		before, dropped := map[string]int64{}, drops()
		for what, n := range answered {
			before[what] = n.Load()
		}
		s.until("something dropped", func() string {
			if drops() < dropped+2 {
				return "nothing"
			}
			return ""
		})
		var open []string
		for what, n := range answered {
			if n.Load() > before[what] {
				open = append(open, what)
			}
		}
		return strings.Join(open, ", ")
	})
	if flows := netlab.Must(t, s.node, "sh", "-c", "conntrack -L 2>/dev/null | grep -E 'port=(7000|7001) ' || :"); flows != "" {
		t.Errorf("flows that nobody may begin:\n%s", flows)
	}
}

// unseen is how many packets were taken for answers: in a flow that "was cut", that "began
// unseen", or either.
func (s *site) unseen(why string) (n int) {
	s.t.Helper()
	list := func(chain string) string {
		return netlab.Must(s.t, s.node, "nft", "list", "chain", "inet", "netctl", chain)
	}
	text := list("unseen") + list("unseen_to")
	for _, m := range regexp.MustCompile(`counter packets (\d+) .*answer in a flow that.*`+why).FindAllStringSubmatch(text, -1) {
		packets, err := strconv.Atoi(m[1])
		if err != nil {
			s.t.Fatal(err)
		}
		n += packets
	}
	return n
}

// slowServer answers each datagram on port 7000 after 20 ms.
func slowServer(t *testing.T, at netip.Addr) error {
	c, err := net.ListenPacket("udp", netip.AddrPortFrom(at, 7000).String())
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for b := make([]byte, 1); ; {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			time.AfterFunc(20*time.Millisecond, func() { _, _ = c.WriteTo([]byte("y"), from) })
		}
	}()
	return nil
}

// count counts what arrives until c is closed. A connection of datagrams goes on after an
// error, as of a neighbour that was not found.
func count(c net.Conn, n *atomic.Int64) {
	_, stream := c.(*net.TCPConn)
	for b := make([]byte, 1500); ; {
		switch _, err := c.Read(b); {
		case err == nil || errors.Is(err, unix.ECONNREFUSED):
			n.Add(1)
		case stream || errors.Is(err, net.ErrClosed):
			return
		}
	}
}

// pusher sends to whoever connects, on and on.
func pusher(t *testing.T, at netip.AddrPort) error {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = c.Close() })
		for every := time.Tick(5 * time.Millisecond); ; <-every {
			if _, err := c.Write([]byte("pushed")); err != nil {
				return
			}
		}
	}()
	return nil
}
