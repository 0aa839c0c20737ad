package fib

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// A route may name an object of the kernel in place of its next hops. Then a change of
// the object moves all routes that name it. Each object that routes name is a group,
// whose members are objects of one next hop each; what is a group stays one, and the
// other way round, as long as it is there.

// group is the object that the routes of an action name.
type group struct {
	id uint32 // 0: it has none yet
	// members are the next hops that the kernel's object has, sorted; none: it is not
	// there. A link that goes down takes its members with it.
	members []routing.NextHop
	retry   retry // of one that lacks members
}

// object is a next-hop object as the kernel has it: a group of others, or one next hop.
type object struct {
	id      uint32
	hop     routing.NextHop
	members []uint32
	// resilient: a group that moves few flows when its members change.
	resilient bool
}

// objects are those that a Table wrote. Their IDs are in a range of their own for each
// protocol number, which is marked on them too; others' are never touched.
type objects struct {
	protocol  uint8
	resilient bool
	// hops are the IDs of those of one next hop, as far as the kernel is known to have them.
	hops map[routing.NextHop]uint32
	last uint32 // ID that was given
	// doubt: the kernel may have others than is known.
	doubt bool
	// adopted: what is wanted was told; before, routes may name what nobody here knows of.
	adopted bool
	// unused are groups that no wanted route names.
	unused []uint32
}

// objectRange is how many IDs each protocol number has.
const objectRange = 10_000_000

// ours says whether an ID is one of a protocol's.
func ours(id uint32, protocol uint8) bool { return id/objectRange == uint32(protocol) }

// next is the ID to try next.
func (o *objects) next() uint32 {
	o.last++
	if first := uint32(o.protocol) * objectRange; !ours(o.last, o.protocol) || o.last == first {
		o.last = first + 1
	}
	return o.last
}

// mostTaken is how many IDs in a row another program may have taken.
const mostTaken = 1000

// make writes a new object under an ID that is free.
func (t *Table) make(o object) (uint32, error) {
	for range mostTaken {
		o.id = t.objects.next()
		switch err := t.kernel.putObject(o, false); {
		case err == nil:
			return o.id, nil
		case !errors.Is(err, unix.EEXIST):
			return 0, err
		}
	}
	return 0, errors.New("next-hop objects: all IDs are taken")
}

// shape makes the kernel's object of an action what the action says, of the members
// that can be. The error is of one that cannot.
func (t *Table) shape(a *action) error {
	err := t.tryShape(a)
	if err != nil {
		// Links take objects with them, which is heard of later; Watch tries again.
		t.objects.doubt = true
		t.kernel.interrupt()
	}
	return err
}

func (t *Table) tryShape(a *action) error {
	g := a.group
	var short error
	var hops []routing.NextHop
	var ids []uint32
	for _, h := range a.hops {
		id, ok := t.objects.hops[h]
		if !ok {
			var err error
			if id, err = t.make(object{hop: h}); err != nil {
				short = cmp.Or(short, fmt.Errorf("next hop %s: %w", h, err))
				continue
			}
			t.objects.hops[h] = id
		}
		hops, ids = append(hops, h), append(ids, id)
	}
	if len(hops) == 0 || slices.Equal(hops, g.members) {
		return short
	}
	o := object{id: g.id, members: ids, resilient: t.objects.resilient}
	var err error
	if g.id == 0 {
		o.id, err = t.make(o)
	} else if err = t.kernel.putObject(o, len(g.members) > 0); errors.Is(err, unix.EEXIST) {
		o.id, err = t.make(o) // somebody has it now
	}
	if err != nil {
		return fmt.Errorf("next hops of routes: %w", err)
	}
	g.id, g.members = o.id, hops
	return short
}

// short says that the object is not what it should be.
func (a *action) short() bool { return !slices.Equal(a.group.members, a.hops) }

