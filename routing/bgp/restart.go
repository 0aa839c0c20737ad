package bgp

import (
	"net/netip"
	"slices"
	"time"
)

// markerTime is how long a new session of a restarted peer may take to its
// End-of-RIB until its stale routes go.
const markerTime = 120 * time.Second

// ending is how a session ended, which decides about the peer's routes.
type ending int

const (
	// endLost: the connection went away, the peer may be restarting (RFC
	// 4724, section 4.2).
	endLost ending = iota
	// endNotified: a NOTIFICATION of either side, or the hold timer; routes
	// are kept only where N was agreed (RFC 8538, section 4).
	endNotified
	// endHard: a Hard Reset, or the session was ended on purpose.
	endHard
)

// keeps reports whether the routes of a family outlive the session.
func (s *session) keeps(e ending, f Family) bool {
	if s.open.gr == nil || !s.open.gr.listed[f] || e == endHard {
		return false
	}
	return e == endLost || s.notification
}

// adopt takes over the kernel's routes, once the peers are known. A route
// without owner goes with the next flush.
func (r *rib) adopt() {
	ways := map[netip.Addr]*attrs{}
	for _, route := range r.found {
		list := slices.Clone(route.NextHops)
		slices.SortFunc(list, netip.Addr.Compare)
		d := r.touch(route.Prefix)
		if d.installed = &(hops{list}); len(list) == 1 && ways[list[0]] != nil {
			d.installed = ways[list[0]].hops()
		}
		for _, hop := range list {
			if p := r.owner(hop); p != nil {
				if ways[hop] == nil {
					ways[hop] = &attrs{nextHop: hop, adopted: true, only: hops{[]netip.Addr{hop}}}
				}
				r.set(p, route.Prefix, ways[hop], true)
			}
		}
	}
	r.found = nil
}

// owner is the peer that has a next hop as address or alias.
func (r *rib) owner(hop netip.Addr) *peer {
	if p := r.peers[hop]; p != nil {
		return p
	}
	for _, p := range r.peers {
		if slices.Contains(p.config.Aliases, hop) {
			return p
		}
	}
	return nil
}

// abandon removes adopted routes that nobody announced again in the restart
// time.
func (r *rib) abandon() {
	for _, p := range r.peers {
		r.drop(p, func(_ Family, path *path) bool { return path.attrs.adopted })
	}
}

// drop removes the stale paths of a peer that which picks, and stops the
// clock when none is left.
func (r *rib) drop(p *peer, which func(Family, *path) bool) {
	rest := 0
	for d, path := range p.all() {
		switch {
		case !path.stale:
		case which(d.family(), path):
			r.remove(p, d)
		case !path.attrs.adopted:
			rest++
		}
	}
	if rest == 0 && p.clock != nil {
		p.clock.Stop()
		p.clock, p.renewed = nil, false
	}
}

// sweep is End-of-RIB: what the peer did not announce again is gone.
func (r *rib) sweep(p *peer, family Family) {
	r.drop(p, func(f Family, _ *path) bool { return f == family })
}

// wind sets the clock of p's stale paths.
func (r *rib) wind(p *peer, d time.Duration) {
	if p.clock != nil {
		p.clock.Stop()
	}
	var clock *time.Timer
	clock = r.after(d, func() {
		if p.clock == clock {
			r.drop(p, func(_ Family, path *path) bool { return !path.attrs.adopted })
		}
	})
	p.clock = clock
}

// up takes a session that became Established.
func (r *rib) up(s *session) {
	p := s.peer
	p.session, p.routerID = s, s.open.id
	p.ups++
	gr := s.open.gr
	r.drop(p, func(f Family, path *path) bool {
		if path.attrs.adopted {
			// It was us who restarted: F of a peer that did not says
			// nothing (BIRD clears it then).
			return !s.families[f] || gr != nil && gr.restarting && !gr.forwarding[f]
		}
		// "If the Forwarding State bit for a specific address family is
		// not set …, or if a specific address family is not included …,
		// or if the … Capability is not received … at all, then the
		// Receiving Speaker MUST immediately remove all the stale
		// routes" (RFC 4724, section 4.2).
		return !s.families[f] || gr == nil || !gr.listed[f] || !gr.forwarding[f]
	})
	if p.clock != nil && !p.renewed {
		p.renewed = true
		r.wind(p, markerTime)
	}
	r.join(s)
}

// down takes the end of a session. A further loss while routes are stale
// neither deletes them nor restarts the clock (on purpose not RFC 4724,
// section 4.2: a second restart inside the window must lose nothing).
func (r *rib) down(s *session, e ending) {
	p := s.peer
	if p.session != s {
		return
	}
	p.session = nil
	r.leave(s)
	kept := false
	for d, path := range p.all() {
		if s.keeps(e, d.family()) || path.stale && e == endLost {
			if !path.stale {
				path.stale = true
				r.mark(d)
			}
			kept = kept || !path.attrs.adopted
			continue
		}
		r.remove(p, d)
	}
	switch {
	case !kept && p.clock != nil:
		p.clock.Stop()
		p.clock, p.renewed = nil, false
	case kept && p.clock == nil:
		var d time.Duration
		if s.open.gr != nil {
			d = s.open.gr.time
		}
		r.wind(p, d)
	}
}
