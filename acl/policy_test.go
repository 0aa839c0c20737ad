package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"netctl/datastore"
)

// policyStep changes a policy, a tier or a network set.
func (w *world) policyStep() datastore.Change {
	c := datastore.Change{Kind: datastore.KindPolicy, Name: fmt.Sprintf("q%d", w.rng.IntN(6))}
	switch w.rng.IntN(5) {
	case 0:
		c = datastore.Change{Kind: datastore.KindTier, Name: []string{"t0", "t1", datastore.DefaultTier}[w.rng.IntN(3)]}
	case 1:
		c = datastore.Change{Kind: datastore.KindNetworkSet, Name: fmt.Sprintf("s%d", w.rng.IntN(3))}
	}
	key := string(c.Kind) + "/" + c.Name
	c.Old = w.current[key]
	if c.Old != nil && w.rng.IntN(3) == 0 {
		delete(w.current, key)
		return c
	}
	order := func() *int {
		if w.rng.IntN(3) == 0 {
			return nil
		}
		return new(w.rng.IntN(3))
	}
	switch c.Kind {
	case datastore.KindTier:
		c.New = &datastore.Tier{Metadata: datastore.Metadata{Name: c.Name}, Spec: datastore.TierSpec{Order: order(), DefaultAction: []datastore.Action{datastore.TierDeny, datastore.TierPass}[w.rng.IntN(2)]}}
	case datastore.KindNetworkSet:
		n := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: c.Name, Labels: w.labels()}}
		for _, s := range w.some(4, func() string {
			return []string{"10.0.0.0/29", "10.0.0.0/30", "10.0.0.4/30", "10.0.0.3/32", "192.0.2.0/24", "fd00::/126", "fd00::2/128", "0.0.0.0/0", "::/0", "10.0.0.0/8"}[w.rng.IntN(10)]
		}) {
			n.Spec.CIDRs = append(n.Spec.CIDRs, netip.MustParsePrefix(s))
		}
		c.New = n
	default:
		p := &datastore.Policy{Metadata: datastore.Metadata{Name: c.Name}}
		p.Spec = datastore.PolicySpec{
			Tier: []string{"t0", "t1", datastore.DefaultTier}[w.rng.IntN(3)], Order: order(),
			Selector: []string{"", "role == 'web'", "role != 'db'", "has(zone)", "all()"}[w.rng.IntN(5)],
			Ingress:  w.policyRules(), Egress: w.policyRules(), Staged: w.rng.IntN(3) == 0,
		}
		if w.rng.IntN(4) == 0 {
			p.Spec.Types = []datastore.PolicyType{datastore.Ingress, datastore.Egress}
		}
		p.SetDefaults()
		c.New = p
	}
	w.current[key] = c.New
	return c
}

func (w *world) policyRules() []datastore.Rule {
	out := w.randomRules()
	for range w.rng.IntN(3) {
		out = slices.Insert(out, w.rng.IntN(len(out)+1), w.only[w.rng.IntN(len(w.only))])
	}
	return out
}

// tiersOf are the policies that the model asks about an endpoint with these labels, tier
// by tier.
func (m model) tiersOf(labels map[string]string, d direction) (tiers []string, by map[string][]*datastore.Policy) {
	by = map[string][]*datastore.Policy{}
	for _, name := range sortedKeys(m.policies) {
		p := m.policies[name]
		sel, _ := datastore.ParseSelector(p.Spec.Selector)
		asked := datastore.Ingress
		if d == outbound {
			asked = datastore.Egress
		}
		if sel.Matches(labels) && slices.Contains(p.Spec.Types, asked) {
			by[p.Spec.Tier] = append(by[p.Spec.Tier], p)
		}
	}
	before := func(a, b *int) int { // without an order last
		switch {
		case a == nil && b == nil:
			return 0
		case a == nil:
			return 1
		case b == nil:
			return -1
		}
		return *a - *b
	}
	order := func(tier string) *int {
		if t := m.tiers[tier]; t != nil {
			return t.Spec.Order
		}
		return nil
	}
	tiers = sortedKeys(by)
	slices.SortStableFunc(tiers, func(a, b string) int { return before(order(a), order(b)) })
	for _, list := range by {
		slices.SortStableFunc(list, func(a, b *datastore.Policy) int { return before(a.Spec.Order, b.Spec.Order) })
	}
	return tiers, by
}

