package iptables

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// tagged is what rules for a tag each come to, behind so many tiers that pass.
func tagged(t *testing.T, rules, tiers int) *acl.Ruleset {
	t.Helper()
	var texts []string
	for i := range rules {
		texts = append(texts, fmt.Sprintf("%s tcp from tag t%d", []string{"allow", "deny"}[i%2], i))
	}
	changes := []datastore.Change{profile(t, "web", texts...), endpoint(1, "nc01", "web")}
	pass := datastore.Rule{Action: datastore.Pass, Protocol: datastore.ProtocolMatch{Set: true, Number: protoUDP}}
	for i := range tiers {
		name := fmt.Sprintf("t%02d", i)
		changes = append(changes,
			datastore.Change{Kind: datastore.KindTier, Name: name, New: &datastore.Tier{Metadata: datastore.Metadata{Name: name}, Spec: datastore.TierSpec{Order: &i}}},
			datastore.Change{Kind: datastore.KindPolicy, Name: name, New: &datastore.Policy{Metadata: datastore.Metadata{Name: name},
				Spec: datastore.PolicySpec{Tier: name, Selector: "all()", Types: []datastore.PolicyType{datastore.Ingress}, Ingress: []datastore.Rule{pass}}}})
	}
	return compiled(t, changes...)
}

// TestGatesRender: behind a gate is no way but to a verdict, and each rule stands once.
func TestGatesRender(t *testing.T) {
	const rules = 40
	table := &Table{mode: Legacy, prefix: "nc"}
	for p, r := range table.render(tagged(t, rules, 0)) {
		if p.table != "filter" || p.ipv6 { // the endpoint has an address of IPv4
			continue
		}
		behind, once := 0, map[string]int{}
		for name, lines := range r.chains {
			for _, l := range lines {
				if strings.Contains(l.text, "from tag t") {
					once[l.text]++
				}
			}
			if !strings.HasPrefix(name, "nctl-some_") {
				continue
			}
			behind++
			for _, l := range lines { // where what is refused is the chain's that the rules are of
				if l.counts != "" && !strings.HasPrefix(l.chain, "in_") {
					t.Errorf("%s: a rule of %s", name, l.chain)
				}
			}
			if last := lines[len(lines)-1].text; !strings.HasSuffix(last, "-j DROP") || strings.Contains(last, "-m set") {
				t.Errorf("%s ends with %s", name, last)
			}
		}
		if behind < 2 || len(once) != rules {
			t.Errorf("%v: %d chains behind gates, %d rules", p, behind, len(once))
		}
		for text, n := range once {
			if n != 1 {
				t.Errorf("%v: %d times %s", p, n, text)
			}
		}
	}
}

// TestGatesAreNotTooDeep: where nftables would not follow a packet through a gate there is none.
func TestGatesAreNotTooDeep(t *testing.T) {
	for _, c := range []struct {
		mode  Mode
		tiers int
		gates bool
	}{{NFT, 0, true}, {NFT, 4, true}, {NFT, 9, false}, {NFT, 20, false}, {Legacy, 20, true}} {
		table := &Table{mode: c.mode, prefix: "nc"}
		want := tagged(t, 40, c.tiers)
		got, plain := table.render(want), render(want, "nc", nil)
		for p, r := range got {
			gates := slices.ContainsFunc(sortedKeys(r.chains), func(name string) bool { return strings.HasPrefix(name, "nctl-some_") })
			if p.table == "filter" && !p.ipv6 && gates != c.gates {
				t.Errorf("%s, %d tiers: gates %v, want %v", c.mode, c.tiers, gates, c.gates)
			}
			if deep := len(r.tooDeep()); c.mode == NFT && deep != len(plain[p].tooDeep()) {
				t.Errorf("%s, %d tiers: %d chains are too deep, without gates %d", c.mode, c.tiers, deep, len(plain[p].tooDeep()))
			}
		}
	}
}

// TestGatesAreWithinTheirSets: who comes is in the set of the tag before in the gate, and who goes is
// out of the gate before.
func TestGatesAreWithinTheirSets(t *testing.T) {
	list := gatesLast([]setChange{{name: "nctl-adopted"}, {name: "nctl-any4_1"}, {name: "nctl-any6_1"}, {name: "nctl-sel4_1"}, {name: "nctl-tag4_1"}})
	var names []string
	for _, c := range list {
		names = append(names, c.name)
	}
	if got := strings.Join(names, " "); got != "nctl-adopted nctl-sel4_1 nctl-tag4_1 nctl-any4_1 nctl-any6_1" {
		t.Error(got)
	}
}
