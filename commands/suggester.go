package commands

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// suggester makes policies of what was dropped.
type suggester struct {
	settings *settings
	view     *datastore.View
	labels   []string // keys to pick endpoints by; nil: those that seem best
	warn     func(format string, args ...any)
	found    map[string]*suggestion // by what their packets have in common
}

// suggestion is a policy that comes to be.
type suggestion struct {
	*datastore.Policy
	// opens says that it is the only one of its tier that decides about its endpoints: what
	// it does not allow is to go on to the next.
	opens map[datastore.PolicyType]bool
}

// suggest are the policies, by name.
func (s *suggester) suggest(ctx context.Context, drops []drop) (list []datastore.Object, err error) {
	var meant []drop
	for _, d := range drops {
		if d.Action == "denied" && !d.Staged && s.denied(ctx, d) && s.add(d) {
			meant = append(meant, d)
		}
	}
	names := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(s.found)) {
		p := s.found[key].Policy
		name := p.Metadata.Name
		for n := 2; names[p.Metadata.Name] || s.view.Policy(p.Metadata.Name) != nil; n++ {
			p.Metadata.Name = fmt.Sprintf("%s-%d", name, n)
		}
		names[p.Metadata.Name] = true
		for typ, rules := range map[datastore.PolicyType]*[]datastore.Rule{datastore.Ingress: &p.Spec.Ingress, datastore.Egress: &p.Spec.Egress} {
			slices.SortFunc(*rules, func(a, b datastore.Rule) int { return cmp.Compare(a.String(), b.String()) })
			if s.found[key].opens[typ] {
				*rules = append(*rules, datastore.Rule{Action: datastore.Pass})
			}
		}
		p.SetDefaults()
		if err := p.Validate(); err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	for _, p := range list {
		if err := overlay(s.view, inForce(p.(*datastore.Policy))); err != nil {
			return nil, err
		}
	}
	for _, d := range meant {
		if s.denied(ctx, d) {
			s.warn("still denied with these policies in force: %s from %s to %s, %s", d.Protocol, d.Source.Address, d.Destination, d.Direction)
		}
	}
	return list, nil
}

// ends are the endpoint that a packet was dropped for, and the other end.
func (s *suggester) ends(d drop) (x *explainer, own, other party) {
	x = &explainer{settings: s.settings, view: s.view, sourcePort: d.Source.Port}
	x.src, x.dst = x.partyAt("", d.Source.Address), x.partyAt("", d.Destination.Address)
	x.src.Address, x.dst.Address = d.Source.Address, d.Destination.Address
	if d.Direction == inbound {
		return x, x.dst, x.src
	}
	return x, x.src, x.dst
}

// denied says whether the view has such a packet denied on the side where it was dropped.
func (s *suggester) denied(ctx context.Context, d drop) bool {
	x, own, other := s.ends(d)
	r, err := datastore.ParseRule("allow " + d.Protocol)
	if err != nil || own.endpoint == nil {
		return false
	}
	t := traffic{number: r.Protocol.Number, Protocol: nameOfProtocol(r.Protocol.Number), first: d.Destination.Port}
	if t.icmp() {
		t.first = uint16(r.Protocol.Type)<<8 + uint16(r.Protocol.Code)
	}
	t.last = t.first
	side, err := x.side(ctx, own, other, d.Direction == inbound, t)
	return err == nil && !side.Allowed
}

