package speaker

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/storetest"
	"netctl/netdev/netlab"
)

// filteredToR is BIRD as the top of rack of two nodes. What it announces carries another
// AS, communities, and what is the nodes' own.
type filteredToR struct {
	host      *netlab.Host
	conf, ctl string
	head      string
}

func startFilteredToR(t *testing.T, h *netlab.Host, nodes []*netlab.Host) *filteredToR {
	x := &filteredToR{host: h, conf: filepath.Join(t.TempDir(), "bird.conf")}
	x.ctl = filepath.Join(filepath.Dir(x.conf), "ctl")
	var b strings.Builder
	fmt.Fprintf(&b, "router id %s;\nprotocol device { scan time 1; }\n", h.Addr.Addr())
	b.WriteString("protocol kernel k4 { ipv4 { import none; export where source = RTS_BGP; }; }\n")
	for i, n := range nodes {
		fmt.Fprintf(&b, `protocol bgp peer%d {
  local %s as 65001; neighbor %s as 64511;
  hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  ipv4 { import all; next hop self; export filter {
    if source != RTS_STATIC then reject;
    if net = 172.16.1.0/24 then bgp_path.prepend(65010);
    if net ~ [172.16.2.0/24, 172.17.0.0/16] then bgp_community.add((65001, 1));
    accept;
  }; };
}
`, i, h.Addr.Addr(), n.Addr.Addr())
	}
	x.head = b.String()
	x.write(t, 0)
	netlab.Must(t, h, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	daemon(t, h, "bird", "/usr/sbin/bird", "-f", "-c", x.conf, "-s", x.ctl, "-P", filepath.Join(filepath.Dir(x.conf), "pid"))
	return x
}

// write is the configuration with so many routes beside the usual ones.
func (x *filteredToR) write(t *testing.T, more int) {
	var b strings.Builder
	b.WriteString(x.head + "protocol static s4 { ipv4;\n")
	for _, p := range []string{"0.0.0.0/0", "172.16.1.0/24", "172.16.2.0/24", "172.16.3.0/24", "172.17.0.0/16", "10.65.77.0/26", "10.65.0.0/17"} {
		fmt.Fprintf(&b, " route %s blackhole;\n", p)
	}
	for i := range more {
		fmt.Fprintf(&b, " route 11.%d.%d.%d/32 blackhole;\n", i>>16, i>>8&255, i&255)
	}
	b.WriteString("}\n")
	file(t, x.conf, b.String())
}

// TestFilters has filters between two nodes and BIRD as their top of rack: exact lists of
// routes both ways, filters changed and lost, aggregates, a budget, and more routes than
// anybody wants; no session ends but the one that floods.
func TestFilters(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 3})
	r.pool("10.65.0.0/16")
	hosts := r.lab.Hosts
	n1, n2 := r.node(hosts[0]), r.node(hosts[1])
	bird := startFilteredToR(t, hosts[2], hosts[:2])
	filter := &datastore.BGPFilter{Metadata: datastore.Metadata{Name: "tor"}, Spec: datastore.BGPFilterSpec{
		Import: storetest.FilterRules(t, "accept prefix 0.0.0.0/0", `accept as-path "^65001_65010$" then local-pref 200`, "reject community 65001:1", "accept prefix 172.16.0.0/12 le 24"),
		Export: storetest.FilterRules(t, "accept prefix 10.65.0.0/26 then prepend 2 and med 7 and community 64512:9"),
	}}
	r.create(filter)
	r.create(&datastore.Peer{Metadata: datastore.Metadata{Name: "tor", Labels: map[string]string{"role": "tor"}}, Spec: datastore.PeerSpec{
		Address: bird.host.Addr.Addr(), AS: 65001, Filters: []string{"tor"},
	}})
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	n2.endpoint("c2", "10.65.1.5")
	put := func(change func(*datastore.BGPFilterSpec)) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, "tor", func(f *datastore.BGPFilter) error { change(&f.Spec); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	peer := func(change func(*datastore.PeerSpec)) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, "tor", func(p *datastore.Peer) error { change(&p.Spec); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	tor, one, two := " via 192.168.99.104 dev eth1", " via 192.168.99.102 dev eth1", " via 192.168.99.103 dev eth1"
	both := func(more ...string) {
		t.Helper()
		for n, block := range map[*netctlNode]string{n1: "10.65.1.0/26" + two, n2: "10.65.0.0/26" + one} {
			want := []string{block}
			for _, p := range more {
				if !strings.HasPrefix(p, "blackhole") {
					p += tor
				}
				want = append(want, p)
			}
			r.expect(n.host, "88", want...)
		}
	}
	hears := func(want ...string) {
		t.Helper()
		for i := range want {
			want[i] += " metric 32"
		}
		r.expect(bird.host, "bird", want...)
	}
	carries := func(prefix string, words ...string) {
		t.Helper()
		netlab.Until(t, 20*time.Second, "BIRD is told "+prefix+" with these attributes", func() string {
			out := netlab.Must(t, bird.host, "/usr/sbin/birdc", "-s", bird.ctl, "show route all "+prefix)
			for _, w := range words {
				if !strings.Contains(out, w) {
					return out
				}
			}
			return ""
		})
	}
	rejected := func(n *netctlNode, peer string) (lines []string) {
		t.Helper()
		answer, err := control.NewSpeakerClient(filepath.Join(n.cfg.RunDir, "speaker.sock")).BGPRoutes(r.ctx, control.BGPQuery{View: "rejected", Peer: peer})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range answer.Paths {
			lines = append(lines, p.Prefix.String()+" "+p.Why)
		}
		return lines
	}
	problems := func(want ...string) {
		t.Helper()
		for _, n := range []*netctlNode{n1, n2} {
			netlab.Until(t, 20*time.Second, n.host.Name+" says exactly these problems", func() string {
				if s, err := n.status(); err != nil || !slices.Equal(s.Problems, want) {
					return fmt.Sprintf("%q %v", s.Problems, err)
				}
				return ""
			})
		}
	}
	both("default", "172.16.1.0/24", "172.16.3.0/24")
	hears("10.65.0.0/26" + one)
	carries("10.65.0.0/26", "BGP.as_path: 64511 64511 64511\n", "BGP.med: 7\n", "BGP.community: (64512,9)\n")
	r.settle(2)
	since := func() string {
		t.Helper()
		var out []string
		for _, n := range []*netctlNode{n1, n2} {
			s, err := n.status()
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range s.Sessions {
				out = append(out, fmt.Sprint(x.Peer, x.State, x.Since))
			}
		}
		return strings.Join(out, " ")
	}
	before := since()
	if got, want := rejected(n2, "tor"), []string{
		"10.65.0.0/17 refused: inside pool 10.65.0.0/16",
		"10.65.1.0/26 not announced to it: filter tor, export default: reject",
		"10.65.77.0/26 refused: inside pool 10.65.0.0/16",
		"172.16.2.0/24 refused: filter tor, import rule 3: reject community 65001:1",
		"172.17.0.0/16 refused: filter tor, import rule 3: reject community 65001:1",
	}; !slices.Equal(got, want) {
		t.Errorf("rejected:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	problems()

	// Another filter, in force at once. What nobody believes it cannot let in.
	put(func(s *datastore.BGPFilterSpec) {
		s.Import = storetest.FilterRules(t, "reject prefix 0.0.0.0/0", "reject not community 65001:1", "accept")
		s.Export = storetest.FilterRules(t, "accept pool any and source local")
	})
	both("172.16.2.0/24", "172.17.0.0/16")
	hears("10.65.0.0/26"+one, "10.65.1.0/26"+two)
	carries("10.65.0.0/26", "BGP.as_path: 64511\n")
	// A filter for all peers with a label comes behind their own.
	if _, err := datastore.Modify(r.ctx, r.store, datastore.DefaultName, func(c *datastore.BGPConfig) error {
		c.Spec.Filters = []datastore.PeerFilters{{Peers: "role == 'tor'", Filters: []string{"all"}}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	put(func(s *datastore.BGPFilterSpec) {
		s.ImportDefault, s.Import = datastore.FilterNext, storetest.FilterRules(t, "reject prefix 0.0.0.0/0")
	})
	// It does not exist: nothing is believed or told, and that is said.
	gone := "filter all does not exist, or cannot be read: nothing is taken from the peers that name it, and they are told nothing: tor; put it back (`netctl bgp filter add`), or take it out of them"
	both()
	problems(gone)
	r.create(&datastore.BGPFilter{Metadata: datastore.Metadata{Name: "all"}, Spec: datastore.BGPFilterSpec{Import: storetest.FilterRules(t, "accept prefix 172.16.0.0/16 le 24"), ExportDefault: datastore.FilterAccept}})
	both("172.16.1.0/24", "172.16.2.0/24", "172.16.3.0/24")
	hears("10.65.0.0/26"+one, "10.65.1.0/26"+two)
	problems()

	// The switch has room for two routes. With the pool as a whole it is one.
	peer(func(s *datastore.PeerSpec) { s.RouteBudget = 2 })
	problems("peer tor (192.168.99.104) is told 2 routes by the nodes that have it; it has room for 2 (routeBudget): have it told aggregates, or less by a filter")
	n1.logged(1, `msg="peer has little room for routes" peer=192.168.99.104 routes=2 budget=2`)
	peer(func(s *datastore.PeerSpec) { s.RouteBudget, s.Aggregate = 3, true })
	both("172.16.1.0/24", "172.16.2.0/24", "172.16.3.0/24", "blackhole 10.65.0.0/16")
	hears("10.65.0.0/16" + one)
	problems()
	netlab.Must(t, bird.host, "ping", "-n", "-c1", "-W5", "10.65.1.5") // over n1
	peer(func(s *datastore.PeerSpec) { s.Aggregate, s.PrefixAction = false, datastore.LimitEnds })
	both("172.16.1.0/24", "172.16.2.0/24", "172.16.3.0/24")
	hears("10.65.0.0/26"+one, "10.65.1.0/26"+two)
	if after := since(); after != before {
		t.Errorf("sessions were\n%s\nand are\n%s", before, after)
	}

	// 200,000 routes: the switch is cut off, and nobody else notices.
	bird.write(t, 200_000)
	netlab.Must(t, bird.host, "/usr/sbin/birdc", "-s", bird.ctl, "configure")
	for _, n := range []*netctlNode{n1, n2} {
		netlab.Until(t, 60*time.Second, "the flood ends its session", func() string {
			s, err := n.status()
			i := slices.IndexFunc(s.Sessions, func(x control.Session) bool { return x.Peer == netip.MustParseAddr("192.168.99.104") })
			if err != nil || i < 0 || s.Sessions[i].Reason != "sent more prefixes than its limit of 10000; its session stays down until that is changed" {
				return fmt.Sprintf("%+v %v", s.Sessions, err)
			}
			return ""
		})
	}
	both()
	n1.logged(1, `msg="session is not up"`, "sent more prefixes than its limit of 10000")
	n1.logged(1, `msg="peer has little room for routes"`)
	n1.logged(1, `msg="peer has room for routes again"`)
	for _, n := range []*netctlNode{n1, n2} {
		s, err := n.status()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range s.Sessions {
			if x.Peer != netip.MustParseAddr("192.168.99.104") && !strings.Contains(before, fmt.Sprint(x.Peer, x.State, x.Since)) {
				t.Errorf("a session of nodes is another: %+v", x)
			}
		}
	}
}
