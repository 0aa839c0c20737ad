package acl

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// Hook says where a base chain is attached; its policy is accept.
type Hook struct {
	Name     string // prerouting, input, forward, output, postrouting
	Priority int32
}

// priorityDNAT is that of the translation of destinations (nft(8), dstnat).
const priorityDNAT = -100

// Type is the type of its chain as nft names it: what is done late to packets that have
// been routed, or at that priority, is translation of addresses.
func (h Hook) Type() string {
	if h.Name == "postrouting" && h.Priority > 0 || h.Priority == priorityDNAT {
		return "nat"
	}
	return "filter"
}

// Chain is an ordered list of rules; a base chain has a Hook.
type Chain struct {
	Name  string
	Hook  *Hook
	Rules []Rule
}

// Ruleset is everything that should be in the table.
type Ruleset struct {
	Sets   map[string]*Set
	Chains map[string]*Chain
}

// SetChange is what changes in one set. Of a New set Add holds every element;
// of a Gone set Del is empty.
type SetChange struct {
	Name      string
	Type      SetType
	Comment   string
	New, Gone bool
	Add, Del  []Element
}

// ChainChange is what changes in one chain: its complete new rules, and of one
// that is not New those it had before. They are the same where what Pack makes of them
// changes, with sets of the delta.
type ChainChange struct {
	Name          string
	New, Gone     bool
	Hook          *Hook // of a New base chain
	Before, Rules []Rule
}

// Edit is what makes a chain's rules before into those it has now: from At on,
// Delete rules go, and Insert come in their place.
type Edit struct {
	At, Delete int
	Insert     []Rule
}

// Edit is the smallest such edit.
func (c ChainChange) Edit() Edit {
	at := 0
	for at < len(c.Before) && at < len(c.Rules) && c.Before[at].Equal(c.Rules[at]) {
		at++
	}
	before, now := len(c.Before), len(c.Rules)
	for before > at && now > at && c.Before[before-1].Equal(c.Rules[now-1]) {
		before--
		now--
	}
	return Edit{At: at, Delete: before - at, Insert: c.Rules[at:now]}
}

// Delta is the objects that changed, sorted by name. A back end applies it as
// one transaction: new sets and elements, new chains, changed chains, map
// elements, then what is deleted (docs/policy.md, "The table").
type Delta struct {
	Sets   []SetChange
	Chains []ChainChange
}

// Empty tells whether nothing changed.
func (d Delta) Empty() bool { return len(d.Sets) == 0 && len(d.Chains) == 0 }

// Clone is a deep copy, but for rules, which nobody changes.
func (r *Ruleset) Clone() *Ruleset {
	out := &Ruleset{Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	for n, s := range r.Sets {
		c := *s
		c.Elements = maps.Clone(s.Elements)
		out.Sets[n] = &c
	}
	for n, c := range r.Chains {
		c := *c
		out.Chains[n] = &c
	}
	return out
}

// Apply changes r as d says.
func (r *Ruleset) Apply(d Delta) {
	for _, c := range d.Sets {
		switch {
		case c.Gone:
			delete(r.Sets, c.Name)
			continue
		case c.New:
			r.Sets[c.Name] = newSet(c.Name, c.Type, c.Comment)
		}
		s := r.Sets[c.Name]
		for _, e := range c.Del {
			delete(s.Elements, e)
		}
		s.add(c.Add...)
	}
	for _, c := range d.Chains {
		switch {
		case c.Gone:
			delete(r.Chains, c.Name)
		case c.New:
			r.Chains[c.Name] = &Chain{Name: c.Name, Hook: c.Hook, Rules: c.Rules}
		default:
			r.Chains[c.Name].Rules = c.Rules
		}
	}
}

// With is r changed as several deltas say, one after the other. r stays as it is; the two share
// what they have in common.
func (r *Ruleset) With(deltas ...Delta) *Ruleset {
	out := &Ruleset{Sets: maps.Clone(r.Sets), Chains: maps.Clone(r.Chains)}
	for _, d := range deltas {
		for _, c := range d.Sets {
			if s := out.Sets[c.Name]; s != nil && s == r.Sets[c.Name] {
				own := *s
				own.Elements = maps.Clone(s.Elements)
				out.Sets[c.Name] = &own
			}
		}
		for _, c := range d.Chains {
			if chain := out.Chains[c.Name]; chain != nil {
				own := *chain
				out.Chains[c.Name] = &own
			}
		}
		out.Apply(d)
	}
	return out
}

// Changes is how many objects, elements and rules a delta names.
func (d Delta) Changes() (n int) {
	for _, c := range d.Sets {
		n += 1 + len(c.Add) + len(c.Del)
	}
	for _, c := range d.Chains {
		n += 1 + len(c.Rules)
	}
	return n
}

func sameRules(a, b []Rule) bool {
	return slices.EqualFunc(a, b, Rule.Equal)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Endpoints tells whether there is any endpoint.
func (r *Ruleset) Endpoints() bool {
	s := r.Sets[mapFromEP]
	return s != nil && len(s.Elements) > 0
}

// Strict says whether each packet is judged that goes as its flow began (Options).
func (r *Ruleset) Strict() bool {
	c := r.Chains[ChainFwdFrom]
	return c != nil && slices.ContainsFunc(c.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.Match, func(t Term) bool { return t.Field == CTDirection })
	})
}

