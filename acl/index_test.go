package acl

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"netctl/datastore"
)

func testOptions() Options {
	return Options{
		LinkPrefix: "nc", Group: 77,
		Gateways:       []netip.Addr{netip.MustParseAddr("169.254.1.1")},
		WorkloadToHost: []HostPort{{17, 53}, {6, 53}},
		FlowRate:       1000, FlowBurst: 20000,
	}
}

// world is a random model and the history that led to it.
type world struct {
	rng      *rand.Rand
	current  map[string]datastore.Object // kind/name
	profiles int
	rules    []datastore.Rule
	only     []datastore.Rule // of policies
	runs     bool             // rules may be many that differ by their tags or selectors
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 7)), current: map[string]datastore.Object{}, profiles: 6}
	for _, s := range []string{
		"allow", "deny", "allow from tag t0", "allow from tag t1", "deny from not tag t2", "allow tcp to ports 80,443",
		"allow tcp from tag t3 to ports 5432", "allow udp to ports 53,1000:2000", "log tcp from tag t1", "allow icmp",
		"allow icmp type 8", "deny not icmp type 8 code 0", "allow icmpv6 type 128", "allow from cidr 10.0.0.0/8",
		"allow from not cidr 10.0.0.0/30", "deny from cidr 10.0.0.1/32", "allow from cidr fd00::/64",
		"allow from cidr 10.0.0.0/30,10.0.0.5/32,fd00::/126", "deny udp from not cidr 10.0.0.2/31,10.0.0.3/32,192.0.2.0/24 to cidr 10.0.0.0/8,fd00::/64", "allow to cidr 0.0.0.0/0,10.0.0.0/8",
		"allow tcp to ports http", "allow tcp to not ports http,22", "allow tcp from tag t0 and cidr 10.0.0.0/29 to ports http,80:90",
		"allow from selector \"role == 'web'\"", "deny from not selector \"role == 'db'\"", "allow not tcp", "allow 132 from tag t2 to tag t1",
		"allow udp from ports 53", "allow tcp to ports 80,82:85,84:90,1000", "allow from selector \"has(zone)\" to tag t0",
		"allow from selector \"role in {'db', 'web'} && zone == 'z1'\"", "deny from selector \"role == 'db' || has(zone)\"",
		"allow from selector \"zone starts with 'z' && role != 'db'\"", "deny from selector \"!has(role)\"", "allow from selector \"all()\"",
	} {
		r, err := datastore.ParseRule(s)
		if err != nil {
			t.Fatalf("rule %q: %v", s, err)
		}
		w.rules = append(w.rules, r)
	}
	for _, s := range []string{"pass", "pass tcp", "pass from selector \"role == 'web'\"", "pass not tcp", "reject udp", "deny from set s0", "allow not udp from not set s1", "allow to set s2"} {
		r, err := datastore.ParseRule(s)
		if err != nil {
			t.Fatalf("rule %q: %v", s, err)
		}
		w.only = append(w.only, r)
	}
	w.rules = append(w.rules, w.only[4:]...)
	return w
}

func (w *world) some(n int, f func() string) []string {
	var out []string
	for range w.rng.IntN(n + 1) {
		if s := f(); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func (w *world) randomRules() (out []datastore.Rule) {
	if w.runs && w.rng.IntN(3) == 0 {
		out = w.tagRun()
	}
	for range w.rng.IntN(4) {
		out = append(out, w.rules[w.rng.IntN(len(w.rules))])
	}
	return out
}

func (w *world) labels() map[string]string {
	out := map[string]string{}
	if w.rng.IntN(2) == 0 {
		out["role"] = []string{"web", "db"}[w.rng.IntN(2)]
	}
	if w.rng.IntN(3) == 0 {
		out["zone"] = "z1"
	}
	return out
}

func (w *world) addresses() []netip.Addr {
	var out []netip.Addr
	for range 1 + w.rng.IntN(2) {
		out = append(out, netip.AddrFrom4([4]byte{10, 0, 0, byte(w.rng.IntN(16))}))
	}
	if w.rng.IntN(2) == 0 {
		a := netip.MustParseAddr("fd00::").As16()
		a[15] = byte(w.rng.IntN(16))
		out = append(out, netip.AddrFrom16(a))
	}
	return out
}

// behind are the networks behind an endpoint; those of several overlap, as they should not.
func (w *world) behind(addrs []netip.Addr) []netip.Prefix {
	list := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(w.rng.IntN(3)), 0}), 24-w.rng.IntN(2)).Masked()}
	if slices.ContainsFunc(addrs, netip.Addr.Is6) {
		list = append(list, netip.MustParsePrefix("fd01::/64"))
	}
	return list
}

