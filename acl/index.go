package acl

import (
	"net/netip"
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
	places    []*member          // every endpoint, by place; nil: the place is free
	free      []int              // the free places
	absent    *facts             // those of an endpoint that is not there
	profiles  map[string]*datastore.Profile
	policies  map[string]*policy
	tiers     map[string]*datastore.Tier
	networks  map[string]*networks
	learned   learned                        // addresses of their domains
	expired   map[elementOf]struct{}         // those that went for their time since the last Flush
	netSets   map[string]struct{}            // live sets of networks
	named     map[string]struct{}            // network sets that have domains
	doubtDNS  bool                           // somebody else may learn domains now
	relearn   bool                           // Relearn
	logsDNS   bool                           // somebody does
	byProfile map[string]map[string]struct{} // profile to endpoint names

	bySelector map[string]*picker // policies by their selectors
	pickers    audience           // those selectors
	tierChains map[string]*liveChain
	doubted    map[string]struct{} // links that may be of another class now

	tightened Scope // what Tightened returns next
	// Since the last Flush: by how many endpoints more an address is held, and what decided
	// about links that were wired anew.
	moved   map[netip.Addr]int
	classes map[string]string

	populations map[populationKey]*population
	selectors   map[string]*population // the live ones, by text
	audience    audience               // the live ones, by what they look for
	labels      *labelIndex            // nil: no live selector needs it
	sets        map[string]*liveSet
	wanted      map[string]*wantedGate // gates, whether they are there or not
	gates       map[gatedKey]int       // of how many of those a population is
	regated     map[gatedKey]struct{}  // those that came to be of too many, or no more
	chains      map[string]*liveChain
	links       map[string]map[string]struct{} // link to names of local endpoints
	wired       map[string]wiring              // link to what it has now
	onLink      []Element                      // subnets of the host
	nat         nat
	published   map[string]*datastore.Endpoint   // local ones with ports of the host, by name
	limited     map[string]datastore.QoSControls // by link that has limits
	limits      [2]int                           // how many there are, by direction
	mss         map[string]int                   // MTU that a link's connections are kept to
	wireguard   uint16                           // port of WireGuard tunnels; 0: there are none
	vxlan       uint32                           // virtual network of VXLAN tunnels; 0: there are none
	hosts       hosts
	pending     pending
	gifts       map[string]*gifts       // by list of profiles
	filling     []string                // selectors whose members are being looked for, in turn
	waiting     map[string][]*liveChain // selector to the chains that wait for it
	outdated    []*member               // those whose facts are to be worked out anew
	slice       int                     // atOnce, but in tests
	left        int                     // of the slice that is being worked off
	looked      int                     // members that selectors and the label index looked at; tests count them
}

// NewIndex is an empty index for the named node. Its first delta starts from
// Static(o).
func NewIndex(node string, o Options) *Index {
	return &Index{
		node: node, options: o,
		members:     map[string]*member{},
		absent:      &facts{gifts: &gifts{}},
		profiles:    map[string]*datastore.Profile{},
		policies:    map[string]*policy{},
		tiers:       map[string]*datastore.Tier{},
		networks:    map[string]*networks{},
		learned:     learned{},
		expired:     map[elementOf]struct{}{},
		netSets:     map[string]struct{}{},
		named:       map[string]struct{}{},
		bySelector:  map[string]*picker{},
		pickers:     audience{terms: map[term][]*population{}},
		tierChains:  map[string]*liveChain{},
		doubted:     map[string]struct{}{},
		limited:     map[string]datastore.QoSControls{},
		moved:       map[netip.Addr]int{},
		classes:     map[string]string{},
		byProfile:   map[string]map[string]struct{}{},
		populations: map[populationKey]*population{},
		selectors:   map[string]*population{},
		audience:    audience{terms: map[term][]*population{}},
		sets:        map[string]*liveSet{},
		wanted:      map[string]*wantedGate{},
		gates:       map[gatedKey]int{},
		regated:     map[gatedKey]struct{}{},
		chains:      map[string]*liveChain{},
		links:       map[string]map[string]struct{}{},
		wired:       map[string]wiring{},
		nat:         newNAT(),
		hosts:       newHosts(),
		published:   map[string]*datastore.Endpoint{},
		mss:         map[string]int{},
		pending:     newPending(),
		gifts:       map[string]*gifts{},
		waiting:     map[string][]*liveChain{},
		slice:       atOnce,
	}
}

// SetFlows sets other bounds of the flows that a workload begins (Options). They are in what
// Ruleset returns from now on; Flush does not tell of them.
func (x *Index) SetFlows(rate, burst uint32) { x.options.FlowRate, x.options.FlowBurst = rate, burst }

