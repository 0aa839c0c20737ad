package acl

import (
	"slices"

	"netctl/datastore"
)

// A staged policy decides nothing. Its rules stand where they would if it were in force,
// in a chain that those of its neighbours in the tier share which are staged too: the first
// that matches is counted, and what it would deny is logged. Then the next policy is asked
// that is in force. Of a tier whose policies for the endpoint are all staged, what the
// last of them leaves undecided is logged as well, if the tier would deny it.
//
// So that whatever would be denied if all staged policies were in force, and is allowed now,
// is logged: up to the first rule of a staged policy that matches, both go the same way. A
// rule that passes is logged for that, too, as what it leaves out may have allowed it.

// step is one of a stage's owners, or several staged ones in a row, which share a chain.
type step struct {
	owners []owner
	staged bool
	// tier is theirs; ends says that it would deny what they leave undecided.
	tier string
	ends bool
}

// steps are those of a stage, in their order.
func (s stage) steps() (list []step) {
	for _, o := range s.owners {
		if n := len(list); o.staged && n > 0 && list[n-1].staged {
			list[n-1].owners = append(list[n-1].owners, o)
		} else {
			list = append(list, step{owners: []owner{o}, staged: o.staged, tier: s.tier})
		}
	}
	if n := len(list); n > 0 && s.idle && s.denies {
		list[n-1].ends = true
	}
	return list
}

// deciding are the stages without their staged policies.
func deciding(list []stage) (out []stage) {
	for _, s := range list {
		if s.idle {
			continue
		}
		s.owners = slices.DeleteFunc(slices.Clone(s.owners), func(o owner) bool { return o.staged })
		out = append(out, s)
	}
	return out
}

// chain is the name of the step's chain.
func (t step) chain(d direction) string {
	if !t.staged {
		return chainOf(d, t.owners[0])
	}
	parts := []string{t.tier, string(datastore.TierPass)}
	if t.ends {
		parts[1] = string(datastore.TierDeny)
	}
	for _, o := range t.owners {
		parts = append(parts, o.name)
	}
	return hashName("staged_"+d.short(), parts...)
}

func (t step) label() string {
	if t.staged {
		return "staged policies of tier " + t.tier
	}
	return t.owners[0].label()
}

// jump is the rule that has the step's chain asked.
func (t step) jump(d direction) Rule {
	return Rule{Verdict: Verdict{Kind: Jump, Chain: t.chain(d)}, Comment: clip(t.label())}
}

// stagedLog is the end of what a rule of a staged policy, or the end of its tier, would
// deny: it writes it, and goes on behind the staged policies.
func stagedLog(name, id, whose string, d direction) end {
	return end{name, []Rule{{Limit: few(MeterLog, LinkPair), Log: logPrefix("S", d, id, whose)}}}
}

func (p *program) wouldRefuse(from origin, d direction) Verdict {
	return p.finish(stagedLog("would_"+d.short()+"_"+from.id, from.id, from.owner.whose(), d))
}

func (p *program) wouldBeUndecided(tier string, d direction) Rule {
	return Rule{Verdict: p.finish(stagedLog(hashName("would_"+d.short(), "tier", tier), defaultID, tier, d)), Comment: clip(undecidedReason(tier, d))}
}

// has says whether the chain has rules of the owner.
func (c *liveChain) has(o owner) bool {
	return slices.ContainsFunc(c.owners, func(p owner) bool { return p.kind == o.kind && p.name == o.name })
}
