package acl

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// tagRun is rules that differ by their tags, or selectors: a part of always the same, with some
// others between them.
func (w *world) tagRun() (out []datastore.Rule) {
	first, form := w.rng.IntN(25), []string{"%s from %s", "%s tcp from %s to ports 80,443", "%s udp from cidr 10.0.0.0/29 to %s"}[w.rng.IntN(3)]
	for i := range 14 + w.rng.IntN(40) {
		who := fmt.Sprintf("tag t%d", first+i)
		switch w.rng.IntN(20) {
		case 0:
			continue
		case 1:
			who = []string{"tag t0", "selector \"role == 'web'\"", "selector \"has(zone)\"", "not tag t1", "cidr 10.0.0.2/31", "set s0"}[w.rng.IntN(6)]
		}
		r, err := datastore.ParseRule(fmt.Sprintf(form, []string{"allow", "allow", "deny"}[w.rng.IntN(3)], who))
		if err != nil {
			panic(err)
		}
		out = append(out, r)
	}
	return out
}

func (w *world) someTags() []string {
	if w.runs {
		return w.some(6, func() string { return fmt.Sprintf("t%d", w.rng.IntN(60)) })
	}
	return w.some(3, func() string { return fmt.Sprintf("t%d", w.rng.IntN(4)) })
}

// checkGates wants a delta to name each chain that is asked otherwise with it, as its gates came
// or went, and returns those of which that is all.
func checkGates(t *testing.T, d Delta, before *Ruleset) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	if !slices.ContainsFunc(d.Sets, func(c SetChange) bool { return IsGate(c.Name) && (c.New || c.Gone) }) {
		return out
	}
	after := before.With(d)
	was, is := before.Packed(), after.Packed()
	for name, c := range after.Chains {
		if b := before.Chains[name]; b != nil && sameRules(b.Rules, c.Rules) && !sameRules(was.Chains[name].Rules, is.Chains[name].Rules) {
			if out[name] = true; !slices.ContainsFunc(d.Chains, func(c ChainChange) bool { return c.Name == name }) {
				t.Fatalf("chain %s is asked otherwise, and nobody says so", name)
			}
		}
	}
	return out
}

func gatesThatCome(d Delta) (n int) {
	for _, c := range d.Sets {
		if IsGate(c.Name) && c.New {
			n++
		}
	}
	return n
}

// tagsOf are n rules for a tag each.
func tagsOf(format string, n int) (rules []string) {
	for i := range n {
		rules = append(rules, fmt.Sprintf(format, i))
	}
	return rules
}

// TestGatesMeanTheSame: whatever the rules, a packet fares behind gates as it does by the rules in
// turn, in a back end that goes on behind a block and in one that does not, and the rule that
// decides is the same.
func TestGatesMeanTheSame(t *testing.T) {
	gates, decided := 0, map[bool]int{}
	for seed := range uint64(40) {
		w, x := newWorld(t, 7000+seed), NewIndex("node0", testOptions())
		w.runs = true
		for range 60 {
			x.Apply(w.step())
		}
		for x.Work() {
		}
		x.Flush()
		plain := x.Ruleset()
		gated, of := plain.Gated()
		packed := plain.Packed()
		for _, r := range []*Ruleset{gated, packed} {
			needsNothing(t, r)
		}
		wide := packed.Clone() // gates may have too many members, where the rest of the rules is behind them
		for name, set := range wide.Sets {
			for i := range byte(16) {
				if a := netip.AddrFrom4([4]byte{10, 0, 0, i}); IsGate(name) && set.Type == Addr4 {
					set.add(addrElement(a))
				}
			}
		}
		for chain, parent := range of {
			if plain.Chains[parent] == nil || plain.Chains[chain] != nil {
				t.Fatalf("%s is of %s", chain, parent)
			}
		}
		gates += len(of)
		m, links := newModel(w.current), append(sortedKeys(x.links), "up0")
		judges := []*Judge{plain.Judge(), packed.Judge(), gated.Judge(), wide.Judge()}
		for range 200 {
			p := w.packet(m, links)
			want := judges[0].Eval(p)
			decided[want.Allowed]++
			for _, j := range judges[1:] {
				if got := j.Eval(p); got.Allowed != want.Allowed || got.Reason != want.Reason || !slices.Equal(got.Logged, want.Logged) {
					t.Fatalf("seed %d: %+v:\n plain %s %v\n gated %s %v\n%s", seed, p, want, want.Logged, got, got.Logged, j.rules)
				}
			}
		}
	}
	if gates < 100 || decided[true] < 500 || decided[false] < 500 {
		t.Errorf("%d gates, packets allowed and denied: %v", gates, decided)
	}
}

