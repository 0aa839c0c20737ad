package acl

import (
	"cmp"
	"slices"

	"netctl/datastore"
)

// Count is what a rule has counted.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Plus is the sum of both.
func (c Count) Plus(o Count) Count { return Count{c.Packets + o.Packets, c.Bytes + o.Bytes} }

// Counted is a rule of the model, and what counts it in the packet filter.
type Counted struct {
	datastore.RulePlace
	Rules []Rule
}

// Counted are the rules that this node's endpoints are judged by, of the profiles and
// policies that of says, in their order. A rule may be several in the packet filter, and
// one of those in several chains.
func (x *Index) Counted(of func(k datastore.Kind, name string) bool) (list []Counted) {
	at := map[string]int{} // by ID
	for _, name := range sortedKeys(x.chains) {
		c := x.chains[name]
		for i, from := range c.program.origins {
			if from.rule == nil || !of(from.owner.kind, from.owner.name) {
				continue
			}
			n, ok := at[from.id]
			if !ok {
				n = len(list)
				at[from.id] = n
				list = append(list, Counted{RulePlace: from.place(c.direction)})
			}
			r := c.program.rules[i]
			if !slices.ContainsFunc(list[n].Rules, r.Equal) {
				list[n].Rules = append(list[n].Rules, r)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b Counted) int {
		return cmp.Or(x.comparePlaces(a.RulePlace, b.RulePlace), cmp.Compare(b.Direction, a.Direction), cmp.Compare(a.Position, b.Position))
	})
	return list
}

// comparePlaces orders policies as they are asked, and profiles behind them by name.
func (x *Index) comparePlaces(a, b datastore.RulePlace) int {
	p, q := x.policies[a.Name], x.policies[b.Name]
	if a.Kind != datastore.KindPolicy {
		p = nil
	}
	if b.Kind != datastore.KindPolicy {
		q = nil
	}
	switch {
	case p != nil && q != nil:
		return x.comparePolicies(p, q)
	case p != nil:
		return -1
	case q != nil:
		return 1
	}
	return cmp.Compare(a.Name, b.Name)
}
