package acl

import (
	"slices"

	"netctl/datastore"
)

// Index follows the datastore and knows what one node's packet filter should
// be. It holds every endpoint and profile of the cluster, but only what local
// endpoints need reaches its deltas. Not safe for concurrent use.
type Index struct {
	node    string
	options Options

	members   map[string]*member // every endpoint, by name
	profiles  map[string]*datastore.Profile
	byProfile map[string]map[string]struct{} // profile to endpoint names

	populations map[populationKey]*population
	selectors   map[string]*population // the live ones, by text
	sets        map[string]*liveSet
	chains      map[string]*liveChain
	links       map[string]map[string]struct{} // link to names of local endpoints
	wired       map[string]wiring              // link to what it has now
	pending     pending
	gifts       map[string]*gifts       // by list of profiles
	filling     []string                // selectors whose members are being looked for, in turn
	waiting     map[string][]*liveChain // selector to the chains that wait for it
	outdated    []string                // members whose facts are to be worked out anew
	everybody   []*facts                // of all members; nil: not worked out
	slice       int                     // atOnce, but in tests
}

// NewIndex is an empty index for the named node. Its first delta starts from
// Static(o).
func NewIndex(node string, o Options) *Index {
	return &Index{
		node: node, options: o,
		members:     map[string]*member{},
		profiles:    map[string]*datastore.Profile{},
		byProfile:   map[string]map[string]struct{}{},
		populations: map[populationKey]*population{},
		selectors:   map[string]*population{},
		sets:        map[string]*liveSet{},
		chains:      map[string]*liveChain{},
		links:       map[string]map[string]struct{}{},
		wired:       map[string]wiring{},
		pending:     newPending(),
		gifts:       map[string]*gifts{},
		waiting:     map[string][]*liveChain{},
		slice:       atOnce,
	}
}

// Apply takes one change of the store. Kinds other than Endpoint and Profile
// change nothing.
func (x *Index) Apply(c datastore.Change) {
	switch c.Kind {
	case datastore.KindEndpoint:
		e, _ := c.New.(*datastore.Endpoint)
		x.setEndpoint(c.Name, e)
	case datastore.KindProfile:
		p, _ := c.New.(*datastore.Profile)
		x.setProfile(c.Name, p)
	}
}

func (x *Index) setEndpoint(name string, e *datastore.Endpoint) {
	old := x.members[name]
	if old != nil {
		x.memberChanges(name, old.facts)
		x.count(old.facts, -1)
		for _, p := range old.endpoint.Spec.Profiles {
			delete(x.byProfile[p], name)
			if len(x.byProfile[p]) == 0 {
				delete(x.byProfile, p)
			}
		}
		delete(x.members, name)
	}
	if e != nil {
		if old == nil {
			x.memberChanges(name, nil)
		}
		m := &member{endpoint: e, facts: x.gather(e)}
		x.members[name] = m
		for _, p := range e.Spec.Profiles {
			if x.byProfile[p] == nil {
				x.byProfile[p] = map[string]struct{}{}
			}
			x.byProfile[p][name] = struct{}{}
		}
		x.count(m.facts, +1)
	}
	if old != nil {
		x.unlink(name, old.endpoint)
	}
	if e != nil {
		x.link(name, e)
	}
}

func (x *Index) setProfile(name string, p *datastore.Profile) {
	given := sameGifts(x.profiles[name], p)
	if p != nil {
		x.profiles[name] = p
	} else {
		delete(x.profiles, name)
	}
	if !given { // else what its endpoints have of it stays the same
		clear(x.gifts)
		many := len(x.byProfile[name]) > x.slice
		for endpoint := range x.byProfile[name] {
			if many {
				x.outdated = append(x.outdated, endpoint)
			} else {
				x.gatherAgain(endpoint)
			}
		}
	}
	for _, d := range []direction{inbound, outbound} {
		if c := x.chains[profileChain(d, name)]; c != nil {
			x.recompile(c, compileProfile(name, d, rulesOf(p, d), c.families()))
		}
	}
}

func rulesOf(p *datastore.Profile, d direction) []datastore.Rule {
	switch {
	case p == nil:
		return nil
	case d == inbound:
		return p.Spec.Inbound
	}
	return p.Spec.Outbound
}

// wiring is what one link has in the static maps and sets.
type wiring struct {
	in, out string // class chains
	sources []Element
}

func (x *Index) local(e *datastore.Endpoint) bool {
	return e.Spec.Node == x.node && validLink(e.Spec.Link)
}

func (x *Index) link(name string, e *datastore.Endpoint) {
	if !x.local(e) {
		return
	}
	if x.links[e.Spec.Link] == nil {
		x.links[e.Spec.Link] = map[string]struct{}{}
	}
	x.links[e.Spec.Link][name] = struct{}{}
	x.rewire(e.Spec.Link)
}

func (x *Index) unlink(name string, e *datastore.Endpoint) {
	if !x.local(e) {
		return
	}
	delete(x.links[e.Spec.Link], name)
	x.rewire(e.Spec.Link)
}

// rewire brings the link's elements up to date. Of several endpoints that claim
// one link the first by name has it.
func (x *Index) rewire(link string) {
	old, had := x.wired[link]
	if had {
		x.wire(link, old, false)
		delete(x.wired, link)
	}
	if owners := sortedKeys(x.links[link]); len(owners) > 0 {
		e := x.members[owners[0]].endpoint
		w := wiring{
			in:      x.acquireClass(inbound, e.Spec.Profiles),
			out:     x.acquireClass(outbound, e.Spec.Profiles),
			sources: linkSources(e),
		}
		x.wired[link] = w
		x.wire(link, w, true)
		x.countFamilies(w, +1)
	} else {
		delete(x.links, link)
	}
	if had {
		x.countFamilies(old, -1)
		x.release(old.in)
		x.release(old.out)
	}
}

