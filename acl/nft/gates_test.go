package nft

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// taggedRules are n rules for a tag each.
func taggedRules(format string, n int) (rules []string) {
	for i := range n {
		rules = append(rules, fmt.Sprintf(format, i))
	}
	return rules
}

// ungated is r as a table has it that knows no gates.
func ungated(r *acl.Ruleset) *acl.Ruleset {
	out := r.Clone()
	for name := range out.Sets {
		if acl.IsGate(name) {
			delete(out.Sets, name)
		}
	}
	return out
}

// TestKernelAgreesWithEvalOnGates: rules for a tag each, and the members of the tags, change by and
// by; each packet fares as the rules in turn say, and the one that decides counts it, before its
// rule is behind a gate and behind another one.
func TestKernelAgreesWithEvalOnGates(t *testing.T) { onAll(t, testKernelAgreesWithEvalOnGates) }

func testKernelAgreesWithEvalOnGates(t *testing.T, on string) {
	const tags = 48
	l, x := wiredLab(t, on)
	rng := rand.New(rand.NewPCG(16, 9))
	x.Apply(endpoint("n2", "n2/cni/n/eth0", "ncn", []string{"ext"}, "192.0.2.9", "2001:db8::9"))
	addresses := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.9", "fd00::1", "fd00::2", "fd00::3", "2001:db8::9"}
	owner := []string{"a", "b", "c", "n"}
	var rules []string
	for i := range tags {
		rules = append(rules, fmt.Sprintf("%s udp from tag t%d", []string{"allow", "deny", "allow", "reject"}[rng.IntN(4)], i))
	}
	rounds, most := 8, 30
	if on != onNFT {
		rounds = 3
	}
	want, gates, decided := map[string]uint64{}, 0, map[bool]int{}
	known := map[string]bool{}
	for range rounds {
		if rng.IntN(3) > 0 {
			at := rng.IntN(tags)
			rules = slices.Insert(slices.Clone(rules), at, []string{"allow udp from tag more%d", "deny udp from selector \"role == 'r%d'\"", "deny udp to ports %d", "allow udp from cidr 10.0.0.%d/32"}[rng.IntN(4)])
			rules[at] = fmt.Sprintf(rules[at], 1+rng.IntN(3))
			if known[rules[at]] {
				rules = slices.Delete(rules, at, at+1)
			} else {
				known[rules[at]] = true
			}
		}
		x.Apply(policy(t, "tags", "", 10, "all()", rules, nil))
		for _, name := range []string{"web", "db", "ext"} {
			var has []string
			for range 1 + rng.IntN(5) {
				if tag := []string{fmt.Sprint("t", rng.IntN(tags)), fmt.Sprint("more", 1+rng.IntN(3))}[rng.IntN(5)/4]; !slices.Contains(has, tag) {
					has = append(has, tag)
				}
			}
			x.Apply(profile(t, name, has, []string{"allow tcp"}, []string{"allow"}))
		}
		l.apply(x.Flush())
		for name := range l.rules.Packed().Chains {
			if strings.HasPrefix(name, "some_") {
				gates++
			}
		}
		var probes []probe
		flows := map[acl.Packet]bool{}
		for range most {
			family := 4 * rng.IntN(2)
			from, to := rng.IntN(4), rng.IntN(3)
			p := udp(addresses[from+family], addresses[to+family], uint16(1+rng.IntN(14)))
			p.SrcPort = uint16(1 + rng.IntN(14))
			back := p
			back.Src, back.Dst, back.SrcPort, back.DstPort = p.Dst, p.Src, p.DstPort, p.SrcPort
			if from == to || flows[p] || flows[back] {
				continue
			}
			flows[p] = true
			probes = append(probes, probe{owner[from], p})
		}
		l.router.Run("conntrack", "-F")
		for i, ok := range l.check(probes) {
			decided[ok]++
			if by := x.Explain(probes[i].p).By; by != nil && by.Name == "tags" {
				want[by.Rule]++
			}
		}
		checkCounts(l, x, want)
	}
	if gates < 2*rounds || decided[true] < 2*rounds || decided[false] < 2*rounds {
		t.Errorf("%d gates, packets passed and refused: %v", gates, decided)
	}
	for i, r := range []*acl.Ruleset{l.rules, ungated(l.rules), l.rules} { // as an older table has them
		if wrote, err := l.filter.Sync(t.Context(), r); wrote != (i > 0) || err != nil {
			t.Errorf("number %d: wrote %v, %v", i, wrote, err)
		}
		checkCounts(l, x, want)
	}
	l.list()
	if text := l.listed(); on == onNFT && !(strings.Contains(text, "jump some_") && strings.Contains(text, `comment "in one of tag t`)) || on != onNFT && !strings.Contains(text, "-g nctl-some_") {
		t.Errorf("it does not explain itself:\n%s", text)
	}
}