// passesTier says whether a tier goes on to the next by default.
func (m model) passesTier(tier string) bool {
	t := m.tiers[tier]
	return t != nil && t.Spec.DefaultAction == datastore.TierPass
}

func policyRulesOf(p *datastore.Policy, d direction) []datastore.Rule {
	if d == inbound {
		return p.Spec.Ingress
	}
	return p.Spec.Egress
}

// oracle are the stages of an endpoint, by loops over everything.
func (m model) oracle(d direction, labels map[string]string, profiles []string) (out []stage) {
	tiers, by := m.tiersOf(labels, d)
	for _, tier := range tiers {
		s := stage{tier: tier, denies: !m.passesTier(tier), idle: true}
		for _, p := range by[tier] {
			s.owners = append(s.owners, owner{datastore.KindPolicy, p.Metadata.Name, tier, p.Spec.Staged})
			if p.Spec.Staged {
				continue
			}
			s.idle = false
			for _, r := range policyRulesOf(p, d) {
				s.passes = s.passes || r.Action == datastore.Pass
			}
		}
		out = append(out, s)
		if s.denies && !s.passes && !s.idle {
			return out
		}
	}
	last := stage{denies: true}
	for _, p := range profiles {
		last.owners = append(last.owners, owner{kind: datastore.KindProfile, name: p})
	}
	return append(out, last)
}

// fullStage compiles the chains of a stage.
func fullStage(r *Ruleset, m model, d direction, s stage, has map[string]families, endpoints map[string]*datastore.Endpoint, profiles map[string]*datastore.Profile, gates fullGates) {
	chains := map[string][]owner{}
	ends := map[string]bool{}
	if s.passes {
		chains[tierChain(d, s)] = s.owners
	}
	for _, t := range s.steps() {
		if t.staged || !s.passes {
			chains[t.chain(d)], ends[t.chain(d)] = t.owners, t.ends
		}
	}
	for chain, owners := range chains {
		prog := program{families: has[chain], nets: m.selectsNets, used: map[string]bool{}}
		whole := s.passes && chain == tierChain(d, s)
		for i, o := range owners {
			rules := rulesOf(profiles[o.name], d)
			if o.kind == datastore.KindPolicy {
				rules = policyRulesOf(m.policies[o.name], d)
			}
			if !whole || !o.staged {
				prog.addAll(o, d, rules)
			} else if i == 0 || !owners[i-1].staged { // the first of several
				for _, t := range s.steps() {
					if t.staged && t.owners[0] == o {
						prog.addPlain(t.jump(d))
					}
				}
			}
		}
		if whole && s.denies {
			prog.addPlain(prog.undecided(s.tier, d))
		}
		if ends[chain] {
			prog.addPlain(prog.wouldBeUndecided(s.tier, d))
		}
		r.Chains[chain] = &Chain{Name: chain, Rules: prog.rules}
		for _, ref := range prog.refs {
			r.Sets[ref.name] = fullSet(ref, m, endpoints, profiles)
		}
		prog.addGates()
		for _, g := range prog.gates {
			gates[g.name] = g
		}
		addEnds(r, prog)
	}
}

// addEnds adds the chains that a program's rules end in.
func addEnds(r *Ruleset, p program) {
	for _, e := range p.ends {
		r.Chains[e.name] = &Chain{Name: e.name, Rules: e.rules}
	}
}

// selectsNets says whether a network set's labels, or an endpoint with networks behind it, meet
// a selector or tag.
func (m model) selectsNets(s source, arg string) bool {
	sel, err := datastore.ParseSelector(arg)
	for _, n := range m.networks {
		if s == fromSelector && err == nil && sel.Matches(n.Metadata.Labels) {
			return true
		}
	}
	for _, e := range m.endpoints {
		f := gather(e, m.profiles)
		if len(e.Spec.AllowedPrefixes) > 0 && (s == fromSelector && err == nil && sel.Matches(f.labels) || s == fromTag && slices.Contains(f.tags, arg)) {
			return true
		}
	}
	return false
}

// inNetworks says whether one of the network sets that are meant holds an address.
func (m model) inNetworks(a netip.Addr, meant func(*datastore.NetworkSet) bool) bool {
	for _, n := range m.networks {
		if meant(n) && slices.ContainsFunc(n.Spec.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
			return true
		}
	}
	return false
}

