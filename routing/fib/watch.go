package fib

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/routing"
)

// Event is what a burst of notifications amounts to. What this Table wrote
// itself is not in it.
type Event struct {
	// Lost says that anything may have happened: Watch began, or the kernel
	// dropped notifications. The other fields are then not complete.
	Lost bool
	// Changes are what happened to routes of this protocol, in order. Routes
	// that a link takes with it are not all announced: see Down.
	Changes []Change
	// Up and Down are links that came up, or went down or away.
	Up, Down []string
	// Foreign are the prefixes of routes of other protocols that came, changed
	// or went, in any table of the kernel: those of other programs, connected
	// subnets, and addresses of this machine. Link-local and multicast prefixes
	// are left out. A prefix may be there twice.
	Foreign []netip.Prefix
}

func (e Event) any() bool {
	return e.Lost || len(e.Changes)+len(e.Foreign)+len(e.Up)+len(e.Down) > 0
}

// Change is a route that came or changed, or went.
type Change struct {
	Route routing.Route
	Gone  bool
}

// heard is a burst of notifications.
type heard struct {
	lost     bool
	changes  []Change
	foreign  []netip.Prefix
	up, down []string
	// carrier are links that lost or got their carrier, which takes objects along.
	carrier []string
	// unaddressed are links that lost an IPv4 address: the last one takes the link's
	// routes along, without a word of them.
	unaddressed []string
	// addresses are those of this machine that came or went. The latter take along the
	// IPv4 routes that have them as source, and the source of the IPv6 ones, without a word.
	addresses []netip.Addr
	// objects, rules: another program changed some of ours.
	objects, rules bool
	// touched are the keys of all routes of the main table that are in it.
	touched []key
}

// Watch follows routes and links until ctx ends (then it returns nil) or the
// socket breaks. After each burst it first puts back wanted routes that were
// lost (a link that was down, another program), then calls fn; the first call
// has Lost set. It also tries again what the kernel refused: when a link or a
// route that it depends on has changed, and after a time that doubles from 1 s to
// 30 s for each route. A Table can be watched once.
func (t *Table) Watch(ctx context.Context, ignore Ignore, fn func(Event)) error {
	defer context.AfterFunc(ctx, t.kernel.interrupt)()
	defer func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.watching = false // Apply trusts the kernel only
	}()
	h := heard{lost: true}
	for {
		due, err := t.mend(ctx, h, ignore)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch routes: %w", err)
		}
		if e := (Event{h.lost, h.changes, h.up, h.down, h.foreign}); e.any() {
			fn(e)
		}
		if ctx.Err() != nil {
			return nil
		}
		if h, err = t.kernel.hear(due); err != nil {
			return fmt.Errorf("watch routes: %w", err)
		}
	}
}

// mend puts back what a burst may have cost, tries again what is due or may go
// well now, and returns when the next failed change is due.
func (t *Table) mend(ctx context.Context, h heard, ignore Ignore) (due time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.lost {
		if err := t.kernel.listen(ctx, ignore); err != nil {
			return due, err
		}
		t.watching = true
		t.sourcesCame(nil)
		t.mendNeighbours(ctx, h)
		if len(t.wanted.routes)+len(t.failed) > 0 {
			var refused *RouteError
			if _, err := t.compare(ctx, false); err != nil && !errors.As(err, &refused) {
				return due, err
			}
		}
	} else {
		t.mendNeighbours(ctx, h)
		t.lostWith(slices.Concat(h.down, h.unaddressed))
		var gone []key
		if t.objectsConcerned(h, time.Now()) {
			if gone, err = t.mendObjects(ctx); err != nil {
				return due, err
			}
		}
		t.again(ctx, slices.Concat(t.touched(h), gone, t.resourced(h.addresses)), false)
		t.collect()
	}
	now := time.Now()
	if t.rules.kept && (h.lost || h.rules || !t.rules.retry.due.IsZero() && !t.rules.retry.due.After(now)) {
		if err := t.mendRules(ctx); err != nil {
			t.log.Warn("rules not put right", "error", err)
		}
	}
	t.again(ctx, t.overdue(now), true)
	for _, r := range t.failed {
		if !r.due.IsZero() && (due.IsZero() || r.due.Before(due)) {
			due = r.due
		}
	}
	if r := t.rules.retry; !r.due.IsZero() && (due.IsZero() || r.due.Before(due)) {
		due = r.due
	}
	for a := range t.wanted.grouped {
		if r := a.group.retry; a.short() && !r.due.IsZero() && (due.IsZero() || r.due.Before(due)) {
			due = r.due
		}
	}
	for _, r := range t.neighbours.failed {
		if due.IsZero() || r.due.Before(due) {
			due = r.due
		}
	}
	return due, nil
}

