package acl

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// crowd is an index with n members of other nodes, of which every member numbered
// below matching has the label role=db and all others role=web, and an endpoint of
// this node with the profile web.
type crowd struct {
	t *testing.T
	x *Index
}

func newCrowd(t *testing.T, n, matching int) crowd {
	c := crowd{t, NewIndex("node0", testOptions())}
	for i := range n {
		role := "web"
		if i < matching {
			role = "db"
		}
		c.put(c.endpoint("node1", fmt.Sprint("w", i), i, "other", "role", role, "nr", fmt.Sprint(i%1000)))
	}
	c.profile("web", "allow tcp to ports 80")
	c.put(c.endpoint("node0", "a", n, "web"))
	c.x.Flush()
	return c
}

func (c crowd) put(o datastore.Object) {
	c.x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
}

func (c crowd) endpoint(node, workload string, i int, profile string, labels ...string) *datastore.Endpoint {
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: node + "/cni/" + workload + "/eth0"}}
	for pair := range slices.Chunk(labels, 2) {
		if e.Metadata.Labels == nil {
			e.Metadata.Labels = map[string]string{}
		}
		e.Metadata.Labels[pair[0]] = pair[1]
	}
	e.Spec = datastore.EndpointSpec{Node: node, Link: "nc" + workload, Profiles: []string{profile},
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
	return e
}

func (c crowd) profile(name string, rules ...string) {
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
	for _, text := range rules {
		r, err := datastore.ParseRule(text)
		if err != nil {
			c.t.Fatal(err)
		}
		p.Spec.Inbound = append(p.Spec.Inbound, r)
	}
	c.put(p)
}

// work works everything off and returns how many members that looked at, of which
// most in one slice.
func (c crowd) work() (looked, most int) {
	for more := true; more; {
		before := c.x.looked
		more = c.x.Work()
		most = max(most, c.x.looked-before)
		looked += c.x.looked - before
	}
	return looked, most
}

// TestASelectorThatDoesNotParse has no members, comes and goes.
func TestASelectorThatDoesNotParse(t *testing.T) {
	c := newCrowd(t, 10, 2)
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}
	p.Spec.Inbound = []datastore.Rule{{Action: datastore.Allow, From: datastore.Side{Selector: datastore.Term{Value: "a === b"}}}}
	c.put(p)
	c.x.Flush()
	c.profile("web", "allow")
	c.x.Flush()
	if n := len(c.x.sets); n > 0 {
		t.Errorf("%d sets are left", n)
	}
}

// TestASelectorLooksAtItsCandidates: where selectors are in use, a new one looks at
// those members only that have a label it asks for, however many others there are.
func TestASelectorLooksAtItsCandidates(t *testing.T) {
	for _, n := range []int{1_000, 50_000} {
		c := newCrowd(t, n, 10)
		c.profile("web", "allow from selector \"nr == '7'\"")
		c.work()
		for _, s := range []struct {
			selector string
			looks    int
		}{
			{"role == 'db'", 10},
			{"role in {'db', 'x', 'y'}", 10},
			{"role == 'db' && nr != '3'", 10},
			{"role == 'db' && nr == '3'", 1},
			{"has(role) && role starts with 'd' && nr in {'1', '2'} && role == 'db'", 2},
			{"role == 'db' || role == 'x'", 10},
			{"role == 'none'", 0},
			{"has(none)", 0},
		} {
			before := c.x.looked
			c.profile("web", "allow from selector \"nr == '7'\"", "allow from selector \""+s.selector+"\"")
			c.work()
			if got := c.x.looked - before; got != s.looks {
				t.Errorf("%s: %d of %d members were looked at, want %d", s.selector, got, n, s.looks)
			}
			before = c.x.looked
			c.profile("web", "allow from selector \"nr == '7'\"")
			c.x.Flush()
			if c.x.looked != before {
				t.Errorf("%s: its end looks at %d members", s.selector, c.x.looked-before)
			}
		}
	}
}

