package iptables

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"netctl/acl"
)

// chainPrefix starts the name of every chain and set of ours, and of nobody else's.
const chainPrefix = "nctl-"

// The longest name of a chain (XT_EXTENSION_MAXNAMELEN) and of a set (IPSET_MAXNAMELEN),
// without the ending zero.
const (
	maxChain = 28
	maxSet   = 31
)

// kernelName is the name of an object of ours in the kernel. What is too long ends in a hash.
func kernelName(name string, most int) string {
	name = chainPrefix + name
	if len(name) <= most {
		return name
	}
	return name[:most-9] + "~" + short(name, 4)
}

func chainName(name string) string { return kernelName(name, maxChain) }
func setName(name string) string   { return kernelName(name, maxSet) }

// short is the first n bytes of the SHA-256 of s, in hex.
func short(s string, n int) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:n])
}

// place is one table of one family.
type place struct {
	ipv6  bool
	table string
}

// places are all of them, in the order in which they are written: what nothing refers to but
// what is in the same table, so that any order would do.
func places() (list []place) {
	for _, table := range []string{"raw", "mangle", "filter", "nat"} {
		list = append(list, place{false, table}, place{true, table})
	}
	return list
}

// tableOf is the table that a base chain is in.
func tableOf(h acl.Hook) string {
	const raw, mangle = -200, -150 // linux/netfilter_ipv4.h: their priorities are -300 and -150
	switch {
	case h.Type() == "nat" || h.Name == "postrouting" && h.Priority > 0:
		return "nat"
	case h.Priority <= raw:
		return "raw"
	case h.Name == "prerouting", h.Name == "postrouting", h.Name == "forward" && h.Priority <= mangle:
		return "mangle"
	}
	return "filter"
}

// line is a rule as iptables-save(8) prints it, without its chain.
type line struct {
	text string
	// counts is what the line counts for: a rule of the Ruleset as text; "": for none. chain
	// is where that one is.
	counts, chain string
}

// rendered is what one table should hold: our chains, and those of the kernel that lead to them.
type rendered struct {
	chains map[string][]line
	hooks  []string // built-in chains, whose first rule is hookRule
}

// dispatcher is our chain that a built-in one leads to.
func dispatcher(builtin string) string { return chainPrefix + builtin }

// hookRule is the first rule of a built-in chain.
func hookRule(builtin string) string {
	return "-m comment --comment " + quote("netctl: what workloads send and receive") + " -j " + dispatcher(builtin)
}

// render writes a Ruleset for every table that something is to be in, with gates (acl.Gated)
// where packets do not get too deep by them.
func (t *Table) render(r *acl.Ruleset) map[place]*rendered {
	gated, of := r.Gated()
	out := render(gated, t.prefix, of)
	deep := func(p place) bool { return out[p] != nil && len(out[p].tooDeep()) > 0 }
	if len(of) > 0 && t.mode == NFT && slices.ContainsFunc(places(), deep) {
		return render(r, t.prefix, nil)
	}
	return out
}

// render writes a Ruleset as it is. prefix starts the names of the links of endpoints; of says of
// some chains which one their rules are of.
func render(r *acl.Ruleset, prefix string, of map[string]string) map[place]*rendered {
	out := map[place]*rendered{}
	for _, p := range places() {
		w := writer{rules: r, place: p, prefix: prefix, of: of, chains: map[string][]line{}, falls: map[string]bool{}}
		if hooks := w.all(); len(hooks) > 0 {
			out[p] = &rendered{chains: w.chains, hooks: hooks}
		}
	}
	return out
}

// writer writes one table.
//
// In a Ruleset a verdict ends its base chain only, and the next one of the hook is asked; in
// iptables it would end the table. So a packet comes into each base chain by a jump, and goes
// on by `goto` alone: RETURN then leaves the base chain from wherever it is, which is
// what accept means, and needs no mark. A jump of the Ruleset becomes its chain's rules in its
// place, or a copy of them that goes on with the rest of the caller (frame).
type writer struct {
	place
	rules  *acl.Ruleset
	prefix string
	of     map[string]string
	chains map[string][]line
	falls  map[string]bool
}

