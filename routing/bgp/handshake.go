package bgp

import (
	"context"
	"slices"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"netctl/datastore"
)

// second takes a connection beside the one that the state is about. There is
// room for one: the newest stays.
func (f *fsm) second(ctx context.Context, c *conn) {
	if f.rival != nil {
		f.rival.end(ctx, nil)
	}
	f.rival = c
	f.start(c)
	time.AfterFunc(reserve, c.greet)
}

// reserve is how long our OPEN on a second connection waits for the peer's.
//
// As long as it is not sent the peer has the choice between the two no more than we have: it
// cannot be further on this one than to have sent its OPEN. So the first one stays if the
// OPENs on it are exchanged, where the identifiers may say otherwise: then the peer may be
// Established on it as soon as our KEEPALIVE is there, and to BIRD, which closes the second
// one itself, the end of the first is a second loss in one graceful restart, at which it
// deletes the routes.
const reserve = time.Second

// undisputed says whether y stays whatever the identifiers are: c is of the other side's
// dialling, and our OPEN is not sent on it.
func undisputed(y, c *conn) bool { return !c.greeted.Load() && c.dialled != y.dialled }

// other is the connection that c may collide with.
func (f *fsm) other(c *conn) *conn {
	if c == f.conn {
		return f.rival
	}
	return f.conn
}

// opened handles the peer's OPEN on one of the connections in OpenSent or
// OpenConfirm.
func (f *fsm) opened(ctx context.Context, c *conn, body []byte) (next state, leave bool) {
	o, flt := f.judge(body)
	if flt != nil {
		// "If the BGP message header checking (Event 21) or OPEN message
		// checking detects an error (Event 22) …, the local system sends a
		// NOTIFICATION message with the appropriate error code".
		return f.failed(ctx, c, flt, nil, flt.words)
	}
	if y := f.other(c); y != nil && y.open != nil {
		loser := f.collide(c, y, o)
		if undisputed(y, c) {
			loser = c
		}
		loser.end(ctx, cease(ceaseCollision, ""))
		if loser == c { // y is the state's: only that one has an OPEN
			f.rival = nil
			return nil, false
		}
		f.conn, f.rival = c, nil
	} else {
		f.conn, f.rival = c, y
	}
	f.agree(c, o)
	c.goOn()
	return f.openConfirm, true
}

// collide picks the connection to be closed (RFC 4271, section 6.8): the one
// that was initiated by the speaker with the lower BGP identifier.
func (f *fsm) collide(a, b *conn, o *open) (loser *conn) {
	if a.dialled == b.dialled {
		// Both from one side: the peer forgot the older one.
		if a.born.Before(b.born) {
			return a
		}
		return b
	}
	weAreHigher := f.speaker.config.RouterID.Compare(o.id) > 0
	if a.dialled == weAreHigher {
		return b
	}
	return a
}

// judge reads and checks an OPEN.
func (f *fsm) judge(body []byte) (*open, *fault) {
	o, flt := parseOpen(body)
	if flt == nil {
		flt = o.accept(f.speaker.openFor(f.config, f.wasUp), f.config.AS)
	}
	return o, flt
}

// agree settles what both OPENs say and answers with a KEEPALIVE.
func (f *fsm) agree(c *conn, o *open) {
	c.open = o
	c.greet()
	hold := f.holdTime(o)
	c.hold.Store(int64(hold))
	// "If the negotiated hold time value is zero, then the HoldTimer and
	// KeepaliveTimer are not started." A third of it is "reasonable"
	// (section 4.4).
	c.say(keepalive())
	beat := hold / 3
	if k := f.config.KeepaliveTime; k > 0 {
		beat = min(beat, k)
	}
	c.beatEvery(beat)
}

// holdTime is "the smaller of its configured Hold Time and the Hold Time
// received in the OPEN message" (section 4.2).
func (f *fsm) holdTime(o *open) time.Duration { return min(f.config.hold(), o.hold) }

// hold is the hold time to be offered.
func (p PeerConfig) hold() time.Duration {
	if p.HoldTime < 0 {
		return DefaultHoldTime
	}
	return p.HoldTime
}

// failed ends one of the connections. The state is left when it was the one
// that the state is about: for the other's, if there is one.
func (f *fsm) failed(ctx context.Context, c *conn, send, got *fault, words string) (next state, leave bool) {
	c.end(ctx, send)
	if send != nil {
		f.noted("this side said " + send.words)
	} else if got != nil {
		f.noted(got.words)
	}
	y := f.other(c)
	if c == f.rival {
		f.rival = nil
		return nil, false
	}
	f.conn, f.rival = y, nil
	if y != nil {
		y.greet()
		return f.openSent, true
	}
	f.because(words)
	if send != nil && send.holds() || got != nil && got.holds() {
		return f.rest, true
	}
	return f.active, true
}

