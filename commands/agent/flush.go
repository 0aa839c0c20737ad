package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"netctl/acl"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// flush brings the kernel to what the view says: the packet filter first, then
// links up, then routes. A failure is tried again when it is due and keeps new
// endpoints from going up, nothing else.
func (l *loop) flush(ctx context.Context) {
	frozen := l.standing.frozen()
	if l.problems.again.Again(record) {
		l.noteRecord(l.filtering.journal.Restore())
	}
	if frozen {
		l.holdFilter(ctx) // before all else: who starts may find it open
	}
	l.readHost()
	l.noteShut()
	l.notePools()
	l.forwarding.keep()
	l.holdLinks()
	l.settleLinks()
	l.mendLinks()
	l.flushGuests()
	switch {
	case ctx.Err() != nil, frozen:
		return
	case l.filtering.behind && l.filtering.index.Work():
		// A new index denies what waits for selectors: until it is whole, the kernel and
		// the flows that it knows are not held against it.
		l.again()
		return
	}
	for name := range l.locals.dirty {
		l.locals.moved[name] = true
	}
	if l.flushFilter(ctx) {
		l.flushLinks()
	}
	l.flushKey()
	l.sizes.changed = l.sizes.changed || l.tunnels.changed
	l.flushTunnels()
	l.guardVXLAN()
	l.flushWireGuard()
	narrowed := l.narrowRoutes()
	l.flushRoutes(ctx)
	l.resize(narrowed)
}

// record is the problem that the packet filter's record, which somebody removed, could
// not be made again.
const record = "filter"

// filterLost is told that it could not.
func (l *loop) filterLost(err error) { l.post(func() { l.noteRecord(err) }) }

func (l *loop) noteRecord(err error) {
	if errors.Is(err, acl.ErrDamaged) && !l.standing.restoring { // else the view is of another store
		err = l.filtering.journal.Remake(l.filtering.index.Ruleset())
	}
	if err == nil {
		l.problems.drop(record)
		return
	}
	l.problems.note(record, err.Error())
	l.problems.again.Failed(record)
}

// readHost reads links and addresses anew where events were missed.
func (l *loop) readHost() {
	if l.links.resync && l.problems.due("links") {
		if err := l.links.read(); err != nil {
			l.problems.failed("links", err)
			return
		}
		l.problems.solved("links")
		l.locals.markAll()
	}
	if l.links.resyncHost && l.problems.due("addresses") {
		changed, err := l.links.readHost()
		if err != nil {
			l.problems.failed("addresses", err)
			return
		}
		l.problems.solved("addresses")
		l.forwarding.v6.is = false
		l.forwarding.lead(l.leads())
		if changed {
			l.filtering.index.SetSubnets(l.links.subnets())
			l.filtering.index.SetHostLinks(l.links.hostLinks())
			l.judgeSources()
			l.noteOverlaps()
			l.tunnels.changed = true
			l.changedHost()
		}
		l.noteOwn() // why an address is gone may have changed
	}
}

// holdFilter keeps the packet filter what it was, whatever others do to it, while
// the kernel is to stay as it is.
func (l *loop) holdFilter(ctx context.Context) {
	if l.problems.again.Again("acl") {
		l.filtering.resync = true
	}
	if !l.filtering.resync || !l.problems.due("acl") {
		return
	}
	if err := l.filtering.putBack(ctx); err != nil {
		l.problems.failed("acl", err)
	} else {
		l.problems.solved("acl")
	}
}

// noteShut notes that endpoints are cut off.
func (l *loop) noteShut() {
	text := ""
	if l.filtering.shut && len(l.links.wires) > 0 {
		text = "was removed, and what it held is not on record: endpoints reach nobody until the datastore answers"
	}
	l.problems.note("packet filter", text)
}

