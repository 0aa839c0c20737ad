package ui

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/acl"
	"netctl/datastore"
)

// Change is endpoints of two groups between which something passes that did not, or does
// not any more.
type Change struct {
	// From and To are a member of each; "world" stands for an address that is nobody's.
	From string `json:"from"`
	To   string `json:"to"`
	// Pairs is how many pairs of endpoints fare so.
	Pairs int `json:"pairs"`
	// Judged are the kinds of traffic that fare otherwise, as they would.
	Judged []Judged `json:"judged"`
}

// Comparison is what a change of rules does to who may begin to talk to whom.
type Comparison struct {
	Changes []Change `json:"changes"`
	// Changed and Pairs are how many pairs fare otherwise, of how many there are; Unjudged
	// those that there was no time for.
	Changed  int `json:"changed"`
	Pairs    int `json:"pairs"`
	Unjudged int `json:"unjudged,omitempty"`
}

// World stands for an address that is nobody's.
const World = "world"

// worldAddresses are for documentation (RFC 5737, RFC 3849).
func worldAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
}

// Compare judges what endpoints that are there before and after may send each other, and
// the world: those that no rule tells apart once, for judgeTime.
func Compare(ctx context.Context, before, after []datastore.Object) Comparison {
	was, is := newCluster(before), newCluster(after)
	groups := likes(was, is)
	var names []string
	for _, g := range groups {
		names = append(names, g.Example, g.Other)
	}
	old, now := was.court(names), is.court(names)
	out := Comparison{}
	until := time.Now().Add(judgeTime)
	for _, from := range groups {
		for _, to := range groups {
			pairs, other := from.Endpoints*to.Endpoints, to.Example
			if from.Example == to.Example {
				pairs, other = from.Endpoints*(from.Endpoints-1), to.Other
			}
			if other == "" || pairs == 0 {
				continue
			}
			out.Pairs += pairs
			if ctx.Err() != nil || time.Now().After(until) {
				out.Unjudged += pairs
				continue
			}
			if list := differing(old, now, from.Example, other); len(list) > 0 {
				out.Changed += pairs
				out.Changes = append(out.Changes, Change{from.Example, other, pairs, list})
			}
		}
	}
	slices.SortStableFunc(out.Changes, func(a, b Change) int { return b.Pairs - a.Pairs })
	return out
}

func newCluster(objects []datastore.Object) *cluster {
	c := &cluster{endpoints: map[string]*datastore.Endpoint{}, profiles: map[string]*datastore.Profile{}}
	for _, o := range objects {
		c.take(o)
	}
	return c
}

// likes are the endpoints of both that no rule of either tells apart, and the world.
func likes(was, is *cluster) (list []Group) {
	world := &datastore.Endpoint{Metadata: datastore.Metadata{Name: World}, Spec: datastore.EndpointSpec{Addresses: worldAddresses()}}
	was.endpoints[World], is.endpoints[World] = world, world
	wanted, wants := was.asked(), is.asked()
	found := map[string]*Group{}
	for _, name := range slices.Sorted(maps.Keys(is.endpoints)) {
		a, b := was.endpoints[name], is.endpoints[name]
		if a == nil {
			continue
		}
		key := strings.Join(slices.Concat(a.Spec.Profiles, []string{"\x00"}, wanted.traits(a, was.profiles), []string{"\x00"}, b.Spec.Profiles, []string{"\x00"},
			wants.traits(b, is.profiles), []string{families(b)}), "\x00")
		if name == World {
			key = World
		}
		switch g := found[key]; {
		case g == nil:
			found[key] = &Group{Example: name, Endpoints: 1}
		case g.Other == "":
			g.Other = name
			fallthrough
		default:
			g.Endpoints++
		}
	}
	for _, key := range slices.Sorted(maps.Keys(found)) {
		list = append(list, *found[key])
	}
	slices.SortStableFunc(list, func(a, b Group) int { return b.Endpoints - a.Endpoints })
	return list
}

// differing is the traffic from one to another that fares otherwise now.
func differing(old, now *court, from, to string) (list []Judged) {
	a, b := now.endpoints[from], now.endpoints[to]
	kinds := kindsOf(append(old.between(old.endpoints[from], old.endpoints[to]), now.between(a, b)...), b)
	for _, v6 := range []bool{false, true} {
		src, dst := address(a, v6), address(b, v6)
		if !src.IsValid() || !dst.IsValid() {
			continue
		}
		for _, k := range kinds {
			if k.is4 && v6 || k.is6 && !v6 {
				continue
			}
			p := k.packet
			p.Src, p.Dst, p.State = src, dst, acl.New
			was, is := old.one(p, k, old.links[from], old.links[to]), now.one(p, k, now.links[from], now.links[to])
			if was.Allowed != is.Allowed {
				list = add(list, is)
			}
		}
	}
	return list
}
