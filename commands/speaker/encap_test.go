package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/netdev"
	"netctl/netdev/netlab"
	"netctl/routing"
	"netctl/routing/fib"
)

// TestTravel changes how packets of pools travel while routes are there: each is
// replaced in place, through devices that know the node before, and none is deleted.
func TestTravel(t *testing.T) {
	kernel := fib.NewFake()
	kernel.Put(2, connected("192.168.99.0/24", "eth1"))
	kernel.Put(2, connected("fd00:99::/64", "eth1"))
	router := connected("192.168.98.0/24", "eth1")
	router.NextHops[0].Addr = netip.MustParseAddr("192.168.99.254")
	kernel.Put(3, router)
	router6 := connected("fd00:98::/64", "eth1")
	router6.NextHops[0].Addr = netip.MustParseAddr("fd00:99::254")
	kernel.Put(3, router6)
	own := &orderlyTable{Table: kernel.Table(88), t: t}
	s := newSpeaker(t.Context(), Config{Node: "n1", StateDir: filepath.Dir(hostFile(t, "n1")), LinkPrefix: "nc", Tunnels: netdev.DefaultTunnels()},
		kernel.Table(87), own, memory.New(), nil, quiet())
	l := &loop{speaker: s, announced: routing.NewAnnounced(ours)}
	if err := l.readSubnets(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.installer.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	nodes := []*datastore.Node{machine("n1", "192.168.99.1/24"), machine("near", "192.168.99.2/24"), machine("far", "192.168.98.3/24"), machine("old", "192.168.98.4/24")}
	for i, a := range []string{"fd00:99::1/64", "fd00:99::2/64", "fd00:98::3/64"} {
		n := nodes[i]
		n.Spec.Addresses = append(n.Spec.Addresses, netip.MustParsePrefix(a))
		n.Status.Tunnels = []datastore.Tunnel{{Kind: datastore.TunnelIPIP}, {Kind: datastore.TunnelVXLAN, MAC: fmt.Sprintf("02:00:00:00:00:%02x", i+1)}}
	}
	var bgp datastore.BGPConfig
	bgp.SetDefaults()
	travel := func(pools map[string]datastore.Encap) {
		var list []*datastore.Pool
		for cidr, e := range pools {
			list = append(list, &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr), Encap: e}})
		}
		l.plan = routing.Mesh("n1", nodes, list, &bgp)
		l.travel(t.Context())
	}
	e := &teller{to: s.installer, best: map[netip.Prefix][]netip.Addr{}}
	s.installer.begin(nil, e.again)
	expect := func(want ...string) {
		t.Helper()
		for i, w := range want {
			want[i] = strings.ReplaceAll(strings.ReplaceAll(w, " 4", " proto netctl-bgp metric 32"), " 6", " proto netctl-bgp metric 1056")
			if strings.HasPrefix(w, "fd") {
				want[i] += " pref medium"
			}
		}
		netlab.Until(t, 10*time.Second, "the kernel has the routes", func() string {
			var got []string
			for _, line := range strings.Split(strings.TrimSpace(kernel.String()), "\n") {
				if strings.Contains(line, "netctl-bgp") {
					got = append(got, line)
				}
			}
			if !slices.Equal(got, want) {
				return fmt.Sprintf("has %q, want %q", got, want)
			}
			return ""
		})
	}
	travel(map[string]datastore.Encap{"10.65.0.0/16": datastore.EncapNone, "fd80::/64": datastore.EncapNone})
	e.tell(path("10.65.2.0/26", "192.168.99.2"), path("10.65.3.0/26", "192.168.98.3"), path("10.65.4.0/26", "192.168.98.4"), path("fd80::/122", "fd00:98::3"))
	old := "10.65.4.0/26 via 192.168.99.254 dev eth1 4"
	expect("10.65.2.0/26 via 192.168.99.2 dev eth1 4", "10.65.3.0/26 via 192.168.99.254 dev eth1 4", old, "fd80::/122 via fd00:99::254 dev eth1 6")
	travel(map[string]datastore.Encap{"10.65.0.0/16": datastore.EncapIPIP, "fd80::/64": datastore.EncapVXLAN})
	expect("10.65.2.0/26 via 192.168.99.2 dev tunl0 4 onlink", "10.65.3.0/26 via 192.168.98.3 dev tunl0 4 onlink", old, "fd80::/122 via fe80::ff:fe00:3 dev vxlan.netctl 6 onlink")
	if got := s.installer.tunnelless(); !slices.Equal(got, []netip.Addr{netip.MustParseAddr("192.168.98.4")}) {
		t.Errorf("without a tunnel: %v", got)
	}
	if st := s.status(); !slices.ContainsFunc(st.Problems, func(p string) bool {
		return strings.Contains(p, "reached without the tunnel") && strings.Contains(p, "192.168.98.4")
	}) {
		t.Errorf("problems %q", st.Problems)
	}
	travel(map[string]datastore.Encap{"10.65.0.0/16": datastore.EncapIPIPCrossSubnet, "fd80::/64": datastore.EncapVXLANCrossSubnet})
	expect("10.65.2.0/26 via 192.168.99.2 dev eth1 4", "10.65.3.0/26 via 192.168.98.3 dev tunl0 4 onlink", old, "fd80::/122 via fe80::ff:fe00:3 dev vxlan.netctl 6 onlink")
	travel(map[string]datastore.Encap{"10.65.0.0/16": datastore.EncapVXLANCrossSubnet, "fd80::/64": datastore.EncapVXLANCrossSubnet})
	expect("10.65.2.0/26 via 192.168.99.2 dev eth1 4", "10.65.3.0/26 via 192.168.98.3 dev vxlan.netctl 4 onlink", old, "fd80::/122 via fe80::ff:fe00:3 dev vxlan.netctl 6 onlink")
	// The pool is cut in two: a prefix is in another one then.
	travel(map[string]datastore.Encap{"10.65.2.0/23": datastore.EncapVXLAN, "10.65.4.0/23": datastore.EncapNone, "fd80::/64": datastore.EncapNone})
	expect("10.65.2.0/26 via 192.168.99.2 dev vxlan.netctl 4 onlink", "10.65.3.0/26 via 192.168.98.3 dev vxlan.netctl 4 onlink", old, "fd80::/122 via fd00:99::254 dev eth1 6")
	if got := s.installer.tunnelless(); len(got) > 0 {
		t.Errorf("without a tunnel: %v", got)
	}
	// A node leaves the tunnel.
	nodes[1].Status.Tunnels = nil
	travel(map[string]datastore.Encap{"10.65.2.0/23": datastore.EncapVXLAN, "10.65.4.0/23": datastore.EncapNone, "fd80::/64": datastore.EncapNone})
	expect("10.65.2.0/26 via 192.168.99.2 dev eth1 4", "10.65.3.0/26 via 192.168.98.3 dev vxlan.netctl 4 onlink", old, "fd80::/122 via fd00:99::254 dev eth1 6")
	if n := kernel.Neighbours("vxlan.netctl"); len(n) != 2 {
		t.Errorf("neighbours %v", n)
	}
	s.installer.writing.Lock()
	defer s.installer.writing.Unlock()
	if len(s.installer.ways) != 4 {
		t.Errorf("ways %v", s.installer.ways)
	}
}

