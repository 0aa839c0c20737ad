package acl

import (
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestPorts: the chains are what the endpoints of this node publish, and gone with the
// last one.
func TestPorts(t *testing.T) {
	x := NewIndex("n1", Options{LinkPrefix: "nc", Group: 1})
	rules := Static(Options{LinkPrefix: "nc", Group: 1})
	change := func(name, node string, addrs string, ports ...datastore.HostPort) string {
		t.Helper()
		c := datastore.Change{Kind: datastore.KindEndpoint, Name: name}
		if node != "" {
			e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}, Spec: datastore.EndpointSpec{Node: node, Link: "nc" + name, HostPorts: ports}}
			for a := range strings.FieldsSeq(addrs) {
				e.Spec.Addresses = append(e.Spec.Addresses, netip.MustParseAddr(a))
			}
			c.New = e
		}
		x.Apply(c)
		d := x.Flush()
		rules.Apply(d)
		var b strings.Builder
		for _, name := range []string{ChainPortsIn, ChainPortsOut, ChainPortsBack} {
			if c := rules.Chains[name]; c != nil {
				c.print(&b)
			}
		}
		return b.String()
	}
	web := datastore.HostPort{Protocol: "tcp", HostPort: 8080, Port: 80}
	dns := datastore.HostPort{Protocol: "udp", HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 53, Port: 5353}
	if got := change("other", "n2", "10.0.0.9", web); got != "" {
		t.Errorf("of another node:\n%s", got)
	}
	got := change("a", "n1", "10.0.0.1 fd00::1", web, dns)
	for _, want := range []string{
		"type nat hook prerouting priority -100;", "type nat hook output priority -100;", "type nat hook postrouting priority 90;",
		`tcp dport 8080 fib daddr type local counter dnat ip to 10.0.0.1:80 comment "published by a"`,
		`tcp dport 8080 fib daddr type local counter dnat ip6 to [fd00::1]:80`,
		`tcp dport 8080 fib daddr type local ip daddr != 127.0.0.0/8 counter dnat ip to 10.0.0.1:80`,
		`udp dport 53 ip daddr 192.0.2.1 counter dnat ip to 10.0.0.1:5353`,
		`ip saddr 10.0.0.1 ip daddr 10.0.0.1 counter masquerade`, `ip6 saddr fd00::1 ip6 daddr fd00::1 counter masquerade`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is missing:\n%s", want, got)
		}
	}
	if strings.Contains(got, "to [fd00::1]:5353") {
		t.Errorf("an IPv4 address of the host leads to IPv6:\n%s", got)
	}
	if got := change("b", "n1", "10.0.0.2", datastore.HostPort{Protocol: "sctp", HostPort: 9, Port: 9}); strings.Count(got, "dnat") != 8 {
		t.Errorf("of two:\n%s", got)
	}
	change("a", "n1", "10.0.0.1")
	if got := change("b", "", ""); got != "" {
		t.Errorf("of none:\n%s", got)
	}
}
