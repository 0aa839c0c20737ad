package agent

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
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
	netlab.Must(t, neighbour, "ip", "route", "add", to.String(), "via", s.node.Addr.Addr().String())
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
	in(server, func() error { return pusher(t, to) })
	in(neighbour, func() error { return asker(t, to, answered["datagrams"]) })
	in(denied, func() error { return asker(t, host, answered["the host's datagrams"]) })
	in(neighbour, func() error { return listener(t, to, answered["a stream"]) })
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
	refused := regexp.MustCompile(`counter packets (\d+) `)
	drops := func() (n int) {
		text := netlab.Must(t, s.node, "nft", "list", "chain", "inet", "netctl", "unseen")
		_, _ = fmt.Sscan(refused.FindStringSubmatch(text)[1], &n)
		return n
	}
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

// asker sends a datagram each 2 ms and counts the answers.
func asker(t *testing.T, to netip.Addr, answered *atomic.Int64) error {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, 7000).String())
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop); _ = c.Close() })
	go func() {
		every := time.NewTicker(2 * time.Millisecond)
		defer every.Stop()
		for {
			select {
			case <-stop:
				return
			case <-every.C:
				_, _ = c.Write([]byte("x"))
			}
		}
	}()
	go count(c, answered)
	return nil
}

// count counts what arrives until c is closed.
func count(c net.Conn, n *atomic.Int64) {
	for b := make([]byte, 1500); ; n.Add(1) {
		if _, err := c.Read(b); err != nil && !strings.Contains(err.Error(), "refused") {
			return
		}
	}
}

// pusher sends to whoever connects to port 7001, on and on.
func pusher(t *testing.T, at netip.Addr) error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(at, 7001).String())
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

// listener connects to a pusher and counts what comes.
func listener(t *testing.T, to netip.Addr, n *atomic.Int64) error {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, 7001).String(), 30*time.Second)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = c.Close() })
	go count(c, n)
	return nil
}
