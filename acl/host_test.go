package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

func hostOptions() Options {
	o := testOptions()
	o.FailsafeInbound, o.FailsafeOutbound = []HostPort{{6, 22}, {17, 68}}, []HostPort{{17, 53}}
	return o
}

// hostStep changes a host endpoint, or a policy that is for them.
func (w *world) hostStep() datastore.Change {
	if w.rng.IntN(2) == 0 {
		c := w.policyStep()
		if p, ok := c.New.(*datastore.Policy); ok {
			s := &p.Spec
			switch w.rng.IntN(4) {
			case 0:
				s.ApplyOnForward, s.DoNotTrack = true, true
				for _, list := range []*[]datastore.Rule{&s.Ingress, &s.Egress} {
					*list = slices.DeleteFunc(*list, func(r datastore.Rule) bool { return r.Action == datastore.Reject })
				}
			case 1:
				s.ApplyOnForward, s.PreDNAT, s.Egress, s.Types = true, true, nil, []datastore.PolicyType{datastore.Ingress}
			case 2:
				s.ApplyOnForward = true
			}
			p.SetDefaults()
			if err := p.Validate(); err != nil {
				panic(err)
			}
		}
		return c
	}
	c := datastore.Change{Kind: datastore.KindHostEndpoint, Name: fmt.Sprintf("h%d", w.rng.IntN(5))}
	key := string(c.Kind) + "/" + c.Name
	c.Old = w.current[key]
	if c.Old != nil && w.rng.IntN(3) == 0 {
		delete(w.current, key)
		return c
	}
	h := &datastore.HostEndpoint{Metadata: datastore.Metadata{Name: c.Name, Labels: w.labels()}}
	h.Spec = datastore.HostEndpointSpec{
		Node: fmt.Sprintf("node%d", w.rng.IntN(4)/3), InterfaceName: []string{"", "up0", "up1", "*"}[w.rng.IntN(4)],
		ExpectedIPs: cleaned(w.addresses()), Profiles: w.some(2, func() string { return fmt.Sprintf("p%d", w.rng.IntN(w.profiles)) }),
	}
	if w.rng.IntN(3) == 0 {
		h.Spec.Ports = []datastore.Port{{Name: "http", Protocol: "tcp", Port: 80}}
	}
	if err := h.Validate(); err != nil {
		panic(err)
	}
	c.New = h
	w.current[key] = h
	return c
}