// id is the object that the action's routes name; 0: none.
func (a *action) id() uint32 {
	if a == nil || a.group == nil {
		return 0
	}
	return a.group.id
}

// names says whether the kernel's route names the object that it should, or none.
func (a *action) names(r routing.Route) bool {
	return r.Object == a.id() && (a.group == nil || a.group.id != 0)
}

// carry is an object that is made into another one with all the routes that name it.
type carry struct {
	to    routing.Route // what they do then; its prefix means nothing
	name  string
	count int
}

// fewCarried is how many routes are rather written one by one than that there are two
// objects that do the same.
const fewCarried = 16

// carries are the objects all of whose routes are to be other ones, most of them alike.
// Those are not written then: the object is.
func (t *Table) carries(put []routing.Route) map[*action]*carry {
	if len(t.wanted.grouped) == 0 || !t.watching {
		return nil
	}
	type move struct {
		from *action
		to   string
	}
	moves, leaving := map[move]*carry{}, map[*action]int{}
	for _, r := range put {
		k := keyOf(r.Key())
		from := t.wanted.routes[k]
		if from == nil || from.group == nil || len(from.group.members) == 0 || from.does(r) || from.source != r.Source {
			continue
		}
		if _, failed := t.failed[k]; failed {
			continue
		}
		name := t.wanted.name(r)
		if string(name) == from.name || !groupable(r) {
			continue
		}
		leaving[from]++
		m := moves[move{from, string(name)}]
		if m == nil {
			m = &carry{to: r, name: string(name)}
			moves[move{from, m.name}] = m
		}
		m.count++
	}
	out := map[*action]*carry{}
	for m, c := range moves {
		if leaving[m.from] != m.from.users || c.count < fewCarried && t.wanted.bulk[c.name] != nil {
			continue
		}
		if best := out[m.from]; best == nil || cmp.Or(cmp.Compare(best.count, c.count), cmp.Compare(c.name, best.name)) < 0 {
			out[m.from] = c
		}
	}
	return out
}

// carry changes the objects, once the routes that go elsewhere are written; what does
// not succeed is tried again with the others that lack something.
func (w *writer) carry(carries map[*action]*carry) {
	t := w.table
	for a, c := range carries {
		t.wanted.rename(a, c.to)
		err := t.shape(a)
		if err == nil {
			w.done += c.count
			continue
		}
		a.group.retry = a.group.retry.next(w.now)
		w.errors = append(w.errors, &RouteError{"replace", c.to, err})
	}
}

// ready makes the object that routes of the action name, once in a writer's life. The
// error is why routes cannot name it.
func (w *writer) ready(a *action) error {
	if a == nil || a.group == nil || len(a.group.members) > 0 {
		return nil
	}
	if err, tried := w.unready[a]; tried {
		return err
	}
	err := w.table.shape(a)
	if len(a.group.members) > 0 {
		return nil
	}
	if err == nil {
		err = errors.New("no next hop")
	}
	if w.unready == nil {
		w.unready = map[*action]error{}
	}
	w.unready[a] = err
	return err
}

