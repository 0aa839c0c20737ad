package conntrack

import (
	"net/netip"
	"strings"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// rules are those of a host with an endpoint of profile web and one of db: who may
// reach web is web, and db from everywhere by tcp 5432.
func rules(t testing.TB) *acl.Ruleset { return rulesOf(t, "allow from tag web", "allow") }

// deny are those by which nobody may reach web, nor web anybody.
func deny(t testing.TB) *acl.Ruleset { return rulesOf(t, "deny", "deny") }

func rulesOf(t testing.TB, toWeb, outbound string) *acl.Ruleset {
	x := acl.NewIndex("n1", acl.Options{LinkPrefix: "nc", Group: 77, WorkloadToHost: []acl.HostPort{{Protocol: 17, Port: 53}}})
	put := func(o datastore.Object) {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	for name, text := range map[string]string{"web": toWeb, "db": "allow tcp to ports 5432"} {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
		p.Spec.Tags = []string{name}
		in, err := datastore.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		out, err := datastore.ParseRule(outbound)
		if err != nil {
			t.Fatal(err)
		}
		p.Spec.Inbound, p.Spec.Outbound = []datastore.Rule{in}, []datastore.Rule{out}
		put(p)
	}
	for name, addrs := range map[string][]netip.Addr{
		"web": {netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")},
		"db":  {netip.MustParseAddr("10.0.0.6"), netip.MustParseAddr("fd00::6")},
	} {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/cni/" + name + "/eth0"}}
		e.Spec = datastore.EndpointSpec{Node: "n1", Link: "nc" + name, Profiles: []string{name}, Addresses: addrs}
		put(e)
	}
	return x.Ruleset()
}

// cutOnce is Cut in the current network namespace.
func cutOnce(c Cutter) (int, error) {
	by, err := Open()
	if err != nil {
		return 0, err
	}
	defer by.Close()
	return c.Cut(by)
}

// TestCut: what policy denies goes, whoever began it and by whatever NAT it comes;
// what it allows, what the host began and what is not ours stays.
func TestCut(t *testing.T) {
	n := newNetns(t)
	const (
		cut  = true
		kept = false
	)
	mark := 0
	var want []string
	for _, f := range []struct {
		flow string
		cut  bool
	}{
		{"-p udp -s 10.0.0.5 -d 192.0.2.9 --sport 1000 --dport 9", kept},                                                  // web, outwards
		{"-p udp -s 192.0.2.9 -d 10.0.0.5 --sport 1001 --dport 9", cut},                                                   // a stranger to web
		{"-p udp -s 10.0.0.6 -d 10.0.0.5 --sport 1002 --dport 9", cut},                                                    // db to web
		{"-p udp -s 10.0.0.5 -d 10.0.0.6 --sport 1003 --dport 9", cut},                                                    // web to db, another port
		{"-p tcp -s 10.0.0.5 -d 10.0.0.6 --sport 1004 --dport 5432 --state ESTABLISHED", kept},                            // web to db
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dst-nat 10.0.0.5 --sport 1005 --dport 80", cut},                           // DNAT to web
		{"-p tcp -s 192.0.2.9 -d 198.51.100.1 --dst-nat 10.0.0.6:5432 --sport 1006 --dport 80 --state ESTABLISHED", kept}, // DNAT to db
		{"-p udp -s 10.0.0.5 -d 192.0.2.9 --src-nat 198.51.100.1 --sport 1007 --dport 81", kept},                          // SNAT of web
		{"-p udp -s 198.51.100.1 -d 10.0.0.5 --sport 1008 --dport 9", kept},                                               // the host to web
		{"-p udp -s 10.0.0.5 -d 198.51.100.1 --sport 1009 --dport 53", kept},                                              // web to the host's resolver
		{"-p udp -s 10.0.0.5 -d 198.51.100.1 --sport 1010 --dport 54", cut},                                               // web to the host
		{"-p udp -s 192.0.2.8 -d 192.0.2.9 --sport 1011 --dport 9", kept},                                                 // not ours
		{"-p udp -s fd00::6 -d fd00::5 --sport 1012 --dport 9", cut},
		{"-p udp -s fd00::5 -d 2001:db8::9 --sport 1013 --dport 9", kept},
		{"-p icmp -s 10.0.0.6 -d 10.0.0.5 --icmp-type 8 --icmp-code 0 --icmp-id 1014", cut},
		{"-p icmp -s 10.0.0.5 -d 192.0.2.9 --icmp-type 8 --icmp-code 0 --icmp-id 1015", kept},
		{"-p udp -s fe80::ecee:eeff:feee:eeee -d fd00::5 --sport 1016 --dport 9", kept}, // the host to web, without an address of its own
		{"-p udp -s fd00::5 -d fe80::ecee:eeff:feee:eeee --sport 1017 --dport 53", kept},
		{"-p udp -s fd00::5 -d fe80::ecee:eeff:feee:eeee --sport 1018 --dport 54", cut},
		{"-p udp -s 10.0.0.6 -d 10.0.0.5 --sport 1019 --dport 9 -w 5", cut}, // in another zone
		{"-p sctp -s 10.0.0.6 -d 10.0.0.5 --sport 1020 --dport 9 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2", cut},
		{"-p sctp -s 10.0.0.5 -d 192.0.2.9 --sport 1021 --dport 9 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2", kept},
	} {
		n.Run(append([]string{"conntrack", "-I", "-t", "600"}, strings.Fields(f.flow)...)...)
		if f.cut {
			mark++
		} else {
			want = append(want, f.flow)
		}
	}
	c := Cutter{Rules: rules(t), Scope: acl.Scope{All: true}, Group: 77, Host: []netip.Addr{netip.MustParseAddr("198.51.100.1")}}
	for _, most := range []int{mark, 0} {
		n.Do(func() {
			if got, err := cutOnce(c); got != most || err != nil {
				t.Errorf("%d were cut, want %d: %v", got, most, err)
			}
		})
	}
	left := n.Run("conntrack", "-L", "-f", "ipv4") + n.Run("conntrack", "-L", "-f", "ipv6")
	for i := 1000; i <= 1021; i++ {
		id := "=" + strings.TrimSpace(string([]byte{'1', '0', byte('0' + (i-1000)/10), byte('0' + i%10)})) + " "
		is := false
		for _, f := range want {
			is = is || strings.Contains(f+" ", id[1:])
		}
		if strings.Contains(left, id) != is {
			t.Errorf("%s: left %v, want %v\n%s", id, !is, is, left)
		}
	}
}
