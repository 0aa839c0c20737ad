package acl

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"netctl/datastore"
)

// model says what the datastore means for a packet, straight from rules and
// selectors, without anything that is compiled: the semantics Eval has to have.
type model struct {
	endpoints map[string]*datastore.Endpoint
	profiles  map[string]*datastore.Profile
	policies  map[string]*datastore.Policy
	tiers     map[string]*datastore.Tier
	networks  map[string]*datastore.NetworkSet
	nodes     map[netip.Addr]bool // their addresses
}

func newModel(objects map[string]datastore.Object) model {
	m := model{map[string]*datastore.Endpoint{}, map[string]*datastore.Profile{}, map[string]*datastore.Policy{}, map[string]*datastore.Tier{}, map[string]*datastore.NetworkSet{}, map[netip.Addr]bool{}}
	for _, v := range objects {
		switch v := v.(type) {
		case *datastore.Endpoint:
			m.endpoints[v.Metadata.Name] = v
		case *datastore.Profile:
			m.profiles[v.Metadata.Name] = v
		case *datastore.Policy:
			m.policies[v.Metadata.Name] = v
		case *datastore.Tier:
			m.tiers[v.Metadata.Name] = v
		case *datastore.Node:
			for _, p := range v.Spec.Addresses {
				m.nodes[p.Addr()] = true
			}
		case *datastore.NetworkSet:
			m.networks[v.Metadata.Name] = v
		}
	}
	return m
}

// owner is the local endpoint that has the link.
func (m model) owner(link string) *datastore.Endpoint {
	for _, name := range sortedKeys(m.endpoints) {
		if e := m.endpoints[name]; e.Spec.Node == "node0" && e.Spec.Link == link && validLink(link) {
			return e
		}
	}
	return nil
}

// sends says whether an endpoint may send from an address.
func sends(from *datastore.Endpoint, a netip.Addr) bool {
	return slices.Contains(addresses(from), a) || slices.ContainsFunc(allowedPrefixes(from), func(n netip.Prefix) bool { return n.Contains(a) })
}

func (m model) allows(p Packet) bool {
	if p.InGroup == 77 {
		from := m.owner(p.InLink)
		if from == nil || !sends(from, p.Src) {
			return false
		}
		if m.guarded(from, p) || !m.decides(from, p, outbound) {
			return false
		}
	}
	if p.OutGroup == 77 {
		to := m.owner(p.OutLink)
		return to != nil && m.decides(to, p, inbound)
	}
	return true
}

func (m model) decides(e *datastore.Endpoint, p Packet, d direction) bool {
	tiers, by := m.tiersOf(gather(e, m.profiles).labels, d)
tiers:
	for _, tier := range tiers {
		idle := true
		for _, q := range by[tier] {
			if q.Spec.Staged {
				continue
			}
			idle = false
			for _, r := range policyRulesOf(q, d) {
				if r.Action == datastore.Log || !m.matches(r, p) {
					continue
				}
				if r.Action == datastore.Pass {
					continue tiers
				}
				return r.Action == datastore.Allow
			}
		}
		if !idle && !m.passesTier(tier) {
			return false
		}
	}
	for _, name := range e.Spec.Profiles {
		for _, r := range rulesOf(m.profiles[name], d) {
			if r.Action != datastore.Log && m.matches(r, p) {
				return r.Action == datastore.Allow
			}
		}
	}
	return false
}

func (m model) matches(r datastore.Rule, p Packet) bool {
	if q := r.Protocol; q.Set {
		is := q.Number == p.Protocol && (!q.HasType || q.Type == p.Type) && (!q.HasCode || q.Code == p.Code)
		if is == q.Not {
			return false
		}
		if !q.Not && (q.Number == 1 && p.Src.Is6() || q.Number == 58 && p.Src.Is4()) {
			return false
		}
	}
	return m.side(r.From, p.Src, p.SrcPort, p.Protocol) && m.side(r.To, p.Dst, p.DstPort, p.Protocol)
}

