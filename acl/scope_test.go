package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"netctl/datastore"
)

// TestTightened: after any changes, what was allowed and is denied now is in Tightened, but
// for addresses that an endpoint gave up.
func TestTightened(t *testing.T) {
	denied, again, quiet := 0, 0, 0
	for seed := range uint64(12) {
		w, x := newWorld(t, seed), NewIndex("node0", testOptions())
		before, had := x.Ruleset(), map[string][]netip.Addr{}
		for range 150 {
			made := map[netip.Addr]bool{}
			for range 1 + w.rng.IntN(2) {
				x.Apply(w.step())
			}
			if w.rng.IntN(3) == 0 {
				made = w.remake(x)
			}
			for x.Work() {
			}
			x.Flush()
			scope, now, m := x.Tightened(), x.Ruleset(), newModel(w.current)
			if scope.Empty() {
				quiet++
			}
			given := map[netip.Addr]bool{}
			for name, list := range had {
				for _, a := range list {
					given[a] = given[a] || m.endpoints[name] == nil || !slices.Contains(addresses(m.endpoints[name]), a)
				}
			}
			clear(had)
			for name, e := range m.endpoints {
				had[name] = addresses(e)
			}
			was, is, links := before.Judge(), now.Judge(), append(sortedKeys(x.links), "up0")
			for range 60 {
				p := w.packet(m, links)
				if !now.owns(p.InLink, p.Src) || !now.owns(p.OutLink, p.Dst) || !was.Eval(p).Allowed || is.Eval(p).Allowed || given[p.Src] || given[p.Dst] {
					continue
				}
				denied++
				if made[p.Src] || made[p.Dst] {
					again++
				}
				_, src := scope.Addrs[p.Src]
				_, dst := scope.Addrs[p.Dst]
				if !scope.All && !src && !dst {
					t.Fatalf("seed %d: %+v: %s, and was %s; scope %v", seed, p, is.Eval(p), was.Eval(p), scope)
				}
			}
			before = now
		}
	}
	if denied < 200 || again < 30 || quiet < 300 {
		t.Errorf("%d packets denied, %d of them of endpoints that were made again, %d changes that deny nothing: too few to tell anything", denied, again, quiet)
	}
}