// flushFilter brings the packet filter up to date. What the kernel refuses keeps
// those endpoints from going up that need it, no others; an endpoint that is up
// keeps what the kernel took of it before.
func (l *loop) flushFilter(ctx context.Context) bool {
	f := l.filtering
	if l.problems.again.Again("acl") {
		f.resync = true
	} else if f.resync && !l.problems.due("acl") {
		return false // it failed, and nobody knows what is in the kernel
	}
	f.establish(cmp.Or(l.cfg.Established, l.view.Config().Spec.Established, datastore.EstablishedCut))
	more := f.index.Work()
	if more {
		l.again() // what came meanwhile goes first
	}
	whole, err := f.flush(ctx)
	if whole {
		for name, lo := range l.locals.named {
			if !lo.filtered {
				l.locals.mark(name)
			}
		}
	}
	var refused *acl.RefusedError
	switch {
	case errors.As(err, &refused):
		l.problems.failed("acl", fmt.Errorf("%w: what needs it is not attached until the kernel takes it", err))
	case err != nil:
		l.problems.failed("acl", err)
		return false
	case f.refused == nil:
		l.problems.solved("acl")
	}
	if !more {
		l.former.filtered()
		l.cutTightened()
	}
	l.flushDomains(!more)
	for name := range l.locals.dirty {
		if lo := l.locals.named[name]; lo != nil {
			lo.filtered = lo.ep != nil && (l.links.present[lo.link].Up && !l.links.adopted[lo.link] || f.covers(lo.link))
		}
	}
	return true
}

// cutTightened has the flows cut that what is in the kernel now may deny.
func (l *loop) cutTightened() {
	if s := l.filtering.tightened; !s.Empty() {
		l.filtering.tightened = acl.Scope{}
		l.flows.tightened(s)
	}
}

// judging is by what flows are judged now.
func (l *loop) judging() verdicts {
	return verdicts{l.filtering.judged.take(l.filtering.index.Ruleset), l.links.own(), l.filtering.version.Load()}
}

// verdicts is judging, for others.
func (l *loop) verdicts(ctx context.Context) (v verdicts, err error) {
	asked := l.do(ctx, func() {
		if err = errUnsettled; !l.filtering.behind && l.filtering.index.Whole() {
			v, err = l.judging(), nil
		}
	})
	return v, cmp.Or(asked, err)
}

// flushLinks works off the endpoints that changed.
func (l *loop) flushLinks() {
	dirty := l.locals.dirty
	l.locals.dirty = map[string]bool{} // what fails goes in again, for the next time
	for name := range dirty {
		lo := l.locals.named[name]
		if lo == nil || lo.busy > 0 && (!lo.created || lo.ep == nil) {
			continue // End makes it dirty again
		}
		link, linked := l.links.present[lo.link]
		switch {
		case lo.ep == nil:
			if !linked {
				delete(l.links.leftAlone, lo.link)
				l.links.forget(lo.link)
				l.problems.drop("restore " + name)
				l.problems.drop("endpoint " + name)
				l.problems.drop(tapProblem(name))
			} else if l.links.adopted[lo.link] {
				l.changedAdopted() // somebody removed the endpoint alone
			} else if !l.links.leftAlone[lo.link] && !l.retire(lo) {
				continue
			}
			l.filtering.index.SetMSS(lo.link, 0)
			l.locals.drop(lo)
		case !linked:
			l.missed(lo)
		default:
			lo.lost = time.Time{}
			if (!link.Up || lo.raise) && !l.links.adopted[lo.link] && lo.filtered && !lo.leaving {
				l.raise(lo, link)
			}
		}
	}
	if l.standing.stage == ready {
		l.retireOwnerless()
	}
}

// raise sets a link up whose ACLs are in the kernel.
func (l *loop) raise(lo *local, link kernel.Link) {
	what := "link " + lo.link
	if !l.problems.due(what) {
		l.locals.dirty[lo.name] = true
		return
	}
	if !lo.raise { // it is not new: whoever set it down may have changed more
		w, _ := l.wireOf(lo.link, lo)
		if l.problems.due(w.problem()) && l.hold(w, true) {
			l.locals.moved[lo.name] = true
		} else {
			l.locals.dirty[lo.name] = true
		}
		return
	}
	switch err := l.links.kernel.Up(lo.link); {
	case errors.Is(err, os.ErrNotExist):
		delete(l.links.present, lo.link)
		l.missed(lo)
	case err != nil:
		l.locals.dirty[lo.name] = true
		l.problems.failed(what, err)
		return
	default:
		link.Up, lo.raise = true, false
		l.links.present[lo.link] = link
	}
	l.problems.solved(what)
	l.locals.moved[lo.name] = true
}

// retire takes the link of an endpoint that the store does not have any more out
// of service; false: that is still to be done.
func (l *loop) retire(lo *local) bool {
	if !l.problems.due("link " + lo.link) {
		l.locals.dirty[lo.name] = true
		return false
	}
	l.log.Info("endpoint removed", "endpoint", lo.name, "link", lo.link, datastore.EventEndpoint.Mark())
	if !l.remove(lo.link) {
		l.locals.dirty[lo.name] = true
		return false
	}
	l.locals.moved[lo.name] = true
	return true
}

