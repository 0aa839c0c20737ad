package datastore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Follower is told what the store holds. All calls come from Follow's goroutine;
// an error ends Follow.
type Follower interface {
	// Replace is the whole content: at the start, after Lost, and whenever the
	// changes since the last call are not known one by one.
	Replace(Snapshot) error
	// Apply is the next batch of changes; it holds at least one event.
	Apply(Batch) error
	// Lost tells that changes do not arrive: err wraps ErrUnavailable (the store
	// does not answer) or ErrDetached (it answers, but is not the right one). It
	// comes again when the reason changes.
	Lost(err error)
	// Back ends Lost where nothing was missed: what changed meanwhile comes by
	// Apply. Where that cannot be had, Replace ends Lost instead.
	Back()
}

// Doubter may be implemented by a Follower. A batch that it finds suspicious
// (every node gone, most of the local endpoints) is not applied: the store is
// read again, and what it then holds is given to Replace.
type Doubter interface {
	Suspicious(Batch) bool
}

// Guard decides whether a store is the one that was followed before.
type Guard interface {
	// Check is called before each Replace, after each interruption, and when the
	// cluster key changes. snap holds at least ClusterKey, if it exists, at the
	// revision of the store. ErrDetached with the reason: not the right one.
	Check(ctx context.Context, s Store, snap Snapshot) error
	// Progress tells the revision that was applied.
	Progress(revision int64)
}

// How Follow waits: the first pause, how far it doubles, and for how long a watch
// may be broken before the follower is told that the store is lost.
const (
	pauseFirst = 50 * time.Millisecond
	pauseMax   = 2 * time.Second
	resumeTime = time.Second
	// detachedLook is how long a detached follower waits for the cluster key;
	// another store may answer by then, at any revision.
	detachedLook = 10 * time.Second
	// listSpread bounds the wait before everything is listed again.
	listSpread = 30 * time.Second
)

// errReread ends a watch to read the store again.
var errReread = errors.New("read again")

// Follow lists the objects of kinds (none: of all that are followed, everything
// under Prefix), gives them to f, and then every change, until ctx ends or f
// fails. A watch that breaks is resumed where it was, however long that took, if
// the store is still the same one. After a compaction, or when the store has
// another identity than before, everything is listed again. g may be nil. Follow
// returns f's error, or ctx's.
func Follow(ctx context.Context, s Store, kinds []Kind, g Guard, f Follower) error {
	w := follow{store: s, prefixes: prefixes(kinds), guard: g, to: f}
	w.seen = make([]int64, len(w.prefixes))
	w.doubt, _ = f.(Doubter)
	for {
		err := w.round(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case w.failed != nil:
			return w.failed
		}
		w.interrupted(ctx, err)
	}
}

// prefixes are those that hold the kinds and the cluster's identity, sorted.
func prefixes(kinds []Kind) []string {
	if len(kinds) == 0 {
		return []string{Prefix}
	}
	return slices.Sorted(slices.Values(append(Prefixes(kinds...), ClusterKey)))
}

type follow struct {
	store    Store
	prefixes []string
	guard    Guard
	to       Follower
	doubt    Doubter

	revision int64         // complete up to here; 0: nothing is known, list
	seen     []int64       // of each prefix: the last event's revision, or the listing's
	identity string        // the cluster key's value as it was listed
	checked  int64         // revision of what the guard saw last
	took     time.Duration // how long the last listing took
	nodes    int           // that were in it
	broken   time.Time     // since when the store does not answer; zero: it does
	pause    time.Duration
	lost     string // what Lost was told last; "": it is not lost
	failed   error  // the follower's
}

// round goes from the present state to a watch and returns why the watch, or
// the way to it, ended.
func (w *follow) round(ctx context.Context) error {
	if w.revision == 0 {
		if err := w.list(ctx); err != nil {
			return err
		}
	} else if err := w.resume(ctx); err != nil {
		return err
	}
	w.broken, w.pause, w.lost = time.Time{}, 0, ""
	return w.store.Watch(ctx, w.prefixes, w.revision, func(b Batch) error { return w.batch(ctx, b) })
}

// list gives the follower everything. Whatever makes one follower list makes all
// of them: each but the first time they wait, so that together they take about as
// long as their listings do one after the other.
func (w *follow) list(ctx context.Context) error {
	if spread := min(w.took*time.Duration(w.nodes), listSpread); spread > 0 {
		wait(ctx, rand.N(spread))
	}
	begin := time.Now()
	snap, err := w.store.List(ctx, w.prefixes...)
	if err != nil {
		return err
	}
	if err := w.judge(ctx, snap); err != nil {
		return err
	}
	if w.failed = w.to.Replace(snap); w.failed != nil {
		return w.failed
	}
	w.took, w.nodes, w.identity = time.Since(begin), 0, identityOf(snap)
	for _, e := range snap.Entries {
		if strings.HasPrefix(e.Key, KindPrefix(KindNode)) {
			w.nodes++
		}
	}
	for i := range w.seen {
		w.seen[i] = snap.Revision
	}
	w.reached(snap.Revision)
	return nil
}