// remake removes an endpoint and makes it again, with the same addresses and other profiles and
// labels, and returns those.
func (w *world) remake(x *Index) map[netip.Addr]bool {
	made := map[netip.Addr]bool{}
	var keys []string
	for key, o := range w.current {
		if o.Kind() == datastore.KindEndpoint {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return made
	}
	slices.Sort(keys)
	key := keys[w.rng.IntN(len(keys))]
	old := w.current[key].(*datastore.Endpoint)
	e := &datastore.Endpoint{Metadata: old.Metadata, Spec: old.Spec}
	e.Metadata.Labels = w.labels()
	e.Spec.Profiles = w.some(3, func() string { return fmt.Sprintf("p%d", w.rng.IntN(w.profiles)) })
	x.Apply(datastore.Change{Kind: old.Kind(), Name: old.Metadata.Name, Old: old})
	x.Apply(datastore.Change{Kind: e.Kind(), Name: e.Metadata.Name, New: e})
	w.current[key] = e
	for _, a := range addresses(e) {
		made[a] = true
	}
	return made
}

// owns says whether an address is one of a link of an endpoint, or the link is none of those.
func (r *Ruleset) owns(link string, a netip.Addr) bool {
	e := addrElement(a)
	e.Link = link
	_, four := r.Sets[setSrc4].Elements[e]
	_, six := r.Sets[setSrc6].Elements[e]
	return four || six || link == "up0" || r.Sets[setNets4].containsBehind(e) || r.Sets[setNets6].containsBehind(e)
}

// TestTightenedBy: what may deny, whom, and what may not.
func TestTightenedBy(t *testing.T) {
	x := NewIndex("n1", testOptions())
	put := func(o datastore.Object) Scope {
		t.Helper()
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
		for x.Work() {
		}
		x.Flush()
		return x.Tightened()
	}
	rule := func(texts ...string) (list []datastore.Rule) {
		for _, text := range texts {
			r, err := datastore.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, r)
		}
		return list
	}
	profile := func(name string, inbound ...string) *datastore.Profile {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
		p.Spec = datastore.ProfileSpec{Tags: []string{name}, Inbound: rule(inbound...), Outbound: rule("allow")}
		return p
	}
	endpoint := func(node, work, addr string, labels map[string]string, profiles ...string) *datastore.Endpoint {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: node + "/cni/" + work + "/eth0", Labels: labels}}
		e.Spec = datastore.EndpointSpec{Node: node, Link: "nc" + work, Addresses: addrs(addr), Profiles: profiles}
		return e
	}
	nobody := func(what string, s Scope) {
		t.Helper()
		if !s.Empty() {
			t.Errorf("%s: %v", what, s)
		}
	}
	those := func(what string, s Scope, want ...string) {
		t.Helper()
		is := !s.All && len(s.Addrs) == len(want)
		for _, a := range addrs(want...) {
			_, ok := s.Addrs[a]
			is = is && ok
		}
		if !is {
			t.Errorf("%s: %v, want %v", what, s, want)
		}
	}
	all := func(what string, s Scope) {
		t.Helper()
		if !s.All {
			t.Errorf("%s: %v", what, s)
		}
	}
	bad := map[string]string{"bad": "yes"}
	nobody("a profile", put(profile("web", "allow from tag lb", "deny from selector \"bad == 'yes'\"", "allow tcp from not set office")))
	nobody("an endpoint here", put(endpoint("n1", "a", "10.0.0.1", nil, "web")))
	nobody("one elsewhere", put(endpoint("n2", "b", "10.0.0.2", nil, "lb")))
	nobody("a profile with a tag", put(profile("lb")))
	nobody("an endpoint elsewhere goes", func() Scope {
		e := endpoint("n2", "c", "10.0.0.3", nil, "lb")
		put(e)
		x.Apply(datastore.Change{Kind: e.Kind(), Name: e.Metadata.Name, Old: e})
		x.Flush()
		return x.Tightened()
	}())
	those("one loses a tag", put(endpoint("n2", "b", "10.0.0.2", nil, "none")), "10.0.0.2")
	nobody("and gets it", put(endpoint("n2", "b", "10.0.0.2", nil, "lb")))
	those("a label that is denied", put(endpoint("n2", "b", "10.0.0.2", bad, "lb")), "10.0.0.2")
	nobody("and loses it", put(endpoint("n2", "b", "10.0.0.2", nil, "lb")))
	those("other profiles here", put(endpoint("n1", "a", "10.0.0.1", nil, "web", "lb")), "10.0.0.1")
	nobody("a log line more", put(profile("web", "allow from tag lb", "deny from selector \"bad == 'yes'\"", "log", "allow tcp from not set office")))
	nobody("a rule that allows more", put(profile("web", "allow from tag lb", "deny from selector \"bad == 'yes'\"", "log", "allow tcp from not set office", "allow udp")))
	all("one that denies more", put(profile("web", "allow from tag lb", "deny", "deny from selector \"bad == 'yes'\"", "log", "allow tcp from not set office", "allow udp")))
	nobody("and less", put(profile("web", "allow from tag lb", "deny from selector \"bad == 'yes'\"", "log", "allow tcp from not set office", "allow udp")))
	all("one that allowed goes", put(profile("web", "allow from tag lb", "deny from selector \"bad == 'yes'\"", "log", "allow tcp from not set office")))
	x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: "n2/cni/b/eth0", Old: endpoint("n2", "b", "10.0.0.2", nil, "lb")})
	those("one that is made again without its tag", put(endpoint("n2", "b", "10.0.0.2", nil, "none")), "10.0.0.2")
	nobody("and with it", put(endpoint("n2", "b", "10.0.0.2", nil, "lb")))
	nobody("one that comes", put(endpoint("n2", "d", "10.0.0.4", nil, "lb")))
	those("one that comes and is denied", put(endpoint("n2", "e", "10.0.0.5", bad, "lb")), "10.0.0.5")
	x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: "n1/cni/a/eth0", Old: endpoint("n1", "a", "10.0.0.1", nil, "web", "lb")})
	those("one here that is made again with other profiles", put(endpoint("n1", "a", "10.0.0.1", nil, "web")), "10.0.0.1")
	put(endpoint("n1", "a", "10.0.0.1", nil, "web", "lb"))
	limited := endpoint("n1", "a", "10.0.0.1", nil, "web", "lb")
	for rate := range uint32(3) {
		limited.Spec.QoSControls = datastore.QoSControls{IngressPacketRate: 3 - rate, EgressMaxConnections: rate}
		nobody("limits", put(limited))
	}
	// What is asked of host endpoints alone denies nobody's flows that are cut.
	edge := map[string]string{"edge": "yes"}
	policy := func(selector string, ingress ...string) *datastore.Policy {
		p := &datastore.Policy{Metadata: datastore.Metadata{Name: "edge"}}
		p.Spec = datastore.PolicySpec{Selector: selector, ApplyOnForward: true, Ingress: rule(ingress...)}
		p.SetDefaults()
		return p
	}
	nobody("a host endpoint", put(&datastore.HostEndpoint{Metadata: datastore.Metadata{Name: "up", Labels: edge}, Spec: datastore.HostEndpointSpec{Node: "n1", InterfaceName: "*"}}))
	nobody("a policy for it", put(policy("edge == 'yes'", "allow")))
	nobody("which denies more", put(policy("edge == 'yes'", "deny udp", "allow")))
	those("and is for endpoints, too", put(policy("all()", "deny udp", "allow")), "10.0.0.1")
	all("which denies more to them", put(policy("all()", "deny udp", "deny tcp", "allow")))
	those("and not any more", put(policy("edge == 'yes'", "allow")), "10.0.0.1")
	set := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "office"}}
	set.Spec.CIDRs = prefixes("192.0.2.0/24", "198.51.100.7/32")
	all("networks that rules allow but for them", put(set))
	less := &datastore.NetworkSet{Metadata: set.Metadata}
	less.Spec.CIDRs = prefixes("192.0.2.0/24")
	nobody("one of them less", put(less))
	those("and again", put(set), "198.51.100.7")
}

