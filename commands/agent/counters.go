package agent

import (
	"context"
	"errors"
	"fmt"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/datastore"
)

// counters is what the rules of this node's packet filter have counted.
func (a *api) counters(ctx context.Context, r control.CountersRequest) (control.Counters, error) {
	var rules []acl.Counted
	var err error
	asked := a.loop.do(ctx, func() {
		x, view := a.loop.filtering.index, a.loop.view
		if r.Name != "" && view.Policy(r.Name) == nil && view.Profile(r.Name) == nil {
			err = fmt.Errorf("policy or profile %s: %w", r.Name, datastore.ErrNotFound)
			return
		}
		rules = x.Counted(func(_ datastore.Kind, name string) bool { return r.Name == "" || name == r.Name })
	})
	if err = errors.Join(asked, err); err != nil {
		return control.Counters{}, err
	}
	var all []acl.Rule
	for _, c := range rules {
		all = append(all, c.Rules...)
	}
	counts, err := a.counts(ctx, all)
	if err != nil {
		return control.Counters{}, err
	}
	out := control.Counters{Node: a.loop.cfg.Node, Rules: []control.RuleCounter{}}
	for _, c := range rules {
		sum := acl.Count{}
		for range c.Rules {
			sum, counts = sum.Plus(counts[0]), counts[1:]
		}
		out.Rules = append(out.Rules, control.RuleCounter{RulePlace: c.RulePlace, Packets: sum.Packets, Bytes: sum.Bytes})
	}
	return out, nil
}
