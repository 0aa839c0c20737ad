package bgp

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"netctl/routing/gate"
)

const (
	listenRetry = time.Second
	// handOver is how long an accepted connection may wait for its peer.
	handOver = 5 * time.Second
)

// listen accepts connections on one address until ctx ends.
func (s *Speaker) listen(ctx context.Context, a netip.AddrPort) {
	defer s.problem(a, "")
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
		s.keys.add(l, a.Addr())
		if err := s.gate.add(l, a.Addr().Zone()); err != nil {
			s.log.Warn("the port is open to everybody", "address", a, "error", err)
		}
		s.problem(a, "")
		stop := context.AfterFunc(ctx, func() { _ = l.Close() })
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			s.accept(ctx, c, a.Addr().Zone())
		}
		stop()
		s.gate.remove(l)
		s.keys.remove(l)
		_ = l.Close()
	}
}

// accept hands a connection to its peer's state machine; those of unknown
// addresses are closed. link is that of the listener, if it is one link's.
func (s *Speaker) accept(ctx context.Context, c net.Conn, link string) {
	remote, here := addrOf(c.RemoteAddr()).WithZone(link), addrOf(c.LocalAddr()).WithZone(link)
	s.mu.Lock()
	f := s.machines[remote]
	if f == nil {
		f = s.spares[remote]
	}
	s.mu.Unlock()
	if f == nil {
		s.log.Debug("connection from an address that is no peer", "peer", remote)
		_ = c.Close()
		return
	}
	f.mu.Lock()
	config := f.wanted.by(remote)
	f.mu.Unlock()
	if local := config.LocalAddress; local.IsValid() && here != local {
		s.log.Debug("connection to another address", "peer", remote, "local", here)
		_ = c.Close()
		return
	}
	if s.keys.refuses(remote) != "" || config.Wrong != "" {
		_ = c.Close()
		return
	}
	if err := config.retune(c); err != nil {
		s.log.Warn("connection cannot be set up", "peer", remote, "error", err)
		_ = c.Close()
		return
	}
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = gate.Attach(tcp, nil) // the listener's is no use any more
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
	return append(slices.Sorted(maps.Values(s.problems)), s.keys.problems()...)
}
