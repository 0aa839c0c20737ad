package datastore

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestRuleCanonical(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"allow", ""},
		{"allow from tag WEB", ""},
		{"allow tcp to ports 80,443", ""},
		{"deny icmp", ""},
		{"allow udp from cidr 192.168.0.0/16 to ports 53", ""},
		{`allow tcp from selector "role == 'web'" to ports 5432`, ""},
		{"  allow   tcp   from tag A  ", "allow tcp from tag A"},
		{"allow from 192.168.0.0/16", "allow from cidr 192.168.0.0/16"},
		{"allow from 10.0.0.1", "allow from cidr 10.0.0.1/32"},
		{"allow from 192.168.0.0/16,10.0.0.0/8,10.0.0.0/8", "allow from cidr 10.0.0.0/8,192.168.0.0/16"},
		{"allow from not cidr fd00::/8,10.0.0.1 to cidr fd01::/16", "allow from not cidr 10.0.0.1/32,fd00::/8 to cidr fd01::/16"},
		{"deny icmp from cidr 10.0.0.0/8,fd00::/8", ""},
		{"allow from not fd00::/8", "allow from not cidr fd00::/8"},
		{"allow from cidr FD00:0::/8", "allow from cidr fd00::/8"},
		{"deny not tcp", ""},
		{"log not icmp type 8 code 0 from tag a to tag b", ""},
		{"pass icmpv6 type 135", ""},
		{"allow 6 to ports 80", "allow tcp to ports 80"},
		{"allow tcp to ports 443,80,80", "allow tcp to ports 80,443"},
		{"allow tcp from not ports http,dns,9:10,9,http", "allow tcp from not ports 9,9:10,dns,http"},
		{"allow 47", ""},
		{"allow tcp from not tag a and not cidr 10.0.0.0/8 and not selector \"has(x)\" and not set s not ports 1:2,http to not ports 9", ""},
		{"allow tcp from set s and selector \"has( x )\" and 10.0.0.0/8 and tag a ports 5:5", `allow tcp from tag a and cidr 10.0.0.0/8 and selector "has(x)" and set s ports 5`},
		{`allow from selector "a == \"it's\" && b=='\\'"`, `allow from selector "a == \"it's\" && b == '\\'"`},
		{"allow from tag and and cidr 10.0.0.0/8 to tag ports", ""},
		{"allow not icmp from cidr fd00::/8", ""},
		{"reject tcp to ports 113", ""},
		{"allow tcp from ports 1024:65535 tag x", "allow tcp from tag x ports 1024:65535"},
		{"allow tcp from ports 1024:65535 and tag x to cidr 10.0.0.0/8 ports 22", "allow tcp from tag x ports 1024:65535 to cidr 10.0.0.0/8 ports 22"},
		{"allow tcp to not ports 22 not tag b from set s tag a", "allow tcp from tag a and set s to not tag b not ports 22"},
		{"allow from tag a not cidr 10.0.0.0/8", "allow from tag a and not cidr 10.0.0.0/8"},
		{"allow icmp type echo-request", "allow icmp type 8"},
		{"deny not icmpv6 type nd-neighbor-solicit code 0", "deny not icmpv6 type 135 code 0"},
		{"\tallow\n  from\ttag a\r\n", "allow from tag a"},
		{"allow from selector \"a\tstartswith 'x'\n|| b notin {'y'}\"", `allow from selector "a starts with 'x' || b not in {'y'}"`},
	} {
		want := c.want
		if want == "" {
			want = c.in
		}
		r, err := ParseRule(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if got := r.String(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.in, got, want)
		}
		if err := r.Validate(); err != nil {
			t.Errorf("%s: validate: %v", c.in, err)
		}
	}
}

func TestRuleFields(t *testing.T) {
	r, err := ParseRule(`deny udp from not tag a and selector "has(k)" to ports 1:9,dns`)
	if err != nil {
		t.Fatal(err)
	}
	want := Rule{
		Action:   Deny,
		Protocol: ProtocolMatch{Set: true, Number: 17},
		From:     Side{Tag: Term{Not: true, Value: "a"}, Selector: Term{Value: "has(k)"}},
		To:       Side{Ports: []PortRange{{First: 1, Last: 9}, {Name: "dns"}}},
	}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got %+v\nwant %+v", r, want)
	}
}

func TestRuleErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", `rule: expected allow, deny, reject, log or pass (column 1)`},
		{"permit", `rule: "permit": expected allow, deny, reject, log or pass (column 1)`},
		{"allow tcp to prots 80", `rule: "prots": expected tag, cidr, selector, set or ports after "to" (column 14)`},
		{"allow tcp to", `rule: expected tag, cidr, selector, set or ports after "to" (column 13)`},
		{"allow to ports 80", `rule: "ports": expected ports only in a rule for tcp, udp or sctp after "to" (column 10)`},
		{"allow icmp to ports 80", `rule: "ports": expected ports only in a rule for tcp, udp or sctp after "to" (column 15)`},
		{"allow not tcp to ports 80", `rule: "ports": expected ports only in a rule for tcp, udp or sctp after "to" (column 18)`},
		{"allow tcp to ports 0", `(column 20)`},
		{"allow tcp to ports 80,", `rule: "80,": expected port numbers`},
		{"allow tcp to ports 90:80", `(column 20)`},
		{"allow tcp to ports 65536", `(column 20)`},
		{"allow tcp to ports", `(column 19)`},
		{"allow tcp to ports 1 from tag a to tag b", `rule: "to": expected another term, the end of the rule after "a" (column 33)`},
		{"allow tcp to ports 1 form tag a", `rule: "form": expected another term, from or the end of the rule after "1" (column 22)`},
		{"allow from tag a tag b", `rule: "tag": expected each kind of term once; it stands there twice after "a" (column 18)`},
		{"allow tcp from ports 1 tag a ports 2", `it stands there twice after "a" (column 30)`},
		{"allow from 10.0.0.0/8 11.0.0.0/8", `it stands there twice after "10.0.0.0/8" (column 23)`},
		{"allow from and tag a", `rule: "and": expected tag, cidr, selector, set or ports after "from" (column 12)`},
		{"allow from tag a and", `rule: expected tag, cidr, selector, set or ports after "and" (column 21)`},
		{"allow from tag a not", `rule: expected tag, cidr, selector, set or ports after "not" (column 21)`},
		{"allow icmp type ping", `rule: "ping": expected an ICMP type, a name such as echo-request or a number from 0 to 255 after "type" (column 17)`},
		{"allow icmpv6 type source-quench", `expected an ICMP type`},
		{"allow from 10.0.0.0/8 to fd00::/8", `rule: "fd00::/8": expected the same address family as 10.0.0.0/8`},
		{"allow icmp from fd00::/8", `rule: "fd00::/8": expected the same address family as icmp`},
		{"allow icmpv6 to 10.0.0.0/8", `the same address family as icmpv6`},
		{"allow from 10.0.0.1/8", `rule: "10.0.0.1/8": expected 10.0.0.0/8 (no bits behind the prefix length)`},
		{"allow from cidr 10.0.0", `expected a CIDR after "cidr" (column 17)`},
		{"allow from cidr 10.0.0.0/8,10.1.0.1/16", `rule: "10.1.0.1/16": expected 10.1.0.0/16 (no bits behind the prefix length) after "cidr" (column 28)`},
		{"allow from 10.0.0.0/8,", `rule: expected a CIDR after "from" (column 23)`},
		{"allow from cidr 10.0.0.0/8 ,11.0.0.0/8", `rule: ",11.0.0.0/8": expected`},
		{"allow from fd00::/8,fd01::/16 to 10.0.0.0/8,11.0.0.0/8", `rule: "10.0.0.0/8,11.0.0.0/8": expected the same address family as fd00::/8,fd01::/16`},
		{"allow icmpv6 from 10.0.0.0/8,11.0.0.0/8", `rule: "10.0.0.0/8,11.0.0.0/8": expected the same address family as icmpv6`},
		{"allow from cidr ::ffff:10.0.0.0/104", `expected a CIDR`},
		{"allow from tag", `rule: expected a tag after "tag" (column 15)`},
		{"allow from tag a and tag b", `rule: "tag": expected each kind of term once; it stands there twice after "and" (column 22)`},
		{"allow from tag a and ports 80", `rule: "ports": expected ports only in a rule for tcp, udp or sctp after "and" (column 22)`},
		{"allow icmp type 256", `rule: "256": expected an ICMP type, a name such as echo-request or a number from 0 to 255 after "type" (column 17)`},
		{"allow icmp code 1", `rule: "code": expected from or to after "icmp" (column 12)`},
		{"allow tcp type 1", `rule: "type": expected from or to after "tcp" (column 11)`},
		{"allow tpc", `rule: "tpc": expected tcp, udp, sctp, icmp, icmpv6, a protocol number, from or to after "allow" (column 7)`},
		{"allow 256", `rule: "256"`},
		{"allow from selector role", `rule: "role": expected an expression in double quotes after "selector" (column 21)`},
		{`allow from selector "role = 'x'"`, `(column 27)`},
		{`allow from selector "role`, `expected a closing quote`},
		{`allow from selector "all()"x`, `expected a closing quote and then a blank`},
		{`allow from "tag" a`, `rule: "tag"`},
		{"allow from tag ä", `rule: "ä": expected a tag after "tag" (column 16)`},
		{"allow\vfrom tag a", `expected no control characters`},
		{"allow from selector \"a == 'x\ty'\"", `expected no control characters`},
		{"allow \xff", `expected UTF-8`},
		{"allow from tag " + strings.Repeat("a", 5000), `expected at most 4096 bytes`},
	} {
		_, err := ParseRule(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.in, err, c.want)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", c.in, err)
		}
	}
}

func TestRuleValidateRefusesWhatTextDoesNotSay(t *testing.T) {
	for _, r := range []Rule{
		{},
		{Action: Allow, From: Side{Tag: Term{Value: "a and set b"}}},
		{Action: Allow, From: Side{Tag: Term{Value: "a b"}}},
		{Action: Allow, To: Side{Ports: []PortRange{{First: 1, Last: 1}}}},
		{Action: Allow, From: Side{Selector: Term{Value: "a=='b'"}}},
		{Action: Allow, Protocol: ProtocolMatch{Number: 6}},
	} {
		if r.Validate() == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
}

func FuzzRule(f *testing.F) {
	for _, s := range []string{
		"allow", "deny not icmp type 8 code 0", "allow from 10.0.0.0/8 to not cidr 11.0.0.0/8",
		`allow tcp from not selector "a in {'b', \"it's\"} || !has(c)" and tag x ports 1:2,http to set s not ports 9`,
		`allow from selector "\\`, "allow 6 to ports 80", `log icmpv6 from fd00::/8`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || !reflect.DeepEqual(r, again) || again.String() != r.String() {
			t.Fatalf("%q prints as %q, which is %+v, %v", s, r.String(), again, err)
		}
	})
}