// step makes a random change and returns it.
func (w *world) step() datastore.Change {
	switch w.rng.IntN(8) {
	case 0:
		return w.natStep()
	case 1, 2:
		return w.policyStep()
	}
	c := datastore.Change{Kind: datastore.KindProfile, Name: fmt.Sprintf("p%d", w.rng.IntN(w.profiles))}
	if w.rng.IntN(4) > 0 {
		c = datastore.Change{Kind: datastore.KindEndpoint, Name: fmt.Sprintf("node%d/cni/w%d/eth0", w.rng.IntN(2), w.rng.IntN(8))}
	}
	key := string(c.Kind) + "/" + c.Name
	c.Old = w.current[key]
	if c.Old != nil && w.rng.IntN(3) == 0 {
		delete(w.current, key)
		return c
	}
	if c.Kind == datastore.KindProfile {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: c.Name}}
		p.Spec = datastore.ProfileSpec{
			Tags:    w.someTags(),
			Labels:  w.labels(),
			Inbound: w.randomRules(), Outbound: w.randomRules(),
		}
		c.New = p
	} else {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: c.Name, Labels: w.labels()}}
		e.Spec = datastore.EndpointSpec{
			Node: c.Name[:5], Link: fmt.Sprintf("nc%s%d", c.Name[10:12], w.rng.IntN(2)), Addresses: w.addresses(),
			Profiles: w.some(3, func() string { return fmt.Sprintf("p%d", w.rng.IntN(w.profiles)) }),
		}
		if w.rng.IntN(4) == 0 {
			e.Spec.AllowedPrefixes = w.behind(e.Spec.Addresses)
		}
		e.Spec.AllowEncapsulation = w.rng.IntN(6) == 0
		if w.rng.IntN(10) == 0 {
			e.Spec.Link = []string{"ncshared", "too long for a link", ""}[w.rng.IntN(3)]
		}
		if w.rng.IntN(3) == 0 {
			e.Spec.Ports = []datastore.Port{{Name: "http", Protocol: "tcp", Port: uint16(80 + w.rng.IntN(2))}}
		}
		c.New = e
	}
	w.current[key] = c.New
	return c
}

func sameRuleset(t *testing.T, what string, got, want *Ruleset) {
	t.Helper()
	if g, w := got.String(), want.String(); g != w {
		t.Fatalf("%s differs\n--- got\n%s--- want\n%s", what, g, w)
	}
	if !reflect.DeepEqual(got.Sets, want.Sets) {
		t.Fatalf("%s: sets differ beyond their text", what)
	}
}

// gather works out an endpoint's facts anew, sharing nothing.
func gather(e *datastore.Endpoint, profiles map[string]*datastore.Profile) *facts {
	f := &facts{addrs: cleaned(e.Spec.Addresses), ports: ports(e), gifts: &gifts{}, labels: map[string]string{}}
	for _, name := range slices.Backward(e.Spec.Profiles) {
		if p := profiles[name]; p != nil {
			f.gifts.tags = append(f.gifts.tags, p.Spec.Tags...)
			maps.Copy(f.labels, p.Spec.Labels)
		}
	}
	maps.Copy(f.labels, e.Metadata.Labels)
	return f
}

