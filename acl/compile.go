package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// direction is that of a rule as its endpoint sees it.
type direction uint8

const (
	inbound direction = iota
	outbound
)

func (d direction) String() string {
	if d == inbound {
		return "inbound"
	}
	return "outbound"
}

// short is the start of the names of the direction's chains.
func (d direction) short() string {
	if d == inbound {
		return "in"
	}
	return "out"
}

func (d direction) denyChain() string {
	if d == inbound {
		return chainDenyIn
	}
	return chainDenyOut
}

func (d direction) dropChain() string {
	if d == inbound {
		return chainDropIn
	}
	return chainDropOut
}

// source says where the elements of a set come from.
type source uint8

const (
	fromRule         source = iota // constant, in setRef.elements
	fromTag                        // endpoints that have the tag
	fromSelector                   // endpoints that the selector matches
	fromPort                       // endpoints that have the named port
	fromSet                        // a network set
	fromSelectorNets               // network sets, and networks behind endpoints, that the selector matches
	fromTagNets                    // networks behind endpoints that have the tag
	fromPools                      // every pool
	fromNAT                        // pools with natOutgoing
	fromNodes                      // addresses of nodes
	fromLimits                     // links that have limits
	fromGate                       // who is in one of several tags or selectors, in setRef.of
)

// setRef is a set that a rule needs.
type setRef struct {
	name     string
	typ      SetType
	source   source
	arg      string // tag, selector or name; of a gate its comment
	elements []Element
	of       []populationKey
}

// constant says that the elements are those of the rule; networks, that they are of
// network sets. All others are those of a population.
func (r setRef) constant() bool { return r.source == fromRule }
func (r setRef) networks() bool { return r.source >= fromSet && r.source <= fromTagNets }

func (r setRef) comment() string {
	if r.source == fromGate { // it changes often, and is long
		return r.arg
	}
	words := [...]string{fromTag: "tag ", fromSelector: "selector ", fromPort: "port ", fromSet: "set ", fromSelectorNets: "networks of selector ", fromTagNets: "networks of tag ", fromRule: "",
		fromPools: "pools", fromNAT: "pools with natOutgoing", fromNodes: "addresses of nodes", fromLimits: "links that have limits "}
	return clip(words[r.source] + r.arg)
}

// program is compiled rules and the sets they need, in order of first use.
type program struct {
	families families
	rules    []Rule
	origins  []origin // of each rule
	ends     []end    // that rules go to
	staged   bool     // of staged policies
	// nets says whether labels of a network set, or an endpoint with networks behind it, meet
	// a selector or tag; nil: none do.
	nets func(s source, arg string) bool
	refs []setRef
	used map[string]bool // by the name of a set or of an end
	// gates are those that its rules may have, held the names of those that they have.
	gates []setRef
	held  []string
}

func (p *program) use(r setRef) string {
	if !p.used[r.name] {
		p.used[r.name] = true
		p.refs = append(p.refs, r)
	}
	return r.name
}

// profileChain is the name of a profile's chain.
func profileChain(d direction, profile string) string { return hashName(d.short(), profile) }

// families are the address families to compile for: IPv4 and IPv6.
type families [2]bool

func (f families) has(nf uint32) bool {
	return nf == 0 || nf == nfIPv4 && f[0] || nf == nfIPv6 && f[1]
}

// addAll compiles the rules that an object has of one direction.
func (p *program) addAll(o owner, d direction, rules []datastore.Rule) {
	for i, id := range ruleIDs(o, d, rules) {
		p.add(origin{o, i, &rules[i], id}, d)
	}
}

// addPlain adds a rule that comes of none of the model.
func (p *program) addPlain(r Rule) {
	p.rules, p.origins = append(p.rules, r), append(p.origins, origin{})
}

// add compiles one rule: one Rule for each combination of what nft cannot say in
// one match (both families, named beside numbered ports, a negated ICMP type).
// The alternatives exclude each other or end in the same verdict.
func (p *program) add(from origin, d direction) {
	r, staged := *from.rule, from.owner.staged
	// Without its number: a new first rule would change all.
	out := Rule{Comment: clip(fmt.Sprintf("%s %s: %s", from.owner.label(), d.words(from.owner.kind), r)), Counter: true}
	switch {
	case staged && r.Action == datastore.Allow:
		out.Verdict = Verdict{Kind: Return}
	case staged && r.Action != datastore.Log:
		out.Verdict = p.wouldRefuse(from, d)
	case r.Action == datastore.Allow:
		out.Verdict = accept()
	case r.Action == datastore.Pass:
		out.Verdict = Verdict{Kind: Return}
	case r.Action == datastore.Log:
		out.Limit = few(MeterLog, LinkPair)
		out.Log = logPrefix("L", d, from.id, from.owner.whose())
	default:
		out.Verdict = p.finish(refusedBy(from, d))
		if r.Action == datastore.Reject {
			p.finish(rejecting(d))
		}
	}
	for _, family := range ruleFamilies(r) {
		if !p.families.has(family) {
			continue
		}
		for _, proto := range protoTerms(r.Protocol) {
			for _, sp := range p.portTerms(r.From, SrcPort, family) {
				for _, dp := range p.portTerms(r.To, DstPort, family) {
					for _, addrs := range p.addressTerms(r, family) {
						out.Match = matches(family, proto, sp, dp, addrs)
						p.rules = append(p.rules, out)
						p.origins = append(p.origins, from)
					}
				}
			}
		}
	}
}