// rest holds the peer idle: DampPeerOscillations (RFC 4271, section 8.1.1).
func (f *fsm) rest(context.Context) state {
	f.idleTime = min(max(2*f.idleTime, shortestIdle), longestIdle)
	f.idleUntil = time.Now().Add(f.idleTime)
	return f.idle
}

// down closes everything on order and goes to Idle: "ManualStop (Event 2) …
// sends the NOTIFICATION with a Cease".
func (f *fsm) down(ctx context.Context, flt *fault) state {
	for _, c := range []*conn{f.conn, f.rival} {
		if c != nil {
			c.end(ctx, flt)
		}
	}
	f.conn, f.rival = nil, nil
	f.abandon()
	f.failures = 0
	if flt != nil {
		f.noted("this side said " + flt.words)
		f.because(flt.words)
		if flt.isLimit() {
			f.limited, f.stays = f.config.limits(), f.config.LimitRest < 0
		}
		switch rest := f.config.LimitRest; {
		case f.stays:
		case flt.isLimit() && rest > 0:
			f.idleUntil = time.Now().Add(rest)
		case flt.holds():
			return f.rest
		}
	}
	return f.idle
}

// established exchanges UPDATEs: the reader and the RIB do.
func (f *fsm) established(ctx context.Context) state {
	s := f.session()
	since := time.Now()
	s.since = since
	f.wasUp, f.failures, f.silent = true, 0, 0
	if !f.speaker.do(ctx, func() { f.speaker.rib.up(s) }) {
		return nil
	}
	f.enter("Established")
	f.log.Info("session is established", "hold", s.hold, datastore.EventSession.Mark())
	f.conn.goOn()
	f.abandon()
	e, next := f.exchange(ctx, s, since)
	if ctx.Err() != nil {
		return nil
	}
	if time.Since(since) >= steady {
		f.idleTime = 0
	}
	<-s.conn.quiet
	if !f.speaker.do(ctx, func() { f.speaker.rib.down(s, e) }) {
		return nil
	}
	return next
}

// exchange waits for the end of a session, closes its connection and says what
// becomes of the routes.
func (f *fsm) exchange(ctx context.Context, s *session, since time.Time) (ending, state) {
	for {
		ev := f.next(ctx, nil)
		switch ev.what {
		case stopped:
			return endLost, nil
		case mustEnd:
			return f.dismiss(ctx, s, ev.fault)
		case connected:
			// "will be tracked until an OPEN message is received" (section
			// 8.2.2, Established, Events 16 and 17).
			f.second(ctx, ev.conn)
		case lost:
			if ev.in.conn == f.rival {
				flt, _ := endWords(ev.in.err)
				f.rival.end(ctx, flt)
				f.rival = nil
				continue
			}
			flt, words := endWords(ev.in.err)
			e := endLost
			if flt != nil {
				// "HoldTimer_Expires (Event 10)", "UpdateMsgErr (Event 28)":
				// a NOTIFICATION with the error's code.
				e = endNotified
			}
			return e, f.leave(ctx, flt, nil, words)
		case received:
			if ev.in.conn == f.rival {
				if next := f.challenged(ctx, s, ev.in, since); next != nil {
					return endLost, next
				}
				continue
			}
			if ev.in.kind == codec.BGP_MSG_NOTIFICATION {
				got := notification(ev.in.body)
				e := endNotified
				switch {
				case got.code == codeCease && got.subcode == ceaseHard:
					e = endHard
				case got.code == codeCease && got.subcode == ceaseCollision:
					e = endLost // of the connection, in favour of another
				}
				return e, f.leave(ctx, nil, got, got.words)
			}
			// An OPEN, or what this section does not know.
			flt := &fault{codeFSM, 3, nil, spell(codeFSM, 3, nil)}
			return endNotified, f.leave(ctx, flt, nil, flt.words)
		}
	}
}

// leave is failed for an Established session.
func (f *fsm) leave(ctx context.Context, send, got *fault, words string) state {
	f.because(words)
	next, _ := f.failed(ctx, f.conn, send, got, words)
	return next
}

// dismiss ends a session on order.
func (f *fsm) dismiss(ctx context.Context, s *session, flt *fault) (ending, state) {
	e := endHard
	if flt == nil { // a peer that leaves
		return e, f.down(ctx, nil)
	}
	if flt.subcode == ceaseChange && flt.code == codeCease {
		// The peers stay; where N was agreed so do the routes.
		e = endNotified
	} else if s.notification {
		flt = flt.hard()
	}
	return e, f.down(ctx, flt)
}