// Shut is what lets nothing through from or to an endpoint, and has no connection tracked.
func (r *Ruleset) Shut() *Ruleset {
	out := &Ruleset{Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	for _, c := range r.Chains {
		if c.Hook == nil || c.Hook.Type() != "filter" || strings.HasPrefix(c.Name, ARPPrefix) || ofHosts(c.Name) {
			continue
		}
		for _, rule := range c.Rules {
			i := slices.IndexFunc(rule.Match, func(t Term) bool { return t.Field == InGroup || t.Field == OutGroup || t.Set == setAdopted })
			if i < 0 || c.Hook.Name == "prerouting" {
				continue
			}
			shut := refuse("shut for a moment", rule.Match[i])
			if out.Chains[c.Name] == nil {
				out.Chains[c.Name] = &Chain{Name: c.Name, Hook: c.Hook}
			}
			if now := out.Chains[c.Name]; !slices.ContainsFunc(now.Rules, shut.Equal) {
				now.Rules = append(now.Rules, shut)
			}
			if set := rule.Match[i].Set; set != "" {
				out.Sets[set] = r.Sets[set]
			}
		}
	}
	return out
}

// Adopt has r, which Static made for a host that adopts, know the link of an endpoint that
// others made.
func (r *Ruleset) Adopt(link string) {
	for _, name := range []string{setAdopted, setAdoptedARP} {
		if s := r.Sets[name]; s != nil {
			s.add(Element{Link: link})
		}
	}
}

// Closed is the part of r that lets nothing new pass to or from a workload: the base
// chains, and what they refer to by rules. Its maps of links are empty, so that no
// endpoint is known. It stands by itself.
func (r *Ruleset) Closed() *Ruleset {
	out := &Ruleset{Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	set := func(name string) {
		s := r.Sets[name]
		if s == nil || out.Sets[name] != nil {
			return
		}
		if s.Type == LinkVerdict {
			s = newSet(s.Name, s.Type, s.Comment)
		}
		out.Sets[name] = s
	}
	var chain func(name string)
	chain = func(name string) {
		c := r.Chains[name]
		if c == nil || out.Chains[name] != nil {
			return
		}
		if ofHosts(name) {
			c = c.closed()
		}
		out.Chains[name] = c
		for _, rule := range c.Rules {
			for _, t := range rule.Match {
				set(t.Set)
			}
			set(rule.Limit.Set)
			if v := rule.Verdict; v.Kind == Lookup {
				set(v.Chain)
			} else {
				chain(v.Chain)
			}
		}
	}
	for name, c := range r.Chains {
		if c.Hook != nil {
			chain(name)
		}
	}
	return out
}
