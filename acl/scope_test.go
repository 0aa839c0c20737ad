package acl

import (
	"maps"
	"net/netip"
	"testing"

	"netctl/datastore"
)

// TestTightened: after any change, what was allowed and is denied now is in Tightened, but
// for addresses that came or went with an endpoint.
func TestTightened(t *testing.T) {
	denied, quiet := 0, 0
	for seed := range uint64(20) {
		w, x := newWorld(t, seed), NewIndex("node0", testOptions())
		before := x.Ruleset()
		for range 150 {
			x.Apply(w.step())
			for x.Work() {
			}
			moved := maps.Clone(x.moved)
			x.Flush()
			scope, now := x.Tightened(), x.Ruleset()
			if scope.Empty() {
				quiet++
			}
			was, is, m, links := before.Judge(), now.Judge(), newModel(w.current), append(sortedKeys(x.links), "up0")
			for range 60 {
				p := w.packet(m, links)
				if !now.owns(p.InLink, p.Src) || !now.owns(p.OutLink, p.Dst) || !was.Eval(p).Allowed || is.Eval(p).Allowed || moved[p.Src]+moved[p.Dst] > 0 {
					continue
				}
				denied++
				_, src := scope.Addrs[p.Src]
				_, dst := scope.Addrs[p.Dst]
				if !scope.All && !src && !dst {
					t.Fatalf("seed %d: %+v: %s, and was %s; scope %v", seed, p, is.Eval(p), was.Eval(p), scope)
				}
			}
			before = now
		}
	}
	if denied < 50 || quiet < 500 {
		t.Errorf("%d packets denied, %d changes that deny nothing: too few to tell anything", denied, quiet)
	}
}

// owns says whether an address is one of a link of an endpoint, or the link is none of those.
func (r *Ruleset) owns(link string, a netip.Addr) bool {
	e := addrElement(a)
	e.Link = link
	_, four := r.Sets[setSrc4].Elements[e]
	_, six := r.Sets[setSrc6].Elements[e]
	return four || six || link == "up0"
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
