package agent

import (
	"context"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/datastore"
)

// rerate has the link of an endpoint hold the bandwidth that applies to it now, and its
// record tell of its limits. A bandwidth that changes costs what goes over it nothing.
func (l *loop) rerate(ep *datastore.Endpoint) {
	w, known := l.links.wires[ep.Spec.Link]
	was, now := w, ep.Limits(l.view.Profile).Bandwidth()
	w.Bandwidth, w.asked, w.limits = now, ep.Spec.Bandwidth, ep.Spec.QoSControls
	if !known || w.endpoint != ep.Metadata.Name || w.Bandwidth == was.Bandwidth && w.asked == was.asked && w.limits == was.limits {
		return
	}
	l.links.wires[w.Link] = w
	rec, err := l.records.Read(w.Link)
	if err == nil {
		own := *rec.Endpoint
		own.Spec.Bandwidth, own.Spec.QoSControls = w.asked, w.limits
		rec.Endpoint, rec.Bandwidth = &own, &now
		err = l.records.Put(rec)
	}
	if err != nil {
		l.log.Warn("attach record not written", "endpoint", w.endpoint, "error", err)
	}
	if w.Bandwidth == was.Bandwidth {
		return
	}
	differed, err := l.links.kernel.Hold(w.Wire, false)
	if err != nil {
		l.links.hold[w.Link] = true // to be tried again, and told
		return
	}
	l.log.Info("an endpoint has other rates", "endpoint", w.endpoint, "link", w.Link, "differed", strings.Join(differed, "; "))
}

// rerateProfile does so for the endpoints of a profile whose limits changed.
func (l *loop) rerateProfile(c datastore.Change) {
	limits := func(o datastore.Object) (q datastore.QoSControls) {
		if p, ok := o.(*datastore.Profile); ok {
			q = p.Spec.QoSControls
		}
		return q
	}
	if limits(c.Old) == limits(c.New) {
		return
	}
	for _, ep := range l.view.EndpointsOf(l.cfg.Node) {
		if slices.Contains(ep.Spec.Profiles, c.Name) {
			l.rerate(ep)
		}
	}
}

// limited is what limits dropped of the packets of this node's endpoints, where they did.
func (a *api) limited(ctx context.Context) (list []control.Limited, err error) {
	var all []acl.LinkLimit
	owners := map[string]string{}
	if err := a.loop.do(ctx, func() {
		for _, l := range a.loop.filtering.index.Limits() {
			all = append(all, l)
			owners[l.Link] = a.loop.links.owners[l.Link]
		}
	}); err != nil {
		return nil, err
	}
	for _, l := range all {
		n, err := a.counted(ctx, l.Chain)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			list = append(list, control.Limited{Endpoint: owners[l.Link], Limit: l.Name, Value: l.Value, Packets: n})
		}
	}
	return list, nil
}
