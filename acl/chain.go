package acl

import (
	"slices"

	"netctl/datastore"
)

// chainRank says what a chain is for: those of one rank refer to later ones only.
type chainRank uint8

const (
	baseChain  chainRank = iota
	classChain           // of a class of endpoints
	ruleChain            // of rules of the model
	endChain             // of what they do with a packet
	lastRank
)

// liveChain is a chain that somebody refers to, or did at the last Flush.
type liveChain struct {
	name    string
	refs    int
	hook    *Hook // of a base chain
	program program
	rank    chainRank
	// Of a class: the chains of rules it refers to.
	jumps []string
	// Of a chain of rules: whose they are, and how many local endpoints with it have
	// IPv4 and IPv6 addresses.
	owners    []owner
	direction direction
	count     [2]int
	// Of one of several policies: their tier, whether it passes what they do not decide, and
	// whether they are staged.
	tier   string
	passes bool
	staged bool
	// next replaces program as soon as every set that it needs is whole; nil: program
	// is up to date. Until then the chain denies the families in closed, for which
	// program has no rules.
	next   *program
	closed families
}

func (c *liveChain) families() families { return families{c.count[0] > 0, c.count[1] > 0} }

func (c *liveChain) close(f families) {
	c.closed = families{c.closed[0] || f[0], c.closed[1] || f[1]}
}

// label says whose rules the chain has.
func (c *liveChain) label() string {
	if c.tier != "" {
		return "tier " + c.tier
	}
	return c.owners[0].label()
}

// denies are the families that the chain denies while it waits for its sets. Of staged
// policies it has the rules of before, or none.
func (c *liveChain) denies() families {
	if c.staged {
		return families{}
	}
	return c.closed
}

// rules are what the chain holds now.
func (c *liveChain) rules() []Rule {
	if c.denies() == (families{}) {
		return c.program.rules
	}
	deny := Rule{Verdict: goTo(c.direction.denyChain()), Comment: clip(c.label() + ": its selectors are being worked out")}
	switch c.closed {
	case families{true, true}:
		return []Rule{deny}
	case families{true, false}:
		deny.Match = []Term{num(NFProto, nfIPv4)}
	default:
		deny.Match = []Term{num(NFProto, nfIPv6)}
	}
	return append([]Rule{deny}, c.program.rules...)
}

// className is the name of the class of a list of stages.
func className(u use, d direction, stages []stage) string {
	var parts []string
	for _, s := range stages {
		parts = append(parts, s.key(d)...)
	}
	return hashName(u.word()+d.short(), parts...)
}

// classProgram are the rules of a class; jumps are the chains of rules that they refer to.
func classProgram(d direction, stages []stage) (p program, jumps []string) {
	for _, s := range stages {
		if s.passes {
			jumps = append(jumps, tierChain(d, s))
			p.rules = append(p.rules, Rule{Verdict: Verdict{Kind: Jump, Chain: tierChain(d, s)}, Comment: clip("tier " + s.tier)})
		}
		for _, t := range s.steps() {
			if t.staged || !s.passes {
				jumps = append(jumps, t.chain(d))
			}
			if !s.passes {
				p.rules = append(p.rules, t.jump(d))
			}
		}
		if s.denies && !s.passes && !s.idle {
			p.rules = append(p.rules, p.undecided(s.tier, d))
		}
	}
	return p, jumps
}

func (x *Index) acquireClass(u use, d direction, stages []stage) string {
	name := className(u, d, stages)
	c := x.chains[name]
	if c == nil {
		c = x.newChain(name)
		c.rank = classChain
		c.program, c.jumps = classProgram(d, stages)
		x.hold(&c.program)
		for _, s := range stages {
			if s.passes {
				x.acquireRules(liveChain{name: tierChain(d, s), direction: d, owners: s.owners, tier: s.tier, passes: !s.denies})
			}
			for _, t := range s.steps() {
				switch {
				case t.staged:
					x.acquireRules(liveChain{name: t.chain(d), direction: d, owners: t.owners, tier: t.tier, passes: !t.ends, staged: true})
				case !s.passes:
					x.acquireRules(liveChain{name: t.chain(d), direction: d, owners: t.owners})
				}
			}
		}
	}
	c.refs++
	return name
}

// acquireRules acquires a chain of the rules of one profile or policy, or of several of a
// tier, which passes what they do not decide or denies it.
func (x *Index) acquireRules(is liveChain) {
	c := x.chains[is.name]
	if c == nil {
		c = x.newChain(is.name)
		*c = is
		c.rank = ruleChain
		if c.tier != "" {
			x.tierChains[c.name] = c
		}
		x.compileAgain(c)
	}
	c.refs++
}

