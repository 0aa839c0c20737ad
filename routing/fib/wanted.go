package fib

import (
	"cmp"
	"slices"

	"netctl/routing"
)

// key is routing.Key in 24 bytes without a pointer: a Table may hold hundreds of
// thousands.
type key struct {
	prefix routing.Packed
	metric uint32
}

func keyOf(k routing.Key) key { return key{routing.Pack(k.Prefix), uint32(k.Metric)} }

// compareKeys orders keys by prefix and metric.
func compareKeys(a, b key) int {
	return cmp.Or(routing.ComparePacked(a.prefix, b.prefix), cmp.Compare(a.metric, b.metric))
}

// action is what a route does with packets. Routes that do the same share one.
type action struct {
	kind  routing.Type
	hops  []routing.NextHop
	users int
	name  string
}

// over says whether the action uses one of the links.
func (a *action) over(links []string) bool {
	return slices.ContainsFunc(a.hops, func(h routing.NextHop) bool { return slices.Contains(links, h.Link) })
}

// route is the route that does this; the next hops are shared.
func (k key) route(a *action) routing.Route {
	r := routing.Route{Prefix: k.prefix.Prefix(), Metric: int(k.metric)}
	if a != nil {
		r.Type, r.NextHops = a.kind, a.hops
	}
	return r
}

// wanted are routes by key. The zero value is not usable; see newWanted.
type wanted struct {
	routes  map[key]*action
	most    int // routes that there were
	actions map[string]*action
	links   map[string]int // how many actions use a link
	last    *action        // the one asked for before, which is mostly the next one too
	text    []byte
}

func newWanted() wanted {
	return wanted{routes: map[key]*action{}, actions: map[string]*action{}, links: map[string]int{}}
}

// put makes r wanted and returns what it does.
func (w *wanted) put(r routing.Route) *action {
	k, a := keyOf(r.Key()), w.action(r)
	if old := w.routes[k]; old != a {
		a.users++
		w.routes[k] = a
		w.release(old)
	}
	return a
}

func (w *wanted) remove(k key) {
	if old := w.routes[k]; old != nil {
		delete(w.routes, k)
		w.release(old)
	}
}

// action finds what r does, or keeps it from now on.
func (w *wanted) action(r routing.Route) *action {
	if a := w.last; a != nil && a.kind == r.Type && slices.Equal(a.hops, r.NextHops) {
		return a
	}
	hops := r.NextHops
	if len(hops) > 1 { // their order means nothing
		hops = slices.SortedFunc(slices.Values(hops), routing.CompareNextHops)
	}
	w.text = append(w.text[:0], byte(r.Type))
	for _, h := range hops {
		w.text = h.Addr.AppendTo(w.text)
		w.text = append(append(append(w.text, ' '), h.Link...), ' ')
		if h.Onlink {
			w.text = append(w.text, '!')
		}
	}
	a := w.actions[string(w.text)]
	if a == nil {
		a = &action{kind: r.Type, hops: slices.Clone(hops), name: string(w.text)}
		w.actions[a.name] = a
		for _, h := range hops {
			w.links[h.Link]++
		}
	}
	w.last = a
	return a
}

// release ends one route's use of an action.
func (w *wanted) release(a *action) {
	if a == nil {
		return
	}
	if a.users--; a.users > 0 {
		return
	}
	delete(w.actions, a.name)
	for _, h := range a.hops {
		if w.links[h.Link]--; w.links[h.Link] == 0 {
			delete(w.links, h.Link)
		}
	}
	if w.last == a {
		w.last = nil
	}
}
