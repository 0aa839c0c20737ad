package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

func withTunnels(n *datastore.Node, kinds ...datastore.TunnelKind) *datastore.Node {
	for _, k := range kinds {
		t := datastore.Tunnel{Kind: k}
		if k != datastore.TunnelIPIP {
			t.MAC = map[string]string{"both": "02:00:00:00:00:01", "other": "02:00:00:00:00:02", "four": "02:00:00:00:00:04", "six": "02:00:00:00:00:06"}[n.Metadata.Name]
		}
		n.Status.Tunnels = append(n.Status.Tunnels, t)
	}
	return n
}

// TestTunnels: a tunnel needs both ends, each address of the other node is a next hop
// through it, and VXLAN goes over IPv4 where both have that.
func TestTunnels(t *testing.T) {
	all := []datastore.TunnelKind{datastore.TunnelIPIP, datastore.TunnelVXLAN, datastore.TunnelVXLAN6}
	nodes := []*datastore.Node{
		withTunnels(node("both", 0, "192.168.99.1/24", "fd00:99::1/64"), all...),
		withTunnels(node("other", 0, "192.168.98.2/24", "fd00:98::2/64"), all...),
		withTunnels(node("four", 0, "192.168.98.4/24"), datastore.TunnelVXLAN),
		withTunnels(node("six", 0, "fd00:98::6/64"), datastore.TunnelVXLAN6),
		node("none", 0, "192.168.98.7/24"),
	}
	for self, want := range []string{
		0: "ipip 192.168.98.2>192.168.98.2 , vxlan 192.168.98.2>192.168.98.2 02:00:00:00:00:02, vxlan fd00:98::2>192.168.98.2 02:00:00:00:00:02, vxlan6 fd00:98::2>fd00:98::2 02:00:00:00:00:02, " +
			"vxlan 192.168.98.4>192.168.98.4 02:00:00:00:00:04, vxlan6 fd00:98::6>fd00:98::6 02:00:00:00:00:06",
		2: "vxlan 192.168.99.1>192.168.99.1 02:00:00:00:00:01, vxlan fd00:99::1>192.168.99.1 02:00:00:00:00:01, vxlan 192.168.98.2>192.168.98.2 02:00:00:00:00:02, vxlan fd00:98::2>192.168.98.2 02:00:00:00:00:02",
		3: "vxlan6 192.168.99.1>fd00:99::1 02:00:00:00:00:01, vxlan6 fd00:99::1>fd00:99::1 02:00:00:00:00:01, vxlan6 192.168.98.2>fd00:98::2 02:00:00:00:00:02, vxlan6 fd00:98::2>fd00:98::2 02:00:00:00:00:02",
		4: "",
	} {
		if self == 1 {
			continue
		}
		var got []string
		for _, x := range tunnels(nodes[self], nodes) {
			got = append(got, fmt.Sprintf("%s %s>%s %s", x.Kind, x.Hop, x.Remote, x.MAC))
			if x.Gateway != x.Hop && (x.Hop.Is4() || x.Gateway != netip.MustParseAddr("fe80::ff:fe00:"+x.MAC[16:])) {
				t.Errorf("gateway %s to %s", x.Gateway, x.Hop)
			}
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("of %s:\n%s, want\n%s", nodes[self].Metadata.Name, got, want)
		}
	}
}

// TestSpare: a WireGuard tunnel between nodes that have both families may go by either.
func TestSpare(t *testing.T) {
	both := withTunnels(node("both", 0, "192.168.99.1/24", "fd00:99::1/64"), datastore.TunnelWireGuard)
	other := withTunnels(node("other", 0, "192.168.98.2/24", "fd00:98::2/64"), datastore.TunnelWireGuard, datastore.TunnelIPIP)
	four := withTunnels(node("four", 0, "192.168.98.4/24"), datastore.TunnelWireGuard)
	links := map[datastore.TunnelKind]string{datastore.TunnelWireGuard: "wg", datastore.TunnelIPIP: "tunl0"}
	f := NewFabric(Plan{Tunnels: tunnels(both, []*datastore.Node{both, other, four})}, nil, links, nil)
	for hop, want := range map[string]string{"192.168.98.2": "[fd00:98::2]", "fd00:98::2": "[192.168.98.2]", "192.168.98.4": "[]"} {
		hop := netip.MustParseAddr(hop)
		for _, x := range f.tunnels[hop] {
			if via, _ := x.via(links); fmt.Sprint(f.Spares(hop, via)) != want {
				t.Errorf("to %s: %v, want %s", hop, f.Spares(hop, via), want)
			}
		}
	}
	hop := netip.MustParseAddr("192.168.98.2")
	for _, via := range []NextHop{{}, {Addr: hop, Link: "tunl0", Onlink: true}, {Addr: hop, Link: "eth1"}} {
		if got := f.Spares(hop, via); len(got) > 0 {
			t.Errorf("by %v: %v", via, got)
		}
	}
}

