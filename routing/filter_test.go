package routing

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/datastore/storetest"
)

func filter(t testing.TB, name string, rest datastore.FilterAction, rules ...string) Filter {
	t.Helper()
	return Filter{Name: name, Spec: datastore.BGPFilterSpec{Import: storetest.FilterRules(t, rules...), ImportDefault: rest}}
}

func communities(t testing.TB, texts ...string) (out []datastore.Community) {
	t.Helper()
	for _, s := range texts {
		c, err := datastore.ParseCommunity(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	return out
}

// TestPolicy: what each kind of term matches, and who decides.
func TestPolicy(t *testing.T) {
	pools := []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16")}
	route := func(prefix string, change func(*Announcement)) *Announcement {
		a := &Announcement{Prefix: netip.MustParsePrefix(prefix), NextHop: netip.MustParseAddr("192.168.99.1"), Peer: netip.MustParseAddr("192.168.99.1"),
			Outside: true, External: true, Attributes: &Attributes{ASPath: "65001 65002", Communities: communities(t, "64512:1", "1:2:3")}}
		if change != nil {
			change(a)
		}
		return a
	}
	plain := route("10.1.2.0/24", nil)
	inside := route("10.65.1.0/26", func(a *Announcement) {
		a.Outside, a.External, a.Reflected = false, false, true
		a.Attributes = &Attributes{}
	})
	own := route("10.65.0.0/26", func(a *Announcement) {
		a.Peer, a.NextHop, a.Outside, a.External = netip.Addr{}, netip.Addr{}, false, false
		a.Attributes = &Attributes{}
	})
	six := route("fd00:1::/48", func(a *Announcement) { a.NextHop = netip.MustParseAddr("fd00::1") })
	all := []*Announcement{plain, inside, own, six}
	names := map[*Announcement]string{plain: "plain", inside: "inside", own: "own", six: "six"}
	for _, c := range []struct{ rule, want string }{
		{"accept", "plain inside own six"},
		{"accept prefix 10.0.0.0/8", ""},
		{"accept prefix 10.0.0.0/8 le 24", "plain"},
		{"accept prefix 10.0.0.0/8 ge 25", "inside own"},
		{"accept prefix 10.1.2.0/24, ::/0 le 48", "plain six"},
		{"accept not prefix 0.0.0.0/0 le 32", "six"},
		{"accept pool any", "inside own"},
		{"accept pool 10.65.1.0/24", "inside"},
		{"accept not pool any and prefix 0.0.0.0/0 le 32", "plain"},
		{"accept community 64512:*", "plain six"},
		{"accept community 64512:2, 1:2:3", "plain six"},
		{"accept community 1:2:4, *:9", ""},
		{"accept not community *:* and not community *:*:*", "inside own"},
		{`accept as-path "^65001_"`, "plain six"},
		{`accept as-path "^$"`, "inside own"},
		{"accept next-hop 192.168.99.0/24", "plain inside"},
		{"accept not next-hop 0.0.0.0/0, ::/0", "own"},
		{"accept source local", "own"},
		{"accept source node", "inside"},
		{"accept source outside", "plain six"},
		{"accept source internal", "inside"},
		{"accept source external", "plain six"},
		{"accept source reflected", "inside"},
		{"accept source 192.168.99.1", "plain inside six"},
		{"accept not source local, 192.168.99.1", ""},
	} {
		p := new(Policies).Compile(Import, []Filter{filter(t, "f", datastore.FilterReject, c.rule)}, pools)
		var got []string
		for _, a := range all {
			if p.Decide(a).Accept {
				got = append(got, names[a])
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %v, want %s", c.rule, got, c.want)
		}
	}
	chain := []Filter{
		filter(t, "a", datastore.FilterNext, "reject prefix 10.1.2.0/24", "accept pool any then local-pref 7"),
		filter(t, "says-nothing", ""),
		filter(t, "b", datastore.FilterReject, "accept prefix fd00:1::/48"),
		filter(t, "c", datastore.FilterAccept),
	}
	p := new(Policies).Compile(Import, chain, pools)
	for a, want := range map[*Announcement]string{
		plain:                       "false filter a, import rule 1: reject prefix 10.1.2.0/24",
		inside:                      "true filter a, import rule 2: accept pool any then local-pref 7",
		six:                         "true filter b, import rule 1: accept prefix fd00:1::/48",
		route("172.16.0.0/12", nil): "false filter b, import default: reject",
	} {
		if v := p.Decide(a); fmt.Sprint(v.Accept, " ", v.By) != want || (v.Set != nil) != (a == inside) {
			t.Errorf("%s: %+v, want %s", a.Prefix, v, want)
		}
	}
	if p := new(Policies).Compile(Export, chain, pools); p != nil {
		t.Error("what says nothing of exports is a policy")
	}
	missing := new(Policies).Compile(Export, []Filter{{Name: "gone", Missing: true}}, pools)
	if v := missing.Decide(plain); v.Accept || v.By != "filter gone, which does not exist" {
		t.Errorf("without its filter: %+v", v)
	}
}

// TestPoliciesAreOne: the same filters have the same pointer, as long as somebody asks.
func TestPoliciesAreOne(t *testing.T) {
	var c Policies
	pools := []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16")}
	plain, pool := []Filter{filter(t, "a", "", "accept prefix 10.0.0.0/8")}, []Filter{filter(t, "a", "", "accept pool any")}
	one, two := c.Compile(Import, plain, pools), c.Compile(Import, pool, pools)
	c.Begin()
	if c.Compile(Import, plain, nil) != one || c.Compile(Import, pool, nil) == two || c.Compile(Import, pool, pools) != two || one == two {
		t.Error("the same is not one, or another is")
	}
	c.Begin()
	c.Begin()
	if c.Compile(Import, plain, nil) == one {
		t.Error("kept although nobody asked")
	}
}

// naive decides as the documentation says, one thing after the other.
func naive(filters []Filter, pools []netip.Prefix, a *Announcement) (accept bool, set datastore.FilterSet, filterName string, rule int) {
	within := func(p netip.Prefix, nets []netip.Prefix) bool {
		for _, n := range nets {
			if n.Contains(p.Addr()) && n.Bits() <= p.Bits() {
				return true
			}
		}
		return false
	}
	holds := func(term datastore.FilterTerm) bool {
		switch term.Kind {
		case datastore.TermPrefix:
			for _, r := range term.Prefixes {
				if r.Contains(a.Prefix) {
					return true
				}
			}
		case datastore.TermPool:
			if len(term.Nets) == 0 {
				return within(a.Prefix, pools)
			}
			return within(a.Prefix, term.Nets)
		case datastore.TermNextHop:
			for _, n := range term.Nets {
				if n.Contains(a.NextHop) {
					return true
				}
			}
		case datastore.TermCommunity:
			for _, p := range term.Communities {
				for _, c := range a.Communities {
					if p.Matches(c) {
						return true
					}
				}
			}
		case datastore.TermASPath:
			e, err := datastore.CompileASPath(term.ASPath)
			return err == nil && e.MatchString(a.ASPath)
		case datastore.TermSource:
			learnt := a.Peer.IsValid()
			for _, s := range term.Sources {
				if s.Peer.IsValid() && s.Peer == a.Peer || s.Word == "local" && !learnt || s.Word == "node" && learnt && !a.Outside || s.Word == "outside" && learnt && a.Outside ||
					s.Word == "internal" && learnt && !a.External || s.Word == "external" && learnt && a.External || s.Word == "reflected" && learnt && a.Reflected {
					return true
				}
			}
		}
		return false
	}
	for _, f := range filters {
		for i, r := range f.Spec.Import {
			all := true
			for _, term := range r.Terms {
				all = all && holds(term) != term.Not
			}
			if all {
				return r.Action == datastore.FilterAccept, r.Set, f.Name, i + 1
			}
		}
		switch f.Spec.ImportDefault {
		case datastore.FilterAccept:
			return true, set, f.Name, 0
		case datastore.FilterReject:
			return false, set, f.Name, 0
		}
	}
	return true, set, "", 0
}

// TestPolicyIsNaive holds compiled filters against naive, over random ones.
func TestPolicyIsNaive(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	prefix := func() string {
		if r.IntN(3) == 0 {
			bits := r.IntN(129)
			p, _ := netip.AddrFrom16([16]byte{0xfd, 0, byte(r.IntN(2)), byte(r.IntN(2) * 128)}).Prefix(bits)
			return p.String()
		}
		p, _ := netip.AddrFrom4([4]byte{10, byte(64 + r.IntN(3)), byte(r.IntN(2) * 128), byte(r.IntN(4) * 64)}).Prefix(r.IntN(33))
		return p.String()
	}
	many := func(one func() string) string {
		s := one()
		for r.IntN(3) == 0 {
			s += ", " + one()
		}
		return s
	}
	ranged := func() string {
		p := netip.MustParsePrefix(prefix())
		s, least := p.String(), p.Bits()
		if r.IntN(2) == 0 {
			least += r.IntN(p.Addr().BitLen() - least + 1)
			s += fmt.Sprint(" ge ", least)
		}
		if r.IntN(2) == 0 {
			s += fmt.Sprint(" le ", least+r.IntN(p.Addr().BitLen()-least+1))
		}
		return s
	}
	community := func() string { return pick("1:1", "1:2", "2:1", "1:1:1", "1:2:1", "no-export") }
	address := func() string { return pick("10.64.0.1", "10.65.0.1", "fd00::1") }
	term := func() string {
		return pick("", "", "not ") + pick("prefix "+many(ranged), "pool any", "pool "+many(prefix), "next-hop "+many(prefix), "community "+many(func() string { return pick(community(), "1:*", "*:1", "*:2:*") }),
			`as-path "`+pick("_1_", "^1_", "_2$", "^$", "1( 2)*$", "^[12 ]+$")+`"`, "source "+many(func() string { return pick("local", "node", "outside", "internal", "external", "reflected", address()) }))
	}
	rule := func() string {
		s := pick("accept", "reject")
		action := s
		for n := r.IntN(4); n > 0; n-- {
			s += " " + term()
			if n > 1 {
				s += " and"
			}
		}
		if action == "accept" && r.IntN(2) == 0 {
			s += " then local-pref " + pick("1", "2")
		}
		return s
	}
	matched := 0
	for range 400 {
		pools := []netip.Prefix{netip.MustParsePrefix(prefix()), netip.MustParsePrefix(prefix())}
		var filters []Filter
		for i := range 1 + r.IntN(3) {
			var rules []string
			for range r.IntN(5) {
				rules = append(rules, rule())
			}
			filters = append(filters, filter(t, fmt.Sprint("f", i), datastore.FilterAction(pick("accept", "reject", "next")), rules...))
		}
		p := new(Policies).Compile(Import, filters, pools)
		for range 50 {
			a := &Announcement{Prefix: netip.MustParsePrefix(prefix()), Attributes: &Attributes{ASPath: pick("", "1", "1 2", "2 1 2", "{1,2}", "11 2")}}
			if r.IntN(4) > 0 {
				a.Peer, a.NextHop = netip.MustParseAddr(address()), netip.MustParseAddr(address())
				a.Outside, a.External, a.Reflected = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
			}
			for range r.IntN(3) {
				if c := communities(t, community())[0]; !slices.Contains(a.Communities, c) {
					a.Communities = append(a.Communities, c)
				}
			}
			accept, set, name, at := naive(filters, pools, a)
			v := p.Decide(a)
			by := fmt.Sprintf("filter %s, import rule %d:", name, at)
			if at == 0 {
				by = fmt.Sprintf("filter %s, import default:", name)
			} else {
				matched++
			}
			if name == "" {
				by = "no filter"
			}
			if v.Accept != accept || !strings.HasPrefix(v.By, by) || (v.Set == nil) != set.IsZero() || v.Set != nil && v.Set.String() != set.String() {
				t.Fatalf("seed %d: %+v %+v is %+v, want %v by %s %s\nfilters %+v", seed, a, a.Attributes, v, accept, by, set, filters)
			}
		}
	}
	if matched < 1000 {
		t.Errorf("rules decided %d times only", matched)
	}
}
