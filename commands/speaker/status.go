package speaker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bfd"
	"netctl/routing/bgp"
)

// state is what the parts of the role tell those who report. Safe for
// concurrent use.
type state struct {
	mu       sync.Mutex
	engine   *bgp.Speaker // nil: does not run
	plan     routing.Plan
	detached string      // why
	away     string      // why the store does not answer
	since    time.Time   // when it went away
	answered bool        // the store did, since the start
	alien    string      // why the node is not this host's
	detector *bfd.Engine // nil: none are watched; it is safe for concurrent use itself

	log   *slog.Logger
	heavy map[netip.Addr]bool // peers with little room for routes; of report
}

func (s *state) setEngine(e *bgp.Speaker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.engine = e
}

func (s *state) setPlan(p routing.Plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan = p
}

func (s *state) setAlien(why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.alien = why
}

func (s *state) reached() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detached, s.away, s.answered = "", "", true
}

func (s *state) lost(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detached == "" && s.away == "" {
		s.since = time.Now()
	}
	s.detached, s.away, s.answered = "", "", false
	if errors.Is(err, datastore.ErrDetached) {
		s.detached = err.Error()
	} else {
		s.away = err.Error()
	}
}

// sessions returns the engine's sessions as they are reported; attached says
// whether the datastore may be told.
func (s *state) sessions() (sessions []control.Session, attached bool) {
	s.mu.Lock()
	engine, plan, attached := s.engine, s.plan, s.answered && s.alien == ""
	s.mu.Unlock()
	if engine == nil {
		return nil, attached
	}
	peers := make(map[netip.Addr]routing.Peer, len(plan.Peers))
	for _, p := range plan.Peers {
		peers[p.Address] = p
	}
	watched := s.watched()
	for _, e := range engine.Status() {
		if e.State == "Established" {
			e.Reason = "" // it is that of the session before
		}
		words := ""
		if path, is := watched[e.Peer]; is {
			words = path.Words()
		}
		sessions = append(sessions, control.Session{
			SessionStatus: datastore.SessionStatus{
				Peer: e.Peer, Type: peers[e.Peer].Type(), State: e.State, Since: e.Since.UTC().Truncate(time.Second), Reason: e.Reason, Off: e.Off,
				BFD: words, Interface: peers[e.Peer].Interface,
			},
			Local: e.Local, Received: e.Received, Accepted: e.Accepted, Sent: e.Sent, Stale: e.Stale,
		})
	}
	for _, p := range plan.Silent {
		sessions = append(sessions, control.Session{SessionStatus: silent(p)})
	}
	return sessions, attached
}

// silent is the session with a peer of an interface that cannot be spoken to.
func silent(p routing.Silent) datastore.SessionStatus {
	spec := p.Configured.Spec
	return datastore.SessionStatus{
		Interface: p.Interface, Type: p.Type(), State: "Idle", Reason: p.Why, Off: spec.Shutdown != "" || p.Drained != "",
	}
}

// report is what the datastore is told.
func (s *state) report(started time.Time, bare bool) func(context.Context) (datastore.ReportStatus, bool) {
	return func(context.Context) (datastore.ReportStatus, bool) {
		s.weigh()
		sessions, attached := s.sessions()
		r := datastore.ReportStatus{Started: started.UTC().Truncate(time.Second), Bare: bare}
		for _, e := range sessions {
			r.Sessions = append(r.Sessions, e.SessionStatus)
		}
		return r, attached
	}
}

// nearlyFull is from how many hundredths of a peer's table on that is said.
const nearlyFull = 80

// burden is how many routes a peer is told by all nodes that have it, and how many it has
// room for; 0: nobody said.
func burden(engine *bgp.Speaker, plan routing.Plan, peer netip.Addr) (routes, budget int) {
	i := slices.IndexFunc(plan.Peers, func(p routing.Peer) bool { return p.Address == peer })
	if i < 0 || plan.Peers[i].Configured == nil || plan.Peers[i].Configured.Spec.RouteBudget == 0 {
		return 0, 0
	}
	c := plan.Peers[i].Configured
	others := map[netip.Addr]bool{}
	for _, a := range c.Others {
		others[a] = true
	}
	return engine.Burden(peer, others), c.Spec.RouteBudget
}