// asks are how many rules a packet from a source meets in the chain of web and behind its gates.
func asks(r *Ruleset, src string) (n int) {
	p := Packet{InLink: "up0", OutLink: "nca", OutGroup: 77, State: New, Protocol: protoUDP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.0.0.1")}
	w := walk{Judge: r.Judge(), packet: p}
	w.met = func(chain string, _ int, _ bool) {
		if chain == profileChain(inbound, "web") || inRun(chain) {
			n++
		}
	}
	w.run()
	return n
}

// TestATagOfMany: of a thousand rules for a tag each a packet meets few; a rule more changes few
// gates, and a member of a tag those that it is behind.
func TestATagOfMany(t *testing.T) {
	const rules = 990
	r := newRig(t)
	web := func(texts []string) {
		r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Tags: []string{"web"}, Inbound: r.rules(texts...)}})
	}
	texts := append(tagsOf("allow udp from tag t%d", rules), "allow udp")
	web(texts)
	r.endpoint("nca", "10.0.0.1", "web", "web")
	for i := range rules {
		name := fmt.Sprint("p", i)
		r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: name}, Spec: datastore.ProfileSpec{Tags: []string{fmt.Sprint("t", i)}}})
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: fmt.Sprintf("node1/cni/%d/eth0", i)}}
		e.Spec = datastore.EndpointSpec{Node: "node1", Link: "ncx", Profiles: []string{name}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}}
		r.x.Apply(datastore.Change{Kind: e.Kind(), Name: e.Metadata.Name, New: e})
	}
	r.x.Flush()
	packed := r.x.Ruleset().Packed()
	if n := asks(packed, "192.0.2.9"); n > 20 {
		t.Errorf("who is in no tag meets %d rules", n)
	}
	sum, most := 0, 0
	for i := range rules {
		n := asks(packed, fmt.Sprintf("10.1.%d.%d", i>>8, i%256))
		sum, most = sum+n, max(most, n)
	}
	if sum/rules > 24 || most > 70 {
		t.Errorf("who is in one meets %d rules on average and %d at most", sum/rules, most)
	}
	gates := 0
	for name := range packed.Sets {
		if IsGate(name) {
			gates++
		}
	}
	t.Logf("%d gates; met by who is in none %d, by members %d, at most %d", gates, asks(packed, "192.0.2.9"), sum/rules, most)

	if !slices.ContainsFunc(r.x.needs("nca"), IsGate) {
		t.Error("who has such rules does not need their gates")
	}

	changed := func(d Delta) (sets int, elements int) {
		for _, c := range d.Sets {
			if IsGate(c.Name) {
				sets++
				elements += len(c.Add) + len(c.Del)
			}
		}
		return sets, elements
	}
	for i, at := range []int{0, rules / 2, rules} {
		web(slices.Insert(slices.Clone(texts), at, fmt.Sprintf("allow udp from tag more%d", i)))
		if sets, elements := changed(r.x.Flush()); sets == 0 || sets > 12 || elements > 5*blockShare*blockShare {
			t.Errorf("a rule more at %d: %d gates with %d members changed", at, sets, elements)
		}
		web(texts)
		r.x.Flush()
	}
	r.endpoint("ncb", "10.0.0.2", "web", "p500", "p501")
	d := r.x.Flush()
	if sets, elements := changed(d); sets < 1 || sets > 4 || elements != sets || slices.ContainsFunc(d.Chains, func(c ChainChange) bool { return c.Name == profileChain(inbound, "web") }) {
		t.Errorf("a member: %d gates with %d members: %+v", sets, elements, d.Chains)
	}
	r.remove(datastore.KindEndpoint, "node0/cni/ncb/eth0")
	if sets, elements := changed(r.x.Flush()); sets < 1 || sets > 4 || elements != sets {
		t.Errorf("it goes: %d gates with %d members", sets, elements)
	}
}

// TestGatesAreFound: which rules are behind gates.
func TestGatesAreFound(t *testing.T) {
	for _, c := range []struct {
		what  string
		rules []string
		gates int // of IPv4
	}{
		{"too few", tagsOf("allow from tag t%d", leastGated-1), 0},
		{"enough", tagsOf("allow from tag t%d", leastGated), 1},
		{"verdicts may differ", append(tagsOf("allow from tag t%d", leastGated/2), tagsOf("deny from tag t%d", leastGated/2)...), 1},
		{"by destination", tagsOf("reject tcp to tag t%d ports 80,443", leastGated), 1},
		{"selectors", tagsOf("allow from selector \"role == 'r%d'\"", leastGated), 1},
		{"selectors and tags", append(tagsOf("allow from selector \"role == 'r%d'\"", leastGated/2), tagsOf("allow from tag t%d", leastGated/2)...), 1},
		{"all else may not differ", append(tagsOf("allow udp from tag t%d", leastGated/2), tagsOf("allow tcp from tag t%d", leastGated/2)...), 0},
		{"what is negated", tagsOf("allow from not tag t%d", 2*leastGated), 0},
		{"what passes", tagsOf("pass from tag t%d", 2*leastGated), 0},
		{"what is logged", tagsOf("log from tag t%d", 2*leastGated), 0},
		{"network sets", tagsOf("allow from set s%d", 2*leastGated), 0},
	} {
		r := newRig(t)
		r.put(&datastore.Policy{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.PolicySpec{Selector: "all()", Ingress: r.rules(c.rules...)}})
		r.endpoint("nca", "10.0.0.1", "web", "web")
		for r.x.Work() {
		}
		got := r.x.Ruleset()
		gates := slices.DeleteFunc(sortedKeys(got.Sets), func(name string) bool { return !IsGate(name) })
		if least := min(c.gates, 1); len(gates) < least || len(gates) > 3*c.gates {
			t.Errorf("%s: %d gates\n%s", c.what, len(gates), got)
		}
		for name, chain := range got.Packed().Chains { // where a trace finds what a rule comes of
			if got.Chains[name] != nil {
				continue
			}
			for _, rule := range chain.Rules {
				if rule.Counter && !slices.ContainsFunc(r.x.Placed(name), func(p Placed) bool { return p.Rule.Equal(rule) }) {
					t.Errorf("%s: nobody knows what %s comes of", c.what, rule.Comment)
				}
			}
		}
	}
}

