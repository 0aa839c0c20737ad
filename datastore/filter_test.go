package datastore

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestFilterRuleCanonical(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"accept", ""},
		{"reject", ""},
		{"accept prefix 10.0.0.0/8", ""},
		{"accept prefix 10.0.0.0/8 ge 8 le 8", "accept prefix 10.0.0.0/8"},
		{"accept prefix 10.0.0.0/8 ge 9", ""},
		{"accept prefix 10.0.0.0/8 ge 8", "accept prefix 10.0.0.0/8 le 32"},
		{"accept prefix 10.0.0.0/8 le 24", ""},
		{"reject prefix 10.0.0.0/8 ge 16 le 24,FD00::/8 le 64 ,192.168.1.1", "reject prefix 10.0.0.0/8 ge 16 le 24, fd00::/8 le 64, 192.168.1.1/32"},
		{"reject pool any", ""},
		{"reject not pool 10.65.0.0/16,10.66.0.0/16", "reject not pool 10.65.0.0/16, 10.66.0.0/16"},
		{"accept community 64512:1 and not community 64512:*, 1:*:3, no-export", ""},
		{"accept community 65535:666, 65535:65281", "accept community blackhole, no-export"},
		{`accept as-path "_65001$" and as-path "^(65002 )+" and not as-path "\\{"`, ""},
		{"accept next-hop 10.0.0.1 and next-hop fd00::/64", "accept next-hop 10.0.0.1/32 and next-hop fd00::/64"},
		{"accept source local, 192.168.99.1,reflected", "accept source local, 192.168.99.1, reflected"},
		{"accept then local-pref 0", ""},
		{"accept then prepend 3 and med 7 and local-pref 200", "accept then local-pref 200 and med 7 and prepend 3"},
		{"accept prefix ::/0 then add community 64512:1, 1:2:3 and remove community *:*, *:*:*", "accept prefix ::/0 then remove community *:*, *:*:* and add community 64512:1, 1:2:3"},
		{"accept then community 64512:1", ""},
	} {
		want := c.want
		if want == "" {
			want = c.in
		}
		r, err := ParseFilterRule(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if got := r.String(); got != want {
			t.Errorf("%s:\n got %s\nwant %s", c.in, got, want)
		}
		again, err := ParseFilterRule(r.String())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%s: read again it is %+v, %v", c.in, again, err)
		}
	}
}

func TestFilterRuleErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", `filter rule: expected accept or reject (column 1)`},
		{"allow", `filter rule: "allow": expected accept or reject (column 1)`},
		{"accept from", `filter rule: "from": expected prefix, pool, community, as-path, next-hop, source, not or then after "accept" (column 8)`},
		{"accept then", `expected local-pref, med, community, add community, remove community or prepend after "then"`},
		{"reject then med 1", `what is rejected is not changed`},
		{"accept prefix 10.0.0.1/8", `expected 10.0.0.0/8 (no bits behind the prefix length) after "prefix" (column 15)`},
		{"accept prefix 10.0.0.0/8 ge 7", `expected a prefix length from 8 to 32 after "ge"`},
		{"accept prefix 10.0.0.0/8 ge 24 le 16", `expected a prefix length from 24 to 32 after "le"`},
		{"accept prefix ::ffff:10.0.0.0/104", `expected a prefix`},
		{"accept prefix 10.0.0.0/8,", `expected a prefix after ","`},
		{"accept prefix 10.0.0.0/8 pool any", `"pool": expected and, then or the end of the rule`},
		{"accept pool any, 10.0.0.0/8", `",": expected and, then`},
		{"accept community 70000:1", `expected a community`},
		{"accept community *", `expected a community`},
		{"accept as-path 65001", `expected a regular expression in double quotes`},
		{`accept as-path "AS65001"`, `'A' is in no AS path`},
		{`accept as-path "("`, `missing closing ): (`},
		{`accept as-path "[_]"`, `_ does not stand in [ ]`},
		{`accept as-path "[]_]"`, `does not stand in [ ]`},
		{`accept as-path "[^]_]"`, `does not stand in [ ]`},
		{`accept as-path "(?i:1)"`, `there is (?: only`},
		{`accept as-path "\\Q_\\E"`, `\ needs one of`},
		{`accept as-path "((1{500}){500}){500}"`, `invalid repeat count`},
		{`accept as-path "((1?){9}){99}"`, `it repeats too much`},
		{"accept source nowhere", `expected local, node, outside, internal, external, reflected or the address of a peer`},
		{"accept then med 1 and med 2", `expected each kind of change once`},
		{"accept then community 1:1 and add community 1:2", `against another`},
		{"accept then prepend 17", `from 1 to 16`},
		{"accept then local-pref 4294967296", `from 0 to 4294967295`},
		{"accept not", `expected prefix`},
		{"accept" + strings.Repeat(" and pool any", 40)[4:], `no more than 32 terms`},
	} {
		_, err := ParseFilterRule(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "filter rule:") {
			t.Errorf("%s: %v, want %s", c.in, err, c.want)
		}
	}
}