// ruleFamilies are the values of NFProto to compile r for; 0 means that the rule
// does not look at addresses.
func ruleFamilies(r datastore.Rule) []uint32 {
	out := []uint32{nfIPv4, nfIPv6}
	drop := func(f uint32) { out = slices.DeleteFunc(out, func(o uint32) bool { return o == f }) }
	split := false
	for _, s := range []datastore.Side{r.From, r.To} {
		if len(s.CIDRs) > 0 {
			split = true
		}
		for _, f := range []uint32{nfIPv4, nfIPv6} {
			if len(s.CIDRs) > 0 && !s.NotCIDRs && len(cidrsOf(s, f)) == 0 {
				drop(f)
			}
		}
		named := slices.ContainsFunc(s.Ports, func(p datastore.PortRange) bool { return p.Name != "" })
		split = split || named || s.Tag.Value != "" || s.Selector.Value != "" || s.Set.Value != ""
	}
	if r.Protocol.Set && !r.Protocol.Not {
		switch r.Protocol.Number {
		case protoICMP:
			split = true
			drop(nfIPv6)
		case protoICMP6:
			split = true
			drop(nfIPv4)
		}
	}
	if !split {
		return []uint32{0}
	}
	return out
}

func family(a netip.Addr) uint32 {
	if a.Is4() || a.Is4In6() {
		return nfIPv4
	}
	return nfIPv6
}

// protoTerms are the alternatives of the protocol match.
func protoTerms(m datastore.ProtocolMatch) [][]Term {
	if !m.Set {
		return [][]Term{nil}
	}
	proto := num(L4Proto, uint32(m.Number))
	if !m.HasType {
		proto.Not = m.Not
		return [][]Term{{proto}}
	}
	typeField, codeField := ICMPType, ICMPCode
	if m.Number == protoICMP6 {
		typeField, codeField = ICMP6Type, ICMP6Code
	}
	typ, code := num(typeField, uint32(m.Type)), num(codeField, uint32(m.Code))
	not := func(t Term) Term { t.Not = true; return t }
	switch {
	case !m.Not && m.HasCode:
		return [][]Term{{proto, typ, code}}
	case !m.Not:
		return [][]Term{{proto, typ}}
	case m.HasCode:
		return [][]Term{{not(proto)}, {proto, not(typ)}, {proto, typ, not(code)}}
	}
	return [][]Term{{not(proto)}, {proto, not(typ)}}
}

// portTerms are the alternatives of a side's port match.
func (p *program) portTerms(s datastore.Side, f Field, family uint32) [][]Term {
	if len(s.Ports) == 0 {
		return [][]Term{nil}
	}
	var terms []Term
	if ranges := mergeRanges(s.Ports); len(ranges) == 1 && ranges[0].First == ranges[0].Last {
		terms = append(terms, Term{Field: f, Not: s.NotPorts, Number: uint32(ranges[0].First)})
	} else if len(ranges) > 0 {
		terms = append(terms, Term{Field: f, Not: s.NotPorts, Set: p.use(portSet(ranges))})
	}
	for _, r := range s.Ports {
		if r.Name == "" {
			continue
		}
		ref := setRef{name: hashName("np4", r.Name), typ: NamedPort4, source: fromPort, arg: r.Name}
		field := SrcNamedPort4
		if family == nfIPv6 {
			ref.name, ref.typ, field = hashName("np6", r.Name), NamedPort6, SrcNamedPort6
		}
		if f == DstPort {
			field++
		}
		terms = append(terms, Term{Field: field, Not: s.NotPorts, Set: p.use(ref)})
	}
	if s.NotPorts {
		return [][]Term{terms}
	}
	out := make([][]Term, len(terms))
	for i, t := range terms {
		out[i] = []Term{t}
	}
	return out
}

// mergeRanges are the numbered ports as the fewest ranges, ascending.
func mergeRanges(ports []datastore.PortRange) []Element {
	var all []Element
	for _, p := range ports {
		if p.Name == "" {
			all = append(all, Element{First: p.First, Last: max(p.First, p.Last)})
		}
	}
	slices.SortFunc(all, Element.Compare)
	var out []Element
	for _, e := range all {
		if n := len(out); n > 0 && int(e.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, e.Last)
			continue
		}
		out = append(out, e)
	}
	return out
}

