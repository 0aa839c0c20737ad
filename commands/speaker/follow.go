package speaker

import (
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"strings"

	"netctl/datastore"
	"netctl/routing"
)

// follower turns what the datastore holds into plans. Its methods are called by
// datastore.Follow, one at a time; it keeps nodes, pools and the BGP
// configuration only.
type follower struct {
	node  string
	state *state
	wake  func()
	log   *slog.Logger
	view  *datastore.View
	// plans holds the latest plan that the loop has not taken yet.
	plans chan proposal
	last  *routing.Plan
}

// proposal is a plan on its way to the loop.
type proposal struct {
	routing.Plan
	// anew: the datastore was read as a whole. What is missing then may be on its
	// way back: nodes write themselves back into a datastore that lost them.
	anew bool
}

func newFollower(node string, st *state, wake func(), log *slog.Logger) *follower {
	return &follower{node: node, state: st, wake: wake, log: log, view: datastore.NewView(), plans: make(chan proposal, 1)}
}

// concerns says whether the speaker works by the object under key.
func concerns(key string) bool {
	for _, k := range []datastore.Kind{datastore.KindNode, datastore.KindPool, datastore.KindBGPConfig} {
		if strings.HasPrefix(key, datastore.KindPrefix(k)) {
			return true
		}
	}
	return false
}

// Replace implements datastore.Follower.
func (f *follower) Replace(s datastore.Snapshot) error {
	ours := datastore.Snapshot{Revision: s.Revision}
	for _, e := range s.Entries {
		if concerns(e.Key) {
			ours.Entries = append(ours.Entries, e)
		}
	}
	if _, err := f.view.Replace(ours); err != nil {
		f.log.Warn("entries not used", "error", firstOf(err))
	}
	f.state.reached()
	f.wake()
	f.plan(true)
	return nil
}

// Apply implements datastore.Follower.
func (f *follower) Apply(b datastore.Batch) error {
	changed := false
	for _, e := range b.Events {
		if !concerns(e.Key) {
			continue
		}
		if _, err := f.view.Apply(e); err != nil {
			f.log.Warn("entry not used", "error", err)
		}
		changed = true
	}
	if changed {
		f.plan(false)
	}
	return nil
}

// Suspicious implements datastore.Doubter: a batch that takes every node away is
// read again before all sessions end.
func (f *follower) Suspicious(b datastore.Batch) bool {
	gone := map[string]bool{}
	for _, e := range b.Events {
		if kind, name, err := datastore.ParseKey(e.Key); err == nil && kind == datastore.KindNode {
			gone[name] = e.Value == nil
		}
	}
	nodes := f.view.Nodes()
	return len(nodes) > 1 && !slices.ContainsFunc(nodes, func(n *datastore.Node) bool { return !gone[n.Metadata.Name] })
}

// Lost implements datastore.Follower.
func (f *follower) Lost(err error) {
	f.state.lost(err)
	if errors.Is(err, datastore.ErrDetached) {
		f.log.Warn("detached from the datastore, nothing changes", "error", err)
	} else {
		f.log.Warn("datastore away", "error", err)
	}
}

// plan hands the loop what follows from the view, if that is anything new. Most
// changes of a node are its status.
func (f *follower) plan(anew bool) {
	p := routing.Mesh(f.node, f.view.Nodes(), f.view.Pools(), f.view.BGP())
	p.Problems = append(p.Problems, f.view.Problems()...)
	if f.last != nil && reflect.DeepEqual(*f.last, p) {
		return
	}
	f.last = &p
	select {
	case old := <-f.plans: // the loop did not take it; it is out of date
		anew = anew || old.anew
	default:
	}
	f.plans <- proposal{p, anew}
}
