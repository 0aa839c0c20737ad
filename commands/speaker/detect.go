package speaker

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/routing"
	"netctl/routing/bfd"
	"netctl/routing/bgp"
)

// detect has BFD watch the paths to the peers that are to be watched so.
func (l *loop) detect() {
	peers := watchable(l.plan, func(a netip.Addr) bool {
		return l.bare || l.watched[a] || slices.ContainsFunc(l.subnets, func(s netip.Prefix) bool { return s.Contains(a) })
	})
	l.watched = map[netip.Addr]bool{}
	for _, p := range peers {
		l.watched[p.Address] = true
	}
	l.detector.Configure(peers)
}

// watchable are the peers whose paths are to be watched. Nodes must be near, in a connected
// subnet; those that are watched stay so when that goes, since then above all. Who is
// configured is a neighbour because somebody said so.
func watchable(plan routing.Plan, near func(netip.Addr) bool) (peers []bfd.Peer) {
	for _, p := range plan.Peers {
		timers, off := plan.BFD, p.Drained != "" || !near(p.Address)
		if c := p.Configured; c != nil {
			timers, off = c.Spec.BFD, p.Drained != "" || c.Spec.Shutdown != ""
		}
		if timers == nil || off {
			continue
		}
		peers = append(peers, bfd.Peer{
			Address: p.Address, Local: p.Local, Interval: time.Duration(timers.Interval) * time.Millisecond, Multiplier: uint8(timers.Multiplier),
			Away: time.Duration(plan.RestartTime) * time.Second,
		})
	}
	return peers
}

// pathDown ends the BGP session with a peer that BFD does not reach any more.
func (s *state) pathDown(peer netip.Addr, heard time.Time, why string) {
	if engine, _, err := s.running(); err == nil {
		engine.PathDown(peer, heard, why)
	}
}

// watched are the paths that BFD watches, by peer.
func (s *state) watched() map[netip.Addr]bfd.Status {
	if s.detector == nil {
		return nil
	}
	all := map[netip.Addr]bfd.Status{}
	for _, st := range s.detector.Status() {
		all[st.Peer] = st
	}
	return all
}

// patience is how long BFD may take to come up, a packet a second, until that is said.
const patience = 5 * time.Second

// unwatched says which configured peers have a session that BFD is to watch, and cannot.
// Of nodes that is no problem: one may be BIRD, or an older netctl.
func unwatched(plan routing.Plan, sessions []bgp.Session, paths map[netip.Addr]bfd.Status) (problems []string) {
	for _, e := range sessions {
		st, asked := paths[e.Peer]
		configured := slices.ContainsFunc(plan.Peers, func(p routing.Peer) bool { return p.Address == e.Peer && p.Configured != nil })
		if !asked || !configured || e.State != "Established" || st.State == bfd.Up || time.Since(st.Since) < patience {
			continue
		}
		problems = append(problems, fmt.Sprintf("BFD with %s is %s; until it is up only the hold time finds a dead path", plan.Names([]netip.Addr{e.Peer}), st.Words()))
	}
	return problems
}

// showBFD is what `netctl bgp session` says of BFD.
func showBFD(st bfd.Status) *control.BFDSession {
	return &control.BFDSession{
		State: st.State.String(), RemoteState: st.RemoteState.String(), Since: utc(st.Since), Ups: st.Ups,
		Interval: float64(st.Every) / float64(time.Millisecond), Detection: float64(st.Detection) / float64(time.Millisecond),
		LastDiagnostic: st.LastDiagnostic(), LastDiagnosticAt: utc(st.DiagAt), Discriminator: st.Mine, RemoteDiscriminator: st.Yours, In: st.In, Out: st.Out,
	}
}
