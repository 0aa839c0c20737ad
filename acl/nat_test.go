package acl

import (
	"fmt"
	"net/netip"

	"netctl/datastore"
)

// natStep changes a pool or a node at random; some pools lie in others.
func (w *world) natStep() datastore.Change {
	if w.rng.IntN(2) == 0 {
		c := datastore.Change{Kind: datastore.KindNode, Name: fmt.Sprintf("node%d", w.rng.IntN(4))}
		if w.keep(&c) {
			n := &datastore.Node{Metadata: datastore.Metadata{Name: c.Name}}
			for i, a := range w.addresses() {
				if i != 1 || a.Is6() {
					n.Spec.Addresses = append(n.Spec.Addresses, netip.PrefixFrom(a, 24))
				}
			}
			c.New = n
			w.current[string(c.Kind)+"/"+c.Name] = n
		}
		return c
	}
	cidrs := []string{"10.0.0.0/8", "10.0.0.0/28", "192.168.0.0/17", "192.168.128.0/17", "fd00::/64", "fd01::/64"}
	cidr := netip.MustParsePrefix(cidrs[w.rng.IntN(len(cidrs))])
	c := datastore.Change{Kind: datastore.KindPool, Name: datastore.PoolName(cidr)}
	if w.keep(&c) {
		p := &datastore.Pool{Metadata: datastore.Metadata{Name: c.Name}}
		p.Spec.CIDR, p.Spec.NATOutgoing = cidr, w.rng.IntN(2) == 0
		c.New = p
		w.current[string(c.Kind)+"/"+c.Name] = p
	}
	return c
}

// keep sets c.Old, and tells whether the object stays.
func (w *world) keep(c *datastore.Change) bool {
	key := string(c.Kind) + "/" + c.Name
	c.Old = w.current[key]
	if c.Old == nil || w.rng.IntN(3) > 0 {
		return true
	}
	delete(w.current, key)
	return false
}

// fullNAT puts into r what the pools and nodes ask for, worked out from scratch.
func fullNAT(r *Ruleset, objects map[string]datastore.Object) {
	inside := func(p netip.Prefix, nat bool) bool {
		for _, v := range objects {
			if o, ok := v.(*datastore.Pool); ok && (o.Spec.NATOutgoing || !nat) && o.Spec.CIDR.Bits() < p.Bits() && o.Spec.CIDR.Overlaps(p) {
				return true
			}
		}
		return false
	}
	sets := map[string]map[Element]struct{}{}
	put := func(kind string, e Element) {
		name := kind + []string{"4", "6"}[index4or6(e)]
		if sets[name] == nil {
			sets[name] = map[Element]struct{}{}
		}
		sets[name][e] = struct{}{}
	}
	for _, v := range objects {
		switch v := v.(type) {
		case *datastore.Node:
			for _, a := range v.Spec.Addresses {
				put("nodes", addrElement(a.Addr()))
			}
		case *datastore.Pool:
			e := Element{Prefix: v.Spec.CIDR}
			if !inside(v.Spec.CIDR, false) {
				put("pools", e)
			}
			if v.Spec.NATOutgoing && !inside(v.Spec.CIDR, true) {
				put("nat", e)
			}
		}
	}
	for static, of := range map[string]string{setPool4: "pools4", setPool6: "pools6", setNode4: "nodes4", setNode6: "nodes6"} {
		for e := range sets[of] {
			r.Sets[static].add(e)
		}
	}
	f := families{len(sets["nat4"]) > 0, len(sets["nat6"]) > 0}
	if f == (families{}) {
		return
	}
	p := compileNAT(f, 0)
	r.Chains[ChainNAT] = &Chain{Name: ChainNAT, Hook: &Hook{"postrouting", 100}, Rules: p.rules}
	for _, ref := range p.refs {
		r.Sets[ref.name] = newSet(ref.name, ref.typ, ref.comment())
		for e := range sets[ref.name] {
			r.Sets[ref.name].add(e)
		}
	}
}
