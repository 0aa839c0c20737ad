package commands

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
)

// viewOf is a view of manifests in JSON.
func viewOf(t *testing.T, lines ...string) *datastore.View {
	t.Helper()
	view := datastore.NewView()
	for _, line := range lines {
		o, err := datastore.DecodeManifest([]byte(line))
		if err == nil {
			err = overlay(view, o)
		}
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
	}
	return view
}

// endpointLine is the manifest of an endpoint of node1.
func endpointLine(workload, addr, labels, profiles string) string {
	name := "node1/cni/" + workload + "/eth0"
	return fmt.Sprintf(`{"apiVersion": "netctl/v1", "kind": "Endpoint", "metadata": {"name": %q, "labels": {%s}}, "spec": {"node": "node1", "orchestrator": "cni", "workload": %q, "interface": "eth0", "link": %q, "addresses": [%q], "profiles": [%s]}}`,
		name, labels, workload, datastore.LinkName("nc", name), addr, profiles)
}

func objectLine(kind, name, labels, spec string) string {
	return fmt.Sprintf(`{"apiVersion": "netctl/v1", "kind": %q, "metadata": {"name": %q, "labels": {%s}}, "spec": {%s}}`, kind, name, labels, spec)
}

// TestSuggest: what is suggested would allow what was dropped, and nothing else.
func TestSuggest(t *testing.T) {
	world := []string{
		objectLine("Profile", "web", "", `"tags": ["web"], "inbound": ["allow from tag web"], "outbound": ["deny tcp to ports 25", "allow"]`),
		objectLine("Profile", "db", "", `"tags": [], "labels": {"store": "yes"}, "inbound": [], "outbound": []`),
		objectLine("NetworkSet", "office", "", `"cidrs": ["192.0.2.0/24"]`),
		objectLine("NetworkSet", "all", "", `"cidrs": ["0.0.0.0/0"]`),
		endpointLine("w1", "10.0.0.1", `"role": "web", "docker.name": "w1"`, `"web"`),
		endpointLine("w2", "10.0.0.2", `"role": "web", "docker.name": "w2"`, `"web"`),
		endpointLine("d1", "10.0.0.3", `"docker.name": "d1"`, `"db"`),
		endpointLine("bare", "10.0.0.4", "", `"web"`),
	}
	tiers := []string{
		objectLine("Tier", "first", "", `"order": 1`),
		objectLine("Policy", "lock", "", `"tier": "first", "order": 5, "selector": "role == 'web'", "ingress": ["deny from set office", "allow udp"]`),
		objectLine("Policy", "gate", "", `"selector": "has(store)", "ingress": ["pass tcp to ports 1"]`),
	}
	type packet struct {
		direction, src, dst, protocol string
		port                          uint16
	}
	in := func(src, dst string, port uint16) packet { return packet{inbound, src, dst, "tcp", port} }
	for _, c := range []struct {
		what    string
		world   []string
		labels  []string
		packets []packet
		want    []string // policies as text
		warns   string
	}{
		{"profiles", world, nil, []packet{in("10.0.0.1", "10.0.0.3", 80), in("10.0.0.2", "10.0.0.3", 443), in("10.0.0.2", "10.0.0.3", 80), in("198.51.100.1", "10.0.0.3", 80),
			{inbound, "10.0.0.2", "10.0.0.3", "icmp type 8", 0}, {outbound, "10.0.0.3", "10.0.0.1", "udp", 53}},
			[]string{"suggested-yes default none store == 'yes': allow icmp type 8 from tag web, allow tcp from cidr 198.51.100.1/32 to ports 80, allow tcp from tag web to ports 80,443, pass; allow udp to tag web ports 53, pass"}, ""},
		{"a rule that denies", world, nil, []packet{{outbound, "10.0.0.1", "192.0.2.7", "tcp", 25}}, []string{"suggested-web default none role == 'web': ; allow tcp to set office ports 25, pass"}, ""},
		{"by another label", world, []string{"docker.name"}, []packet{in("10.0.0.3", "10.0.0.1", 80)}, []string{"suggested-w1 default none docker.name == 'w1': allow tcp from selector \"docker.name == 'd1'\" to ports 80, pass; "}, ""},
		{"policies that stand there", append(world, tiers...), nil, []packet{in("192.0.2.1", "10.0.0.1", 80), in("198.51.100.1", "10.0.0.1", 81), in("10.0.0.1", "10.0.0.3", 5432), in("10.0.0.1", "10.0.0.3", 1)},
			[]string{"suggested-web first 4 role == 'web': allow tcp from set office to ports 80; ", "suggested-web-2 first none role == 'web': allow tcp from cidr 198.51.100.1/32 to ports 81; ",
				"suggested-yes default 1 store == 'yes': allow tcp from tag web to ports 1; ", "suggested-yes-2 default none store == 'yes': allow tcp from tag web to ports 5432; "}, ""},
		{"no label", world, nil, []packet{in("192.0.2.1", "10.0.0.4", 80)}, nil, "endpoint node1/cni/bare/eth0 has no label that a policy can pick it by: `netctl profile web rule add inbound allow tcp from set office to ports 80` would allow it"},
		{"allowed meanwhile", world, nil, []packet{in("10.0.0.1", "10.0.0.2", 80)}, nil, ""},
		{"nobody's", world, nil, []packet{in("10.0.0.1", "10.0.9.9", 80)}, nil, ""},
	} {
		view := viewOf(t, c.world...)
		x := &settings{Node: "node1"}
		x.Agent.LinkPrefix, x.Agent.Gateway = "nc", "169.254.1.1"
		var warnings []string
		s := suggester{settings: x, view: view, labels: c.labels, found: map[string]*suggestion{}, warn: func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }}
		var drops []drop
		for _, p := range c.packets {
			d := drop{Action: "denied", Direction: p.direction, Protocol: p.protocol, Count: 1}
			d.Source = dropEnd{Address: netip.MustParseAddr(p.src), Port: 40000}
			d.Destination = dropEnd{Address: netip.MustParseAddr(p.dst), Port: p.port}
			_, own, other := s.ends(d)
			if own.endpoint != nil { // as the kernel tells
				r, err := datastore.ParseRule("allow " + p.protocol)
				if err != nil {
					t.Fatal(err)
				}
				q := traffic{number: r.Protocol.Number, Protocol: p.protocol, first: p.port, last: p.port}
				e := explainer{settings: x, view: view, src: own, dst: other}
				if p.direction == inbound {
					e.src, e.dst = other, own
				}
				side, err := e.side(t.Context(), own, other, p.direction == inbound, q)
				if err != nil {
					t.Fatal(err)
				}
				d.Rule = side.By
				if _, tier, ok := strings.Cut(side.Reason, " rule of tier "); side.By == nil && ok {
					d.Tier = strings.TrimSuffix(tier, " allows it")
				}
			}
			drops = append(drops, d)
		}
		list, err := s.suggest(t.Context(), drops)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, o := range list {
			p := o.(*datastore.Policy)
			text := func(rules []datastore.Rule) string {
				var words []string
				for _, r := range rules {
					words = append(words, r.String())
				}
				return strings.Join(words, ", ")
			}
			if !p.Spec.Staged {
				t.Errorf("%s: %s is not staged", c.what, p.Metadata.Name)
			}
			got = append(got, fmt.Sprintf("%s %s %s %s: %s; %s", p.Metadata.Name, p.Spec.Tier, orderText(p.Spec.Order), p.Spec.Selector, text(p.Spec.Ingress), text(p.Spec.Egress)))
		}
		if g, w := strings.Join(got, "\n     "), strings.Join(c.want, "\n     "); g != w || strings.Join(warnings, "\n") != c.warns {
			t.Errorf("%s:\n got %s\nwant %s\nwarnings %q, want %q", c.what, g, w, warnings, c.warns)
		}
	}
}
