package acl

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Rules of a run that differ by a tag or a selector are not found by a map: the kernel goes
// through all elements of a map of verdicts at each change of the table, and here these would be
// the members. They stay rules that are asked in turn, in blocks of a few, each behind a gate: the
// set of all who are in one of the block's sets. Many blocks are in blocks of their own. Who is in
// none of a thousand tags is found so by some ten look-ups, and the tag that somebody is in by
// twice as many.
//
// A gate only spares packets the rules behind it: these are the same, with their counters, and
// what is in no set of theirs goes on behind the block. So a gate that has more members than it
// need have changes nothing, and one that lacks a member is never right; it gets each in the
// transaction in which the tag does.

// leastGated is from how many rules on that differ by a tag there are gates: fewer cost a packet
// no more than two microseconds, and each member of a tag is a member of its gates as well.
const leastGated = 16

// A block ends with a rule of whose tag the hash says so, on average the eighth after the first
// leastRun: so a rule more, or less, changes the block that it is in, and no other.
const (
	blockShare = 8
	mostBlock  = 24
	marks      = 1 << 12 // of three hex digits
)

// mostGates is of how many gates a tag is. One that more would have is of none: it would have the
// memory of as many tags.
const mostGates = 8

// The names of gates, and of the chains behind them.
const (
	gatePrefix      = "any"
	someRulesPrefix = "some"
)

// IsGate says whether a set is a gate.
func IsGate(set string) bool {
	return strings.HasPrefix(set, gatePrefix+"4_") || strings.HasPrefix(set, gatePrefix+"6_")
}

// isGated says whether a match is by the addresses of a tag or selector.
func isGated(t Term) bool {
	kind, _, _ := strings.Cut(t.Set, "_")
	return !t.Not && (kind == "tag4" || kind == "tag6" || kind == "sel4" || kind == "sel6")
}

// block is the rules of a run from one to another, of which inner is what they are asked as; of
// a single rule it has none.
type block struct {
	from, to int
	inner    []block
}

// blocks are those of a run of rules that differ by their match number by.
func blocks(rules []Rule, by int) []block {
	list := make([]block, len(rules))
	for i := range rules {
		list[i] = block{from: i, to: i + 1}
	}
	for share := marks / blockShare; share > 0 && len(list) >= leastGated; share /= blockShare {
		var joined []block
		for len(list) > 0 {
			n := 1
			for n < len(list) && n < mostBlock && (n < leastRun || mark(rules[list[n-1].to-1].Match[by]) >= share) {
				n++
			}
			if n < leastRun { // the last ones
				joined = append(joined, list...)
				break
			}
			joined = append(joined, block{list[0].from, list[n-1].to, list[:n:n]})
			list = list[n:]
		}
		list = joined
	}
	return list
}

// mark is a number below marks that the name of a match's set says.
func mark(t Term) int {
	n, err := strconv.ParseUint(t.Set[max(0, len(t.Set)-3):], 16, 16)
	if err != nil { // no such name
		return 0
	}
	return int(n)
}

// gateOf is the name of the gate of rules, and the sets that it is of, each once.
func gateOf(rules []Rule, by int) (name string, sets []string) {
	for _, r := range rules {
		sets = append(sets, r.Match[by].Set)
	}
	slices.Sort(sets)
	sets = slices.Compact(sets)
	kind := gatePrefix + "4"
	if rules[0].Match[by].Field.family() == nfIPv6 {
		kind = gatePrefix + "6"
	}
	return hashName(kind, sets...), sets
}

// gated are the rules of a run, in blocks, as they are asked. A block without a gate is asked
// in its place.
func (p *packer) gated(rules []Rule, by int, list []block) (out []Rule) {
	for _, b := range list {
		if b.inner == nil {
			out = append(out, rules[b.from])
			continue
		}
		inner := p.gated(rules, by, b.inner)
		gate, _ := gateOf(rules[b.from:b.to], by)
		if _, is := p.sets[gate]; !is {
			out = append(out, inner...)
			continue
		}
		if p.gates {
			inner = append(inner, Rule{Verdict: drop(), Comment: "it is of one of them"})
		}
		var text strings.Builder
		for i := range inner {
			text.WriteString(inner[i].String() + "\x00")
		}
		name := p.name(someRulesPrefix, text.String())
		p.out.Chains[name] = &Chain{Name: name, Rules: inner}
		ask := Rule{Match: slices.Clone(rules[0].Match), Verdict: Verdict{Kind: Jump, Chain: name}, Comment: "the next rules, for those who are in one of their sets"}
		ask.Match[by].Set = gate
		out = append(out, ask)
	}
	return out
}

// Gated is r with gates, but without maps, for a back end that has none, and that cannot go back
// to behind a block: what gets to its end is dropped. So such a back end has to keep each gate
// within its sets: who comes is in the sets first, and who goes is out of the gate first. of says
// of each chain behind a gate which one its rules are of.
func (r *Ruleset) Gated() (gated *Ruleset, of map[string]string) {
	of = map[string]string{}
	var packers []*packer
	gated = r.packed(func(p *packer) {
		p.gates = true
		packers = append(packers, p)
	})
	for _, p := range packers {
		for name := range p.out.Chains {
			of[name] = p.chain
		}
	}
	return gated, of
}