// mendObjects reads the objects and makes them what they should be. It returns the
// wanted routes that went with one and can be written again.
func (t *Table) mendObjects(ctx context.Context) ([]key, error) {
	if !t.wanted.groups {
		return nil, nil
	}
	have, err := t.readObjects(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	gone, made := map[*action]bool{}, map[*action]bool{}
	for _, a := range t.wanted.sortedGroups() {
		g := a.group
		if g.id == 0 {
			continue
		}
		was := len(g.members) > 0
		g.members = nil
		if o, there := have[g.id]; there && o.resilient == t.objects.resilient {
			for _, id := range o.members {
				if m, ok := have[id]; ok {
					g.members = append(g.members, m.hop)
				}
			}
			slices.SortFunc(g.members, routing.CompareNextHops)
		} else if there {
			t.objects.unused, g.id = append(t.objects.unused, g.id), 0 // of the other kind: another one
		}
		lost := len(g.members) == 0
		err := t.tryShape(a)
		gone[a], made[a] = was && lost, lost && len(g.members) > 0
		switch {
		case err == nil:
			g.retry = retry{}
		case g.retry.due.IsZero() || !g.retry.due.After(now):
			g.retry = g.retry.next(now)
			t.log.Debug("next hops not put back yet", "error", err)
		}
	}
	var keys []key
	for k, a := range t.wanted.routes {
		if a.group == nil {
			continue
		}
		if _, failed := t.failed[k]; gone[a] && !failed {
			t.failed[k] = retry{}
		}
		if made[a] {
			keys = append(keys, k)
		}
	}
	return keys, nil
}

// readObjects reads those of ours, and notes which next hops have one.
func (t *Table) readObjects(ctx context.Context) (map[uint32]object, error) {
	list, err := t.kernel.objects(ctx)
	if err != nil {
		return nil, fmt.Errorf("read next-hop objects: %w", err)
	}
	t.objects.doubt, t.wanted.spare = false, true
	have := map[uint32]object{}
	clear(t.objects.hops)
	for _, o := range list {
		have[o.id] = o
		t.objects.last = max(t.objects.last, o.id)
		if len(o.members) == 0 {
			t.objects.hops[o.hop] = o.id
		}
	}
	return have, nil
}

// objectsConcerned says whether a burst is about objects.
func (t *Table) objectsConcerned(h heard, now time.Time) bool {
	if !t.wanted.groups {
		return false
	}
	links := slices.Concat(h.up, h.down, h.carrier)
	if h.objects || t.objects.doubt || slices.ContainsFunc(links, func(link string) bool { return t.wanted.links[link] > 0 }) {
		return true
	}
	for a := range t.wanted.grouped {
		if a.short() && (a.concerns(h) || !a.group.retry.due.IsZero() && !a.group.retry.due.After(now)) {
			return true
		}
	}
	return false
}

// collect deletes the objects that nothing needs. While a route is not as it should
// be, it may name one of them.
func (t *Table) collect() {
	o := &t.objects
	o.unused = append(o.unused, t.wanted.unused...)
	t.wanted.unused = nil
	if len(t.failed) > 0 || !o.adopted {
		return
	}
	for _, id := range o.unused {
		t.drop(id)
	}
	o.unused = nil
	if !t.wanted.spare {
		return
	}
	t.wanted.spare = false
	for h, id := range o.hops {
		if t.wanted.hops[h] == 0 {
			t.drop(id)
			delete(o.hops, h)
		}
	}
}

func (t *Table) drop(id uint32) {
	if err := t.kernel.deleteObject(id); err != nil {
		t.log.Debug("next-hop object not deleted", "id", id, "error", err)
	}
}

// collectAll deletes every object of ours that is not wanted; routes are those that the
// kernel has and that may name one.
func (t *Table) collectAll(ctx context.Context, routes []routing.Route) error {
	if !t.wanted.groups {
		return nil
	}
	used := map[uint32]bool{}
	for a := range t.wanted.grouped {
		used[a.id()] = true
	}
	for _, r := range routes {
		if _, failed := t.failed[keyOf(r.Key())]; failed {
			used[r.Object] = true
		}
	}
	have, err := t.readObjects(ctx)
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(have)) {
		for _, m := range have[id].members {
			used[m] = used[m] || used[id]
		}
	}
	// Groups before their members.
	list := slices.SortedFunc(maps.Values(have), func(a, b object) int {
		return cmp.Or(cmp.Compare(len(b.members), len(a.members)), cmp.Compare(a.id, b.id))
	})
	for _, o := range list {
		if !used[o.id] {
			t.drop(o.id)
			delete(t.objects.hops, o.hop)
		}
	}
	t.objects.unused, t.wanted.unused = nil, nil
	return nil
}
