package commands

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

// outcome is what a restore does with one object.
type outcome struct {
	kind datastore.Kind
	name string
	word string // restored, replaced, unchanged, kept or skipped
	why  string
}

// outcomes are those by key.
type outcomes map[string]outcome

func (s outcomes) note(o datastore.Object, word, why string) {
	s[keyOf(o)] = outcome{o.Kind(), o.Meta().Name, word, why}
}

// revise changes what was said to be restored.
func (s outcomes) revise(o datastore.Object, word, why string) {
	if s[keyOf(o)].word == "restored" {
		s.note(o, word, why)
	}
}

// keyOf is the key of an object that was read, which always has one.
func keyOf(o datastore.Object) string {
	key, _ := datastore.KeyOf(o)
	return key
}

// alreadyThere is why blocks and endpoints of the datastore stay as they are.
const alreadyThere = "as the datastore has it"

// maxRestored bounds how many objects a line names.
const maxRestored = 10

// text has a line for each kind, outcome and reason.
func (s outcomes) text() string {
	type group struct {
		kind      datastore.Kind
		word, why string
	}
	names := map[group][]string{}
	for _, o := range s {
		g := group{o.kind, o.word, o.why}
		names[g] = append(names[g], strings.TrimPrefix(labelOf(o.kind, o.name), strings.ToLower(string(o.kind))+" "))
	}
	words := []string{"restored", "replaced", "unchanged", "kept", "skipped"}
	groups := slices.SortedFunc(maps.Keys(names), func(x, y group) int {
		return cmp.Or(slices.Index(datastore.Kinds(), x.kind)-slices.Index(datastore.Kinds(), y.kind),
			slices.Index(words, x.word)-slices.Index(words, y.word), cmp.Compare(x.why, y.why))
	})
	var b strings.Builder
	for _, g := range groups {
		list := slices.Sorted(slices.Values(names[g]))
		fmt.Fprintf(&b, "%s: %d %s", strings.ToLower(string(g.kind)), len(list), g.word)
		if g.why != "" {
			b.WriteString(", " + g.why)
		}
		if g.word != "restored" && g.word != "unchanged" && g.why != alreadyThere && g.kind != datastore.KindReport {
			b.WriteString(": " + fewOf(list))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// fewOf names the first of a list.
func fewOf(list []string) string {
	s := strings.Join(list[:min(len(list), maxRestored)], ", ")
	if more := len(list) - maxRestored; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// plan decides about each object of the backup, and disables the other pools. It
// changes view: objects that are to be written count for those that follow.
func (r *restore) plan(view *datastore.View) ([]planned, error) {
	r.others(view)
	plans, err := r.closePools(view)
	if err != nil {
		return nil, err
	}
	held := addressesOf(view)
	for _, o := range r.objects {
		old := view.Object(o.Kind(), o.Meta().Name)
		want, why := r.wanted(view, held, o, old)
		if want == nil {
			continue
		}
		if why == "" {
			if err := view.Unreadable(o.Kind(), o.Meta().Name); err != nil {
				why = oneLine(err)
			}
		}
		if _, ok := want.(*datastore.Endpoint); !ok && why == "" {
			if err := view.CheckPut(want); err != nil {
				why = oneLine(err)
			}
		}
		if why != "" {
			r.said.note(o, "skipped", why)
			continue
		}
		p, err := r.put(o, want, old)
		if err != nil {
			return nil, err
		}
		if _, err := view.Apply(datastore.Entry{Key: p.op.Key, Value: p.op.Value, Revision: p.cond.Revision}); err != nil {
			return nil, err
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// put is the plan that writes want, which was made of o, in place of old.
func (r *restore) put(o, want, old datastore.Object) (planned, error) {
	p := planned{manifest: manifest{object: want}, verb: "created"}
	want.Meta().Revision = 0
	word := "restored"
	if old != nil {
		want.Meta().Revision = old.Meta().Revision
		p.verb, word = "updated", "replaced"
	}
	var err error
	if p.cond, p.op, err = datastore.OpPut(want); err != nil {
		return p, err
	}
	switch {
	case old == nil:
	case sameObject(old, want):
		p.verb, word = "unchanged", "unchanged"
	case sameObject(old, o): // a pool that is closed for the moment
		word = "unchanged"
	}
	r.said.note(o, word, "")
	return p, nil
}

// sameObject says whether two objects are stored as the same.
func sameObject(a, b datastore.Object) bool {
	x, errX := datastore.Encode(a)
	y, errY := datastore.Encode(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// wanted is what an object of the backup becomes in the datastore; nil: old stays, or
// there is nothing to restore. why is why it cannot be.
func (r *restore) wanted(view *datastore.View, held map[string]string, o, old datastore.Object) (want datastore.Object, why string) {
	switch o.Kind() {
	case datastore.KindReport:
		r.said.note(o, "skipped", "the nodes report themselves")
		return nil, ""
	case datastore.KindNode, datastore.KindBlock, datastore.KindEndpoint:
		if r.foreign {
			r.said.note(o, "skipped", "it is another cluster's")
			return nil, ""
		}
	}
	switch o := o.(type) {
	case *datastore.Pool:
		return closed(o), ""
	case *datastore.Node:
		return wantedNode(view, o, old)
	case *datastore.Block:
		if old != nil {
			r.said.note(o, "kept", alreadyThere)
			return nil, ""
		}
		return wantedBlock(view, o)
	case *datastore.Endpoint:
		if old != nil {
			r.said.note(o, "kept", alreadyThere)
			return nil, ""
		}
		if !datastore.OwnsLink(o.Metadata.Name, o.Spec.Link) {
			return o, "it names another's link"
		}
		for _, a := range o.Spec.Addresses {
			who := cmp.Or(view.Holder(a), held[a.String()])
			if who != "" && who != o.Metadata.Name {
				return o, fmt.Sprintf("its address %s is held by %s", a, who)
			}
		}
	}
	return o, ""
}

// wantedNode is a node with what a person set of it in the backup; where it is, and how
// to reach it, its agent says.
func wantedNode(view *datastore.View, o *datastore.Node, old datastore.Object) (datastore.Object, string) {
	if old == nil {
		if others := view.OtherNodesOf(o.Status.Host, o.Metadata.Name); o.Status.Host != "" && len(others) > 0 {
			return o, "its host is node " + others[0].Metadata.Name + " now"
		}
		return o, ""
	}
	now := *old.(*datastore.Node)
	now.Metadata.Labels = o.Metadata.Labels
	now.Spec.AS, now.Spec.Reflector, now.Spec.Drain = o.Spec.AS, o.Spec.Reflector, o.Spec.Drain
	return &now, ""
}

// wantedBlock is a block without the addresses of endpoints: those are the ones' that
// run, and then those' of the backup.
func wantedBlock(view *datastore.View, o *datastore.Block) (datastore.Object, string) {
	for _, b := range view.Blocks() {
		if b.Spec.CIDR.Overlaps(o.Spec.CIDR) {
			return o, "it overlaps block " + b.Spec.CIDR.String()
		}
	}
	b := ipam.Emptied(o)
	if view.Node(b.Spec.Affinity) == nil {
		b.Spec.Affinity = ""
	}
	return b, ""
}

// closed is a pool that gives out nothing until the restore is through.
func closed(p *datastore.Pool) *datastore.Pool {
	out := *p
	if !p.Spec.Disabled {
		out.Spec.Disabled = true
		out.Metadata.Labels = maps.Clone(p.Metadata.Labels)
		if out.Metadata.Labels == nil {
			out.Metadata.Labels = map[string]string{}
		}
		out.Metadata.Labels[datastore.LabelRestoring] = "yes"
	}
	return &out
}

// closePools closes the pools that the backup does not have.
func (r *restore) closePools(view *datastore.View) (plans []planned, err error) {
	for _, p := range view.Pools() {
		if r.has[keyOf(p)] || p.Spec.Disabled {
			continue
		}
		c := closed(p)
		cond, op, err := datastore.OpPut(c)
		if err != nil {
			return nil, err
		}
		plans = append(plans, planned{manifest: manifest{object: c}, verb: "updated", cond: cond, op: op})
	}
	return plans, nil
}

// others notes what the datastore has and the backup does not.
func (r *restore) others(view *datastore.View) {
	for _, k := range datastore.Kinds() {
		if k == datastore.KindReport {
			continue
		}
		for _, o := range view.Objects(k) {
			if !r.has[keyOf(o)] {
				r.said.note(o, "kept", "as the backup has none")
			}
		}
	}
}

// addressesOf is which endpoint has which address.
func addressesOf(view *datastore.View) map[string]string {
	out := map[string]string{}
	for _, e := range view.Endpoints() {
		for _, a := range e.Spec.Addresses {
			out[a.String()] = e.Metadata.Name
		}
	}
	return out
}

// without is a copy of labels that lacks one.
func without(labels map[string]string, key string) map[string]string {
	out := maps.Clone(labels)
	delete(out, key)
	return out
}