// TestFabric: which way packets go, by the pool's setting, what both nodes have, and
// whether the next hop is in a connected subnet.
func TestFabric(t *testing.T) {
	near, far, old := netip.MustParseAddr("192.168.99.2"), netip.MustParseAddr("192.168.98.2"), netip.MustParseAddr("192.168.98.3")
	half := netip.MustParseAddr("192.168.98.5") // has no IPIP
	far6, only6 := netip.MustParseAddr("fd00:98::2"), netip.MustParseAddr("fd00:98::6")
	var p Plan
	for _, hop := range []netip.Addr{near, far} {
		p.Tunnels = append(p.Tunnels, Tunnel{Kind: datastore.TunnelIPIP, Hop: hop, Remote: hop, Gateway: hop},
			Tunnel{Kind: datastore.TunnelVXLAN, Hop: hop, Remote: hop, Gateway: hop, MAC: "02:00:00:00:00:01"})
	}
	p.Tunnels = append(p.Tunnels, Tunnel{Kind: datastore.TunnelVXLAN, Hop: half, Remote: half, Gateway: half, MAC: "02:00:00:00:00:05"})
	link := map[netip.Addr]netip.Addr{far6: netip.MustParseAddr("fe80::ff:fe00:1"), only6: netip.MustParseAddr("fe80::ff:fe00:6")}
	p.Tunnels = append(p.Tunnels, Tunnel{Kind: datastore.TunnelVXLAN, Hop: far6, Remote: far, Gateway: link[far6], MAC: "02:00:00:00:00:01"},
		Tunnel{Kind: datastore.TunnelVXLAN6, Hop: far6, Remote: far6, Gateway: link[far6], MAC: "02:00:00:00:00:01"},
		Tunnel{Kind: datastore.TunnelVXLAN6, Hop: only6, Remote: only6, Gateway: link[only6], MAC: "02:00:00:00:00:06"})
	pools := map[datastore.Encap]netip.Prefix{}
	for i, e := range datastore.Encaps() {
		pools[e] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)
		p.Pools = append(p.Pools, Pool{CIDR: pools[e], BlockSize: 26, Encap: e})
	}
	links := map[datastore.TunnelKind]string{datastore.TunnelIPIP: "tunl0", datastore.TunnelVXLAN: "vx", datastore.TunnelVXLAN6: "vx6"}
	f := NewFabric(p, prefixes("192.168.99.0/24"), links, nil)
	plain := NextHop{Addr: netip.MustParseAddr("192.168.99.254"), Link: "eth1"}
	for _, c := range []struct {
		pool    datastore.Encap
		hop     netip.Addr
		link    string // plain: eth1
		lacking bool
	}{
		{datastore.EncapNone, far, "eth1", false},
		{datastore.EncapIPIP, far, "tunl0", false},
		{datastore.EncapIPIP, near, "tunl0", false},
		{datastore.EncapIPIP, old, "eth1", true},
		{datastore.EncapIPIP, half, "vx", true},
		{datastore.EncapNone, half, "eth1", false},
		{datastore.EncapIPIPCrossSubnet, far, "tunl0", false},
		{datastore.EncapIPIPCrossSubnet, near, "eth1", false},
		{datastore.EncapVXLAN, far, "vx", false},
		{datastore.EncapVXLAN, near, "vx", false},
		{datastore.EncapVXLAN, far6, "vx", false},
		{datastore.EncapVXLAN, only6, "vx6", false},
		{datastore.EncapVXLAN, old, "eth1", true},
		{datastore.EncapVXLANCrossSubnet, far, "vx", false},
		{datastore.EncapVXLANCrossSubnet, near, "eth1", false},
		{datastore.EncapVXLANCrossSubnet, old, "eth1", true},
	} {
		want := plain
		if c.link != "eth1" {
			want = NextHop{Addr: c.hop, Link: c.link, Onlink: true}
			if c.hop.Is6() {
				want.Addr = link[c.hop]
				if behind := p.Behind(links)[want]; !slices.Equal(behind, []netip.Addr{c.hop}) {
					t.Errorf("behind %s: %v", want, behind)
				}
			}
		}
		pool := f.Pool(netip.PrefixFrom(pools[c.pool].Addr().Next(), 32))
		if via, lacking := f.Via(pool, c.hop, plain); via != want || lacking != c.lacking {
			t.Errorf("pool with %s, next hop %s: %s, lacking %v, want %s, %v", c.pool, c.hop, via, lacking, want, c.lacking)
		}
	}
	if via, lacking := f.Via(f.Pool(prefix("172.16.0.0/24")), far, plain); via != plain || lacking {
		t.Errorf("outside every pool: %s, lacking %v", via, lacking)
	}
	// IPv4 does not get through to a node: packets of both families go by IPv6.
	over6 := NewFabric(p, nil, links, map[netip.Addr]bool{far6: true})
	for hop, want := range map[netip.Addr]string{far: "vx", far6: "vx6", only6: "vx6"} {
		if via, lacking := over6.Via(over6.Pool(pools[datastore.EncapVXLAN]), hop, plain); via.Link != want || lacking {
			t.Errorf("with VXLAN to %s, IPv4 lost: %s, lacking %v", hop, via, lacking)
		}
	}
	var none *Fabric
	if via, lacking := none.Via(none.Pool(pools[datastore.EncapVXLAN]), far, plain); via != plain || lacking {
		t.Errorf("without a plan: %s, lacking %v", via, lacking)
	}
	want := []Neighbour{{"vx", near, near, "02:00:00:00:00:01"}, {"vx", far, far, "02:00:00:00:00:01"}, {"vx", half, half, "02:00:00:00:00:05"}, {"vx", link[far6], far, "02:00:00:00:00:01"}, {"vx6", link[far6], far6, "02:00:00:00:00:01"}, {"vx6", link[only6], only6, "02:00:00:00:00:06"}}
	if got := p.Neighbours(links); !slices.Equal(got, want) {
		t.Errorf("neighbours %v, want %v", got, want)
	}
}

