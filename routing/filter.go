package routing

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"netctl/datastore"
)

// Filter is a BGPFilter as a plan has it.
type Filter struct {
	Name string `json:"name"`
	// Missing: somebody names it, and it is not there.
	Missing bool                    `json:"missing,omitempty"`
	Spec    datastore.BGPFilterSpec `json:"spec,omitzero"`
}

// Direction is what of a filter counts.
type Direction string

// The directions.
const (
	Import Direction = "import"
	Export Direction = "export"
)

// Announcement is a route as filters see it.
type Announcement struct {
	Prefix  netip.Prefix
	NextHop netip.Addr // not valid: this node
	// Peer is who announced it; not valid: this node.
	Peer netip.Addr
	// Outside: that is a configured peer that is no node; External: of another AS;
	// Reflected: by way of a reflector.
	Outside, External, Reflected bool
	*Attributes
}

// Attributes are those of many routes, as filters see them. They remember which
// expressions the path matches: what is known is not asked again for each prefix.
type Attributes struct {
	ASPath      string
	Communities []datastore.Community
	matched     map[string]bool
}

// Verdict is what becomes of a route.
type Verdict struct {
	Accept bool
	// Set is what is changed; nil: nothing.
	Set *Changed
	// By says which filter and rule decided: "filter tor, import rule 2: reject pool any".
	By string
}

// Changed is what a rule changes, and how that is written: equal texts are equal changes.
type Changed struct {
	datastore.FilterSet
	Text string
}

// Policy is the filters of a peer in one direction, compiled. It is not changed after it
// is made.
type Policy struct{ decisions []decision }

// decision is a rule, or what becomes of the rest.
type decision struct {
	tests []test
	Verdict
}

// test is a term.
type test struct {
	not   bool
	holds func(*Announcement) bool
}

// Decide says what becomes of a route: what the first rule that matches says, and
// where none does the route is accepted.
func (p *Policy) Decide(a *Announcement) Verdict {
next:
	for i := range p.decisions {
		d := &p.decisions[i]
		for _, t := range d.tests {
			if t.holds(a) == t.not {
				continue next
			}
		}
		return d.Verdict
	}
	return Verdict{Accept: true, By: "no filter says anything of it"}
}

// Policies compiles filters. Equal ones become one Policy, whose pointer tells it from
// others. The zero value is ready.
type Policies struct{ made, before map[string]*Policy }

// Begin forgets what was not asked for since the last Begin.
func (c *Policies) Begin() { c.before, c.made = c.made, map[string]*Policy{} }

// Compile is the policy of filters, in their order; nil: they say nothing. pools are those
// of the cluster.
func (c *Policies) Compile(d Direction, filters []Filter, pools []netip.Prefix) *Policy {
	key := policyKey(d, filters, pools)
	if key == "" {
		return nil
	}
	if c.made == nil {
		c.made = map[string]*Policy{}
	}
	p := c.made[key]
	if p == nil {
		p = c.before[key]
	}
	if p == nil {
		p = compile(d, filters, pools)
	}
	c.made[key] = p
	return p
}

// said is what a filter says of a direction.
func (f Filter) said(d Direction) ([]datastore.FilterRule, datastore.FilterAction) {
	if d == Import {
		return f.Spec.Import, f.Spec.ImportDefault
	}
	return f.Spec.Export, f.Spec.ExportDefault
}

// policyKey is equal for equal policies; "" is none.
func policyKey(d Direction, filters []Filter, pools []netip.Prefix) string {
	var b strings.Builder
	anyPool := false
	for _, f := range filters {
		rules, rest := f.said(d)
		if len(rules) == 0 && rest == "" && !f.Missing {
			continue
		}
		fmt.Fprintf(&b, "%s %s %v %s\n", d, f.Name, f.Missing, rest)
		for _, r := range rules {
			b.WriteString(r.String() + "\n")
			anyPool = anyPool || slices.ContainsFunc(r.Terms, func(t datastore.FilterTerm) bool { return t.Kind == datastore.TermPool && len(t.Nets) == 0 })
		}
	}
	if anyPool {
		fmt.Fprint(&b, pools)
	}
	return b.String()
}

func compile(d Direction, filters []Filter, pools []netip.Prefix) *Policy {
	p := &Policy{}
	for _, f := range filters {
		if f.Missing {
			p.decisions = append(p.decisions, decision{Verdict: Verdict{By: "filter " + f.Name + ", which does not exist"}})
			continue
		}
		rules, rest := f.said(d)
		for i, r := range rules {
			one := decision{Verdict: Verdict{Accept: r.Action == datastore.FilterAccept, By: fmt.Sprintf("filter %s, %s rule %d: %s", f.Name, d, i+1, short(r.String()))}}
			for _, t := range r.Terms {
				one.tests = append(one.tests, test{t.Not, compileTerm(t, pools)})
			}
			if !r.Set.IsZero() {
				one.Set = &Changed{r.Set, r.Set.String()}
			}
			p.decisions = append(p.decisions, one)
		}
		if rest == datastore.FilterAccept || rest == datastore.FilterReject {
			p.decisions = append(p.decisions, decision{Verdict: Verdict{
				Accept: rest == datastore.FilterAccept, By: fmt.Sprintf("filter %s, %s default: %s", f.Name, d, rest)}})
		}
	}
	return p
}

