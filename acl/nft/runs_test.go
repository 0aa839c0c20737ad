package nft

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// networksOf are n rules for a network each.
func networksOf(n int) (rules []string) {
	for i := range n {
		rules = append(rules, fmt.Sprintf("%s from cidr 10.%d.%d.0/24", []string{"allow", "deny"}[i%2], 1+i/250, i%250))
	}
	return rules
}

// weigh counts what a kernel has that another had not: rules by their handles, and elements.
func weigh(was, is *kernel) (rules, elements int) {
	had, members := map[uint64]bool{}, map[string]map[kernelElement]bool{}
	for _, c := range was.chains {
		for _, h := range c.handles {
			had[h] = true
		}
	}
	for name, s := range was.sets {
		members[name] = map[kernelElement]bool{}
		for _, e := range s.elements {
			members[name][e] = true
		}
	}
	for _, c := range is.chains {
		for _, h := range c.handles {
			if !had[h] {
				rules++
			}
		}
	}
	for name, s := range is.sets {
		for _, e := range s.elements {
			if !members[name][e] {
				elements++
			}
		}
	}
	return rules, elements
}

// TestARunIsOneLookup: of a thousand rules for a network each a packet meets two look-ups, and
// a rule more or less costs what it changes.
func TestARunIsOneLookup(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1", "fd00::1"))
	rules := networksOf(1000)
	x.Apply(profile(t, "web", []string{"web"}, rules, nil))
	x.Flush()
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	chain := chainOf(t, x)
	look := func() *kernel {
		k, err := table.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	was := look()
	const middle = 500
	for _, c := range []struct {
		what  string
		rules []string
		asked int // rules that a packet meets
		// What is in the kernel that was not, and what is not any more that was.
		rulesCome, elementsCome, rulesGo, elementsGo int
	}{
		{"a network last", append(slices.Clone(rules), "allow from cidr 172.16.0.0/12"), 2, 1, 2, 0, 0},
		{"without it", rules, 2, 0, 0, 1, 2},
		{"an address of one of them first", slices.Insert(slices.Clone(rules), 0, "deny from cidr 10.1.4.7/32"), 2, 1 + 2, 4, 0, 0}, // and where what it denies ends
		{"without it", rules, 2, 0, 0, 1 + 2, 4},
		{"another rule first", slices.Insert(slices.Clone(rules), 0, "deny udp"), 3, 1 + 2, 0, 0, 0},
		{"without it", rules, 2, 0, 0, 1 + 2, 0},
		{"another rule in the middle", slices.Insert(slices.Clone(rules), middle, "allow udp"), 5, 5, 1000, 2, 1000}, // of a chain that short all
	} {
		x.Apply(profile(t, "web", []string{"web"}, c.rules, nil))
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		is := look()
		if asked := len(is.chains[chain].hashes); asked != c.asked {
			t.Errorf("%s: %d rules in the chain, want %d", c.what, asked, c.asked)
		}
		rulesCome, elementsCome := weigh(was, is)
		rulesGo, elementsGo := weigh(is, was)
		got, want := []int{rulesCome, elementsCome, rulesGo, elementsGo}, []int{c.rulesCome, c.elementsCome, c.rulesGo, c.elementsGo}
		if !slices.Equal(got, want) {
			t.Errorf("%s: rules and elements that came and went %d, want %d", c.what, got, want)
		}
		if wrote, err := table.Sync(t.Context(), x.Ruleset()); wrote || err != nil {
			t.Errorf("%s: what the delta made is not what is wanted: wrote %v, %v", c.what, wrote, err)
		}
		was = is
	}
	if text := listing(t, n); !strings.Contains(text, `10.1.7.0/24 : goto rule_`) || !strings.Contains(text, `comment "profile web inbound: deny from cidr 10.1.7.0/24"`) {
		t.Errorf("it does not explain itself:\n%.3000s", text)
	}
}

// TestKernelAgreesWithEvalOnRuns: random runs, of networks that lie in one another, of ports and
// ranges, change by and by; each packet fares as the rules in turn say, and the one that
// decides counts it.
func TestKernelAgreesWithEvalOnRuns(t *testing.T) { onEach(t, testKernelAgreesWithEvalOnRuns) }

func testKernelAgreesWithEvalOnRuns(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	rng := rand.New(rand.NewPCG(16, 3))
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow from tag web"}, []string{"allow"}))
	addresses := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.9", "fd00::1", "fd00::2", "fd00::3", "2001:db8::9"}
	owner := []string{"a", "b", "c", "n"}
	nets := []string{"10.0.0.0/30", "10.0.0.0/8", "10.0.0.2/31", "10.0.0.2/32", "10.0.0.3/32", "10.0.0.1/32", "192.0.2.0/25", "192.0.2.8/29", "192.0.2.9/32", "0.0.0.0/0",
		"fd00::/127", "fd00::2/127", "fd00::3/128", "fd00::2/128", "fd00::/64", "2001:db8::/32", "2001:db8::9/128", "::/0"}
	action := func() string { return []string{"allow", "deny", "allow", "reject"}[rng.IntN(4)] }
	one := []func() string{
		func() string { return action() + " from cidr " + nets[rng.IntN(len(nets))] },
		func() string { return action() + " udp from cidr " + nets[rng.IntN(len(nets))] },
		func() string { return action() + " tcp to ports " + fmt.Sprint(1+rng.IntN(12)) },
		func() string {
			first := 1 + rng.IntN(12)
			return fmt.Sprintf("%s udp to ports %d:%d", action(), first, first+rng.IntN(12))
		},
		func() string { return fmt.Sprintf("%s udp from tag web ports %d", action(), 1+rng.IntN(12)) },
		func() string { return "deny icmp type 13" },
	}
	var rules []string
	add := func() {
		shape, at := one[rng.IntN(len(one))], rng.IntN(len(rules)+1)
		for range 1 + rng.IntN(8) {
			if r := shape(); !slices.Contains(rules, r) {
				rules = slices.Insert(slices.Clone(rules), at, r)
			}
		}
	}
	want, runs, decided := map[string]uint64{}, 0, map[bool]int{}
	for round := range 25 {
		for range 1 + rng.IntN(3) {
			if len(rules) > 30 || len(rules) > 1 && rng.IntN(3) == 0 {
				at := rng.IntN(len(rules) - 1)
				rules = slices.Delete(slices.Clone(rules), at, min(len(rules), at+1+rng.IntN(5)))
			} else {
				add()
			}
		}
		maps.DeleteFunc(want, func(r string, _ uint64) bool { return !slices.Contains(rules, r) })
		x.Apply(policy(t, "runs", "", 10, "role != 'none'", rules, nil))
		if round%4 == 3 { // a tier that passes has one chain for all of its policies
			x.Apply(policy(t, "last", "", 20+round, "all()", []string{[]string{"pass", "deny sctp"}[rng.IntN(2)]}, nil))
		}
		l.apply(x.Flush())
		for name, s := range l.rules.Packed().Sets {
			if s.Type.Run() && !strings.HasSuffix(name, "_next") {
				runs++
			}
		}
		var probes []probe
		flows := map[acl.Packet]bool{}
		for range 40 {
			family := 4 * rng.IntN(2)
			from, to := rng.IntN(4), rng.IntN(3)
			if from == to {
				continue
			}
			p := acl.Packet{Src: netip.MustParseAddr(addresses[from+family]), Dst: netip.MustParseAddr(addresses[to+family])}
			p.Protocol = []uint8{6, 17, 17}[rng.IntN(3)]
			p.SrcPort, p.DstPort = uint16(1+rng.IntN(14)), uint16(1+rng.IntN(14))
			back := p
			back.Src, back.Dst, back.SrcPort, back.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
			if flows[p] || flows[back] {
				continue
			}
			flows[p] = true
			probes = append(probes, probe{owner[from], p})
		}
		l.router.Run("conntrack", "-F")
		for i, ok := range l.check(probes) {
			decided[ok]++
			if by := x.Explain(probes[i].p).By; by != nil && by.Name == "runs" {
				want[by.Rule]++
			}
		}
		for rule, n := range l.counted(x, "runs") {
			if n != want[rule] && on != "iptables-nft" { // whose counters of IPv6 are what they are
				t.Errorf("round %d: %q has counted %d packets, want %d", round, rule, n, want[rule])
			}
		}
		if t.Failed() {
			t.Fatalf("%s\n%s", strings.Join(rules, "\n"), l.listed())
		}
	}
	l.list()
	if wrote, err := l.filter.Sync(t.Context(), l.rules); wrote || err != nil {
		t.Errorf("what the deltas made is not what is wanted: wrote %v, %v", wrote, err)
	}
	if runs < 25 || decided[true] < 100 || decided[false] < 100 {
		t.Errorf("%d runs, packets passed and refused: %v", runs, decided)
	}
}

// TestARecutIsCovered: what has an element is in the map by NextMap before it is cut, in a
// transaction of its own, and until it is; a kernel finds neither the old nor the new for a moment.
func TestARecutIsCovered(t *testing.T) {
	table := &Table{sets: map[string][]acl.Element{}, packed: map[string]packed{}, handles: handles{}}
	rules := func(texts ...string) []acl.Rule {
		x := acl.NewIndex("n1", testOptions())
		x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
		x.Apply(profile(t, "web", nil, texts, nil))
		return x.Ruleset().Chains[chainOf(t, x)].Rules
	}
	one := []string{"allow from cidr 10.0.0.0/8", "deny from cidr 11.0.0.0/8", "allow from cidr 12.0.0.0/8", "deny from cidr 14.0.0.0/8"}
	for _, c := range []struct {
		what  string
		rules []string
		parts int
		again []string
	}{
		{"a network beside", append(slices.Clone(one), "deny from cidr 16.0.0.0/8"), 1, nil},
		{"one that was covered", append(slices.Clone(one), "deny from cidr 10.1.0.0/16"), 1, nil},
		{"one within", slices.Insert(slices.Clone(one), 0, "deny from cidr 10.1.0.0/16"), 3, []string{"10.0.0.0/8"}},
		{"one around", slices.Insert(slices.Clone(one), 0, "deny from cidr 10.0.0.0/7"), 3, []string{"10.0.0.0/8", "11.0.0.0/8"}},
		{"another verdict", append([]string{"deny from cidr 10.0.0.0/8"}, one[1:]...), 3, []string{"10.0.0.0/8"}},
	} {
		l := table.list(acl.ChainChange{Name: "in_x", Before: rules(one...), Rules: rules(c.rules...)}, table.sets)
		tx := newTransaction()
		tx.list(l)
		var again []string
		for _, m := range l.maps {
			for _, e := range m.again {
				again = append(again, strings.Fields(e.Text(m.set.Type))[0])
			}
		}
		parts := tx.parts()
		if len(parts) != c.parts || !slices.Equal(again, c.again) {
			t.Errorf("%s: %d transactions, %v again; want %d and %v", c.what, len(parts), again, c.parts, c.again)
		}
		for i, ops := range parts {
			batch, err := encode(ops)
			if change := slices.ContainsFunc(ops, func(o op) bool { return len(o.parts) > 0 }); err != nil || len(batch) < 3 || change != (i == len(parts)/2) {
				t.Errorf("%s: part %d changes the list: %v, %d messages, %v", c.what, i, change, len(batch), err)
			}
		}
	}
}

// TestALongRun takes several transactions when it comes, and is right then.
func TestALongRun(t *testing.T) {
	const size = 3000
	table := open(t, newNetns(t))
	x := acl.NewIndex("n1", testOptions())
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{size, size / 2, size} { // it comes, and half of it goes and comes
		x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
		x.Apply(profile(t, "web", nil, networksOf(n), nil))
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			t.Fatal(err)
		}
		if wrote, err := table.Sync(t.Context(), x.Ruleset()); wrote || err != nil {
			t.Fatalf("%d rules: wrote %v, %v", n, wrote, err)
		}
	}
}

