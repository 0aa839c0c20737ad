package bgp

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"
)

const (
	listenRetry = time.Second
	// handOver is how long an accepted connection may wait for its peer.
	handOver = 5 * time.Second
)

// openListener is without multipath TCP, which knows neither keys (RFC 2385)
// nor a least TTL (RFC 5082).
func openListener(ctx context.Context, a netip.AddrPort) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", a.String())
}

// listen accepts connections on one address until ctx ends.
func (s *Speaker) listen(ctx context.Context, a netip.AddrPort) {
	for ctx.Err() == nil {
		l, err := s.open(ctx, a)
		if err != nil {
			s.problem(a, "listen on "+a.String()+": "+plain(err))
			select {
			case <-ctx.Done():
			case <-time.After(listenRetry):
			}
			continue
		}
		if err := s.gate.add(l); err != nil {
			s.log.Warn("the port is open to everybody", "address", a, "error", err)
		}
		s.problem(a, "")
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			s.accept(ctx, c)
		}
		stop()
		s.gate.remove(l)
		_ = l.Close()
	}
}

// accept hands a connection to its peer's state machine; those of unknown
// addresses are closed.
func (s *Speaker) accept(ctx context.Context, c net.Conn) {
	remote := addrOf(c.RemoteAddr()).WithZone("")
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = attach(tcp, nil) // the listener's is no use any more
	}
	s.mu.Lock()
	f := s.machines[remote]
	s.mu.Unlock()
	if f == nil {
		s.log.Debug("connection from an address that is no peer", "peer", remote)
		_ = c.Close()
		return
	}
	f.mu.Lock()
	local := f.wanted.LocalAddress
	f.mu.Unlock()
	if local.IsValid() && addrOf(c.LocalAddr()) != local {
		s.log.Debug("connection to another address", "peer", remote, "local", addrOf(c.LocalAddr()))
		_ = c.Close()
		return
	}
	s.tasks.Go(func() {
		select {
		case f.accepted <- c:
		case <-ctx.Done():
			_ = c.Close()
		case <-time.After(handOver):
			_ = c.Close()
		}
	})
}

// dial opens a connection to a peer.
func dial(ctx context.Context, p PeerConfig) (net.Conn, error) {
	var d net.Dialer
	d.SetMultipathTCP(false)
	if p.LocalAddress.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: p.LocalAddress.AsSlice(), Zone: p.LocalAddress.Zone()}
	}
	port := p.Port
	if port == 0 {
		port = Port
	}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(p.Address, port).String())
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", p.Address, err)
	}
	return c, nil
}

// problem notes what is wrong with a listener; "" for nothing.
func (s *Speaker) problem(a netip.AddrPort, words string) {
	s.mu.Lock()
	old := s.problems[a.String()]
	if words == "" {
		delete(s.problems, a.String())
	} else {
		s.problems[a.String()] = words
	}
	s.mu.Unlock()
	if words != "" && words != old {
		s.log.Warn("no connections are accepted", "address", a, "cause", words)
	}
}

// Problems says in words what is wrong apart from sessions, sorted.
func (s *Speaker) Problems() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Values(s.problems))
}