// add has a policy allow the packet; false: none can.
func (s *suggester) add(d drop) bool {
	_, own, other := s.ends(d)
	r, err := datastore.ParseRule("allow " + d.Protocol)
	if err != nil {
		return false
	}
	if d.Direction == outbound && other.endpoint == nil && other.Node == own.Node {
		s.warn("no policy allows %s to open %s on its own host: agent.workloadToHost does", own.Endpoint, d.Destination)
		return false
	}
	typ, peer := datastore.Egress, &r.To
	if d.Direction == inbound {
		typ, peer = datastore.Ingress, &r.From
	}
	*peer = s.name(other)
	if d.Destination.Port != 0 {
		r.To.Ports = []datastore.PortRange{{First: d.Destination.Port, Last: d.Destination.Port}}
	}
	selector, name := s.pick(own.endpoint)
	if selector == "" {
		how := "it has no profile either"
		if p := own.endpoint.Spec.Profiles; len(p) > 0 {
			how = fmt.Sprintf("`netctl profile %s rule add %s %s` would allow it", p[0], d.Direction, r)
		}
		s.warn("endpoint %s has no label that a policy can pick it by: %s", own.Endpoint, how)
		return false
	}
	q := s.policy(d, typ, own.endpoint, selector, name)
	rules := &q.Spec.Egress
	if typ == datastore.Ingress {
		rules = &q.Spec.Ingress
	}
	*rules = allow(*rules, r)
	return true
}

// policy is the one that allows what was dropped in the same place: it stands before the
// policy that denied, or at the end of the tier whose policies left it undecided. What
// profiles deny a policy of the default tier allows, before all that are there.
func (s *suggester) policy(d drop, typ datastore.PolicyType, e *datastore.Endpoint, selector, name string) *suggestion {
	spec := datastore.PolicySpec{Tier: datastore.DefaultTier, Staged: true, Selector: selector}
	opens := false
	switch {
	case d.Rule != nil && d.Rule.Kind == datastore.KindPolicy:
		spec.Tier = d.Rule.Tier
		if p := s.view.Policy(d.Rule.Name); p != nil {
			spec.Order = s.before(p)
		}
	case d.Tier != "":
		spec.Tier = d.Tier
	default:
		var first *datastore.Policy
		for _, p := range s.view.Policies() {
			if p.Spec.Tier == spec.Tier && s.decides(p, typ, e) && (first == nil || datastore.CompareOrder(p.Spec.Order, p.Metadata.Name, first.Spec.Order, first.Metadata.Name) < 0) {
				first = p
			}
		}
		if opens = first == nil; !opens {
			spec.Order = s.before(first)
		}
	}
	key := fmt.Sprint(selector, " ", spec.Tier, " ", orderText(spec.Order))
	q := s.found[key]
	if q == nil {
		q = &suggestion{&datastore.Policy{Metadata: datastore.Metadata{Name: name}, Spec: spec}, map[datastore.PolicyType]bool{}}
		s.found[key] = q
	}
	q.opens[typ] = q.opens[typ] || opens
	return q
}

// before is an order that comes before a policy's, behind as few of its tier as can be.
func (s *suggester) before(p *datastore.Policy) *int {
	if p.Spec.Order != nil {
		return new(*p.Spec.Order - 1)
	}
	last := 0
	for _, o := range s.view.Policies() {
		if o.Spec.Tier == p.Spec.Tier && o.Spec.Order != nil {
			last = max(last, *o.Spec.Order)
		}
	}
	return new(last + 1)
}

// decides says whether a policy in force decides about the endpoint.
func (s *suggester) decides(p *datastore.Policy, typ datastore.PolicyType, e *datastore.Endpoint) bool {
	sel, err := datastore.ParseSelector(p.Spec.Selector)
	return err == nil && !p.Spec.Staged && slices.Contains(p.Spec.Types, typ) && sel.Matches(labelsOf(s.view, e))
}

// labelsOf are an endpoint's labels, and those of its profiles.
func labelsOf(view *datastore.View, e *datastore.Endpoint) map[string]string {
	all := map[string]string{}
	for _, name := range slices.Backward(e.Spec.Profiles) {
		if p := view.Profile(name); p != nil {
			maps.Copy(all, p.Spec.Labels)
		}
	}
	maps.Copy(all, e.Metadata.Labels)
	return all
}

// usualLabels are the keys by which people tell kinds of endpoints apart.
func usualLabels() []string {
	return []string{"role", "app", "app.kubernetes.io/name", "service", "docker.service", "component", "tier"}
}

// singleLabels are the keys by which each endpoint is told from all others.
func singleLabels() []string {
	return []string{"name", "docker.name", "podman.name", "docker.id", "podman.id"}
}

