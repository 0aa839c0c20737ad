package acl

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestLearnedIsInTheSet replays random histories in which addresses of domains come and go, and
// holds them against the same history with the addresses written to the sets.
func TestLearnedIsInTheSet(t *testing.T) {
	logged := 0
	for seed := range uint64(12) {
		w, x, o := newWorld(t, seed), NewIndex("node0", testOptions()), testOptions()
		applied, knows := Static(o), map[string]map[netip.Addr]bool{}
		for range 100 {
			c := w.step()
			if n, ok := c.New.(*datastore.NetworkSet); ok && w.rng.IntN(3) > 0 {
				n.Spec.Domains = []string{"example.com"}
			}
			x.Apply(c)
			for range w.rng.IntN(4) {
				set := fmt.Sprintf("s%d", w.rng.IntN(3))
				a := w.addresses()[0]
				if knows[set] == nil {
					knows[set] = map[netip.Addr]bool{}
				}
				if knows[set][a] = w.rng.IntN(3) > 0; knows[set][a] {
					x.Learn(set, a)
				} else {
					x.Unlearn(set, a, w.rng.IntN(2) == 0)
				}
			}
			if w.rng.IntN(3) > 0 {
				continue
			}
			for x.Work() { // to the end
			}
			d := x.Flush()
			checkDelta(t, d, applied)
			applied.Apply(d)
			needsNothing(t, applied)
			sameRuleset(t, fmt.Sprintf("seed %d: the whole", seed), applied, x.Ruleset())
			got, fwd := applied.Clone(), applied.Chains[ChainDNSFwd]
			if (fwd != nil) != (len(x.Learning()) > 0) || (fwd != nil) != (applied.Chains[ChainDNSOut] != nil) {
				t.Fatalf("seed %d: learning %v, and answers are logged: %t", seed, x.Learning(), fwd != nil)
			}
			if fwd != nil {
				logged++
			}
			delete(got.Chains, ChainDNSFwd)
			delete(got.Chains, ChainDNSOut)
			sameRuleset(t, fmt.Sprintf("seed %d", seed), got, full("node0", o, w.written(knows)))
			if again := x.Flush(); !again.Empty() {
				t.Fatalf("seed %d: second flush %+v", seed, again)
			}
		}
		for set, addrs := range knows {
			for a := range addrs {
				x.Unlearn(set, a, true)
			}
		}
		for _, v := range w.current {
			x.Apply(datastore.Change{Kind: v.Kind(), Name: v.Meta().Name, Old: v})
		}
		applied.Apply(x.Flush())
		sameRuleset(t, "emptied", applied, Static(o))
		if n := len(x.learned) + len(x.expired) + len(x.named) + len(x.netSets); n != 0 {
			t.Fatalf("seed %d: %d entries left", seed, n)
		}
	}
	if logged == 0 {
		t.Error("no history has a rule that names a set with domains")
	}
}

// written is the world with the addresses that are known in the network sets themselves.
func (w *world) written(knows map[string]map[netip.Addr]bool) map[string]datastore.Object {
	out := maps.Clone(w.current)
	for key, o := range out {
		n, ok := o.(*datastore.NetworkSet)
		if !ok {
			continue
		}
		with := *n
		with.Spec.CIDRs = slices.Clone(n.Spec.CIDRs)
		for a, is := range knows[n.Metadata.Name] {
			if p := netip.PrefixFrom(a, a.BitLen()); is && !slices.Contains(with.Spec.CIDRs, p) {
				with.Spec.CIDRs = append(with.Spec.CIDRs, p)
			}
		}
		out[key] = &with
	}
	return out
}

// TestLearns: an endpoint learns for the sets that its own rules name, those of its staged
// policies too, and nobody else does for them.
func TestLearns(t *testing.T) {
	x := NewIndex("node0", testOptions())
	put := func(o datastore.Object) {
		t.Helper()
		o.SetDefaults()
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	set := func(name string, labels map[string]string, domains ...string) {
		put(&datastore.NetworkSet{Metadata: datastore.Metadata{Name: name, Labels: labels}, Spec: datastore.NetworkSetSpec{Domains: domains}})
	}
	profile := func(name, rule string) {
		r, err := datastore.ParseRule(rule)
		if err != nil {
			t.Fatal(err)
		}
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: name}, Spec: datastore.ProfileSpec{Outbound: []datastore.Rule{r}}})
	}
	profile("web", "allow to set one")
	profile("db", `allow to selector "kind == 'office'"`)
	for i, p := range []string{"web", "db", "none"} {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "node0/cni/" + p + "/eth0"}}
		e.Spec = datastore.EndpointSpec{Node: "node0", Link: "nc" + p, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}, Profiles: []string{p}}
		x.Apply(datastore.Change{Kind: e.Kind(), Name: e.Metadata.Name, New: e})
	}
	want := func(what, web, db, none string, logs bool) {
		t.Helper()
		d := x.Flush()
		for link, want := range map[string]string{"ncweb": web, "ncdb": db, "ncnone": none, "other": ""} {
			var got []string
			for set, domains := range x.Learns(link) {
				got = append(got, set+": "+strings.Join(domains, " "))
			}
			slices.Sort(got)
			if text := strings.Join(got, ", "); text != want {
				t.Errorf("%s: %s learns %q, want %q", what, link, text, want)
			}
		}
		if is := x.Ruleset().Chains[ChainDNSFwd] != nil; is != logs {
			t.Errorf("%s: answers are logged: %t; %+v", what, is, d)
		}
	}
	want("nothing is named", "", "", "", false)
	set("one", nil)
	want("without domains", "", "", "", false)
	set("one", nil, "example.com", "*.example.org")
	want("named", "one: example.com *.example.org", "", "", true)
	set("two", map[string]string{"kind": "office"}, "office.example")
	set("three", map[string]string{"kind": "home"}, "home.example")
	want("selected", "one: example.com *.example.org", "two: office.example", "", true)
	set("one", nil)
	want("one less", "", "two: office.example", "", true)
	set("two", map[string]string{"kind": "home"}, "office.example")
	want("not selected any more", "", "", "", false)
	r, _ := datastore.ParseRule("deny to set three")
	put(&datastore.Policy{Metadata: datastore.Metadata{Name: "draft"}, Spec: datastore.PolicySpec{Staged: true, Egress: []datastore.Rule{r}}})
	want("staged", "three: home.example", "three: home.example", "three: home.example", true)
}

