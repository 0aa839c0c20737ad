package agent

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

func direct(link string, addrs ...string) (list []kernel.Route) {
	for _, a := range addrs {
		addr := netip.MustParseAddr(a)
		list = append(list, kernel.Route{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Protocol: 3, Link: link, Direct: true})
	}
	return list
}

// TestJudge: only what is a workload's for certain is adopted, and with what it has.
func TestJudge(t *testing.T) {
	a := &adopter{loop: &loop{cfg: Config{RouteProtocol: 87, Adopt: []netdev.Adoption{{Pattern: "v*", Network: "web"}}}}, seen: map[string]found{}}
	pools := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	veth := kernel.Interface{Name: "v1", Index: 7, Kind: "veth", Up: true}
	with := func(change func(*kernel.Interface)) kernel.Interface { l := veth; change(&l); return l }
	route := direct("v1", "10.0.0.7")
	for name, c := range map[string]struct {
		link          kernel.Interface
		routes        []kernel.Route
		want, problem string
	}{
		"routed":        {veth, append(direct("v1", "10.0.0.9", "10.0.0.7", "10.0.0.7", "fe80::7"), direct("v2", "10.0.0.8")...), "10.0.0.7", ""},
		"no route":      {veth, direct("v2", "10.0.0.8"), "", "no route leads to a single address"},
		"a subnet":      {veth, []kernel.Route{{Prefix: netip.MustParsePrefix("10.0.0.0/24"), Link: "v1", Direct: true}}, "", "no route leads to a single address"},
		"by a gateway":  {veth, []kernel.Route{{Prefix: netip.MustParsePrefix("10.0.0.7/32"), Link: "v1"}}, "", "no route leads to a single address"},
		"our own route": {veth, []kernel.Route{{Prefix: netip.MustParsePrefix("10.0.0.7/32"), Link: "v1", Protocol: 87, Direct: true}}, "", "no route leads to a single address"},
		"no pool":       {veth, direct("v1", "192.0.2.1"), "", "no pool has 192.0.2.1"},
		"a port":        {with(func(l *kernel.Interface) { l.Master = "br0" }), route, "", ""},
		"down":          {with(func(l *kernel.Interface) { l.Up = false }), route, "", ""},
		"ours":          {with(func(l *kernel.Interface) { l.Ours = true }), route, "", "is netctl's own"},
		"hardware":      {with(func(l *kernel.Interface) { l.Kind = "" }), route, "", "neither a veth nor a TAP, but a device"},
		"a bridge":      {with(func(l *kernel.Interface) { l.Kind = "bridge" }), route, "", "but a bridge"},
		"the uplink":    {with(func(l *kernel.Interface) { l.Name = "v0" }), direct("v0", "10.0.0.7"), "", "leads to other hosts"},
		"a default":     {veth, append(route, kernel.Route{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Link: "v1"}), "", "leads to other hosts"},
		"a name":        {with(func(l *kernel.Interface) { l.Name = "v+1" }), direct("v+1", "10.0.0.7"), "", "its name must be of letters"},
	} {
		f, problem := a.judge(c.link, c.routes, pools, "v0")
		var have []string
		for _, addr := range f.addresses {
			have = append(have, addr.String())
		}
		if got := strings.Join(have, " "); got != c.want || !strings.Contains(problem, c.problem) || (problem == "") != (c.problem == "") {
			t.Errorf("%s: %q, %q", name, got, problem)
		}
	}
}

