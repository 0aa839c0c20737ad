package datastore

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestSelector(t *testing.T) {
	web := map[string]string{"role": "web", "tier": "front-end", "org.x/y": "it's"}
	for _, c := range []struct {
		in, canonical string
		match         bool
	}{
		{"all()", "", true},
		{"!all()", "", false},
		{"has(role)", "", true},
		{"!has(role)", "", false},
		{"has(db)", "", false},
		{"role == 'web'", "", true},
		{`role=="web"`, "role == 'web'", true},
		{"role == 'db'", "", false},
		{"role != 'db'", "", true},
		{"role != 'web'", "", false},
		{"db != 'x'", "", true},
		{"db == ''", "", false},
		{"role in {'web', 'db'}", "", true},
		{"role in {'web','db','db'}", "role in {'db', 'web'}", true},
		{"role not in {'db'}", "", true},
		{"db in {'', 'x'}", "", false},
		{"db not in {'x'}", "", true},
		{"tier contains 'nt-e'", "", true},
		{"tier starts with 'front'", "", true},
		{"tier ends with 'end'", "", true},
		{"db ends with ''", "", false},
		{`org.x/y == "it's"`, "", true},
		{"role == 'web' && tier == 'x'", "", false},
		{"role == 'web' || tier == 'x'", "", true},
		{"has(db) && has(db) || has(role)", "", true},
		{"has(db) && (has(db) || has(role))", "", false},
		{"(has(db) && has(db)) || has(role)", "has(db) && has(db) || has(role)", true},
		{"has(role) && (has(tier) && has(db))", "has(role) && has(tier) && has(db)", false},
		{"!role == 'web'", "!(role == 'web')", false},
		{"!(has(db) || has(role))", "", false},
		{"!!has(role)", "", true},
		{"in in {'in'} || has == 'x' || all != 'y'", "", true},
		{"((role == 'web'))", "role == 'web'", true},
	} {
		s, err := ParseSelector(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		want := c.canonical
		if want == "" {
			want = strings.ReplaceAll(c.in, "in {'web', 'db'}", "in {'db', 'web'}")
		}
		if s.String() != want {
			t.Errorf("%s prints as %s, want %s", c.in, s, want)
		}
		if s.Matches(web) != c.match {
			t.Errorf("%s: matches %v", c.in, !c.match)
		}
	}
}

func TestSelectorErrors(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"role", `selector: expected ==, !=, in, not in, contains, starts with or ends with after "role" (column 5)`},
		{"role = 'x'", `selector: "=": expected a label, a value in quotes or an operator (column 6)`},
		{"role == web", `selector: "web": expected a value in quotes after "==" (column 9)`},
		{"role == 'web", `expected a closing quote (column 9)`},
		{"role in {}", `selector: "}": expected a value in quotes after "{" (column 10)`},
		{"role in {'a' 'b'}", `expected , or }`},
		{"role starts 'a'", `expected with`},
		{"role not 'a'", `expected in`},
		{"has role", `expected ==`},
		{"has()", `expected a label`},
		{"some()", `selector: "some": expected has(…), all() or global() (column 1)`},
		{"all() &&", `(column 9)`},
		{"a startswith", `(column 13)`},
		{"a notin 'x'", `expected {`},
		{"(has(a)", `expected &&, || or )`},
		{"has(a) has(b)", `selector: "has": expected && or || after ")" (column 8)`},
		{"has(a) &&", `(column 10)`},
		{"-a == 'x'", `selector: "-a": expected a label (column 1)`},
		{"a == 'x\ny'", `expected no control characters`},
		{strings.Repeat("!", 100) + "all()", `expected at most 64 levels`},
		{strings.Repeat("(", 5000), `expected at most 4096 bytes`},
	} {
		_, err := ParseSelector(c.in)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", c.in, err, c.want)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v is not ErrInvalid", c.in, err)
		}
	}
}