// SetStrict sets Options.Strict, in the same way; of the chains of host endpoints Flush tells.
func (x *Index) SetStrict(strict bool) {
	if x.options.Strict != strict {
		x.options.Strict = strict
		x.hosts.doubt()
	}
}

// Whole says that Work has nothing left to do.
func (x *Index) Whole() bool { return len(x.filling)+len(x.outdated) == 0 }

// Apply takes one change of the store. Kinds other than Endpoint, HostEndpoint, Profile,
// Policy, Tier, NetworkSet, Pool and Node change nothing.
func (x *Index) Apply(c datastore.Change) {
	x.left = x.slice
	switch c.Kind {
	case datastore.KindEndpoint:
		e, _ := c.New.(*datastore.Endpoint)
		x.setEndpoint(c.Name, e)
		x.setPorts(c.Name, e)
	case datastore.KindHostEndpoint:
		h, _ := c.New.(*datastore.HostEndpoint)
		x.setHostEndpoint(c.Name, h)
	case datastore.KindProfile:
		p, _ := c.New.(*datastore.Profile)
		x.setProfile(c.Name, p)
	case datastore.KindPolicy:
		p, _ := c.New.(*datastore.Policy)
		x.setPolicy(c.Name, p)
	case datastore.KindTier:
		t, _ := c.New.(*datastore.Tier)
		x.setTier(c.Name, t)
	case datastore.KindNetworkSet:
		n, _ := c.New.(*datastore.NetworkSet)
		x.setNetworks(c.Name, n)
	case datastore.KindPool:
		p, _ := c.New.(*datastore.Pool)
		x.setPool(c.Name, p)
	case datastore.KindNode:
		n, _ := c.New.(*datastore.Node)
		x.setNode(c.Name, n)
	}
}

func (x *Index) setEndpoint(name string, e *datastore.Endpoint) {
	m := x.members[name]
	var old *datastore.Endpoint
	if m != nil {
		old = m.endpoint
		for _, p := range old.Spec.Profiles {
			delete(x.byProfile[p], name)
			if len(x.byProfile[p]) == 0 {
				delete(x.byProfile, p)
			}
		}
	}
	switch {
	case e != nil:
		if m == nil {
			m = x.join(name)
		}
		m.endpoint = e
		for _, p := range e.Spec.Profiles {
			if x.byProfile[p] == nil {
				x.byProfile[p] = map[string]struct{}{}
			}
			x.byProfile[p][name] = struct{}{}
		}
		x.setFacts(m, x.gather(e))
		x.setPrefixes(name, m)
	case m != nil:
		x.setFacts(m, x.absent)
		x.leave(name, m)
		x.setPrefixes(name, m)
	}
	if old != nil {
		x.unlink(name, old)
	}
	if e != nil {
		x.link(name, e)
	}
}

// join gives a new member a place: a free one, or one at the end.
func (x *Index) join(name string) *member {
	m := &member{facts: x.absent, place: len(x.places)}
	if last := len(x.free) - 1; last >= 0 {
		m.place = x.free[last]
		x.free = x.free[:last]
		x.places[m.place] = m
	} else {
		x.places = append(x.places, m)
	}
	x.members[name] = m
	return m
}

func (x *Index) leave(name string, m *member) {
	delete(x.members, name)
	m.endpoint = nil
	x.places[m.place] = nil
	x.free = append(x.free, m.place)
	if len(x.members) == 0 {
		x.places, x.free = nil, nil
	}
}

func (x *Index) setProfile(name string, p *datastore.Profile) {
	same, limits := sameGifts(x.profiles[name], p), sameLimits(x.profiles[name], p)
	if p != nil {
		x.profiles[name] = p
	} else {
		delete(x.profiles, name)
	}
	if !same { // its endpoints get other tags or labels from it
		clear(x.gifts)
		for endpoint := range x.byProfile[name] {
			if m := x.members[endpoint]; !m.outdated {
				m.outdated = true
				x.outdated = append(x.outdated, m)
			}
		}
		x.update()
	}
	if !limits {
		for endpoint := range x.byProfile[name] {
			if e := x.members[endpoint].endpoint; x.local(e) && sortedKeys(x.links[e.Spec.Link])[0] == endpoint {
				x.limit(e.Spec.Link, e.Limits(x.profile))
			}
		}
	}
	for _, d := range []direction{inbound, outbound} {
		x.compileAgain(x.chains[profileChain(d, name)])
	}
}