// remove takes a link out of service, with its record.
func (l *loop) remove(link string) bool {
	if err := l.links.kernel.Detach(link, l.links.wires[link].Index); err != nil {
		l.problems.failed("link "+link, err)
		return false
	}
	l.problems.solved("link " + link)
	delete(l.links.present, link)
	l.links.forget(link)
	if err := l.records.Remove(link); err != nil {
		l.log.Warn("attach record not removed", "link", link, "error", err)
	}
	return true
}

// retireOwnerless takes links out of service that no endpoint has.
func (l *loop) retireOwnerless() {
	for link := range l.links.ownerless {
		_, present := l.links.present[link]
		switch {
		case !present || l.links.owners[link] != "" || l.links.adopted[link] || l.links.leftAlone[link] || l.strangers(link):
			delete(l.links.ownerless, link)
			if !present {
				l.problems.drop("link " + link)
			}
		case !netdev.IsLinkName(l.cfg.LinkPrefix, link) && l.links.wires[link].Link == "":
			// It may be an endpoint's that was given another name.
			delete(l.links.ownerless, link)
			l.problems.note("link "+link, fmt.Sprintf("is marked as netctl's (group %d) and belongs to no endpoint that is known here: give it back the name that it was attached with, or delete it (`ip link delete %s`)", netdev.Group, link))
		case !l.problems.due("link " + link):
		default:
			l.log.Info("link without an endpoint removed", "link", link, datastore.EventLeak.Mark())
			if l.remove(link) {
				delete(l.links.ownerless, link)
			}
		}
	}
}

// strangers says that a link was attached under another node's name: this host
// was renamed. Such links are left alone, closed by the packet filter.
func (l *loop) strangers(link string) bool {
	rec, err := l.records.Read(link)
	if err != nil || rec.Endpoint.Spec.Node == l.cfg.Node {
		return false
	}
	l.links.leftAlone[link] = true
	l.problems.note("link "+link, fmt.Sprintf("was attached by node %s, and this host is %s now: end its workload, or set that name again", rec.Endpoint.Spec.Node, l.cfg.Node))
	return true
}

// flushRoutes brings the routes up to date: those of the endpoints that changed,
// or, where the kernel's are not known, all.
func (l *loop) flushRoutes(ctx context.Context) {
	for name := range l.locals.moved {
		l.route(name)
	}
	clear(l.locals.moved)
	if l.links.gateways {
		l.wantGateways()
	}
	l.forwarding.want(l.table.v6 > 0)
	if l.problems.again.Again("routes") {
		l.table.resync = true
	} else if l.table.resync && !l.problems.due("routes") {
		return
	}
	if err := l.table.flush(ctx); err != nil {
		l.problems.failed("routes", err)
		return
	}
	l.problems.solved("routes")
}

// route has the table want an endpoint's routes, if they can be in the kernel.
func (l *loop) route(name string) {
	if lo := l.locals.named[name]; lo != nil && lo.ep != nil && l.usable(lo.ep) {
		l.table.want("endpoint "+name, endpointRoutes(lo.ep, lo.narrow)...)
		return
	}
	l.table.want("endpoint " + name)
}

// usable says whether the endpoint's route can be in the kernel: only through a
// link that is up and protected. One that is up at the start was protected by an earlier
// agent: it keeps its routes until the packet filter is compared.
func (l *loop) usable(e *datastore.Endpoint) bool {
	lo := l.locals.named[e.Metadata.Name]
	return lo != nil && (lo.filtered || l.filtering.behind) && !lo.leaving && l.links.present[lo.link].Up
}

// programmed says what of an endpoint is not in the kernel.
func (l *loop) programmed(lo *local) error {
	switch {
	case lo.ep == nil:
		return errors.New("the endpoint is not in the datastore")
	case !lo.filtered:
		return errors.Join(errors.New("its ACLs are not in the kernel"), l.filtering.why(lo.link))
	case !l.links.present[lo.link].Up:
		return errors.New("link " + lo.link + " is not up")
	}
	for _, r := range endpointRoutes(lo.ep, lo.narrow) {
		if !l.table.holds(r.Key()) {
			what := r.Prefix.String()
			if r.Prefix.IsSingleIP() {
				what = r.Prefix.Addr().String()
			}
			return errors.Join(errors.New("route "+what+" is not in the kernel"), l.table.err)
		}
	}
	return nil
}
