package bgp

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"netctl/routing"
)

// group is the Adj-RIB-Out of all peers that are told the same: what is decided,
// packed and encoded once goes to each. Peers differ in one thing only: the
// source of a path is not told its own.
type group struct {
	rib     *rib
	look    outlook
	members []*session
	joining []*session
	sent    map[nlri]told
	// sources counts the entries of sent by the peer that is left out.
	sources map[*peer]int
	// lanes are by prefix the paths that have IDs; see paths.go.
	lanes map[routing.Packed][]lane
}

// session is an Established session as the RIB sees it.
type session struct {
	peer     *peer
	conn     *conn
	open     *open // the peer's
	families [2]bool
	// takes and sends say of which families several paths to a prefix come, and go (RFC 7911).
	takes, sends [2]bool
	hold         time.Duration
	since        time.Time // it is Established
	// long is by Family how long paths are kept behind the peer's restart time (RFC 9494).
	long [2]time.Duration
	// notification: both sides said N (RFC 8538).
	notification bool
	enhanced     bool       // both sides mark what they tell again (RFC 7313)
	extended     bool       // both sides said that messages may be extended (RFC 8654)
	crossing     bool       // both sides said that IPv4 prefixes may have IPv6 next hops (RFC 8950)
	local        netip.Addr // our end
	localAS      uint32
	look         outlook
	group        *group
	// behind holds the prefixes that a full queue did not take; nil as long as
	// the peer keeps up.
	behind map[nlri]struct{}
	// former is what the group told that the session left for this one; nil: it left
	// none, or was told the difference. formerLook is that group's.
	former     map[nlri]told
	formerLook outlook
	// markers are owed behind these; settles: the time for the first will come.
	markers    []marker
	settles    bool
	refreshing [2]refreshing // by Family
	// heard says of which families the peer's End-of-RIB came.
	heard [2]bool
}

// told is what a group was told about a prefix; the source was not.
type told struct {
	attrs  *attrs
	source *peer
}

// parcel is one message to be: prefixes of a family, announced with attrs or
// withdrawn, to all but one, or to one only.
type parcel struct {
	parcelKey
	prefixes []nlri
}

type parcelKey struct {
	attrs        *attrs // nil: withdrawn
	family       Family
	except, only *peer
}

// parcels collects prefixes by what they share, in order of appearance.
type parcels struct {
	list  []*parcel
	index map[parcelKey]*parcel
}

func (ps *parcels) add(k parcelKey, n nlri) {
	if k.family = IPv4; !n.prefix.Is4() {
		k.family = IPv6
	}
	p := ps.index[k]
	if p == nil {
		if ps.index == nil {
			ps.index = map[parcelKey]*parcel{}
		}
		p = &parcel{parcelKey: k}
		ps.index[k] = p
		ps.list = append(ps.list, p)
	}
	p.prefixes = append(p.prefixes, n)
}

// join makes s a member of the group that it belongs to, from the next flush.
func (r *rib) join(s *session) {
	g := r.groups[s.look]
	if g == nil {
		g = &group{rib: r, look: s.look, sent: map[nlri]told{}, sources: map[*peer]int{}, lanes: map[routing.Packed][]lane{}}
		r.groups[s.look] = g
		for _, d := range r.dests {
			if !d.dirty {
				g.tell(d, nil)
			}
		}
	}
	s.group = g
	g.joining = append(g.joining, s)
}

// regroup moves a session to another group: with the next flush it is told the
// difference, and everything again where that is written in another way.
func (r *rib) regroup(s *session, look outlook) {
	if s.look == look {
		return
	}
	old := s.group
	if s.former == nil && !slices.Contains(old.joining, s) {
		s.former, s.formerLook = maps.Clone(old.sent), s.look
	}
	r.leave(s)
	s.look = look
	r.join(s)
}

// differ tells a session what its former group did not.
func (g *group) differ(s *session) {
	var ps parcels
	alike := s.formerLook.writing() == g.look.writing()
	for n, t := range g.sent {
		was, had := s.former[n]
		if had = alike && had && was.source != s.peer; t.source != s.peer && !(had && was.attrs.same(t.attrs)) {
			ps.add(parcelKey{attrs: t.attrs}, n)
		}
	}
	for n, was := range s.former {
		if t, has := g.sent[n]; was.source != s.peer && (!has || t.source == s.peer) {
			ps.add(parcelKey{}, n)
		}
	}
	s.former = nil
	for _, p := range ps.list {
		g.deliver(p, []*session{s}, false)
	}
}

