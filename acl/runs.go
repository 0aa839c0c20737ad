package acl

import (
	"cmp"
	"container/heap"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netctl/datastore"
)

// A run is several rules of a chain, one after the other, that each end the packet's way
// through the chain, and match the same but for one thing: a network of its source or
// destination, or its ports. A back end with maps asks for all of them at once: a map leads
// from what they differ by to a chain of the rule's own, which holds that rule as it is, with
// its counter. Where networks lie in one another the map says which rule is the first. Rules
// that differ by a tag or selector are a run as well, of another kind (gates.go).

// leastRun is from how many rules on a look-up is less than to ask one after the other.
const leastRun = 4

// The names of the maps, and of the chains that hold one rule each.
const (
	runPrefix     = "run"
	runRulePrefix = "rule"
)

// Packed is what stands for a chain: its rules, runs as look-ups, with the chains and maps of
// these.
type Packed struct {
	Rules  []Rule
	Chains map[string]*Chain
	Sets   map[string]*Set
}

// Has says whether an object is of p, beside the chain itself.
func (p Packed) Has(object string) bool { return p.Chains[object] != nil || p.Sets[object] != nil }

// Pack packs the rules of a chain. sets are those that PackSets says, by name.
func Pack(chain string, rules []Rule, sets map[string][]Element) Packed {
	return newPacker(chain, sets).pack(rules)
}

// PackSets says whether Pack has to know of a set: its elements, if it is one of ports, else
// that it is there.
func PackSets(name string, t SetType) (elements, known bool) {
	ports := t == Port || t == PortRanges
	return ports, ports || IsGate(name)
}

// Packed is r with the runs of each chain packed.
func (r *Ruleset) Packed() *Ruleset {
	return r.packed(func(*packer) {})
}

func (r *Ruleset) packed(with func(*packer)) *Ruleset {
	out := &Ruleset{Sets: maps.Clone(r.Sets), Chains: maps.Clone(r.Chains)}
	sets := map[string][]Element{}
	for name, s := range r.Sets {
		switch elements, known := PackSets(name, s.Type); {
		case elements:
			sets[name] = s.Sorted()
		case known:
			sets[name] = nil
		}
	}
	for name, c := range r.Chains {
		if c.Hook != nil {
			continue
		}
		p := newPacker(name, sets)
		with(p)
		if is := p.pack(c.Rules); len(is.Chains) > 0 {
			out.Chains[name] = &Chain{Name: name, Rules: is.Rules}
			maps.Copy(out.Chains, is.Chains)
			maps.Copy(out.Sets, is.Sets)
		}
	}
	return out
}

type packer struct {
	chain string
	sets  map[string][]Element
	gates bool // and no maps (Gated)
	out   Packed
	seen  map[string]int // how often a name was asked for
}

func newPacker(chain string, sets map[string][]Element) *packer {
	return &packer{chain: chain, sets: sets, out: Packed{Chains: map[string]*Chain{}, Sets: map[string]*Set{}}, seen: map[string]int{}}
}

func (p *packer) pack(rules []Rule) Packed {
	if len(rules) < leastRun {
		return Packed{Rules: rules}
	}
	p.each(rules, func(run []Rule, by int) {
		switch {
		case len(run) == 1:
			p.out.Rules = append(p.out.Rules, run[0])
		case isGated(run[0].Match[by]):
			p.out.Rules = append(p.out.Rules, p.gated(run, by, blocks(run, by))...)
		case p.gates:
			p.out.Rules = append(p.out.Rules, run...)
		default:
			p.lookup(run, by)
		}
	})
	return p.out
}

// name is hashName of what is of this chain, and of its own each time.
func (p *packer) name(kind, text string) string {
	key := kind + text
	p.seen[key]++
	return hashName(kind, p.chain, text, strconv.Itoa(p.seen[key]))
}