func TestASPath(t *testing.T) {
	for _, c := range []struct {
		expr    string
		yes, no []string
	}{
		{"^$", []string{""}, []string{"65001"}},
		{"_65001_", []string{"65001", "65001 2", "1 65001", "1 65001 2", "1 {65001,2}", "{3,65001}", "{3,65001} 4"}, []string{"", "650010", "165001", "1 650012"}},
		{"^65001_", []string{"65001", "65001 2"}, []string{"650012", "2 65001"}},
		{"_65001_65002_", []string{"65001 65002", "9 65001 65002 9", "{65001,65002}"}, []string{"65001  65002", "65001 9 65002"}},
		{`^[0-9]+$`, []string{"65001"}, []string{"", "65001 65001"}},
		{`^(65001_)+$`, []string{"65001", "65001 65001"}, []string{"65001 65002", ""}},
		{`\{.*\}$`, []string{"1 {2,3}"}, []string{"1 2"}},
		{"^65001( 65001){2,}$", []string{"65001 65001 65001"}, []string{"65001 65001"}},
		{"[^12 ]", []string{"13"}, []string{"1 2"}},
	} {
		e, err := CompileASPath(c.expr)
		if err != nil {
			t.Errorf("%s: %v", c.expr, err)
			continue
		}
		for _, s := range c.yes {
			if !e.MatchString(s) {
				t.Errorf("%s does not match %q", c.expr, s)
			}
		}
		for _, s := range c.no {
			if e.MatchString(s) {
				t.Errorf("%s matches %q", c.expr, s)
			}
		}
	}
}

