package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"netctl/commands/workload"
	"netctl/datastore"
)

// replace takes a complete listing: at the start, and whenever the store is back
// or was lost sight of.
func (l *loop) replace(ctx context.Context, s datastore.Snapshot) {
	l.seen = s.Revision
	l.outage.Over()
	was := l.cluster
	for _, e := range s.Entries {
		l.identify(e)
	}
	changes, err := l.view.Replace(s)
	if err != nil {
		l.log.Warn("entries of the datastore not used", "error", err)
	}
	if l.cluster != was {
		l.addresses.Forget()
	}
	l.addresses.Reset(l.view)
	for _, c := range changes {
		l.changed(c)
	}
	l.noteNewer()
	l.restoring = l.restoring || l.cluster != was
	l.join(ctx)
}

// identify takes note of whose store it is.
func (l *loop) identify(e datastore.Entry) {
	if e.Key != datastore.ClusterKey || e.Value == nil {
		return
	}
	if c, err := datastore.DecodeCluster(e.Value); err == nil {
		l.cluster = c
	}
}

// live lists the endpoints that are attached on this node, have their link, and
// were written under another identity of the store than it has now.
func (l *loop) live() (live []*workload.Record) {
	all, err := l.records.All()
	if err != nil {
		l.log.Warn("attach records not used", "error", err)
	}
	for _, rec := range all {
		_, linked := l.links.present[rec.Endpoint.Spec.Link]
		same := rec.Cluster.UUID == l.cluster.UUID && rec.Cluster.Generation == l.cluster.Generation
		if linked && !same && rec.Endpoint.Spec.Node == l.cfg.Node {
			live = append(live, rec)
			l.links.leftAlone[rec.Endpoint.Spec.Link] = true
		}
	}
	return live
}

// join starts what comes before the agent serves; what was started before ends.
func (l *loop) join(ctx context.Context) {
	if l.leave != nil {
		l.leave()
	}
	var restore []*workload.Record
	if l.restoring { // also if an earlier joining was cut off
		restore = l.live()
		l.restoring = len(restore) > 0
	}
	ctx, l.leave = context.WithCancel(ctx)
	l.stage, l.reason, l.joinedAt = joining, nil, 0
	l.spawn(func(context.Context) error { return l.enter(ctx, restore) })
}

// joined says that everything was written, up to revision.
func (l *loop) joined(revision int64) { l.joinedAt = max(revision, 1) }

// settle makes the agent ready once the view has what it wrote.
func (l *loop) settle() {
	if l.stage != joining || l.joinedAt == 0 || l.view.Revision() < l.joinedAt {
		return
	}
	l.stage, l.admitted, l.restoring = ready, true, false
	l.log.Info("in sync with the datastore", "revision", l.view.Revision(), "endpoints", l.view.CountEndpointsOf(l.cfg.Node))
	for link := range l.links.leftAlone {
		if lo := l.locals[l.links.owners[link]]; lo != nil && lo.ep != nil {
			delete(l.links.leftAlone, link) // it was written back
		}
	}
	for name := range l.locals {
		l.mark(name)
	}
	l.links.lookForOwners()
	l.tidy()
}

// tidy removes the records of endpoints that are neither in the store nor in the
// kernel: their detach was cut off.
func (l *loop) tidy() {
	all, _ := l.records.All() // what cannot be read was reported by live
	for _, rec := range all {
		link := rec.Endpoint.Spec.Link
		if _, linked := l.links.present[link]; linked || l.links.owners[link] != "" {
			continue
		}
		if err := l.records.Remove(link); err != nil {
			l.log.Warn("attach record not removed", "endpoint", rec.Endpoint.Metadata.Name, "error", err)
		}
	}
}

// apply takes changes of the store.
func (l *loop) apply(b datastore.Batch) {
	changes := make([]datastore.Change, 0, len(b.Events))
	for _, e := range b.Events {
		l.identify(e)
		c, err := l.view.Apply(e)
		if err != nil {
			l.log.Warn("entry of the datastore not used", "key", e.Key, "error", err)
		}
		l.changed(c)
		changes = append(changes, c)
	}
	l.noteNewer()
	l.addresses.Apply(changes, b.Revision)
}

