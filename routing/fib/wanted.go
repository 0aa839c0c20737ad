package fib

import (
	"cmp"
	"encoding/binary"
	"maps"
	"net/netip"
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

// action is what a route does with packets. Routes that do the same share one, those
// that name an object the one of that object.
type action struct {
	kind   routing.Type
	mtu    int
	source netip.Addr
	hops   []routing.NextHop
	users  int
	name   string
	group  *group // nil: routes have their next hops themselves
	// sourceless: the kernel does not take source, which is no address of this machine.
	sourceless bool
}

// over says whether the action uses one of the links.
func (a *action) over(links []string) bool {
	return slices.ContainsFunc(a.hops, func(h routing.NextHop) bool { return slices.Contains(links, h.Link) })
}

// does says whether a route does the same, whose next hops are in the same order.
func (a *action) does(r routing.Route) bool {
	return a.kind == r.Type && a.mtu == r.MTU && a.source == r.Source && slices.Equal(a.hops, r.NextHops)
}

// from is the source address that the kernel takes.
func (a *action) from() netip.Addr {
	if a.sourceless {
		return netip.Addr{}
	}
	return a.source
}

// route is the route that does this; the next hops are shared.
func (k key) route(a *action) routing.Route {
	r := routing.Route{Prefix: k.prefix.Prefix(), Metric: int(k.metric)}
	if a != nil {
		r.Type, r.MTU, r.Source, r.NextHops = a.kind, a.mtu, a.from(), a.hops
	}
	return r
}

// wanted are routes by key. The zero value is not usable; see newWanted.
type wanted struct {
	routes map[key]*action
	most   int // routes that there were
	// actions and bulk are found by name: those of routes with next hops of their own,
	// and those whose routes name an object. An object that was made into what another
	// one is already is in grouped only, which holds all.
	actions, bulk map[string]*action
	grouped       map[*action]struct{}
	links         map[string]int          // how many actions use a link
	hops          map[routing.NextHop]int // how many objects use a next hop
	spare         bool                    // there were more of these
	sources       map[netip.Addr]int      // how many actions have a source address
	absent        map[netip.Addr]bool     // those that the kernel does not take
	unused        []uint32                // IDs of groups that no route names any more
	last          *action                 // the one asked for before, which is mostly the next one too
	text          []byte
	groups        bool // the kernel has objects
}

func newWanted(groups bool) wanted {
	return wanted{
		routes: map[key]*action{}, actions: map[string]*action{}, bulk: map[string]*action{}, grouped: map[*action]struct{}{},
		links: map[string]int{}, hops: map[routing.NextHop]int{},
		sources: map[netip.Addr]int{}, absent: map[netip.Addr]bool{}, groups: groups,
	}
}

// put makes r wanted and returns what it does.
func (w *wanted) put(r routing.Route) *action {
	k := keyOf(r.Key())
	old := w.routes[k]
	if old != nil && old.does(r) {
		return old
	}
	a := w.action(r)
	if old != nil && old.name == a.name {
		return old
	}
	w.use(k, a)
	return a
}

// use makes a what the route of a key does.
func (w *wanted) use(k key, a *action) {
	old := w.routes[k]
	a.users++
	w.routes[k] = a
	w.release(old)
}

func (w *wanted) remove(k key) {
	if old := w.routes[k]; old != nil {
		delete(w.routes, k)
		w.release(old)
	}
}

// fewUsers is how many routes with one next hop have it themselves; further ones name
// an object.
const fewUsers = 64

// groupable says whether a route can name an object: it has gateways, and nothing that
// is the route's own.
func groupable(r routing.Route) bool {
	return r.Type == routing.Unicast && r.MTU == 0 && len(r.NextHops) > 0 &&
		!slices.ContainsFunc(r.NextHops, func(h routing.NextHop) bool { return !h.Addr.IsValid() })
}

// action finds what r does, or keeps it from now on.
func (w *wanted) action(r routing.Route) *action {
	if a := w.last; a != nil && a.does(r) && (!w.groups || a.group != nil || a.users < fewUsers) {
		return a
	}
	name := w.name(r)
	a, by := w.actions[string(name)], w.actions
	var g *group
	if w.groups && groupable(r) && (len(r.NextHops) > 1 || a != nil && a.users >= fewUsers) {
		a, by, g = w.bulk[string(name)], w.bulk, &group{}
	}
	if a == nil {
		a = w.keep(r, string(name), g)
		by[a.name] = a
	}
	w.last = a
	return a
}

// adopted is what a route of the kernel does: those that name the same object have one
// action, known by its ID, and those that name none have next hops of their own.
func (w *wanted) adopted(r routing.Route, known map[uint32]*action) *action {
	if r.Object == 0 {
		name := w.name(r)
		a := w.actions[string(name)]
		if a == nil {
			a = w.keep(r, string(name), nil)
			w.actions[a.name] = a
		}
		return a
	}
	a := known[r.Object]
	if a == nil {
		name := string(w.name(r))
		a = w.keep(r, name, &group{id: r.Object})
		a.group.members = a.hops
		known[r.Object] = a
		if w.bulk[name] == nil {
			w.bulk[name] = a
		}
	}
	return a
}

// keep makes an action that is not known by name yet.
func (w *wanted) keep(r routing.Route, name string, g *group) *action {
	a := &action{kind: r.Type, mtu: r.MTU, source: r.Source, hops: order(r.NextHops), name: name, group: g, sourceless: w.absent[r.Source]}
	if g != nil {
		w.grouped[a] = struct{}{}
	}
	w.count(a, 1)
	return a
}

// rename makes what an object's routes do what r does.
func (w *wanted) rename(a *action, r routing.Route) {
	w.forget(a)
	w.count(a, -1)
	a.hops, a.name = order(r.NextHops), string(w.name(r))
	w.count(a, 1)
	if w.bulk[a.name] == nil {
		w.bulk[a.name] = a
	}
}

// order are next hops sorted, their order meaning nothing.
func order(hops []routing.NextHop) []routing.NextHop {
	return slices.SortedFunc(slices.Values(hops), routing.CompareNextHops)
}

// name is what actions that do the same as r are found by; it is valid until the next one.
func (w *wanted) name(r routing.Route) []byte {
	hops := r.NextHops
	if len(hops) > 1 {
		hops = order(hops)
	}
	w.text = binary.NativeEndian.AppendUint32(append(w.text[:0], byte(r.Type)), uint32(r.MTU))
	if r.Source.IsValid() {
		w.text = append(r.Source.AppendTo(w.text), '<')
	}
	for _, h := range hops {
		w.text = h.Addr.AppendTo(w.text)
		w.text = append(append(append(w.text, ' '), h.Link...), ' ')
		if h.Onlink {
			w.text = append(w.text, '!')
		}
	}
	return w.text
}

// count books what an action uses.
func (w *wanted) count(a *action, n int) {
	if a.source.IsValid() {
		if w.sources[a.source] += n; w.sources[a.source] == 0 {
			delete(w.sources, a.source)
			delete(w.absent, a.source)
		}
	}
	for _, h := range a.hops {
		if w.links[h.Link] += n; w.links[h.Link] == 0 {
			delete(w.links, h.Link)
		}
		if a.group == nil {
			continue
		}
		if w.hops[h] += n; w.hops[h] == 0 {
			delete(w.hops, h)
			w.spare = true
		}
	}
}

// forget has an action not found any more.
func (w *wanted) forget(a *action) {
	by := w.actions
	if a.group != nil {
		by = w.bulk
	}
	if by[a.name] == a {
		delete(by, a.name)
	}
	if w.last == a {
		w.last = nil
	}
}

// release ends one route's use of an action.
func (w *wanted) release(a *action) {
	if a == nil {
		return
	}
	if a.users--; a.users > 0 {
		return
	}
	w.forget(a)
	w.count(a, -1)
	if a.group != nil {
		delete(w.grouped, a)
		if a.group.id != 0 {
			w.unused = append(w.unused, a.group.id)
		}
	}
}

// sortedGroups are the actions whose routes name an object, by its ID.
func (w *wanted) sortedGroups() []*action {
	return slices.SortedFunc(maps.Keys(w.grouped), func(a, b *action) int { return cmp.Compare(a.group.id, b.group.id) })
}