// FuzzFilterRule: what is read has a text that is read as the same.
func FuzzFilterRule(f *testing.F) {
	for _, s := range []string{
		"accept", "reject prefix 10.0.0.0/8 ge 16 le 24,fd00::/8 le 64 and not pool any", `accept as-path "_65001( 65002)*$" and source local, 192.168.99.1`,
		"accept community 64512:*, 1:*:3, no-export and next-hop fd00::/8 then local-pref 200 and med 0 and remove community *:* and add community 1:2 and prepend 3",
		"accept then community blackhole", `reject as-path "[]_]"`, `reject as-path "\\{1{3}"`, "accept prefix 10.0.0.0/8 ,,", `accept "then"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseFilterRule(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v", s, err)
			}
			return
		}
		again, err := ParseFilterRule(r.String())
		if err != nil || !reflect.DeepEqual(r, again) || again.String() != r.String() {
			t.Fatalf("%q is %q, and that %q, %v", s, r, again, err)
		}
	})
}

// TestDeadRules: what can never match is said, and nothing else.
func TestDeadRules(t *testing.T) {
	pools := []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16"), netip.MustParsePrefix("fd00:65::/64")}
	for _, c := range []struct {
		rules []string
		want  string
	}{
		{[]string{"accept"}, ""},
		{[]string{"accept prefix 10.65.0.0/16 le 24 and pool any"}, ""},
		{[]string{"accept prefix 10.66.0.0/16 le 24 and pool any"}, "rule 1 never matches: no prefix is left by pool any"},
		{[]string{"accept prefix 10.65.0.0/16 and prefix 10.65.0.0/16 ge 17"}, "rule 1 never matches: no prefix is left by prefix 10.65.0.0/16 ge 17"},
		{[]string{"accept prefix 10.0.0.0/8 le 32 and not prefix 0.0.0.0/0 le 32"}, "rule 1 never matches: no prefix is left by not prefix 0.0.0.0/0 le 32"},
		{[]string{"accept prefix 10.0.0.0/8 le 32 and not prefix 0.0.0.0/0 le 31"}, ""},
		{[]string{"accept pool 10.99.0.0/16"}, "rule 1 never matches: there is no pool 10.99.0.0/16"},
		{[]string{"accept pool 10.65.7.0/24"}, ""},
		{[]string{"accept source local"}, "rule 1 never matches: no route is from there"},
		{[]string{"accept source external and source reflected"}, "rule 1 never matches: no route is from there"},
		{[]string{"accept source node and not source internal, external"}, "rule 1 never matches: no route is from there"},
		{[]string{"accept source 10.0.0.1 and source 10.0.0.2"}, "rule 1 never matches: no route is from there"},
		{[]string{"accept source 10.0.0.1, node and source outside, internal and not source reflected"}, ""},
		{[]string{"accept next-hop 10.0.0.0/8 and next-hop 10.1.0.0/16, 11.0.0.0/8 and next-hop 10.2.0.0/16"}, "rule 1 never matches: no next hop lies in all of that"},
		{[]string{"accept next-hop 10.0.0.0/8 and next-hop 10.1.0.0/16, 11.0.0.0/8 and not next-hop 10.2.0.0/16"}, ""},
		{[]string{"accept community 1:1 and not community 1:1"}, "rule 1 never matches: community 1:1 and the opposite"},
		{[]string{"reject", "accept pool any"}, "rule 2 never matches: rule 1 takes all that it would"},
		{[]string{"reject prefix 10.0.0.0/8 le 24", "accept prefix 10.1.0.0/16 le 24", "accept prefix 10.1.0.0/16 le 25"}, "rule 2 never matches: rule 1 takes all that it would"},
		{[]string{"reject prefix 10.0.0.0/8 le 32, fd00::/8 le 128", "accept pool any"}, "rule 2 never matches: rule 1 takes all that it would"},
		{[]string{"reject prefix 10.0.0.0/8 le 32", "accept pool any"}, ""},
		{[]string{"reject community 1:1 and pool any", "accept pool any", "accept community 1:1 and pool 10.65.0.0/16 and source node"}, "rule 3 never matches: rule 1 takes all that it would"},
		{[]string{"reject source local", "accept source external"}, "rule 1 never matches: no route is from there"},
		{[]string{"reject not pool any", "accept not pool any and community 1:1"}, "rule 2 never matches: rule 1 takes all that it would"},
		{[]string{"reject not pool any", "accept prefix 10.66.0.0/16"}, ""},
	} {
		f := &BGPFilter{}
		for _, s := range c.rules {
			r, err := ParseFilterRule(s)
			if err != nil {
				t.Fatal(err)
			}
			f.Spec.Import = append(f.Spec.Import, r)
		}
		want := c.want
		if want != "" {
			want = "import " + want
		}
		if got := strings.Join(f.Dead(pools), "; "); got != want {
			t.Errorf("%q: %q, want %q", c.rules, got, want)
		}
	}
	r, _ := ParseFilterRule("accept source local")
	if got := (&BGPFilter{Spec: BGPFilterSpec{Export: []FilterRule{r}}}).Dead(nil); got != nil {
		t.Error(got)
	}
	if got := (&BGPFilter{}).Dead(nil); len(got) != 1 || !strings.Contains(got[0], "says nothing") {
		t.Error(got)
	}
}

func TestFilterRoute(t *testing.T) {
	r, err := ParseFilterRoute(`reject 10.65.1.0/26 as-path " 65001  {1,2}" community 1:1, no-export next-hop 192.168.99.1 source outside, 192.168.99.1`)
	want := FilterRoute{FilterReject, netip.MustParsePrefix("10.65.1.0/26"), netip.MustParseAddr("192.168.99.1"), "65001 {1,2}",
		[]Community{{Parts: [3]uint32{1, 1}}, {Parts: [3]uint32{0xffff, 0xff01}}}, []FilterSource{{Word: "outside"}, {Peer: netip.MustParseAddr("192.168.99.1")}}}
	if err != nil || !reflect.DeepEqual(r, want) {
		t.Errorf("%+v, %v", r, err)
	}
	for in, want := range map[string]string{
		"": "expected a prefix", "accept": "expected a prefix", "10.0.0.1/8": "expected 10.0.0.0/8", "10.0.0.0/8 med 1": "as-path, community, next-hop, source or the end",
		"10.0.0.0/8 as-path 65001": "in double quotes", `10.0.0.0/8 as-path "x"`: "in double quotes", "10.0.0.0/8 next-hop 10.0.0.0/8": "expected an address",
		"10.0.0.0/8 community 1:*": "expected a community", "10.0.0.0/8 source local source node": "each property once",
	} {
		if _, err := ParseFilterRoute(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
}