// TestStagedTightensNobody: whatever becomes of a staged policy, and of what it refers to, nobody
// is denied anything, before others of its tier, behind them, and with the sets that they need;
// of one that is in force, some are.
func TestStagedTightensNobody(t *testing.T) {
	for _, tier := range [][]string{nil, {"deny udp"}, {"allow", "pass udp"}, {"deny from tag t"}} { // what else there is
		for _, staged := range []bool{true, false} {
			x := NewIndex("n1", testOptions())
			apply := func(k datastore.Kind, name string, o datastore.Object) Scope {
				x.Apply(datastore.Change{Kind: k, Name: name, New: o})
				for x.Work() {
				}
				x.Flush()
				return x.Tightened()
			}
			put := func(o datastore.Object) Scope { return apply(o.Kind(), o.Meta().Name, o) }
			policy := func(name string, order int, staged bool, ingress ...string) *datastore.Policy {
				p := &datastore.Policy{Metadata: datastore.Metadata{Name: name}}
				p.Spec = datastore.PolicySpec{Selector: "all()", Order: &order, Staged: staged}
				for _, text := range ingress {
					r, err := datastore.ParseRule(text)
					if err != nil {
						t.Fatal(err)
					}
					p.Spec.Ingress = append(p.Spec.Ingress, r)
				}
				p.SetDefaults()
				return p
			}
			endpoint := func(node, work, addr string, labels map[string]string) *datastore.Endpoint {
				e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: node + "/cni/" + work + "/eth0", Labels: labels}}
				e.Spec = datastore.EndpointSpec{Node: node, Link: "nc" + work, Addresses: addrs(addr)}
				return e
			}
			put(endpoint("n1", "a", "10.0.0.1", nil))
			put(endpoint("n2", "b", "10.0.0.2", nil))
			if tier != nil {
				put(policy("other", 5, false, tier...))
			}
			denied := Scope{}
			for _, order := range []int{1, 9} {
				for _, rules := range [][]string{{"allow from selector \"role == 'web'\""}, {"deny from selector \"role == 'web'\"", "reject tcp"}, {"pass udp", "deny"}, {"deny", "pass udp"}, {"log", "reject"}} {
					denied.Add(put(policy("p", order, staged, rules...)))
					denied.Add(put(endpoint("n2", "b", "10.0.0.2", map[string]string{"role": "web"})))
					denied.Add(put(endpoint("n2", "b", "10.0.0.2", nil)))
				}
			}
			denied.Add(put(policy("q", 9, staged, "deny")))
			for _, name := range []string{"p", "q"} {
				denied.Add(apply(datastore.KindPolicy, name, nil))
			}
			if denied.Empty() != staged {
				t.Errorf("staged %v, beside %q: %v", staged, tier, denied)
			}
			put(policy("p", 1, true, "deny"))
			if put(policy("p", 1, false, "deny")).Empty() {
				t.Errorf("beside %q: a policy that is in force now denies nobody", tier)
			}
		}
	}
}