// TestGatesAreFew: however many lists a tag is in, it is of no more than mostGates; where it would
// be of more it is of none, until it is not.
func TestGatesAreFew(t *testing.T) {
	r := newRig(t)
	applied := Static(testOptions())
	flush := func() (gates int) {
		t.Helper()
		d := r.x.Flush()
		checkDelta(t, d, applied)
		applied.Apply(d)
		sameRuleset(t, "applied", applied, r.x.Ruleset())
		for name := range applied.Sets {
			if IsGate(name) {
				gates++
			}
		}
		return gates
	}
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Tags: []string{"t0", "t3"}}})
	r.endpoint("nca", "10.0.0.1", "web", "web")
	lists := func(n int) string { return fmt.Sprint("q", n) }
	put := func(n int) {
		texts := append([]string{"allow from tag t0"}, tagsOf("allow from tag u"+fmt.Sprint(n)+"-%d", 16)...)
		r.put(&datastore.Policy{Metadata: datastore.Metadata{Name: lists(n)}, Spec: datastore.PolicySpec{Selector: "all()", Ingress: r.rules(texts...)}})
	}
	var last int
	for n := range mostGates {
		put(n)
		gates := flush()
		if gates <= last {
			t.Fatalf("%d lists have %d gates", n+1, gates)
		}
		last = gates
	}
	of := func(tag string) (n int) { // gates with the member of a tag
		for name, s := range applied.Sets {
			if _, in := s.Elements[addrElement(netip.MustParseAddr("10.0.0.1"))]; in && IsGate(name) {
				n++
			}
		}
		return n
	}
	if n := of("t0"); n != mostGates {
		t.Errorf("the tag is of %d gates, want %d", n, mostGates)
	}
	put(mostGates)
	flush()
	if n := of("t0"); n != 0 {
		t.Errorf("one list more: the tag is of %d gates, want none", n)
	}
	r.remove(datastore.KindPolicy, lists(3))
	flush()
	if n := of("t0"); n != mostGates {
		t.Errorf("one less: the tag is of %d gates, want %d", n, mostGates)
	}
	if d := r.x.Flush(); !d.Empty() {
		t.Errorf("there is more: %+v", d)
	}
}

// TestBlocksAreLocal: blocks are of all rules of a run, in their order, and a rule more changes few.
func TestBlocksAreLocal(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 5))
	gates := func(rules []Rule) map[string]bool {
		out, next := map[string]bool{}, 0
		var each func(list []block, deep int)
		each = func(list []block, deep int) {
			for _, b := range list {
				if b.inner != nil {
					name, _ := gateOf(rules[b.from:b.to], 1)
					out[name] = true
					if len(b.inner) < leastRun || len(b.inner) > mostBlock || deep == 4 {
						t.Fatalf("a block of %d, %d deep", len(b.inner), deep)
					}
					each(b.inner, deep+1)
				} else if next++; b.from != next-1 || b.to != next {
					t.Fatalf("rule %d comes as number %d", b.from, next-1)
				}
			}
		}
		each(blocks(rules, 1), 0)
		if next != len(rules) {
			t.Fatalf("%d of %d rules", next, len(rules))
		}
		return out
	}
	rule := func() Rule {
		return Rule{Match: []Term{num(NFProto, nfIPv4), inSet(SrcIP4, hashName("tag4", fmt.Sprint(rng.Uint64())))}, Verdict: accept()}
	}
	for _, size := range []int{leastGated, 100, 1000, 5000} {
		var rules []Rule
		for range size {
			rules = append(rules, rule())
		}
		was, changed := gates(rules), 0
		for range 20 {
			is := gates(slices.Insert(slices.Clone(rules), rng.IntN(size+1), rule()))
			maps.DeleteFunc(is, func(name string, _ bool) bool { return was[name] })
			changed += len(is)
		}
		if changed/20 > 6 {
			t.Errorf("%d rules: one more changes %d of %d gates", size, changed/20, len(was))
		}
	}
	if _, sets := gateOf([]Rule{{Match: []Term{inSet(SrcIP4, "tag4_b")}}, {Match: []Term{inSet(SrcIP4, "tag4_a")}}, {Match: []Term{inSet(SrcIP4, "tag4_b")}}}, 0); strings.Join(sets, " ") != "tag4_a tag4_b" {
		t.Errorf("a gate of %v", sets)
	}
}