// TestIndexFollowsFull replays random histories and holds the sum of the deltas,
// and the index's own ruleset, against the compilation from scratch.
func TestIndexFollowsFull(t *testing.T) {
	gates := 0
	for seed := range uint64(60) {
		w, x, o := newWorld(t, seed), NewIndex("node0", testOptions()), testOptions()
		w.runs = seed%7 == 0 && seed < 20
		if seed%2 == 1 { // selectors are worked off one member or a few at a time
			x.slice = 1 + int(seed%3)
		}
		applied := Static(o)
		for range 120 {
			x.Apply(w.step())
			if w.rng.IntN(2) == 0 {
				x.Work()
				d := x.Flush()
				checkDelta(t, d, applied)
				applied.Apply(d)
				gates += gatesThatCome(d)
				needsNothing(t, applied)
				sameRuleset(t, fmt.Sprintf("seed %d: in the middle", seed), applied, x.Ruleset())
			}
			if w.rng.IntN(3) > 0 {
				continue
			}
			for x.Work() { // to the end
			}
			d := x.Flush()
			checkDelta(t, d, applied)
			applied.Apply(d)
			sameRuleset(t, fmt.Sprintf("seed %d: deltas", seed), applied, full("node0", o, w.current))
			if again := x.Flush(); !again.Empty() {
				t.Fatalf("seed %d: second flush %+v", seed, again)
			}
		}
		for x.Work() { // to the end
		}
		applied.Apply(x.Flush())
		sameRuleset(t, fmt.Sprintf("seed %d: ruleset", seed), x.Ruleset(), full("node0", o, w.current))
		for _, v := range w.current {
			x.Apply(datastore.Change{Kind: v.Kind(), Name: v.Meta().Name, Old: v})
		}
		applied.Apply(x.Flush())
		sameRuleset(t, "emptied", applied, Static(o))
		n := len(x.populations) + len(x.selectors) + len(x.sets) + len(x.chains) + len(x.links) + len(x.byProfile) +
			len(x.waiting) + len(x.filling) + len(x.gifts) + len(x.places) + len(x.free) +
			len(x.wanted) + len(x.gates) + len(x.regated) + len(x.policies) + len(x.bySelector) + len(x.pickers.terms) + len(x.pickers.anyone) + len(x.tiers) + len(x.networks) + len(x.tierChains)
		if n != 0 || x.labels != nil {
			t.Fatalf("seed %d: %d entries left in an empty index: %+v", seed, n, x)
		}
	}
	if gates < 50 {
		t.Errorf("%d gates came", gates)
	}
}

// needsNothing wants every set and chain that a rule refers to.
func needsNothing(t *testing.T, r *Ruleset) {
	t.Helper()
	for name, c := range r.Chains {
		for _, rule := range c.Rules {
			for _, m := range rule.Match {
				if m.Set != "" && r.Sets[m.Set] == nil {
					t.Fatalf("chain %s refers to set %s, which is not there", name, m.Set)
				}
			}
			if k := rule.Verdict.Kind; (k == Jump || k == Goto) && r.Chains[rule.Verdict.Chain] == nil {
				t.Fatalf("chain %s goes to chain %s, which is not there", name, rule.Verdict.Chain)
			}
		}
	}
}

// TestASelectorIsWorkedOffInSlices: a new selector over many members holds up
// neither the events that come meanwhile nor their flushes, and until its set is
// whole its rule is not there: what was there before stays, and a new chain denies.
func TestASelectorIsWorkedOffInSlices(t *testing.T) {
	const members = 10_000
	x, applied := NewIndex("node0", testOptions()), Static(testOptions())
	put := func(o datastore.Object) {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	endpoint := func(node, workload string, i int, profile string) *datastore.Endpoint {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: node + "/cni/" + workload + "/eth0", Labels: map[string]string{"role": fmt.Sprint("r", i%10)}}}
		e.Spec = datastore.EndpointSpec{Node: node, Link: "nc" + workload, Profiles: []string{profile}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
		return e
	}
	profile := func(name string, rules ...string) *datastore.Profile {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}, Spec: datastore.ProfileSpec{Outbound: []datastore.Rule{}}}
		for _, text := range rules {
			r, err := datastore.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			p.Spec.Inbound = append(p.Spec.Inbound, r)
		}
		return p
	}
	flush := func() Delta {
		d := x.Flush()
		applied.Apply(d)
		needsNothing(t, applied)
		return d
	}
	for i := range members {
		put(endpoint("node1", fmt.Sprint("w", i), i, "other"))
	}
	put(profile("web", "allow tcp to ports 80"))
	put(endpoint("node0", "a", members, "web"))
	flush()
	web, db := profileChain(inbound, "web"), profileChain(inbound, "db")
	before := applied.Chains[web].Rules

	put(profile("web", "allow tcp to ports 80", "deny from selector \"!(role != 'r1')\"", "allow"))
	put(profile("db", "deny from selector \"!(role != 'r2')\"", "allow"))
	put(endpoint("node0", "b", members+1, "db"))
	slices := 0
	for more := true; more; slices++ {
		flush()
		filling := func(text string) bool { return x.unfilled(setRef{source: fromSelector, arg: text}) }
		if filling("!(role != 'r1')") && !sameRules(applied.Chains[web].Rules, before) {
			t.Fatalf("after %d slices the rule is there, its set is not whole", slices)
		}
		if r := applied.Chains[db].Rules; filling("!(role != 'r2')") && (len(r) != 1 || r[0].Verdict != goTo(inbound.denyChain())) {
			t.Fatalf("after %d slices the new chain is %v", slices, r)
		}
		// Events go on, of members that were looked at and that were not.
		put(endpoint("node1", fmt.Sprint("w", slices*7), slices*7+1, "other"))
		put(endpoint("node1", fmt.Sprint("w", members-1-slices), 3, "other"))
		more = x.Work()
	}
	if slices < 2*members/atOnce-2 { // the two events that bring them do one each
		t.Errorf("worked off in %d slices", slices)
	}
	flush()
	if n := len(applied.Chains[web].Rules); n != 3 {
		t.Errorf("%d rules at the end", n)
	}
	if !x.Flush().Empty() || x.Work() {
		t.Error("there is more")
	}
	sameRuleset(t, "at the end", applied, x.Ruleset())
}

