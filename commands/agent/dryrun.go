package agent

import (
	"context"
	"fmt"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/datastore"
	"netctl/netdev"
)

// judgedKinds are those that decide about packets.
func judgedKinds() []datastore.Kind {
	return []datastore.Kind{datastore.KindNetworkSet, datastore.KindTier, datastore.KindPolicy, datastore.KindProfile, datastore.KindHostEndpoint, datastore.KindNode, datastore.KindEndpoint}
}

// wouldCut counts the flows of this node's endpoints that pass now, and that a change would
// deny. It changes nothing.
func (t *tracer) wouldCut(ctx context.Context, changes []datastore.AskedChange) (n int, err error) {
	keeps, host := false, verdicts{}
	if err := t.loop.do(ctx, func() {
		keeps, host = t.loop.filtering.established == datastore.EstablishedKeep, t.loop.judging()
	}); err != nil || keeps {
		return 0, err
	}
	snap, err := t.store.List(ctx, datastore.Prefixes(judgedKinds()...)...)
	if err != nil {
		return 0, err
	}
	view := datastore.NewView()
	if _, err := view.Replace(snap); err != nil {
		t.log.Debug("entries of the datastore not used", "error", err)
	}
	now := rulesOf(view, t.loop.cfg)
	for _, c := range changes {
		if _, err := view.Apply(datastore.Entry{Key: c.Key, Value: c.Value, Revision: view.Revision() + 1}); err != nil {
			return 0, fmt.Errorf("%s: %w", c.Key, err)
		}
	}
	then := rulesOf(view, t.loop.cfg)
	by, err := conntrack.Open()
	if err != nil {
		return 0, err
	}
	defer by.Close()
	c := conntrack.Cutter{Rules: then, Host: host.host, Scope: acl.Scope{All: true}, Group: netdev.Group}
	return c.Would(by, now)
}

// rulesOf is the packet filter that objects make of a node.
func rulesOf(view *datastore.View, cfg Config) *acl.Ruleset {
	x := acl.NewIndex(cfg.Node, cfg.FilterOptions())
	for _, kind := range judgedKinds() {
		for _, o := range view.Objects(kind) {
			x.Apply(datastore.Change{Kind: kind, Name: o.Meta().Name, New: o})
		}
	}
	for x.Work() {
	}
	return x.Ruleset()
}
