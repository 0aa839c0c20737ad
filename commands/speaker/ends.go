package speaker

import (
	"context"
	"maps"
	"slices"

	"netctl/routing"
)

// meet takes who is at the other ends of links.
func (l *loop) meet(ctx context.Context) {
	if ends := l.finder.Ends(); !slices.Equal(ends, l.ends) {
		l.ends = ends
		l.follow(ctx, l.planned)
	}
}

// seek has neighbours looked for where peers of interfaces are: never at endpoints, nor
// inside tunnels.
func (l *loop) seek() {
	peers := l.planned.Interfaces
	if len(peers) == 0 {
		l.ends = nil
		l.finder.Look(nil)
		return
	}
	tunnels := slices.Collect(maps.Values(l.cfg.Tunnels))
	l.finder.Look(func(link string) bool {
		return link != "lo" && !l.cfg.endpointLink(link) && !slices.Contains(tunnels, link) &&
			slices.ContainsFunc(peers, func(p routing.Peer) bool { return p.OnLink(link) })
	})
}
