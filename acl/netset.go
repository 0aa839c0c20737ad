package acl

import (
	"maps"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// networks is a NetworkSet of the store, or what is behind an endpoint.
type networks struct {
	nets   [2][]netip.Prefix // IPv4, IPv6
	labels map[string]string
	tags   []string // of the endpoint
	// domains are names whose addresses are in it as they are learned (domains.go).
	domains []string
}

func newNetworks(n *datastore.NetworkSet) *networks {
	if n == nil {
		return nil
	}
	out := &networks{labels: n.Metadata.Labels, domains: n.Spec.Domains}
	for _, c := range n.Spec.CIDRs {
		c = cidrOf(c)
		i := index4or6(Element{Prefix: c})
		out.nets[i] = append(out.nets[i], c)
	}
	return out
}

// matches says whether a selector picks the set.
func (n *networks) matches(selector string) bool {
	if n == nil {
		return false
	}
	sel, err := datastore.ParseSelector(selector)
	return err == nil && sel.Matches(n.labels)
}

// tagged says whether it is behind an endpoint with the tag.
func (n *networks) tagged(tag string) bool { return n != nil && slices.Contains(n.tags, tag) }

// in says whether the networks called name are in a set.
func (n *networks) in(r setRef, name string) bool { return r.networks() && takes(r)(name, n) }

// cover is the fewest of the networks that hold them all: the kernel's sets take none that
// overlap. It orders them.
func cover(list []netip.Prefix) (out []Element) {
	slices.SortFunc(list, datastore.ComparePrefix)
	for _, p := range list {
		if n := len(out); n > 0 && out[n-1].Prefix.Overlaps(p) { // it comes behind what holds it
			continue
		}
		out = append(out, Element{Prefix: p})
	}
	return out
}

// netElements are the elements of a set of networks.
func (x *Index) netElements(r setRef) []Element {
	var all []netip.Prefix
	takes := takes(r)
	for name, n := range x.networks {
		if !takes(name, n) {
			continue
		}
		all = append(all, n.nets[r.typ.index()]...)
		for a := range x.learned[name] {
			if e := addrElement(a); index4or6(e) == r.typ.index() {
				all = append(all, e.Prefix)
			}
		}
	}
	return cover(all)
}

// selectsNets says whether a selector picks a network set, or either picks an endpoint with
// networks behind it.
func (x *Index) selectsNets(s source, arg string) bool {
	for _, n := range x.networks {
		if s == fromSelector && n.matches(arg) || s == fromTag && n.tagged(arg) {
			return true
		}
	}
	return false
}

// setNetworks takes a network set.
func (x *Index) setNetworks(name string, object *datastore.NetworkSet) {
	x.replaceNetworks(name, newNetworks(object))
}

// replaceNetworks takes networks (nil: there are none any more). What changes is worked out from the whole of the sets
// that it is in, as one network may come to cover others.
func (x *Index) replaceNetworks(name string, is *networks) {
	was := x.networks[name]
	x.hasDomains(name, is)
	var touched []setRef
	before, selected := map[string][]Element{}, map[populationKey]bool{}
	for n, s := range x.sets {
		if r := s.ref; was.in(r, name) || is.in(r, name) {
			touched = append(touched, r)
			before[n] = x.netElements(r)
			maps.DeleteFunc(x.expired, func(e elementOf, _ struct{}) bool { return e.set == n }) // what goes now does so by the change
		}
	}
	for text := range x.selectors {
		if was.matches(text) || is.matches(text) {
			selected[populationKey{fromSelector, text}] = x.selectsNets(fromSelector, text)
		}
	}
	for _, n := range []*networks{was, is} {
		if n != nil {
			for _, tag := range n.tags {
				selected[populationKey{fromTag, tag}] = x.selectsNets(fromTag, tag)
			}
		}
	}
	if is != nil {
		x.networks[name] = is
	} else {
		delete(x.networks, name)
	}
	for _, r := range touched {
		x.replaceElements(r.name, before[r.name], x.netElements(r))
	}
	maps.DeleteFunc(selected, func(k populationKey, did bool) bool { return x.selectsNets(k.source, k.arg) == did })
	if len(selected) == 0 {
		return
	}
	for _, chain := range sortedKeys(x.chains) {
		if c := x.chains[chain]; c.rank == ruleChain && c.selects(selected) {
			x.compileAgain(c)
		}
	}
}

// selects says whether the chain's rules, or those that it is to have, have one of the
// selectors or tags.
func (c *liveChain) selects(those map[populationKey]bool) bool {
	has := func(p *program) bool {
		return p != nil && slices.ContainsFunc(p.refs, func(r setRef) bool {
			_, is := those[populationKey{r.source, r.arg}]
			return is
		})
	}
	return has(&c.program) || has(c.next)
}

// replaceElements notes what makes the elements of a set, in order, others.
func (x *Index) replaceElements(set string, was, is []Element) {
	has := func(list []Element, e Element) bool {
		_, found := slices.BinarySearchFunc(list, e, Element.Compare)
		return found
	}
	for _, e := range was {
		if !has(is, e) {
			x.pending.element(set, e, false)
		}
	}
	for _, e := range is {
		if !has(was, e) {
			x.pending.element(set, e, true)
		}
	}
}