func (x *Index) profile(name string) *datastore.Profile { return x.profiles[name] }

// sameLimits says whether both profiles (nil: absent) limit their endpoints alike.
func sameLimits(a, b *datastore.Profile) bool {
	var limits [2]datastore.QoSControls
	for i, p := range []*datastore.Profile{a, b} {
		if p != nil {
			limits[i] = p.Spec.QoSControls
		}
	}
	return limits[0] == limits[1]
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
	in, out   string // class chains
	decides   string // the classes without their staged policies
	sources   []Element
	nets      []Element // behind it
	encap     bool      // they may send encapsulated packets
	mac       bool      // they are judged by the MAC that linkLocal is made of
	linkLocal Element   // without a prefix: none is known
	adopted   string    // the link, if others made it
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
		x.reclassed(link, old)
		delete(x.wired, link)
	}
	if owners := sortedKeys(x.links[link]); len(owners) > 0 {
		m := x.members[owners[0]]
		e := m.endpoint
		in, out := x.stages(inbound, m.facts, e.Spec.Profiles), x.stages(outbound, m.facts, e.Spec.Profiles)
		w := wiring{
			in: x.acquireClass(tracked, inbound, in), out: x.acquireClass(tracked, outbound, out),
			decides: className(tracked, inbound, deciding(in)) + className(tracked, outbound, deciding(out)),
			sources: linkSources(e), nets: linkNets(e), encap: e.Spec.AllowEncapsulation, mac: e.Spec.GuardMAC, linkLocal: linkLocal(e),
		}
		w.adopted = x.adoptedLink(e)
		x.wired[link] = w
		x.wire(link, w, true)
		x.countFamilies(w, +1)
		x.limit(link, e.Limits(x.profile))
	} else {
		x.limit(link, datastore.QoSControls{})
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
	w.guards(func(set string, e Element) { x.pending.element(set, e, present) })
}

// countFamilies tells the chains of rules of w's classes that n more local
// endpoints have w's families; a chain is compiled again if that changes its own.
func (x *Index) countFamilies(w wiring, n int) {
	var has families
	for _, e := range w.sources {
		has[index4or6(e)] = true
	}
	for _, class := range []string{w.in, w.out} {
		x.countClass(class, has, n)
	}
}

// countClass does so for one class.
func (x *Index) countClass(class string, has families, n int) {
	for _, name := range x.chains[class].jumps {
		c := x.chains[name]
		before := c.families()
		for i, h := range has {
			if h {
				c.count[i] += n
			}
		}
		if now := c.families(); now != before {
			x.compileAgain(c)
			if c.next != nil {
				// The rules it has do not cover a family that came.
				c.close(families{now[0] && !before[0], now[1] && !before[1]})
			}
		}
	}
}

// Flush returns what changed since the last Flush and starts anew.
func (x *Index) Flush() Delta {
	x.arrange()
	p := x.pending
	x.pending = newPending()
	var d Delta
	for _, name := range sortedKeys(p.chains) {
		before, now := p.chains[name], x.chains[name]
		switch {
		case now == nil && before.existed:
			d.Chains = append(d.Chains, ChainChange{Name: name, Gone: true, Before: before.rules})
		case now == nil:
		case !before.existed:
			d.Chains = append(d.Chains, ChainChange{Name: name, New: true, Hook: now.hook, Rules: now.rules()})
		case !sameRules(before.rules, now.rules()), !slices.Equal(before.gates, now.program.held):
			d.Chains = append(d.Chains, ChainChange{Name: name, Before: before.rules, Rules: now.rules()})
		}
	}
	for _, name := range sortedKeys(p.sets) {
		if c, ok := x.setChange(name, p.sets[name]); ok {
			d.Sets = append(d.Sets, c)
		}
	}
	x.tighten(d)
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
	x.arrange()
	r := Static(x.options)
	for link, w := range x.wired {
		r.Sets[mapFromEP].add(Element{Link: link, Verdict: goTo(w.out)})
		r.Sets[mapToEP].add(Element{Link: link, Verdict: goTo(w.in)})
		w.guards(func(set string, e Element) { r.Sets[set].add(e) })
	}
	for _, e := range x.onLink {
		r.Sets[onLinkSet(e)].add(e)
	}
	x.kin(func(set string, e Element) { r.Sets[set].add(e) })
	for name, c := range x.chains {
		r.Chains[name] = &Chain{Name: name, Hook: c.hook, Rules: c.rules()}
	}
	for name, s := range x.sets {
		r.Sets[name] = newSet(name, s.ref.typ, s.ref.comment(), x.elements(s.ref)...)
	}
	return r
}
