package acl

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

func masked(s string) string { return netip.MustParsePrefix(s).Masked().String() }

// runRules are random rules of which many differ by one thing alone: networks in one another,
// neighbours, the same twice, both families mixed, ports and ranges.
func runRules(rng *rand.Rand, n int) (rules []string) {
	action := func() string { return []string{"allow", "deny", "reject", "allow", "pass"}[rng.IntN(5)] }
	cidr := func() string {
		if rng.IntN(3) == 0 {
			return masked(fmt.Sprintf("fd00::%x/%d", rng.IntN(64), []int{0, 64, 120, 123, 126, 128}[rng.IntN(6)]))
		}
		return masked(fmt.Sprintf("10.0.0.%d/%d", rng.IntN(64), []int{0, 8, 24, 26, 28, 29, 30, 31, 32, 32, 32}[rng.IntN(11)]))
	}
	ports := func() string {
		first := 1 + rng.IntN(60)
		return []string{fmt.Sprint(first), fmt.Sprint(first, ",", 50+rng.IntN(9)), fmt.Sprint(first, ":", first+rng.IntN(30)), "1:65535"}[rng.IntN(4)]
	}
	for len(rules) < n {
		some, proto := 1+rng.IntN(9), []string{"", "tcp ", "udp "}[rng.IntN(3)]
		shape := rng.IntN(6)
		for range some {
			switch shape {
			case 0:
				rules = append(rules, action()+" "+proto+"from cidr "+cidr())
			case 1:
				rules = append(rules, action()+" "+proto+"to cidr "+cidr())
			case 2:
				rules = append(rules, action()+" tcp to ports "+strings.ReplaceAll(ports(), " ", ""))
			case 3:
				rules = append(rules, action()+" udp from cidr 10.0.0.0/27 ports "+strings.ReplaceAll(ports(), " ", ""))
			case 4:
				rules = append(rules, action()+" from tag t cidr "+cidr())
			}
		}
		if shape == 5 {
			rules = append(rules, []string{"log", action() + " from tag t", action() + " not tcp from cidr " + cidr(), action() + " from not cidr " + cidr()}[rng.IntN(4)])
		}
	}
	return rules[:n]
}

// TestPackedMeansTheSame: whatever the rules, a packet fares with their runs as look-ups as it
// does with the rules in turn, and the rule that decides is the same.
func TestPackedMeansTheSame(t *testing.T) {
	rng := rand.New(rand.NewPCG(16, 2))
	packed, decided := 0, map[bool]int{}
	for range 150 {
		r := newRig(t)
		texts := runRules(rng, 3+rng.IntN(40))
		r.put(&datastore.Policy{Metadata: datastore.Metadata{Name: "runs"}, Spec: datastore.PolicySpec{Selector: "all()", Ingress: r.rules(texts...)}})
		r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Tags: []string{"t"}, Inbound: r.rules("allow udp")}})
		r.endpoint("nca", "10.0.0.1", "web", "web")
		r.endpoint("ncb", "fd00::1", "web", "web")
		plain := r.x.Ruleset()
		runs := plain.Packed()
		packed += len(runs.Chains) - len(plain.Chains)
		needsNothing(t, runs)
		for _, s := range runs.Sets {
			disjoint(t, s)
		}
		was, is := plain.Judge(), runs.Judge()
		for range 300 {
			p := Packet{InLink: "up0", OutLink: "nca", OutGroup: 77, State: New, Protocol: []uint8{1, 6, 17, 6, 17, 132}[rng.IntN(6)], SrcPort: uint16(rng.IntN(70)), DstPort: uint16(rng.IntN(70))}
			p.Src, p.Dst = netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(70))}), netip.MustParseAddr("10.0.0.1")
			if rng.IntN(3) == 0 {
				p.OutLink, p.Src, p.Dst = "ncb", netip.MustParseAddr(fmt.Sprintf("fd00::%x", rng.IntN(70))), netip.MustParseAddr("fd00::1")
			}
			want, got := was.Eval(p), is.Eval(p)
			if decided[want.Allowed]++; got.Allowed != want.Allowed || got.Reason != want.Reason || !slices.Equal(got.Logged, want.Logged) {
				t.Fatalf("%+v:\n  plain %s %v\n packed %s %v\n%s\n%s", p, want, want.Logged, got, got.Logged, strings.Join(texts, "\n"), runs)
			}
		}
	}
	if packed < 500 || decided[true] < 1000 || decided[false] < 1000 {
		t.Errorf("%d rules in runs, packets allowed and denied: %v", packed, decided)
	}
}