// lost says that the store does not answer, or is not the one to follow.
func (l *loop) lost(err error) {
	l.stage, l.reason = away, err
	if errors.Is(err, datastore.ErrDetached) {
		l.stage = detached
	}
	if l.leave != nil {
		l.leave()
	}
	l.outage.Lost(err)
}

// back says that the store answers again and nothing was missed.
func (l *loop) back(ctx context.Context) {
	l.outage.Over()
	l.join(ctx)
}

// suspicious says that a batch takes more than half of this node's endpoints, or
// every node: it is read again before it is believed.
func (l *loop) suspicious(b datastore.Batch) bool {
	endpoints, nodes := 0, 0
	for _, e := range b.Events {
		if e.Value != nil {
			continue
		}
		switch kind, name, err := datastore.ParseKey(e.Key); {
		case err != nil:
		case kind == datastore.KindNode && l.view.Node(name) != nil:
			nodes++
		case kind == datastore.KindEndpoint:
			if lo := l.locals[name]; lo != nil && lo.ep != nil && !lo.leaving && lo.busy == 0 {
				endpoints++
			}
		}
	}
	return nodes > 0 && nodes == l.view.Count(datastore.KindNode) || 2*endpoints > l.view.CountEndpointsOf(l.cfg.Node)
}

// changed books one change of the view.
func (l *loop) changed(c datastore.Change) {
	l.filtering.apply(c)
	switch c.Kind {
	case datastore.KindEndpoint:
		if strings.HasPrefix(c.Name, l.cfg.Node+"/") {
			ep, _ := c.New.(*datastore.Endpoint)
			l.changedEndpoint(c.Name, ep)
		}
	case datastore.KindBlock:
		b, _ := c.New.(*datastore.Block)
		if old, _ := c.Old.(*datastore.Block); old != nil && b == nil {
			delete(l.returning, old.Spec.CIDR)
		}
		l.routeBlock(c.Name, b)
		l.overlap(c.Name, b)
	case datastore.KindNode:
		n, _ := c.New.(*datastore.Node)
		old, _ := c.Old.(*datastore.Node)
		if c.Name == l.cfg.Node && l.stage == ready && old != nil && (n == nil || n.Status.Host != old.Status.Host) {
			l.changedHost() // somebody else removed or took the node
		}
	}
}

func (l *loop) changedEndpoint(name string, ep *datastore.Endpoint) {
	lo := l.local(name)
	if (lo.ep == nil) != (ep == nil) {
		l.count += map[bool]int{true: -1, false: 1}[ep == nil]
	}
	lo.ep = ep
	if ep == nil {
		lo.leaving, lo.lost = false, time.Time{}
	} else if lo.link != ep.Spec.Link {
		l.links.disown(lo.link, name)
		lo.link = ep.Spec.Link
		l.links.owners[lo.link] = name
	}
	l.mark(name)
}

// follower hands what datastore.Follow says to the loop.
type follower struct {
	loop *loop
	ctx  context.Context // the role's
}

// Replace implements datastore.Follower.
func (f *follower) Replace(s datastore.Snapshot) error {
	return f.loop.do(f.ctx, func() { f.loop.replace(f.ctx, s) })
}

// Apply implements datastore.Follower.
func (f *follower) Apply(b datastore.Batch) error {
	return f.loop.do(f.ctx, func() { f.loop.apply(b) })
}

// Lost implements datastore.Follower.
func (f *follower) Lost(err error) {
	_ = f.loop.do(f.ctx, func() { f.loop.lost(err) })
}

// Back implements datastore.Follower.
func (f *follower) Back() {
	_ = f.loop.do(f.ctx, func() { f.loop.back(f.ctx) })
}

// Suspicious implements datastore.Doubter.
func (f *follower) Suspicious(b datastore.Batch) (doubt bool) {
	_ = f.loop.do(f.ctx, func() { doubt = f.loop.suspicious(b) })
	if doubt {
		f.loop.log.Warn("many deletions at once, reading the datastore again", "events", len(b.Events))
	}
	return doubt
}
