package speaker

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"netctl/datastore"
	"netctl/routing"
)

// follower turns what the datastore holds into plans. Its methods are called by
// datastore.Follow, one at a time, but for the timer's; it keeps nodes, pools, peers,
// filters and the BGP configuration only.
//
// What the datastore lost while it was not followed, or together with this
// node's own object, goes only after the restart time: an etcd that came back
// empty and was adopted is filled again by the agents and by a person. A deletion
// that is seen as such acts at once.
//
// A node that is not this host's is not planned for: see claim.
type follower struct {
	node   string
	host   string // file of this machine's ID
	state  *state
	wake   func()
	log    *slog.Logger
	outage *datastore.Outage
	// agentless: the node need not have an agent.
	agentless bool
	// plans holds the latest plan that the loop has not taken yet.
	plans chan routing.Plan

	mu     sync.Mutex
	view   *datastore.View
	last   *routing.Plan // handed out; nil: none yet
	meshes int           // how often a plan was worked out, which costs all nodes; tests count it
	before routing.Plan  // what the last run worked by
	doubt  bool          // what the next listing lacks is kept
	kept   kept
	expiry *time.Timer // ends kept; nil: nothing is kept
	ours   bool        // this host has run as the node
	alien  string      // why the node is not this host's; "": it is
}

func newFollower(node, host string, st *state, wake func(), log *slog.Logger) *follower {
	return &follower{
		node: node, host: host, state: st, wake: wake, log: log, outage: datastore.NewOutage(log),
		view: datastore.NewView(), plans: make(chan routing.Plan, 1),
	}
}

// resume begins with what the last run worked by, before the datastore answers.
func (f *follower) resume(p routing.Plan) {
	f.before, f.doubt = p, p.Kept
	f.view.Recall(p.Understood)
	f.ours = p.RouterID.IsValid() && (p.Node == "" || p.Node == f.node)
}

// revision is how far the datastore was followed.
func (f *follower) revision() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.view.Revision()
}

// kinds are those that the speaker works by.
func kinds() []datastore.Kind {
	return []datastore.Kind{datastore.KindNode, datastore.KindPool, datastore.KindPeer, datastore.KindBGPFilter, datastore.KindBGPConfig}
}

// Replace implements datastore.Follower.
func (f *follower) Replace(s datastore.Snapshot) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.view.Replace(s); err != nil {
		f.log.Warn("entries not used", "error", firstOf(err))
	}
	f.outage.Over()
	f.claim()
	f.state.reached()
	f.wake()
	if f.expiry == nil && (f.doubt || f.view.Node(f.node) == nil) {
		f.keep()
	}
	f.doubt = false
	f.plan()
	return nil
}

// Apply implements datastore.Follower.
func (f *follower) Apply(b datastore.Batch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	changed, own := false, false
	wrong := len(f.view.Problems())
	for _, e := range b.Events {
		c, err := f.view.Apply(e)
		if err != nil {
			f.log.Warn("entry not used", "error", err)
		}
		if e.Value == nil {
			f.kept.deleted(e.Key)
		}
		changed = changed || err != nil || matters(c)
		own = own || c.Kind == datastore.KindNode && c.Name == f.node
	}
	if own || f.alien != "" {
		f.claim()
	}
	if changed || len(f.view.Problems()) != wrong {
		f.plan()
	}
	return nil
}

// matters says whether a plan may be another after a change.
func matters(c datastore.Change) bool {
	switch was := c.Old.(type) {
	case *datastore.Node:
		now, _ := c.New.(*datastore.Node)
		return now == nil || was.Spec.AS != now.Spec.AS || was.Status.Host != now.Status.Host || was.Status.Model != now.Status.Model || !slices.Equal(was.Spec.Addresses, now.Spec.Addresses) ||
			!maps.Equal(was.Metadata.Labels, now.Metadata.Labels) || !reflect.DeepEqual(was.Spec.Reflector, now.Spec.Reflector) ||
			!reflect.DeepEqual(was.Spec.Drain, now.Spec.Drain) || was.Status.Away.IsZero() != now.Status.Away.IsZero() ||
			!slices.Equal(was.Status.Tunnels, now.Status.Tunnels)
	case *datastore.Pool:
		now, _ := c.New.(*datastore.Pool)
		return now == nil || was.Spec.CIDR != now.Spec.CIDR || was.Spec.BlockSize != now.Spec.BlockSize || was.Spec.Disabled != now.Spec.Disabled || was.Spec.Encap != now.Spec.Encap ||
			!slices.Equal(was.Spec.Communities, now.Spec.Communities)
	}
	return true
}

