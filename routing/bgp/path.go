package bgp

import (
	"net/netip"
	"time"
)

// PathDown ends a peer's session with Cease/BFD Down (RFC 9384), since something else has
// found that the path to it is dead, and removes its routes at once. heard is when the path
// was last known to be good: a session that came up later is another than that path was
// watched for, as when the peer restarted, and stays; so do routes that are kept for a peer
// that is restarting (RFC 5882, section 4.3.2).
func (s *Speaker) PathDown(peer netip.Addr, heard time.Time, why string) {
	s.order(func() {
		p := s.rib.peers[peer]
		if p == nil || p.session == nil || p.session.since.After(heard) {
			return
		}
		flt := cease(ceaseBFD, "")
		flt.words += ": " + why
		// Not when the NOTIFICATION is sent, which on such a path may take a while.
		s.rib.down(p.session, endHard)
		p.fsm.end(flt)
	})
}