// leave is the inverse of join.
func (r *rib) leave(s *session) {
	g := s.group
	is := func(m *session) bool { return m == s }
	g.members, g.joining = slices.DeleteFunc(g.members, is), slices.DeleteFunc(g.joining, is)
	if len(g.members)+len(g.joining) == 0 {
		delete(r.groups, g.look)
	}
}

// export is the path that the group is told for one to d that it would be told, unless a
// filter says otherwise; nil for none.
func (g *group) export(d *dest, best *path) *path {
	family := d.family()
	switch {
	case best == nil || best.attrs.adopted || !g.look.families[family] || !g.look.hop(best.attrs, family).IsValid():
		return nil
	case best.attrs.noAdvertise, best.attrs.noExport && g.look.external, best.attrs.blackhole && best.peer != nil:
		return nil // RFC 1997; RFC 7999, section 3.2
	case best.attrs.longStale && !g.look.longLived:
		return nil // "SHOULD NOT be advertised to any neighbor from which the … Capability has not been received" (RFC 9494, section 4.3)
	case best.attrs.aggregate > 0 && (!g.look.aggregate || g.look.ownOnly && best.attrs.aggregate != aggregateOwn), g.hides(d):
		return nil
	case best.peer == nil:
		return best
	case best.external() && best.peer.config.Outside:
		return nil // no transit
	case g.look.ownOnly:
		return nil
	case best.external() || g.look.external:
		return best
	case g.look.client || best.peer.config.Client:
		// "A route from a Non-Client IBGP peer: Reflect to all the Clients. A route from
		// a Client peer: Reflect to all the Non-Client peers and also to the Client peers"
		// (RFC 4456, section 6). The source is left out by all.
		if g.rib.deferred.to(&g.look, family) {
			return nil
		}
		return best
	}
	// "not … re-advertise … to other internal peers" (RFC 4271, section 9.2).
	return nil
}

// tell brings g.sent up to date for d and notes in ps what that means.
func (g *group) tell(d *dest, ps *parcels) {
	if g.look.ids[d.family()] {
		g.tellAll(d, ps)
		return
	}
	n := nlri{prefix: d.key}
	have, had := g.sent[n]
	var attrs *attrs
	want := g.export(d, d.best)
	if want != nil {
		attrs, _ = g.filterOut(d, want)
	}
	if attrs == nil {
		if had {
			g.forget(n, have)
			ps.add(parcelKey{except: have.source}, n)
		}
		return
	}
	if had && have.source == want.peer && have.attrs.same(attrs) {
		return
	}
	if had {
		g.forget(n, have)
	}
	g.sent[n] = told{attrs, want.peer}
	g.sources[want.peer]++
	if ps == nil {
		return
	}
	ps.add(parcelKey{attrs: attrs, except: want.peer}, n)
	if had && have.source != want.peer && want.peer != nil {
		ps.add(parcelKey{only: want.peer}, n)
	}
}

func (g *group) forget(n nlri, t told) {
	delete(g.sent, n)
	if g.sources[t.source]--; g.sources[t.source] == 0 {
		delete(g.sources, t.source)
	}
}

// flush tells the members what changed, and those that join everything.
func (g *group) flush(dirty []*dest) {
	var ps parcels
	for _, d := range dirty {
		g.tell(d, &ps)
	}
	for _, p := range ps.list {
		g.deliver(p, g.members, len(ps.list) == 1)
	}
	if len(g.joining) == 0 {
		return
	}
	joined := g.joining
	g.joining = nil
	g.members = append(g.members, joined...)
	var fresh []*session
	for _, s := range joined {
		if s.former != nil {
			g.differ(s)
		} else {
			fresh = append(fresh, s)
		}
	}
	if len(fresh) == 0 {
		return
	}
	for f, on := range g.look.families {
		if !on {
			continue
		}
		g.dump(fresh, Family(f))
		for _, s := range fresh {
			s.markers = append(s.markers, marker{family: Family(f)})
			s.mark()
		}
	}
}