// keep puts off that goes what was planned with and the view lacks.
func (f *follower) keep() {
	was := f.before
	if f.last != nil {
		was = *f.last
	}
	f.kept = planned(f.node, was)
	f.kept.settle(f.view)
	if f.kept.empty() {
		return
	}
	wait := time.Duration(f.kept.config(f.view).Spec.RestartTime) * time.Second
	f.kept.until = time.Now().Add(wait)
	f.log.Warn("gone from the datastore, kept for now", "what", f.kept.String(), "release", wait, datastore.EventDatastore.Mark())
	var t *time.Timer
	t = time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.expiry == t {
			f.log.Warn("not put back into the datastore, removed", "what", f.kept.String(), datastore.EventDatastore.Mark())
			f.kept = kept{}
			f.plan()
		}
	})
	f.expiry = t
}

// Suspicious implements datastore.Doubter: a batch that takes every node away is
// read again before all sessions end.
func (f *follower) Suspicious(b datastore.Batch) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	gone := map[string]bool{}
	for _, e := range b.Events {
		if kind, name, err := datastore.ParseKey(e.Key); err == nil && kind == datastore.KindNode {
			gone[name] = e.Value == nil
		}
	}
	nodes := f.view.Nodes()
	return len(nodes) > 1 && !slices.ContainsFunc(nodes, func(n *datastore.Node) bool { return !gone[n.Metadata.Name] })
}

// Lost implements datastore.Follower. What was kept is kept anew once the
// datastore is back.
func (f *follower) Lost(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state.lost(err)
	f.outage.Lost(err)
	f.doubt = f.doubt || errors.Is(err, datastore.ErrDetached) || f.expiry != nil
	f.release()
}

// Back implements datastore.Follower.
func (f *follower) Back() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outage.Over()
	f.state.reached()
	f.wake()
	if f.doubt {
		f.keep()
	}
	f.doubt = false
	f.plan()
}

// release ends the timer of what is kept.
func (f *follower) release() {
	if f.expiry != nil {
		f.expiry.Stop()
		f.expiry = nil
	}
}

// plan hands the loop what follows from the view and from what is kept, if that
// is anything new. Most changes of a node are its status.
func (f *follower) plan() {
	for _, what := range f.view.Unfamiliar() {
		f.log.Warn("left as it is in the datastore", "what", what)
	}
	f.kept.settle(f.view)
	if f.kept.empty() {
		f.release()
	}
	if f.alien != "" {
		return
	}
	f.meshes++
	nodes := f.kept.withNodes(f.view.Nodes())
	p := routing.Mesh(f.node, nodes, f.kept.withPools(f.view.Pools()), f.kept.config(f.view))
	p.AddPeers(nodes, f.kept.withPeers(f.view.Peers()))
	p.AddFilters(slices.Concat(f.view.BGPFilters(), f.kept.filters))
	p.AddDrains(nodes)
	unread, _ := f.view.ProblemsOf(f.node)
	p.Problems = append(p.Problems, unread...)
	p.Understood, _ = f.view.Understood()
	if p.Kept = !f.kept.empty(); p.Kept {
		p.Problems = append(p.Problems, fmt.Sprintf("gone from the datastore, kept until %s: %s; put back what is to stay", f.kept.until.Format(time.TimeOnly), &f.kept))
	}
	if f.last != nil && reflect.DeepEqual(*f.last, p) {
		return
	}
	f.last = &p
	select {
	case <-f.plans: // the loop did not take it; it is out of date
	default:
	}
	f.plans <- p
}
