package acl

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// member is one endpoint of the cluster and what it is counted under.
type member struct {
	endpoint *datastore.Endpoint // nil: it is a member no more
	facts    *facts
	place    int  // in Index.places, the same as long as it is a member
	outdated bool // is in Index.outdated
}

// facts are what makes an endpoint a member of sets. There is one for each endpoint of
// the cluster, so it shares slices and maps with the endpoint and with other facts;
// nobody changes them.
type facts struct {
	addrs []netip.Addr
	ports []datastore.Port
	*gifts
	labels map[string]string // its own and those of its profiles; nil: none
}

// gifts are what a list of profiles gives to an endpoint.
type gifts struct {
	profiles string   // the list
	users    int      // members that have them
	tags     []string // sorted
	labels   map[string]string
}

// gather works out an endpoint's facts: the tags of its profiles; its own
// labels before those of its profiles, the first profile's first.
func (x *Index) gather(e *datastore.Endpoint) *facts {
	f := &facts{addrs: addresses(e), ports: ports(e), gifts: x.giftsOf(e.Spec.Profiles)}
	switch {
	case len(f.gifts.labels) == 0:
		f.labels = e.Metadata.Labels
	case len(e.Metadata.Labels) == 0:
		f.labels = f.gifts.labels
	default:
		f.labels = maps.Clone(f.gifts.labels)
		maps.Copy(f.labels, e.Metadata.Labels)
	}
	return f
}

// giftsOf are those of a list of profiles, worked out once for each list.
func (x *Index) giftsOf(profiles []string) *gifts {
	key := strings.Join(profiles, " ") // no name holds a blank
	if g := x.gifts[key]; g != nil {
		return g
	}
	g := &gifts{profiles: key}
	for _, name := range slices.Backward(profiles) {
		p := x.profiles[name]
		if p == nil {
			continue
		}
		g.tags = append(g.tags, p.Spec.Tags...)
		if len(p.Spec.Labels) > 0 {
			if g.labels == nil {
				g.labels = map[string]string{}
			}
			maps.Copy(g.labels, p.Spec.Labels)
		}
	}
	slices.Sort(g.tags)
	g.tags = slices.Compact(g.tags)
	x.gifts[key] = g
	return g
}

// gatherAgain works out a member's facts anew.
func (x *Index) gatherAgain(m *member) {
	x.left--
	was := m.facts.labels
	x.setFacts(m, x.gather(m.endpoint))
	x.setPrefixes(m.endpoint.Metadata.Name, m)
	if !maps.Equal(was, m.facts.labels) {
		x.hosts.doubt()
	}
	if x.local(m.endpoint) && !maps.Equal(was, m.facts.labels) {
		x.doubted[m.endpoint.Spec.Link] = struct{}{}
	}
}

// setFacts replaces a member's facts, and moves it from the populations it was in to
// those it is in now. Where the two agree nothing is touched.
func (x *Index) setFacts(m *member, now *facts) {
	was := m.facts
	m.facts = now
	moved := !slices.Equal(was.addrs, now.addrs)
	if moved {
		x.leaves(was.addrs, now.addrs)
	}
	if moved || !slices.Equal(was.tags, now.tags) {
		x.countTags(was, -1)
		x.countTags(now, +1)
	}
	if moved || !slices.Equal(was.ports, now.ports) {
		x.countPorts(was, -1)
		x.countPorts(now, +1)
	}
	relabelled := !maps.Equal(was.labels, now.labels)
	if moved || relabelled {
		x.countSelected(m.place, was, -1)
		x.countSelected(m.place, now, +1)
	}
	if relabelled && x.labels != nil && m.place < x.labels.upto {
		x.labels.remove(m.place, was.labels)
		x.labels.add(m.place, now.labels)
	}
	now.users++
	if was.users--; was.users == 0 && x.gifts[was.profiles] == was.gifts {
		delete(x.gifts, was.profiles)
	}
}

// sameGifts says whether both profiles (nil: absent) give their endpoints the same
// tags and labels.
func sameGifts(a, b *datastore.Profile) bool {
	tags := func(p *datastore.Profile) ([]string, map[string]string) {
		if p == nil {
			return nil, nil
		}
		return p.Spec.Tags, p.Spec.Labels
	}
	tagsA, labelsA := tags(a)
	tagsB, labelsB := tags(b)
	return slices.Equal(tagsA, tagsB) && maps.Equal(labelsA, labelsB)
}

// addresses are the endpoint's addresses, each once.
func addresses(e *datastore.Endpoint) []netip.Addr {
	list := e.Spec.Addresses
	for i, a := range list {
		if a != a.Unmap().WithZone("") || !a.IsValid() || slices.Contains(list[:i], a) {
			return cleaned(list)
		}
	}
	return list
}