// addGates has the program want the gates of its runs.
func (p *program) addGates() {
	if len(p.rules) < leastGated {
		return
	}
	refs, ports := map[string]setRef{}, map[string][]Element{}
	for _, r := range p.refs {
		refs[r.name] = r
		if elements, _ := PackSets(r.name, r.typ); elements {
			ports[r.name] = r.elements
		}
	}
	newPacker("", ports).each(p.rules, func(run []Rule, by int) {
		if len(run) == 1 || !isGated(run[0].Match[by]) {
			return
		}
		var add func(list []block)
		add = func(list []block) {
			for _, b := range list {
				if b.inner == nil {
					continue
				}
				add(b.inner)
				name, sets := gateOf(run[b.from:b.to], by)
				g := setRef{name: name, typ: refs[sets[0]].typ, source: fromGate}
				var words []string
				for _, s := range sets {
					g.of = append(g.of, populationKey{refs[s].source, refs[s].arg})
					words = append(words, refs[s].comment())
				}
				g.arg = clip("in one of " + strings.Join(words, ", "))
				if !slices.ContainsFunc(p.gates, func(o setRef) bool { return o.name == name }) {
					p.gates = append(p.gates, g)
				}
			}
		}
		add(blocks(run, by))
	})
}

// gate is who is in one at least of several populations, while a rule needs it.
type gate struct {
	set   string
	of    []*population
	count map[netip.Addr]int32 // in how many of them
}

// wantedGate is a gate that programs want, and how many.
type wantedGate struct {
	of    []populationKey
	times int
}

// wantGates notes that n more programs like p want its gates. Where a tag comes to be in more of
// them than it may be, or no more, chains are to be compiled again (regate).
func (x *Index) wantGates(p *program, n int) {
	for _, g := range p.gates {
		w := x.wanted[g.name]
		if w == nil {
			w = &wantedGate{of: g.of}
			x.wanted[g.name] = w
		}
		was := w.times > 0
		if w.times += n; w.times == 0 {
			delete(x.wanted, g.name)
		}
		if was == (w.times > 0) {
			continue
		}
		for _, k := range g.of {
			key := gatedKey{k, g.typ.index()}
			before := x.gates[key]
			now := before + n
			if x.gates[key] = now; now == 0 {
				delete(x.gates, key)
			}
			if before > mostGates != (now > mostGates) {
				x.regated[key] = struct{}{}
			}
		}
	}
}

// gatedKey is the members of a population of a family.
type gatedKey struct {
	populationKey
	index int
}

// fits says whether the sets of a gate are of few enough.
func (x *Index) fits(g setRef) bool {
	return !slices.ContainsFunc(g.of, func(k populationKey) bool { return x.gates[gatedKey{k, g.typ.index()}] > mostGates })
}

// regate has the chains have those of the gates they want that fit, where that may have changed.
func (x *Index) regate() {
	if len(x.regated) == 0 {
		return
	}
	touched := func(p program) bool {
		return slices.ContainsFunc(p.gates, func(g setRef) bool {
			return slices.ContainsFunc(g.of, func(k populationKey) bool {
				_, is := x.regated[gatedKey{k, g.typ.index()}]
				return is
			})
		})
	}
	for _, name := range sortedKeys(x.chains) {
		c := x.chains[name]
		for _, p := range []*program{&c.program, c.next} {
			if p == nil || !touched(*p) {
				continue
			}
			if p == &c.program {
				x.pending.chain(name, c)
			}
			had := p.held
			x.holdGates(p)
			for _, g := range had {
				x.releaseSet(g)
			}
		}
	}
	clear(x.regated)
}

// holdGates acquires those of the gates that a program wants that fit.
func (x *Index) holdGates(p *program) {
	p.held = nil
	for _, g := range p.gates {
		if x.fits(g) {
			x.acquireSet(g)
			p.held = append(p.held, g.name)
		}
	}
}

// openGate fills a new gate from its populations, which are there: what wants it wants them.
func (x *Index) openGate(r setRef) *gate {
	g := &gate{set: r.name, count: map[netip.Addr]int32{}}
	i := r.typ.index()
	for _, k := range r.of {
		p := x.population(k)
		for e := range p.count {
			if index4or6(e) == i {
				g.count[e.Prefix.Addr()]++
			}
		}
		p.gates[i] = append(p.gates[i], g)
		g.of = append(g.of, p)
	}
	return g
}

func (x *Index) closeGate(s *liveSet) {
	i := s.ref.typ.index()
	for n, p := range s.gate.of {
		p.gates[i] = slices.DeleteFunc(p.gates[i], func(o *gate) bool { return o == s.gate })
		x.forget(s.ref.of[n])
	}
}

// countGates tells gates that an address came to one of their populations, or went.
func (x *Index) countGates(list []*gate, a netip.Addr, came bool) {
	for _, g := range list {
		n := g.count[a]
		switch {
		case came:
			if g.count[a] = n + 1; n > 0 {
				continue
			}
		case n > 1:
			g.count[a] = n - 1
			continue
		default:
			delete(g.count, a)
		}
		x.pending.element(g.set, addrElement(a), came)
	}
}

// members are those of a gate.
func (g *gate) members() []Element {
	out := make([]Element, 0, len(g.count))
	for a := range maps.Keys(g.count) {
		out = append(out, addrElement(a))
	}
	slices.SortFunc(out, Element.Compare)
	return out
}
