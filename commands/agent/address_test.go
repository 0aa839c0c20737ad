package agent

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/routing"
)

func on(link, prefix string) kernel.Address {
	p := netip.MustParsePrefix(prefix)
	return kernel.Address{Prefix: p, Subnet: p.Masked(), Link: link}
}

func TestChooseAddress(t *testing.T) {
	have := []kernel.Address{
		on("docker0", "172.17.0.1/16"), on("eth0", "192.168.1.5/24"), on("eth1", "192.168.99.102/24"), on("eth1", "10.5.0.1/16"),
		on("tun0", "10.8.0.2/24"), on("eth1", "fd00:99::102/64"),
	}
	routes := map[string]routing.NextHop{
		"192.168.99.1": {Addr: netip.MustParseAddr("192.168.99.1"), Link: "eth1"},
		"10.5.7.7":     {Addr: netip.MustParseAddr("10.5.7.7"), Link: "eth1"},
		"8.8.8.8":      {Addr: netip.MustParseAddr("192.168.1.1"), Link: "eth0"},
		"172.17.0.9":   {Addr: netip.MustParseAddr("172.17.0.9"), Link: "docker0"},
		"fd00:99::1":   {Addr: netip.MustParseAddr("fd00:99::1"), Link: "eth1"},
	}
	resolve := func(a netip.Addr) (routing.NextHop, error) {
		if h, ok := routes[a.String()]; ok {
			return h, nil
		}
		return routing.NextHop{}, errors.New("no route")
	}
	targets := func(what string, list ...string) (out []target) {
		for _, a := range list {
			out = append(out, target{netip.MustParseAddr(a), what})
		}
		return out
	}
	for name, c := range map[string]struct {
		configured, pattern string
		targets             []target
		want, rule, err     string
	}{
		"configured":            {configured: "192.168.1.5", targets: targets("datastore", "192.168.99.1"), want: "192.168.1.5/24", rule: "configured"},
		"configured, not there": {configured: "1.2.3.4", err: "1.2.3.4: on no interface"},
		"pattern":               {pattern: "eth[1-9]", targets: targets("datastore", "8.8.8.8"), want: "192.168.99.102/24 fd00:99::102/64", rule: `eth1 matches "eth[1-9]"`},
		"pattern of a tunnel":   {pattern: "tun*", want: "10.8.0.2/24", rule: `tun0 matches`},
		"pattern, no match":     {pattern: "ens*", err: `interface "ens*"`},
		"datastore":             {targets: targets("datastore", "127.0.0.1", "192.168.1.5", "192.168.99.1", "8.8.8.8"), want: "192.168.99.102/24 fd00:99::102/64", rule: "route to datastore 192.168.99.1"},
		"datastore, subnet":     {targets: targets("datastore", "10.5.7.7"), want: "10.5.0.1/16 fd00:99::102/64", rule: "route to datastore"},
		"not docker":            {targets: targets("datastore", "172.17.0.9"), want: "192.168.1.5/24 fd00:99::102/64", rule: "first address, on eth0"},
		"another node":          {targets: append(targets("datastore", "::1"), targets("node n2", "192.168.99.1", "fd00:99::1")...), want: "192.168.99.102/24 fd00:99::102/64", rule: "route to node n2 192.168.99.1"},
		"first":                 {want: "192.168.1.5/24 fd00:99::102/64", rule: "first address, on eth0"},
	} {
		t.Run(name, func(t *testing.T) {
			ch := chooser{pattern: c.pattern, have: have, targets: c.targets, resolve: resolve}
			if c.configured != "" {
				ch.configured = []netip.Addr{netip.MustParseAddr(c.configured)}
			}
			chosen, rule, err := ch.choose()
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error = %v, want %q", err, c.err)
				}
				return
			}
			var got []string
			for _, p := range chosen {
				got = append(got, p.String())
			}
			if err != nil || strings.Join(got, " ") != c.want || !strings.Contains(rule, c.rule) {
				t.Errorf("got %v by %q, %v; want %s by %q", got, rule, err, c.want, c.rule)
			}
		})
	}
	if chosen, rule, err := (chooser{have: have[:1], resolve: resolve}).choose(); len(chosen) != 0 || rule != "none found" || err != nil {
		t.Errorf("only docker0: %v, %q, %v", chosen, rule, err)
	}
}

