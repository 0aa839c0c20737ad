package acl

import (
	"slices"

	"netctl/datastore"
)

// audience is the live selectors by the labels that they look for, so that a member
// is held against those alone that its labels may concern.
type audience struct {
	terms  map[term][]*population
	anyone []*population // those that labels which lack everything may meet
	round  int           // of each, to ask nobody twice
}

// term is a label, or with an empty value and any set a key with whatever value.
type term struct {
	key, value string
	any        bool
}

func (a *audience) add(p *population) {
	if p.need == nil {
		a.anyone = append(a.anyone, p)
	}
	for _, t := range terms(p.need) {
		a.terms[t] = append(a.terms[t], p)
	}
}

func (a *audience) remove(p *population) {
	is := func(o *population) bool { return o == p }
	a.anyone = slices.DeleteFunc(a.anyone, is)
	for _, t := range terms(p.need) {
		if a.terms[t] = slices.DeleteFunc(a.terms[t], is); len(a.terms[t]) == 0 {
			delete(a.terms, t)
		}
	}
}

// each calls fn once for each selector that the labels may meet.
func (a *audience) each(labels map[string]string, fn func(*population)) {
	a.round++
	tell := func(list []*population) {
		for _, p := range list {
			if p.asked != a.round {
				p.asked = a.round
				fn(p)
			}
		}
	}
	tell(a.anyone)
	for key, value := range labels {
		tell(a.terms[term{key: key, any: true}])
		tell(a.terms[term{key: key, value: value}])
	}
}

// terms are labels of which one at least is there wherever the need is met.
func terms(n *datastore.Need) (out []term) {
	switch {
	case n == nil:
	case n.Any != nil:
		for _, o := range n.Any {
			out = append(out, terms(o)...)
		}
	case n.All != nil:
		return narrowest(n.All)
	case n.Values == nil:
		out = append(out, term{key: n.Key, any: true})
	default:
		for _, v := range n.Values {
			out = append(out, term{key: n.Key, value: v})
		}
	}
	return out
}

// narrowest is the terms of one of several needs that must all be met: rather
// labels with values than keys alone, rather few than many.
func narrowest(all []*datastore.Need) []term {
	keys := func(list []term) (n int) {
		for _, t := range list {
			if t.any {
				n++
			}
		}
		return n
	}
	best := terms(all[0])
	for _, n := range all[1:] {
		t := terms(n)
		if k, least := keys(t), keys(best); k < least || k == least && len(t) < len(best) {
			best = t
		}
	}
	return best
}