func (m model) side(s datastore.Side, a netip.Addr, port uint16, proto uint8) bool {
	of := m.facts(a)
	some := func(f func(*facts) bool) bool { return slices.ContainsFunc(of, f) }
	term := func(t datastore.Term, is bool) bool { return t.Value == "" || is != t.Not }
	sel, _ := datastore.ParseSelector(s.Selector.Value)
	if !term(s.Tag, some(func(f *facts) bool { return slices.Contains(f.tags, s.Tag.Value) })) {
		return false
	}
	if s.Selector.Value != "" && !term(s.Selector, some(func(f *facts) bool { return sel.Matches(f.labels) }) ||
		m.inNetworks(a, func(n *datastore.NetworkSet) bool { return sel.Matches(n.Metadata.Labels) })) {
		return false
	}
	if !term(s.Set, m.inNetworks(a, func(n *datastore.NetworkSet) bool { return n.Metadata.Name == s.Set.Value })) {
		return false
	}
	if len(s.CIDRs) > 0 && slices.ContainsFunc(s.CIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) == s.NotCIDRs {
		return false
	}
	if len(s.Ports) == 0 {
		return true
	}
	is := slices.ContainsFunc(s.Ports, func(r datastore.PortRange) bool {
		if r.Name == "" {
			return r.First <= port && port <= max(r.First, r.Last)
		}
		return some(func(f *facts) bool {
			return slices.ContainsFunc(f.ports, func(q datastore.Port) bool {
				return q.Name == r.Name && q.Port == port && portElement(a, q).Proto == proto
			})
		})
	})
	return is != s.NotPorts
}

// facts are those of every endpoint that has the address.
func (m model) facts(a netip.Addr) []*facts {
	var out []*facts
	for _, e := range m.endpoints {
		f := gather(e, m.profiles)
		if slices.ContainsFunc(allowedPrefixes(e), func(p netip.Prefix) bool { return p.Contains(a) }) {
			f.ports = nil // those are of its addresses
			out = append(out, f)
		} else if slices.Contains(f.addrs, a) {
			out = append(out, f)
		}
	}
	return out
}

// TestEvalMeansTheModel holds Eval on the compiled rules against the model, with
// random models and packets.
func TestEvalMeansTheModel(t *testing.T) {
	allowed, denied := 0, 0
	for seed := range uint64(150) {
		w, x := newWorld(t, 1000+seed), NewIndex("node0", testOptions())
		for range 40 {
			x.Apply(w.step())
		}
		rules, m := x.Ruleset(), newModel(w.current)
		links := append(sortedKeys(x.links), "up0")
		for range 60 {
			p := w.packet(m, links)
			got := rules.Eval(p)
			if got.Allowed != m.allows(p) {
				t.Fatalf("seed %d: %+v: %s\n%s", seed, p, got, rules)
			}
			if got.Allowed {
				allowed++
			} else {
				denied++
			}
		}
	}
	if allowed < 500 || denied < 500 {
		t.Errorf("only %d allowed and %d denied", allowed, denied)
	}
}