// resume asks whether the store is still the one that was followed; if not,
// everything is listed.
func (w *follow) resume(ctx context.Context) error {
	snap, err := w.check(ctx, w.revision)
	if err != nil {
		return err
	}
	if identityOf(snap) != w.identity {
		w.revision = 0
		return errReread
	}
	if w.lost != "" {
		w.to.Back()
	}
	return nil
}

// check has the guard judge the store, which must have come as far as least.
func (w *follow) check(ctx context.Context, least int64) (Snapshot, error) {
	snap, err := w.store.List(ctx, ClusterKey)
	if err != nil {
		return snap, err
	}
	if snap.Revision < least {
		// It went back; the guard says what that means.
		w.revision = 0
	}
	if err := w.judge(ctx, snap); err != nil {
		return snap, err
	}
	if w.revision == 0 {
		return snap, errReread
	}
	return snap, nil
}

func (w *follow) judge(ctx context.Context, snap Snapshot) error {
	w.checked = snap.Revision
	if w.guard == nil {
		return nil
	}
	return w.guard.Check(ctx, w.store, snap)
}

func (w *follow) batch(ctx context.Context, b Batch) error {
	w.skipSeen(&b)
	if len(b.Events) > 0 {
		if changes(b, ClusterKey) {
			snap, err := w.check(ctx, b.Revision)
			if err != nil {
				return err
			}
			w.identity = identityOf(snap)
		}
		if w.doubt != nil && w.doubt.Suspicious(b) {
			w.revision = 0
			return errReread
		}
		if w.failed = w.to.Apply(b); w.failed != nil {
			return w.failed
		}
	}
	w.reached(b.Revision)
	return nil
}

// skipSeen leaves out the events that were applied before the watch was resumed,
// and remembers the others.
func (w *follow) skipSeen(b *Batch) {
	last := slices.Clone(w.seen)
	b.Events = slices.DeleteFunc(b.Events, func(e Entry) bool {
		i := slices.IndexFunc(w.prefixes, func(p string) bool { return Under(e.Key, p) })
		if i < 0 || e.Revision <= w.seen[i] {
			return true
		}
		last[i] = e.Revision
		return false
	})
	w.seen = last
}

func (w *follow) reached(revision int64) {
	w.revision = revision
	if w.guard != nil {
		w.guard.Progress(revision)
	}
}

// identityOf is the value of the cluster key.
func identityOf(s Snapshot) string {
	for _, e := range s.Entries {
		if e.Key == ClusterKey {
			return string(e.Value)
		}
	}
	return ""
}

func changes(b Batch, key string) bool {
	for _, e := range b.Events {
		if e.Key == key {
			return true
		}
	}
	return false
}

// interrupted does what err asks for before the next round.
func (w *follow) interrupted(ctx context.Context, err error) {
	switch {
	case errors.Is(err, errReread):
		return
	case errors.Is(err, ErrCompacted):
		w.revision = 0
		return
	case errors.Is(err, ErrDetached):
		w.revision = 0 // whatever it is by then
		w.tell(err)
		w.await(ctx)
	default:
		if !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("follow %s: %w: %w", strings.Join(w.prefixes, " "), ErrUnavailable, err)
		}
		if w.broken.IsZero() {
			w.broken = time.Now()
			w.pause = 0
		}
		if w.revision == 0 || time.Since(w.broken) >= resumeTime {
			w.tell(err)
		}
		w.sleep(ctx)
	}
}

// tell says that the store is lost, once for each reason.
func (w *follow) tell(err error) {
	if w.lost != err.Error() {
		w.lost = err.Error()
		w.to.Lost(err)
	}
}

// await returns when the cluster key changed, the store went away, or
// detachedLook is over.
func (w *follow) await(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, detachedLook)
	defer cancel()
	err := w.store.Watch(bounded, []string{ClusterKey}, w.checked, func(b Batch) error {
		if len(b.Events) > 0 {
			return errReread
		}
		return nil
	})
	if !errors.Is(err, errReread) && bounded.Err() == nil {
		w.sleep(ctx)
	}
}

// sleep pauses, each time twice as long up to pauseMax, less up to a third so
// that not every node comes at once.
func (w *follow) sleep(ctx context.Context) {
	w.pause = min(max(2*w.pause, pauseFirst), pauseMax)
	wait(ctx, w.pause-rand.N(w.pause/3))
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
