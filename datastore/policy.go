package datastore

import (
	"cmp"
	"net/netip"
	"slices"
)

// needsPolicies is the ModelVersion that brought tiers, policies and network sets, and what
// rules have had since: reject, and sets that exist.
const needsPolicies = 3

// needsStaged is the ModelVersion that brought staged policies: who passes that over has
// them in force.
const needsStaged = 4

// DefaultTier is the tier of policies that name none.
const DefaultTier = "default"

// Tier is an ordered group of policies. The tier DefaultTier is there without an object,
// behind all that have an order.
type Tier struct {
	Metadata Metadata `json:"metadata"`
	Spec     TierSpec `json:"spec"`
}

// TierSpec says when a tier is asked, and what becomes of what it does not decide.
type TierSpec struct {
	// Order among tiers, the lowest first; default: behind all that have one. Of several
	// with one order the first by name comes first.
	Order *int `json:"order,omitempty"`
	// DefaultAction is what becomes of a packet that a policy of the tier is asked about and
	// that no rule decides: TierDeny (default) or TierPass, to the next tier.
	DefaultAction Action `json:"defaultAction,omitempty"`
}

// Policy is rules for the endpoints that its selector picks.
type Policy struct {
	Metadata Metadata   `json:"metadata"`
	Spec     PolicySpec `json:"spec"`
}

// PolicySpec is a policy's content.
type PolicySpec struct {
	Tier string `json:"tier,omitempty"` // default: DefaultTier
	// Order within the tier, the lowest first; default: behind all that have one. Of several
	// with one order the first by name comes first.
	Order *int `json:"order,omitempty"`
	// Staged says that the policy decides nothing: what it would deny is counted and logged.
	Staged bool `json:"staged,omitempty"`
	// Selector picks endpoints by their labels and those of their profiles; default: all().
	Selector string `json:"selector,omitempty"`
	// Types are the directions that the policy decides about; default: those that it has
	// rules for, or ingress.
	Types   []PolicyType `json:"types,omitempty"`
	Ingress []Rule       `json:"ingress,omitempty"`
	Egress  []Rule       `json:"egress,omitempty"`
	// ApplyOnForward has host endpoints asked about what their nodes forward, too; the two
	// below need it.
	ApplyOnForward bool `json:"applyOnForward,omitempty"`
	// PreDNAT has host endpoints alone asked, before destinations are translated, and what it
	// does not decide goes on.
	PreDNAT bool `json:"preDNAT,omitempty"`
	// DoNotTrack has host endpoints alone asked, about every single packet, before connections
	// are tracked, which what it allows is not; what it does not decide goes on.
	DoNotTrack bool `json:"doNotTrack,omitempty"`
}

// PolicyType is a direction, as the endpoint sees it.
type PolicyType string

// The types of policies.
const (
	Ingress PolicyType = "ingress"
	Egress  PolicyType = "egress"
)

// NetworkSet is a named list of networks and domains. Rules refer to it by its name, and their
// selectors by its labels.
type NetworkSet struct {
	Metadata Metadata       `json:"metadata"`
	Spec     NetworkSetSpec `json:"spec"`
}

// NetworkSetSpec lists the networks, which may overlap.
type NetworkSetSpec struct {
	CIDRs []netip.Prefix `json:"cidrs"`
	// Domains are names, and with `*.` before one all names below it, whose addresses are in
	// the set: on each node those that its own endpoints were told by DNS, for as long as that
	// said.
	Domains []string `json:"domains,omitempty"`
}

// The default actions of tiers.
const (
	TierDeny = Deny
	TierPass = Pass
)

// needsCIDRs is the ModelVersion that brought several CIDRs of a side.
const needsCIDRs = 7

// needs is the ModelVersion that a netctl must know to read the rule; 0: every one can.
func (r Rule) needs() int {
	if len(r.From.CIDRs) > 1 || len(r.To.CIDRs) > 1 {
		return needsCIDRs
	}
	if r.Action == Reject || r.From.Set.Value != "" || r.To.Set.Value != "" {
		return needsPolicies
	}
	return 0
}