// frame is where a packet goes on that a chain has no verdict for; nil: its base chain ends.
type frame struct {
	name  string // of the chain in the kernel
	chain string // that the rules are of
	rules []acl.Rule
	next  *frame
}

func (w *writer) all() (hooks []string) {
	bases := map[string][]*acl.Chain{}
	for _, c := range w.rules.Chains {
		if c.Hook != nil && !strings.HasPrefix(c.Name, acl.ARPPrefix) && tableOf(*c.Hook) == w.table {
			name := strings.ToUpper(c.Hook.Name)
			bases[name] = append(bases[name], c)
		}
	}
	for _, builtin := range slices.Sorted(maps.Keys(bases)) {
		slices.SortFunc(bases[builtin], func(a, b *acl.Chain) int {
			return cmp.Or(cmp.Compare(a.Hook.Priority, b.Hook.Priority), cmp.Compare(a.Name, b.Name))
		})
		var list []line
		for _, c := range bases[builtin] {
			w.chain(chainName(c.Name), &frame{chain: c.Name, rules: c.Rules})
			if len(w.chains[chainName(c.Name)]) > 0 {
				list = append(list, line{text: "-j " + chainName(c.Name)})
			}
		}
		if w.table == "filter" && builtin == "FORWARD" { // what others have behind it would drop
			for _, flag := range []string{"-i ", "-o "} {
				list = append(list, line{text: flag + w.prefix + "+ -m comment --comment " + quote("judged above") + " -j ACCEPT"})
			}
		}
		if len(list) > 0 {
			w.chains[dispatcher(builtin)] = list
			hooks = append(hooks, builtin)
		}
	}
	return hooks
}

// chain writes a chain of the kernel: the rules of f, and behind them where f goes on.
func (w *writer) chain(name string, f *frame) {
	if _, is := w.chains[name]; is {
		return
	}
	w.chains[name] = nil // a chain leads to none that leads back to it
	e := emitter{writer: w, name: name}
	if !e.list(list{name: strings.TrimPrefix(name, chainPrefix), chain: f.chain, rules: f.rules, next: f.next}) && f.next != nil {
		e.add("", "", "", w.to(f.next))
	}
	w.chains[name] = e.lines
}

// to is the target that goes on with f.
func (w *writer) to(f *frame) string {
	if f == nil {
		return "-j RETURN"
	}
	w.chain(f.name, f)
	return "-g " + f.name
}

// into is the target that goes through a chain, and then on with next.
func (w *writer) into(chain string, next *frame) string {
	c := w.rules.Chains[chain]
	if c == nil {
		return "-j DROP" // never so in a Ruleset that is whole
	}
	if !w.fallsThrough(chain) {
		next = nil
	}
	name := chain
	if next != nil {
		name += "." + short(next.name, 2)
	}
	if of := w.of[chain]; of != "" {
		chain = of
	}
	return w.to(&frame{name: chainName(name), chain: chain, rules: c.Rules, next: next})
}

// fallsThrough says that a packet may come out of a chain without a verdict.
func (w *writer) fallsThrough(chain string) bool {
	falls, known := w.falls[chain]
	if known {
		return falls
	}
	w.falls[chain] = true
	c := w.rules.Chains[chain]
	falls = c == nil || len(c.Rules) == 0
	if !falls {
		last := &c.Rules[len(c.Rules)-1]
		falls = conditional(last) || !ends(last.Verdict.Kind)
		for i := range c.Rules {
			switch v := c.Rules[i].Verdict; v.Kind {
			case acl.Return, acl.Lookup:
				falls = true
			case acl.Goto:
				falls = falls || w.fallsThrough(v.Chain)
			}
		}
	}
	w.falls[chain] = falls
	return falls
}

