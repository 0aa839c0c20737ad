package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(s string) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range strings.Fields(s) {
		out = append(out, prefix(f))
	}
	return out
}

func via(p, addr, link string) Route {
	h := NextHop{Link: link}
	if addr != "" {
		h.Addr = netip.MustParseAddr(addr)
	}
	return Route{Prefix: prefix(p), NextHops: []NextHop{h}}
}

func blackhole(p string) Route { return Route{Prefix: prefix(p), Type: Blackhole} }

// TestDiff applies the difference of random tables and expects the wanted one.
func TestDiff(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	table := func() []Route {
		var out []Route
		for i := range 12 {
			p := fmt.Sprintf("10.0.%d.0/24", i)
			switch r.IntN(5) {
			case 0:
				out = append(out, blackhole(p))
			case 1:
				out = append(out, via(p, "192.0.2.1", "eth0"))
			case 2:
				two := via(p, "192.0.2.1", "eth0")
				two.NextHops = append(two.NextHops, NextHop{Addr: netip.MustParseAddr("192.0.2.2"), Link: "eth1"})
				if r.IntN(2) == 0 {
					slices.Reverse(two.NextHops)
				}
				out = append(out, two)
			case 3:
				m := via(p, "192.0.2.1", "eth0")
				m.Metric = 9
				out = append(out, m)
			}
		}
		return out
	}
	for range 2000 {
		want, have := table(), table()
		kernel := map[Key]Route{}
		for _, x := range have {
			kernel[x.Key()] = x
		}
		c := Diff(want, have)
		for _, x := range c.Delete {
			if _, ok := kernel[x.Key()]; !ok {
				t.Fatalf("deletes %v, which is not there", x)
			}
			delete(kernel, x.Key())
		}
		for _, x := range c.Put {
			if old, ok := kernel[x.Key()]; ok && old.Equal(x) {
				t.Fatalf("writes %v, which is there", x)
			}
			kernel[x.Key()] = x
		}
		if len(kernel) != len(want) {
			t.Fatalf("have %v, want %v", kernel, want)
		}
		for _, x := range want {
			if !kernel[x.Key()].Equal(x) {
				t.Fatalf("have %v, want %v", kernel[x.Key()], x)
			}
		}
	}
}

func TestExports(t *testing.T) {
	pools := prefixes("10.0.0.0/26 192.168.0.0/16 fd80:24e2:f998:72d6::/64")
	kernel := []Route{
		blackhole("192.168.32.192/26"),
		blackhole("10.0.0.0/26"),
		blackhole("fd80:24e2:f998:72d6::/122"),
		blackhole("172.16.0.0/26"),                     // outside every pool
		blackhole("192.0.0.0/8"),                       // holds a pool
		via("10.0.0.48/32", "", "nc0123456789a"),       // in a block of ours
		via("192.168.115.200/32", "", "nc0123456789a"), // borrowed
		via("192.168.115.201/32", "", "eth1"),          // not an endpoint
		via("192.168.115.202/32", "10.9.0.2", "eth1"),
		via("192.168.116.0/26", "192.168.115.200", "nc0123456789a"), // behind an endpoint
		via("10.0.0.0/27", "10.0.0.48", "nc0123456789a"),            // in a block of ours
		via("192.168.32.0/24", "10.0.0.48", "nc0123456789a"),        // holds one
		via("192.168.117.0/26", "192.168.99.7", "eth1"),
		via("fd80:24e2:f998:72d6::5/128", "", "nc0123456789b"),
		via("fd80:24e2:f998:72d6::1:5/128", "", "nc0123456789b"),
		via("169.254.1.1/32", "", "lo"),
		via("192.168.32.5/32", "", "lo"),
	}
	got := Exports(kernel, pools, ours)
	want := prefixes("10.0.0.0/26 192.168.32.0/24 192.168.32.192/26 192.168.115.200/32 192.168.116.0/26 fd80:24e2:f998:72d6::/122 fd80:24e2:f998:72d6::1:5/128")
	if !slices.Equal(got, want) {
		t.Errorf("exports %v, want %v", got, want)
	}
	if got := Exports(kernel, nil, ours); len(got) > 0 {
		t.Errorf("without a pool it exports %v", got)
	}
}

