package bgp

import (
	"cmp"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"time"
	"unique"

	"netctl/routing"
)

// rib is the state of the speaker's own goroutine: what peers announced, what
// became of it and what peers were told. None of it is locked.
type rib struct {
	config *Config
	log    *slog.Logger
	// after runs a function in the RIB's goroutine once d has passed.
	after func(d time.Duration, run func()) *time.Timer
	// gone has the state machines counted again, once a peer went by itself.
	gone  func()
	peers map[netip.Addr]*peer
	dests map[routing.Packed]*dest
	most  int // dests that there were
	// dirty are the destinations that changed since the last flush.
	dirty  []*dest
	groups map[outlook]*group
	own    map[ownKey]*attrs
	// aggregates are what is told in place of what lies in them, and parts what that is.
	aggregates []*aggregate
	parts      map[*dest]part
	// found are routes of the kernel that wait for the first Configure.
	found []Route
	// deferred: reflected routes and End-of-RIBs wait, see await; overdue: they have
	// waited long enough.
	deferred deferred
	overdue  bool
	// moved says that a session or the configuration changed since the peers that leave
	// were looked at; looking, that they will be.
	moved, looking bool
}

// dest is a prefix with everything known about it. A table has hundreds of
// thousands: 48 bytes each.
type dest struct {
	key   routing.Packed
	dirty bool
	paths *path // the first; the order means nothing
	best  *path
	// installed are the next hops that the Installer was told, or that the
	// kernel had at start.
	installed *hops
}

func (d *dest) family() Family {
	if d.key.Is4() {
		return IPv4
	}
	return IPv6
}

// all are the paths.
func (d *dest) all() iter.Seq[*path] {
	return func(yield func(*path) bool) {
		for p := d.paths; p != nil && yield(p); p = p.next {
		}
	}
}

// from is the path of a peer that has an ID, or the own one (of nil); nil: there is none.
func (d *dest) from(p *peer, id uint32) *path {
	for q := range d.all() {
		if q.peer == p && q.id() == id {
			return q
		}
	}
	return nil
}

// at is the path of a peer that has a place in peer.in.
func (d *dest) at(p *peer, place uint32) *path {
	for q := range d.all() {
		if q.peer == p && q.at == place {
			return q
		}
	}
	return nil
}

// take removes a path.
func (d *dest) take(p *path) {
	at := &d.paths
	for *at != p {
		at = &(*at).next
	}
	*at = p.next
}

// peer is a neighbour as the RIB sees it.
type peer struct {
	config PeerConfig
	fsm    *fsm
	full   bool    // PeerConfig.PrefixWarning was said
	in     []*dest // Adj-RIB-In: the prefixes it has a path to, one for each path
	// refused is why Import turned paths down. Few reasons hold for many.
	refused map[*path]unique.Handle[string]
	// ids are the IDs of paths (RFC 7911) but 0. Most peers have none.
	ids map[*path]uint32
	// session is set while Established.
	session  *session
	routerID netip.Addr
	ups      int
	// clock ends the life of stale paths; renewed says that it was set again
	// by a new session, which happens once.
	clock   *time.Timer
	renewed bool
	aging   [2]aging // by Family, behind the clock
	// leaving is since when the peer is to go; unclient ends the reflection to one that
	// is no client any more.
	leaving  time.Time
	unclient *time.Timer
}

// all are the prefixes the peer has a path to, and that path. The one at hand may be
// removed meanwhile.
func (p *peer) all() iter.Seq2[*dest, *path] {
	return func(yield func(*dest, *path) bool) {
		for i := len(p.in) - 1; i >= 0; i-- {
			if d := p.in[i]; !yield(d, d.at(p, uint32(i))) {
				return
			}
		}
	}
}

func newRIB(c *Config, after func(time.Duration, func()) *time.Timer) *rib {
	return &rib{
		config: c, log: c.Log, after: after,
		peers: map[netip.Addr]*peer{}, dests: map[routing.Packed]*dest{}, groups: map[outlook]*group{},
		own: map[ownKey]*attrs{}, found: c.Stale,
	}
}

// dest is the entry of a prefix; nil: there is none.
func (r *rib) dest(prefix netip.Prefix) *dest { return r.dests[routing.Pack(prefix)] }

