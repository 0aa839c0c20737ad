package acl

import (
	"maps"
	"net/netip"
	"slices"
)

// Scope is whose flows a change may deny that were allowed before. The zero Scope is nobody.
type Scope struct {
	All   bool                    // everybody's
	Addrs map[netip.Addr]struct{} // those from or to one of them
}

// Empty says that no flow is denied that was allowed.
func (s Scope) Empty() bool { return !s.All && len(s.Addrs) == 0 }

// Add widens s by o.
func (s *Scope) Add(o Scope) {
	s.All = s.All || o.All
	if s.All {
		s.Addrs = nil
		return
	}
	if s.Addrs == nil {
		s.Addrs = map[netip.Addr]struct{}{}
	}
	maps.Copy(s.Addrs, o.Addrs)
}

// denying is for how many rules an element of a set that goes, or comes, may deny what
// they allowed.
type denying struct{ gone, came int }

// deciding says whether a rule that goes may deny what it allowed, and one that comes.
func (v Verdict) deciding() (gone, came bool) {
	switch v.Kind {
	case Accept:
		return true, false
	case Drop, Reject, Reset, Goto: // of rules, to a chain that denies
		return false, true
	case Return, Jump, Lookup:
		return true, true
	}
	return false, false
}

// deny counts n more uses of the sets that the rules of a program name.
func (x *Index) deny(p program, n int) {
	for _, r := range p.rules {
		gone, came := r.Verdict.deciding()
		for _, t := range r.Match {
			s := x.sets[t.Set]
			if s == nil {
				continue
			}
			if gone && !t.Not || came && t.Not {
				s.denying.gone += n
			}
			if came && !t.Not || gone && t.Not {
				s.denying.came += n
			}
		}
	}
}

// leaves notes addresses that an endpoint has no more, or did not have before. Flows of those
// are forgotten as such, not as something that is denied.
func (x *Index) leaves(was, now []netip.Addr) {
	for _, list := range [2][]netip.Addr{was, now} {
		for _, a := range list {
			x.moved[a]++
		}
	}
	for _, a := range was {
		for _, b := range now {
			if a == b { // it stays
				if x.moved[a] -= 2; x.moved[a] == 0 {
					delete(x.moved, a)
				}
			}
		}
	}
}

// Tightened is whose flows the changes of all Flushes since the last call may deny. It may
// be too much, never too little: what is no more is not compared with what came instead.
// Endpoints that came and went are not in it, and neither are chains that are new: they
// are what an endpoint's class is from now on, which is.
func (x *Index) Tightened() Scope {
	s := x.tightened
	x.tightened = Scope{}
	return s
}

// tighten adds to Tightened what a delta may deny.
func (x *Index) tighten(d Delta) {
	for _, c := range d.Chains {
		live := x.chains[c.Name] // of policies and profiles: what others do is not judged
		if !c.New && !c.Gone && len(live.owners) > 0 && c.tightens() && x.asksEndpoint(c.Name) {
			x.tightened.Add(Scope{All: true})
		}
	}
	for _, c := range d.Sets {
		if !c.New && !c.Gone {
			x.tightened.Add(x.denies(c))
		}
	}
	clear(x.moved)
}

// asksEndpoint says whether the chain of rules is asked of an endpoint here; else it is of host
// endpoints alone, whose flows nobody cuts.
func (x *Index) asksEndpoint(chain string) bool {
	for _, w := range x.wired {
		if slices.Contains(x.chains[w.in].jumps, chain) || slices.Contains(x.chains[w.out].jumps, chain) {
			return true
		}
	}
	return false
}

// tightens says whether a chain may deny what it allowed.
func (c ChainChange) tightens() bool {
	e := c.Edit()
	for _, r := range c.Before[e.At : e.At+e.Delete] {
		if gone, _ := r.Verdict.deciding(); gone {
			return true
		}
	}
	for _, r := range e.Insert {
		if _, came := r.Verdict.deciding(); came {
			return true
		}
	}
	return false
}

// denies is whose flows a change of a set may deny.
func (x *Index) denies(c SetChange) (out Scope) {
	out.Addrs = map[netip.Addr]struct{}{}
	if c.Name == mapFromEP || c.Name == mapToEP {
		for _, e := range c.Add { // a link is of another class
			for _, s := range x.wired[e.Link].sources {
				if a := s.Prefix.Addr(); x.moved[a] == 0 {
					out.Addrs[a] = struct{}{}
				}
			}
		}
		return out
	}
	s := x.sets[c.Name]
	if s == nil {
		return out
	}
	changed := func(list []Element, rules int) {
		for _, e := range list {
			switch a := e.Prefix.Addr(); {
			case rules == 0:
			case !e.Prefix.IsSingleIP():
				out.All = true
			case x.moved[a] == 0:
				out.Addrs[a] = struct{}{}
			}
		}
	}
	changed(c.Del, s.denying.gone)
	changed(c.Add, s.denying.came)
	return out
}
