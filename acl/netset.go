package acl

import (
	"maps"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// networks is a NetworkSet of the store.
type networks struct {
	nets   [2][]netip.Prefix // IPv4, IPv6
	labels map[string]string
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

// selectsNets says whether a selector picks a network set.
func (x *Index) selectsNets(selector string) bool {
	for _, n := range x.networks {
		if n.matches(selector) {
			return true
		}
	}
	return false
}

// setNetworks takes a network set. What changes is worked out from the whole of the sets
// that it is in, as one network may come to cover others.
func (x *Index) setNetworks(name string, object *datastore.NetworkSet) {
	was, is := x.networks[name], newNetworks(object)
	x.hasDomains(name, is)
	clear(x.expired) // what goes now does so by the change
	var touched []setRef
	before, selected := map[string][]Element{}, map[string]bool{}
	for n, s := range x.sets {
		if r := s.ref; r.source == fromSet && r.arg == name || r.source == fromSelectorNets && (was.matches(r.arg) || is.matches(r.arg)) {
			touched = append(touched, r)
			before[n] = x.netElements(r)
		}
	}
	for text := range x.selectors {
		if was.matches(text) || is.matches(text) {
			selected[text] = x.selectsNets(text)
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
	maps.DeleteFunc(selected, func(text string, did bool) bool { return x.selectsNets(text) == did })
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
// selectors.
func (c *liveChain) selects(texts map[string]bool) bool {
	has := func(p *program) bool {
		return p != nil && slices.ContainsFunc(p.refs, func(r setRef) bool {
			_, is := texts[r.arg]
			return is && r.source == fromSelector
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