// TestNoClassDecidesOfLinkLocal: policies and profiles are not asked about what a workload sends from
// a link-local address, so that a change of theirs denies nothing of it. Nothing is forwarded to one.
func TestNoClassDecidesOfLinkLocal(t *testing.T) {
	for _, profiles := range [][]string{{"open"}, nil} {
		x := NewIndex("n1", testOptions())
		open := &datastore.Profile{Metadata: datastore.Metadata{Name: "open"}}
		for _, list := range []*[]datastore.Rule{&open.Spec.Inbound, &open.Spec.Outbound} {
			r, err := datastore.ParseRule("allow")
			if err != nil {
				t.Fatal(err)
			}
			*list = []datastore.Rule{r}
		}
		x.Apply(datastore.Change{Kind: open.Kind(), Name: "open", New: open})
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/cni/a/eth0"}}
		e.Spec = datastore.EndpointSpec{Node: "n1", Link: "nca", MAC: "02:00:00:00:00:01", Addresses: addrs("fd00::1"), Profiles: profiles}
		x.Apply(datastore.Change{Kind: e.Kind(), Name: e.Metadata.Name, New: e})
		j, met, classes := x.Ruleset().Judge(), 0, map[string]bool{x.wired["nca"].in: true, x.wired["nca"].out: true}
		local := x.wired["nca"].linkLocal.Prefix.Addr()
		for _, p := range []Packet{
			{Src: local, Dst: netip.MustParseAddr("fe80::1"), InLink: "nca", InGroup: 77},
			{Src: local, Dst: netip.MustParseAddr("fd00::9"), InLink: "nca", InGroup: 77},
			{Src: local, Dst: netip.MustParseAddr("fd00::9"), InLink: "nca", InGroup: 77, OutLink: "up0"},
		} {
			for _, proto := range []uint8{protoTCP, protoUDP, protoICMP6} {
				p.Protocol, p.DstPort, p.Type, p.State = proto, 53, 128, New
				w := &walk{Judge: j, packet: p, met: func(chain string, _ int, _ bool) {
					if classes[chain] {
						met++
					}
				}}
				w.run()
			}
		}
		if met > 0 || !local.IsValid() {
			t.Errorf("profiles %v: %d rules of classes were asked about %s", profiles, met, local)
		}
	}
}

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}
