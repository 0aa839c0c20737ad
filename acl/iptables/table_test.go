package iptables

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

func openTable(t *testing.T, n *netns, mode Mode) *Table {
	t.Helper()
	var table *Table
	n.Do(func() {
		var err error
		if table, err = Open(slog.New(slog.DiscardHandler), mode, "nc"); err != nil {
			t.Error(err)
		}
	})
	if table == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

// TestSync: what is written is read back as the same, also by another process; what somebody
// did is put right, and of all that nothing is left behind.
func TestSync(t *testing.T) {
	for _, mode := range []Mode{Legacy, NFT} {
		n := newNetns(t)
		binary := "iptables-" + string(mode)
		n.Run(binary, "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
		want := compiled(t, profile(t, "web", "allow tcp from tag web to ports 80:90,443", "allow from cidr 0.0.0.0/0", "reject"), endpoint(1, "nc01", "web"))
		sync := func(table *Table, wrote bool) {
			t.Helper()
			if got, err := table.Sync(t.Context(), want); got != wrote || err != nil {
				t.Errorf("%s: wrote %v, %v", mode, got, err)
			}
		}
		first, other := openTable(t, n, mode), openTable(t, n, mode)
		sync(first, true)
		sync(first, false)
		sync(other, false)
		for _, damage := range []string{
			binary + " -F", binary + " -I FORWARD -j ACCEPT; " + binary + " -D FORWARD 1; " + binary + " -D FORWARD 1", "ip6tables-" + string(mode) + " -t raw -F", "ipset flush", "ipset create nctl-left hash:ip",
			"ipset add nctl-src4 10.9.9.9,nc02", binary + " -N nctl-left", binary + " -I nctl-fwd_from -j RETURN",
		} {
			n.Run("sh", "-c", damage)
			sync(first, true)
			sync(other, false)
		}
		if rules := n.Run(binary, "-S", "FORWARD"); !strings.HasPrefix(strings.SplitN(rules, "\n", 3)[1], "-A FORWARD "+hookRule("FORWARD")) {
			t.Errorf("FORWARD: %s", rules)
		}
		if err := first.Delete(t.Context()); err != nil {
			t.Error(err)
		}
		if count, err := first.Objects(t.Context()); count != 0 || err != nil {
			t.Errorf("%s: %d objects are left, %v", mode, count, err)
		}
		if text := n.Run("sh", "-c", binary+"-save; ip6tables-"+string(mode)+"-save; ipset list -n"); strings.Contains(text, chainPrefix) || strings.Contains(text, "netctl:") {
			t.Errorf("%s: left\n%s", mode, text)
		}
		if rules := n.Run(binary, "-S", "FORWARD"); mode == NFT && strings.Contains(rules, "192.0.2.1") {
			t.Errorf("flushed rules are back: %s", rules)
		}
	}
}

// TestRefused: a chain that the kernel does not take is closed and named, and all else is there.
func TestRefused(t *testing.T) {
	for _, mode := range []Mode{Legacy, NFT} {
		n := newNetns(t)
		table := openTable(t, n, mode)
		want := compiled(t, profile(t, "web", "allow tcp"), profile(t, "db", "allow udp"), endpoint(1, "nc01", "web"), endpoint(2, "nc02", "db"))
		bad := ""
		for name, c := range want.Chains {
			if len(c.Rules) > 0 && c.Rules[0].Comment == "profile web inbound: allow tcp" {
				c.Rules[0].Match = append(c.Rules[0].Match, acl.Term{Field: acl.OutLink, Text: "a-name-that-is-too-long"})
				bad = name
			}
		}
		_, err := table.Sync(t.Context(), want)
		var refused *acl.RefusedError
		if !errors.As(err, &refused) || len(refused.Refusals) != 2 || refused.Refusals[0].Name != bad {
			t.Fatalf("%s: %v, want %s of both families refused", mode, err, bad)
		}
		text := n.Run("iptables-" + string(mode) + "-save")
		if !strings.Contains(text, `--comment "refused by the kernel" -j DROP`) || !strings.Contains(text, `"profile db inbound: allow udp" -j RETURN`) || strings.Contains(text, probeChain) {
			t.Errorf("%s:\n%s", mode, text)
		}
	}
}

// TestTooManyTiers: nftables follows a packet through so many chains; with more tiers that pass
// it ends there, that is said, and everything else is written.
func TestTooManyTiers(t *testing.T) {
	for _, c := range []struct {
		mode  Mode
		tiers int
		deep  bool
	}{{NFT, 9, false}, {NFT, 10, true}, {NFT, 20, true}, {Legacy, 20, false}} {
		t.Run(fmt.Sprintf("%s %d", c.mode, c.tiers), func(t *testing.T) {
			n := newNetns(t)
			table := openTable(t, n, c.mode)
			pass, err := datastore.ParseRule("pass tcp to ports 80")
			if err != nil {
				t.Fatal(err)
			}
			changes := []datastore.Change{profile(t, "web", "allow tcp"), endpoint(1, "nc01", "web")}
			for i := range c.tiers {
				name := fmt.Sprintf("t%02d", i)
				changes = append(changes,
					datastore.Change{Kind: datastore.KindTier, Name: name, New: &datastore.Tier{Metadata: datastore.Metadata{Name: name}, Spec: datastore.TierSpec{Order: &i}}},
					datastore.Change{Kind: datastore.KindPolicy, Name: name, New: &datastore.Policy{Metadata: datastore.Metadata{Name: name},
						Spec: datastore.PolicySpec{Tier: name, Selector: "all()", Types: []datastore.PolicyType{datastore.Ingress}, Ingress: []datastore.Rule{pass}}}})
			}
			_, err = table.Sync(t.Context(), compiled(t, changes...))
			var refused *acl.RefusedError
			if is := errors.As(err, &refused); is != c.deep || !is && err != nil || is && !errors.Is(refused.Refusals[0].Err, errDeep) {
				t.Errorf("%v", err)
			}
			text := n.Run("iptables-" + string(c.mode) + "-save")
			if strings.Contains(text, errDeep.Error()) != c.deep || strings.Contains(text, probeChain) || strings.Contains(text, "shut for a moment") || !strings.Contains(text, "profile web inbound: allow tcp") && !c.deep {
				t.Errorf("%s", text)
			}
		})
	}
}
