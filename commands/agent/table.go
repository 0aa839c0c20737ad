package agent

import (
	"context"
	"net/netip"
	"slices"

	"netctl/routing"
)

// table is what the kernel should hold of this agent's routes, and what it holds.
// Each route is wanted by an owner (an endpoint, a block, the gateway); a change of
// one owner costs that owner's routes. Its owner is the loop.
type table struct {
	kernel routes

	wants   map[string][]routing.Route // by owner
	owners  map[routing.Key][]string   // who wants a route, sorted; the first has it
	v6      int                        // wanted routes of IPv6
	present map[routing.Key]routing.Route
	missing map[netip.Prefix]bool // wanted, and not in the kernel for now
	changed map[routing.Key]bool  // what present may differ in from what is wanted
	resync  bool                  // present is not known
	err     error                 // why the last flush failed; nil: it did not
}

func newTable(kernel routes) *table {
	return &table{
		kernel: kernel, wants: map[string][]routing.Route{}, owners: map[routing.Key][]string{}, present: map[routing.Key]routing.Route{},
		missing: map[netip.Prefix]bool{}, changed: map[routing.Key]bool{}, resync: true,
	}
}

// want makes these the routes of an owner.
func (t *table) want(owner string, now ...routing.Route) {
	old := t.wants[owner]
	if slices.EqualFunc(old, now, routing.Route.Equal) {
		return
	}
	for _, r := range old {
		k := r.Key()
		t.changed[k] = true
		if i, ok := slices.BinarySearch(t.owners[k], owner); ok {
			t.owners[k] = slices.Delete(t.owners[k], i, i+1)
		}
		if len(t.owners[k]) == 0 {
			delete(t.owners, k)
		}
		t.count(r, -1)
	}
	delete(t.wants, owner)
	for _, r := range now {
		k := r.Key()
		t.changed[k] = true
		if i, ok := slices.BinarySearch(t.owners[k], owner); !ok {
			t.owners[k] = slices.Insert(t.owners[k], i, owner)
		}
		t.count(r, +1)
	}
	if len(now) > 0 {
		t.wants[owner] = now
	}
}

func (t *table) count(r routing.Route, n int) {
	if r.Prefix.Addr().Is6() {
		t.v6 += n
	}
}

// wanted is the route that should be there under a key.
func (t *table) wanted(k routing.Key) (routing.Route, bool) {
	owners := t.owners[k]
	if len(owners) == 0 {
		return routing.Route{}, false
	}
	routes := t.wants[owners[0]]
	i := slices.IndexFunc(routes, func(r routing.Route) bool { return r.Key() == k })
	return routes[i], true
}

// flush makes the kernel hold what is wanted.
func (t *table) flush(ctx context.Context) error {
	if t.resync {
		if t.err = t.read(ctx); t.err != nil {
			return t.err
		}
	}
	var c routing.Changes
	var there []routing.Route
	for k := range t.changed {
		want, is := t.wanted(k)
		have, has := t.present[k]
		switch {
		case !is && has:
			c.Delete = append(c.Delete, have)
		case is && !(has && have.Equal(want)):
			c.Put = append(c.Put, want)
		case is:
			there = append(there, want)
		}
		if is {
			t.present[k] = want
		} else {
			delete(t.present, k)
		}
	}
	if t.resync {
		t.kernel.Adopt(there)
		t.readMissing() // what is there is not
	}
	t.resync = false
	clear(t.changed)
	if c.Empty() {
		return t.err
	}
	// A block's route comes before those of its endpoints, and goes after them: alone
	// an endpoint's would be announced.
	slices.SortFunc(c.Put, routing.Compare)
	slices.SortFunc(c.Delete, func(a, b routing.Route) int { return routing.Compare(b, a) })
	t.err = t.kernel.Apply(ctx, c)
	t.readMissing()
	return t.err
}

// readMissing asks which wanted routes are not in the kernel.
func (t *table) readMissing() {
	clear(t.missing)
	for _, r := range t.kernel.Missing() {
		t.missing[r.Prefix] = true
	}
}

// read takes what the kernel holds; everything is compared then.
func (t *table) read(ctx context.Context) error {
	if err := t.kernel.Gather(ctx); err != nil {
		return err
	}
	have, err := t.kernel.Routes(ctx)
	if err != nil {
		return err
	}
	clear(t.present)
	for _, r := range have {
		t.present[r.Key()] = r
		t.changed[r.Key()] = true
	}
	for k := range t.owners {
		t.changed[k] = true
	}
	t.err = nil
	return nil
}

// holds says whether the kernel has the route under k, as far as is known.
func (t *table) holds(k routing.Key) bool {
	_, has := t.present[k]
	return has && !t.missing[k.Prefix]
}

// routed says whether there is to be a route to p, in the kernel or missing.
func (t *table) routed(p netip.Prefix) bool {
	_, has := t.present[routing.Key{Prefix: p}]
	return has
}

// all are the wanted routes, sorted.
func (t *table) all() []routing.Route {
	var out []routing.Route
	for k := range t.owners {
		r, _ := t.wanted(k)
		out = append(out, r)
	}
	slices.SortFunc(out, routing.Compare)
	return out
}
