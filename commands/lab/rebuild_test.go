package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// everyKind is something of every kind that people write.
const everyKind = `
apiVersion: netctl/v1
kind: Config
metadata: {name: default}
spec: {mtu: 1400}
---
apiVersion: netctl/v1
kind: BGPConfig
metadata: {name: default}
spec: {defaultAS: 64600}
---
apiVersion: netctl/v1
kind: BGPFilter
metadata: {name: rack}
spec:
  import: [reject prefix 10.66.0.0/16]
---
apiVersion: netctl/v1
kind: Peer

spec: {node: node2, address: 192.168.99.250, as: 65000, filters: [rack]}
---
apiVersion: netctl/v1
kind: Pool
spec: {cidr: 10.65.0.0/24}
---
apiVersion: netctl/v1
kind: Pool
metadata: {labels: {who: storage}}
spec: {cidr: 10.66.0.0/24, blockSize: 28, disabled: true}
---
apiVersion: netctl/v1
kind: Reservation
metadata: {name: printer}
spec: {cidrs: [10.65.0.7/32]}
---
apiVersion: netctl/v1
kind: Profile
metadata: {name: lb}
spec: {tags: [lb]}
---
apiVersion: netctl/v1
kind: NetworkSet
metadata: {name: blocked}
spec: {cidrs: [192.0.2.0/24]}
---
apiVersion: netctl/v1
kind: Tier
metadata: {name: security}
spec: {order: 10, defaultAction: pass}
---
apiVersion: netctl/v1
kind: Policy
metadata: {name: gate}
spec: {tier: security, ingress: [deny from set blocked]}
`

// TestRebuild: the store is lost under running containers, and written again from what
// the nodes keep of it. No packet is lost, every address and every rule is as before, and
// nobody gets an address that another one has.
func TestRebuild(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	if _, err := n1.Exec(t.Context(), netlab.Cmd{Args: []string{"netctl", "apply", "-f", "-"}, Stdin: everyKind}); err != nil {
		t.Fatal(err)
	}
	a, a4, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	pings(t, a, b4)
	netlab.Until(t, patience, "a copy", func() string {
		out, _ := netlab.Try(t, n1, "ls", "/var/lib/netctl-node/model.backup")
		if out == "" {
			return "none"
		}
		return ""
	})
	if out, err := netlab.Try(t, n1, "netctl", "datastore", "rebuild"); err == nil || !strings.Contains(out+err.Error(), "nothing to rebuild") {
		t.Errorf("of a datastore that is well: %v %s", err, out)
	}
	// Just before the store is lost.
	netlab.Must(t, n1, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "tcp", "from", "tag", "lb", "to", "ports", "80,443")
	if out := netlab.Must(t, n2, "netctl", "history"); !strings.Contains(out, "+ spec.inbound: allow tcp from tag lb to ports 80,443") ||
		!strings.Contains(out, "agent@node1  netctl agent\n    network web created") && !strings.Contains(out, "agent@node2  netctl agent\n    network web created") || strings.Contains(out, "unknown") {
		t.Errorf("history: %s", out)
	}
	everything := func() (text string) {
		for _, kind := range []string{"configs", "bgpfilters", "bgpconfigs", "nodes", "peers", "pools", "reservations", "blocks", "networksets", "tiers", "policies", "profiles", "networks", "endpoints"} {
			text += kind + "\n" + stripRevisions(netlab.Must(t, n1, "netctl", "get", kind, "-o", "yaml"))
		}
		lines := strings.Split(text, "\n") // when an address was given is when it was written
		return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "time: ") }), "\n")
	}
	netlab.Until(t, patience, "the rule is in the kernel of both", func() string {
		for _, h := range l.Hosts {
			if out := netlab.Must(t, h, "nft", "list", "ruleset"); !strings.Contains(out, "443") {
				return h.Name
			}
		}
		return ""
	})
	before := everything()
	var floods []*netlab.Flood
	for _, way := range []struct {
		from *netlab.Container
		to   netip.Addr
	}{{a, b4}, {b, a4}} {
		f, err := netlab.StartFlood(way.from, way.to, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	loseStore(t, l, absence(t, 0))
	if out := netlab.Must(t, n2, "netctl", "datastore", "rebuild", "--dry-run"); !strings.Contains(out, "Nothing was written") {
		t.Error(out)
	}
	t.Log(netlab.Must(t, n2, "netctl", "datastore", "rebuild"))
	if after := everything(); after != before {
		was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
		for i := range min(len(was), len(is)) {
			if was[i] != is[i] {
				t.Fatalf("line %d was:\n%s\nis:\n%s", i, strings.Join(was[max(0, i-20):i+1], "\n"), is[i])
			}
		}
		t.Errorf("%d lines, %d before", len(is), len(was))
	}
	if out, err := netlab.Try(t, n1, "netctl", "ipam", "check"); err != nil || !strings.Contains(out, "nothing wrong") {
		t.Errorf("ipam check: %s %v", out, err)
	}
	taken := map[netip.Addr]bool{a4: true, b4: true}
	for i, h := range l.Hosts {
		c, x, _ := attach(t, h, fmt.Sprint("new", i), "web")
		if taken[x] {
			t.Errorf("%s was given away", x)
		}
		pings(t, c, a4)
	}
	for i, f := range floods {
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("flood %d: %s", i, r)
		}
	}
}
