package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"netctl/commands/ui"
	"netctl/datastore"
)

// shownChanges bounds how many groups of pairs a dry run lists.
const shownChanges = 20

// cutAnswer is how long agents have to say how many flows would be cut.
const cutAnswer = 3 * time.Second

// judgedKinds are those that decide who may talk to whom.
func judgedKinds() []datastore.Kind {
	return []datastore.Kind{datastore.KindTier, datastore.KindPolicy, datastore.KindNetworkSet, datastore.KindProfile, datastore.KindEndpoint}
}

// judges says whether plans change who may talk to whom.
func judges(plans []planned) bool {
	return slices.ContainsFunc(plans, func(p planned) bool {
		return p.verb != "unchanged" && slices.Contains(judgedKinds(), p.object.Kind())
	})
}

// judgedObjects are those of a view that decide.
func judgedObjects(view *datastore.View) (list []datastore.Object) {
	for _, k := range judgedKinds() {
		list = append(list, view.Objects(k)...)
	}
	return list
}

// tellPlans says what would become of each object, and what that would change; before is what
// decided until then.
func (a *app) tellPlans(ctx context.Context, store datastore.Store, before []datastore.Object, view *datastore.View, plans []planned) error {
	for _, p := range plans {
		if err := a.tell(p, " (dry run)"); err != nil {
			return err
		}
	}
	if judges(plans) {
		return a.tellEffect(ctx, store, before, view, plans)
	}
	return nil
}

// tellDelete says so of objects that would be deleted.
func (a *app) tellDelete(ctx context.Context, list []manifest, force bool) error {
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	n := needed{}
	for _, m := range list {
		kind, name := m.object.Kind(), m.object.Meta().Name
		for k, names := range neededToDelete(kind, name) {
			if names == nil {
				n.all(k)
			}
			for one := range names {
				n.one(k, one)
			}
		}
		if kind == datastore.KindNode {
			n.one(datastore.KindReport, datastore.ReportName(name, datastore.ReportAgent))
		}
		if slices.Contains(judgedKinds(), kind) || kind == datastore.KindNode {
			n.all(judgedKinds()...)
		}
	}
	view, err := a.list(ctx, store, n)
	if err != nil {
		return err
	}
	before := judgedObjects(view)
	plans, err := a.planDelete(ctx, view, list, force)
	if err != nil {
		return err
	}
	return a.tellPlans(ctx, store, before, view, plans)
}

// planDelete refuses what delete would, and takes the objects, and endpoints with their node, out
// of the view.
func (a *app) planDelete(ctx context.Context, view *datastore.View, list []manifest, force bool) (plans []planned, err error) {
	for _, m := range list {
		kind, name := m.object.Kind(), m.object.Meta().Name
		o := view.Object(kind, name)
		if err := view.Unreadable(kind, name); err != nil {
			return nil, fmt.Errorf("%s%s: %w", m.where(), labelOf(kind, name), err)
		}
		if o == nil {
			return nil, fmt.Errorf("%s%s: %w", m.where(), labelOf(kind, name), datastore.ErrNotFound)
		}
		gone := []datastore.Object{o}
		used := view.CheckDelete(o)
		switch o := o.(type) {
		case *datastore.Endpoint:
			if err := mayTake(o, a.endpointUsed(ctx, o), force); err != nil {
				return nil, fmt.Errorf("%s%w", m.where(), err)
			}
		case *datastore.Node:
			if err := nodeAlive(view, name); err != nil && !force {
				return nil, fmt.Errorf("%s%w", m.where(), err)
			}
			gone = append(asObjects(view.EndpointsOf(name)), o)
		}
		if used != nil && !force {
			return nil, fmt.Errorf("%s%s: %w", m.where(), label(o), used)
		}
		for _, o := range gone {
			p := planned{manifest: manifest{object: o}, verb: "deleted"}
			if p.cond, p.op, err = datastore.OpDelete(o); err != nil {
				return nil, err
			}
			if _, err := view.Apply(datastore.Entry{Key: p.op.Key}); err != nil {
				return nil, err
			}
			plans = append(plans, p)
		}
	}
	return plans, nil
}