func cleaned(list []netip.Addr) (out []netip.Addr) {
	for _, a := range list {
		if a = a.Unmap().WithZone(""); a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ports are the endpoint's named ports, each once.
func ports(e *datastore.Endpoint) (out []datastore.Port) {
	for _, p := range e.Spec.Ports {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

type populationKey struct {
	source source
	arg    string
}

// population is the members of a tag, a selector or a named port, each counted
// once for every endpoint that brings it. Those of tags and ports are always
// kept, those of selectors only while a rule needs them.
type population struct {
	selector *datastore.Selector
	text     string          // of the selector
	need     *datastore.Need // of the selector; nil: the label index does not help
	count    map[Element]int
	asked    int // the audience's last round that had it
	upto     int // of a selector: members at places below it have been counted; whole: all
	// sets are the live sets of the population, IPv4 and IPv6; "": not needed. gates are the
	// live gates that it is one of.
	sets  [2]string
	gates [2][]*gate
}

func index4or6(e Element) int {
	if e.Prefix.Addr().Is4() {
		return 0
	}
	return 1
}

// liveSet is a set that a chain refers to, or did at the last Flush.
type liveSet struct {
	ref     setRef
	refs    int
	denying denying
	gate    *gate // of a gate
}

func (x *Index) countTags(f *facts, n int) {
	for _, t := range f.tags {
		x.countAddrs(populationKey{fromTag, t}, f.addrs, n)
	}
}

func (x *Index) countPorts(f *facts, n int) {
	for _, p := range f.ports {
		for _, a := range f.addrs {
			x.countElement(populationKey{fromPort, p.Name}, portElement(a, p), n)
		}
	}
}

// countSelected counts the facts of the member at place for the selectors that they
// match. A selector that has not come to the place yet will see them by itself.
func (x *Index) countSelected(place int, f *facts, n int) {
	if len(f.addrs) == 0 {
		return
	}
	x.audience.each(f.labels, func(p *population) {
		x.look()
		if place < p.upto && p.selector.Matches(f.labels) {
			x.countAddrs(populationKey{fromSelector, p.text}, f.addrs, n)
		}
	})
}

func (x *Index) countAddrs(key populationKey, addrs []netip.Addr, n int) {
	for _, a := range addrs {
		x.countElement(key, addrElement(a), n)
	}
}

func portElement(a netip.Addr, p datastore.Port) Element {
	e := addrElement(a)
	e.First, e.Last = p.Port, p.Port
	switch p.Protocol {
	case "tcp":
		e.Proto = protoTCP
	case "udp":
		e.Proto = protoUDP
	case "sctp":
		e.Proto = protoSCTP
	}
	return e
}

func (x *Index) countElement(key populationKey, e Element, n int) {
	p := x.population(key)
	before := p.count[e]
	p.count[e] = before + n
	if p.count[e] == 0 {
		delete(p.count, e)
	}
	if (before == 0) != (before+n == 0) {
		i := index4or6(e)
		if set := p.sets[i]; set != "" {
			x.pending.element(set, e, n > 0)
		}
		x.countGates(p.gates[i], e.Prefix.Addr(), n > 0)
	}
	x.forget(key)
}

func (x *Index) population(key populationKey) *population {
	if p := x.selectors[key.arg]; p != nil && key.source == fromSelector {
		return p
	}
	p := x.populations[key]
	if p == nil {
		p = &population{count: map[Element]int{}}
		x.populations[key] = p
	}
	return p
}

// forget drops a population that has neither members nor sets.
func (x *Index) forget(key populationKey) {
	if p := x.populations[key]; p != nil && len(p.count) == 0 && p.sets == [2]string{} && len(p.gates[0])+len(p.gates[1]) == 0 {
		delete(x.populations, key)
	}
}

// acquireSet makes the set live if it is not.
func (x *Index) acquireSet(r setRef) {
	s := x.sets[r.name]
	if s == nil {
		s = &liveSet{ref: r}
		x.sets[r.name] = s
		x.pending.set(r.name, true)
		x.noteNetSet(r, true)
		switch {
		case r.source == fromGate:
			s.gate = x.openGate(r)
		case !r.constant() && !r.networks() && r.source != fromLimits:
			x.populate(r)
		}
	}
	s.refs++
}

// populate connects a live set with its population. A selector's is filled with
// its first set; one that does not parse has no members.
func (x *Index) populate(r setRef) {
	key := populationKey{r.source, r.arg}
	if r.source == fromSelector && x.selectors[r.arg] == nil {
		if sel, err := datastore.ParseSelector(r.arg); err == nil {
			p := &population{selector: sel, text: r.arg, need: sel.Need(), count: map[Element]int{}}
			x.selectors[r.arg] = p
			x.audience.add(p)
			x.filling = append(x.filling, r.arg)
			x.fill(r.arg)
		}
	}
	x.population(key).sets[r.typ.index()] = r.name
}

// index is 0 for the IPv4 form of a type, 1 for its IPv6 form.
func (t SetType) index() int {
	if t == Addr6 || t == NamedPort6 || t == Net6 {
		return 1
	}
	return 0
}

func (x *Index) releaseSet(name string) {
	s := x.sets[name]
	s.refs--
	if s.refs == 0 {
		x.pending.set(name, false)
	}
}

// dropSet ends a live set; a selector's members are forgotten with its last.
func (x *Index) dropSet(s *liveSet) {
	delete(x.sets, s.ref.name)
	x.noteNetSet(s.ref, false)
	if s.gate != nil {
		x.closeGate(s)
		return
	}
	if s.ref.constant() || s.ref.networks() || s.ref.source == fromLimits {
		return
	}
	key := populationKey{s.ref.source, s.ref.arg}
	p := x.population(key)
	p.sets[s.ref.typ.index()] = ""
	if s.ref.source == fromSelector && p.sets == [2]string{} {
		x.dropSelector(s.ref.arg)
	}
	x.forget(key)
}

// elements are a live set's elements in order.
func (x *Index) elements(r setRef) []Element {
	switch {
	case r.constant():
		return r.elements
	case r.source == fromLimits && r.arg == inbound.short():
		return x.limitElements(inbound)
	case r.source == fromLimits:
		return x.limitElements(outbound)
	case r.networks():
		return x.netElements(r)
	case r.source == fromGate:
		return x.sets[r.name].gate.members()
	}
	out := map[Element]struct{}{}
	for e := range x.population(populationKey{r.source, r.arg}).count {
		if index4or6(e) == r.typ.index() {
			out[e] = struct{}{}
		}
	}
	return sortedElements(out)
}
