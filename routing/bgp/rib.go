package bgp

import (
	"cmp"
	"log/slog"
	"net/netip"
	"slices"
	"time"
	"unique"
)

// rib is the state of the speaker's own goroutine: what peers announced, what
// became of it and what peers were told. None of it is locked.
type rib struct {
	config *Config
	log    *slog.Logger
	// after runs a function in the RIB's goroutine once d has passed.
	after func(d time.Duration, run func()) *time.Timer
	peers map[netip.Addr]*peer
	dests map[netip.Prefix]*dest
	// dirty are the destinations that changed since the last flush.
	dirty  []*dest
	groups map[outlook]*group
	own    *attrs
	// found are routes of the kernel that wait for the first Configure.
	found []Route
}

// dest is a prefix with everything known about it.
type dest struct {
	prefix netip.Prefix
	paths  []*path
	best   *path
	// installed are the next hops that the Installer was told, or that the
	// kernel had at start. The list is shared.
	installed []netip.Addr
	dirty     bool
}

func (d *dest) family() Family { return FamilyOf(d.prefix.Addr()) }

// peer is a neighbour as the RIB sees it.
type peer struct {
	config PeerConfig
	fsm    *fsm
	in     map[*dest]*path // Adj-RIB-In
	// session is set while Established.
	session  *session
	routerID netip.Addr
	ups      int
	// clock ends the life of stale paths; renewed says that it was set again
	// by a new session, which happens once.
	clock   *time.Timer
	renewed bool
}

// session is an Established session as the RIB sees it.
type session struct {
	peer     *peer
	conn     *conn
	open     *open // the peer's
	families [2]bool
	hold     time.Duration
	// notification: both sides said N (RFC 8538).
	notification bool
	look         outlook
	group        *group
	// behind holds the prefixes that a full queue did not take; nil as long as
	// the peer keeps up.
	behind map[netip.Prefix]struct{}
	// markers are the End-of-RIBs owed behind these.
	markers []Family
}

func newRIB(c *Config, after func(time.Duration, func()) *time.Timer) *rib {
	return &rib{
		config: c, log: c.Log, after: after,
		peers: map[netip.Addr]*peer{}, dests: map[netip.Prefix]*dest{}, groups: map[outlook]*group{},
		own: &attrs{localPref: defaultLocalPref}, found: c.Stale,
	}
}

// touch returns the entry of a prefix, marked as changed.
func (r *rib) touch(prefix netip.Prefix) *dest {
	d := r.dests[prefix]
	if d == nil {
		d = &dest{prefix: prefix}
		r.dests[prefix] = d
	}
	r.mark(d)
	return d
}

// mark has the next flush decide about d.
func (r *rib) mark(d *dest) {
	if !d.dirty {
		d.dirty = true
		r.dirty = append(r.dirty, d)
	}
}

// originate adds and removes own paths.
func (r *rib) originate(add, withdraw []netip.Prefix) {
	own := func(p *path) bool { return p.peer == nil }
	for _, prefix := range withdraw {
		if r.dests[prefix] != nil {
			d := r.touch(prefix)
			d.paths = slices.DeleteFunc(d.paths, own)
		}
	}
	for _, prefix := range add {
		if d := r.touch(prefix); !slices.ContainsFunc(d.paths, own) {
			d.paths = append(d.paths, &path{attrs: r.own})
		}
	}
}

// apply takes what a peer sent; a session that is over has no say any more.
func (r *rib) apply(s *session, changes []change) {
	p := s.peer
	if p.session != s {
		return
	}
	if limit := p.config.PrefixLimit; limit > 0 && r.holds(p, changes, limit) > limit {
		p.fsm.end(cease(ceaseLimit, ""))
		return
	}
	for _, c := range changes {
		switch {
		case c.endOfRIB:
			r.sweep(p, c.family)
		case c.refresh:
			s.group.dump([]*session{s}, c.family)
		}
		for _, prefix := range c.prefixes {
			if c.attrs == nil {
				if d := r.dests[prefix]; d != nil {
					r.remove(p, d)
				}
			} else {
				r.set(p, prefix, c.attrs, false)
			}
		}
	}
}

// holds is the number of prefixes of a peer that changes would leave, or what
// bounds it if that is within the limit.
func (r *rib) holds(p *peer, changes []change, limit int) int {
	most := len(p.in)
	for _, c := range changes {
		if c.attrs != nil {
			most += len(c.prefixes)
		}
	}
	if most <= limit {
		return most
	}
	held := map[netip.Prefix]bool{}
	count := len(p.in)
	for _, c := range changes {
		for _, prefix := range c.prefixes {
			has, seen := held[prefix]
			if !seen {
				has = p.in[r.dests[prefix]] != nil
			}
			held[prefix] = c.attrs != nil
			switch {
			case c.attrs != nil && !has:
				count++
			case c.attrs == nil && has:
				count--
			}
		}
	}
	return count
}

