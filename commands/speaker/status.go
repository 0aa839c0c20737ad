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
	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bgp"
)

// state is what the parts of the role tell those who report. Safe for
// concurrent use.
type state struct {
	mu       sync.Mutex
	engine   *bgp.Speaker // nil: does not run
	plan     routing.Plan
	detached string // why
	away     string // why the store does not answer
	answered bool   // the store did, since the start
	alien    string // why the node is not this host's
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
	s.detached, s.away, s.answered = "", "", false
	if errors.Is(err, datastore.ErrDetached) {
		s.detached = err.Error()
	} else {
		s.away = err.Error()
	}
}

// sessions returns the engine's sessions as they are reported; attached says
// whether the datastore may be told.
func (s *state) sessions() (sessions []datastore.SessionStatus, attached bool) {
	s.mu.Lock()
	engine, attached := s.engine, s.answered && s.alien == ""
	s.mu.Unlock()
	if engine == nil {
		return nil, attached
	}
	for _, e := range engine.Status() {
		sessions = append(sessions, datastore.SessionStatus{
			Peer: e.Peer, Type: "node-to-node mesh", State: e.State, Since: e.Since.UTC().Truncate(time.Second), Reason: e.Reason,
			Received: e.Received, Accepted: e.Accepted, Sent: e.Sent, Stale: e.Stale,
		})
	}
	return sessions, attached
}

// status is the answer on the control socket.
func (s *speaker) status() control.SpeakerStatus {
	sessions, _ := s.state.sessions()
	s.state.mu.Lock()
	engine, plan := s.state.engine, s.state.plan
	st := control.SpeakerStatus{
		Version: s.cfg.Version, Node: s.cfg.Node, PID: os.Getpid(), RouterID: plan.RouterID, AS: plan.AS, ASSource: plan.ASSource(), Addresses: plan.Addresses,
		Sessions: sessions, Detached: s.state.detached, Store: s.state.away, Problems: slices.Clone(plan.Problems),
	}
	alien := s.state.alien
	s.state.mu.Unlock()
	if alien != "" {
		st.Problems = append([]string{alien}, st.Problems...)
	}
	for _, p := range s.installer.unresolved() {
		st.Problems = append(st.Problems, fmt.Sprintf("route %s is not installed: its next hop cannot be reached", p))
	}
	for _, r := range s.own.Missing() {
		st.Problems = append(st.Problems, fmt.Sprintf("route %s is not in the kernel: its interface is down, or another program's route is in its place", r))
	}
	if engine == nil {
		return st
	}
	st.Problems = append(st.Problems, engine.Problems()...)
	for _, c := range engine.Conflicts() {
		st.Problems = append(st.Problems, fmt.Sprintf("prefix %s is announced by several nodes: %s", c.Prefix, plan.Names(c.Peers)))
	}
	for _, e := range engine.Status() {
		for _, r := range e.Refused {
			st.Refused = append(st.Refused, fmt.Sprintf("%s from %s: %s", r.Prefix, plan.Names([]netip.Addr{e.Peer}), r.Reason))
		}
	}
	return st
}

// reportInterval is the least time between two writes of a node's sessions.
const reportInterval = 3 * time.Second

// reporter writes this node's sessions to the datastore, when they changed.
type reporter struct {
	node    string
	store   datastore.Store
	state   *state
	log     *slog.Logger
	changed chan struct{}
}

func newReporter(node string, store datastore.Store, st *state, log *slog.Logger) *reporter {
	return &reporter{node: node, store: store, state: st, log: log, changed: make(chan struct{}, 1)}
}

// wake notes that something may have changed; it never blocks.
func (r *reporter) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *reporter) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		}
		if sessions, attached := r.state.sessions(); attached {
			if err := r.write(ctx, sessions); err != nil && ctx.Err() == nil {
				r.log.Debug("sessions not reported", "error", err)
				if !errors.Is(err, datastore.ErrNotFound) {
					r.wake()
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reportInterval):
		}
	}
}

var errSame = errors.New("nothing changed")

func (r *reporter) write(ctx context.Context, sessions []datastore.SessionStatus) error {
	_, err := datastore.Modify(ctx, r.store, r.node, func(n *datastore.Node) error {
		if slices.EqualFunc(n.Status.Sessions, sessions, same) {
			return errSame
		}
		n.Status.Sessions = sessions
		return nil
	})
	if errors.Is(err, errSame) {
		return nil
	}
	return err
}

func same(a, b datastore.SessionStatus) bool {
	at := a.Since.Equal(b.Since)
	a.Since, b.Since = time.Time{}, time.Time{}
	return at && a == b
}