// status is the answer on the control socket.
func (s *speaker) status() control.SpeakerStatus {
	sessions, _ := s.state.sessions()
	s.state.mu.Lock()
	engine, plan := s.state.engine, s.state.plan
	st := control.SpeakerStatus{
		Version: s.cfg.Version, Node: s.cfg.Node, PID: os.Getpid(), RouterID: plan.RouterID, AS: plan.AS, ASSource: plan.ASSource(), Addresses: plan.Addresses,
		Sessions: sessions, Detached: s.state.detached, Store: s.state.away,
		Bare: s.bare, Nodes: plan.NodeCount(),
	}
	s.state.mu.Unlock()
	var details []bgp.Session
	if engine != nil {
		details = engine.Status()
	}
	for _, p := range s.told(s.problems(engine, plan, details)) {
		st.Problems = append(st.Problems, p.text)
	}
	for _, e := range details {
		for _, r := range e.Refused {
			st.Refused = append(st.Refused, fmt.Sprintf("%s from %s: %s", r.Prefix, plan.Names([]netip.Addr{e.Peer}), r.Reason))
		}
	}
	return st
}

// problem is something that is wrong, of one of few kinds; id is the same for as long as it
// is the same problem, "" where who sees it come and go tells of it.
type problem struct{ kind, text, id string }

// told has problems told of as events, and returns them.
func (s *speaker) told(list []problem) []problem {
	shown := map[string]telemetry.Problem{}
	for _, p := range list {
		if p.id != "" {
			shown[p.kind+" "+p.id] = telemetry.Problem{What: p.kind, Text: p.text}
		}
	}
	s.shown.Set(shown)
	return list
}

// tell is told for those who ask nothing.
func (s *speaker) tell() {
	s.state.mu.Lock()
	engine, plan := s.state.engine, s.state.plan
	s.state.mu.Unlock()
	var details []bgp.Session
	if engine != nil {
		details = engine.Status()
	}
	s.told(s.problems(engine, plan, details))
}

// problems are what is wrong with this node's routing; engine may be nil.
func (s *speaker) problems(engine *bgp.Speaker, plan routing.Plan, details []bgp.Session) (list []problem) {
	add := func(kind string, texts ...string) {
		for _, t := range texts {
			list = append(list, problem{kind, t, t})
		}
	}
	s.state.mu.Lock()
	alien := s.state.alien
	s.state.mu.Unlock()
	if alien != "" {
		add("node", alien)
	}
	add("configuration", plan.Problems...)
	for _, p := range s.installer.unresolved() {
		add("next hop", fmt.Sprintf("route %s is not installed: its next hop cannot be reached", p))
	}
	if list := s.installer.tunnelless(); len(list) > 0 && !s.bare {
		var names []string
		for _, a := range list {
			names = append(names, plan.Names([]netip.Addr{a}))
		}
		add("tunnel", fmt.Sprintf("reached without the tunnel that a pool asks for, which is not on both nodes: %s; see `netctl status` there", bounded(names)))
	}
	for _, r := range s.own.Missing() {
		add("routes", fmt.Sprintf("route %s is not in the kernel: its interface is down, or another program's route is in its place", r))
	}
	if engine == nil {
		return list
	}
	add("bgp", engine.Problems()...)
	for _, c := range engine.Conflicts() {
		add("conflict", fmt.Sprintf("prefix %s is announced by several nodes: %s", c.Prefix, plan.Names(c.NextHops)))
	}
	add("bfd", s.detector.Problems()...)
	add("bfd", unwatched(plan, details, s.state.watched())...)
	for _, e := range details {
		if e.Full {
			list = append(list, problem{"limit", fmt.Sprintf("peer %s sends %d prefixes; its limit is %d", plan.Names([]netip.Addr{e.Peer}), e.Received, e.Limit), e.Peer.String()})
		}
		if n, budget := burden(engine, plan, e.Peer); budget > 0 && 100*n >= nearlyFull*budget {
			list = append(list, problem{kind: "limit", text: fmt.Sprintf("peer %s is told %d routes by the nodes that have it; it has room for %d (routeBudget): "+
				"have it told aggregates, or less by a filter", plan.Names([]netip.Addr{e.Peer}), n, budget)})
		}
	}
	return list
}
