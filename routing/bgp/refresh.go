package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// Subtypes of ROUTE-REFRESH (RFC 7313, section 3.2).
const (
	refreshRequest uint8 = 0 // RFC 2918
	refreshBegin   uint8 = 1 // BoRR
	refreshEnd     uint8 = 2 // EoRR
)

// refreshPause is how long a session rests after a ROUTE-REFRESH was answered: those
// that come meanwhile cost one dump together.
const refreshPause = time.Second

// repeatTime is how long a peer may take from BoRR to EoRR, until what it has not
// repeated goes (RFC 7313, section 4: "an upper bound on how long").
const repeatTime = 6 * time.Minute

// refreshing is what becomes of the next ROUTE-REFRESH of a family, and of the peer's own.
type refreshing struct {
	rests, again bool
	// repeats runs from the peer's BoRR to its EoRR.
	repeats *time.Timer
}

// refreshed takes a ROUTE-REFRESH apart; ok is false for one that means nothing here.
func (e *established) refreshed(body []byte) (c change, ok bool, f *fault) {
	family, known := familyFrom(binary.BigEndian.Uint16(body), body[3])
	c = change{family: family, refresh: body[2] + 1}
	switch {
	case body[2] == refreshRequest:
	case !e.enhanced || body[2] > refreshEnd:
		return c, false, nil
	case len(body) != 4:
		// "the Data field … MUST contain the complete ROUTE-REFRESH message" (section 5).
		whole := finish(append(appendHeader(nil, codec.BGP_MSG_ROUTE_REFRESH), body...), 0)
		return c, false, &fault{codeRefresh, 1, whole, fmt.Sprintf("ROUTE-REFRESH of %d bytes", len(whole))}
	}
	return c, known && e.decoder.families[family], nil
}

// routeRefresh is a ROUTE-REFRESH (RFC 2918, section 3; RFC 7313, section 3.2).
func routeRefresh(family Family, subtype uint8) []byte {
	afi, safi := codec.RouteFamilyToAfiSafi(family.routeFamily())
	return finish(append(appendHeader(nil, codec.BGP_MSG_ROUTE_REFRESH), byte(afi>>8), byte(afi), subtype, safi), 0)
}

// refresh tells a peer again what its group was told (RFC 2918), between the markers of
// RFC 7313 if it knows them; those come behind the End-of-RIB.
func (r *rib) refresh(s *session, family Family) {
	state := &s.refreshing[family]
	if state.rests {
		state.again = true
		return
	}
	state.rests, state.again = true, s.enhanced && (s.behind != nil || len(s.markers) > 0)
	if !state.again {
		if s.enhanced {
			s.conn.say(routeRefresh(family, refreshBegin))
		}
		s.group.dump([]*session{s}, family)
		if s.enhanced {
			s.markers = append(s.markers, marker{family, true})
			s.mark()
		}
	}
	r.after(refreshPause, func() {
		again := state.again
		state.rests, state.again = false, false
		if again && s.peer.session == s {
			r.refresh(s, family)
		}
	})
}

// repeat is the peer's BoRR: what it has announced is to be announced again until its
// EoRR (RFC 7313, section 4). One that comes before the End-of-RIB is ignored.
func (r *rib) repeat(s *session, family Family) {
	if s.open.gr != nil && s.open.gr.listed[family] && !s.heard[family] {
		return
	}
	for d, path := range s.peer.all() {
		path.due = path.due || d.family() == family
	}
	state := &s.refreshing[family]
	if state.repeats != nil {
		state.repeats.Stop()
	}
	var t *time.Timer
	t = r.after(repeatTime, func() {
		if s.peer.session == s && state.repeats == t {
			r.log.Warn("peer does not end what it began to repeat", "peer", s.peer.config.Address, "family", family)
			r.repeated(s, family)
			r.fill(s.peer)
		}
	})
	state.repeats = t
}

// repeated is the peer's EoRR: what it did not announce again is gone. "An EoRR without
// a BoRR" is ignored.
func (r *rib) repeated(s *session, family Family) {
	state := &s.refreshing[family]
	if state.repeats == nil {
		return
	}
	state.repeats.Stop()
	state.repeats = nil
	for d, path := range s.peer.all() {
		if path.due && d.family() == family {
			r.remove(s.peer, d, path)
		}
	}
}

// Refresh asks a peer to tell everything again.
func (s *Speaker) Refresh(peer netip.Addr) (err error) {
	err = fmt.Errorf("peer %v: the speaker does not run", peer)
	s.ask(func() {
		switch p := s.rib.peers[peer]; {
		case p == nil || p.session == nil:
			err = fmt.Errorf("peer %v: the session is not up", peer)
		case !p.session.open.refresh:
			err = fmt.Errorf("peer %v: has no capability to tell its routes again (route refresh, RFC 2918)", peer)
		default:
			err = nil
			for f, on := range p.session.families {
				if on {
					p.session.conn.say(routeRefresh(Family(f), refreshRequest))
				}
			}
		}
	})
	return err
}