// set makes attrs the peer's path to a prefix.
func (r *rib) set(p *peer, prefix netip.Prefix, a *attrs, stale bool) {
	d := r.dests[prefix]
	old := p.in[d]
	if old != nil && !old.stale && old.attrs.same(a) {
		return
	}
	if old == nil {
		d = r.touch(prefix)
		old = &path{peer: p}
		p.in[d] = old
		d.paths = append(d.paths, old)
	}
	r.mark(d)
	old.attrs, old.stale = a, stale
	old.refused = r.refuse(p, prefix, a)
}

// refuse asks Import.
func (r *rib) refuse(p *peer, prefix netip.Prefix, a *attrs) (why unique.Handle[string]) {
	if r.config.Import == nil {
		return why
	}
	ok, reason := r.config.Import(p.config.Address, prefix, a.nextHop)
	if ok {
		return why
	}
	return unique.Make(cmp.Or(reason, "refused"))
}

// remove takes the peer's path away.
func (r *rib) remove(p *peer, d *dest) {
	old := p.in[d]
	if old == nil {
		return
	}
	delete(p.in, d)
	r.mark(d)
	d.paths = slices.DeleteFunc(d.paths, func(q *path) bool { return q == old })
}

// reimport asks Import again about every path.
func (r *rib) reimport() {
	for _, p := range r.peers {
		for d, path := range p.in {
			if reason := r.refuse(p, d.prefix, path.attrs); reason != path.refused {
				path.refused = reason
				r.mark(d)
			}
		}
	}
	// SinglePath may answer differently, too.
	for _, d := range r.dests {
		if len(d.paths) > 1 {
			r.mark(d)
		}
	}
}

// flush decides about everything that changed, tells the Installer and then
// the peers. Changes that arrived together are one batch; nothing waits.
func (r *rib) flush() {
	var changed []Route
	var gone []netip.Prefix
	for _, d := range r.dirty {
		hops := r.decide(d)
		if slices.Equal(hops, d.installed) {
			continue
		}
		d.installed = hops
		if len(hops) == 0 {
			gone = append(gone, d.prefix)
		} else {
			changed = append(changed, d.route())
		}
	}
	if len(changed)+len(gone) > 0 && r.config.Installer != nil {
		r.config.Installer.Install(changed, gone)
	}
	for _, g := range r.groups {
		g.flush(r.dirty)
	}
	for _, d := range r.dirty {
		d.dirty = false
		if len(d.paths) == 0 {
			delete(r.dests, d.prefix)
		}
	}
	r.dirty = r.dirty[:0]
}

// decide sets d's best path and returns the next hops to be installed.
func (r *rib) decide(d *dest) []netip.Addr {
	usable := d.paths
	if refused := func(p *path) bool { return !p.usable() }; slices.ContainsFunc(usable, refused) {
		usable = slices.DeleteFunc(slices.Clone(usable), refused)
	}
	if len(usable) == 1 {
		d.best = usable[0]
		if d.best.peer == nil {
			return nil
		}
		return d.best.attrs.hops()
	}
	best, equal := decide(usable)
	d.best = best
	if best == nil || best.peer == nil {
		return nil
	}
	if r.config.SinglePath != nil && r.config.SinglePath(d.prefix) {
		equal = []*path{best}
	}
	return nextHops(equal)
}

// route is d as the Installer takes it.
func (d *dest) route() Route {
	return Route{
		Prefix: d.prefix, NextHops: d.installed,
		Peer: d.best.peer.config.Address, Stale: d.best.stale,
	}
}

// routes lists what is installed.
func (r *rib) routes() []Route {
	var all []Route
	for _, d := range r.dests {
		if len(d.installed) > 0 && d.best != nil {
			all = append(all, d.route())
		}
	}
	slices.SortFunc(all, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	return all
}

// conflicts lists the prefixes that may have one next hop only and have more.
func (r *rib) conflicts() []Conflict {
	var all []Conflict
	if r.config.SinglePath == nil {
		return nil
	}
	for _, d := range r.dests {
		var peers []netip.Addr
		for _, p := range d.paths {
			if p.peer != nil && p.usable() {
				peers = append(peers, p.peer.config.Address)
			}
		}
		if len(peers) > 1 && r.config.SinglePath(d.prefix) {
			slices.SortFunc(peers, netip.Addr.Compare)
			all = append(all, Conflict{d.prefix, peers})
		}
	}
	slices.SortFunc(all, func(a, b Conflict) int { return a.Prefix.Compare(b.Prefix) })
	return all
}