// packet is a random packet, mostly between addresses that belong to the links.
func (w *world) packet(m model, links []string) Packet {
	p := Packet{InLink: links[w.rng.IntN(len(links))], OutLink: links[w.rng.IntN(len(links))], State: New}
	of := func(link string) (uint32, []netip.Addr) {
		if link == "up0" {
			return 0, append(w.addresses(), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"))
		}
		list := append(slices.Clone(addresses(m.owner(link))), w.addresses()[0])
		for _, p := range m.owner(link).Spec.AllowedPrefixes {
			list = append(list, p.Addr().Next())
		}
		return 77, list
	}
	var src, dst []netip.Addr
	p.InGroup, src = of(p.InLink)
	p.OutGroup, dst = of(p.OutLink)
	p.Src = src[w.rng.IntN(len(src))]
	p.Dst = dst[w.rng.IntN(len(dst))]
	if p.Dst.Is4() != p.Src.Is4() {
		if i := slices.IndexFunc(dst, func(a netip.Addr) bool { return a.Is4() == p.Src.Is4() }); i >= 0 {
			p.Dst = dst[i]
		} else {
			p.Src, p.Dst = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		}
	}
	switch p.Protocol = []uint8{1, 6, 6, 6, 17, 17, 58, 99, 132, 4}[w.rng.IntN(10)]; p.Protocol {
	case 1, 58:
		p.Type, p.Code = []uint8{8, 128, 3}[w.rng.IntN(3)], uint8(w.rng.IntN(2))
	case 6, 17, 132:
		ports := []uint16{22, 53, 67, 80, 81, 85, 443, 1000, 1500, 4789, 5432, 547}
		p.SrcPort, p.DstPort = ports[w.rng.IntN(len(ports))], ports[w.rng.IntN(len(ports))]
	}
	return p
}

// TestEvalNames gives the rule that decides, what was logged, and the states.
func TestEvalNames(t *testing.T) {
	x := NewIndex("node0", testOptions())
	rule := func(s string) datastore.Rule {
		r, err := datastore.ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	web := &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}
	web.Spec.Tags = []string{"web"}
	web.Spec.Inbound = []datastore.Rule{rule("log tcp"), rule("deny tcp to ports 22"), rule("allow from tag web")}
	web.Spec.Outbound = []datastore.Rule{rule("allow")}
	x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: "web", New: web})
	for i, link := range []string{"nca", "ncb"} {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "node0/cni/" + link + "/eth0"}}
		e.Spec = datastore.EndpointSpec{Node: "node0", Link: link, Profiles: []string{"web"}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}}
		x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: e.Metadata.Name, New: e})
	}
	rules := x.Ruleset()
	ids := Places(web)
	logTCP, deny22 := "LPI|"+ids[0].ID+"|web", "DPI|"+ids[1].ID+"|web"
	base := Packet{InLink: "nca", OutLink: "ncb", InGroup: 77, OutGroup: 77, Protocol: 6, DstPort: 80, State: New,
		Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2")}
	for _, c := range []struct {
		change func(*Packet)
		want   string
		logged string
	}{
		{func(*Packet) {}, "allowed by " + profileChain(inbound, "web") + " rule 2 (profile web inbound: allow from tag web)", logTCP},
		{func(p *Packet) { p.DstPort = 22 }, "denied by drop_in rule 0 (profile web inbound: deny tcp to ports 22)", logTCP + " " + deny22},
		{func(p *Packet) { p.DstPort, p.State = 22, Established }, "allowed by fwd_to rule 0 ()", ""},
		{func(p *Packet) { p.State = Invalid }, "denied by from_wl rule 0 ()", ""},
		{func(p *Packet) { p.Src = netip.MustParseAddr("10.0.0.9") }, "denied by raw_pre rule 12 (spoofed source)", ""},
		{func(p *Packet) {
			p.InLink, p.InGroup = "up0", 0
			p.Src = netip.MustParseAddr("192.0.2.1")
			p.Protocol = 17
		}, "denied by deny_in rule 1 (no inbound rule allows it)", "DPI|default"},
		{func(p *Packet) { p.OutLink, p.OutGroup = "up0", 0 }, "allowed by fwd_to rule -1 (profile web outbound: allow)", ""},
		{func(p *Packet) { p.Dst = netip.MustParseAddr("169.254.1.1") }, "denied by from_wl rule 1 (sent to a gateway address)", ""},
		{func(p *Packet) { p.InLink, p.InGroup, p.Dst = "up0", 0, netip.MustParseAddr("169.254.1.1") }, "denied by raw_other rule 0 (sent to a gateway address)", ""},
		{func(p *Packet) { p.InLink, p.InGroup = "ncz", 0 }, "denied by raw_other rule 1 (our prefix without our group)", ""},
		{func(p *Packet) { p.OutLink = "ncz" }, "denied by to_wl rule 4 (unknown endpoint)", ""},
		{func(p *Packet) { p.OutLink, p.OutGroup, p.DstPort = "", 0, 53 }, "allowed by wl_host rule 11 ()", ""},
		{func(p *Packet) { p.OutLink, p.OutGroup, p.DstPort = "", 0, 22 }, "denied by wl_host rule 14 ()", "DPH|host"},
	} {
		p := base
		c.change(&p)
		d := rules.Eval(p)
		logged := strings.Join(d.Logged, " ")
		if d.String() != c.want || logged != c.logged {
			t.Errorf("%+v:\n got %s, logged %v\nwant %s, logged %s", p, d, d.Logged, c.want, c.logged)
		}
	}
}