// TestAMemberAsksItsAudience: a change of one endpoint's labels is held against the
// selectors that look for a label it has or had, not against every live one.
func TestAMemberAsksItsAudience(t *testing.T) {
	for _, n := range []int{10, 1000} {
		c := newCrowd(t, 10, 5)
		rules := []string{"allow from selector \"role == 'db' && has(nr) || rare in {'1', '2'}\"", "allow from selector \"has(nr) && other != 'x'\"", "allow from selector \"role != 'db'\""}
		for i := range n {
			rules = append(rules, fmt.Sprintf("allow from selector \"nr == '%d' && has(role)\"", i))
		}
		c.profile("web", rules...)
		c.work()
		for _, s := range []struct {
			labels []string
			looks  int
		}{
			{[]string{"role", "db", "nr", "7"}, 4},                  // nr == '7', the first, has(nr), !=
			{[]string{"role", "db", "nr", "8", "rare", "1"}, 4 + 4}, // as before and nr == '8'; the first is asked once
			{[]string{"colour", "red"}, 1 + 4},
		} {
			before := c.x.looked
			c.put(c.endpoint("node2", "moving", 500, "other", s.labels...))
			if got := c.x.looked - before; got != s.looks {
				t.Errorf("%v: held against %d of %d selectors, want %d", s.labels, got, len(rules), s.looks)
			}
		}
		c.profile("web")
		c.x.Flush()
		if a := c.x.audience; len(a.terms)+len(a.anyone) > 0 {
			t.Errorf("selectors that are gone are still asked: %v %v", a.terms, a.anyone)
		}
	}
}

// TestManySelectorsAreWorkedOffInSlices: the first selectors of all, 200 at once
// over 50,000 members, have the label index built, which looks at each member once.
// Neither that nor what comes after is done in more than a slice, and an attach
// between two slices looks at no more than one either.
func TestManySelectorsAreWorkedOffInSlices(t *testing.T) {
	const members, selectors = 50_000, 200
	c := newCrowd(t, members, 10)
	if c.x.labels != nil || c.x.looked != 0 {
		t.Fatal("there is a label index, and no selector")
	}
	var rules []string
	for i := range selectors {
		rules = append(rules, fmt.Sprintf("allow from selector \"nr == '%d'\"", i))
	}
	c.profile("web", rules...)
	most := c.x.looked

	for i, more := 0, true; more; i++ {
		before := c.x.looked
		more = c.x.Work()
		most = max(most, c.x.looked-before)
		before = c.x.looked
		c.put(c.endpoint("node0", fmt.Sprint("new", i), members+1+i, "web", "nr", fmt.Sprint(i)))
		most = max(most, c.x.looked-before)
		c.x.Flush()
	}
	total := c.x.looked
	if most > atOnce {
		t.Errorf("%d members were looked at in one go", most)
	}
	// Once for the index, and each selector at its 50 members; the attaches add some.
	if want := members + selectors*members/1000; total < want || total > want+members/10 {
		t.Errorf("%d members were looked at, want about %d", total, want)
	}
	c.profile("web", "allow from selector \"all()\"")
	c.work()
	c.x.Flush()
	if c.x.labels != nil {
		t.Error("the label index is there, and no selector needs it")
	}
}

// TestAFamilyThatComesWaitsForNobody: a profile gets a selector that is not worked
// off yet, and then its first endpoint with an IPv6 address. That looks at no more
// than a slice of the members: the chain denies IPv6 until the rules are whole, and
// what it has for IPv4 stays.
func TestAFamilyThatComesWaitsForNobody(t *testing.T) {
	const members = 10_000
	c := newCrowd(t, members, 10)
	applied := c.x.Ruleset()
	flush := func() {
		applied.Apply(c.x.Flush())
		needsNothing(t, applied)
		sameRuleset(t, "in the middle", applied, c.x.Ruleset())
	}
	chain := profileChain(inbound, "web")
	before := applied.Chains[chain].Rules
	c.profile("web", "deny from selector \"!(role != 'db')\"", "allow")
	flush()
	six := c.endpoint("node0", "six", members+1, "web")
	six.Spec.Addresses = append(six.Spec.Addresses, netip.MustParseAddr("fd00::1"))
	looked := c.x.looked
	c.put(six)
	flush()
	if n := c.x.looked - looked; n > atOnce {
		t.Errorf("the attach looked at %d members", n)
	}
	rules := applied.Chains[chain].Rules
	if len(rules) != 1+len(before) || rules[0].Verdict != goTo(inbound.denyChain()) || !slices.Equal(rules[0].Match, []Term{num(NFProto, nfIPv6)}) ||
		!sameRules(rules[1:], before) {
		t.Errorf("the chain is %v, and was %v", rules, before)
	}
	// It goes and comes again, which denies it once.
	c.x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: six.Metadata.Name, Old: six})
	c.put(six)
	flush()
	if again := applied.Chains[chain].Rules; !sameRules(again, rules) {
		t.Errorf("the chain is %v, and was %v", again, rules)
	}
	c.work()
	flush()
	if got := applied.Chains[chain].Rules; len(got) != 3 || strings.Contains(got[0].Comment, "worked out") {
		t.Errorf("the chain is %v at the end", got)
	}
}

