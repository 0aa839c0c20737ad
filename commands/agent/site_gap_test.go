package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// begunInTheGap flushes the packet filter while the agent lives but is held up, so that
// others begin flows that they may not, of every kind that ports tell nothing about: to
// servers at high ports from low ones, that go on by themselves, and without ports.
// When the filter is back none lives on, nor after another flush, and what is allowed
// begins as if nothing had been, whatever its ports.
func begunInTheGap(t *testing.T, s *site, allowed, denied, server *netlab.Container, from, to netip.Addr) {
	neighbour := s.lab.Hosts[1]
	netlab.Must(t, neighbour, "ip", "route", "replace", to.String(), "via", s.node.Addr.Addr().String())
	in := func(p interface{ Do(func() error) error }, fn func() error) {
		t.Helper()
		if err := p.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	answered := map[string]*atomic.Int64{"datagrams": {}, "the host's datagrams": {}, "a stream": {}, "protocol 253": {}}
	host := s.node.Addr.Addr()
	in(server, func() error { return talker(t, "udp", netip.AddrPortFrom(to, 40000).String()) })
	in(s.node, func() error { return talker(t, "udp", netip.AddrPortFrom(host, 40000).String()) })
	in(server, func() error { return talker(t, "ip4:253", to.String()) })
	in(server, func() error { return pusher(t, netip.AddrPortFrom(to, 40001)) })
	in(server, func() error { return echoer(t, to, 123) })
	in(server, func() error { return echoer(t, to, 51820) })
	flush := func(begin func()) {
		t.Helper()
		_ = s.agent.Signal(unix.SIGSTOP)
		s.until("every thread is stopped", func() string { // else it may have begun to shut
			return netlab.Must(t, s.node, "sh", "-c", fmt.Sprintf("grep -hs ^State: /proc/%d/task/*/status | grep -v T || :", s.agent.PID))
		})
		netlab.Must(t, s.node, "nft", "flush", "ruleset")
		begin()
		before := map[string]int64{}
		for what, n := range answered {
			before[what] = n.Load()
		}
		for what, n := range answered {
			s.until("open for "+what, func() string {
				if n.Load() < before[what]+3 {
					return fmt.Sprint(n.Load()-before[what], " answers")
				}
				return ""
			})
		}
		_ = s.agent.Signal(unix.SIGCONT)
		s.until("the packet filter is back", func() string {
			return netlab.Must(t, s.node, "sh", "-c", "nft list chain inet netctl unseen 2>&1 >/dev/null || :")
		})
	}
	closed := func() {
		t.Helper()
		s.until("closed", func() string {
			before, dropped := map[string]int64{}, s.unseen("was cut")
			for what, n := range answered {
				before[what] = n.Load()
			}
			s.until("something dropped", func() string {
				if s.unseen("was cut") < dropped+100 {
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
		if flows := netlab.Must(t, s.node, "sh", "-c", "conntrack -L 2>/dev/null | grep -E 'port=(40000|40001) |^unknown *253' || :"); flows != "" {
			t.Errorf("flows that nobody may begin:\n%s", flows)
		}
	}
	flush(func() {
		in(neighbour, func() error {
			return dial(t, "udp", ":2000", netip.AddrPortFrom(to, 40000).String(), true, answered["datagrams"])
		})
		in(denied, func() error {
			return dial(t, "udp", ":2000", netip.AddrPortFrom(host, 40000).String(), true, answered["the host's datagrams"])
		})
		in(neighbour, func() error { return dial(t, "ip4:253", "", to.String(), true, answered["protocol 253"]) })
		in(neighbour, func() error {
			return dial(t, "tcp", ":2001", netip.AddrPortFrom(to, 40001).String(), false, answered["a stream"])
		})
	})
	for port, first := range map[int]int{123: 123, 51820: 51820} {
		for i := range 20 {
			local := netip.AddrPortFrom(from, uint16(first+i)).String()
			in(allowed, func() error { return asked(local, netip.AddrPortFrom(to, uint16(port)).String()) })
		}
	}
	if n := s.unseen("began unseen"); n > 0 {
		t.Errorf("%d packets of new flows were taken for answers", n)
	}
	closed()
	// A connection may be silent for days.
	if text := netlab.Must(t, s.node, "nft", "list", "set", "inet", "netctl", "cut4"); !strings.Contains(text, "tcp . 40001 . 2001 timeout 5d expires 4d23h") {
		t.Errorf("what is kept of the stream:\n%s", text)
	}
	flush(func() {})
	closed()
}

// talker sends to whoever has sent to it, on and on.
func talker(t *testing.T, network, at string) error {
	c, err := net.ListenPacket(network, at)
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		known := map[string]bool{}
		for b := make([]byte, 1500); ; {
			_, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if known[from.String()] {
				continue
			}
			known[from.String()] = true
			go func() {
				every := time.NewTicker(5 * time.Millisecond)
				defer every.Stop()
				for range every.C {
					if _, err := c.WriteTo([]byte("pushed"), from); err != nil && strings.Contains(err.Error(), "closed") {
						return
					}
				}
			}()
		}
	}()
	return nil
}

// echoer sends back what comes.
func echoer(t *testing.T, at netip.Addr, port uint16) error {
	c, err := net.ListenPacket("udp", netip.AddrPortFrom(at, port).String())
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for b := make([]byte, 1500); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return nil
}

// asked sends one datagram and waits for the answer.
func asked(local, to string) error {
	from, err := net.ResolveUDPAddr("udp", local)
	if err != nil {
		return err
	}
	c, err := (&net.Dialer{LocalAddr: from}).Dial("udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("a new flow from %s to %s: %w", local, to, err)
	}
	return nil
}

// dial counts what comes from somebody, to whom it sends each 2 ms if told to.
func dial(t *testing.T, network, local, to string, sends bool, answered *atomic.Int64) error {
	d := net.Dialer{Timeout: 30 * time.Second}
	var err error
	switch network {
	case "udp":
		d.LocalAddr, err = net.ResolveUDPAddr(network, local)
	case "tcp":
		d.LocalAddr, err = net.ResolveTCPAddr(network, local)
	}
	if err != nil {
		return err
	}
	c, err := d.DialContext(context.Background(), network, to)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop); _ = c.Close() })
	if sends {
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
	}
	go count(c, answered)
	return nil
}