// TestAdoptsAndGivesUp: what others made is an endpoint as long as it is there, with no
// operation on it; one that has another's address waits, and a restart changes nothing.
func TestAdoptsAndGivesUp(t *testing.T) {
	w := newWorld(t)
	w.cfg.Adopt = []netdev.Adoption{{Pattern: "v[0-9]*", Network: "web"}}
	w.links.Fail = func(op, object string) error {
		if strings.HasPrefix(object, "v") {
			t.Errorf("%s of %s, which is somebody else's", op, object)
		}
		return nil
	}
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	endpoints := func(want ...string) {
		t.Helper()
		w.until(func() string {
			var have []string
			for name, addrs := range w.adoptedEndpoints() {
				have = append(have, name+" "+addrs)
			}
			slices.Sort(have)
			if !slices.Equal(have, want) {
				return strings.Join(have, ", ")
			}
			return ""
		})
	}
	problem := func(want string) {
		t.Helper()
		w.until(func() string {
			text := strings.Join(w.status().Problems, "; ")
			if want == "" && text != "" || !strings.Contains(text, want) {
				return "problems: " + text
			}
			return ""
		})
	}
	v1 := kernel.Interface{Name: "v1", Index: 7, Kind: "veth", Up: true}
	v2 := kernel.Interface{Name: "v2", Index: 8, Kind: "tun", Up: true}
	w.links.SetOthers([]kernel.Interface{v1}, direct("v1", "10.0.0.7"))
	endpoints("n1/adopted/v1/v1 10.0.0.7")
	problem("")
	w.links.SetOthers([]kernel.Interface{v2, v1}, append(direct("v2", "10.0.0.7"), direct("v1", "10.0.0.7")...))
	problem("interface v2 (agent.adopt): 10.0.0.7 is behind v1 too")
	endpoints("n1/adopted/v1/v1 10.0.0.7")
	w.links.SetOthers([]kernel.Interface{v1, v2}, append(direct("v1", "10.0.0.8", "192.0.2.1"), direct("v2", "10.0.0.9")...))
	endpoints("n1/adopted/v1/v1 10.0.0.8", "n1/adopted/v2/v2 10.0.0.9")
	problem("interface v1 (agent.adopt): has a route to 192.0.2.1, which is in no pool")
	w.links.SetOthers([]kernel.Interface{v1, v2}, append(direct("v1", "10.0.0.8", "10.0.0.11"), direct("v2", "10.0.0.9")...))
	problem("has a route to 10.0.0.11 too")
	w.links.SetOthers([]kernel.Interface{v1, v2}, append(direct("v1", "10.0.0.8"), direct("v2", "10.0.0.9")...))
	problem("")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	v1.Index++ // another one of that name
	w.links.SetOthers([]kernel.Interface{v1}, direct("v1", "10.0.0.8"))
	w.start()
	endpoints("n1/adopted/v1/v1 10.0.0.8")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.cfg.Adopt = nil
	w.start()
	endpoints()
	if left := w.records(); len(left) > 0 || len(w.holders()) > 0 {
		t.Errorf("left: %v, %v", left, w.holders())
	}
}

// TestAdoptedSubnet: the subnet of an interface that was the host's before it is adopted is
// none of the host's any more, nor one that blocks keep out of, and again when it is given up.
func TestAdoptedSubnet(t *testing.T) {
	w := newWorld(t)
	w.cfg.Adopt = []netdev.Adoption{{Pattern: "v[0-9]*", Network: "web"}}
	w.pool("10.0.0.0/24")
	uplink := on("eth1", "192.168.99.102/24")
	w.links.SetAddresses(uplink, on("v1", "10.0.0.1/24"))
	w.create(&datastore.Block{Metadata: datastore.Metadata{Name: "10.0.0.64-26"}, Spec: datastore.BlockSpec{
		CIDR: netip.MustParsePrefix("10.0.0.64/26"), Affinity: "n1", Allocations: []datastore.Allocation{{Ordinal: 1, Handle: "somebody", Node: "n1"}},
	}})
	w.start()
	w.ready()
	const route, overlaps = "blackhole 10.0.0.64/26", "block 10.0.0.64/26 of node n1: overlaps 10.0.0.0/24"
	is := func(adopted bool) {
		t.Helper()
		w.until(func() string {
			routes, problems := w.fib.String(), strings.Join(w.status().Problems, "\n")
			if strings.Contains(routes, route) != adopted || strings.Contains(problems, overlaps) == adopted {
				return routes + problems
			}
			return ""
		})
	}
	is(false)
	w.links.SetOthers([]kernel.Interface{{Name: "v1", Index: 7, Kind: "veth", Up: true}}, direct("v1", "10.0.0.7"))
	is(true)
	w.links.SetOthers(nil, nil)
	is(false)
}

// adoptedEndpoints are those of the store, with their addresses.
func (w *world) adoptedEndpoints() map[string]string {
	w.t.Helper()
	list, err := w.db().List(w.t.Context(), datastore.KindPrefix(datastore.KindEndpoint))
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range list.Entries {
		_, name, _ := datastore.ParseKey(e.Key)
		ep, err := datastore.Get[*datastore.Endpoint](w.t.Context(), w.db(), name)
		if err != nil {
			continue
		}
		var addrs []string
		for _, a := range ep.Spec.Addresses {
			addrs = append(addrs, a.String())
		}
		out[name] = strings.Join(addrs, ",")
	}
	return out
}