// dump sends all that the group was told of a family.
func (g *group) dump(to []*session, family Family) {
	var ps parcels
	for n, t := range g.sent {
		if n.prefix.Is4() == (family == IPv4) {
			ps.add(parcelKey{attrs: t.attrs, except: t.source}, n)
		}
	}
	for _, p := range ps.list {
		g.deliver(p, to, false)
	}
}

// atOnce is how many sessions the RIB's own goroutine writes a message to; what more there
// are, their writers share among the CPUs meanwhile.
const atOnce = 64

// deliver packs a parcel once and queues the same bytes to each. One that is alone, and a
// single message, goes out at once; many are for the writers, which send them in one go.
func (g *group) deliver(p *parcel, to []*session, alone bool) {
	var b blob
	for i, s := range to {
		if s.peer == p.except && p.except != nil || p.only != nil && s.peer != p.only {
			continue
		}
		if b.bytes == nil {
			b = g.pack(p)
		}
		if s.behind == nil && s.conn.queue(b, alone && b.messages == 1 && i >= len(to)-atOnce) {
			continue
		}
		if s.behind == nil {
			s.behind = map[nlri]struct{}{}
			g.rib.log.Debug("peer falls behind", "peer", s.peer.config.Address)
		}
		for _, n := range p.prefixes {
			s.behind[n] = struct{}{}
		}
	}
}

// pack encodes a parcel. Attributes that leave no room for a prefix cannot be
// announced: the prefixes are withdrawn instead.
func (g *group) pack(p *parcel) blob {
	if p.attrs == nil {
		return g.look.withdraw(p.prefixes, p.family)
	}
	b, ok := g.look.announce(p.attrs, p.prefixes, p.family)
	if !ok {
		g.rib.log.Warn("attributes too long to be announced", "prefixes", len(p.prefixes))
		for _, n := range p.prefixes {
			if t, ok := g.sent[n]; ok && t.attrs == p.attrs {
				g.forget(n, t)
			}
		}
		return g.look.withdraw(p.prefixes, p.family)
	}
	return b
}

// drained sends a peer that fell behind what it missed, as it is now.
func (r *rib) drained(s *session) {
	if s.peer.session != s {
		return
	}
	missed := s.behind
	s.behind = nil
	var ps parcels
	for n := range missed {
		if t, ok := s.group.sent[n]; ok && (t.source == nil || t.source != s.peer) {
			ps.add(parcelKey{attrs: t.attrs}, n)
		} else {
			ps.add(parcelKey{}, n)
		}
	}
	for _, p := range ps.list {
		s.group.deliver(p, []*session{s}, false)
	}
	s.mark()
}

// settling is how long a peer that restarts and asks others for its next hops has for that,
// until it is told that this was all.
const settling = time.Second

// hasty says whether it is too early for an End-of-RIB. FRR asks zebra for next hops that it
// has not met before, as those at the end of a link or of a reflector's clients, and counts
// routes over them as unusable until that answers; an End-of-RIB in the same moment has it
// choose without them, and zebra delete what the kernel had (measured with 8.4.4: 46 ms
// without the routes). It says after a second itself.
func (s *session) hasty() bool {
	wait := settling - time.Since(s.since)
	if !s.open.named || s.open.gr == nil || !s.open.gr.restarting || wait <= 0 {
		return false
	}
	if !s.settles {
		s.settles = true
		s.group.rib.after(wait, func() {
			if s.peer.session == s {
				s.mark()
			}
		})
	}
	return true
}

// marker says that this was all of a family: an End-of-RIB, or once all was told again an
// EoRR (RFC 7313).
type marker struct {
	family  Family
	refresh bool
}

// mark sends the markers that are owed, once nothing is missing before them
// and the queue has room; else drained does, or the end of the deferral.
func (s *session) mark() {
	for s.behind == nil && len(s.markers) > 0 {
		switch m := s.markers[0]; {
		case m.refresh:
			s.conn.say(routeRefresh(m.family, refreshEnd))
		case s.hasty():
			return
		case s.group.rib.deferred.to(&s.look, m.family) || !s.conn.queue(endOfRIB(m.family), false):
			return
		}
		s.markers = s.markers[1:]
	}
}
