package acl

import "slices"

// liveChain is a chain that somebody refers to, or did at the last Flush.
type liveChain struct {
	name    string
	refs    int
	hook    *Hook // of a base chain
	program program
	// Of a class: the profile chains it refers to.
	class bool
	jumps []string
	// Of a profile chain: the profile, and how many local endpoints with it have
	// IPv4 and IPv6 addresses.
	profile   string
	direction direction
	count     [2]int
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

// rules are what the chain holds now.
func (c *liveChain) rules() []Rule {
	if c.closed == (families{}) {
		return c.program.rules
	}
	deny := Rule{Verdict: goTo(c.direction.denyChain()), Comment: clip("profile " + c.profile + ": its selectors are being worked out")}
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

func className(d direction, profiles []string) string {
	return hashName("class_"+d.short(), profiles...)
}

// classRules are those of the class of an ordered list of profiles.
func classRules(d direction, profiles []string) []Rule {
	var out []Rule
	for _, p := range profiles {
		out = append(out, Rule{Verdict: Verdict{Kind: Jump, Chain: profileChain(d, p)}, Comment: clip("profile " + p)})
	}
	return append(out, Rule{Verdict: goTo(d.denyChain()), Comment: "no " + d.String() + " rule allows it"})
}

func (x *Index) acquireClass(d direction, profiles []string) string {
	name := className(d, profiles)
	c := x.chains[name]
	if c == nil {
		c = x.newChain(name)
		c.class = true
		c.program.rules = classRules(d, profiles)
		for _, p := range profiles {
			c.jumps = append(c.jumps, x.acquireProfile(d, p))
		}
	}
	c.refs++
	return name
}

func (x *Index) acquireProfile(d direction, profile string) string {
	name := profileChain(d, profile)
	c := x.chains[name]
	if c == nil {
		c = x.newChain(name)
		c.profile, c.direction = profile, d
		x.recompile(c, compileProfile(profile, d, rulesOf(x.profiles[profile], d), families{}))
	}
	c.refs++
	return name
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
	if sameRules(c.program.rules, p.rules) {
		x.pending.chain(c.name, c)
		c.closed, c.program.origins = families{}, p.origins
		return
	}
	for _, r := range p.refs {
		x.acquireSet(r)
	}
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
	for _, r := range c.program.refs {
		x.releaseSet(r.name)
	}
	c.program, c.next, c.closed = p, nil, families{}
}

// abandon drops the next program of a chain, if there is one.
func (x *Index) abandon(c *liveChain) {
	if c.next == nil {
		return
	}
	for _, r := range c.next.refs {
		x.releaseSet(r.name)
	}
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

// collect drops the chains and sets that nobody refers to: classes first, then
// the profile chains and then the sets that only they held.
func (x *Index) collect() {
	for _, class := range []bool{true, false} {
		for _, name := range sortedKeys(x.pending.chains) {
			c := x.chains[name]
			if c == nil || c.refs > 0 || c.class != class {
				continue
			}
			for _, j := range c.jumps {
				x.release(j)
			}
			x.abandon(c)
			for _, r := range c.program.refs {
				x.releaseSet(r.name)
			}
			delete(x.chains, name)
		}
	}
	for name := range x.pending.sets {
		if s := x.sets[name]; s != nil && s.refs == 0 {
			x.dropSet(s)
		}
	}
}