// checkCounts wants the rules of policy tags to have counted so many packets.
func checkCounts(l *lab, x *acl.Index, want map[string]uint64) {
	l.t.Helper()
	list := x.Counted(func(_ datastore.Kind, name string) bool { return name == "tags" })
	var rules []acl.Rule
	for _, c := range list {
		rules = append(rules, c.Rules...)
	}
	counts, err := l.filter.Counts(l.t.Context(), rules) // of all at once
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range list {
		var n uint64
		for range c.Rules {
			n, counts = n+counts[0].Packets, counts[1:]
		}
		if n != want[c.Rule] && l.on != "iptables-nft" { // whose counters of IPv6 are what they are
			l.t.Errorf("%q has counted %d packets, want %d", c.Rule, n, want[c.Rule])
		}
	}
	if l.t.Failed() {
		l.t.Fatal(l.listed())
	}
}

// TestAMemberOfManyTags: a member more costs an element of its tag and of each gate, a rule more
// what is in its block, and the table is what it should be.
func TestAMemberOfManyTags(t *testing.T) {
	const size = 500
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1", "fd00::1"))
	rules := taggedRules("allow from tag t%d", size)
	x.Apply(profile(t, "web", []string{"web"}, rules, nil))
	for i := range size {
		name := fmt.Sprint("p", i)
		x.Apply(profile(t, name, []string{fmt.Sprint("t", i)}, nil, nil))
		e := endpoint("n2", fmt.Sprint("r", i), "ncr", []string{name})
		e.New.(*datastore.Endpoint).Spec.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})}
		x.Apply(e)
	}
	x.Flush()
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	look := func() *kernel {
		k, err := table.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	was := look()
	for _, c := range []struct {
		what            string
		change          datastore.Change
		rules, elements int // at most, of both families
	}{
		{"a member", endpoint("n2", "new", "ncm", []string{"p77"}, "10.9.9.9"), 0, 1 + 3},
		{"it moves", endpoint("n2", "new", "ncm", []string{"p78"}, "10.9.9.9"), 0, 1 + 3},
		{"it goes", datastore.Change{Kind: datastore.KindEndpoint, Name: "new"}, 0, 0},
		{"a rule in the middle", profile(t, "web", []string{"web"}, slices.Insert(slices.Clone(rules), size/2, "deny from tag other"), nil), 2*(5*24) + 2, 600},
		{"without it", profile(t, "web", []string{"web"}, rules, nil), 2 * (5 * 24), 600},
	} {
		x.Apply(c.change)
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		is := look()
		rulesCome, elementsCome := weigh(was, is)
		t.Logf("%s: %d rules and %d elements came", c.what, rulesCome, elementsCome)
		if rulesCome > c.rules || elementsCome > c.elements || (elementsCome == 0) != (c.elements == 0) {
			t.Errorf("%s: %d rules and %d elements came, want at most %d and %d", c.what, rulesCome, elementsCome, c.rules, c.elements)
		}
		if wrote, err := table.Sync(t.Context(), x.Ruleset()); wrote || err != nil {
			t.Errorf("%s: what the delta made is not what is wanted: wrote %v, %v", c.what, wrote, err)
		}
		was = is
	}
}

// TestGatesOfManyLists: a tag that comes to be in too many lists has no gates any more, in lists
// whose rules do not change; and has them again.
func TestGatesOfManyLists(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
	list := func(i int) datastore.Change {
		return policy(t, fmt.Sprint("q", i), "", i, "all()", append([]string{"allow from tag t"}, taggedRules("allow from tag u"+fmt.Sprint(i)+"-%d", 15)...), nil)
	}
	x.Flush()
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	chains := map[int]int{}
	for i := range 12 {
		x.Apply(list(i))
		if i > 9 { // and less again
			x.Apply(datastore.Change{Kind: datastore.KindPolicy, Name: fmt.Sprint("q", i)})
			x.Apply(datastore.Change{Kind: datastore.KindPolicy, Name: fmt.Sprint("q", i-2)})
		}
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			t.Fatalf("%d lists: %v", i, err)
		}
		if wrote, err := table.Sync(t.Context(), x.Ruleset()); wrote || err != nil {
			t.Fatalf("%d lists: what the delta made is not what is wanted: wrote %v, %v", i, wrote, err)
		}
		chains[i] = strings.Count(listing(t, n), "jump some_")
	}
	if chains[7] < 8 || chains[9] >= chains[7] || chains[11] < chains[7] {
		t.Errorf("gates by lists: %v", chains)
	}
}