func (x *Index) wire(link string, w wiring, present bool) {
	x.pending.element(mapFromEP, Element{Link: link, Verdict: goTo(w.out)}, present)
	x.pending.element(mapToEP, Element{Link: link, Verdict: goTo(w.in)}, present)
	for _, e := range w.sources {
		x.pending.element(sourceSet(e), e, present)
	}
}

// countFamilies tells the profile chains of w's classes that n more local
// endpoints have w's families; a chain is compiled again if that changes its own.
func (x *Index) countFamilies(w wiring, n int) {
	var has families
	for _, e := range w.sources {
		has[index4or6(e)] = true
	}
	for d, class := range map[direction]string{inbound: w.in, outbound: w.out} {
		for _, name := range x.chains[class].jumps {
			c := x.chains[name]
			before := c.families()
			for i, h := range has {
				if h {
					c.count[i] += n
				}
			}
			if c.families() != before {
				p := compileProfile(c.profile, d, rulesOf(x.profiles[c.profile], d), c.families())
				x.recompile(c, p)
				if c.next != nil && !x.pending.comes(c.name) {
					// The rules it has do not cover the family that came.
					x.fillNow(p)
				}
			}
		}
	}
}

// linkSources are the sources the endpoint's link may use.
func linkSources(e *datastore.Endpoint) []Element {
	var out []Element
	for _, a := range addresses(e) {
		s := addrElement(a)
		s.Link = e.Spec.Link
		out = append(out, s)
	}
	return out
}

func sourceSet(e Element) string {
	if e.Prefix.Addr().Is4() {
		return setSrc4
	}
	return setSrc6
}

// liveChain is a chain that somebody refers to, or did at the last Flush.
type liveChain struct {
	name    string
	refs    int
	program program
	// Of a class: the profile chains it refers to.
	class bool
	jumps []string
	// Of a profile chain: the profile, and how many local endpoints with it have
	// IPv4 and IPv6 addresses.
	profile   string
	direction direction
	count     [2]int
	// next is what the rules will be once the sets they need are whole; nil: program
	// is up to date.
	next *program
}

func (c *liveChain) families() families { return families{c.count[0] > 0, c.count[1] > 0} }

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
	c.program, c.next = p, nil
}

// abandon lets go what a chain was to become.
func (x *Index) abandon(c *liveChain) {
	if c.next == nil {
		return
	}
	for _, r := range c.next.refs {
		x.releaseSet(r.name)
	}
	for text, list := range x.waiting {
		x.waiting[text] = slices.DeleteFunc(list, func(o *liveChain) bool { return o == c })
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

// Flush returns what changed since the last Flush and starts anew.
func (x *Index) Flush() Delta {
	x.collect()
	p := x.pending
	x.pending = newPending()
	var d Delta
	for _, name := range sortedKeys(p.chains) {
		before, now := p.chains[name], x.chains[name]
		switch {
		case now == nil && before.existed:
			d.Chains = append(d.Chains, ChainChange{Name: name, Gone: true})
		case now == nil:
		case !before.existed:
			d.Chains = append(d.Chains, ChainChange{Name: name, New: true, Rules: now.program.rules})
		case !sameRules(before.rules, now.program.rules):
			d.Chains = append(d.Chains, ChainChange{Name: name, Before: before.rules, Rules: now.program.rules})
		}
	}
	for _, name := range sortedKeys(p.sets) {
		if c, ok := x.setChange(name, p.sets[name]); ok {
			d.Sets = append(d.Sets, c)
		}
	}
	return d
}

func (x *Index) setChange(name string, p pendingSet) (SetChange, bool) {
	if t, ok := staticType(name); ok {
		c := SetChange{Name: name, Type: t}
		c.Add, c.Del = p.split()
		return c, len(c.Add)+len(c.Del) > 0
	}
	s := x.sets[name]
	switch {
	case s == nil && !p.fresh:
		return SetChange{Name: name, Gone: true}, true
	case s == nil:
		return SetChange{}, false
	}
	c := SetChange{Name: name, Type: s.ref.typ, Comment: s.ref.comment(), New: p.fresh}
	if p.fresh {
		c.Add = x.elements(s.ref)
		return c, true
	}
	c.Add, c.Del = p.split()
	return c, len(c.Add)+len(c.Del) > 0
}

// Ruleset is everything the table should hold now. It leaves what Flush will
// return as it is: who hands a Ruleset to a back end flushes first.
func (x *Index) Ruleset() *Ruleset {
	x.collect()
	r := Static(x.options)
	for link, w := range x.wired {
		r.Sets[mapFromEP].add(Element{Link: link, Verdict: goTo(w.out)})
		r.Sets[mapToEP].add(Element{Link: link, Verdict: goTo(w.in)})
		for _, e := range w.sources {
			r.Sets[sourceSet(e)].add(e)
		}
	}
	for name, c := range x.chains {
		r.Chains[name] = &Chain{Name: name, Rules: c.program.rules}
	}
	for name, s := range x.sets {
		r.Sets[name] = newSet(name, s.ref.typ, s.ref.comment(), x.elements(s.ref)...)
	}
	return r
}

// staticType is the type of the static sets that endpoints have elements in.
func staticType(name string) (SetType, bool) {
	switch name {
	case mapFromEP, mapToEP:
		return LinkVerdict, true
	case setSrc4:
		return LinkAddr4, true
	case setSrc6:
		return LinkAddr6, true
	}
	return 0, false
}