// rig is a cluster that a test makes by hand: two endpoints of node0.
type rig struct {
	t *testing.T
	x *Index
}

func newRig(t *testing.T) rig { return rig{t, NewIndex("node0", testOptions())} }

func (r rig) put(o datastore.Object) {
	r.t.Helper()
	o.SetDefaults()
	if err := o.Validate(); err != nil {
		r.t.Fatal(err)
	}
	r.x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
}

func (r rig) remove(k datastore.Kind, name string) {
	r.x.Apply(datastore.Change{Kind: k, Name: name})
}

func (r rig) rules(texts ...string) []datastore.Rule {
	r.t.Helper()
	out := []datastore.Rule{}
	for _, text := range texts {
		rule, err := datastore.ParseRule(text)
		if err != nil {
			r.t.Fatal(err)
		}
		out = append(out, rule)
	}
	return out
}

func (r rig) endpoint(link, addr, labels string, profiles ...string) {
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "node0/cni/" + link + "/eth0", Labels: map[string]string{"role": labels}}}
	e.Spec = datastore.EndpointSpec{Node: "node0", Orchestrator: "cni", Workload: link, Interface: "eth0", Link: link, Profiles: profiles, Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
	r.put(e)
}

func (r rig) policy(name, tier string, order int, selector string, rules ...string) {
	r.put(&datastore.Policy{Metadata: datastore.Metadata{Name: name}, Spec: datastore.PolicySpec{Tier: tier, Order: &order, Selector: selector, Ingress: r.rules(rules...)}})
}

// says is what Explain says of a TCP packet to an endpoint.
func (r rig) says(src, link, dst string, port uint16) string {
	e := r.x.Explain(Packet{InLink: "up0", OutLink: link, OutGroup: 77, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 6, DstPort: port, State: New})
	word := "no: "
	if e.Allowed {
		word = "yes: "
	}
	if e.By != nil {
		return word + e.By.String()
	}
	return word + e.Reason
}

// TestTiers goes through what tiers, policies and profiles do with a packet.
func TestTiers(t *testing.T) {
	r := newRig(t)
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: r.rules("allow tcp to ports 80")}})
	r.endpoint("nca", "10.0.0.1", "web", "web")
	r.endpoint("ncb", "10.0.0.2", "db", "web")
	expect := func(when string, link, dst string, port uint16, want string) {
		t.Helper()
		if got := r.says("192.0.2.1", link, dst, port); got != want {
			t.Errorf("%s: port %d of %s:\n got %s\nwant %s", when, port, link, got, want)
		}
	}
	const allowed = "yes: profile web, inbound rule 1: allow tcp to ports 80"
	expect("profiles alone", "nca", "10.0.0.1", 80, allowed)

	r.policy("lock", datastore.DefaultTier, 10, "role == 'web'", "allow tcp to ports 443", "log")
	expect("a policy", "nca", "10.0.0.1", 80, "no: no ingress rule of tier default allows it")
	expect("a policy", "nca", "10.0.0.1", 443, "yes: tier default, policy lock, ingress rule 1: allow tcp to ports 443")
	expect("of others", "ncb", "10.0.0.2", 80, allowed)

	r.policy("first", datastore.DefaultTier, 5, "role == 'web'", "reject tcp to ports 443", "pass tcp to ports 80")
	expect("a policy before it", "nca", "10.0.0.1", 443, "no: tier default, policy first, ingress rule 1: reject tcp to ports 443")
	expect("pass leaves out the policies behind it", "nca", "10.0.0.1", 80, allowed)
	expect("what nobody decides", "nca", "10.0.0.1", 81, "no: no ingress rule of tier default allows it")

	r.put(&datastore.Tier{Metadata: datastore.Metadata{Name: "security"}, Spec: datastore.TierSpec{Order: new(100)}})
	r.policy("gate", "security", 1, "all()", "deny from cidr 192.0.2.0/25 to cidr 10.0.0.2/32", "pass")
	expect("another tier before it", "nca", "10.0.0.1", 80, allowed)
	expect("another tier before it", "ncb", "10.0.0.2", 80, "no: tier security, policy gate, ingress rule 1: deny from cidr 192.0.2.0/25 to cidr 10.0.0.2/32")

	r.policy("gate", "security", 1, "all()", "deny udp")
	expect("a tier denies by itself", "ncb", "10.0.0.2", 80, "no: no ingress rule of tier security allows it")
	r.put(&datastore.Tier{Metadata: datastore.Metadata{Name: "security"}, Spec: datastore.TierSpec{Order: new(100), DefaultAction: datastore.TierPass}})
	expect("a tier passes by itself", "ncb", "10.0.0.2", 80, allowed)
	r.put(&datastore.Tier{Metadata: datastore.Metadata{Name: datastore.DefaultTier}, Spec: datastore.TierSpec{Order: new(1)}})
	r.policy("gate", "security", 1, "all()", "allow")
	expect("the default tier first", "nca", "10.0.0.1", 443, "no: tier default, policy first, ingress rule 1: reject tcp to ports 443")
	r.remove(datastore.KindPolicy, "first")
	expect("without the first", "nca", "10.0.0.1", 443, "yes: tier default, policy lock, ingress rule 1: allow tcp to ports 443")

	// Labels of profiles count, and change who is picked.
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Labels: map[string]string{"zone": "z1"}, Inbound: r.rules("allow tcp to ports 80")}})
	r.policy("zoned", datastore.DefaultTier, 0, "zone == 'z1'", "deny")
	expect("a profile's label", "ncb", "10.0.0.2", 80, "no: tier default, policy zoned, ingress rule 1: deny")
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: r.rules("allow tcp to ports 80")}})
	expect("without it", "ncb", "10.0.0.2", 80, "yes: tier security, policy gate, ingress rule 1: allow")
	for x := r.x; x.Work(); {
	}
}

