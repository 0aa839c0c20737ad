package speaker

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bgp"
)

// mostPaths bounds an answer of the looking glass.
const mostPaths = 10_000

// running is the engine and what it runs by.
func (s *state) running() (*bgp.Speaker, routing.Plan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.engine == nil {
		return nil, s.plan, datastore.As(datastore.ErrUnavailable, "the BGP engine does not run: this node has no address or AS number yet")
	}
	return s.engine, s.plan, nil
}

// find is the session's address that a person means by an address, an interface or a name.
func find(plan routing.Plan, text string) (netip.Addr, error) {
	a, _ := netip.ParseAddr(text)
	for _, means := range []func(p routing.Peer) bool{
		func(p routing.Peer) bool { return p.Address == a || p.Interface == text },
		func(p routing.Peer) bool { return p.Name == text },
	} {
		if i := slices.IndexFunc(plan.Peers, means); i >= 0 {
			return plan.Peers[i].Address, nil
		}
	}
	for _, p := range plan.Silent {
		if p.Interface == text || p.Name == text {
			return a, fmt.Errorf("session with %s (%s): %w", text, p.Why, datastore.ErrNotFound)
		}
	}
	return a, fmt.Errorf("peer %s: %w", text, datastore.ErrNotFound)
}

// paths answers `netctl bgp routes`.
func (s *state) paths(q control.BGPQuery) (control.BGPPaths, error) {
	answer := control.BGPPaths{Paths: []control.BGPPath{}}
	engine, plan, err := s.running()
	if err != nil {
		return answer, err
	}
	ask := bgp.Query{Prefix: q.Prefix, Covers: q.Covers, Limit: mostPaths}
	switch q.View {
	case "received":
		ask.View = bgp.ViewReceived
	case "advertised":
		ask.View = bgp.ViewAdvertised
	case "rejected":
		ask.View = bgp.ViewRejected
	}
	if q.Peer != "" {
		if ask.Peer, err = find(plan, q.Peer); err != nil {
			return answer, err
		}
	}
	paths, more := engine.Look(ask)
	for _, p := range paths {
		shown := control.BGPPath{
			Prefix: p.Prefix, Peer: p.Peer, Interface: p.Peer.Zone(), ID: p.ID, NextHop: p.NextHop, ASPath: p.ASPath, Origin: p.Origin, LocalPref: p.LocalPref,
			Communities: p.Communities, Best: p.Best, Used: p.Used, Stale: p.Stale, Why: p.Why,
		}
		if p.HasMED {
			shown.MED = &p.MED
		}
		answer.Paths = append(answer.Paths, shown)
	}
	answer.More = more
	return answer, nil
}

// session answers `netctl bgp session`.
func (s *state) session(peer string, refresh bool) (out control.BGPSession, err error) {
	engine, plan, err := s.running()
	if err != nil {
		return out, err
	}
	address, err := find(plan, peer)
	if err != nil {
		for _, p := range plan.Silent {
			if p.Interface == peer || p.Name == peer {
				return control.BGPSession{Session: control.Session{SessionStatus: silent(p)}, Name: p.Name, Description: p.Name, AS: p.AS}, nil
			}
		}
		return out, err
	}
	if refresh {
		if err := engine.Refresh(address); err != nil {
			return out, err
		}
	}
	all, _ := s.sessions()
	details := engine.Status()
	i := slices.IndexFunc(details, func(e bgp.Session) bool { return e.Peer == address })
	j := slices.IndexFunc(all, func(e control.Session) bool { return e.Peer == address })
	if i < 0 || j < 0 {
		return out, fmt.Errorf("peer %s: %w", peer, datastore.ErrNotFound)
	}
	e := details[i]
	out = control.BGPSession{
		Session: all[j], Name: plan.Peers[slices.IndexFunc(plan.Peers, func(p routing.Peer) bool { return p.Address == address })].Name,
		Description: e.Description, AS: e.AS, RouterID: e.RouterID, Local: e.Local, HoldTime: int(e.HoldTime / time.Second),
		Offered: e.Offered, Heard: e.Heard, Established: e.Established, Limit: e.Limit,
		MessagesIn: e.MessagesIn, MessagesOut: e.MessagesOut, UpdatesIn: e.UpdatesIn, UpdatesOut: e.UpdatesOut,
		LastError: e.Reason, LastErrorAt: utc(e.ReasonAt), Notice: e.Notice, NoticeAt: utc(e.NoticeAt),
	}
	out.Burden, out.Budget = burden(engine, plan, address)
	if path, is := s.watched()[address]; is {
		out.BFDSession = showBFD(path)
	}
	for _, f := range e.Families {
		out.Families = append(out.Families, f.String())
	}
	return out, nil
}

// utc is a time as it is told; zero stays zero.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Second)
}