// TestARefusedRunIsNamed: what the kernel refuses of a run is the chain's that has it, and all
// else is written.
func TestARefusedRunIsNamed(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
	x.Apply(profile(t, "web", nil, networksOf(6), nil))
	x.Flush()
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	good, bad := x.Ruleset().Chains[chainOf(t, x)], slices.Clone(x.Ruleset().Chains[chainOf(t, x)].Rules)
	bad[2].Verdict = acl.Verdict{Kind: acl.Goto, Chain: "nowhere"}
	before := sorted(listing(t, n))
	err := table.Apply(t.Context(), acl.Delta{
		Chains: []acl.ChainChange{{Name: good.Name, Before: good.Rules, Rules: bad}},
		Sets:   []acl.SetChange{{Name: "port_new", Type: acl.Port, New: true}},
	})
	var refused *acl.RefusedError
	if !errors.As(err, &refused) || len(refused.Refusals) != 1 || refused.Refusals[0].Name != good.Name || refused.Refusals[0].Kind != "chain" {
		t.Errorf("refused: %v, want chain %s", err, good.Name)
	}
	after := sorted(listing(t, n))
	if after = slices.DeleteFunc(after, func(line string) bool { return slices.Contains(before, line) }); !strings.Contains(strings.Join(after, " "), "port_new") {
		t.Errorf("what else was to come is not there: %q", after)
	}
	rules := x.Ruleset()
	if _, err := table.Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if got := sorted(listing(t, n)); !slices.Equal(got, before) {
		sameLines(t, got, before)
	}
	rules.Chains[good.Name].Rules = bad
	if _, err = table.Sync(t.Context(), rules); !errors.As(err, &refused) || len(refused.Refusals) != 1 || refused.Refusals[0].Name != good.Name {
		t.Errorf("refused: %v, want chain %s", err, good.Name)
	}
}