// TestSource: which source address routes need.
func TestSource(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("fd99::1")}
	f := NewFabric(Plan{Addresses: own}, nil, nil, nil)
	four := NewFabric(Plan{Addresses: own[:1]}, nil, nil, nil)
	for _, c := range []struct {
		fabric                  *Fabric
		pool, hop, chosen, want string
	}{
		{f, "10.65.0.0/16", "192.168.99.103", "10.99.0.1", ""},
		{f, "10.65.0.0/16", "192.168.99.103", "10.99.0.2", ""},
		{f, "10.65.0.0/16", "192.168.99.103", "192.168.99.102", "10.99.0.1"},
		{f, "10.65.0.0/16", "192.168.99.103", "", ""},
		{f, "10.65.0.0/16", "fe80::1%up1", "", "10.99.0.1"},
		{f, "10.65.0.0/16", "fd00:99::103", "fd99::1", "10.99.0.1"},
		{f, "fd80::/64", "fe80::1%up1", "", "fd99::1"},
		{f, "fd80::/64", "fd00:99::103", "fd00:99::102", "fd99::1"},
		{f, "fd80::/64", "fd00:99::103", "fd99::1", ""},
		{four, "fd80::/64", "fd00:99::103", "fd00:99::102", ""},
		{f, "", "192.168.99.103", "192.168.99.102", ""},
		{nil, "10.65.0.0/16", "192.168.99.103", "192.168.99.102", ""},
	} {
		var pool netip.Prefix
		if c.pool != "" {
			pool = netip.MustParsePrefix(c.pool)
		}
		var chosen netip.Addr
		if c.chosen != "" {
			chosen = netip.MustParseAddr(c.chosen)
		}
		got := ""
		if a := c.fabric.Source(pool, netip.MustParseAddr(c.hop), chosen); a.IsValid() {
			got = a.String()
		}
		if got != c.want {
			t.Errorf("to %s by %s, kernel's choice %q: %q, want %q", c.pool, c.hop, c.chosen, got, c.want)
		}
	}
}