// each calls fn for each run of rules, whose rules differ by their match number by, and for each
// single rule. Rules of IPv4 and of IPv6 never concern the same packet, so that their runs may go
// past each other.
func (p *packer) each(rules []Rule, fn func(run []Rule, by int)) {
	for len(rules) > 0 {
		n := 1
		for n < len(rules) && (familyOf(rules[n]) == 0) == (familyOf(rules[0]) == 0) {
			n++
		}
		some := rules[:n]
		runs, inRuns := p.runs(some)
		if n > 1 {
			byFamily := slices.Clone(some)
			slices.SortStableFunc(byFamily, func(a, b Rule) int { return cmp.Compare(familyOf(a), familyOf(b)) })
			if others, more := p.runs(byFamily); more > inRuns {
				some, runs = byFamily, others
			}
		}
		for _, r := range runs {
			fn(some[:r.n], r.by)
			some = some[r.n:]
		}
		rules = rules[n:]
	}
}

// run is n rules that differ by their match number by.
type run struct{ n, by int }

// runs are those of rules, single ones too; packed is how many rules are in one.
func (p *packer) runs(rules []Rule) (list []run, packed int) {
	for len(rules) > 0 {
		longest := run{n: 1}
		for by := range rules[0].Match {
			if !p.leads(&rules[0], by) {
				continue
			}
			n := 1
			for n < len(rules) && p.leads(&rules[n], by) && sameBut(&rules[0], &rules[n], by) {
				n++
			}
			if n >= leastOf(rules[0].Match[by]) && n > longest.n {
				longest = run{n, by}
			}
		}
		if longest.n > 1 {
			packed += longest.n
		}
		list = append(list, longest)
		rules = rules[longest.n:]
	}
	return list, packed
}

// leastOf is from how many rules on that differ by such a match they are a run.
func leastOf(t Term) int {
	if isGated(t) {
		return leastGated
	}
	return leastRun
}

// leads says whether a map or a gate can lead to the rule by its match number by.
func (p *packer) leads(r *Rule, by int) bool {
	if by >= len(r.Match) || r.Limit != (Limit{}) || r.Log != "" || r.Connections != 0 || r.MSS != 0 {
		return false
	}
	switch r.Verdict.Kind {
	case Accept, Drop, Return, Goto, Reject, Reset, Untrack:
	default:
		return false
	}
	switch t := r.Match[by]; {
	case t.Not:
		return false
	case isGated(t):
		return r.Verdict.Kind != Return
	case t.Field == SrcPort || t.Field == DstPort:
		return t.Set == "" || p.sets[t.Set] != nil
	default:
		return t.Prefix.IsValid() && runType(t.Field) != 0
	}
}

// runType is the type of the maps by a field; 0: there are none.
func runType(f Field) SetType {
	switch f {
	case SrcIP4, DstIP4:
		return AddrVerdict4
	case SrcIP6, DstIP6:
		return AddrVerdict6
	case SrcPort, DstPort:
		return PortVerdict
	}
	return 0
}

// sameBut says whether two rules match the same but for what match number by compares with.
func sameBut(a, b *Rule, by int) bool {
	return len(a.Match) == len(b.Match) && a.Match[by].Field == b.Match[by].Field && isGated(a.Match[by]) == isGated(b.Match[by]) &&
		slices.Equal(a.Match[:by], b.Match[:by]) && slices.Equal(a.Match[by+1:], b.Match[by+1:])
}

// familyOf is the NFProto that a rule is for, 0 for both.
func familyOf(r Rule) uint32 {
	for _, t := range r.Match {
		if t.Field == NFProto && !t.Not {
			return t.Number
		}
	}
	return 0
}

// lookup adds a run of rules that differ by their match number by, as a look-up in a map.
func (p *packer) lookup(rules []Rule, by int) {
	key := rules[0].Match[by].Field
	ask := Rule{Match: slices.Delete(slices.Clone(rules[0].Match), by, by+1), Verdict: Verdict{Kind: Lookup, Key: key}}
	text := ask.String()
	m := p.name(runPrefix, text)
	ask.Verdict.Chain, ask.Comment = m, "the next rules, which differ by "+key.String()
	next := Rule{Match: ask.Match, Verdict: Verdict{Kind: Lookup, Key: key, Chain: NextMap(m)}}
	p.out.Rules = append(p.out.Rules, ask, next)

	set := newSet(m, runType(key), "rules that differ by "+key.String())
	chains, spans := make([]Chain, len(rules)), make([]span, 0, len(rules))
	for i, r := range rules { // named by all that may differ, so that it stays in whichever run it is
		name := p.name(runRulePrefix, strings.Join([]string{text, r.Match[by].value(), r.Verdict.String(), r.Comment}, "\x00"))
		chains[i] = Chain{Name: name, Rules: rules[i : i+1 : i+1]}
		p.out.Chains[name] = &chains[i]
		spans = append(spans, p.spans(r.Match[by], i)...)
	}
	for _, s := range firsts(spans) {
		set.add(s.element(set.Type, goTo(chains[s.rule].Name)))
	}
	p.out.Sets[m], p.out.Sets[NextMap(m)] = set, newSet(NextMap(m), set.Type, "while elements of "+m+" change")
}