// CompareOrder orders tiers, or policies of one tier: by order, those without one last,
// and then by name.
func CompareOrder(a *int, nameA string, b *int, nameB string) int {
	if a == nil || b == nil {
		return cmp.Or(cmp.Compare(boolRank(a == nil), boolRank(b == nil)), cmp.Compare(nameA, nameB))
	}
	return cmp.Or(cmp.Compare(*a, *b), cmp.Compare(nameA, nameB))
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Kind returns KindTier.
func (*Tier) Kind() Kind { return KindTier }

// Meta implements Object.
func (t *Tier) Meta() *Metadata { return &t.Metadata }

// SetDefaults implements Object.
func (t *Tier) SetDefaults() {
	if t.Spec.DefaultAction == "" {
		t.Spec.DefaultAction = TierDeny
	}
}

// Validate implements Object.
func (t *Tier) Validate() error {
	if err := checkMeta(t); err != nil {
		return err
	}
	if a := t.Spec.DefaultAction; a != TierDeny && a != TierPass {
		return &FieldError{Field: "spec.defaultAction", Value: string(a), Reason: "must be deny or pass"}
	}
	return nil
}

// Kind returns KindPolicy.
func (*Policy) Kind() Kind { return KindPolicy }

// Meta implements Object.
func (p *Policy) Meta() *Metadata { return &p.Metadata }

// setNeeds says what the policy needs as it is now, so that what it no longer says is not
// asked of anybody. What this netctl cannot read stays for Validate.
func (p *Policy) setNeeds() {
	if !p.Metadata.needRules(p.Spec.Ingress, p.Spec.Egress) {
		return
	}
	need := func(is bool, model int) {
		if is {
			p.Metadata.Needs = max(p.Metadata.Needs, model)
		}
	}
	need(p.Spec.Staged, needsStaged)
	need(p.Spec.ApplyOnForward || p.onlyForHosts(), needsHostEndpoints)
}

// needRules says what an object's rules need, and nothing else; false: it is of a model
// that this netctl does not know, which stays for Validate.
func (m *Metadata) needRules(lists ...[]Rule) bool {
	if m.Needs < 0 || m.Needs > ModelVersion {
		return false
	}
	m.Needs = 0
	for _, r := range slices.Concat(lists...) {
		m.Needs = max(m.Needs, r.needs())
	}
	return true
}

// SetDefaults implements Object.
func (p *Policy) SetDefaults() {
	s := &p.Spec
	p.setNeeds()
	if s.Tier == "" {
		s.Tier = DefaultTier
	}
	if sel, err := ParseSelector(s.Selector); err == nil {
		s.Selector = sel.String()
	}
	if s.Types == nil {
		if len(s.Ingress) > 0 || len(s.Egress) == 0 {
			s.Types = append(s.Types, Ingress)
		}
		if len(s.Egress) > 0 {
			s.Types = append(s.Types, Egress)
		}
	}
}

// Validate implements Object.
func (p *Policy) Validate() error {
	if err := checkMeta(p); err != nil {
		return err
	}
	if _, err := ParseSelector(p.Spec.Selector); err != nil {
		return at("spec.selector", err)
	}
	unasked := func(t PolicyType, rules []Rule) error {
		if len(rules) > 0 && !slices.Contains(p.Spec.Types, t) {
			return &FieldError{Field: "spec.types", Reason: "lacks " + string(t) + ", which the policy has rules for"}
		}
		return nil
	}
	return firstError(
		at("spec.tier", CheckName(p.Spec.Tier)),
		each("spec.types", p.Spec.Types, func(t PolicyType) error {
			if t != Ingress && t != Egress {
				return &FieldError{Value: string(t), Reason: "must be ingress or egress"}
			}
			return nil
		}),
		unasked(Ingress, p.Spec.Ingress), unasked(Egress, p.Spec.Egress),
		validateRules("spec.ingress", p.Spec.Ingress), validateRules("spec.egress", p.Spec.Egress),
		checkRuleCount("spec.ingress", p.Spec.Ingress), checkRuleCount("spec.egress", p.Spec.Egress), p.validateHosts())
}

// Kind returns KindNetworkSet.
func (*NetworkSet) Kind() Kind { return KindNetworkSet }

// Meta implements Object.
func (n *NetworkSet) Meta() *Metadata { return &n.Metadata }

// SetDefaults implements Object.
func (n *NetworkSet) SetDefaults() {
	if n.Spec.CIDRs == nil {
		n.Spec.CIDRs = []netip.Prefix{}
	}
	for i, d := range n.Spec.Domains {
		n.Spec.Domains[i] = CanonicalDomain(d)
	}
	switch needs := n.Metadata.Needs; {
	case needs < 0 || needs > ModelVersion: // it stays for Validate
	case len(n.Spec.Domains) > 0:
		n.Metadata.Needs = needsDomains
	default:
		n.Metadata.Needs = 0
	}
}

// Validate implements Object.
func (n *NetworkSet) Validate() error {
	if err := checkMeta(n); err != nil {
		return err
	}
	seen := make(map[netip.Prefix]bool, len(n.Spec.CIDRs)) // there may be tens of thousands
	for i, c := range n.Spec.CIDRs {
		if err := checkCIDR("", c); err != nil {
			return at(indexed("spec.cidrs", i), err)
		}
		if seen[c] {
			return &FieldError{Field: indexed("spec.cidrs", i), Value: c.String(), Reason: "is in the list twice"}
		}
		seen[c] = true
	}
	names := make(map[string]bool, len(n.Spec.Domains))
	for i, d := range n.Spec.Domains {
		if err := CheckDomain(d); err != nil {
			return at(indexed("spec.domains", i), err)
		}
		if names[d] {
			return &FieldError{Field: indexed("spec.domains", i), Value: d, Reason: "is in the list twice"}
		}
		names[d] = true
	}
	return nil
}
