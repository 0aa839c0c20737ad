package commands

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/fib"
)

// traceView holds three nodes; n2 has an endpoint in its block and one that borrowed its
// address from n3's.
func traceView(t *testing.T) *datastore.View {
	t.Helper()
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	view := datastore.NewView()
	put := func(o datastore.Object) {
		t.Helper()
		o.SetDefaults()
		data, err := datastore.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		key, err := datastore.Key(o.Kind(), o.Meta().Name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := view.Apply(datastore.Entry{Key: key, Value: data, Revision: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= 3; i++ {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: fmt.Sprint("n", i)}}
		n.Spec.Addresses = []netip.Prefix{prefix(fmt.Sprintf("192.168.99.%d/24", i)), prefix(fmt.Sprintf("fd00:99::%d/64", i))}
		n.Status.Tunnels = []datastore.Tunnel{{Kind: datastore.TunnelVXLAN, MAC: fmt.Sprintf("0a:00:00:00:00:0%d", i)}}
		put(n)
		put(&datastore.Block{
			Metadata: datastore.Metadata{Name: datastore.PoolName(prefix(fmt.Sprintf("10.65.%d.0/26", i)))},
			Spec: datastore.BlockSpec{CIDR: prefix(fmt.Sprintf("10.65.%d.0/26", i)), Affinity: n.Metadata.Name,
				Allocations: []datastore.Allocation{{Ordinal: 1, Handle: "tunnel/" + n.Metadata.Name, Node: n.Metadata.Name}}},
		})
	}
	put(&datastore.Pool{Metadata: datastore.Metadata{Name: datastore.PoolName(prefix("10.65.0.0/16"))}, Spec: datastore.PoolSpec{CIDR: prefix("10.65.0.0/16")}})
	put(&datastore.Peer{Metadata: datastore.Metadata{Name: "tor"}, Spec: datastore.PeerSpec{Address: addr("192.168.99.250"), AS: 65001}})
	for name, a := range map[string]string{"a": "10.65.2.5", "b": "10.65.3.6"} {
		put(&datastore.Endpoint{
			Metadata: datastore.Metadata{Name: "n2/docker/w" + name + "/eth0"},
			Spec:     datastore.EndpointSpec{Node: "n2", Orchestrator: "docker", Workload: "w" + name, Interface: "eth0", Link: datastore.LinkName("nc", "n2/docker/w"+name+"/eth0"), Addresses: []netip.Addr{addr(a)}},
		})
	}
	return view
}

// TestTrace follows packets from n1 to every kind of end.
func TestTrace(t *testing.T) {
	s := &settings{Node: "n1"}
	s.Routes.AgentProtocol, s.Routes.SpeakerProtocol = 87, 88
	s.Tunnels.IPIP, s.Tunnels.VXLAN, s.Tunnels.VXLAN6, s.Tunnels.WireGuard = "tunl0", "vxlan.netctl", "vxlan6.netctl", "wg.netctl"
	view := traceView(t)
	match := func(prefix string, protocol int, hops ...routing.NextHop) fib.Match {
		m := fib.Match{Route: routing.Route{Prefix: netip.MustParsePrefix(prefix), NextHops: hops}, Protocol: protocol, Table: 254}
		for range hops {
			m.MTUs = append(m.MTUs, 1500)
		}
		return m
	}
	hop := func(via, link string) routing.NextHop {
		return routing.NextHop{Addr: netip.MustParseAddr(via), Link: link}
	}
	n2, n3, tor := netip.MustParseAddr("192.168.99.2"), netip.MustParseAddr("192.168.99.3"), netip.MustParseAddr("192.168.99.250")
	local := match("192.168.99.1/32", 2, routing.NextHop{Link: "eth1"})
	local.Local, local.Table = true, 255
	for _, c := range []struct {
		addr    string
		match   fib.Match
		peers   []netip.Addr
		arrives bool
		want    string
	}{
		{"10.65.2.5", match("10.65.2.0/26", 88, hop("192.168.99.2", "vxlan.netctl")), []netip.Addr{n2}, true, `
1 n1: 10.65.2.0/26, netctl's speaker, heard from n2
    via 192.168.99.2 dev vxlan.netctl MTU 1500 in vxlan to n2 (192.168.99.2)
2 n2: 10.65.2.5/32, netctl's agent (from the datastore)
    dev nca
Arrives: endpoint n2/docker/wa/eth0 (docker/wa) on n2`},
		{"10.65.2.5", match("10.65.2.0/26", 88, hop("fe80::800:ff:fe00:2", "vxlan6.netctl")), []netip.Addr{n2}, true, `
1 n1: 10.65.2.0/26, netctl's speaker, heard from n2
    via fe80::800:ff:fe00:2 dev vxlan6.netctl MTU 1500 in vxlan6 to n2 (fd00:99::2)
2 n2: 10.65.2.5/32, netctl's agent (from the datastore)
    dev nca
Arrives: endpoint n2/docker/wa/eth0 (docker/wa) on n2`},
		{"10.65.2.5", match("10.65.2.0/26", 88, hop("192.168.99.2", "wg.netctl")), []netip.Addr{n2}, true, `
1 n1: 10.65.2.0/26, netctl's speaker, heard from n2
    via 192.168.99.2 dev wg.netctl MTU 1500 in wireguard to n2 (192.168.99.2)
2 n2: 10.65.2.5/32, netctl's agent (from the datastore)
    dev nca
Arrives: endpoint n2/docker/wa/eth0 (docker/wa) on n2`},
		{"10.65.3.6", match("10.65.3.0/26", 88, hop("192.168.99.3", "eth1")), []netip.Addr{n3}, true, `
1 n1: 10.65.3.0/26, netctl's speaker, heard from n3
    via 192.168.99.3 (n3) dev eth1 MTU 1500
2 n3: 10.65.3.6/32, netctl's speaker (from the datastore)
    via 192.168.99.2 (n2)
3 n2: 10.65.3.6/32, netctl's agent (from the datastore)
    dev ncb
Arrives: endpoint n2/docker/wb/eth0 (docker/wb) on n2`},
		{"10.65.2.9", match("10.65.2.0/26", 88, hop("192.168.99.2", "eth1")), nil, false, `
1 n1: 10.65.2.0/26, netctl's speaker
    via 192.168.99.2 (n2) dev eth1 MTU 1500
2 n2: 10.65.2.0/26, netctl's agent (from the datastore)
Does not arrive: dropped on n2: 10.65.2.9 is nobody's in its block 10.65.2.0/26`},
		{"10.65.2.1", match("10.65.2.0/26", 88, hop("192.168.99.2", "eth1")), nil, true, `
1 n1: 10.65.2.0/26, netctl's speaker
    via 192.168.99.2 (n2) dev eth1 MTU 1500
2 n2: 10.65.2.0/26, netctl's agent (from the datastore)
Arrives: the address of tunnel/n2 on n2`},
		{"10.65.9.9", match("10.65.9.0/26", 88, hop("192.168.99.2", "eth1")), nil, false, `
1 n1: 10.65.9.0/26, netctl's speaker
    via 192.168.99.2 (n2) dev eth1 MTU 1500
2 n2: no route that is known (from the datastore)
Does not arrive: n2 has no route to 10.65.9.9 that the datastore knows of: the address is nobody's`},
		{"10.65.2.5", match("10.65.2.0/26", 88, hop("192.168.99.250", "eth1"), hop("192.168.99.251", "eth1")), []netip.Addr{tor}, true, `
1 n1: 10.65.2.0/26, netctl's speaker, heard from tor (192.168.99.250)
    via 192.168.99.250 dev eth1 MTU 1500
    via 192.168.99.251 dev eth1 MTU 1500
2 192.168.99.250 or 192.168.99.251: no node of netctl (from the datastore)
3 n2: 10.65.2.5/32, netctl's agent (from the datastore)
    dev nca
Arrives: endpoint n2/docker/wa/eth0 (docker/wa) on n2`},
		{"8.8.8.8", match("0.0.0.0/0", 16, hop("192.168.99.254", "eth1")), nil, true, `
1 n1: 0.0.0.0/0, DHCP
    via 192.168.99.254 dev eth1 MTU 1500
Leaves: handed to 192.168.99.254, which netctl knows nothing of`},
		{"10.65.77.1", match("0.0.0.0/0", 16, hop("192.168.99.254", "eth1")), nil, false, `
1 n1: 0.0.0.0/0, DHCP
    via 192.168.99.254 dev eth1 MTU 1500
Does not arrive: handed to 192.168.99.254, which netctl knows nothing of; pool 10.65.0.0/16 has nobody with this address`},
		{"192.168.99.1", local, nil, true, `
1 n1: 192.168.99.1/32, the kernel (a connected subnet), table local
    dev eth1 MTU 1500
Arrives: an address of n1 itself`},
		{"192.168.99.2", match("192.168.99.0/24", 2, routing.NextHop{Link: "eth1"}), nil, true, `
1 n1: 192.168.99.0/24, the kernel (a connected subnet)
    dev eth1 MTU 1500
Arrives: an address of node n2`},
		{"10.65.1.5", match("10.65.1.5/32", 87, routing.NextHop{Link: "ncx"}), nil, true, `
1 n1: 10.65.1.5/32, netctl's agent
    dev ncx MTU 1500
Arrives: interface ncx of n1; which endpoint that is, the datastore does not say`},
	} {
		tr := tracer{settings: s, view: view, addr: netip.MustParseAddr(c.addr)}
		out := tr.follow(c.match, c.peers)
		want := strings.NewReplacer("dev nca", "dev "+datastore.LinkName("nc", "n2/docker/wa/eth0"), "dev ncb", "dev "+datastore.LinkName("nc", "n2/docker/wb/eth0")).Replace(c.want)
		if got := strings.TrimSpace(out.text()); got != strings.TrimSpace(want) || out.Arrives != c.arrives {
			t.Errorf("%s: arrives %v\n%s\nwant\n%s", c.addr, out.Arrives, got, want)
		}
		if b, err := json.Marshal(out); err != nil || !strings.Contains(string(b), `"hops":[{"host":"n1","source":"kernel"`) {
			t.Errorf("%s, %v", b, err)
		}
	}
	own := map[int][]routing.Route{
		87: {{Prefix: netip.MustParsePrefix("10.65.1.0/26"), Type: routing.Blackhole}},
		88: {{Prefix: netip.MustParsePrefix("172.20.0.0/16"), Type: routing.Blackhole}},
	}
	for _, c := range []struct {
		addr string
		err  error
		want string
	}{
		{"10.65.1.9", fib.ErrDiscarded, "dropped on n1: 10.65.1.9 is nobody's in its block 10.65.1.0/26"},
		{"172.20.1.9", fib.ErrDiscarded, "dropped on n1 by a blackhole that a peer announced for 172.20.0.0/16 (RFC 7999)"},
		{"172.21.1.9", fib.ErrDiscarded, "dropped on n1 by a blackhole route of another program"},
		{"172.21.1.9", fib.ErrRejected, "rejected by an unreachable or prohibit route on n1"},
		{"10.65.2.5", fib.ErrUnreachable, "no route on n1; it is that of endpoint n2/docker/wa/eth0 on n2"},
		{"10.65.2.9", fib.ErrUnreachable, "no route on n1; its block 10.65.2.0/26 is that of n2"},
		{"8.8.8.8", fib.ErrUnreachable, "no route on n1"},
	} {
		tr := tracer{settings: s, view: view, addr: netip.MustParseAddr(c.addr)}
		if out := tr.refused(c.err, own); out.End != c.want || out.Arrives {
			t.Errorf("%s, %v: %+v, want %s", c.addr, c.err, out, c.want)
		}
	}
}