// span is addresses, or ports as addresses, that a rule is for.
type span struct {
	first, last netip.Addr
	rule        int
}

// spans are those of a match of rule number i.
func (p *packer) spans(t Term, i int) (list []span) {
	ports := func(first, last uint16) span { return span{portAddr(first), portAddr(last), i} }
	switch {
	case t.Prefix.IsValid():
		first := t.Prefix.Masked().Addr()
		return []span{{first, datastore.LastAddr(t.Prefix), i}}
	case t.Set == "":
		return []span{ports(uint16(t.Number), uint16(t.Number))}
	}
	for _, e := range p.sets[t.Set] {
		list = append(list, ports(e.First, e.Last))
	}
	return list
}

func portAddr(p uint16) netip.Addr { return netip.AddrFrom4([4]byte{2: byte(p >> 8), 3: byte(p)}) }

func addrPort(a netip.Addr) uint16 {
	b := a.As4()
	return uint16(b[2])<<8 | uint16(b[3])
}

// element is the span in a map.
func (s span) element(t SetType, v Verdict) Element {
	if t == PortVerdict {
		return Element{First: addrPort(s.first), Last: addrPort(s.last), Verdict: v}
	}
	e := addrElement(s.first)
	e.Until, e.Verdict = s.last, v
	return e
}

// firsts are the spans cut into such as do not overlap, each of the first rule that has it, in
// their order.
func firsts(spans []span) (list []span) {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(a.first.Compare(b.first), cmp.Compare(a.rule, b.rule)) })
	var cuts []netip.Addr // where another rule may be the first
	for _, s := range spans {
		if cuts = append(cuts, s.first); s.last.Next().IsValid() {
			cuts = append(cuts, s.last.Next())
		}
	}
	slices.SortFunc(cuts, netip.Addr.Compare)
	cuts = slices.Compact(cuts)
	var open spanHeap
	for i, at := range cuts {
		for len(spans) > 0 && spans[0].first == at {
			heap.Push(&open, spans[0])
			spans = spans[1:]
		}
		for len(open) > 0 && open[0].last.Less(at) {
			heap.Pop(&open)
		}
		if len(open) == 0 {
			continue
		}
		s := span{at, open[0].last, open[0].rule}
		if i+1 < len(cuts) {
			s.last = cuts[i+1].Prev()
		}
		if n := len(list); n > 0 && list[n-1].rule == s.rule && list[n-1].last.Next() == s.first {
			list[n-1].last = s.last
		} else {
			list = append(list, s)
		}
	}
	return list
}

// spanHeap has the span of the first rule at its top.
type spanHeap []span

func (h spanHeap) Len() int           { return len(h) }
func (h spanHeap) Less(i, j int) bool { return h[i].rule < h[j].rule }
func (h spanHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *spanHeap) Push(s any)        { *h = append(*h, s.(span)) }
func (h *spanHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// inRun says whether a chain holds rules of a run.
func inRun(chain string) bool {
	return strings.HasPrefix(chain, runRulePrefix+"_") || strings.HasPrefix(chain, someRulesPrefix+"_")
}

// holds says whether an element of intervals holds the key of a packet.
func (e Element) holds(key Element) bool {
	if e.Until.IsValid() {
		a := key.Prefix.Addr()
		return e.Prefix.Addr().Compare(a) <= 0 && a.Compare(e.Until) <= 0
	}
	return e.First <= key.First && key.First <= e.Last
}