// BenchmarkRunEdit is one network more in a run of so many, or one tag.
func BenchmarkRunEdit(b *testing.B) {
	for _, c := range []struct {
		name  string
		rules []string
		at    int
		one   string
	}{
		{"10", networksOf(10), 0, "deny from cidr 10.1.4.7/32"},
		{"1000", networksOf(1000), 0, "deny from cidr 10.1.4.7/32"},
		{"900 tags", taggedRules("allow from tag t%d", 900), 450, "deny from tag other"},
	} {
		b.Run(c.name, func(b *testing.B) {
			table, t := open(b, newNetns(b)), &testing.T{}
			x := acl.NewIndex("n1", testOptions())
			x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
			changes := []datastore.Change{
				profile(t, "web", []string{"web"}, c.rules, nil),
				profile(t, "web", []string{"web"}, slices.Insert(slices.Clone(c.rules), c.at, c.one), nil),
			}
			x.Apply(changes[0])
			x.Flush()
			if _, err := table.Sync(b.Context(), x.Ruleset()); err != nil {
				b.Fatal(err)
			}
			cpu, times := used(b, unix.RUSAGE_SELF), 0
			for ; b.Loop(); times++ {
				x.Apply(changes[1-times%2])
				if err := table.Apply(b.Context(), x.Flush()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((used(b, unix.RUSAGE_SELF)-cpu).Microseconds())/float64(1000*times), "ms-cpu")
		})
	}
}