// orderlyTable fails the test for a route that is deleted, or that comes before the
// neighbour it needs.
type orderlyTable struct {
	*fib.Table
	t *testing.T

	mu    sync.Mutex
	known []routing.Neighbour
}

func (o *orderlyTable) SetNeighbours(ctx context.Context, links []string, list []routing.Neighbour) error {
	err := o.Table.SetNeighbours(ctx, links, list)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.known = list
	return err
}

func (o *orderlyTable) Apply(ctx context.Context, c routing.Changes) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range c.Delete {
		o.t.Errorf("deleted: %s", r)
	}
	for _, r := range c.Put {
		for _, h := range r.NextHops {
			if strings.HasPrefix(h.Link, "vxlan") && !slices.ContainsFunc(o.known, func(n routing.Neighbour) bool { return n.Link == h.Link && n.Gateway == h.Addr }) {
				o.t.Errorf("before its neighbour: %s", r)
			}
		}
	}
	return o.Table.Apply(ctx, c)
}

// TestAdoptThroughTunnels: the routes of an earlier run belong to the nodes at the other
// ends.
func TestAdoptThroughTunnels(t *testing.T) {
	kernel := fib.NewFake()
	kernel.Put(2, connected("192.168.99.0/24", "eth1"))
	table := kernel.Table(88)
	l := &loop{speaker: &speaker{cfg: Config{Tunnels: netdev.DefaultTunnels()}, own: table}}
	a := machine("a", "192.168.99.1/24")
	b := machine("b", "192.168.98.2/24")
	b.Spec.Addresses = append(b.Spec.Addresses, netip.MustParsePrefix("fd00:98::2/64"))
	a.Spec.Addresses = append(a.Spec.Addresses, netip.MustParsePrefix("fd00:99::1/64"))
	for i, n := range []*datastore.Node{a, b} {
		n.Status.Tunnels = []datastore.Tunnel{{Kind: datastore.TunnelVXLAN, MAC: fmt.Sprintf("02:00:00:00:00:%02x", i+1)}}
	}
	var bgp datastore.BGPConfig
	bgp.SetDefaults()
	l.plan = routing.Mesh("a", []*datastore.Node{a, b}, nil, &bgp)
	through := func(prefix, gateway string, metric int) routing.Route {
		return routing.Route{Prefix: netip.MustParsePrefix(prefix), Metric: metric, NextHops: []routing.NextHop{{Addr: netip.MustParseAddr(gateway), Link: "vxlan.netctl", Onlink: true}}}
	}
	stale, foreign := l.adopt(t.Context(), []routing.Route{through("10.65.2.0/26", "192.168.98.2", 32), through("fd80::/122", "fe80::ff:fe00:2", 1056)})
	if len(foreign) > 0 || len(stale) != 2 || fmt.Sprint(stale[0].NextHops, stale[1].NextHops) != "[192.168.98.2] [fd00:98::2]" {
		t.Errorf("adopted %v, foreign %v", stale, foreign)
	}
}