func TestGuard(t *testing.T) {
	g := &Guard{
		Pools:     []Pool{{CIDR: prefix("10.0.0.0/26"), BlockSize: 26}, {CIDR: prefix("192.168.0.0/16"), BlockSize: 26}, {CIDR: prefix("fd80::/64"), BlockSize: 122}},
		Subnets:   prefixes("192.168.99.0/24 172.18.0.0/16"),
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.99.103"), netip.MustParseAddr("192.168.200.7"), netip.MustParseAddr("fd80::7")},
	}
	for p, want := range map[string]string{
		"192.168.115.192/26": "",
		"192.168.115.200/32": "",
		"192.168.115.192/27": "",
		"10.0.0.0/26":        "",
		"fd80::40/122":       "",
		"0.0.0.0/0":          "a default route",
		"::/0":               "a default route",
		"172.20.0.0/26":      "outside every pool",
		"10.0.0.0/25":        "outside every pool",
		"192.168.0.0/16":     "shorter than the /26 blocks of pool 192.168.0.0/16",
		"192.168.115.0/25":   "shorter than the /26 blocks of pool 192.168.0.0/16",
		"192.168.99.0/26":    "overlaps the connected subnet 192.168.99.0/24",
		"192.168.99.7/32":    "overlaps the connected subnet 192.168.99.0/24",
		"192.168.200.0/26":   "holds the address 192.168.200.7 of a node",
		"192.168.200.7/32":   "holds the address 192.168.200.7 of a node",
		"fd80::/122":         "holds the address fd80::7 of a node",
		"fd80::/64":          "shorter than the /122 blocks of pool fd80::/64",
	} {
		if ok, reason := g.Check(prefix(p)); ok != (want == "") || reason != want {
			t.Errorf("%s: %v %q, want %q", p, ok, reason, want)
		}
	}
	g.Own = []netip.Addr{netip.MustParseAddr("172.30.0.1")}
	for p, want := range map[string]string{
		"0.0.0.0/0":          "",
		"::/0":               "",
		"172.20.0.0/26":      "",
		"10.0.0.0/8":         "", // covers a pool
		"172.18.0.0/15":      "", // covers a subnet
		"172.30.0.0/24":      "",
		"172.30.0.1/32":      "this node's own address",
		"172.18.0.0/16":      "inside the connected subnet 172.18.0.0/16",
		"172.18.7.0/24":      "inside the connected subnet 172.18.0.0/16",
		"192.168.115.192/26": "inside pool 192.168.0.0/16",
		"192.168.0.0/16":     "inside pool 192.168.0.0/16",
		"192.168.99.7/32":    "inside pool 192.168.0.0/16",
		"fd80::/64":          "inside pool fd80::/64",
		"fd80::/48":          "",
		"127.0.0.1/32":       "inside 127.0.0.0/8, which is not routed",
		"240.0.0.0/8":        "inside 224.0.0.0/3, which is not routed",
		"fe80::/64":          "inside fe80::/10, which is not routed",
	} {
		if ok, reason := g.CheckAs(Accept{Default: true, Foreign: true}, prefix(p)); ok != (want == "") || reason != want {
			t.Errorf("foreign %s: %v %q, want %q", p, ok, reason, want)
		}
	}
	apart := *g
	apart.Apart = true
	for p, want := range map[string]string{"0.0.0.0/0": "", "172.30.0.0/24": "", "172.18.0.0/15": "holds the connected subnet 172.18.0.0/16, which a route in a table of its own would go before"} {
		if ok, reason := apart.CheckAs(Accept{Default: true, Foreign: true}, prefix(p)); ok != (want == "") || reason != want {
			t.Errorf("in a table of its own, foreign %s: %v %q, want %q", p, ok, reason, want)
		}
	}
	for p, want := range map[string]string{ // default, foreign and blocks by themselves
		"0.0.0.0/0":          "true false false",
		"172.20.0.0/26":      "false true false",
		"192.168.115.192/26": "false false true",
		"192.168.115.0/25":   "false false false",
	} {
		var got []string
		for _, a := range []Accept{{Default: true}, {Foreign: true}, {Blocks: true}} {
			ok, _ := g.CheckAs(a, prefix(p))
			got = append(got, fmt.Sprint(ok))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
	for a, want := range map[string]string{
		"172.20.0.1":     "",
		"192.168.99.7":   "", // in a pool that holds the nodes' subnet
		"192.168.200.7":  "",
		"fd80::7":        "",
		"192.168.115.1":  "its next hop 192.168.115.1 is inside pool 192.168.0.0/16",
		"fd80::8":        "its next hop fd80::8 is inside pool fd80::/64",
		"10.0.0.5":       "its next hop 10.0.0.5 is inside pool 10.0.0.0/26",
		"fe80::1":        "",
		"192.168.200.70": "its next hop 192.168.200.70 is inside pool 192.168.0.0/16",
	} {
		if ok, reason := g.CheckNextHop(netip.MustParseAddr(a)); ok != (want == "") || reason != want {
			t.Errorf("%s: %v %q, want %q", a, ok, reason, want)
		}
	}
	if ok, _ := new(Guard).Check(prefix("10.0.0.0/26")); ok {
		t.Error("the zero guard believes")
	}
}

func node(name string, as uint32, addrs ...string) *datastore.Node {
	n := &datastore.Node{Metadata: datastore.Metadata{Name: name}}
	n.Spec.AS = as
	for _, a := range addrs {
		n.Spec.Addresses = append(n.Spec.Addresses, prefix(a))
	}
	return n
}

// TestMesh plans every node's mesh and prints it; both ends of a session must
// agree on its addresses.
func TestMesh(t *testing.T) {
	nodes := []*datastore.Node{
		node("both1", 0, "fd00:99::1/64", "192.168.99.1/24"),
		node("both2", 65001, "192.168.99.2/24", "fd00:99::2/64"),
		node("four", 0, "192.168.99.4/24"),
		node("none", 0),
		node("six", 0, "fd00:99::6/64"),
	}
	bgp := &datastore.BGPConfig{}
	bgp.SetDefaults()
	pool := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: prefix("10.0.0.0/16"), BlockSize: 26}}
	var out []string
	ends := map[string]bool{}
	for _, n := range nodes {
		p := Mesh(n.Metadata.Name, nodes, []*datastore.Pool{pool}, bgp)
		out = append(out, fmt.Sprintf("%s: %v %d %s", n.Metadata.Name, p.Addresses, p.AS, p.ASSource()))
		for _, peer := range p.Peers {
			out = append(out, fmt.Sprintf("  %s as %d: %s-%s aliases %v next hops %v", peer.Name, peer.AS, peer.Local, peer.Address, peer.Aliases, peer.NextHops))
			ends[peer.Local.String()+" "+peer.Address.String()] = true
		}
		out = append(out, p.Problems...)
		if len(p.Addresses) > 0 && !p.RouterID.Is4() {
			t.Errorf("%s: router ID %v", n.Metadata.Name, p.RouterID)
		}
	}
	want := `both1: [192.168.99.1 fd00:99::1] 64511 inherited
  both2 as 65001: 192.168.99.1-192.168.99.2 aliases [fd00:99::2] next hops [192.168.99.1 fd00:99::1]
  four as 64511: 192.168.99.1-192.168.99.4 aliases [] next hops [192.168.99.1]
  six as 64511: fd00:99::1-fd00:99::6 aliases [] next hops [fd00:99::1]
both2: [192.168.99.2 fd00:99::2] 65001 node
  both1 as 64511: 192.168.99.2-192.168.99.1 aliases [fd00:99::1] next hops [192.168.99.2 fd00:99::2]
  four as 64511: 192.168.99.2-192.168.99.4 aliases [] next hops [192.168.99.2]
  six as 64511: fd00:99::2-fd00:99::6 aliases [] next hops [fd00:99::2]
four: [192.168.99.4] 64511 inherited
  both1 as 64511: 192.168.99.4-192.168.99.1 aliases [fd00:99::1] next hops [192.168.99.4]
  both2 as 65001: 192.168.99.4-192.168.99.2 aliases [fd00:99::2] next hops [192.168.99.4]
node six shares no address family with this node
none: [] 64511 inherited
node none has no address: set agent.addresses or agent.interface
six: [fd00:99::6] 64511 inherited
  both1 as 64511: fd00:99::6-fd00:99::1 aliases [192.168.99.1] next hops [fd00:99::6]
  both2 as 65001: fd00:99::6-fd00:99::2 aliases [192.168.99.2] next hops [fd00:99::6]
node four shares no address family with this node`
	if got := strings.Join(out, "\n"); got != want {
		t.Errorf("planned\n%s\nwant\n%s", got, want)
	}
	for e := range ends {
		a, b, _ := strings.Cut(e, " ")
		if !ends[b+" "+a] {
			t.Errorf("session %s has one end", e)
		}
	}
	*bgp.Spec.Mesh = false
	if p := Mesh("both1", nodes, nil, bgp); len(p.Peers) > 0 || !p.RouterID.IsValid() {
		t.Errorf("without a mesh: %+v", p)
	}
	twice := append(slices.Clone(nodes), node("twice", 0, "192.168.99.4/24"), node("me", 0, "192.168.99.1/24"))
	*bgp.Spec.Mesh = true
	p := Mesh("both1", twice, nil, bgp)
	if got, want := strings.Join(p.Problems, "\n"), "nodes four and twice have the same address 192.168.99.4: change one of them\nnode me has this node's address 192.168.99.1: change one of them"; got != want {
		t.Errorf("problems %q, want %q", got, want)
	}
	if p := Mesh("stranger", nodes, nil, bgp); len(p.Peers) > 0 || len(p.Problems) != 1 {
		t.Errorf("a stranger's plan: %+v", p)
	}
}

