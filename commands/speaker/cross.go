package speaker

import (
	"context"
	"maps"
	"net/netip"
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
