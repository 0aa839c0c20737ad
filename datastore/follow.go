package datastore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	// Lost tells that nothing is known any more: err wraps ErrUnavailable (the
	// store does not answer) or ErrDetached (it answers, but is not the right
	// one). It comes again when the reason changes; Replace follows when the
	// store is back.
	Lost(err error)
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

// How Follow waits: the first pause, how far it doubles, and for how long it
// tries to resume a broken watch before it says that the store is lost.
const (
	pauseFirst = 50 * time.Millisecond
	pauseMax   = 2 * time.Second
	resumeTime = time.Second
	// detachedLook is how long a detached follower waits for the cluster key;
	// another store may answer by then, at any revision.
	detachedLook = 10 * time.Second
)

// errReread ends a watch to read the store again.
var errReread = errors.New("read again")

// Follow lists prefix, gives it to f, and then every change, until ctx ends or f
// fails. A watch that breaks is resumed where it was if the store is still the
// same; otherwise, or after a compaction, the store is listed again. With a Guard
// the prefix must cover ClusterKey; g may be nil. Follow returns f's error, or
// ctx's.
func Follow(ctx context.Context, s Store, prefix string, g Guard, f Follower) error {
	if g != nil && !strings.HasPrefix(ClusterKey, prefix) {
		return fmt.Errorf("follow %s: a guarded prefix must cover %s: %w", prefix, ClusterKey, ErrInvalid)
	}
	w := follow{store: s, prefix: prefix, guard: g, to: f}
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

type follow struct {
	store  Store
	prefix string
	guard  Guard
	to     Follower
	doubt  Doubter

	revision int64     // applied so far; 0: nothing known, list
	checked  int64     // revision of what the guard saw last
	broken   time.Time // since when the store does not answer; zero: it does
	pause    time.Duration
	lost     string // what Lost was told last
	failed   error  // the follower's
}

// round goes from the present state to a watch and returns why the watch, or
// the way to it, ended.
func (w *follow) round(ctx context.Context) error {
	if w.revision == 0 {
		if err := w.list(ctx); err != nil {
			return err
		}
	} else if err := w.check(ctx, w.revision); err != nil {
		return err
	}
	w.broken, w.pause, w.lost = time.Time{}, 0, ""
	return w.store.Watch(ctx, w.prefix, w.revision, func(b Batch) error { return w.batch(ctx, b) })
}

// list gives the follower everything.
func (w *follow) list(ctx context.Context) error {
	snap, err := w.store.List(ctx, w.prefix)
	if err != nil {
		return err
	}
	if err := w.judge(ctx, snap); err != nil {
		return err
	}
	if w.failed = w.to.Replace(snap); w.failed != nil {
		return w.failed
	}
	w.reached(snap.Revision)
	return nil
}

// check asks whether the store is still the one that was followed up to least.
func (w *follow) check(ctx context.Context, least int64) error {
	snap, err := w.store.List(ctx, ClusterKey)
	if err != nil {
		return err
	}
	if snap.Revision < least {
		// It went back; the guard says what that means.
		w.revision = 0
	}
	if err := w.judge(ctx, snap); err != nil {
		return err
	}
	if w.revision == 0 {
		return errReread
	}
	return nil
}

func (w *follow) judge(ctx context.Context, snap Snapshot) error {
	w.checked = snap.Revision
	if w.guard == nil {
		return nil
	}
	return w.guard.Check(ctx, w.store, snap)
}

func (w *follow) batch(ctx context.Context, b Batch) error {
	if len(b.Events) > 0 {
		if w.guard != nil && changes(b, ClusterKey) {
			if err := w.check(ctx, b.Revision); err != nil {
				return err
			}
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

func (w *follow) reached(revision int64) {
	w.revision = revision
	if w.guard != nil {
		w.guard.Progress(revision)
	}
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
		w.tell(err)
		w.await(ctx)
	default:
		if !errors.Is(err, ErrUnavailable) {
			err = fmt.Errorf("follow %s: %w: %w", w.prefix, ErrUnavailable, err)
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

// tell says that the store is lost, once for each reason; what comes next is a
// list.
func (w *follow) tell(err error) {
	w.revision = 0
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
	err := w.store.Watch(bounded, ClusterKey, w.checked, func(b Batch) error {
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
	t := time.NewTimer(w.pause - rand.N(w.pause/3))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