// compileAgain replaces the rules of a chain of rules by what they are now; nil: there is
// no such chain.
func (x *Index) compileAgain(c *liveChain) {
	if c != nil {
		x.recompile(c, x.compile(c, c.families()))
	}
}

// compile compiles the rules of a chain for the families that endpoints have.
func (x *Index) compile(c *liveChain, f families) program {
	p := program{families: f, nets: x.selectsNets, used: map[string]bool{}}
	if p.staged = c.staged; c.staged {
		for _, o := range c.owners {
			p.addAll(o, c.direction, x.rulesOf(o, c.direction))
		}
		if !c.passes {
			p.addPlain(p.wouldBeUndecided(c.tier, c.direction))
		}
		return p
	}
	for _, t := range (stage{tier: c.tier, owners: c.owners}).steps() {
		if t.staged {
			p.addPlain(t.jump(c.direction))
			continue
		}
		o := t.owners[0]
		if q := x.policies[o.name]; q != nil && o.kind == datastore.KindPolicy {
			o.tier = q.Spec.Tier
		}
		p.addAll(o, c.direction, x.rulesOf(o, c.direction))
		if q := x.policies[o.name]; o.kind == datastore.KindPolicy && q != nil && q.Spec.DoNotTrack {
			p.untrack() // all of one chain are of such policies
		}
	}
	if c.tier != "" && !c.passes {
		p.addPlain(p.undecided(c.tier, c.direction))
	}
	return p
}

func (x *Index) rulesOf(o owner, d direction) []datastore.Rule {
	if o.kind == datastore.KindPolicy {
		return x.policies[o.name].rules(d)
	}
	return rulesOf(x.profiles[o.name], d)
}

func (x *Index) newChain(name string) *liveChain {
	c := &liveChain{name: name}
	x.pending.chain(name, nil)
	x.chains[name] = c
	return c
}

// recompile replaces a profile chain's rules and the sets it needs, once these are
// whole.
func (x *Index) recompile(c *liveChain, p program) {
	x.abandon(c)
	// A rule of the model that comes to none here has an end all the same.
	sameEnds := slices.EqualFunc(c.program.ends, p.ends, func(a, b end) bool { return a.name == b.name })
	if sameRules(c.program.rules, p.rules) && sameEnds {
		x.pending.chain(c.name, c)
		c.closed, c.program.origins = families{}, p.origins
		return
	}
	p.addGates()
	x.hold(&p)
	if !x.whole(p) {
		x.pending.chain(c.name, c)
		x.await(c, p)
		return
	}
	x.swap(c, p)
}

// swap makes p a chain's program; its sets are acquired.
func (x *Index) swap(c *liveChain, p program) {
	x.pending.chain(c.name, c)
	x.letGo(c.program)
	c.program, c.next, c.closed = p, nil, families{}
}

// abandon drops the next program of a chain, if there is one.
func (x *Index) abandon(c *liveChain) {
	if c.next == nil {
		return
	}
	x.letGo(*c.next)
	for text, list := range x.waiting {
		if list = slices.DeleteFunc(list, func(o *liveChain) bool { return o == c }); len(list) > 0 {
			x.waiting[text] = list
		} else {
			delete(x.waiting, text)
		}
	}
	c.next = nil
}

// release gives back a reference to a class; what nobody refers to any more goes
// at the next Flush.
func (x *Index) release(chain string) {
	c := x.chains[chain]
	c.refs--
	if c.refs == 0 {
		x.pending.chain(chain, c)
	}
}

// hold acquires the sets and chains that a program needs; letGo gives them back.
func (x *Index) hold(p *program) {
	for _, r := range p.refs {
		x.acquireSet(r)
	}
	x.wantGates(p, +1)
	x.holdGates(p)
	x.deny(*p, +1)
	for _, e := range p.ends {
		x.acquireEnd(e)
	}
}

func (x *Index) letGo(p program) {
	x.deny(p, -1)
	for _, r := range p.refs {
		x.releaseSet(r.name)
	}
	x.wantGates(&p, -1)
	for _, g := range p.held {
		x.releaseSet(g)
	}
	for _, e := range p.ends {
		x.release(e.name)
	}
}

// collect drops the chains and sets that nobody refers to: by rank, as those of one only
// held what those of the next are, and then the sets that only they held.
func (x *Index) collect() {
	for rank := range lastRank {
		for _, name := range sortedKeys(x.pending.chains) {
			c := x.chains[name]
			if c == nil || c.refs > 0 || c.rank != rank {
				continue
			}
			for _, j := range c.jumps {
				x.release(j)
			}
			x.abandon(c)
			x.letGo(c.program)
			delete(x.chains, name)
			delete(x.tierChains, name)
		}
	}
	x.regate()
	for name := range x.pending.sets {
		if s := x.sets[name]; s != nil && s.refs == 0 {
			x.dropSet(s)
		}
	}
}
