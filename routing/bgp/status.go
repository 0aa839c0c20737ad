package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// mostRefused bounds Session.Refused.
const mostRefused = 100

// Status returns all sessions by address; nil unless Run is running.
func (s *Speaker) Status() []Session {
	var all []Session
	s.ask(func() {
		for _, p := range s.rib.peers {
			all = append(all, p.status())
		}
	})
	slices.SortFunc(all, func(a, b Session) int { return a.Peer.Compare(b.Peer) })
	return all
}

// Crossed says of the sessions that are up and have PeerConfig.Spare whether they go over
// one of those, as they do while IPv4 does not get through; nil unless Run is running.
func (s *Speaker) Crossed() map[netip.Addr]bool {
	var all map[netip.Addr]bool
	s.ask(func() {
		all = map[netip.Addr]bool{}
		for a, p := range s.rib.peers {
			if p.session != nil && len(p.config.Spare) > 0 {
				all[a] = p.session.local.Is4() != a.Is4()
			}
		}
	})
	return all
}

// Routes returns what the Installer was told, by prefix; nil unless Run is
// running.
func (s *Speaker) Routes() []Route {
	var all []Route
	s.ask(func() { all = s.rib.routes() })
	return all
}

// Conflicts returns the prefixes that several next hops are announced for and only one may be.
func (s *Speaker) Conflicts() []Conflict {
	var all []Conflict
	s.ask(func() { all = s.rib.conflicts() })
	return all
}

// status is called in the RIB's goroutine.
func (p *peer) status() Session {
	f := p.fsm
	f.mu.Lock()
	shown := f.shown
	f.mu.Unlock()
	s := Session{
		Peer: p.config.Address, Description: p.config.Description, AS: p.config.AS,
		Local: shown.local, State: shown.state, Since: shown.since,
		Reason: shown.reason, ReasonAt: shown.reasonAt, Retry: shown.retry, Notice: shown.notice, NoticeAt: shown.noticeAt,
		Received: len(p.in), Established: p.ups, Off: p.config.Shutdown != "", Full: p.isFull(), Limit: p.config.PrefixLimit,
		MessagesIn: f.count.messagesIn.Load(), MessagesOut: f.count.messagesOut.Load(),
		UpdatesIn: f.count.updatesIn.Load(), UpdatesOut: f.count.updatesOut.Load(),
	}
	s.Offered = f.speaker.openFor(p.config, p.ups > 0).words()
	if up := p.session; up != nil {
		s.Heard, s.AS = up.open.words(), up.open.as
		s.RouterID, s.HoldTime, s.Notification = up.open.id, up.hold, up.notification
		s.GracefulRestart = up.open.gr != nil && up.open.gr.listed != [2]bool{}
		for family, on := range up.families {
			if on {
				s.Families = append(s.Families, Family(family))
			}
		}
		s.Sent = len(up.group.sent) - up.group.sources[p]
	}
	for d, path := range p.all() {
		if path.stale {
			s.Stale++
		}
		if !path.refused {
			s.Accepted++
		} else {
			s.Refused = append(s.Refused, Refused{d.key.Prefix(), path.attrs.nextHop, p.refused[path].Value()})
		}
	}
	slices.SortFunc(s.Refused, func(a, b Refused) int { return a.Prefix.Compare(b.Prefix) })
	if len(s.Refused) > mostRefused {
		s.Refused = s.Refused[:mostRefused:mostRefused]
	}
	return s
}

// Words returns state and reason in one line: "Established", "Active:
// connection refused", "Idle: bad peer AS 64512, retry in 8 s".
func (s Session) Words(now time.Time) string {
	text := s.State
	if s.State == "Established" || s.Reason == "" {
		return text
	}
	text += ": " + s.Reason
	if d := s.Retry.Sub(now); s.State == "Idle" && d > 0 {
		text += fmt.Sprintf(", retry in %d s", (d+time.Second-1)/time.Second)
	}
	return text
}
