package speaker

import (
	"context"
	"maps"
	"net/netip"

	"netctl/datastore"
	"netctl/routing"
)

// cross notes the nodes whose session moved to IPv6 since IPv4 does not get through, or
// back: tunnels go along. Of a session that is not up nothing new is known.
func (l *loop) cross(ctx context.Context) {
	if l.engine == nil {
		return
	}
	up, now := l.engine.Crossed(), map[netip.Addr]bool{}
	for _, p := range l.plan.Peers {
		for _, a := range p.Aliases {
			if over, known := up[p.Address]; over || !known && l.crossed[a] {
				now[a] = true
			}
		}
	}
	if !maps.Equal(now, l.crossed) {
		l.crossed = now
		l.travel(ctx)
	}
}

// adoptCrossed takes from a route that the kernel held at the start that its next hops were
// reached by IPv6.
func (l *loop) adoptCrossed(via routing.NextHop, hops []netip.Addr) {
	if via.Link != l.cfg.Tunnels[datastore.TunnelVXLAN6] {
		return
	}
	if l.crossed == nil {
		l.crossed = map[netip.Addr]bool{}
	}
	for _, a := range hops {
		l.crossed[a] = true
	}
}