// challenged handles a message on a second connection while Established.
func (f *fsm) challenged(ctx context.Context, s *session, in incoming, since time.Time) state {
	c := f.rival
	if in.kind != codec.BGP_MSG_OPEN {
		c.end(ctx, nil)
		f.rival = nil
		return nil
	}
	o, flt := f.judge(in.body)
	if flt != nil {
		c.end(ctx, flt)
		f.rival = nil
		return nil
	}
	restarted := o.gr != nil && o.gr.restarting && !(s.open.gr != nil && s.open.gr.restarting)
	twin := !restarted && c.born.Sub(since) < twins
	loser := c
	switch {
	case twin:
		// CollisionDetectEstablishedState (section 8.1.1): both sides apply
		// one rule whatever state each is in, else both may close the
		// connection that the other kept.
		if loser = f.collide(c, f.conn, o); undisputed(f.conn, c) {
			loser = c
		}
	case restarted || s.open.gr != nil:
		// "the previous TCP session MUST be closed, and the new one retained"
		// with the routes kept (RFC 4724, section 5).
		loser = f.conn
	}
	if loser == c {
		c.end(ctx, cease(ceaseCollision, ""))
		f.rival = nil
		return nil
	}
	f.because("peer opened a new connection")
	if twin {
		f.conn.end(ctx, cease(ceaseCollision, ""))
	} else {
		f.conn.end(ctx, nil)
	}
	f.conn, f.rival = c, nil
	f.agree(c, o)
	c.goOn()
	return f.openConfirm
}

// session is what the RIB gets to know.
func (f *fsm) session() *session {
	c := f.conn
	mine := f.speaker.openFor(f.config, f.wasUp)
	s := &session{peer: f.peer, conn: c, open: c.open, hold: f.holdTime(c.open), localAS: mine.as}
	for i := range s.families {
		s.families[i] = mine.families[i] && c.open.families[i]
		s.takes[i] = s.families[i] && mine.paths[i]&codec.BGP_ADD_PATH_RECEIVE != 0 && c.open.paths[i]&codec.BGP_ADD_PATH_SEND != 0
		s.sends[i] = s.families[i] && mine.paths[i]&codec.BGP_ADD_PATH_SEND != 0 && c.open.paths[i]&codec.BGP_ADD_PATH_RECEIVE != 0
	}
	s.enhanced = mine.enhanced && c.open.enhanced
	s.extended = mine.extended && c.open.extended
	s.long = mine.long.agreed(c.open.long)
	s.crossing = mine.crossing && c.open.crossing && s.families[IPv4]
	s.notification = c.open.gr != nil && c.open.gr.notification
	if s.local = f.local(c); !s.local.IsValid() {
		s.local = f.config.LocalAddress
	}
	s.look = s.lookFor(f.config)
	s.look.clusterID = f.speaker.config.ClusterID
	to := f.speaker
	c.established = &established{
		decoder: decoder{
			complaints: f.complaints, families: s.families, ids: s.takes, as4: c.open.as4,
			localAS: mine.as, ownAS: f.speaker.config.AS, peerAS: c.open.as, routerID: f.speaker.config.RouterID, localIP: s.local,
			clusterID: f.speaker.config.ClusterID, peerID: c.open.id, crossing: s.crossing, zone: f.config.Address.Zone(),
		},
		room: roomFor(s.extended), enhanced: s.enhanced,
		hand:    func(batch []change) { to.post(func() { to.rib.apply(s, batch) }) },
		drained: func() { to.post(func() { to.rib.drained(s) }) },
	}
	return s
}

// lookFor is how the session's peer is spoken to by a configuration.
func (s *session) lookFor(c PeerConfig) outlook {
	look := outlook{
		external: s.open.as != s.localAS, as4: s.open.as4, localAS: s.localAS, families: s.families, extended: s.extended, crossing: s.crossing, ids: s.sends,
		longLived: s.open.long != nil,
		ownOnly:   c.OwnOnly, mode: c.NextHop, draining: c.Draining, export: c.ExportFilter, aggregate: c.Aggregate,
	}
	if s.sends != [2]bool{} {
		look.paths = c.SendPaths
	}
	more := c.Communities
	if c.Draining {
		more.Standard = append(slices.Clone(more.Standard), GracefulShutdown)
	}
	look.communities, look.large = more.wire()
	if s.local.IsValid() {
		look.nextHop[FamilyOf(s.local)] = s.local
	}
	for _, a := range c.NextHopSelf {
		look.nextHop[FamilyOf(a)] = a
	}
	// Over the other ends of a session between nodes IPv4 does not get through.
	if lost := len(c.Spare) > 0 && s.local.Is6(); s.crossing && (lost || !look.nextHop[IPv4].IsValid()) {
		look.nextHop[IPv4] = look.nextHop[IPv6]
	}
	return look
}

// end orders the session's end; for the RIB, which must not wait.
func (f *fsm) end(flt *fault) {
	f.mu.Lock()
	f.fatal = flt
	f.mu.Unlock()
	f.poke()
}

// want changes the configuration, or removes the peer.
func (f *fsm) want(c PeerConfig, remove bool) {
	f.mu.Lock()
	f.wanted, f.remove = c, f.remove || remove
	f.mu.Unlock()
	f.poke()
}

func (f *fsm) poke() {
	select {
	case f.control <- struct{}{}:
	default:
	}
}