// touch returns the entry of a prefix, marked as changed.
func (r *rib) touch(prefix netip.Prefix) *dest {
	d := r.dest(prefix)
	if d == nil {
		d = &dest{key: routing.Pack(prefix)}
		r.dests[d.key] = d
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
	for _, prefix := range withdraw {
		if d := r.dest(prefix); d != nil {
			if own := d.from(nil, 0); own != nil {
				d.take(own)
			}
			r.mark(d)
		}
	}
	for _, prefix := range add {
		if d := r.touch(prefix); d.from(nil, 0) == nil {
			d.paths = &path{next: d.paths, attrs: r.ownAttrs(ownKind{}, r.tags(prefix))}
		}
	}
}

// apply takes what a peer sent; a session that is over has no say any more.
func (r *rib) apply(s *session, changes []change) {
	p := s.peer
	if p.session != s {
		return
	}
	if limit := p.config.PrefixLimit; limit > 0 && !p.config.LimitWarns && r.holds(p, changes, limit) > limit {
		flt := cease(ceaseLimit, "")
		flt.words = fmt.Sprintf("sent more prefixes than its limit of %d", limit)
		if p.config.LimitRest < 0 {
			flt.words += "; its session stays down until that is changed"
		}
		p.fsm.end(flt)
		return
	}
	defer r.fill(p)
	for _, c := range changes {
		switch {
		case c.endOfRIB:
			s.heard[c.family], r.moved = true, true
			r.sweep(p, c.family)
		case c.refresh == refreshRequest+1:
			r.refresh(s, c.family)
		case c.refresh == refreshBegin+1:
			r.repeat(s, c.family)
		case c.refresh == refreshEnd+1:
			r.repeated(s, c.family)
		}
		for i, prefix := range c.prefixes {
			if c.attrs != nil {
				r.set(p, prefix, c.id(i), c.attrs, false)
			} else if d := r.dest(prefix); d != nil {
				if old := d.from(p, c.id(i)); old != nil {
					r.remove(p, d, old)
				}
			}
		}
	}
}

// set makes attrs the peer's path to a prefix, of those with IDs the one with that.
func (r *rib) set(p *peer, prefix netip.Prefix, id uint32, a *attrs, stale bool) {
	d := r.dest(prefix)
	if d == nil {
		d = r.touch(prefix)
	}
	old := d.from(p, id)
	if old != nil {
		old.due = false
	}
	if old != nil && !old.stale && old.attrs.received().same(a) {
		return
	}
	r.mark(d)
	if old == nil {
		old = &path{next: d.paths, peer: p, at: uint32(len(p.in))}
		d.paths, p.in = old, append(p.in, d)
		if id != 0 {
			if p.ids == nil {
				p.ids = map[*path]uint32{}
			}
			p.ids[old] = id
		}
	}
	old.attrs, old.stale = a, stale
	r.judge(p, d, old)
}

// judge asks Import and the peer's filter about a path, and says whether the answer is
// another one than before.
func (r *rib) judge(p *peer, d *dest, is *path) (changed bool) {
	old, a := is.attrs, is.attrs.received()
	is.attrs = a
	ok, reason := true, ""
	if a.blackhole && !p.config.Blackhole {
		ok, reason = false, "carries the community BLACKHOLE, which this peer may not use"
	} else if a.blackhole && d.key.Prefix().Bits() == 0 {
		ok, reason = false, "carries the community BLACKHOLE, and would discard everything"
	} else if r.config.Import != nil {
		ok, reason = r.config.Import(p.config.Address, d.key.Prefix(), a.nextHop)
	}
	if ok {
		is.attrs, ok, reason = p.filterIn(d, a)
	}
	was, had := p.refused[is]
	is.refused = !ok
	if ok {
		delete(p.refused, is)
		return had || is.attrs != old
	}
	why := unique.Make(cmp.Or(reason, "refused"))
	if p.refused == nil {
		p.refused = map[*path]unique.Handle[string]{}
	}
	p.refused[is] = why
	return !had || why != was
}

// remove takes a path of the peer away.
func (r *rib) remove(p *peer, d *dest, old *path) {
	last := len(p.in) - 1
	moved := p.in[last]
	moved.at(p, uint32(last)).at, p.in[old.at], p.in[last] = old.at, moved, nil
	if p.in = p.in[:last]; last == 0 {
		p.in = nil
	}
	delete(p.refused, old)
	if delete(p.ids, old); len(p.ids) == 0 {
		p.ids = nil
	}
	d.take(old)
	r.mark(d)
}

// reimport asks Import again about every path.
func (r *rib) reimport() {
	for _, p := range r.peers {
		for d, path := range p.all() {
			if r.judge(p, d, path) {
				r.mark(d)
			}
		}
	}
	// SinglePath may answer differently, too.
	for _, d := range r.dests {
		if d.paths != nil && d.paths.next != nil {
			r.mark(d)
		}
	}
}

// reinstall tells the Installer again of best paths over one of the next hops.
func (r *rib) reinstall(nextHops map[netip.Addr]bool) {
	var b batch
	for _, d := range r.dests {
		if slices.ContainsFunc(d.installed.addrs(), func(a netip.Addr) bool { return nextHops[a] }) {
			r.install(&b, d, d.installed)
		}
	}
	r.hand(&b)
}

// flush decides about everything that changed, tells the Installer and then
// the peers. Nothing waits for more.
func (r *rib) flush() {
	released := r.release()
	var b batch
	var changed []*aggregate
	settle := func(d *dest) {
		if now := r.decide(d); !slices.Equal(now.addrs(), d.installed.addrs()) {
			r.install(&b, d, now)
		}
		if g := r.gather(d); g != nil && !slices.Contains(changed, g) {
			changed = append(changed, g)
		}
	}
	for _, d := range r.dirty {
		settle(d)
	}
	for i := 0; i < len(changed); i++ {
		if d := r.assemble(changed[i]); d != nil {
			settle(d)
		}
	}
	r.hand(&b)
	for _, g := range r.groups {
		g.flush(r.dirty)
	}
	if released {
		for _, p := range r.peers {
			if p.session != nil {
				p.session.mark()
			}
		}
	}
	r.look()
	for _, d := range r.dirty {
		d.dirty = false
		if d.paths == nil {
			delete(r.dests, d.key)
		}
	}
	r.dests = routing.Fit(r.dests, &r.most)
	clear(r.dirty)
	if r.dirty = r.dirty[:0]; cap(r.dirty) > installBatch {
		r.dirty = nil
	}
}

// decide sets d's best path and returns the next hops to be installed.
func (r *rib) decide(d *dest) *hops {
	if only := d.paths; only != nil && only.next == nil && !only.refused {
		if d.best = only; only.peer == nil && only.attrs.aggregate == 0 {
			return nil
		}
		return only.attrs.hops()
	}
	best, equal := decide(slices.DeleteFunc(slices.Collect(d.all()), func(p *path) bool { return p.refused }))
	switch d.best = best; {
	case best == nil, best.peer == nil && best.attrs.aggregate == 0:
		return nil
	case best.peer == nil:
		return best.attrs.hops()
	}
	outside := func(p *path) bool { return p.peer.config.Outside }
	if len(equal) > 1 && r.config.SinglePath != nil && r.config.SinglePath(d.key.Prefix()) {
		if !outside(best) {
			return nextHops([]*path{best})
		}
		equal = slices.DeleteFunc(equal, func(p *path) bool { return !outside(p) })
	}
	return nextHops(most(equal, r.config.MaxPaths))
}

// route is d as the kernel has it.
func (d *dest) route() Route {
	out := Route{Prefix: d.key.Prefix(), NextHops: d.installed.addrs(), Stale: d.best.stale}
	if d.best.peer != nil {
		out.Peer = d.best.peer.config.Address
	}
	return out
}

// routes lists what is installed.
func (r *rib) routes() []Route {
	var all []Route
	for _, d := range r.dests {
		if len(d.installed.addrs()) > 0 && d.best != nil {
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
		if d.paths == nil || d.paths.next == nil {
			continue
		}
		var paths []*path
		for p := range d.all() {
			if p.peer != nil && !p.refused && !p.peer.config.Outside {
				paths = append(paths, p)
			}
		}
		// Reflectors tell the same path several times over.
		if len(paths) == 0 {
			continue
		}
		if hops := nextHops(paths).addrs(); len(hops) > 1 && r.config.SinglePath(d.key.Prefix()) {
			all = append(all, Conflict{d.key.Prefix(), hops})
		}
	}
	slices.SortFunc(all, func(a, b Conflict) int { return a.Prefix.Compare(b.Prefix) })
	return all
}
