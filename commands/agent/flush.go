package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"netctl/acl"
	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// frozen says that the kernel is to stay as it is: the view is not (yet) what
// this node should be.
func (l *loop) frozen() bool { return l.stage == detached || !l.admitted || l.restoring }

// flush brings the kernel to what the view says: the packet filter first, then
// links up, then routes. A failure is tried again later and keeps new endpoints
// from going up, nothing else.
func (l *loop) flush(ctx context.Context) {
	l.readHost()
	if l.frozen() || ctx.Err() != nil {
		return
	}
	if l.flushFilter(ctx) {
		l.flushLinks()
	}
	l.flushRoutes(ctx)
}

// readHost reads links and addresses anew where events were missed.
func (l *loop) readHost() {
	if l.resyncLinks {
		list, err := l.links.Links()
		if err != nil {
			l.failed("links", err)
			return
		}
		l.solved("links")
		l.resyncLinks = false
		l.present = make(map[string]kernel.Link, len(list))
		for _, k := range list {
			l.present[k.Name] = k
		}
		for name := range l.locals {
			l.dirty[name] = true
		}
		l.routesDirty = true
	}
	if l.resyncHost {
		list, err := l.links.Addresses()
		if err != nil {
			l.failed("addresses", err)
			return
		}
		l.solved("addresses")
		l.resyncHost, l.forward6, l.mtus = false, false, map[int]int{}
		if !slices.Equal(list, l.addrs) {
			l.addrs = list
			for _, b := range l.view.Blocks() {
				l.overlap(b.Metadata.Name, b)
			}
			l.changedHost()
		}
	}
}

// flushFilter brings the packet filter up to date. What the kernel refuses keeps
// those endpoints from going up that need it, no others, and is tried again later;
// an endpoint that is up keeps what the kernel took of it before.
func (l *loop) flushFilter(ctx context.Context) bool {
	delta := l.index.Flush()
	var err error
	switch {
	case l.resyncACL:
		l.refused = nil
		err = l.filter.Sync(ctx, l.index.Ruleset())
		for name, lo := range l.locals {
			if !lo.filtered {
				l.dirty[name] = true
			}
		}
	case !delta.Empty():
		l.refused = l.refused.Without(delta)
		err = l.filter.Apply(ctx, delta)
	}
	var refused *acl.RefusedError
	switch {
	case errors.As(err, &refused):
		l.refuse(refused)
	case err != nil:
		l.aclErr, l.resyncACL = err, true
		l.failed("acl", err)
		return false
	case l.refused == nil:
		l.aclErr = nil
		l.solved("acl")
	}
	l.resyncACL = false
	for name := range l.dirty {
		if lo := l.locals[name]; lo != nil {
			lo.filtered = lo.ep != nil && (l.present[lo.link].Up || l.index.Concerning(lo.link, l.refused) == nil)
		}
	}
	return true
}

// refuse books what the kernel refused, beside what it refused before.
func (l *loop) refuse(e *acl.RefusedError) {
	all := &acl.RefusedError{}
	if l.refused != nil {
		all.Refusals = slices.Clone(l.refused.Refusals)
	}
	for _, r := range e.Refusals {
		all.Refusals = append(all.Refusals, l.index.Name(r))
	}
	l.refused, l.aclErr = all, all
	l.failed("acl", fmt.Errorf("%w: what needs it is not attached until the kernel takes it", all))
	time.AfterFunc(l.retry, func() { l.post(func() { l.resyncACL = true }) })
}

// flushLinks works off the endpoints that changed.
func (l *loop) flushLinks() {
	dirty := l.dirty
	l.dirty = map[string]bool{} // what fails goes in again, for the next time
	for name := range dirty {
		lo := l.locals[name]
		if lo == nil || lo.busy > 0 && (!lo.created || lo.ep == nil) {
			continue // End makes it dirty again
		}
		link, linked := l.present[lo.link]
		switch {
		case lo.ep == nil:
			if linked && !l.kept[lo.link] {
				l.retire(lo)
			}
			if !linked {
				delete(l.kept, lo.link)
				delete(l.problems, "restore "+name)
			}
			l.drop(lo)
		case !linked:
			l.missed(lo)
		default:
			lo.lost = time.Time{}
			if (!link.Up || lo.raise) && lo.filtered && !lo.leaving {
				l.raise(lo, link)
			}
		}
	}
	if l.stage == ready {
		l.retireOrphans()
	}
}

// raise sets a link up whose ACLs are in the kernel.
func (l *loop) raise(lo *local, link kernel.Link) {
	switch err := l.links.Up(lo.link); {
	case errors.Is(err, os.ErrNotExist):
		delete(l.present, lo.link)
		l.missed(lo)
	case err != nil:
		l.dirty[lo.name] = true
		l.failed("link "+lo.link, err)
		return
	default:
		link.Up, lo.raise = true, false
		l.present[lo.link] = link
	}
	l.solved("link " + lo.link)
	l.routesDirty = true
}

// retire takes the link of an endpoint that the store does not have any more out
// of service.
func (l *loop) retire(lo *local) {
	l.log.Info("endpoint removed", "endpoint", lo.name, "link", lo.link)
	if err := l.links.Detach(lo.link); err != nil {
		l.failed("link "+lo.link, err)
		return
	}
	l.solved("link " + lo.link)
	delete(l.present, lo.link)
	if err := l.records.Remove(lo.link); err != nil {
		l.log.Warn("attach record not removed", "endpoint", lo.name, "error", err)
	}
	l.routesDirty = true
}

