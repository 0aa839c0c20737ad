package acl

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// full compiles the model from scratch, with loops over everything: the oracle.
func full(node string, o Options, objects map[string]datastore.Object) *Ruleset {
	r := Static(o)
	profiles := map[string]*datastore.Profile{}
	endpoints := map[string]*datastore.Endpoint{}
	for _, v := range objects {
		switch v := v.(type) {
		case *datastore.Profile:
			profiles[v.Metadata.Name] = v
		case *datastore.Endpoint:
			endpoints[v.Metadata.Name] = v
		}
	}
	m := newModel(objects)
	gates := fullGates{}
	taken, has := map[string]bool{}, map[string]families{}
	lists := map[string]map[direction][]stage{} // by endpoint
	for _, name := range sortedKeys(endpoints) {
		e := endpoints[name]
		if e.Spec.Node != node || !validLink(e.Spec.Link) || taken[e.Spec.Link] {
			continue
		}
		taken[e.Spec.Link] = true
		lists[name] = map[direction][]stage{}
		for _, d := range []direction{inbound, outbound} {
			lists[name][d] = m.oracle(d, gather(e, profiles).labels, e.Spec.Profiles)
			_, jumps := classProgram(d, lists[name][d])
			for _, chain := range jumps {
				f := has[chain]
				for _, a := range addresses(e) {
					f[index4or6(addrElement(a))] = true
				}
				has[chain] = f
			}
		}
	}
	taken = map[string]bool{}
	for _, name := range sortedKeys(endpoints) {
		e := endpoints[name]
		if e.Spec.Node != node || !validLink(e.Spec.Link) || taken[e.Spec.Link] {
			continue
		}
		taken[e.Spec.Link] = true
		wiring{sources: linkSources(e), nets: linkNets(e), encap: e.Spec.AllowEncapsulation, linkLocal: linkLocal(e)}.guards(func(set string, s Element) { r.Sets[set].add(s) })
		for _, d := range []direction{inbound, outbound} {
			class := className(tracked, d, lists[name][d])
			prog, _ := classProgram(d, lists[name][d])
			r.Chains[class] = &Chain{Name: class, Rules: prog.rules}
			addEnds(r, prog)
			to := mapToEP
			if d == outbound {
				to = mapFromEP
			}
			r.Sets[to].add(Element{Link: e.Spec.Link, Verdict: goTo(class)})
			for _, s := range lists[name][d] {
				fullStage(r, m, d, s, has, endpoints, profiles, gates)
			}
		}
	}
	for _, g := range gates.few() {
		s := newSet(g.name, g.typ, g.comment())
		for _, k := range g.of {
			maps.Copy(s.Elements, fullSet(setRef{typ: g.typ, source: k.source, arg: k.arg}, m, endpoints, profiles).Elements)
		}
		r.Sets[g.name] = s
	}
	fullNAT(r, objects)
	return r
}

// fullGates are the gates that rules may have, by name.
type fullGates map[string]setRef

// few are those of sets that are in few of them.
func (f fullGates) few() (list []setRef) {
	times := map[string]int{}
	key := func(g setRef, k populationKey) string { return fmt.Sprint(g.typ, k) }
	for _, g := range f {
		for _, k := range g.of {
			times[key(g, k)]++
		}
	}
	for _, g := range f {
		if !slices.ContainsFunc(g.of, func(k populationKey) bool { return times[key(g, k)] > mostGates }) {
			list = append(list, g)
		}
	}
	return list
}

func fullSet(ref setRef, m model, endpoints map[string]*datastore.Endpoint, profiles map[string]*datastore.Profile) *Set {
	s := newSet(ref.name, ref.typ, ref.comment(), ref.elements...)
	four := ref.typ == Addr4 || ref.typ == NamedPort4 || ref.typ == Net4
	if ref.networks() {
		var all []netip.Prefix
		for name, n := range m.networks {
			sel, err := datastore.ParseSelector(ref.arg)
			if ref.source == fromSet && name == ref.arg || ref.source == fromSelectorNets && err == nil && sel.Matches(n.Metadata.Labels) {
				all = append(all, n.Spec.CIDRs...)
			}
		}
		for _, e := range endpoints {
			f := gather(e, profiles)
			sel, err := datastore.ParseSelector(ref.arg)
			if ref.source == fromTagNets && slices.Contains(f.tags, ref.arg) || ref.source == fromSelectorNets && err == nil && sel.Matches(f.labels) {
				all = append(all, e.Spec.AllowedPrefixes...)
			}
		}
		for _, p := range all { // but what another one holds
			if p.Addr().Is4() == four && !slices.ContainsFunc(all, func(o netip.Prefix) bool { return o.Bits() < p.Bits() && o.Contains(p.Addr()) }) {
				s.add(Element{Prefix: p})
			}
		}
		return s
	}
	for _, e := range endpoints {
		f := gather(e, profiles)
		for _, a := range f.addrs {
			if a.Is4() != four {
				continue
			}
			switch ref.source {
			case fromTag:
				if slices.Contains(f.tags, ref.arg) {
					s.add(addrElement(a))
				}
			case fromSelector:
				if sel, err := datastore.ParseSelector(ref.arg); err == nil && sel.Matches(f.labels) {
					s.add(addrElement(a))
				}
			case fromPort:
				for _, p := range f.ports {
					if p.Name == ref.arg {
						s.add(portElement(a, p))
					}
				}
			}
		}
	}
	return s
}