// lostWith books the routes that links take with them. The kernel does not tell
// of each.
func (t *Table) lostWith(down []string) {
	down = slices.DeleteFunc(slices.Clone(down), func(link string) bool { return t.wanted.links[link] == 0 })
	if len(down) == 0 {
		return
	}
	for k, a := range t.wanted.routes {
		if _, failed := t.failed[k]; !failed && a.group == nil && a.over(down) {
			t.failed[k] = retry{}
		}
	}
}

// touched are the wanted routes that a burst may have taken away, and the failed
// ones whose links or gateways it is about.
func (t *Table) touched(h heard) []key {
	var keys []key
	for _, k := range h.touched {
		if t.wanted.routes[k] != nil {
			keys = append(keys, k)
		}
	}
	if len(h.up)+len(h.carrier)+len(h.unaddressed)+len(h.foreign) > 0 {
		for k := range t.failed {
			if a := t.wanted.routes[k]; a != nil && a.concerns(h) {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// concerns says whether a burst is about the links or gateways of an action.
func (a *action) concerns(h heard) bool {
	return a.over(h.up) || a.over(h.carrier) || a.over(h.unaddressed) || slices.ContainsFunc(a.hops, func(hop routing.NextHop) bool {
		return slices.ContainsFunc(h.foreign, func(p netip.Prefix) bool { return p.Contains(hop.Addr) })
	})
}

// overdue are the failed changes whose time has come.
func (t *Table) overdue(now time.Time) []key {
	var keys []key
	for k, r := range t.failed {
		if !r.due.IsZero() && !r.due.After(now) {
			keys = append(keys, k)
		}
	}
	return keys
}

// again tries once more to make the keys what they should be.
func (t *Table) again(ctx context.Context, keys []key, timed bool) {
	if len(keys) == 0 {
		return
	}
	slices.SortFunc(keys, compareKeys)
	w := t.writer(ctx)
	w.timed = timed
	for _, k := range slices.Compact(keys) {
		if a := t.wanted.routes[k]; a != nil {
			w.add(change{opAdd, k, a})
		} else {
			w.add(change{op: opDelete, key: k})
		}
	}
	err := w.end()
	if w.done > 0 {
		t.log.Info("routes put back", "routes", w.done, datastore.Drift(datastore.DriftRoute))
	}
	if err != nil {
		t.log.Debug("routes not put back yet", "routes", len(w.errors), "error", w.errors[0])
	}
}

// Compare reads all routes of this protocol and puts right what Watch missed: what
// is wanted and not there is written, what is there and not wanted is deleted. It
// returns what it changed, sorted, and is to be called once everything that may
// stay was applied or adopted. It costs as much as there are routes.
func (t *Table) Compare(ctx context.Context) (routing.Changes, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mendNeighbours(ctx, heard{lost: true})
	return t.compare(ctx, true)
}

// compare is Compare; what is not wanted is deleted only if strict or if it was to
// be deleted before.
func (t *Table) compare(ctx context.Context, strict bool) (routing.Changes, error) {
	var made routing.Changes
	if _, err := t.mendObjects(ctx); err != nil {
		return made, err
	}
	have, err := t.kernel.dump(ctx, t.protocol)
	if err != nil {
		return made, err
	}
	w := t.writer(ctx)
	present := make(map[key]bool, len(have))
	for _, r := range have {
		k := keyOf(r.Key())
		a := t.wanted.routes[k]
		_, failed := t.failed[k]
		switch want := k.route(a); {
		case a == nil && (strict || failed):
			made.Delete = append(made.Delete, r)
			w.add(change{op: opDelete, key: k})
		case a != nil && want.Equal(r) && a.names(r):
			present[k] = true
			delete(t.failed, k)
		case a != nil:
			present[k] = true
			made.Put = append(made.Put, want)
			w.add(change{opReplace, k, a})
		}
	}
	for k, a := range t.wanted.routes {
		if !present[k] {
			made.Put = append(made.Put, k.route(a))
			w.add(change{opAdd, k, a})
		}
	}
	err = w.end()
	if strict {
		err = errors.Join(err, t.collectAll(ctx, have))
	}
	failed := func(r routing.Route) bool { _, failed := t.failed[keyOf(r.Key())]; return failed }
	made.Put, made.Delete = slices.DeleteFunc(made.Put, failed), slices.DeleteFunc(made.Delete, failed)
	slices.SortFunc(made.Put, routing.Compare)
	slices.SortFunc(made.Delete, routing.Compare)
	if !made.Empty() {
		t.log.Info("routes put right", "put", len(made.Put), "deleted", len(made.Delete), datastore.Drift(datastore.DriftRoute))
	}
	return made, err
}