// TestARepeatedTagChangeIsNotPiledUp: a profile whose tags change again before the
// last change is worked off has each endpoint looked at once.
func TestARepeatedTagChangeIsNotPiledUp(t *testing.T) {
	const members = 10_000
	c := newCrowd(t, members, 0)
	for i := range 5 {
		c.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "other"}, Spec: datastore.ProfileSpec{Tags: []string{fmt.Sprint("t", i)}}})
	}
	if n := len(c.x.outdated); n > members {
		t.Errorf("%d endpoints of %d are to be looked at", n, members)
	}
	c.work()
	if n := len(c.x.populations); n != 1 || len(c.x.populations[populationKey{fromTag, "t4"}].count) != members {
		t.Errorf("%d tags at the end", n)
	}
}

// TestLabelIndexFindsThem holds the label index against a look at every member, for
// random labels that come, change and go, and random needs.
func TestLabelIndexFindsThem(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var need func(depth int) *datastore.Need
	need = func(depth int) *datastore.Need {
		n := &datastore.Need{}
		switch list := rng.IntN(4); {
		case depth > 0 && list < 2:
			for range 1 + rng.IntN(3) {
				n.All = append(n.All, need(depth-1))
			}
			if list == 1 {
				n.All, n.Any = nil, n.All
			}
		default:
			n.Key = fmt.Sprint("k", rng.IntN(4))
			for range rng.IntN(3) {
				n.Values = append(n.Values, fmt.Sprint("v", rng.IntN(6)))
			}
		}
		return n
	}
	var meets func(n *datastore.Need, labels map[string]string) bool
	meets = func(n *datastore.Need, labels map[string]string) bool {
		does := func(o *datastore.Need) bool { return meets(o, labels) }
		switch v, ok := labels[n.Key]; {
		case n.All != nil:
			return !slices.ContainsFunc(n.All, func(o *datastore.Need) bool { return !does(o) })
		case n.Any != nil:
			return slices.ContainsFunc(n.Any, does)
		default:
			return ok && (n.Values == nil || slices.Contains(n.Values, v))
		}
	}
	const places = 700
	l := &labelIndex{keys: map[string]*labelKey{}}
	have := make([]map[string]string, places)
	change := func(place int, now map[string]string) {
		l.remove(place, have[place])
		l.add(place, now)
		have[place] = now
	}
	found := 0
	for range 300 {
		for range rng.IntN(60) {
			labels := map[string]string{}
			for range rng.IntN(4) {
				labels[fmt.Sprint("k", rng.IntN(4))] = fmt.Sprint("v", rng.IntN(6))
			}
			change(rng.IntN(places), labels)
		}
		n := need(3)
		var got, want []int
		for w := l.next(n, 0); w.bits != 0; w = l.next(n, w.number+1) {
			for rest := w; rest.bits != 0; {
				var place int
				place, rest = rest.take()
				got = append(got, place)
			}
		}
		for place, labels := range have {
			if meets(n, labels) {
				want = append(want, place)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("need %+v:\n got %v\nwant %v", n, got, want)
		}
		found += len(got)
	}
	if found < 1000 {
		t.Errorf("only %d found", found)
	}
	for place := range have {
		change(place, nil)
	}
	if len(l.keys) != 0 {
		t.Errorf("%d keys left", len(l.keys))
	}
}
