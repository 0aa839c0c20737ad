package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/datastore"
)

// learned is what this node's agent knows of the domains of a network set, or with "" of all.
func (s *settings) learned(ctx context.Context, set string) (control.Learned, error) {
	return control.NewAgentClient(s.Agent.Socket).Learned(ctx, control.LearnedRequest{Set: set})
}

// learnedText lists what this node knows of a set's domains. That it cannot be told is warned of.
func (a *app) learnedText(ctx context.Context, set string) string {
	s, err := a.settings()
	if err != nil {
		return ""
	}
	l, err := s.learned(ctx, set)
	if err != nil {
		a.warn("what this node has learned of the domains is not known: %v", err)
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Learned on %s: %d\n", l.Node, len(l.Addresses))
	for _, e := range l.Addresses {
		fmt.Fprintf(&b, "  %s %s, %s more\n", e.Name, e.Address, remaining(e))
	}
	return b.String()
}

func remaining(e control.LearnedAddress) time.Duration {
	return time.Duration(e.Seconds * float64(time.Second)).Round(time.Second)
}

// readLearned asks this node what it knows of domains, if one of the two is here.
func (x *explainer) readLearned(ctx context.Context) {
	has := slices.ContainsFunc(x.view.NetworkSets(), func(n *datastore.NetworkSet) bool { return len(n.Spec.Domains) > 0 })
	if here := x.settings.Node; !has || x.src.Node != here && x.dst.Node != here {
		return
	}
	l, err := x.settings.learned(ctx, "")
	x.learned, x.unlearned = &l, err
}

// learn puts what is known of domains into an index of a node, which only its agent knows.
func (x *explainer) learn(index *acl.Index, node string) {
	if x.learned == nil || node != x.settings.Node {
		return
	}
	for _, e := range x.learned.Addresses {
		index.Learn(e.Set, e.Address)
	}
}

// noteDomains notes what is known of the domains of a network set that a rule asks for on a node.
func (x *explainer) noteDomains(node string, p datastore.RulePlace, set *datastore.NetworkSet) {
	switch {
	case set == nil || len(set.Spec.Domains) == 0:
		return
	case node != x.settings.Node:
		x.note("%s names network set %s, whose domains %s has learned by itself: they are taken for unknown, ask there", p, set.Metadata.Name, node)
		return
	case x.unlearned != nil:
		x.note("%s names network set %s, whose domains are taken for unknown: %v", p, set.Metadata.Name, x.unlearned)
		return
	case x.learned == nil:
		return
	}
	met, all := 0, 0
	for _, e := range x.learned.Addresses {
		if e.Set != set.Metadata.Name {
			continue
		}
		if all++; e.Address == x.src.Address || e.Address == x.dst.Address {
			met++
			x.note("%s names network set %s: %s is %s on %s, for %s more", p, set.Metadata.Name, e.Address, e.Name, node, remaining(e))
		}
	}
	if met == 0 {
		x.note("%s names network set %s: of its domains %s has learned %d addresses, none of these two", p, set.Metadata.Name, node, all)
	}
}