// TestTravelByTheOtherFamily: a WireGuard tunnel to a next hop that nothing leads to is a
// way as long as something leads to the node's other address; another tunnel is none.
func TestTravelByTheOtherFamily(t *testing.T) {
	kernel := fib.NewFake()
	kernel.Put(2, connected("fd00:99::/64", "eth1"))
	pools := map[datastore.Encap]netip.Prefix{
		datastore.EncapWireGuard: netip.MustParsePrefix("10.65.0.0/16"), datastore.EncapVXLAN: netip.MustParsePrefix("10.66.0.0/16"), datastore.EncapNone: netip.MustParsePrefix("10.67.0.0/16"),
	}
	var list []*datastore.Pool
	for e, p := range pools {
		list = append(list, &datastore.Pool{Spec: datastore.PoolSpec{CIDR: p, Encap: e}})
	}
	nodes := []*datastore.Node{machine("n1", "192.168.99.1/24"), machine("n2", "192.168.99.2/24"), machine("n3", "192.168.99.3/24")}
	for i, n := range nodes {
		if i < 2 {
			n.Spec.Addresses = append(n.Spec.Addresses, netip.MustParsePrefix(fmt.Sprintf("fd00:99::%d/64", i+1)))
		}
		n.Status.Tunnels = []datastore.Tunnel{{Kind: datastore.TunnelVXLAN, MAC: "02:00:00:00:00:02"}, {Kind: datastore.TunnelWireGuard, MAC: "02:00:00:00:00:02"}}
	}
	var bgp datastore.BGPConfig
	bgp.SetDefaults()
	i := newInstaller(kernel.Table(88), newTracker(t.Context(), kernel.Table(88), func(string) bool { return false }, quiet()), func() {}, quiet())
	i.by = routing.NewFabric(routing.Mesh("n1", nodes, list, &bgp), nil, netdev.DefaultTunnels(), nil)
	for _, c := range []struct {
		encap   datastore.Encap
		hop, by string
	}{
		{datastore.EncapWireGuard, "192.168.99.2", "[via 192.168.99.2 dev wg.netctl onlink]"}, {datastore.EncapVXLAN, "192.168.99.2", "[]"}, {datastore.EncapNone, "192.168.99.2", "[]"},
		{datastore.EncapWireGuard, "192.168.99.3", "[]"}, {datastore.EncapWireGuard, "192.168.99.4", "[]"},
	} {
		if got := fmt.Sprint(i.via(pools[c.encap], []netip.Addr{netip.MustParseAddr(c.hop)}).hops); got != c.by {
			t.Errorf("%s to %s: %s, want %s", c.encap, c.hop, got, c.by)
		}
	}
}