// anew is an index that was told what there is, and nothing else.
func anew(o Options, objects map[string]datastore.Object, links map[string][]netip.Addr) *Index {
	x := NewIndex("node0", o)
	x.SetHostLinks(links)
	for _, key := range sortedKeys(objects) {
		o := objects[key]
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	for x.Work() {
	}
	return x
}

// hostModel is the model with what it says of host endpoints.
type hostModel struct {
	model
	hosts map[string]*datastore.HostEndpoint
	links map[string][]netip.Addr
}

func newHostModel(objects map[string]datastore.Object, links map[string][]netip.Addr) hostModel {
	m := hostModel{newModel(objects), map[string]*datastore.HostEndpoint{}, links}
	for _, o := range objects {
		if h, ok := o.(*datastore.HostEndpoint); ok {
			m.hosts[h.Metadata.Name] = h
			m.endpoints["host "+h.Metadata.Name] = &datastore.Endpoint{Metadata: h.Metadata, Spec: datastore.EndpointSpec{
				Node: h.Spec.Node, Addresses: h.Spec.ExpectedIPs, Profiles: h.Spec.Profiles, Ports: h.Spec.Ports,
			}}
		}
	}
	return m
}

// at is the host endpoint that an interface of the node is; nil: none.
func (m hostModel) at(link string) *datastore.Endpoint {
	for _, is := range []func(s datastore.HostEndpointSpec) bool{
		func(s datastore.HostEndpointSpec) bool { return s.InterfaceName == link },
		func(s datastore.HostEndpointSpec) bool {
			return s.InterfaceName == "" && slices.ContainsFunc(s.ExpectedIPs, func(a netip.Addr) bool { return slices.Contains(m.links[link], a) })
		},
		func(s datastore.HostEndpointSpec) bool { return s.InterfaceName == "*" },
	} {
		for _, name := range sortedKeys(m.hosts) {
			if s := m.hosts[name].Spec; s.Node == "node0" && is(s) {
				return m.endpoints["host "+name]
			}
		}
	}
	return nil
}

// only is the model with the policies of one use.
func (m hostModel) only(is func(datastore.PolicySpec) bool) model {
	out := m.model
	out.policies = map[string]*datastore.Policy{}
	for name, p := range m.policies {
		if is(p.Spec) {
			out.policies[name] = p
		}
	}
	return out
}

// asks goes through the policies of one use: allow, deny, or "", and whether there is one.
func (m model) asks(e *datastore.Endpoint, p Packet, d direction, defaults bool) (verdict datastore.Action, asked bool) {
	tiers, by := m.tiersOf(gather(e, m.profiles).labels, d)
tiers:
	for _, tier := range tiers {
		idle := true
		for _, q := range by[tier] {
			if q.Spec.Staged {
				continue
			}
			asked, idle = true, false
			for _, r := range policyRulesOf(q, d) {
				switch {
				case r.Action == datastore.Log || !m.matches(r, p):
				case r.Action == datastore.Pass:
					continue tiers
				case r.Action == datastore.Allow:
					return datastore.Allow, true
				default:
					return datastore.Deny, true
				}
			}
		}
		if defaults && !idle && !m.passesTier(tier) {
			return datastore.Deny, true
		}
	}
	return "", asked
}

// allows judges a packet; strict as Options say.
func (m hostModel) allows(p Packet, strict bool) bool {
	judged := p.State == New || strict && !p.Reply
	early := func(s datastore.PolicySpec) bool { return s.DoNotTrack || s.PreDNAT }
	raw := m.only(func(s datastore.PolicySpec) bool { return s.DoNotTrack })
	before := m.only(func(s datastore.PolicySpec) bool { return s.PreDNAT })
	usual := m.only(func(s datastore.PolicySpec) bool { return !early(s) })
	forward := m.only(func(s datastore.PolicySpec) bool { return s.ApplyOnForward && !early(s) })
	failsafe := func(list []HostPort, port uint16) bool { return slices.Contains(list, HostPort{p.Protocol, port}) }
	o := hostOptions()
	if p.InLink == "" {
		h := m.at(p.OutLink)
		if h == nil || p.OutGroup == 77 || failsafe(o.FailsafeOutbound, p.DstPort) {
			return true
		}
		if !failsafe(o.FailsafeInbound, p.SrcPort) {
			if v, _ := raw.asks(h, p, outbound, false); v != "" {
				return v == datastore.Allow
			}
		}
		return !judged || usual.decides(h, p, outbound)
	}
	untracked := false
	if h := m.at(p.InLink); h != nil && p.InGroup != 77 {
		local := p.OutLink == ""
		done := false
		for i, early := range []model{raw, before} {
			if local && (failsafe(o.FailsafeInbound, p.DstPort) || i == 0 && failsafe(o.FailsafeOutbound, p.SrcPort)) || i == 1 && !judged {
				continue
			}
			if v, _ := early.asks(h, p, inbound, false); v != "" {
				if done = v == datastore.Allow; !done {
					return false
				}
				untracked = i == 0
				break
			}
		}
		switch {
		case done || !judged:
		case local:
			if !failsafe(o.FailsafeInbound, p.DstPort) && !usual.decides(h, p, inbound) {
				return false
			}
		default:
			if v, _ := forward.asks(h, p, inbound, true); v == datastore.Deny {
				return false
			}
		}
	}
	if h := m.at(p.OutLink); h != nil && p.OutLink != "" && p.OutGroup != 77 && (judged || untracked) {
		if v, _ := forward.asks(h, p, outbound, true); v == datastore.Deny {
			return false
		}
	}
	return p.OutLink == "" && p.InGroup != 77 || usual.allows(p)
}

// TestHostEndpointsFollowFull replays random histories: what the deltas make is what an index
// makes that was told the end alone, and judges packets as loops over the model do.
func TestHostEndpointsFollowFull(t *testing.T) {
	passed, refused := map[string]int{}, map[string]int{}
	for seed := range uint64(10) {
		w, x := newWorld(t, seed+1000), NewIndex("node0", hostOptions())
		if seed%2 == 1 {
			x.slice = 1 + int(seed%3)
		}
		links := map[string][]netip.Addr{}
		applied, o := Static(hostOptions()), hostOptions()
		for i := range 100 {
			step := w.step
			if i%2 == 0 {
				step = w.hostStep
			}
			x.Apply(step())
			if w.rng.IntN(10) == 0 {
				links = map[string][]netip.Addr{"up0": w.addresses(), "up1": w.addresses(), "up2": w.addresses()}
				x.SetHostLinks(links)
			}
			if w.rng.IntN(20) == 0 {
				o.Strict = !o.Strict
				x.SetStrict(o.Strict)
				applied = applied.WithStatic(o)
			}
			x.Work()
			d := x.Flush()
			checkDelta(t, d, applied)
			applied.Apply(d)
			needsNothing(t, applied)
			if w.rng.IntN(5) > 0 {
				continue
			}
			for x.Work() {
			}
			d = x.Flush()
			checkDelta(t, d, applied)
			applied.Apply(d)
			sameRuleset(t, fmt.Sprintf("seed %d: deltas", seed), applied, anew(o, w.current, links).Ruleset())
			m, judge := newHostModel(w.current, links), applied.Judge()
			for range 60 {
				p, kind := w.hostPacket()
				want := m.allows(p, o.Strict)
				got := judge.Eval(p)
				if got.Allowed != want {
					t.Fatalf("seed %d: %s %+v: %s, want %v\n%s", seed, kind, p, got, want, applied)
				}
				if n := len(got.Logged); !want && (n == 0 || !strings.HasPrefix(got.Logged[n-1], "DP")) {
					t.Fatalf("seed %d: %s %+v: %s: logged %q", seed, kind, p, got, got.Logged)
				}
				if p.State == Established {
					kind = "established"
				}
				if want {
					passed[kind]++
				} else {
					refused[kind]++
				}
			}
		}
		for _, v := range w.current {
			x.Apply(datastore.Change{Kind: v.Kind(), Name: v.Meta().Name, Old: v})
		}
		applied.Apply(x.Flush())
		sameRuleset(t, "emptied", applied, Static(o))
		if n := len(x.populations) + len(x.sets) + len(x.chains) + len(x.places) + len(x.hosts.own) + len(x.hosts.classes); n != 0 {
			t.Fatalf("seed %d: %d entries left in an empty index", seed, n)
		}
	}
	for _, kind := range []string{"input", "output", "forward", "established"} {
		if passed[kind] < 100 || refused[kind] < 100 {
			t.Errorf("%s: only %d passed, %d were refused", kind, passed[kind], refused[kind])
		}
	}
}

// hostPacket is one that the host gets, sends or forwards.
func (w *world) hostPacket() (p Packet, kind string) {
	link := func() string { return fmt.Sprint("up", w.rng.IntN(3)) }
	addr := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(w.rng.IntN(16))}) }
	if w.rng.IntN(3) == 0 {
		addr = func() netip.Addr {
			a := netip.MustParseAddr("fd00::").As16()
			a[15] = byte(w.rng.IntN(16))
			return netip.AddrFrom16(a)
		}
	}
	p = Packet{InLink: link(), OutLink: link(), Src: addr(), Dst: addr(), Protocol: []uint8{6, 17, 132}[w.rng.IntN(3)], State: New}
	ports := []uint16{22, 53, 68, 80, 443, 1000, 5432}
	p.SrcPort, p.DstPort = ports[w.rng.IntN(len(ports))], ports[w.rng.IntN(len(ports))]
	if w.rng.IntN(4) == 0 {
		p.State, p.Reply = Established, w.rng.IntN(2) == 0
	}
	switch w.rng.IntN(3) {
	case 0:
		p.OutLink = ""
		return p, "input"
	case 1:
		p.InLink = ""
		return p, "output"
	}
	return p, "forward"
}

