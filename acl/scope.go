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

// deny counts n more uses of the sets that the rules of a program name, if they decide.
func (x *Index) deny(p program, n int) {
	if p.staged {
		return
	}
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

// leaves counts by how many endpoints fewer, or more, an address is held than at the last Flush.
func (x *Index) leaves(was, now []netip.Addr) {
	for _, a := range was {
		x.moved[a]--
	}
	for _, a := range now {
		x.moved[a]++
	}
}

// reclassed notes what a link had at the last Flush.
func (x *Index) reclassed(link string, was wiring) {
	if _, noted := x.classes[link]; !noted {
		x.classes[link] = was.decides
	}
}

// Tightened is whose flows the changes of all Flushes since the last call may deny. It may
// be too much, never too little: what is no more is not compared with what came instead.
// Addresses that endpoints gave up, and none got instead, are not in it: their flows are
// forgotten as such. Neither are chains that are new: they are what an endpoint's class is
// from now on, which is; nor what staged policies say, which decides nothing.
func (x *Index) Tightened() Scope {
	s := x.tightened
	x.tightened = Scope{}
	return s
}

// tighten adds to Tightened what a delta may deny.
func (x *Index) tighten(d Delta) {
	for _, c := range d.Chains {
		if c.New || c.Gone {
			continue
		}
		live := x.chains[c.Name] // of policies and profiles: what others do is not judged
		if len(live.owners) > 0 && !live.staged && c.tightens() && x.asksEndpoint(c.Name) {
			x.tightened.Add(Scope{All: true})
		}
	}
	for _, c := range d.Sets {
		if !c.New && !c.Gone {
			x.tightened.Add(x.denies(c))
		}
	}
	x.tightened.Add(x.turned())
	clear(x.expired)
	clear(x.moved)
	clear(x.classes)
}

// turned is whose flows are judged by other policies and profiles than at the last Flush. None
// of link-local addresses are: they are not forwarded.
func (x *Index) turned() (out Scope) {
	out.Addrs = map[netip.Addr]struct{}{}
	for link, was := range x.classes {
		if now, ok := x.wired[link]; ok && now.decides != was {
			for _, s := range now.sources {
				x.held(out, s.Prefix.Addr())
			}
			out.All = out.All || len(now.nets) > 0
		}
	}
	return out
}

// held adds an address to s that endpoints have not given up.
func (x *Index) held(s Scope, a netip.Addr) {
	if x.moved[a] >= 0 {
		s.Addrs[a] = struct{}{}
	}
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
	s := x.sets[c.Name]
	if s == nil {
		return out
	}
	out.Addrs = map[netip.Addr]struct{}{}
	changed := func(list []Element, rules int) {
		for _, e := range list {
			_, expired := x.expired[elementOf{c.Name, e.Prefix.Addr()}]
			switch {
			case rules == 0, expired && e.Prefix.IsSingleIP():
			case !e.Prefix.IsSingleIP():
				out.All = true
			default:
				x.held(out, e.Prefix.Addr())
			}
		}
	}
	changed(c.Del, s.denying.gone)
	changed(c.Add, s.denying.came)
	return out
}
