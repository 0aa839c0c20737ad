package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

const testGroup = 77

// compiled is what the changes of a store come to.
func compiled(t *testing.T, changes ...datastore.Change) *acl.Ruleset {
	t.Helper()
	x := acl.NewIndex("n1", acl.Options{LinkPrefix: "nc", Group: testGroup, Gateways: []netip.Addr{netip.MustParseAddr("169.254.1.1")}})
	for _, c := range changes {
		x.Apply(c)
	}
	x.Flush()
	return x.Ruleset()
}

func profile(t *testing.T, name string, inbound ...string) datastore.Change {
	t.Helper()
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
	p.Spec.Tags = []string{name}
	for _, text := range inbound {
		r, err := datastore.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Spec.Inbound = append(p.Spec.Inbound, r)
	}
	p.Spec.Outbound = []datastore.Rule{{Action: datastore.Allow}}
	return datastore.Change{Kind: datastore.KindProfile, Name: name, New: p}
}

func endpoint(n int, link string, profiles ...string) datastore.Change {
	name := fmt.Sprintf("n1/cni/%d/eth0", n)
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}}
	e.Spec = datastore.EndpointSpec{Node: "n1", Orchestrator: "cni", Workload: fmt.Sprint(n), Interface: "eth0", Link: link, Profiles: profiles,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, byte(n >> 8), byte(n)})}}
	return datastore.Change{Kind: datastore.KindEndpoint, Name: name, New: e}
}

// all is a table as iptables-restore takes it.
func all(tables map[place]*rendered, p place) string {
	var b strings.Builder
	for _, name := range sortedKeys(tables[p].chains) {
		for _, l := range tables[p].chains[name] {
			fmt.Fprintf(&b, "-A %s %s\n", name, l.text)
		}
	}
	return b.String()
}

// TestRender: a base chain is left by RETURN, from wherever, and gone on in by goto alone; no
// name is too long, and every chain that is named is there.
func TestRender(t *testing.T) {
	tables := render(compiled(t, profile(t, "web", "allow tcp from tag web to ports 80,443", "deny udp", "allow icmp"), endpoint(1, "nc01", "web"), endpoint(2, "nc02", "web")), "nc", nil)
	for p, table := range tables {
		for name, lines := range table.chains {
			if len(name) > maxChain {
				t.Errorf("chain %s has %d letters", name, len(name))
			}
			for _, l := range lines {
				_, target, _ := strings.Cut(l.text, "-g ")
				if target == "" {
					_, target, _ = strings.Cut(l.text, "-j "+chainPrefix)
					if target != "" {
						target = chainPrefix + target
					}
				}
				if _, is := table.chains[target]; target != "" && !is {
					t.Errorf("%v: %s leads to %s, which is not there", p, name, target)
				}
				if strings.Contains(l.text, "-j "+chainPrefix) != slices.Contains([]string{"nctl-FORWARD", "nctl-INPUT", "nctl-OUTPUT", "nctl-PREROUTING", "nctl-POSTROUTING"}, name) && strings.Contains(l.text, "-j nctl-") {
					t.Errorf("%v: %s jumps: %s", p, name, l.text)
				}
			}
		}
	}
	text := all(tables, place{false, "filter"})
	for _, want := range []string{
		"-A nctl-FORWARD -j nctl-fwd_from\n-A nctl-FORWARD -j nctl-fwd_to\n-A nctl-FORWARD -i nc+ -m comment --comment \"judged above\" -j ACCEPT\n",
		"-A nctl-fwd_from -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n",
		"-i nc01 -g nctl-class_out_", "-o nc02 -g nctl-class_in_",
		`-m comment --comment "profile web inbound: allow tcp from tag web to ports 80,443" -j RETURN`,
		`-p udp -m comment --comment "profile web inbound: deny udp" -g nctl-deny_in_`,
		`-j NFLOG --nflog-prefix "DPI|default" --nflog-group 1`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if text6 := all(tables, place{true, "filter"}); strings.Contains(text6, "-p icmp ") || !strings.Contains(text6, "ipv6-icmp") {
		t.Errorf("ICMP of the other family in\n%s", text6)
	}
}

// TestTree: of many links each is found by few comparisons, and what is none of them goes on.
func TestTree(t *testing.T) {
	changes := []datastore.Change{profile(t, "web", "allow")}
	const links = 2000
	for i := range links {
		changes = append(changes, endpoint(i, fmt.Sprintf("nc%011x", i*7919), "web"))
	}
	table := render(compiled(t, changes...), "nc", nil)[place{false, "filter"}]
	find := func(link string) (chain string, compared int) {
		at := ""
		for name := range table.chains {
			if strings.HasPrefix(name, "nctl-from_ep.nc.") || strings.HasPrefix(name, "nctl-from_ep.nc0") && (at == "" || len(name) < len(at)) {
				at = name
			}
		}
		for {
			next := ""
			for _, l := range table.chains[at] {
				compared++
				words := strings.Fields(l.text)
				if words[0] == "-g" {
					return words[1], compared
				}
				if pattern, open := strings.CutSuffix(words[1], "+"); words[0] == "-i" && (pattern == link || open && strings.HasPrefix(link, pattern)) {
					next = words[3]
					break
				}
			}
			if at = next; !strings.HasPrefix(at, "nctl-from_ep") {
				return at, compared
			}
		}
	}
	for i := range links {
		link := fmt.Sprintf("nc%011x", i*7919)
		if chain, n := find(link); !strings.HasPrefix(chain, "nctl-class_out_") || n > 60 {
			t.Fatalf("%s: %q after %d comparisons", link, chain, n)
		}
	}
	if chain, _ := find("ncffffffffff"); !strings.HasPrefix(chain, "nctl-fwd_from") && !strings.HasPrefix(chain, "nctl-from_wl") {
		t.Errorf("an unknown link goes to %s", chain)
	}
}
