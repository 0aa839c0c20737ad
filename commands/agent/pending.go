package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"netctl/commands/control"
	"netctl/datastore"
)

// pending is the problem of detaches that could not be worked off.
const pending = "pending"

// detaches works off what plugins stored because the agent could not release it:
// when the store is back (joiner), when a file appears, and, as long as something is
// left, when the store has taken a write and after a while that grows.
type detaches struct {
	dir    string
	loop   *loop
	detach func(context.Context, control.Target) error

	appeared chan struct{} // holds one: there may be a new file
	again    chan struct{} // holds one: what is left may work now
	left     atomic.Bool   // something is
	turn     chan struct{} // holds one while a file is worked off
}

func newDetaches(dir string, l *loop) *detaches {
	d := &detaches{dir: dir, loop: l, appeared: make(chan struct{}, 1), again: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
	l.retryDetaches = func() { poke(d.again) }
	return d
}

// folder is where the files are.
func (d *detaches) folder() control.Folder {
	return control.Folder{Dir: d.dir, Look: func(string) error {
		poke(d.appeared)
		return nil
	}}
}

// watching is s, which tells when it took a write while something is left.
func (d *detaches) watching(s datastore.Store) datastore.Store { return writes{s, d} }

type writes struct {
	datastore.Store
	detaches *detaches
}

// Commit implements datastore.Store.
func (w writes) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	revision, err := w.Store.Commit(ctx, t)
	if err == nil && w.detaches.left.Load() {
		poke(w.detaches.again)
	}
	return revision, err
}

// run works detaches off until ctx ends.
func (d *detaches) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.appeared:
		case <-d.again:
		}
		if d.loop.gate(ctx) != nil {
			continue // once the store is back that comes first
		}
		if err := d.workOff(ctx); err != nil && ctx.Err() == nil {
			d.loop.log.Warn("pending detaches not worked off", "error", err)
		}
		select {
		case <-d.again: // of what was just written
		default:
		}
	}
}

// workOff releases what was detached while the agent could not. A detach that
// fails for its own reasons is shown and kept; it does not hold up the others.
func (d *detaches) workOff(ctx context.Context) error {
	all, err := control.ReadPending(d.dir)
	var errs []error
	if err != nil {
		errs = append(errs, err)
	}
	var away error
	for _, p := range all {
		err := d.one(ctx, p)
		if errors.Is(err, datastore.ErrUnavailable) || errors.Is(err, datastore.ErrDetached) || ctx.Err() != nil {
			away = err
			break
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	d.left.Store(away != nil || len(errs) > 0)
	if e := d.loop.do(ctx, func() {
		text := ""
		if len(errs) > 0 {
			text = errs[0].Error()
		}
		if more := len(errs) - 1; more > 0 { // most often for the same reason
			text += fmt.Sprintf("; and %d more", more)
		}
		if away == nil {
			d.loop.problems.note(pending, text)
		}
		if d.left.Load() {
			d.loop.problems.again.Failed(pending)
		}
	}); e != nil {
		return e
	}
	return away
}

// first works off what was stored of an interface that is attached now: done later, it
// would take the new endpoint away.
func (d *detaches) first(ctx context.Context, t control.Target) error {
	all, _ := control.ReadPending(d.dir) // what cannot be read is told by workOff
	for _, p := range all {
		stored := p.Request.Target
		if stored.Interface == "" {
			stored.Interface = t.Interface
		}
		if stored == t {
			if err := d.one(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// one works off one file, unless somebody did.
func (d *detaches) one(ctx context.Context, p control.Pending) error {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.turn }()
	_, err := os.Lstat(p.Path)
	if err == nil {
		err = d.detach(ctx, p.Request.Target)
	}
	if err == nil {
		err = os.Remove(p.Path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("pending detach %s: %w", p.Path, err)
	}
	d.loop.log.Info("pending detach worked off", "workload", p.Request.Workload)
	return nil
}