func meets(n *Need, labels map[string]string) bool {
	does := func(o *Need) bool { return meets(o, labels) }
	switch v, ok := labels[n.Key]; {
	case n.All != nil:
		return !slices.ContainsFunc(n.All, func(o *Need) bool { return !does(o) })
	case n.Any != nil:
		return slices.ContainsFunc(n.Any, does)
	default:
		return ok && (n.Values == nil || slices.Contains(n.Values, v))
	}
}

// TestSelectorNeeds: what it needs is known of each selector that an endpoint without
// labels does not match by what it lacks; all others need nothing.
func TestSelectorNeeds(t *testing.T) {
	with := func(key string, values ...string) *Need { return &Need{Key: key, Values: values} }
	for in, want := range map[string]*Need{
		"all()":                              nil,
		"a != 'x'":                           nil,
		"a not in {'x'}":                     nil,
		"!has(a)":                            nil,
		"a == 'x' || all()":                  nil,
		"a != 'x' && !has(b)":                nil,
		"has(a)":                             with("a"),
		"a == 'x'":                           with("a", "x"),
		"a in {'y', 'x'}":                    with("a", "x", "y"),
		"a contains 'x'":                     with("a"),
		"a starts with 'x'":                  with("a"),
		"a ends with 'x'":                    with("a"),
		"a == 'x' && b != 'y'":               with("a", "x"),
		"a == 'x' && has(b) && !has(c)":      {All: []*Need{with("a", "x"), with("b")}},
		"a == 'x' || (b == 'y' && c != 'z')": {Any: []*Need{with("a", "x"), with("b", "y")}},
	} {
		s, err := ParseSelector(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Need(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s needs %+v, want %+v", in, got, want)
		}
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{
		"all()", "!has(a) && (b == 'c' || d != \"e'\")", "a in {'x', 'y'}", "a not in {'x'}",
		"a starts with 'b' || a ends with 'c' && a contains 'd'", "!(!(a == ''))",
	} {
		f.Add(s, "a", "x")
	}
	f.Fuzz(func(t *testing.T, s, key, value string) {
		sel, err := ParseSelector(s)
		if err != nil {
			return
		}
		again, err := ParseSelector(sel.String())
		if err != nil || again.String() != sel.String() {
			t.Fatalf("%q prints as %q, which is %v, %v", s, sel, again, err)
		}
		for _, labels := range []map[string]string{nil, {key: value}} {
			if sel.Matches(labels) != again.Matches(labels) {
				t.Fatalf("%q and its canonical form %q differ for %v", s, sel, labels)
			}
			if n := sel.Need(); n != nil && sel.Matches(labels) && !meets(n, labels) {
				t.Fatalf("%q holds for %v, which lack what it needs", sel, labels)
			}
		}
	})
}

// TestCalicoSelectors: expressions that Calico's own tests publish (libcalico-go,
// lib/selector/parser, of v3.30) mean here what they mean there.
func TestCalicoSelectors(t *testing.T) {
	l := func(pairs ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	type labels = []map[string]string
	for _, c := range []struct {
		in           string
		matches, not labels
	}{
		{`a == "b"`, labels{l("a", "b"), l("a", "b", "c", "d")}, labels{l(), l("a", "c"), l("c", "d")}},
		{`a == "b" && c == "d"`, labels{l("a", "b", "c", "d")}, labels{l(), l("a", "b", "c", "e"), l("a", "c", "c", "d"), l("c", "d"), l("a", "b")}},
		{`a == "b" || c == "d"`, labels{l("a", "b", "c", "d"), l("a", "b"), l("c", "d")}, labels{l(), l("a", "e", "c", "e"), l("c", "e"), l("a", "e")}},
		{`a in {"'", '"', "c"}`, labels{l("a", "c"), l("a", `"`), l("a", "'")}, labels{l(), l("a", "e")}},
		{`a not in {"'", '"', "c"}`, labels{l(), l("a", "e")}, labels{l("a", "c"), l("a", `"`), l("a", "'")}},
		{`a != "b"`, labels{l("a", "a"), l()}, labels{l("a", "b")}},
		{`a contains "a"`, labels{l("a", "a"), l("a", "bab"), l("a", "aaa", "b", "c")}, labels{l(), l("a", "b"), l("b", "aaa")}},
		{`a starts with "a"`, labels{l("a", "a"), l("a", "abb")}, labels{l(), l("a", "b"), l("a", "baa"), l("b", "aaa")}},
		{`a ends with "a"`, labels{l("a", "a"), l("a", "bba")}, labels{l(), l("a", "b"), l("a", "aab"), l("b", "aaa")}},
		{`!a in {"a"}`, labels{l("a", "b")}, labels{l("a", "a")}},
		{``, labels{l(), l("a", "b")}, nil},
		{` `, labels{l(), l("a", "b")}, nil},
		{` all()`, labels{l(), l("a", "b")}, nil},
		{` global()`, labels{l(), l("a", "b")}, nil},
		{` (all() )`, labels{l()}, nil},
		{`!!has(b)`, nil, labels{l("a", "b")}},
		{`! has(a)`, labels{l("b", "b")}, labels{l("a", "b")}},
		{`!! ! has(a)`, nil, labels{l("a", "b")}},
		{`! !!has(a)`, nil, labels{l("a", "b")}},
		{`a == 'a1' && b != 'b1'`, nil, labels{l("a", "a1", "b", "b1")}},
		{`a != 'a1' && !b == 'b1'`, nil, labels{l("a", "a1", "b", "b1")}},
		{`has(a) && !has(b)`, labels{l("a", "a")}, nil},
		{`!(!has(a) || has(b))`, labels{l("a", "a")}, nil},
		{`! (has( b)||! has(a ))`, labels{l("a", "a")}, labels{l("b", "b"), l()}},
		{`! (a == "b"&&! c != "d")`, labels{l("a", "b"), l("c", "d")}, labels{l("a", "b", "c", "d")}},
		{`! a == 'a1' || ! b == 'b1'`, nil, labels{l("a", "a1", "b", "b1")}},
		{`a startswith '"'`, labels{l("a", `"x`)}, labels{l("a", "x")}},
		{`a endswith "'"`, labels{l("a", "x'")}, labels{l("a", "x")}},
		{`a!='"'`, labels{l("a", "x")}, labels{l("a", `"`)}},
		{`a in {"z", "z", "x", "y", "x", "a"}`, labels{l("a", "y")}, labels{l("a", "b")}},
		{"a\t==\t'b'", labels{l("a", "b")}, nil},
		{`!(!(k == 'v' && has(t) || all()) && (a in {'b', 'c'}))`, labels{l(), l("a", "b")}, nil},
	} {
		s, err := ParseSelector(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		again, err := ParseSelector(s.String())
		if err != nil {
			t.Errorf("%s: prints as %s: %v", c.in, s, err)
			continue
		}
		for want, list := range map[bool]labels{true: c.matches, false: c.not} {
			for _, m := range list {
				if s.Matches(m) != want || again.Matches(m) != want {
					t.Errorf("%s: of %v: %v, not %v", c.in, m, s.Matches(m), want)
				}
			}
		}
	}
	for _, in := range []string{
		"b == b", "b contains b", "b starts with b", "b ends with b", "'b1' == b", "b", "a b", "!", `foo == "bar" &`, `foo == "bar" |`, "foo != ||", `foo in {"", ||`,
		`foo in ""`, `"FOO`, `"FOO'`, `'FOO`, "(", `(a == "foo"`, ")", "()", "%", `a == "b" && %`, `a == "b" || %`, "a ", "has(foo) &&",
	} {
		if s, err := ParseSelector(in); err == nil {
			t.Errorf("%s is taken for %s", in, s)
		}
	}
}
