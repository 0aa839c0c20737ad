package acl

import (
	"slices"

	"netctl/datastore"
)

// An endpoint is asked, of each direction, tier after tier, for the policies whose
// selectors pick it, in their order; a tier of which none does is left out. A rule that
// passes ends the tier, and what no rule of a tier decides is denied, or passed, as the
// tier says. Behind the last tier its profiles are asked.
//
// A class of endpoints, those with the same list, has one chain that jumps to the chains of
// policies and profiles. What passes in one policy must leave out the others of the tier,
// so where one of them has such a rule the tier's list becomes one chain, which returns.

// policy is a Policy of the store that can be asked.
type policy struct {
	*datastore.Policy
	selector *datastore.Selector
}

func newPolicy(p *datastore.Policy) *policy {
	if p == nil {
		return nil
	}
	sel, err := datastore.ParseSelector(p.Spec.Selector)
	if err != nil { // it was validated
		return nil
	}
	return &policy{p, sel}
}

func (p *policy) picks(f *facts) bool { return p != nil && p.selector.Matches(f.labels) }

// typ is the type of policies that decide about the direction.
func (d direction) typ() datastore.PolicyType {
	if d == inbound {
		return datastore.Ingress
	}
	return datastore.Egress
}

func (p *policy) rules(d direction) []datastore.Rule {
	switch {
	case p == nil:
		return nil
	case d == inbound:
		return p.Spec.Ingress
	}
	return p.Spec.Egress
}

func (p *policy) decides(d direction) bool { return slices.Contains(p.Spec.Types, d.typ()) }

// owner is the policy as the owner of rules.
func (p *policy) owner() owner {
	return owner{kind: datastore.KindPolicy, name: p.Metadata.Name, tier: p.Spec.Tier, staged: p.Spec.Staged}
}

// passes says whether a rule of the policy ends its tier.
func (p *policy) passes(d direction) bool {
	return slices.ContainsFunc(p.rules(d), func(r datastore.Rule) bool { return r.Action == datastore.Pass })
}

// shape is all of a policy that the classes of endpoints depend on.
type shape struct {
	selector, tier  string
	order           int
	ordered, staged bool
	asked, passes   [2]bool
	forwards        bool // and what is for host endpoints alone
	preDNAT, raw    bool
}

func (p *policy) shape() (s shape) {
	if p == nil {
		return s
	}
	s.selector, s.tier, s.staged = p.Spec.Selector, p.Spec.Tier, p.Spec.Staged
	s.forwards, s.preDNAT, s.raw = p.Spec.ApplyOnForward, p.Spec.PreDNAT, p.Spec.DoNotTrack
	if s.ordered = p.Spec.Order != nil; s.ordered {
		s.order = *p.Spec.Order
	}
	for _, d := range []direction{inbound, outbound} {
		s.asked[d], s.passes[d] = p.decides(d), p.passes(d)
	}
	return s
}

// stage is one step of a class: the policies of one tier, or the profiles.
type stage struct {
	tier   string // "": profiles
	owners []owner
	passes bool // a rule of them ends the tier
	denies bool // what no rule decides is denied
	// idle says that all of them are staged: none decides.
	idle bool
}

// stages are those of an endpoint with these labels and profiles.
func (x *Index) stages(d direction, f *facts, profiles []string) []stage {
	list, closed := x.tierStages(tracked, d, f)
	if closed {
		return list
	}
	last := stage{denies: true}
	for _, name := range profiles {
		last.owners = append(last.owners, owner{kind: datastore.KindProfile, name: name})
	}
	return append(list, last)
}

// tierStages are those of tiers, of the policies for a use; closed: nothing gets behind them.
func (x *Index) tierStages(u use, d direction, f *facts) (list []stage, closed bool) {
	for _, p := range x.picked(f) {
		if !p.decides(d) || !p.serves(u) {
			continue
		}
		if n := len(list); n == 0 || list[n-1].tier != p.Spec.Tier {
			list = append(list, stage{tier: p.Spec.Tier, denies: u.decidesAll() && x.tierDenies(p.Spec.Tier), idle: true})
		}
		s := &list[len(list)-1]
		s.owners = append(s.owners, p.owner())
		if !p.Spec.Staged {
			s.passes, s.idle = s.passes || p.passes(d), false
		}
	}
	for i, s := range list {
		if s.denies && !s.passes && !s.idle {
			return list[:i+1], true
		}
	}
	return list, false
}

// picked are the policies whose selectors pick the labels, in their order.
func (x *Index) picked(f *facts) (list []*policy) {
	x.pickers.each(f.labels, func(s *population) {
		if s.selector.Matches(f.labels) {
			list = append(list, x.bySelector[s.text].policies...)
		}
	})
	slices.SortFunc(list, x.comparePolicies)
	return list
}

func (x *Index) comparePolicies(a, b *policy) int {
	if a.Spec.Tier != b.Spec.Tier {
		return datastore.CompareOrder(x.tierOrder(a.Spec.Tier), a.Spec.Tier, x.tierOrder(b.Spec.Tier), b.Spec.Tier)
	}
	return datastore.CompareOrder(a.Spec.Order, a.Metadata.Name, b.Spec.Order, b.Metadata.Name)
}

