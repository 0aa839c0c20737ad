package acl

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// wouldLog are the messages that staged policies write of a packet of the endpoint, straight
// from the model.
func (m model) wouldLog(e *datastore.Endpoint, p Packet, d direction) (logs []string) {
	letter := map[direction]string{inbound: "I", outbound: "E"}[d]
	tiers, by := m.tiersOf(gather(e, m.profiles).labels, d)
tiers:
	for _, tier := range tiers {
		idle, decided := true, false
		for _, q := range by[tier] {
			if !q.Spec.Staged {
				idle, decided = false, false
			}
			for i, r := range policyRulesOf(q, d) {
				if decided || r.Action == datastore.Log || !m.matches(r, p) {
					continue
				}
				switch {
				case q.Spec.Staged:
					decided = true
					if r.Action != datastore.Allow {
						id := ""
						for _, place := range Places(q) {
							if place.Direction == string(d.typ()) && place.Position == i+1 {
								id = place.ID
							}
						}
						logs = append(logs, fmt.Sprintf("SP%s|%s|%s/%s", letter, id, tier, q.Metadata.Name))
					}
				case r.Action == datastore.Pass:
					continue tiers
				default:
					return logs
				}
			}
		}
		switch {
		case m.passesTier(tier):
		case !idle:
			return logs
		case !decided:
			logs = append(logs, fmt.Sprintf("SP%s|default|%s", letter, tier))
		}
	}
	return logs
}

// promoted is the model with every staged policy in force, how many there are, and whether
// one of them passes.
func (m model) promoted() (out model, staged int, passes bool) {
	out = m
	out.policies = map[string]*datastore.Policy{}
	for name, p := range m.policies {
		if p.Spec.Staged {
			staged++
			passes = passes || newPolicy(p).passes(inbound) || newPolicy(p).passes(outbound)
			q := *p
			q.Spec.Staged = false
			p = &q
		}
		out.policies[name] = p
	}
	return out, staged, passes
}

// TestStagedPoliciesTell holds what is logged of staged policies against the model: each rule
// in its place, everything that they would deny and that is allowed, and of one policy nothing
// else.
func TestStagedPoliciesTell(t *testing.T) {
	logged, changed, alone := 0, 0, 0
	for seed := range uint64(200) {
		w, x := newWorld(t, 5000+seed), NewIndex("node0", testOptions())
		for range 50 {
			x.Apply(w.step())
		}
		for x.Work() { // to the end
		}
		rules, m := x.Ruleset(), newModel(w.current)
		then, staged, passes := m.promoted()
		links := append(sortedKeys(x.links), "up0")
		for range 40 {
			p := w.packet(m, links)
			d := rules.Eval(p)
			got := slices.DeleteFunc(slices.Clone(d.Logged), func(l string) bool { return !strings.HasPrefix(l, "S") })
			var want []string
			only := p
			only.OutGroup, only.OutLink = 0, "up0" // whether it gets out
			if from := m.owner(p.InLink); p.InGroup == 77 && sends(from, p.Src) && !m.guarded(from, p) {
				want = append(want, m.wouldLog(from, p, outbound)...)
			}
			if to := m.owner(p.OutLink); p.OutGroup == 77 && m.allows(only) {
				want = append(want, m.wouldLog(to, p, inbound)...)
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: %+v: %s\nlogged %q\n  want %q\n%s", seed, p, d, got, want, rules)
			}
			logged += len(want)
			switch {
			case d.Allowed && !then.allows(p):
				if changed++; len(got) == 0 {
					t.Fatalf("seed %d: %+v: would be denied, and nothing tells", seed, p)
				}
			case d.Allowed && staged == 1 && !passes:
				if alone++; len(got) > 0 {
					t.Fatalf("seed %d: %+v: stays allowed, but logged %q", seed, p, got)
				}
			}
		}
	}
	if logged < 300 || changed < 100 || alone < 100 {
		t.Errorf("only %d were logged, %d would be denied, %d of one policy would not", logged, changed, alone)
	}
}

func (m model) guarded(from *datastore.Endpoint, p Packet) bool {
	encap := p.Protocol == 4 || p.Protocol == 17 && p.DstPort == 4789
	return encap && (!from.Spec.AllowEncapsulation || m.nodes[p.Dst]) || p.Protocol == 17 && (p.SrcPort == 67 || p.SrcPort == 547)
}
