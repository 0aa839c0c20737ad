package nft

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
)

// chainOf finds the chain of the profile web's inbound rules.
func chainOf(t *testing.T, x *acl.Index) string {
	t.Helper()
	for name, c := range x.Ruleset().Chains {
		if len(c.Rules) > 0 && strings.HasPrefix(c.Rules[0].Comment, "profile web inbound: ") {
			return name
		}
	}
	t.Fatal("no chain of web")
	return ""
}

// kernelChainOf reads one chain.
func kernelChainOf(t *testing.T, table *Table, name string) *kernelChain {
	t.Helper()
	k, err := table.snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if k.chains[name] == nil {
		t.Fatalf("no chain %s", name)
	}
	return k.chains[name]
}

// numbered are n rules of which no two that follow each other make a run.
func numbered(n int) (rules []string) {
	for i := range n {
		rules = append(rules, fmt.Sprintf("allow %s to ports %d", []string{"tcp", "udp"}[i%2], 1000+i))
	}
	return rules
}

// TestAnEditCostsThatRule: in a chain of ten rules as in one of a thousand, a rule
// that comes, changes or goes leaves every other rule as it is, handle and all.
func TestAnEditCostsThatRule(t *testing.T) {
	for _, size := range []int{10, 1000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			n := newNetns(t)
			table := open(t, n)
			x := acl.NewIndex("n1", testOptions())
			x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
			rules := numbered(size)
			x.Apply(profile(t, "web", []string{"web"}, rules, nil))
			x.Flush()
			if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
				t.Fatal(err)
			}
			chain := chainOf(t, x)
			before := kernelChainOf(t, table, chain)
			for _, c := range []struct {
				what         string
				change       func([]string) []string
				gone, coming int
			}{
				{"a rule put first", func(r []string) []string { return slices.Insert(r, 0, "allow icmp") }, 0, 1},
				{"a rule put in the middle", func(r []string) []string { return slices.Insert(r, size/2, "allow tcp to ports 22") }, 0, 1},
				{"a rule put last", func(r []string) []string { return append(r, "allow udp") }, 0, 1},
				{"a rule changed", func(r []string) []string { r[3] = "allow udp to ports 53"; return r }, 1, 1},
				{"the new first rule removed", func(r []string) []string { return r[1:] }, 1, 0},
				{"the last rule removed", func(r []string) []string { return r[:len(r)-1] }, 1, 0},
			} {
				rules = c.change(slices.Clone(rules))
				x.Apply(profile(t, "web", []string{"web"}, rules, nil))
				d := x.Flush()
				if len(d.Chains) != 1 {
					t.Fatalf("%s: %d chains change", c.what, len(d.Chains))
				}
				if err := table.Apply(t.Context(), d); err != nil {
					t.Fatalf("%s: %v", c.what, err)
				}
				after := kernelChainOf(t, table, chain)
				if !sameHashes(x.Ruleset().Packed().Chains[chain].Rules, after.hashes) {
					t.Fatalf("%s: the chain is not as it should be", c.what)
				}
				gone, coming := 0, 0
				for _, h := range before.handles {
					if !slices.Contains(after.handles, h) {
						gone++
					}
				}
				for _, h := range after.handles {
					if !slices.Contains(before.handles, h) {
						coming++
					}
				}
				if gone != c.gone || coming != c.coming {
					t.Errorf("%s: %d rules went and %d came, want %d and %d", c.what, gone, coming, c.gone, c.coming)
				}
				before = after
			}
		})
	}
}