// checkDelta wants nothing said twice and nothing that is so already.
func checkDelta(t *testing.T, d Delta, before *Ruleset) {
	t.Helper()
	for _, c := range d.Sets {
		s := before.Sets[c.Name]
		if (s == nil) != c.New || c.Gone && s == nil {
			t.Fatalf("set %s: new %v gone %v, but it was %v", c.Name, c.New, c.Gone, s)
		}
		for _, e := range c.Add {
			if s != nil {
				if _, ok := s.Elements[e]; ok {
					t.Fatalf("set %s: adds %v again", c.Name, e)
				}
			}
		}
		for _, e := range c.Del {
			if _, ok := s.Elements[e]; !ok {
				t.Fatalf("set %s: deletes %v, which is not there", c.Name, e)
			}
		}
	}
	for _, c := range d.Chains {
		b := before.Chains[c.Name]
		if (b == nil) != c.New {
			t.Fatalf("chain %s: new %v, but it was %v", c.Name, c.New, b)
		}
		if b != nil && !c.Gone && sameRules(b.Rules, c.Rules) && !checkGates(t, d, before)[c.Name] {
			t.Fatalf("chain %s: unchanged", c.Name)
		}
	}
	checkGates(t, d, before)
}

// TestOrderDoesNotMatter replays the final objects shuffled: the result depends
// on what is there, not on how it came.
func TestOrderDoesNotMatter(t *testing.T) {
	w := newWorld(t, 98)
	w.runs = true
	for range 200 {
		w.step()
	}
	objects := make([]datastore.Object, 0, len(w.current))
	for _, k := range sortedKeys(w.current) {
		objects = append(objects, w.current[k])
	}
	want := full("node1", testOptions(), w.current)
	if !slices.ContainsFunc(sortedKeys(want.Sets), IsGate) {
		t.Error("there are no gates")
	}
	for range 20 {
		w.rng.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
		x, applied := NewIndex("node1", testOptions()), Static(testOptions())
		for _, o := range objects {
			x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
			applied.Apply(x.Flush())
		}
		sameRuleset(t, "shuffled", applied, want)
	}
}

// BenchmarkEvent moves a remote endpoint of a needed tag in a cluster of 20,000.
func BenchmarkEvent(b *testing.B) {
	x := NewIndex("node0", testOptions())
	for i := range 20 {
		name := fmt.Sprintf("p%d", i)
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
		p.SetDefaults()
		x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: name, New: p})
	}
	endpoint := func(i int, last byte) *datastore.Endpoint {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: fmt.Sprintf("node%d/cni/%d/eth0", i%200, i)}}
		e.Spec = datastore.EndpointSpec{Node: fmt.Sprintf("node%d", i%200), Link: fmt.Sprintf("nc%d", i), Profiles: []string{fmt.Sprintf("p%d", i/200%20)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), last})}}
		return e
	}
	for i := range 20000 {
		e := endpoint(i, 1)
		x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: e.Metadata.Name, New: e})
	}
	x.Flush()
	for n := byte(2); b.Loop(); n++ {
		e := endpoint(7, n)
		x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: e.Metadata.Name, New: e})
		if d := x.Flush(); len(d.Sets) != 1 || len(d.Sets[0].Add) != 1 || len(d.Sets[0].Del) != 1 {
			b.Fatalf("delta %+v", d)
		}
	}
}