// conditional says that a rule does not act on each packet.
func conditional(r *acl.Rule) bool {
	return len(r.Match) > 0 || r.Limit != (acl.Limit{}) || r.Connections != 0
}

// ends says that a packet does not get behind a rule with the verdict.
func ends(k acl.VerdictKind) bool {
	return k != acl.Continue && k != acl.Jump && k != acl.Lookup
}

// emitter writes the lines of one chain of the kernel.
type emitter struct {
	*writer
	name  string
	lines []line
}

func (e *emitter) add(matches, counts, chain string, target string) {
	e.lines = append(e.lines, line{strings.TrimSpace(matches + " " + target), counts, chain})
}

// list is rules of a chain of the Ruleset. What they have no verdict for, and what returns, goes
// on with next.
type list struct {
	name  string // of its own, for the frames of its rest
	chain string
	rules []acl.Rule
	next  *frame
}

// rest is where what comes out of the rule at i goes on: the rules behind it, as far as they
// concern packets of the link that it names.
func (l list) rest(i int) *frame {
	name, rules := fmt.Sprintf("%s.%d", l.name, i+1), l.rules[i+1:]
	for _, t := range l.rules[i].Match {
		if (t.Field == acl.InLink || t.Field == acl.OutLink) && !t.Not && !strings.HasSuffix(t.Text, "*") {
			name, rules = name+"."+t.Text, ofLink(rules, t)
		}
	}
	if len(rules) == 0 {
		return l.next
	}
	return &frame{name: chainName(name), chain: l.chain, rules: rules, next: l.next}
}

// ofLink are the rules that packets come to of which a link is known.
func ofLink(rules []acl.Rule, known acl.Term) (out []acl.Rule) {
	for _, r := range rules {
		other := slices.ContainsFunc(r.Match, func(t acl.Term) bool {
			return t.Field == known.Field && !t.Not && !strings.HasSuffix(t.Text, "*") && t.Text != known.Text
		})
		if !other {
			r.Match = slices.DeleteFunc(slices.Clone(r.Match), func(t acl.Term) bool { return t == known })
			out = append(out, r)
		}
	}
	return out
}

// list writes rules. ended says that no packet gets behind them.
func (e *emitter) list(l list) (ended bool) {
	for i := range l.rules {
		r, rest := &l.rules[i], (*frame)(nil)
		after := func() *frame {
			if rest == nil {
				rest = l.rest(i)
			}
			return rest
		}
		v := r.Verdict
		switch inner := (list{name: fmt.Sprintf("%s.%d", l.name, i+1), chain: v.Chain, next: l.next}); {
		case (v.Kind == acl.Jump || v.Kind == acl.Goto) && !conditional(r):
			c := e.writer.rules.Chains[v.Chain]
			if c == nil {
				e.add("", "", "", "-j DROP")
				return true
			}
			if inner.rules = c.Rules; v.Kind == acl.Jump {
				inner.name, inner.next = inner.name+"+", after()
			}
			if e.list(inner) {
				return true
			}
			if v.Kind == acl.Goto {
				e.add("", "", "", e.to(l.next))
				return true
			}
		case v.Kind == acl.Lookup:
			if e.lookup(v, l.next, after) {
				return true
			}
		case asksMAC(r):
			if e.macs(l.chain, r, after) {
				return true
			}
		case e.rule(l.chain, r, l.next, after):
			return true
		}
	}
	return false
}