// TestAnswersAreLogged: answers to what an endpoint asked, and nothing else.
func TestAnswersAreLogged(t *testing.T) {
	o := testOptions()
	o.Adopts = true
	r := Static(o)
	r.Sets[setAdopted].add(Element{Link: "eth7"})
	r.Chains[ChainDNSFwd] = &Chain{Name: ChainDNSFwd, Rules: dnsRules(o)}
	answer := Packet{
		InLink: "up0", OutLink: "nc1", OutGroup: o.Group, Src: netip.MustParseAddr("192.0.2.53"), Dst: netip.MustParseAddr("10.0.0.1"), Protocol: protoUDP,
		SrcPort: 53, DstPort: 40000, State: Established, Reply: true,
	}
	for what, c := range map[string]struct {
		change func(p *Packet)
		logged bool
	}{
		"an answer":              {func(*Packet) {}, true},
		"to an adopted link":     {func(p *Packet) { p.OutLink, p.OutGroup = "eth7", 0 }, true},
		"to nobody of ours":      {func(p *Packet) { p.OutLink, p.OutGroup = "eth1", 0 }, false},
		"nobody asked":           {func(p *Packet) { p.State, p.Reply = New, false }, false},
		"a question from there":  {func(p *Packet) { p.Reply = false }, false},
		"related, as an error":   {func(p *Packet) { p.State = Related }, false},
		"another port":           {func(p *Packet) { p.SrcPort = 5353 }, false},
		"another protocol":       {func(p *Packet) { p.Protocol = protoTCP }, false},
		"without being followed": {func(p *Packet) { p.State, p.Reply = Untracked, false }, false},
	} {
		p := answer
		c.change(&p)
		w := walk{Judge: r.Judge(), packet: p}
		w.chain(ChainDNSFwd, 0)
		if got := slices.Equal(w.decision.Logged, []string{dnsLog}); got != c.logged {
			t.Errorf("%s: logged %v", what, w.decision.Logged)
		}
	}
	if LogGroup(dnsLog) == LogGroup("DPI|default") {
		t.Error("answers are read by who reads what is denied")
	}
}

// TestExpiredCutsNobody: the end of an address's time denies no flow that goes on, as a change
// of the set does.
func TestExpiredCutsNobody(t *testing.T) {
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for what, c := range map[string]struct {
		change func(x *Index)
		want   []netip.Addr
	}{
		"expired":         {func(x *Index) { x.Unlearn("one", a, true) }, nil},
		"forgotten":       {func(x *Index) { x.Unlearn("one", a, false) }, []netip.Addr{a}},
		"both":            {func(x *Index) { x.Unlearn("one", a, true); x.Unlearn("one", b, false) }, []netip.Addr{b}},
		"learned again":   {func(x *Index) { x.Unlearn("one", a, true); x.Learn("one", a) }, nil},
		"and taken away":  {func(x *Index) { x.Unlearn("one", a, true); x.Learn("one", a); x.Unlearn("one", a, false) }, []netip.Addr{a}},
		"another's still": {func(x *Index) { x.Unlearn("two", a, false) }, nil},
	} {
		x := NewIndex("node0", testOptions())
		r, _ := datastore.ParseRule("allow to set one")
		for _, o := range []datastore.Object{
			&datastore.NetworkSet{Metadata: datastore.Metadata{Name: "one"}, Spec: datastore.NetworkSetSpec{Domains: []string{"example.com"}}},
			&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Outbound: []datastore.Rule{r}}},
			&datastore.Endpoint{Metadata: datastore.Metadata{Name: "node0/cni/a/eth0"}, Spec: datastore.EndpointSpec{
				Node: "node0", Link: "nc1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Profiles: []string{"web"}}},
		} {
			x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
		}
		for _, set := range []string{"one", "two"} {
			x.Learn(set, a)
			x.Learn(set, b)
		}
		x.Flush()
		x.Tightened()
		c.change(x)
		x.Flush()
		got := slices.SortedFunc(maps.Keys(x.Tightened().Addrs), netip.Addr.Compare)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: flows of %v are judged again, want %v", what, got, c.want)
		}
	}
}
