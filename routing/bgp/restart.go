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
	if s.open.gr == nil || !s.open.gr.listed[f] && s.long[f] == 0 || e == endHard {
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
		for i, hop := range list {
			for _, p := range r.owners(hop) {
				id := uint32(0)
				if p.config.ReceivePaths {
					id = uint32(i) // until the peer says which
				}
				if ways[hop] == nil {
					ways[hop] = &attrs{nextHop: hop, adopted: true, only: hops{[]netip.Addr{hop}}}
				}
				r.set(p, route.Prefix, id, ways[hop], true)
			}
		}
	}
	r.found = nil
}

// owners are the peers that a route over a next hop may be from: the one that has it
// as address or alias, and else all that reflect or send several paths.
func (r *rib) owners(hop netip.Addr) []*peer {
	if p := r.peers[hop]; p != nil && !p.config.Reflects {
		return []*peer{p}
	}
	var reflectors []*peer
	for _, p := range r.peers {
		switch {
		case p.config.Reflects:
			reflectors = append(reflectors, p)
		case slices.Contains(p.config.Aliases, hop):
			return []*peer{p}
		case p.config.ReceivePaths:
			reflectors = append(reflectors, p)
		}
	}
	return reflectors
}

// deferral is how long reflected routes and a reflector's End-of-RIB wait at most.
const deferral = 5 * time.Second

// deferred says what waits, by family, and for whom: clients wait for all that is
// reflected to them, others for what comes from clients alone. So two reflectors that
// restart do not wait for each other.
type deferred [2]struct{ client, other bool }

func (d *deferred) to(o *outlook, f Family) bool {
	return o.client && d[f].client || !o.client && d[f].other
}

// await has a restarted reflector wait for what it is to reflect before it says that
// this was all (RFC 4724, section 4.1). Own routes depend on no peer and do not wait.
func (r *rib) await() {
	if !r.config.Restarting {
		return
	}
	for _, p := range r.peers {
		if p.config.Client {
			for f := range r.deferred {
				r.deferred[f].client = r.config.ForwardingPreserved[Family(f)]
				r.deferred[f].other = r.deferred[f].client
			}
			r.after(deferral, func() { r.overdue = true })
			return
		}
	}
}

// release ends the waiting of those for whom nobody is waited for any more.
func (r *rib) release() (released bool) {
	for f := range r.deferred {
		d := &r.deferred[f]
		was := *d
		d.other = d.other && !r.overdue && r.awaits(Family(f), true)
		d.client = d.client && !r.overdue && (d.other || r.awaits(Family(f), false))
		if *d == was {
			continue
		}
		released = true
		for _, d := range r.dests {
			if d.family() == Family(f) && d.paths != nil {
				r.mark(d)
			}
		}
	}
	return released
}

// awaits reports whether a peer's End-of-RIB is missing, of clients or of all. On
// purpose peers "with the 'Restart State' bit set" are waited for too: our own is set as
// long as we wait, so that none of them waits for us, and many set it for minutes. Those
// that "do not advertise the graceful restart capability" are not (RFC 4724, section 4.1).
func (r *rib) awaits(f Family, clients bool) bool {
	for _, p := range r.peers {
		s := p.session
		switch {
		case p.config.AS != r.config.AS || p.config.Shutdown != "" || p.config.Leaving || !slices.Contains(p.config.families(), f):
		case clients && !p.config.Client:
		case s == nil:
			return true
		case s.families[f] && s.open.gr != nil && s.open.gr.listed[f] && !s.heard[f]:
			return true
		}
	}
	return false
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
			r.remove(p, d, path)
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
	p.aging[family].stop()
}

// wind sets the clock of p's stale paths.
func (r *rib) wind(p *peer, d time.Duration) {
	if p.clock != nil {
		p.clock.Stop()
	}
	var clock *time.Timer
	clock = r.after(d, func() {
		if p.clock != clock {
			return
		}
		p.clock, p.renewed = nil, false
		if p.session == nil {
			r.age(p, func(Family) bool { return true })
			return
		}
		r.drop(p, func(f Family, path *path) bool { return !path.attrs.adopted && !p.ages(f, path) })
	})
	p.clock = clock
}

// up takes a session that became Established.
func (r *rib) up(s *session) {
	p := s.peer
	p.session, p.routerID, r.moved = s, s.open.id, true
	p.ups++
	gr := s.open.gr
	r.drop(p, func(f Family, path *path) bool {
		if path.attrs.adopted {
			// It was us who restarted: F of a peer that did not says
			// nothing (BIRD clears it then).
			return !s.families[f] || gr != nil && gr.restarting && !gr.forwarding[f]
		}
		if p.ages(f, path) {
			return !s.keepsOld(f)
		}
		// "If the Forwarding State bit for a specific address family is
		// not set …, or if a specific address family is not included …,
		// or if the … Capability is not received … at all, then the
		// Receiving Speaker MUST immediately remove all the stale
		// routes" (RFC 4724, section 4.2).
		return !s.families[f] || gr == nil || !gr.listed[f] || !gr.forwarding[f]
	})
	for f := range p.aging {
		if !s.keepsOld(Family(f)) {
			p.aging[f].stop()
		}
	}
	if p.clock != nil && !p.renewed {
		p.renewed = true
		r.wind(p, markerTime)
	}
	// The state machine may not have heard yet of the latest configuration.
	clusterID := s.look.clusterID
	s.look = s.lookFor(p.config)
	s.look.client, s.look.clusterID = p.config.Client, clusterID
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
	p.session, r.moved = nil, true
	r.leave(s)
	kept, aged := false, [2]bool{}
	for d, path := range p.all() {
		if s.keeps(e, d.family()) || path.stale && e == endLost {
			if !path.stale {
				path.stale = true
				r.mark(d)
			}
			path.due = false
			kept = kept || !path.attrs.adopted
			aged[d.family()] = aged[d.family()] || p.ages(d.family(), path)
			continue
		}
		r.remove(p, d, path)
	}
	for f := range p.aging {
		if !aged[f] {
			p.aging[f].stop()
			p.aging[f].time = s.long[f]
		}
	}
	// What the restart time is not about has none.
	r.age(p, func(f Family) bool { return !s.open.gr.lists(f) })
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