// tellEffect says of plans between which endpoints they change what passes, and how many
// flows they would cut.
func (a *app) tellEffect(ctx context.Context, store datastore.Store, before []datastore.Object, view *datastore.View, plans []planned) error {
	if len(view.Endpoints()) == 0 {
		return nil
	}
	c := ui.Compare(ctx, before, judgedObjects(view))
	if err := a.print(comparisonText(c)); err != nil {
		return err
	}
	text, err := a.wouldCut(ctx, store, view, plans)
	if err != nil {
		return err
	}
	return a.print(text)
}

func comparisonText(c ui.Comparison) string {
	var b strings.Builder
	if c.Changed == 0 {
		fmt.Fprintf(&b, "Who may talk to whom: nothing changes, of %d pairs of endpoints and the world\n", c.Pairs-c.Unjudged)
	} else {
		fmt.Fprintf(&b, "Who may talk to whom: %d of %d pairs of endpoints and the world change\n", c.Changed, c.Pairs-c.Unjudged)
	}
	for i, ch := range c.Changes {
		if i == shownChanges {
			fmt.Fprintf(&b, "  and %d more like these\n", len(c.Changes)-i)
			break
		}
		fmt.Fprintf(&b, "  %s to %s", ch.From, ch.To)
		if ch.Pairs > 1 {
			fmt.Fprintf(&b, ", and %d pairs like it", ch.Pairs-1)
		}
		b.WriteString("\n")
		for _, j := range ch.Judged {
			verb, by := "allowed", j.Inbound.Rule
			if !j.Allowed {
				verb = "denied"
				if !j.Outbound.Allowed {
					by = j.Outbound.Rule
				}
			} else if by == "" {
				by = j.Outbound.Rule
			}
			fmt.Fprintf(&b, "    %s (%s): %s now: %s\n", j.Traffic, j.Family, verb, by)
		}
	}
	if c.Unjudged > 0 {
		fmt.Fprintf(&b, "  %d pairs were not judged: there was no time for them\n", c.Unjudged)
	}
	return b.String()
}

// wouldCut asks the agents of nodes with endpoints how many flows plans would cut.
func (a *app) wouldCut(ctx context.Context, store datastore.Store, view *datastore.View, plans []planned) (string, error) {
	s, err := a.settings()
	if err != nil {
		return "", err
	}
	q := question{store: store}
	size := 0
	for _, p := range plans {
		if p.verb != "unchanged" && slices.Contains(judgedKinds(), p.object.Kind()) {
			q.Changes = append(q.Changes, datastore.AskedChange{Key: p.op.Key, Value: p.op.Value})
			size += len(p.op.Key) + len(p.op.Value)
		}
	}
	for _, e := range view.Endpoints() {
		if !slices.Contains(q.Nodes, e.Spec.Node) {
			q.Nodes = append(q.Nodes, e.Spec.Node)
		}
	}
	if size > datastore.AskBytes*3/4 {
		return "Flows that would be cut: not known, the change is too large to be asked about\n", nil
	}
	slices.Sort(q.Nodes)
	if err := q.put(ctx, s.Node); err != nil {
		return "Flows that would be cut: not known: " + oneLine(err) + "\n", nil
	}
	defer q.remove(ctx)
	answers, err := q.await(ctx, cutAnswer, func(a datastore.Answer) bool { return a.Told })
	if err != nil {
		return "", err
	}
	total := 0
	var on, silent []string
	for _, n := range q.Nodes {
		switch r, ok := answers[n]; {
		case !ok || !r.Told || r.Error != "":
			silent = append(silent, n)
		case r.Flows > 0:
			total += r.Flows
			on = append(on, fmt.Sprintf("%s %d", n, r.Flows))
		}
	}
	text := fmt.Sprintf("Flows that would be cut: %d", total)
	if len(on) > 0 {
		text += " (" + strings.Join(on, ", ") + ")"
	}
	if len(silent) > 0 {
		text += "; not known of " + strings.Join(silent, ", ")
	}
	return text + "\n", nil
}
