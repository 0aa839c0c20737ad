package acl

import (
	"slices"
	"strings"

	"netctl/datastore"
)

// origin is the rule of the model that a compiled rule comes of.
type origin struct {
	owner    owner
	position int // from 0
	rule     *datastore.Rule
	id       string // see ruleIDs
}

// owner is the object of the model that a list of rules is of.
type owner struct {
	kind datastore.Kind
	name string
	tier string // of a Policy; only where its rules are compiled
	// staged says that it is a Policy that decides nothing.
	staged bool
}

// label is the owner as comments in the kernel name it: kind and name.
func (o owner) label() string {
	if o.staged {
		return "staged policy " + o.name
	}
	return strings.ToLower(string(o.kind)) + " " + o.name
}

// Asked is a rule of the model that a packet met, and whether it matched.
type Asked struct {
	datastore.RulePlace
	Matched bool `json:"matched"`
}

// Explanation is a Decision with the rules of the model on the way to it.
type Explanation struct {
	Decision
	// By is the rule that decided; nil: no rule of the model did, Reason says what.
	By *datastore.RulePlace
	// Asked are the rules that the packet met, in their order, By the last of them.
	Asked []Asked
}

// Explain is Eval on what the table should hold now, with the rules of the model.
func (x *Index) Explain(p Packet) Explanation {
	var e Explanation
	allows := false // e.By
	w := walk{Judge: x.Ruleset().Judge(), packet: p}
	w.met = func(chain string, rule int, matched bool) {
		c := x.chains[chain]
		if c == nil {
			return
		}
		from, ok := c.origin(rule)
		if !ok {
			return
		}
		a := Asked{from.place(c.direction), matched}
		if last := len(e.Asked) - 1; last >= 0 && e.Asked[last].RulePlace == a.RulePlace { // another alternative of it
			e.Asked[last].Matched = e.Asked[last].Matched || matched
		} else {
			e.Asked = append(e.Asked, a)
		}
		if from.owner.staged {
			return // it only counts
		}
		if e.By = nil; matched && from.rule.Action != datastore.Log && from.rule.Action != datastore.Pass {
			e.By, allows = &a.RulePlace, from.rule.Action == datastore.Allow
		}
	}
	if e.Decision = w.run(); e.Allowed != allows { // it only let the packet go on to the other side
		e.By = nil
	}
	if e.Reason == "" {
		e.Reason = reason(e.Chain)
	}
	return e
}

// reason is why a chain drops whose rules say it by no comment.
func reason(chain string) string {
	switch chain {
	case chainWLHost:
		return "a workload may not open this on its own host (agent.workloadToHost)"
	case chainDenyIn, chainDropIn:
		return "no inbound rule allows it"
	case chainDenyOut, chainDropOut:
		return "no outbound rule allows it"
	}
	return ""
}

// origin is what rule number i of the chain, as it is now, comes of.
func (c *liveChain) origin(i int) (origin, bool) {
	closed := c.denies()
	if closed != (families{}) {
		i-- // the one that denies until its sets are whole
	}
	if i < 0 || closed == (families{true, true}) || i >= len(c.program.origins) || c.program.origins[i].rule == nil {
		return origin{}, false
	}
	return c.program.origins[i], true
}

func (o origin) place(d direction) datastore.RulePlace {
	return datastore.RulePlace{ID: o.id, Kind: o.owner.kind, Name: o.owner.name, Tier: o.owner.tier, Staged: o.owner.staged, Direction: d.words(o.owner.kind), Position: o.position + 1, Rule: o.rule.String()}
}

// Passed are the rules that were asked before the one that decided.
func (e Explanation) Passed() []Asked {
	if e.By == nil {
		return e.Asked
	}
	return slices.DeleteFunc(slices.Clone(e.Asked), func(a Asked) bool { return a.RulePlace == *e.By })
}

// Placed is a rule of a chain, and the rule of the model that it comes of.
type Placed struct {
	Rule  Rule
	Place datastore.RulePlace
}

// Placed are the rules of a chain that come of rules of the model; of one for a rule of a
// run, those of all chains.
func (x *Index) Placed(chain string) (list []Placed) {
	if inRun(chain) {
		for _, name := range sortedKeys(x.chains) {
			list = append(list, x.Placed(name)...)
		}
		return list
	}
	c := x.chains[chain]
	if c == nil {
		return nil
	}
	for i, from := range c.program.origins {
		if from.rule != nil {
			list = append(list, Placed{c.program.rules[i], from.place(c.direction)})
		}
	}
	return list
}