// disjoint wants the elements of a map not to overlap, nor to be more than they need be.
func disjoint(t *testing.T, s *Set) {
	t.Helper()
	var last Element
	for i, e := range s.Sorted() {
		if !s.Type.Run() {
			return
		}
		overlaps, touches := last.Until.Compare(e.Prefix.Addr()) >= 0, last.Until.Next() == e.Prefix.Addr()
		if s.Type == PortVerdict {
			overlaps, touches = e.First <= last.Last, e.First == last.Last+1
		}
		if i > 0 && (overlaps || touches && e.Verdict == last.Verdict) {
			t.Errorf("%s: %s behind %s", s.Name, e.Text(s.Type), last.Text(s.Type))
		}
		last = e
	}
}

// TestRunsAreFound: which rules are in one run.
func TestRunsAreFound(t *testing.T) {
	const office, lab = "10.1.0.0/16", "10.2.0.0/16"
	cidrs := func(format string, n int) (rules []string) {
		for i := range n {
			rules = append(rules, fmt.Sprintf(format, i))
		}
		return rules
	}
	for _, c := range []struct {
		what  string
		rules []string
		asked int // rules of the chain itself
		runs  int
	}{
		{"too few", cidrs("allow from cidr 192.0.2.%d/32", 3), 3, 0},
		{"four", cidrs("allow from cidr 192.0.2.%d/32", 4), 2, 1},
		{"a thousand", cidrs("deny tcp from cidr 10.0.0.0/8 to ports 1%03d", 1000), 2, 1},
		{"verdicts may differ", append(cidrs("allow from cidr 192.0.2.%d/32", 2), "deny from cidr 192.0.2.0/31", "reject from cidr 192.0.2.2/31"), 2, 1},
		{"all else may not", append(cidrs("allow from cidr 192.0.2.%d/32", 4), cidrs("allow tcp from cidr 192.0.2.%d/32", 4)...), 4, 2},
		{"what is between them is asked there", slices.Insert(cidrs("allow from cidr 192.0.2.%d/32", 8), 4, "deny udp"), 5, 2},
		{"both families", slices.Concat(cidrs("allow from cidr 192.0.2.%d/32", 2), cidrs("allow from cidr fd00::%d/128", 4), cidrs("allow from cidr 198.51.100.%d/32", 2)), 4, 2},
		{"what goes on is no part", slices.Repeat([]string{"log from cidr 192.0.2.0/24"}, 5), 5, 0},
		{"nor is what is negated", cidrs("allow from not cidr 192.0.2.%d/32", 5), 10, 0},
		{"source and destination", append(cidrs("allow from cidr "+office+" to cidr 192.0.2.%d/32", 4), cidrs("allow from cidr 192.0.2.%d/32 to cidr "+lab, 4)...), 4, 2},
		{"lists of ports", []string{"allow tcp to ports 80", "allow tcp to ports 80,443", "deny tcp to ports 1:1000", "deny tcp to ports 2,3,5,8"}, 2, 1},
	} {
		r := newRig(t)
		r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: r.rules(c.rules...)}})
		r.endpoint("nca", "10.0.0.1", "web", "web")
		r.endpoint("ncb", "fd00::1", "web", "web")
		plain := r.x.Ruleset()
		runs := plain.Packed()
		asked, maps := len(runs.Chains[profileChain(inbound, "web")].Rules), len(runs.Sets)-len(plain.Sets)
		if asked != c.asked || maps != 2*c.runs {
			t.Errorf("%s: %d rules and %d maps, want %d and %d\n%s", c.what, asked, maps, c.asked, 2*c.runs, runs)
		}
		for name, chain := range runs.Chains { // where a trace finds what a rule comes of
			if plain.Chains[name] == nil && !slices.ContainsFunc(r.x.Placed(name), func(p Placed) bool { return p.Rule.Equal(chain.Rules[0]) }) {
				t.Errorf("%s: nobody knows what %s comes of", c.what, chain.Rules[0].Comment)
			}
		}
	}
}