// TestEditsInAnyOrder: after hundreds of random edits, with others' hands in the
// chain now and then, the kernel's rules are those of a full compile, in order.
func TestEditsInAnyOrder(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	rng := rand.New(rand.NewPCG(7, 8))
	x := acl.NewIndex("n1", testOptions())
	x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1", "fd00::1"))
	rules := numbered(12)
	x.Apply(profile(t, "web", []string{"web"}, rules, nil))
	x.Flush()
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	chain := chainOf(t, x)
	for i := range 300 {
		for range 1 + rng.IntN(2) {
			at := rng.IntN(len(rules) + 1)
			switch {
			case rng.IntN(3) > 0 && len(rules) < 40:
				rules = slices.Insert(slices.Clone(rules), at, fmt.Sprintf("allow tcp from tag t%d to ports %d", rng.IntN(4), 1+rng.IntN(65535)))
			case len(rules) > 1 && at < len(rules):
				rules = slices.Delete(slices.Clone(rules), at, at+1)
			}
		}
		if rng.IntN(20) == 0 { // somebody else's
			n.Run("nft", "flush", "chain", "inet", "netctl", chain)
			x.Apply(profile(t, "web", []string{"web"}, rules, nil))
			if err := table.Apply(t.Context(), x.Flush()); err != nil {
				t.Fatal(err)
			}
			if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil { // as the agent's watch has it
				t.Fatal(err)
			}
			continue
		}
		x.Apply(profile(t, "web", []string{"web"}, rules, nil))
		if d := x.Flush(); !d.Empty() {
			if err := table.Apply(t.Context(), d); err != nil {
				t.Fatal(err)
			}
		}
		if i%10 == 0 {
			if have := kernelChainOf(t, table, chain); !sameHashes(x.Ruleset().Packed().Chains[chain].Rules, have.hashes) {
				t.Fatalf("after %d edits the chain is not as it should be", i)
			}
		}
	}
}

// TestHandlesOfARepairedTable: a Sync that fills chains anew does not leave their old
// handles behind, which the kernel would refuse an edit by.
func TestHandlesOfARepairedTable(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
	rules := numbered(20)
	sync := func() {
		t.Helper()
		x.Apply(profile(t, "web", []string{"web"}, rules, nil))
		x.Flush()
		if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	for i, damage := range []string{
		"flush chain inet netctl raw_pre; flush chain inet netctl wl_host; delete set inet netctl host_sctp; add set inet netctl host_sctp { type ipv6_addr; }", // everything is made anew
		"flush chain inet netctl " + chainOf(t, x),
		"delete table inet netctl",
	} {
		if out, err := n.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		sync()
		chain := chainOf(t, x)
		before := kernelChainOf(t, table, chain).handles
		rules = slices.Insert(rules, i, "deny icmp")
		x.Apply(profile(t, "web", []string{"web"}, rules, nil))
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			t.Fatal(err)
		}
		after := kernelChainOf(t, table, chain)
		if !sameHashes(x.Ruleset().Packed().Chains[chain].Rules, after.hashes) {
			t.Errorf("%s: the chain is not as it should be", damage)
		}
		if kept := slices.Delete(slices.Clone(after.handles), i, i+1); !slices.Equal(kept, before) {
			t.Errorf("%s: the rules were %d, and without the new one they are %d", damage, before, kept)
		}
	}
}

// BenchmarkEdit is one rule more in a chain of so many.
func BenchmarkEdit(b *testing.B) {
	for _, size := range []int{10, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			n := newNetns(b)
			table := open(b, n)
			t := &testing.T{}
			x := acl.NewIndex("n1", testOptions())
			x.Apply(endpoint("n1", "e1", "nc1", []string{"web"}, "10.0.0.1"))
			one, two := profile(t, "web", []string{"web"}, numbered(size), nil), profile(t, "web", []string{"web"}, slices.Insert(numbered(size), 0, "deny icmp"), nil)
			x.Apply(one)
			x.Flush()
			if _, err := table.Sync(b.Context(), x.Ruleset()); err != nil {
				b.Fatal(err)
			}
			for i := 0; b.Loop(); i++ {
				if i%2 == 0 {
					x.Apply(two)
				} else {
					x.Apply(one)
				}
				if err := table.Apply(b.Context(), x.Flush()); err != nil {
					b.Fatal(err)
				}
			}
			var usage unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Duration(usage.Utime.Nano()+usage.Stime.Nano()).Milliseconds()), "ms-cpu-total")
		})
	}
}
