package commands

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"netctl/datastore"
)

// writeMode says what may exist before an object is written.
type writeMode int

const (
	modeApply   writeMode = iota // create or update
	modeCreate                   // must not exist
	modeReplace                  // must exist
)

// maxRaces bounds how often a write starts over because somebody else wrote.
const maxRaces = 20

// planned is what is to be done with one object.
type planned struct {
	manifest
	verb string // created, updated or unchanged
	note string // what else it does, or what of it is of no use
	cond datastore.Condition
	op   datastore.Op
}

// label is how messages name an object.
func label(o datastore.Object) string { return labelOf(o.Kind(), o.Meta().Name) }

func labelOf(k datastore.Kind, name string) string {
	if i := strings.LastIndexByte(name, '-'); i > 0 && (k == datastore.KindPool || k == datastore.KindBlock) {
		name = name[:i] + "/" + name[i+1:]
	}
	return strings.ToLower(string(k)) + " " + name
}

// write puts objects into the store, in transactions of as many as fit, and
// calls done for each object of a transaction that is through. What is refused
// is refused before the first transaction; if a later one fails the error says
// how far it came.
func (a *app) write(ctx context.Context, list []manifest, mode writeMode, done func(planned)) error {
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(x, y manifest) int { return kindRank(x.object) - kindRank(y.object) })
	through := 0
	for races := 0; ; races++ {
		view, err := a.list(ctx, store, neededToWrite(list[through:]))
		if err != nil {
			return farther(through, len(list), err)
		}
		plans, err := planWrite(view, list[through:], mode)
		if err != nil {
			return farther(through, len(list), err)
		}
		if races == 0 {
			if err := a.warnLockouts(ctx, store, plans); err != nil {
				return err
			}
		}
		err = commitPlans(ctx, store, view, plans, func(p planned) { through++; done(p) })
		if err == nil {
			return nil
		}
		if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) || races == maxRaces {
			return farther(through, len(list), err)
		}
	}
}

// neededToWrite is neededToPut, and for endpoints who holds which address: others than
// a manifest's do not change by a write.
func neededToWrite(list []manifest) needed {
	n := neededToPut(objectsIn(list)...)
	if slices.ContainsFunc(list, func(m manifest) bool { return m.object.Kind() == datastore.KindEndpoint }) {
		n.all(datastore.KindBlock)
	}
	return n
}

func commitPlans(ctx context.Context, store datastore.Store, view *datastore.View, plans []planned, done func(planned)) error {
	for len(plans) > 0 {
		n, t := firstTxn(view, plans)
		if len(t.Then) > 0 {
			revision, err := store.Commit(ctx, t)
			if err != nil {
				return err
			}
			for _, op := range t.Then {
				if op.Key == datastore.PoolsKey {
					_, _ = view.Apply(datastore.Entry{Key: op.Key, Value: op.Value, Revision: revision})
				}
			}
		}
		for _, p := range plans[:n] {
			done(p)
		}
		plans = plans[n:]
	}
	return nil
}

// farther adds to an error how far a write of several transactions came.
func farther(through, total int, err error) error {
	if through == 0 || err == nil {
		return err
	}
	return fmt.Errorf("after %d of %d objects: %w", through, total, err)
}

func kindRank(o datastore.Object) int { return slices.Index(datastore.Kinds(), o.Kind()) }

// planWrite decides what happens to each object and refuses what would
// contradict the cluster or the objects before it. It changes view: objects
// that are to be written count for those that follow.
func planWrite(view *datastore.View, list []manifest, mode writeMode) ([]planned, error) {
	seen := map[string]bool{}
	plans := make([]planned, 0, len(list))
	for _, m := range list {
		p, err := planOne(view, m, mode)
		if err == nil && seen[p.op.Key] {
			err = fmt.Errorf("stands in the input twice: %w", datastore.ErrInvalid)
		}
		if err != nil {
			return nil, fmt.Errorf("%s%s: %w", m.where(), label(m.object), err)
		}
		seen[p.op.Key] = true
		if _, err := view.Apply(datastore.Entry{Key: p.op.Key, Value: p.op.Value, Revision: p.cond.Revision}); err != nil {
			return nil, err
		}
		plans = append(plans, p)
	}
	return plans, nil
}

