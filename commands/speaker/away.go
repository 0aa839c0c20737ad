package speaker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bgp"
)

// warden is a reflector's watch over those that the topology chose: one that has been
// without a session for a restart time, when its routes are gone anyway, is noted as
// away, so that another is chosen, and one that is back for as long no more. A single
// reflector acts on each, and none that may be the one that is cut off.
type warden struct {
	node    string
	state   *state
	store   datastore.Store
	log     *slog.Logger
	changed chan struct{} // holds one
}

// wardenPause is how long changes are collected.
const wardenPause = time.Second

func newWarden(node string, st *state, store datastore.Store, log *slog.Logger) *warden {
	return &warden{node: node, state: st, store: store, log: log, changed: make(chan struct{}, 1)}
}

// wake notes that sessions or the plan changed; it never blocks.
func (w *warden) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *warden) run(ctx context.Context) error {
	for {
		var due <-chan time.Time
		if wait := w.look(ctx, time.Now()); wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
			select { // sessions change by the hundred, and nothing is urgent here
			case <-ctx.Done():
				return nil
			case <-time.After(wardenPause):
			}
		case <-due:
		}
	}
}

// look notes who is due and returns how long it is until somebody else may be; 0: until
// something changes.
func (w *warden) look(ctx context.Context, now time.Time) (wait time.Duration) {
	w.state.mu.Lock()
	engine, plan, attached := w.state.engine, w.state.plan, w.state.answered && w.state.alien == ""
	w.state.mu.Unlock()
	reflects := slices.ContainsFunc(plan.Peers, func(p routing.Peer) bool { return p.Client })
	if engine == nil || !attached || !reflects || !slices.ContainsFunc(plan.Peers, func(p routing.Peer) bool { return p.Chosen || p.Away }) {
		return 0
	}
	verdicts, wait := judge(w.node, plan, engine.Status(), now)
	for _, v := range verdicts {
		if err := w.note(ctx, v, now); err != nil && ctx.Err() == nil {
			w.log.Warn("reflector's absence not noted", "reflector", v.node, "away", v.away, "error", err)
			wait = retryMax
		}
	}
	return wait
}

// verdict is that a node is away, or no more.
type verdict struct {
	node string
	away bool
}

// judge says what a reflector is to note of others now, and in how long it may be
// more.
func judge(node string, plan routing.Plan, sessions []bgp.Session, now time.Time) (due []verdict, wait time.Duration) {
	up := 0
	here, candidates := map[string]bgp.Session{}, []string{node}
	for _, s := range sessions {
		for _, p := range plan.Peers {
			if p.Address != s.Peer {
				continue
			}
			here[p.Name] = s
			if s.State == "Established" {
				if up++; p.Reflects {
					candidates = append(candidates, p.Name)
				}
			}
		}
	}
	if 2*up < len(plan.Peers) {
		return nil, 0
	}
	patience := time.Duration(plan.RestartTime) * time.Second
	for _, p := range plan.Peers {
		s, known := here[p.Name]
		established := s.State == "Established"
		if !known || !(p.Chosen && !established || p.Away && established) || routing.First(p.Name, candidates) != node {
			continue
		}
		if left := patience - now.Sub(s.Since); left > 0 {
			if wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		due = append(due, verdict{p.Name, !established})
	}
	return due, wait
}

// note writes a verdict into the node's object, if it is not there already.
func (w *warden) note(ctx context.Context, v verdict, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, retryMax)
	defer cancel()
	n, err := datastore.Get[*datastore.Node](ctx, w.store, v.node)
	if err != nil || n.Status.Away.IsZero() != v.away {
		if errors.Is(err, datastore.ErrNotFound) {
			return nil
		}
		return err
	}
	if n.Status.Away = (time.Time{}); v.away {
		n.Status.Away = now.UTC().Truncate(time.Second)
	}
	err = datastore.Update(ctx, w.store, n)
	if err == nil {
		w.log.Info("reflector noted", "reflector", v.node, "away", v.away, datastore.EventSession.Mark())
	}
	return err
}
