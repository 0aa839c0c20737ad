package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestAtLinks: peers of interfaces become peers where they were found; of several for one
// link its name wins, and who is nowhere is said, a pattern's only if it was there before.
func TestAtLinks(t *testing.T) {
	link := func(name, pattern string, change func(*datastore.PeerSpec)) *datastore.Peer {
		p := &datastore.Peer{Metadata: datastore.Metadata{Name: name}, Spec: datastore.PeerSpec{Interface: pattern, RemoteAS: datastore.RemoteExternal}}
		if change != nil {
			change(&p.Spec)
		}
		p.SetDefaults()
		return p
	}
	nodes := []*datastore.Node{node("a", 65001, "192.168.99.1/24")}
	bgp := &datastore.BGPConfig{}
	bgp.SetDefaults()
	p := Mesh("a", nodes, nil, bgp)
	p.AddPeers(nodes, []*datastore.Peer{
		link("any", "eth*", nil),
		link("fourth", "eth4", func(s *datastore.PeerSpec) { s.RemoteAS, s.AS = "", 65004 }),
		link("inner", "swp1", func(s *datastore.PeerSpec) { s.RemoteAS, s.Node = datastore.RemoteInternal, "a" }),
		link("local", "swp2", func(s *datastore.PeerSpec) { s.RemoteAS, s.LocalAS = datastore.RemoteInternal, 65009 }),
		link("twin", "eth*", nil),
		link("nowhere", "bond0", nil),
	})
	at := func(link, remote string) End {
		return End{Link: link, Local: netip.MustParseAddr("fe80::1%" + link), Remote: netip.MustParseAddr(remote + "%" + link)}
	}
	ends := []End{
		at("eth1", "fe80::a"), {Link: "eth2", Why: "no router advertisement"}, {Link: "eth3", Why: "down", Missed: true},
		at("eth4", "fe80::d"), at("swp1", "fe80::e"), {Link: "swp2", Why: "down"}, at("lan", "fe80::f"),
	}
	ends[0].Other = netip.MustParseAddr("fe80::b%eth1")
	q := p.AtLinks(ends)
	var got []string
	for _, x := range q.Peers {
		got = append(got, fmt.Sprintf("%s on %s as %d: %v-%v external %v, foreign %v, IPv4 %v, IPv6 %v", x.Name, x.Interface, x.AS, x.Local, x.Address,
			q.External(x), q.Foreign(x), x.SpeaksIPv4(), x.SpeaksIPv6()))
	}
	for _, s := range q.Silent {
		got = append(got, fmt.Sprintf("%s on %s as %d is silent: %s", s.Name, s.Interface, s.AS, s.Why))
	}
	want := `any on eth1 as 0: fe80::1%eth1-fe80::a%eth1 external true, foreign true, IPv4 true, IPv6 true
fourth on eth4 as 65004: fe80::1%eth4-fe80::d%eth4 external true, foreign true, IPv4 true, IPv6 true
inner on swp1 as 65001: fe80::1%swp1-fe80::e%swp1 external false, foreign false, IPv4 true, IPv6 true
any on eth3 as 0 is silent: down
local on swp2 as 65009 is silent: down
nowhere on bond0 as 0 is silent: this node has no interface bond0
peers any and twin have the same interface eth*: remove one of them
interface eth1 leads to two routers, fe80::a and fe80::b: the peer of an interface is the only one at its other end`
	if text := strings.Join(append(got, q.Problems...), "\n"); text != want {
		t.Errorf("planned\n%s\nwant\n%s", text, want)
	}
	if len(p.Peers) != 0 || len(p.Problems) != 1 {
		t.Errorf("the plan itself changed: %+v", p)
	}
	p.AddDrains([]*datastore.Node{{Metadata: datastore.Metadata{Name: "a"}, Spec: datastore.NodeSpec{Drain: &datastore.Drain{Shutdown: true}}}})
	if q := p.AtLinks(ends); slices.ContainsFunc(q.Peers, func(x Peer) bool { return x.Drained == "" }) || q.Silent[0].Drained == "" {
		t.Errorf("drained: %+v", q)
	}
}