// pick is a selector of endpoints like this one, and a name for their policy; "": it has no
// label.
func (s *suggester) pick(e *datastore.Endpoint) (selector, name string) {
	all := labelsOf(s.view, e)
	maps.DeleteFunc(all, func(key, _ string) bool { return strings.HasPrefix(key, "netctl/") })
	keys := s.labels
	if keys == nil {
		keys = s.bestKeys(e, all)
	}
	var terms []string
	name = "suggested"
	for _, key := range keys {
		if value, ok := all[key]; ok {
			terms = append(terms, key+" == "+quoted(value))
			name += "-" + value
		}
	}
	clean := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r) {
			return r
		}
		return '-'
	}, name), "-._")
	sel, err := datastore.ParseSelector(strings.Join(terms, " && "))
	if err != nil || len(terms) == 0 {
		return "", ""
	}
	return sel.String(), strings.TrimRight(clean[:min(len(clean), 60)], "-._")
}

// quoted is a value as selectors have it; they know no escape.
func quoted(value string) string {
	if strings.Contains(value, "'") {
		return `"` + value + `"`
	}
	return "'" + value + "'"
}

// bestKeys are those of labels that the endpoint's profiles give, or one of the usual, or
// that of the rarest label that is not the endpoint's alone.
func (s *suggester) bestKeys(e *datastore.Endpoint, all map[string]string) []string {
	given := map[string]bool{}
	for _, name := range e.Spec.Profiles {
		if p := s.view.Profile(name); p != nil {
			for key := range p.Spec.Labels {
				given[key] = true
			}
		}
	}
	if len(given) > 0 {
		return slices.Sorted(maps.Keys(given))
	}
	for _, key := range usualLabels() {
		if _, ok := all[key]; ok {
			return []string{key}
		}
	}
	has := map[string]int{} // how many endpoints have the label
	for _, o := range s.view.Endpoints() {
		for key, value := range labelsOf(s.view, o) {
			if all[key] == value {
				has[key]++
			}
		}
	}
	rank := func(key string) int {
		if i := slices.Index(singleLabels(), key); i >= 0 {
			return len(s.view.Endpoints()) + 1 + i
		}
		return has[key]
	}
	keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int { return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b)) })
	return keys[:min(len(keys), 1)]
}

// name is the other end as rules name it: by a tag of its profiles, a label, a network set,
// or its address.
func (s *suggester) name(p party) (side datastore.Side) {
	if p.endpoint != nil {
		for _, name := range p.endpoint.Spec.Profiles {
			if profile := s.view.Profile(name); profile != nil && len(profile.Spec.Tags) > 0 {
				side.Tag.Value = profile.Spec.Tags[0]
				return side
			}
		}
		if side.Selector.Value, _ = s.pick(p.endpoint); side.Selector.Value != "" {
			return side
		}
	}
	bits := 0 // a network that holds everybody says nothing
	for _, n := range s.view.NetworkSets() {
		for _, c := range n.Spec.CIDRs {
			if c.Contains(p.Address) && c.Bits() > bits {
				side.Set.Value, bits = n.Metadata.Name, c.Bits()
			}
		}
	}
	if bits == 0 {
		side.CIDRs = []netip.Prefix{netip.PrefixFrom(p.Address, p.Address.BitLen())}
	}
	return side
}

// allow adds a rule: to one that differs in the ports alone, its port.
func allow(rules []datastore.Rule, r datastore.Rule) []datastore.Rule {
	without := func(r datastore.Rule) string {
		r.To.Ports = nil
		return r.String()
	}
	for i := range rules {
		if have := &rules[i].To; without(rules[i]) == without(r) && (len(have.Ports) > 0) == (len(r.To.Ports) > 0) {
			have.Ports = append(have.Ports, r.To.Ports...)
			slices.SortFunc(have.Ports, func(a, b datastore.PortRange) int { return cmp.Compare(a.First, b.First) })
			have.Ports = slices.Compact(have.Ports)
			return rules
		}
	}
	return append(rules, r)
}