// retireOrphans takes links out of service that no endpoint has.
func (l *loop) retireOrphans() {
	for name := range l.present {
		if l.owners[name] != "" || l.kept[name] || l.strangers(name) {
			continue
		}
		l.log.Info("link without an endpoint removed", "link", name)
		if err := l.links.Detach(name); err != nil {
			l.failed("link "+name, err)
			continue
		}
		delete(l.present, name)
		_ = l.records.Remove(name)
	}
}

// strangers says that a link was attached under another node's name: this host
// was renamed. Such links are left alone, closed by the packet filter.
func (l *loop) strangers(link string) bool {
	rec, err := l.records.Read(link)
	if err != nil || rec.Endpoint.Spec.Node == l.cfg.Node {
		return false
	}
	l.kept[link] = true
	l.note("link "+link, fmt.Sprintf("was attached by node %s, and this host is %s now: detach its workload, or set that name again", rec.Endpoint.Spec.Node, l.cfg.Node))
	return true
}

func (l *loop) flushRoutes(ctx context.Context) {
	if !l.routesDirty && !l.resyncRoutes {
		l.forwarding(l.have)
		return
	}
	blocks := slices.DeleteFunc(l.view.BlocksOf(l.cfg.Node), func(b *datastore.Block) bool { return l.returning[b.Spec.CIDR] })
	want := desiredRoutes(l.cfg.Gateway, blocks, l.view.EndpointsOf(l.cfg.Node), l.usable)
	l.forwarding(want)
	if l.resyncRoutes {
		have, err := l.routes.Routes(ctx)
		if err != nil {
			l.routeErr = err
			l.failed("routes", err)
			return
		}
		l.have = have
	}
	changes := routing.Diff(want, l.have)
	// An endpoint's route goes before its block's: alone it would be announced.
	slices.Reverse(changes.Delete)
	if l.resyncRoutes {
		l.adopt(want, &changes)
	}
	l.routeErr = nil
	if !changes.Empty() {
		l.routeErr = l.routes.Apply(ctx, changes)
	}
	l.have, l.routesDirty, l.resyncRoutes = want, false, false
	clear(l.missing)
	for _, r := range l.routes.Missing() {
		l.missing[r.Prefix] = true
	}
	if l.routeErr != nil {
		l.failed("routes", l.routeErr)
		time.AfterFunc(l.retry, func() { l.post(func() { l.resyncRoutes = true }) })
		return
	}
	l.solved("routes")
}

// adopt tells the table what is in the kernel already, after it was read. What is
// not, and should be, the table may believe to be there: it is to forget it.
func (l *loop) adopt(want []routing.Route, changes *routing.Changes) {
	have := make(map[routing.Key]routing.Route, len(l.have))
	for _, r := range l.have {
		have[r.Key()] = r
	}
	var there []routing.Route
	for _, r := range want {
		if h, ok := have[r.Key()]; !ok {
			changes.Delete = append(changes.Delete, r)
		} else if h.Equal(r) {
			there = append(there, r)
		}
	}
	l.routes.Adopt(there)
}

// forwarding switches on what the routes need, and looks again after interfaces
// of the host changed.
func (l *loop) forwarding(routes []routing.Route) {
	l.forward(&l.forward4, "ipv4 forwarding", l.links.Forwarding4)
	if !l.forward6 && usesIPv6(routes) {
		l.forward(&l.forward6, "ipv6 forwarding", l.links.Forwarding6)
	}
}

// forward switches forwarding on, once.
func (l *loop) forward(done *bool, what string, on func() error) {
	if *done {
		return
	}
	if err := on(); err != nil {
		l.failed(what, err)
		return
	}
	l.solved(what)
	*done = true
}

// usable says whether the endpoint's route can be in the kernel: only through a
// link that is up and protected.
func (l *loop) usable(e *datastore.Endpoint) bool {
	lo := l.locals[e.Metadata.Name]
	return lo != nil && lo.filtered && !lo.leaving && l.present[lo.link].Up
}

// programmed says what of an endpoint is not in the kernel.
func (l *loop) programmed(lo *local) error {
	switch {
	case lo.ep == nil:
		return errors.New("the endpoint is not in the datastore")
	case !lo.filtered:
		return errors.Join(errors.New("its ACLs are not in the kernel"), l.unprotected(lo))
	case !l.present[lo.link].Up:
		return errors.New("link " + lo.link + " is not up")
	}
	for _, a := range lo.ep.Spec.Addresses {
		p := single(a)
		if l.missing[p] || !l.routed(p) {
			return errors.Join(errors.New("route "+a.String()+" is not in the kernel"), l.routeErr)
		}
	}
	return nil
}

// unprotected says why an endpoint's ACLs are not in the kernel.
func (l *loop) unprotected(lo *local) error {
	if err := l.index.Concerning(lo.link, l.refused); err != nil {
		return err
	}
	return l.aclErr
}

func (l *loop) routed(p netip.Prefix) bool {
	return slices.ContainsFunc(l.have, func(r routing.Route) bool { return r.Prefix == p })
}