// TestFailsafesHoldWheneverClosed: what closes the table before it is whole leaves the ports
// open that no policy can close, and nothing else new; and what shuts it leaves the host alone.
func TestFailsafesHoldWheneverClosed(t *testing.T) {
	x := NewIndex("node0", hostOptions())
	for _, o := range []datastore.Object{
		&datastore.HostEndpoint{Metadata: datastore.Metadata{Name: "up"}, Spec: datastore.HostEndpointSpec{Node: "node0", InterfaceName: "up0"}},
		&datastore.Policy{Metadata: datastore.Metadata{Name: "open"}, Spec: datastore.PolicySpec{ApplyOnForward: true, Ingress: []datastore.Rule{{Action: datastore.Allow}}, Egress: []datastore.Rule{{Action: datastore.Allow}}}},
	} {
		o.SetDefaults()
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	whole := x.Ruleset()
	closed := whole.Closed()
	needsNothing(t, closed)
	peer, own := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct {
		what   string
		p      Packet
		closed bool // passes while closed
	}{
		{"SSH", Packet{InLink: "up0", Src: peer, Dst: own, Protocol: 6, DstPort: 22, State: New}, true},
		{"HTTP", Packet{InLink: "up0", Src: peer, Dst: own, Protocol: 6, DstPort: 80, State: New}, false},
		{"HTTP that goes on", Packet{InLink: "up0", Src: peer, Dst: own, Protocol: 6, DstPort: 80, State: Established}, true},
		{"another interface", Packet{InLink: "up1", Src: peer, Dst: own, Protocol: 6, DstPort: 80, State: New}, true},
		{"DNS", Packet{OutLink: "up0", Src: own, Dst: peer, Protocol: 17, DstPort: 53, State: New}, true},
		{"HTTP out", Packet{OutLink: "up0", Src: own, Dst: peer, Protocol: 6, DstPort: 80, State: New}, false},
		{"over lo", Packet{OutLink: "lo", Src: own, Dst: own, Protocol: 6, DstPort: 80, State: New}, true},
		{"forwarded", Packet{InLink: "up0", OutLink: "up1", Src: peer, Dst: own, Protocol: 6, DstPort: 80, State: New}, false},
	} {
		if d := whole.Eval(c.p); !d.Allowed {
			t.Errorf("%s: %s", c.what, d)
		}
		if d := closed.Eval(c.p); d.Allowed != c.closed {
			t.Errorf("%s, closed: %s", c.what, d)
		}
	}
	for name := range whole.Shut().Chains {
		if ofHosts(name) {
			t.Errorf("shut has %s", name)
		}
	}
}

// TestHostsWithoutHostEndpointsPayNothing: neither another node's nor a policy for them makes
// a chain here.
func TestHostsWithoutHostEndpointsPayNothing(t *testing.T) {
	x := NewIndex("node0", hostOptions())
	x.SetHostLinks(map[string][]netip.Addr{"up0": {netip.MustParseAddr("192.0.2.2")}})
	for _, o := range []datastore.Object{
		&datastore.HostEndpoint{Metadata: datastore.Metadata{Name: "up"}, Spec: datastore.HostEndpointSpec{Node: "node1", InterfaceName: "*"}},
		&datastore.Policy{Metadata: datastore.Metadata{Name: "raw"}, Spec: datastore.PolicySpec{ApplyOnForward: true, DoNotTrack: true}},
	} {
		o.SetDefaults()
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	if d := x.Flush(); !d.Empty() {
		t.Errorf("delta %+v", d)
	}
}
