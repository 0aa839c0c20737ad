package commands

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRuleArguments(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"inbound|allow|from|tag|web", "allow from tag web"},
		{"inbound|allow from tag web", "allow from tag web"},
		{"outbound|allow|tcp|to|selector|role == 'web'|ports|80", `allow tcp to selector "role == 'web'" ports 80`},
		{`inbound|allow|from|selector|role == "it's"`, `allow from selector "role == \"it's\""`},
		{`inbound|allow|from|selector|"all()"`, `allow from selector "all()"`},
		{`inbound|allow from selector "has(a)"`, `allow from selector "has(a)"`},
	} {
		r, err := ruleArguments(strings.Split(c.in, "|")[1:])
		if err != nil || r.String() != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.in, r, err, c.want)
		}
	}
}

func TestCIDRsOf(t *testing.T) {
	for _, c := range []struct{ first, last, want string }{
		{"10.0.0.0", "10.0.0.255", "10.0.0.0/24"},
		{"10.0.0.1", "10.0.0.4", "10.0.0.1/32 10.0.0.2/31 10.0.0.4/32"},
		{"0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"255.255.255.255", "255.255.255.255", "255.255.255.255/32"},
		{"fd00::", "fd00::1:ffff", "fd00::/111"},
	} {
		if got := strings.ReplaceAll(joined(cidrsOf(netip.MustParseAddr(c.first), netip.MustParseAddr(c.last))), ",", " "); got != c.want {
			t.Errorf("%s to %s: got %s, want %s", c.first, c.last, got, c.want)
		}
	}
}
