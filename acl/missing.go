package acl

import (
	"fmt"
	"slices"

	"netctl/datastore"
)

// Missing says what this node's endpoints, and the rules that they are judged by, name and
// nobody has: such a name is accepted, and matches nothing.
func (x *Index) Missing() (list []string) {
	tags := map[string]bool{}
	for _, p := range x.profiles {
		for _, t := range p.Spec.Tags {
			tags[t] = true
		}
	}
	for _, name := range sortedKeys(x.chains) {
		c := x.chains[name]
		var last string // a rule may be several
		for _, from := range c.program.origins {
			if from.rule == nil || from.id == last {
				continue
			}
			last = from.id
			for _, s := range []datastore.Side{from.rule.From, from.rule.To} {
				for _, what := range x.missingOf(s, tags) {
					list = append(list, fmt.Sprintf("%s names %s", from.place(c.direction), what))
				}
			}
		}
	}
	for _, link := range sortedKeys(x.wired) {
		e := x.members[sortedKeys(x.links[link])[0]].endpoint
		for _, p := range e.Spec.Profiles {
			if x.profiles[p] == nil {
				list = append(list, fmt.Sprintf("endpoint %s names profile %s, which does not exist", e.Metadata.Name, p))
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// missingOf is what a side of a rule names in vain.
func (x *Index) missingOf(s datastore.Side, tags map[string]bool) (list []string) {
	if t := s.Tag.Value; t != "" && !tags[t] {
		list = append(list, "tag "+t+", which no profile has")
	}
	if n := s.Set.Value; n != "" && x.networks[n] == nil {
		list = append(list, "network set "+n+", which does not exist")
	}
	if text := s.Selector.Value; text != "" {
		if p := x.selectors[text]; p != nil && p.upto == whole && len(p.count) == 0 && !x.selectsNets(fromSelector, text) {
			list = append(list, fmt.Sprintf("selector %q, which picks nobody", text))
		}
	}
	return list
}