func TestProtocols(t *testing.T) {
	for _, c := range []struct {
		agent, speaker int
		want           string
	}{
		{87, 88, ""}, {87, 12, ""},
		{87, 87, "route protocol 87: agent and speaker need different numbers"},
		{2, 88, "route protocol 2: not between 5 and 255 (0 to 4 are the kernel's own)"},
		{87, 256, "route protocol 256: not between 5 and 255 (0 to 4 are the kernel's own)"},
	} {
		got := ""
		if err := CheckProtocols(c.agent, c.speaker); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%d and %d: %q, want %q", c.agent, c.speaker, got, c.want)
		}
	}
}

// TestRouterIDOfAName: it might be a host's address.
func TestRouterIDOfAName(t *testing.T) {
	seen := map[netip.Addr]bool{}
	for i := range 5000 {
		id := routerID(fmt.Sprint("node", i), []netip.Addr{netip.MustParseAddr("fd00::1")})
		if first := id.As4()[0]; first == 0 || first == 127 || first >= 224 {
			t.Errorf("node%d: %s", i, id)
		}
		seen[id] = true
	}
	if len(seen) != 5000 {
		t.Errorf("%d router IDs of 5000 names", len(seen))
	}
	if id := routerID("node20", []netip.Addr{netip.MustParseAddr("fd00::1")}); id.String() != "174.17.4.167" {
		t.Errorf("node20: %s", id)
	}
}
