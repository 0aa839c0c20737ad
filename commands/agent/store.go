package agent

import (
	"context"
	"net/netip"
	"strings"

	"netctl/commands/workload"
	"netctl/datastore"
)

// replace takes a complete listing: at the start, and whenever the store is back
// or was lost sight of.
func (l *loop) replace(ctx context.Context, s datastore.Snapshot) {
	other := l.standing.list(s)
	changes, err := l.view.Replace(l.withUnsettled(s))
	if err != nil {
		l.log.Warn("entries of the datastore not used", "error", err)
	}
	if other {
		l.addresses.Forget()
		l.reportAnew()
	}
	l.addresses.Reset(l.view)
	since := l.former.relisted(l.standing.cluster)
	for _, c := range changes {
		l.changed(c)
		if c.Kind == datastore.KindEndpoint && c.New != nil && c.New.Meta().Revision > since && !l.isHere(c.Name) {
			l.former.taken(addressesOf(c.New))
		}
	}
	l.former.told(l.standing.cluster, s.Revision)
	l.noteNewer()
	l.copyAnew()
	l.join(ctx)
}

// copyAnew says that the view did not become what it is change by change: a new copy is made
// at once.
func (l *loop) copyAnew() {
	if err := l.copyLog.Miss(); err != nil {
		l.log.Warn("changes since the copy of the datastore not dropped", "error", err)
	}
	l.changedModel()
	l.lostModel()
}

// live lists the endpoints that are attached on this node, have their link, and
// were written under another identity of the store than it has now.
func (l *loop) live() (live []*workload.Record) {
	all, err := l.records.All()
	if err != nil {
		l.log.Warn("attach records not used", "error", err)
	}
	for _, rec := range all {
		if rec.Adopted() {
			continue // it is made again by what the kernel has
		}
		_, linked := l.links.present[rec.Endpoint.Spec.Link]
		same := rec.Cluster.UUID == l.standing.cluster.UUID && rec.Cluster.Generation == l.standing.cluster.Generation
		if linked && !same && rec.Endpoint.Spec.Node == l.cfg.Node {
			live = append(live, rec)
			l.links.leftAlone[rec.Endpoint.Spec.Link] = true
		}
	}
	return live
}

// join starts what comes before the agent serves; what was started before ends.
func (l *loop) join(ctx context.Context) {
	if err := l.otherName(); err != nil {
		if l.standing.stage != renamed {
			l.log.Error("not the node this host is registered as, nothing changes", "error", err, datastore.EventProblem.Mark())
		}
		l.standing.rename(err)
		return
	}
	var restore []*workload.Record
	if l.standing.restoring { // also if an earlier joining was cut off
		restore = l.live()
		l.standing.restoring = len(restore) > 0
	}
	ctx = l.standing.join(ctx)
	l.spawn(func(context.Context) error { return l.enter(ctx, restore) })
}

// settle makes the agent ready once the view has what it wrote.
func (l *loop) settle() {
	if !l.standing.arrive(l.view.Revision()) {
		return
	}
	l.log.Info("in sync with the datastore", "revision", l.view.Revision(), "endpoints", l.view.CountEndpointsOf(l.cfg.Node), datastore.EventDatastore.Mark())
	for link := range l.links.leftAlone {
		if lo := l.locals.named[l.links.owners[link]]; lo != nil && lo.ep != nil {
			delete(l.links.leftAlone, link) // it was written back
		}
	}
	l.locals.markAll()
	l.changedNetworks()
	l.changedAdopted()
	l.links.lookForOwners()
	l.tidy()
	l.settleSoon()
}

// tidy removes the records of endpoints that are neither in the store nor in the
// kernel: their detach was cut off.
func (l *loop) tidy() {
	all, _ := l.records.All() // what cannot be read was reported by live
	for _, rec := range all {
		link := rec.Endpoint.Spec.Link
		if _, linked := l.links.present[link]; linked || l.links.owners[link] != "" || rec.Refused != "" {
			continue
		}
		if err := l.records.Remove(link); err != nil {
			l.log.Warn("attach record not removed", "endpoint", rec.Endpoint.Metadata.Name, "error", err)
		}
	}
}

