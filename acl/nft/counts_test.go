package nft

import (
	"fmt"
	"regexp"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// counted is what the rules of an object have counted, by their text.
func (l *lab) counted(x *acl.Index, name string) map[string]uint64 {
	l.t.Helper()
	out := map[string]uint64{}
	for _, c := range x.Counted(func(_ datastore.Kind, n string) bool { return n == name }) {
		counts, err := l.filter.Counts(l.t.Context(), c.Rules)
		if err != nil {
			l.t.Fatal(err)
		}
		var sum acl.Count
		for _, n := range counts {
			sum = sum.Plus(n)
		}
		if (sum.Packets == 0) != (sum.Bytes == 0) {
			l.t.Errorf("%s: %+v", c.RulePlace, sum)
		}
		if c.Direction == "inbound" || c.Direction == "ingress" {
			out[c.Rule] += sum.Packets
		}
	}
	return out
}

// TestCountersSurvive: what a rule has counted it keeps when its chain is filled anew,
// by a change or in a repair, and when another chain takes the place of its own.
func TestCountersSurvive(t *testing.T) { onAll(t, testCountersSurvive) }

func testCountersSurvive(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	apply := func(c datastore.Change) {
		x.Apply(c)
		l.apply(x.Flush())
	}
	web := func(rules ...string) datastore.Change {
		return profile(t, "web", []string{"web"}, rules, []string{"allow"})
	}
	want := map[string]uint64{}
	expect := func(when, name string) {
		t.Helper()
		got := l.counted(x, name)
		for rule, n := range got {
			if n != want[rule] {
				t.Errorf("%s: %q has counted %d packets, want %d", when, rule, n, want[rule])
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", when, got, want)
		}
	}
	send := func(rule string, times int, p acl.Packet) {
		for range times {
			l.check([]probe{{"c", l.uniquePort(p)}})
			want[rule]++
		}
	}
	const deny, open, log = "deny udp to ports 54", "allow from tag db", "log udp to ports 53,54"
	apply(web(log, deny, open))
	want[log], want[deny], want[open] = 0, 0, 0
	send(deny, 3, udp("10.0.0.3", "10.0.0.1", 54))
	send(open, 2, udp("fd00::3", "fd00::1", 7))
	send(open, 1, udp("10.0.0.3", "10.0.0.1", 7))
	want[log] = 3
	expect("at first", "web")

	rules := []string{deny, log, open}
	for i := range 5 {
		rules = append([]string{fmt.Sprintf("allow tcp to ports %d", i+1)}, rules...)
		want[rules[0]] = 0
	}
	apply(web(rules...))
	expect("most of the chain is new", "web")
	send(deny, 1, udp("10.0.0.3", "10.0.0.1", 54))
	expect("it goes on", "web")

	chain := ""
	for name, c := range l.rules.Chains {
		for _, r := range c.Rules {
			if r.Comment == "profile web inbound: "+deny {
				chain = name
			}
		}
	}
	if l.on == onNFT {
		l.router.Run("nft", "add", "rule", "inet", acl.TableName, chain, "accept")
	} else {
		chain = regexp.MustCompile(`-A (\S+) .*` + deny).FindStringSubmatch(l.listed())[1]
		l.router.Run(l.on, "-A", chain, "-j", "ACCEPT")
	}
	l.sync()
	expect("somebody's rule was removed", "web")

	// What passes makes one chain of a tier's policies: another one with each that comes.
	clear(want)
	const pass = "pass udp to ports 9"
	want[pass], want[deny] = 0, 0
	apply(policy(t, "gate", "", 10, "all()", []string{pass, deny}, nil))
	send(pass, 2, udp("10.0.0.3", "10.0.0.1", 9))
	send(deny, 2, udp("10.0.0.3", "10.0.0.1", 54))
	expect("a policy", "gate")
	apply(policy(t, "before", "", 5, "all()", []string{"deny sctp"}, nil))
	expect("one before it", "gate")
	apply(datastore.Change{Kind: datastore.KindPolicy, Name: "before"})
	expect("without that", "gate")
	l.list()
}
