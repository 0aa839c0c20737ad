package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// manifests are the YAML texts of a section of docs/routing.md.
func manifests(t *testing.T, section string) (list []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(text), "\n## "+section+"\n")
	part, _, _ = strings.Cut(part, "\n## ")
	for {
		_, rest, found := strings.Cut(part, "\n```yaml\n")
		if !found {
			return list
		}
		var one string
		one, part, _ = strings.Cut(rest, "\n```")
		list = append(list, one)
	}
}

// TestTwoClusters: the example of docs/routing.md, two nodes and one that is a cluster of
// its own. Containers of both reach each other, and neither believes the other what is
// not its own.
func TestTwoClusters(t *testing.T) {
	example := manifests(t, "Two clusters")
	if len(example) != 2 {
		t.Fatalf("docs/routing.md has %d manifests", len(example))
	}
	l := netlab.ForTest(t, netlab.Options{Nodes: 3, Binary: netlab.Binary(t)})
	if err := certificates(l); err != nil {
		t.Fatal(err)
	}
	east, west := l.Hosts[:2], l.Hosts[2]
	for _, h := range l.Hosts {
		config := nodeConfig(l, h, "")
		if h == west {
			config = fmt.Sprintf("node: %s\nroles: [datastore, agent, speaker]\nagent: {addresses: [%s]}\n", h.Name, h.Addr.Addr())
		}
		if err := os.WriteFile(h.Path("/etc/netctl.yaml"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := StartNode(h); err != nil {
			t.Fatal(err)
		}
	}
	sound := func(peers map[*netlab.Host]int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for h, n := range peers {
			if err := healthy(ctx, h, n, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	sound(map[*netlab.Host]int{east[0]: 1, east[1]: 1, west: 0})
	apply := func(h *netlab.Host, text string) {
		t.Helper()
		out, err := h.Exec(t.Context(), netlab.Cmd{Args: []string{"netctl", "apply", "-f", "-"}, Stdin: text})
		if err != nil {
			t.Fatalf("%s: %s%v", h.Name, out, err)
		}
	}
	apply(east[0], example[0])
	apply(west, example[1])
	netlab.Must(t, east[0], "netctl", "pool", "add", "10.65.0.0/16")
	netlab.Must(t, west, "netctl", "pool", "add", "10.66.0.0/16")
	a, a4, _ := attach(t, east[0], "a", "web")
	b, b4, _ := attach(t, east[1], "b", "web")
	w, w4, _ := attach(t, west, "w", "web")
	netlab.Must(t, east[0], "netctl", "profile", "web", "rule", "add", "inbound", "allow", "from", "cidr", "10.66.0.0/16")
	netlab.Must(t, west, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "from", "cidr", "10.65.0.0/16")
	for _, to := range []netip.Addr{a4, b4} {
		pings(t, w, to)
	}
	for _, from := range []*netlab.Container{a, b} {
		pings(t, from, w4)
	}
	pings(t, a, b4)
	sound(map[*netlab.Host]int{east[0]: 1, east[1]: 1, west: 0})

	// West has one node of east, which tells all of its cluster.
	few := "  nodeSelector: border == 'yes'\n  announce: all\n  nextHop: unchanged\n"
	netlab.Must(t, east[0], "netctl", "node", east[0].Name, "set", "labels", "border=yes")
	apply(east[0], example[0]+"\n"+few)
	netlab.Must(t, west, "netctl", "bgp", "peer", "remove", "192.168.99.103")
	netlab.Until(t, patience, "east's other block by one session", func() string {
		routes, _ := netlab.Try(t, west, "netctl", "bgp", "routes", b4.String(), "-o", "json")
		out, _ := netlab.Try(t, west, "ip", "route", "get", b4.String())
		if strings.Count(routes, `"peer": "192.168.99.102"`) != 1 || strings.Contains(routes, `"peer": "192.168.99.103"`) || !strings.Contains(out, "via 192.168.99.103 ") {
			return routes + out
		}
		return ""
	})
	apply(east[0], example[0])
	apply(west, example[1])
	sound(map[*netlab.Host]int{east[0]: 1, east[1]: 1, west: 0})

	// West, whose filter is gone, gives out addresses of a third pool, and of east's, one of
	// them that of a container there.
	flood, err := netlab.StartFlood(a, b4, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, west, "netctl", "pool", "add", netip.PrefixFrom(b4, 24).Masked().String(), "10.67.0.0/24")
	netlab.Attached(t, west, "other", "web", "IP=10.67.0.1")
	netlab.Attached(t, west, "thief", "web", "IP="+b4.String())
	apply(west, "{apiVersion: netctl/v1, kind: BGPFilter, metadata: {name: east}, spec: {importDefault: accept, exportDefault: accept}}")
	for _, h := range east {
		netlab.Until(t, patience, "what is not west's is refused", func() string {
			out, _ := netlab.Try(t, h, "netctl", "bgp", "routes", "--rejected")
			if !strings.Contains(out, netip.PrefixFrom(b4, 26).Masked().String()) || !strings.Contains(out, "10.67.0.0/26") {
				return out
			}
			return ""
		})
	}
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("in east: %s", r)
	}
	goes(t, east[0], "eth1", b4)
	if out := netlab.Must(t, east[0], "ip", "route", "get", b4.String()); !strings.Contains(out, "via 192.168.99.103 ") {
		t.Errorf("east's way to its own container: %s", out)
	}
}