// rule writes one rule that is no look-up.
func (e *emitter) rule(chain string, r *acl.Rule, next *frame, after func() *frame) (ended bool) {
	alternatives, unless, possible := e.matches(r)
	if !possible {
		return false
	}
	for _, m := range unless { // of these the rule is not asked
		e.add(m, "", "", e.to(after()))
	}
	key := ""
	if r.Counter {
		key = r.String()
	}
	if r.CountsFirst() {
		for _, m := range alternatives {
			e.add(m, key, chain, "")
		}
		key = ""
	}
	targets := e.targets(r, next, after)
	if len(targets) > 1 && (r.Limit.Rate > 0 || r.Connections != 0) { // asked once, not for each
		name := chainName(strings.TrimPrefix(e.name, chainPrefix) + "." + short(r.String(), 2))
		if e.chains[name] == nil {
			var lines []line
			for i, t := range targets {
				l := line{text: t}
				if i == len(targets)-1 {
					l.counts, l.chain = key, chain
				}
				lines = append(lines, l)
			}
			if !ends(r.Verdict.Kind) {
				lines = append(lines, line{text: e.to(after())})
			}
			e.chains[name] = lines
		}
		targets, key = []string{"-g " + name}, ""
	}
	for _, m := range alternatives {
		m += e.limits(chain, r) + commentOf(r)
		for i, t := range targets {
			if i < len(targets)-1 {
				e.add(m, "", chain, t)
				continue
			}
			e.add(m, key, chain, t)
		}
	}
	return len(alternatives) == 1 && alternatives[0] == "" && !conditional(r) && ends(r.Verdict.Kind)
}

func commentOf(r *acl.Rule) string {
	if r.Comment == "" {
		return ""
	}
	return " -m comment --comment " + quote(r.Comment)
}

// bucket is up to how many links are asked for one after the other.
const bucket = 8

// lookup writes a map: of few links a rule each, of more a tree by their names.
func (e *emitter) lookup(v acl.Verdict, next *frame, after func() *frame) (ended bool) {
	set := e.writer.rules.Sets[v.Chain]
	if set == nil || len(set.Elements) == 0 {
		return false
	}
	elements := set.Sorted()
	flag := "-i "
	if v.Key == acl.OutLink {
		flag = "-o "
	}
	leaf := func(e *emitter, x acl.Element) { e.add(flag+x.Link, "", "", e.into(x.Verdict.Chain, next)) }
	return e.links(v.Chain, flag, elements, leaf, after)
}

// leaf writes what is done with packets of one link.
type leaf func(e *emitter, x acl.Element)

// links writes a leaf for each of few links; of more it goes to a tree of them, where all ends.
func (e *emitter) links(name, flag string, elements []acl.Element, leaf leaf, after func() *frame) (ended bool) {
	if len(elements) <= bucket {
		for _, x := range elements {
			leaf(e, x)
		}
		return false
	}
	e.add("", "", "", "-g "+e.tree(name, flag, elements, leaf, after()))
	return true
}

// tree writes the chain that finds one of the elements by the first letter in which they differ,
// and goes on with miss where it does not. It returns its name.
func (e *emitter) tree(m, flag string, elements []acl.Element, leaf leaf, miss *frame) string {
	common := elements[0].Link
	for _, x := range elements {
		for !strings.HasPrefix(x.Link, common) {
			common = common[:len(common)-1]
		}
	}
	t := emitter{writer: e.writer, name: chainName(m + "." + common + "." + short(missName(miss), 2))}
	if len(elements) <= bucket {
		t.links(m, flag, elements, leaf, nil)
		elements = nil
	}
	for len(elements) > 0 {
		at := len(common)
		if len(elements[0].Link) == at { // its name is how those of the others begin
			leaf(&t, elements[0])
			elements = elements[1:]
			continue
		}
		n := 1
		for n < len(elements) && elements[n].Link[at] == elements[0].Link[at] {
			n++
		}
		if n == 1 {
			leaf(&t, elements[0])
		} else {
			t.add(flag+elements[0].Link[:at+1]+"+", "", "", "-g "+t.tree(m, flag, elements[:n], leaf, miss))
		}
		elements = elements[n:]
	}
	if miss != nil {
		t.add("", "", "", e.to(miss))
	}
	e.chains[t.name] = t.lines
	return t.name
}

func missName(f *frame) string {
	if f == nil {
		return ""
	}
	return f.name
}