// TestEstablishedIsAskedLittle counts the rules that a packet of an established flow meets,
// in a world of some endpoints and of many: each costs as much as a look-up in a set.
func TestEstablishedIsAskedLittle(t *testing.T) {
	for _, endpoints := range []int{2, 2000} {
		x := NewIndex("node0", testOptions())
		for i := range endpoints {
			name := "node0/cni/w" + strconv.Itoa(i) + "/eth0"
			e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}}
			e.Spec = datastore.EndpointSpec{Node: "node0", Link: "nc" + strconv.Itoa(i), Profiles: []string{"web"},
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}}
			x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: name, New: e})
		}
		judge := x.Ruleset().Judge()
		first, second, far := netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.0.1")
		for _, c := range []struct {
			what string
			Packet
			want int
		}{
			{"sent to another node", Packet{InLink: "nc0", InGroup: 77, OutLink: "up0", Src: first, Dst: far}, 4},
			{"received from another node", Packet{InLink: "up0", OutLink: "nc0", OutGroup: 77, Src: far, Dst: first}, 5},
			{"between two of one node", Packet{InLink: "nc0", InGroup: 77, OutLink: "nc1", OutGroup: 77, Src: first, Dst: second}, 4},
		} {
			c.Packet.Protocol, c.Packet.State = 6, Established
			if d := judge.Eval(c.Packet); !d.Allowed {
				t.Errorf("%s: %s", c.what, d)
			}
			w, asked := walk{Judge: judge, packet: c.Packet}, 0
			for _, base := range []string{ChainRawPre, ChainFwdFrom, ChainFwdTo} {
				asked += w.asks(base)
			}
			if asked > c.want {
				t.Errorf("of %d endpoints, %s: %d rules are asked, not %d", endpoints, c.what, asked, c.want)
			}
		}
	}
}

// asks counts the rules of a chain that the packet meets, up to the verdict; of what a map
// leads to it counts none.
func (w *walk) asks(chain string) (n int) {
	for _, r := range w.rules.Chains[chain].Rules {
		n++
		switch {
		case !w.matches(&r) || r.Verdict.Kind == Continue || r.Verdict.Kind == Lookup:
		case r.Verdict.Kind == Goto || r.Verdict.Kind == Jump:
			return n + w.asks(r.Verdict.Chain)
		default:
			return n
		}
	}
	return n
}

// TestGatewayGuards: of several gateways each is guarded, from wherever a packet comes, and
// an address between them is not.
func TestGatewayGuards(t *testing.T) {
	o := testOptions()
	o.Gateways = []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("169.254.1.6"), netip.MustParseAddr("169.254.1.16")}
	rules := Static(o)
	for addr, guarded := range map[string]bool{
		"169.254.1.1": true, "169.254.1.6": true, "169.254.1.16": true, "169.254.1.2": false, "169.254.1.17": false, "169.254.2.1": false, "192.0.2.1": false,
	} {
		for _, from := range []Packet{
			{InLink: "up0"}, {InLink: "nca", InGroup: o.Group, OutLink: "up0"}, {InLink: "nca", InGroup: o.Group},
		} {
			p := from
			p.Src, p.Dst, p.Protocol, p.SrcPort, p.DstPort, p.State = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr(addr), 17, 40000, 9, New
			if from.InGroup == o.Group {
				rules.Sets[setSrc4].add(Element{Link: "nca", Prefix: netip.MustParsePrefix("10.0.0.1/32")})
			}
			if got := strings.Contains(rules.Eval(p).String(), "sent to a gateway address"); got != guarded {
				t.Errorf("to %s from %s, out %q: guarded %v: %s", addr, p.InLink, p.OutLink, got, rules.Eval(p))
			}
		}
	}
}