func planOne(view *datastore.View, m manifest, mode writeMode) (planned, error) {
	p := planned{manifest: m, verb: "created"}
	o := m.object
	old := view.Object(o.Kind(), o.Meta().Name)
	if err := view.Unreadable(o.Kind(), o.Meta().Name); err != nil {
		return p, err
	}
	switch {
	case old == nil && mode == modeReplace:
		return p, datastore.ErrNotFound
	case old != nil && mode == modeCreate && !removed(old):
		return p, datastore.ErrExists
	case old == nil && mode == modeApply && m.revision != 0:
		return p, stale(m.revision, nil)
	}
	o.Meta().Revision = 0
	if old != nil {
		p.verb = "updated"
		o.Meta().Revision = old.Meta().Revision
		p.note = noteOn(old, o)
		keepStatus(o, old)
		datastore.KeepUnknown(o, old)
	}
	if err := view.CheckPut(o); err != nil {
		return p, err
	}
	if f, ok := o.(*datastore.BGPFilter); ok {
		p.note = filterNotes(view, f)
	}
	var err error
	if p.cond, p.op, err = datastore.OpPut(o); err != nil || old == nil {
		return p, err
	}
	have, err := datastore.Encode(old)
	if bytes.Equal(have, p.op.Value) {
		p.verb = "unchanged"
	} else if err == nil {
		err = stale(m.revision, old)
	}
	return p, err
}

// noteOn says what a change of an object ends for a while.
func noteOn(old, o datastore.Object) string {
	was, ok := old.(*datastore.Peer)
	if !ok {
		return ""
	}
	fields := was.ResetBy(o.(*datastore.Peer))
	if len(fields) == 0 {
		return ""
	}
	return fmt.Sprintf("another %s ends its running sessions", strings.Join(fields, ", "))
}

// noted warns of what else a plan does.
func (a *app) noted(p planned) {
	if p.note != "" {
		a.warn("%s: %s", label(p.object), p.note)
	}
}

// tell prints what a plan does to an object.
func (a *app) tell(p planned, how string) error {
	a.noted(p)
	_, err := fmt.Fprintf(a.out, "%s %s%s\n", label(p.object), p.verb, how)
	return err
}

// stale refuses to write what was made of an earlier revision of an object than the
// one it has now (nil: it is gone): what somebody changed since would be undone.
// 0 is no revision.
func stale(revision int64, now datastore.Object) error {
	switch {
	case revision == 0 || now != nil && now.Meta().Revision == revision:
		return nil
	case now == nil:
		return fmt.Errorf("%w: revision %d was read, and it is deleted since; without metadata.revision it is created again", datastore.ErrConflict, revision)
	}
	return fmt.Errorf("%w: revision %d was read, it is at %d now; read it again, or leave metadata.revision out to overwrite it",
		datastore.ErrConflict, revision, now.Meta().Revision)
}

// removed says of a pool that it is, and only waits for its last address.
func removed(o datastore.Object) bool {
	p, ok := o.(*datastore.Pool)
	return ok && p.Spec.Removed
}

// keepStatus leaves a node's status to its agent: a manifest does not set it.
func keepStatus(o, old datastore.Object) {
	if n, ok := o.(*datastore.Node); ok {
		n.Status = old.(*datastore.Node).Status
	}
}

// firstTxn is the transaction for as many of the first plans as fit, and their
// number.
func firstTxn(view *datastore.View, plans []planned) (int, datastore.Txn) {
	var t datastore.Txn
	pools := false
	n, size := 0, 0
	for ; n < len(plans) && len(t.Then) < datastore.MaxTxnOps-2; n++ {
		p := plans[n]
		if p.verb == "unchanged" {
			continue
		}
		// With what was there before, its record in the history is as large again.
		if size += 3 * len(p.op.Value); size > datastore.MaxTxnBytes && len(t.Then) > 0 {
			break
		}
		pools = pools || p.object.Kind() == datastore.KindPool
		t.If = append(t.If, p.cond)
		t.Then = append(t.Then, p.op)
	}
	if pools {
		cond, op := view.OpPools()
		t.If, t.Then = append(t.If, cond), append(t.Then, op)
	}
	return n, t
}

// create writes one object that must not exist.
func (a *app) create(ctx context.Context, o datastore.Object) error {
	return a.write(ctx, []manifest{{object: o}}, modeCreate, a.noted)
}

