package acl

import (
	"strings"
	"testing"

	"netctl/datastore"
)

// TestRuleIDsStay: a rule keeps its ID wherever in its list it comes to be, and no two
// rules share one.
func TestRuleIDsStay(t *testing.T) {
	r := newRig(t)
	p := &datastore.Policy{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.PolicySpec{
		Tier: datastore.DefaultTier, Ingress: r.rules("deny udp", "allow", "deny udp"), Egress: r.rules("deny udp")}}
	before := Places(p)
	p.Spec.Ingress = append(r.rules("allow tcp"), p.Spec.Ingress...)
	after := Places(p)
	seen := map[string]bool{}
	for i, place := range before {
		if seen[place.ID] {
			t.Errorf("%s has the ID of another one, %s", place, place.ID)
		}
		seen[place.ID] = true
		now := after[i+1]
		if now.ID != place.ID || now.Rule != place.Rule {
			t.Errorf("%s became %s: %s, %s", place, now, place.ID, now.ID)
		}
	}
	p.Spec.Tier = "security"
	if moved := Places(p); moved[0].ID == after[0].ID {
		t.Error("in another tier it has the same ID")
	}
	if list := Places(&datastore.Tier{}); list != nil {
		t.Errorf("a tier has rules: %v", list)
	}
}

// TestDenialsAreLoggedByTheirRule: what is logged of a denied packet says which rule denied it,
// or that none decided, and of which tier, as Explain does.
func TestDenialsAreLoggedByTheirRule(t *testing.T) {
	byRule, byDefault := 0, 0
	for seed := range uint64(60) {
		w, x := newWorld(t, 3000+seed), NewIndex("node0", testOptions())
		for range 40 {
			x.Apply(w.step())
		}
		m, links := newModel(w.current), append(sortedKeys(x.links), "up0")
		for range 30 {
			e := x.Explain(w.packet(m, links))
			last := ""
			if n := len(e.Logged); n > 0 && strings.HasPrefix(e.Logged[n-1], "D") {
				last = e.Logged[n-1][len("DPI|"):]
			}
			_, tier, named := strings.Cut(e.Reason, " rule of tier ")
			switch tier, _, _ = strings.Cut(tier, " allows it"); {
			case e.Allowed || e.Chain != chainDropIn && e.Chain != chainDropOut && e.Chain != chainDenyIn && e.Chain != chainDenyOut && !strings.HasPrefix(e.Chain, "reject_"):
				if last != "" {
					t.Fatalf("seed %d: %s: logged %q", seed, e.Decision, e.Logged)
				}
			case e.By != nil:
				byRule++
				whose := e.By.Name
				if e.By.Tier != "" {
					whose = e.By.Tier + "/" + whose
				}
				if want := e.By.ID + "|" + whose; last != want {
					t.Fatalf("seed %d: %s, by %s: logged %q, want %q", seed, e.Decision, e.By, last, want)
				}
			default:
				byDefault++
				want := defaultID
				if named {
					want += "|" + tier
				}
				if last != want {
					t.Fatalf("seed %d: %s: logged %q, want %q", seed, e.Decision, last, want)
				}
			}
		}
	}
	if byRule < 50 || byDefault < 50 {
		t.Errorf("only %d were denied by rules and %d by none", byRule, byDefault)
	}
}