// TestAddressStays: the node's address is what it was while it is there, and of
// those that may be it one that will stay comes before one that will not.
func TestAddressStays(t *testing.T) {
	passing := func(a kernel.Address) kernel.Address { a.Passing = true; return a }
	lo := func(p string) kernel.Address { a := on("lo", p); a.Loopback = true; return a }
	virtual := on("eth1", "fd00:99::f0/64") // the kernel lists the newest first
	have := []kernel.Address{lo("10.255.0.1/32"), passing(on("eth1", "192.168.99.9/24")), on("eth1", "192.168.99.102/24"), on("eth0", "192.168.1.5/24"),
		virtual, on("eth1", "fd00:99::102/64"), on("docker0", "172.17.0.1/16")}
	for name, c := range map[string]struct {
		known, configured, pattern, want string
		have                             []kernel.Address
	}{
		"never registered":    {want: "192.168.99.102/24 fd00:99::f0/64"},
		"registered":          {known: "192.168.99.102 fd00:99::102", want: "192.168.99.102/24 fd00:99::102/64"},
		"on another link":     {known: "192.168.1.5", want: "192.168.1.5/24 fd00:99::f0/64"},
		"was gone, is back":   {known: "192.168.99.102 192.168.1.5", want: "192.168.99.102/24 fd00:99::f0/64"},
		"is gone":             {known: "192.168.99.77 fd00:99::102", want: "192.168.99.102/24 fd00:99::102/64"},
		"will not stay":       {known: "192.168.99.9", want: "192.168.99.9/24 fd00:99::f0/64"},
		"not of the pattern":  {known: "192.168.99.102", pattern: "eth0", want: "192.168.1.5/24"},
		"of the pattern":      {known: "fd00:99::102", pattern: "eth*", want: "192.168.99.102/24 fd00:99::102/64"},
		"a bridge's":          {known: "172.17.0.1", want: "192.168.99.102/24 fd00:99::f0/64"},
		"on lo, not chosen":   {known: "10.255.0.1", want: "192.168.99.102/24 fd00:99::f0/64"},
		"on lo, configured":   {configured: "10.255.0.1", want: "10.255.0.1/32"},
		"nothing else":        {have: have[1:2], want: "192.168.99.9/24"},
		"pattern, IPv6 alone": {have: have[4:], pattern: "eth1", known: "fd00:99::102", want: "fd00:99::102/64"},
	} {
		t.Run(name, func(t *testing.T) {
			ch := chooser{pattern: c.pattern, have: have}
			if c.have != nil {
				ch.have = c.have
			}
			for _, a := range strings.Fields(c.known) {
				ch.known = append(ch.known, netip.MustParseAddr(a))
			}
			for _, a := range strings.Fields(c.configured) {
				ch.configured = append(ch.configured, netip.MustParseAddr(a))
			}
			chosen, rule, err := ch.choose()
			var got []string
			for _, p := range chosen {
				got = append(got, p.String())
			}
			if err != nil || strings.Join(got, " ") != c.want {
				t.Errorf("got %v by %q, %v; want %s", got, rule, err, c.want)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	got := storeTargets(t.Context(), []string{"unix:///run/x", "https://192.0.2.1:2379", "https://[2001:db8::1]:2379", "::"})
	if len(got) != 2 || got[0].addr.String() != "192.0.2.1" || got[1].addr.String() != "2001:db8::1" {
		t.Errorf("targets of the datastore = %v", got)
	}
	nodes := []*datastore.Node{
		{Metadata: datastore.Metadata{Name: "me"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}}},
		{Metadata: datastore.Metadata{Name: "you"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}}},
	}
	if got := nodeTargets("me", nodes); len(got) != 1 || got[0].addr.String() != "10.0.0.2" {
		t.Errorf("targets of the nodes = %v", got)
	}
}

func TestSubnets(t *testing.T) {
	got := subnets([]kernel.Address{on("a", "10.0.0.1/24"), on("b", "10.0.0.2/24"), on("b", "169.254.3.3/16"), on("c", "fd00::1/64"), on("c", "9.9.9.9/32")})
	if len(got) != 3 || got[0].String() != "9.9.9.9/32" || got[1].String() != "10.0.0.0/24" || got[2].String() != "fd00::/64" {
		t.Errorf("subnets = %v", got)
	}
}