// portSet is the set of the given ranges; equal content, equal name. Short
// ranges are single ports, which a hash table finds faster.
func portSet(ranges []Element) setRef {
	const single = 16
	var singles []Element
	for _, r := range ranges {
		for p := int(r.First); p <= int(r.Last) && len(singles) <= single; p++ {
			singles = append(singles, numberElement(uint16(p)))
		}
	}
	typ, elements := Port, singles
	if len(singles) > single && slices.ContainsFunc(ranges, func(e Element) bool { return e.First != e.Last }) {
		typ, elements = PortRanges, ranges
	} else if len(singles) > single {
		elements = ranges
	}
	words := make([]string, len(ranges))
	for i, r := range ranges {
		words[i] = r.Text(PortRanges)
	}
	text := strings.Join(words, ",")
	return setRef{name: hashName("port", text), typ: typ, arg: "ports " + text, elements: elements}
}

// matches puts the terms in the order of their cost: protocol, ports, family,
// addresses, concatenations.
func matches(fam uint32, proto, sp, dp, addrs []Term) []Term {
	out := slices.Clone(proto)
	ports := slices.Concat(sp, dp)
	for _, t := range ports {
		if t.Field.family() == 0 {
			out = append(out, t)
		}
	}
	if fam != 0 {
		out = append(append(out, num(NFProto, fam)), addrs...)
	}
	for _, t := range ports {
		if t.Field.family() != 0 {
			out = append(out, t)
		}
	}
	return out
}

// addressTerms are the alternatives of the match of both addresses.
func (p *program) addressTerms(r datastore.Rule, fam uint32) (out [][]Term) {
	if fam == 0 {
		return [][]Term{nil}
	}
	src, dst := SrcIP4, DstIP4
	if fam == nfIPv6 {
		src, dst = SrcIP6, DstIP6
	}
	for _, from := range p.sideTerms(r.From, src, fam) {
		for _, to := range p.sideTerms(r.To, dst, fam) {
			out = append(out, slices.Concat(from, to))
		}
	}
	return out
}

// sideTerms are the alternatives of one: a selector is met by an endpoint, or by the
// networks of a set or behind an endpoint, as a tag is by these.
func (p *program) sideTerms(s datastore.Side, f Field, fam uint32) [][]Term {
	term := func(kind string, t datastore.Term, src source) Term {
		types := [2]SetType{Addr4, Addr6}
		if (setRef{source: src}).networks() {
			types = [2]SetType{Net4, Net6}
		}
		ref := setRef{name: hashName(kind+"4", t.Value), typ: types[0], source: src, arg: t.Value}
		if fam == nfIPv6 {
			ref.name, ref.typ = hashName(kind+"6", t.Value), types[1]
		}
		return Term{Field: f, Not: t.Not, Set: p.use(ref)}
	}
	out := [][]Term{nil}
	and := func(either ...Term) {
		var all [][]Term
		for _, t := range either {
			for _, terms := range out {
				all = append(all, append(slices.Clone(terms), t))
			}
		}
		out = all
	}
	members := func(kind string, t datastore.Term, src, nets source) {
		if t.Value == "" {
			return
		}
		own := term(kind, t, src)
		switch {
		case p.nets == nil || !p.nets(src, t.Value):
			and(own)
		case t.Not: // neither may be
			and(own)
			and(term(kind+"net", t, nets))
		default:
			and(own, term(kind+"net", t, nets))
		}
	}
	members("tag", s.Tag, fromTag, fromTagNets)
	switch list := cidrsOf(s, fam); len(list) {
	case 0:
	case 1:
		and(Term{Field: f, Not: s.NotCIDRs, Prefix: list[0].Prefix})
	default:
		and(Term{Field: f, Not: s.NotCIDRs, Set: p.use(cidrSet(list, fam))})
	}
	members("sel", s.Selector, fromSelector, fromSelectorNets)
	if s.Set.Value != "" {
		and(term("set", s.Set, fromSet))
	}
	return out
}

// cidrsOf are the fewest networks that are a side's of a family.
func cidrsOf(s datastore.Side, fam uint32) []Element {
	var list []netip.Prefix
	for _, c := range s.CIDRs {
		if c = cidrOf(c); family(c.Addr()) == fam {
			list = append(list, c)
		}
	}
	return cover(list)
}

// cidrSet is the set of several networks; equal content, equal name.
func cidrSet(list []Element, fam uint32) setRef {
	typ := Net4
	if fam == nfIPv6 {
		typ = Net6
	}
	words := make([]string, len(list))
	for i, e := range list {
		words[i] = e.Text(typ)
	}
	text := strings.Join(words, ",")
	return setRef{name: hashName("cidr", text), typ: typ, arg: "cidr " + text, elements: list}
}

// cidrOf is a rule's prefix as the kernel compares it. One needs no set: of those the
// kernel goes through the list for each rule that names one.
func cidrOf(c netip.Prefix) netip.Prefix {
	if c.Addr().Is4In6() {
		c = netip.PrefixFrom(c.Addr().Unmap(), max(0, c.Bits()-96))
	}
	return c.Masked()
}