func (x *Index) tierOrder(name string) *int {
	if t := x.tiers[name]; t != nil {
		return t.Spec.Order
	}
	return nil
}

func (x *Index) tierDenies(name string) bool {
	t := x.tiers[name]
	return t == nil || t.Spec.DefaultAction != datastore.TierPass
}

// picker is a selector and the policies that have it.
type picker struct {
	*population
	policies []*policy
}

func (x *Index) addPicker(p *policy) {
	if p == nil {
		return
	}
	k := x.bySelector[p.Spec.Selector]
	if k == nil {
		k = &picker{population: &population{selector: p.selector, text: p.Spec.Selector, need: p.selector.Need()}}
		x.bySelector[k.text] = k
		x.pickers.add(k.population)
	}
	k.policies = append(k.policies, p)
}

func (x *Index) removePicker(p *policy) {
	if p == nil {
		return
	}
	k := x.bySelector[p.Spec.Selector]
	if k.policies = slices.DeleteFunc(k.policies, func(o *policy) bool { return o == p }); len(k.policies) == 0 {
		x.pickers.remove(k.population)
		delete(x.bySelector, k.text)
	}
}

func (x *Index) setPolicy(name string, object *datastore.Policy) {
	was, is := x.policies[name], newPolicy(object)
	x.removePicker(was)
	x.addPicker(is)
	if is != nil {
		x.policies[name] = is
	} else {
		delete(x.policies, name)
	}
	if was.shape() != is.shape() {
		x.doubt(func(f *facts) bool { return was.picks(f) || is.picks(f) })
	}
	o := owner{kind: datastore.KindPolicy, name: name}
	for _, d := range []direction{inbound, outbound} {
		x.compileAgain(x.chains[chainOf(d, o)])
	}
	for _, chain := range sortedKeys(x.tierChains) {
		if c := x.tierChains[chain]; c.has(o) {
			x.compileAgain(c)
		}
	}
}

func (x *Index) setTier(name string, t *datastore.Tier) {
	order, denied := x.tierOrder(name), x.tierDenies(name)
	if t != nil {
		x.tiers[name] = t
	} else {
		delete(x.tiers, name)
	}
	if datastore.CompareOrder(order, "", x.tierOrder(name), "") == 0 && denied == x.tierDenies(name) {
		return
	}
	x.doubt(func(f *facts) bool {
		return slices.ContainsFunc(x.picked(f), func(p *policy) bool { return p.Spec.Tier == name })
	})
}

// doubt notes the links whose endpoints have such facts: they may be of another class. They
// are rewired once for all that changed, before anybody is told of it.
func (x *Index) doubt(is func(*facts) bool) {
	x.hosts.doubt()
	for link, owners := range x.links {
		for name := range owners {
			if is(x.members[name].facts) {
				x.doubted[link] = struct{}{}
			}
		}
	}
}

// settle brings the doubted links up to date.
func (x *Index) settle() {
	for _, link := range sortedKeys(x.doubted) {
		x.rewire(link)
	}
	clear(x.doubted)
	x.settleHosts()
}

// chainOf is the name of the chain of a profile's or policy's rules.
func chainOf(d direction, o owner) string {
	if o.kind == datastore.KindPolicy {
		return hashName("policy_"+d.short(), o.name)
	}
	return profileChain(d, o.name)
}

// tierChain is the name of the chain that a stage's policies share.
func tierChain(d direction, s stage) string {
	parts := []string{s.tier, string(datastore.TierDeny)}
	if !s.denies {
		parts[1] = string(datastore.TierPass)
	}
	for _, o := range s.owners {
		if o.staged {
			parts = append(parts, "staged/"+o.name)
		} else {
			parts = append(parts, o.name)
		}
	}
	return hashName("tier_"+d.short(), parts...)
}

// key is what a stage adds to the name of its class; of profiles their names.
func (s stage) key(d direction) (parts []string) {
	switch {
	case s.tier == "":
		for _, o := range s.owners {
			parts = append(parts, o.name)
		}
	case s.passes:
		parts = append(parts, "tier/"+tierChain(d, s))
	default:
		for _, t := range s.steps() {
			if t.staged {
				parts = append(parts, "staged/"+t.chain(d))
			} else {
				parts = append(parts, "policy/"+t.owners[0].name)
			}
		}
		if s.denies && !s.idle {
			parts = append(parts, "deny/"+s.tier)
		}
	}
	return parts
}

// words of the direction, as objects of the kind name it.
func (d direction) words(k datastore.Kind) string {
	if k == datastore.KindPolicy {
		return string(d.typ())
	}
	return d.String()
}

// undecided is the rule that denies what no rule of a tier decided, or, without one, of
// the profiles.
func (p *program) undecided(tier string, d direction) Rule {
	if tier == "" {
		return Rule{Verdict: goTo(d.denyChain()), Comment: "no " + d.String() + " rule allows it"}
	}
	return Rule{Verdict: p.finish(undecidedBy(tier, d)), Comment: clip(undecidedReason(tier, d))}
}

func undecidedReason(tier string, d direction) string {
	return "no " + string(d.typ()) + " rule of tier " + tier + " allows it"
}