// short bounds how much of a rule is repeated for each route.
func short(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + " …"
}

// compileTerm is what a term asks, but for its not.
func compileTerm(t datastore.FilterTerm, pools []netip.Prefix) func(*Announcement) bool {
	switch t.Kind {
	case datastore.TermPrefix:
		set := newPrefixSet(t.Prefixes)
		return func(a *Announcement) bool { return set.holds(a.Prefix) }
	case datastore.TermPool:
		if len(t.Nets) > 0 {
			pools = t.Nets
		}
		set := newPrefixSet(wholly(pools))
		return func(a *Announcement) bool { return set.holds(a.Prefix) }
	case datastore.TermNextHop:
		set := newPrefixSet(wholly(t.Nets))
		return func(a *Announcement) bool {
			return a.NextHop.IsValid() && set.holds(netip.PrefixFrom(a.NextHop, a.NextHop.BitLen()))
		}
	case datastore.TermCommunity:
		return communityTest(t.Communities)
	case datastore.TermASPath:
		return pathTest(t.ASPath)
	case datastore.TermSource:
		return func(a *Announcement) bool {
			return slices.ContainsFunc(t.Sources, func(s datastore.FilterSource) bool { return a.from(s) })
		}
	}
	return func(*Announcement) bool { return false } // the model has no other
}

// communityTest looks exact communities up.
func communityTest(patterns []datastore.CommunityPattern) func(*Announcement) bool {
	exact := map[datastore.Community]bool{}
	var others []datastore.CommunityPattern
	for _, p := range patterns {
		if p.Any == [3]bool{} {
			exact[p.Community] = true
		} else {
			others = append(others, p)
		}
	}
	return func(a *Announcement) bool {
		return slices.ContainsFunc(a.Communities, func(c datastore.Community) bool {
			return exact[c] || slices.ContainsFunc(others, func(p datastore.CommunityPattern) bool { return p.Matches(c) })
		})
	}
}

func pathTest(text string) func(*Announcement) bool {
	expr, err := datastore.CompileASPath(text)
	if err != nil { // nothing that the model read
		expr = regexp.MustCompile(`[^\s\S]`)
	}
	return func(a *Announcement) bool {
		is, known := a.matched[text]
		if !known {
			if a.matched == nil {
				a.matched = map[string]bool{}
			}
			is = expr.MatchString(a.ASPath)
			a.matched[text] = is
		}
		return is
	}
}

// from says whether the route is from there.
func (a *Announcement) from(s datastore.FilterSource) bool {
	if s.Peer.IsValid() || !a.Peer.IsValid() {
		return a.Peer == s.Peer && s.Peer.IsValid() || s.Word == datastore.SourceLocal
	}
	switch s.Word {
	case datastore.SourceNode:
		return !a.Outside
	case datastore.SourceOutside:
		return a.Outside
	case datastore.SourceInternal:
		return !a.External
	case datastore.SourceExternal:
		return a.External
	case datastore.SourceReflected:
		return a.Reflected
	}
	return false
}

// prefixSet is many ranges, of which one look-up for each length that their prefixes have
// finds those that a prefix may be in.
type prefixSet struct {
	lengths []int
	spans   map[netip.Prefix][]datastore.PrefixRange
}

func newPrefixSet(ranges []datastore.PrefixRange) *prefixSet {
	s := &prefixSet{spans: map[netip.Prefix][]datastore.PrefixRange{}}
	lengths := map[int]bool{}
	for _, r := range ranges {
		s.spans[r.Prefix] = append(s.spans[r.Prefix], r)
		lengths[r.Prefix.Bits()] = true
	}
	s.lengths = slices.Sorted(maps.Keys(lengths))
	return s
}

// wholly are ranges of all that lies in nets.
func wholly(nets []netip.Prefix) (out []datastore.PrefixRange) {
	for _, n := range nets {
		out = append(out, datastore.PrefixRange{Prefix: n, Min: n.Bits(), Max: n.Addr().BitLen()})
	}
	return out
}

func (s *prefixSet) holds(p netip.Prefix) bool {
	for _, bits := range s.lengths {
		if bits > p.Bits() {
			return false
		}
		at, err := p.Addr().Prefix(bits)
		if err == nil && slices.ContainsFunc(s.spans[at], func(r datastore.PrefixRange) bool { return p.Bits() >= r.Min && p.Bits() <= r.Max }) {
			return true
		}
	}
	return false
}