// apply takes changes of the store.
func (l *loop) apply(ctx context.Context, b datastore.Batch) {
	changes, used := make([]datastore.Change, 0, len(b.Events)), make([]datastore.Entry, 0, len(b.Events))
	was := l.standing.cluster
	for _, e := range b.Events {
		l.standing.identify(e)
		c, err := l.view.Apply(e)
		if err != nil {
			l.log.Warn("entry of the datastore not used", "key", e.Key, "error", err)
		} else if _, _, err := datastore.ParseKey(e.Key); err == nil {
			used = append(used, e)
		}
		l.changed(c)
		changes = append(changes, c)
	}
	if err := l.copyLog.Note(used); err != nil {
		l.log.Warn("changes since the copy of the datastore not kept", "error", err)
	}
	if l.standing.cluster != was {
		l.copyAnew()
		l.reportAnew() // who restored the store waits for it
	}
	l.former.told(l.standing.cluster, b.Revision)
	l.noteNewer()
	l.standing.followed = max(l.standing.followed, b.Revision)
	l.changedModel()
	l.addresses.Apply(changes, b.Revision)
	if l.standing.stage == renamed {
		l.join(ctx)
	}
}

// back says that the store answers again and nothing was missed.
func (l *loop) back(ctx context.Context) {
	l.standing.outage.Over()
	l.join(ctx)
}

// suspicious says that a batch takes more than half of this node's endpoints, and not
// just one, or every node: it is read again before it is believed.
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
			if lo := l.locals.named[name]; lo != nil && lo.ep != nil && !lo.leaving && lo.busy == 0 {
				endpoints++
			}
		}
	}
	return nodes > 0 && nodes == l.view.Count(datastore.KindNode) || endpoints > 1 && 2*endpoints > l.view.CountEndpointsOf(l.cfg.Node)
}

// isHere says whether an endpoint is this node's.
func (l *loop) isHere(endpoint string) bool { return strings.HasPrefix(endpoint, l.cfg.Node+"/") }

// unheld are those of addrs that an endpoint might have, and none has.
func (l *loop) unheld(ctx context.Context, addrs []netip.Addr) (list []netip.Addr, err error) {
	err = l.do(ctx, func() {
		for _, a := range addrs {
			if l.addresses.Free(a) {
				list = append(list, a)
			}
		}
	})
	return list, err
}

// changed books one change of the view.
func (l *loop) changed(c datastore.Change) {
	l.filtering.apply(c)
	switch c.Kind {
	case datastore.KindEndpoint:
		moved := c
		ep, _ := c.New.(*datastore.Endpoint)
		if l.isHere(c.Name) {
			if lo := l.locals.named[c.Name]; lo != nil && (lo.leaving || lo.busy > 0) || l.standing.restoring {
				moved.Old = nil // its flows are forgotten as it is detached, or it is written back
			}
			l.locals.set(c.Name, ep)
			if ep != nil {
				l.rerate(ep)
			} else if _, adopted := datastore.AdoptedLink(c.Name); adopted {
				l.changedAdopted()
			}
		}
		l.wireguard.endpoint(c.Name, ep)
		l.former.moved(moved)
		if c.Old == nil && !l.isHere(c.Name) {
			l.former.arrived(addressesOf(c.New))
		}
	case datastore.KindBlock:
		b, _ := c.New.(*datastore.Block)
		old, _ := c.Old.(*datastore.Block)
		l.blocks.changed(c.Name, old, b)
		l.wireguard.block(c.Name, old, b)
		l.overlap(old, b)
		l.poolless(old, b)
		if l.tunnels.block(c.Name, datastore.TunnelHandle(l.cfg.Node), b) {
			l.changedTunnels()
		}
	case datastore.KindNetwork:
		l.changedNetworks()
	case datastore.KindConfig:
		l.sizes.changed = true
	case datastore.KindProfile:
		l.rerateProfile(c)
	case datastore.KindReservation:
		l.mixed.changed = true
	case datastore.KindPool:
		l.mixed.changed = true
		l.changedAdopted()
		l.noteGateway()
		l.tunnels.changed = true
		l.changedTunnels()
		for _, b := range l.view.BlocksOf(l.cfg.Node) {
			l.poolless(b, b)
		}
	case datastore.KindNode:
		n, _ := c.New.(*datastore.Node)
		if c.Name == l.cfg.Node {
			l.noteOwn()
			l.forwarding.lead(l.leads())
			l.mixed.changed = true
			l.tunnels.changed, l.wireguard.own = true, true
			l.changedTunnels()
		} else {
			l.tunnels.node(c.Name, n)
		}
		l.wireguard.changed[c.Name] = true
		old, _ := c.Old.(*datastore.Node)
		if c.Name == l.cfg.Node && l.standing.stage == ready && old != nil && (n == nil || n.Status.Host != old.Status.Host) {
			l.changedHost() // somebody else removed or took the node
		}
	}
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
	return f.loop.do(f.ctx, func() { f.loop.apply(f.ctx, b) })
}

// Lost implements datastore.Follower.
func (f *follower) Lost(err error) {
	_ = f.loop.do(f.ctx, func() {
		f.loop.standing.part(err)
		f.loop.lostModel()
		f.loop.goByCopy()
	})
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