// remove deletes objects of a kind, one after the other, each after check found
// nothing against it, with what extra adds to its transaction. What it checks by
// is read once for all of them.
func (a *app) remove(ctx context.Context, kind datastore.Kind, names []string, force bool, extra func(*datastore.View, datastore.Object) ([]datastore.Object, error)) error {
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	through := 0
	for races := 0; ; races++ {
		view, err := a.list(ctx, store, neededToDelete(kind, names[through:]...))
		if err != nil {
			return farther(through, len(names), err)
		}
		for err == nil && through < len(names) {
			if err = a.removeOne(ctx, store, view, kind, names[through], force, extra); err == nil {
				through++
			}
		}
		if err == nil || !errors.Is(err, datastore.ErrConflict) || races == maxRaces {
			return farther(through, len(names), err)
		}
	}
}

func (a *app) removeOne(ctx context.Context, store datastore.Store, view *datastore.View, kind datastore.Kind, name string, force bool,
	extra func(*datastore.View, datastore.Object) ([]datastore.Object, error)) error {
	o := view.Object(kind, name)
	if err := view.Unreadable(kind, name); err != nil {
		if force {
			_, err = a.discard(ctx, store, kind, name)
			return err
		}
		return fmt.Errorf("%s: %w", labelOf(kind, name), err)
	}
	if o == nil {
		return fmt.Errorf("%s: %w", labelOf(kind, name), datastore.ErrNotFound)
	}
	used := view.CheckDelete(o)
	if used != nil && !force {
		return fmt.Errorf("%s: %w", label(o), used)
	}
	gone := []datastore.Object{o}
	if extra != nil {
		more, err := extra(view, o)
		if err != nil {
			return err
		}
		gone = append(more, o)
	}
	if err := deleteAll(ctx, store, gone); err != nil {
		return err
	}
	if used != nil {
		a.warn("%s was %v: %s", label(o), used, afterRemoval(kind))
	}
	return nil
}

// discard deletes what is stored under the key of an object if nobody can read it; done:
// it was so. What refers to it, and what it refers to, nobody can know.
func (a *app) discard(ctx context.Context, store datastore.Store, kind datastore.Kind, name string) (done bool, err error) {
	e, err := store.Get(ctx, datastore.KindPrefix(kind)+name)
	if errors.Is(err, datastore.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, wrong := datastore.Decode(e.Key, e.Value); wrong == nil {
		return false, nil
	}
	_, err = store.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: e.Key, Revision: e.Revision}}, Then: []datastore.Op{{Key: e.Key}}})
	if err != nil {
		return false, fmt.Errorf("%s: %w", labelOf(kind, name), err)
	}
	if kind == datastore.KindEndpoint || kind == datastore.KindBlock {
		a.warn("%s could not be read: `netctl ipam check --repair` puts right which addresses are held", labelOf(kind, name))
	}
	return true, nil
}

// afterRemoval says what stops when an object is removed that is in use.
func afterRemoval(kind datastore.Kind) string {
	switch kind {
	case datastore.KindPool:
		return "attaches to that network fail until it names another pool"
	case datastore.KindProfile:
		return "nothing is allowed by it any more"
	case datastore.KindNetworkSet:
		return "their rules take it for empty"
	case datastore.KindTier:
		return "they stay in force, behind all tiers that have an order"
	case datastore.KindNetwork:
		return "they stay attached, with the profiles that they have"
	}
	return "those addresses stay theirs"
}

// deleteAll deletes objects as they were read, in transactions of as many as fit.
func deleteAll(ctx context.Context, store datastore.Store, gone []datastore.Object) error {
	for chunk := range slices.Chunk(gone, datastore.MaxTxnOps-1) {
		var t datastore.Txn
		for _, o := range chunk {
			cond, op, err := datastore.OpDelete(o)
			if err != nil {
				return err
			}
			t.If, t.Then = append(t.If, cond), append(t.Then, op)
		}
		if _, err := store.Commit(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// parseKind reads a kind as people write it: Pool, pool or pools.
func parseKind(s string) (datastore.Kind, error) {
	for _, k := range datastore.Kinds() {
		if lower := strings.ToLower(string(k)); strings.ToLower(s) == lower || strings.ToLower(s) == datastore.Plural(k) {
			return k, nil
		}
	}
	return "", usage("%q is no kind: %s", s, strings.Join(kindNames(), ", "))
}

func kindNames() []string {
	var out []string
	for _, k := range datastore.Kinds() {
		out = append(out, strings.ToLower(string(k)))
	}
	slices.SortFunc(out, cmp.Compare)
	return out
}

// nameOfKind is an object's name as people write it: pools by their CIDR too.
func nameOfKind(k datastore.Kind, s string) string {
	if k == datastore.KindPool || k == datastore.KindBlock {
		return strings.Replace(s, "/", "-", 1)
	}
	return s
}