// TestNetworkSets: rules refer to networks by name and by label, and networks that cover
// each other come and go.
func TestNetworkSets(t *testing.T) {
	r := newRig(t)
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{
		Inbound: r.rules("deny from set bad", "allow tcp from selector \"kind == 'office'\" to ports 80", "allow tcp from not selector \"kind == 'office'\" to ports 81")}})
	r.endpoint("nca", "10.0.0.1", "web", "web")
	r.endpoint("ncb", "10.0.0.2", "office", "web")
	set := func(name, kind string, cidrs ...string) {
		n := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: name, Labels: map[string]string{"kind": kind}}}
		for _, c := range cidrs {
			n.Spec.CIDRs = append(n.Spec.CIDRs, netip.MustParsePrefix(c))
		}
		r.put(n)
	}
	applied := r.x.Ruleset()
	r.x.Flush()
	expect := func(when, src string, port uint16, want bool) {
		t.Helper()
		d := r.x.Flush()
		checkDelta(t, d, applied)
		applied.Apply(d)
		needsNothing(t, applied)
		sameRuleset(t, when, applied, r.x.Ruleset())
		got := applied.Eval(Packet{InLink: "up0", OutLink: "nca", OutGroup: 77, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.0.0.1"), Protocol: 6, DstPort: port, State: New})
		if got.Allowed != want {
			t.Errorf("%s: from %s to port %d: %s", when, src, port, got)
		}
	}
	expect("no set", "192.0.2.1", 80, false)
	expect("no set", "192.0.2.1", 81, true)
	set("hq", "office", "192.0.2.0/24", "192.0.2.0/28", "192.0.2.64/26")
	expect("a set by label", "192.0.2.1", 80, true)
	expect("a set by label", "192.0.2.1", 81, false)
	expect("a set by label", "198.51.100.1", 81, true)
	set("hq", "office", "192.0.2.0/28", "192.0.2.64/26")
	expect("without what covered", "192.0.2.1", 80, true)
	expect("without what covered", "192.0.2.17", 80, false)
	set("bad", "", "0.0.0.0/0", "192.0.2.1/32")
	expect("all denied", "192.0.2.1", 80, false)
	set("bad", "", "192.0.2.1/32", "192.0.2.2/31")
	expect("one denied", "192.0.2.1", 80, false)
	expect("its neighbour", "192.0.2.0", 80, true)
	set("hq", "garage", "192.0.2.0/28")
	expect("another label", "192.0.2.0", 80, false)
	expect("another label", "192.0.2.0", 81, true)
	r.remove(datastore.KindNetworkSet, "bad")
	expect("without the denied", "192.0.2.1", 81, true)
}
