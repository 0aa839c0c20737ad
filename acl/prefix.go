package acl

import (
	"maps"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// allowedPrefixes are the networks behind the endpoint.
func allowedPrefixes(e *datastore.Endpoint) (out []netip.Prefix) {
	for _, p := range e.Spec.AllowedPrefixes {
		if p.IsValid() {
			out = append(out, cidrOf(p))
		}
	}
	return out
}

// linkNets are those that the endpoint's link may send from.
func linkNets(e *datastore.Endpoint) (out []Element) {
	for _, n := range cover(allowedPrefixes(e)) {
		n.Link = e.Spec.Link
		out = append(out, n)
	}
	return out
}

// setPrefixes makes the networks behind an endpoint, a member or one no more, members of
// what it is a member of. They are kept with the network sets, under the endpoint's name,
// which none of those can have.
func (x *Index) setPrefixes(name string, m *member) {
	var now *networks
	if e := m.endpoint; e != nil && len(e.Spec.AllowedPrefixes) > 0 {
		now = &networks{labels: m.facts.labels, tags: m.facts.tags}
		for _, p := range allowedPrefixes(e) {
			i := index4or6(Element{Prefix: p})
			now.nets[i] = append(now.nets[i], p)
		}
	}
	was := x.networks[name]
	if was == nil && now == nil {
		return
	}
	if was != nil && now != nil && slices.Equal(was.nets[0], now.nets[0]) && slices.Equal(was.nets[1], now.nets[1]) &&
		slices.Equal(was.tags, now.tags) && maps.Equal(was.labels, now.labels) {
		return
	}
	if was != nil { // what lost a network, or its tags, may have flows of it
		x.tightened.Add(Scope{All: true})
	}
	x.replaceNetworks(name, now)
}

// containsBehind says whether a network of the key's link holds its address.
func (s *Set) containsBehind(key Element) bool {
	for e := range s.Elements {
		if e.Link == key.Link && e.Prefix.Contains(key.Prefix.Addr()) {
			return true
		}
	}
	return false
}
