package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// pending is the problem of detaches that could not be worked off.
const pending = "pending detach"

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

	asked *givenUp

	forgetting sync.Mutex // two interfaces of one workload may be attached at once
}

func newDetaches(dir string, l *loop) *detaches {
	d := &detaches{dir: dir, loop: l, appeared: make(chan struct{}, 1), again: make(chan struct{}, 1), turn: make(chan struct{}, 1), asked: newGivenUp(l.cfg.Node)}
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
		if d.loop.gate(ctx) != nil { // once the store is back that comes first
			all, _ := control.ReadPending(d.dir) // what cannot be read is told by workOff
			_ = d.loop.do(ctx, func() { d.loop.stored = targets(all) })
			continue
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
	all = nil
	if d.left.Load() {
		all, _ = control.ReadPending(d.dir)
	}
	if e := d.loop.do(ctx, func() {
		d.loop.stored = targets(all)
		text := ""
		if len(errs) > 0 {
			text = strings.TrimPrefix(errs[0].Error(), pending+" ")
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

// targets are what detaches are of.
func targets(all []control.Pending) (list []control.Target) {
	for _, p := range all {
		list = append(list, p.Request.Target)
	}
	return list
}

// detached says whether a detach of an endpoint is stored.
func (l *loop) detached(endpoint string) bool {
	return slices.ContainsFunc(l.stored, func(t control.Target) bool {
		name := t.Endpoint(l.cfg.Node)
		return name == endpoint || t.Interface == "" && strings.HasPrefix(endpoint, name)
	})
}

// earlier are the detaches that were stored of an interface before its attach began. One
// that comes while that is under way is of a runtime that gave it up, and in force after it.
func (d *detaches) earlier(t control.Target, began time.Time) (list []control.Pending) {
	all, _ := control.ReadPending(d.dir) // what cannot be read is told by workOff
	for _, p := range all {
		stored := p.Request.Target
		if stored.Interface == "" {
			stored.Interface = t.Interface
		}
		if stored == t && !p.Since(began) {
			list = append(list, p)
		}
	}
	return list
}

// first works off what was stored of an interface before its attach: done later, it
// would take the new endpoint away.
func (d *detaches) first(ctx context.Context, earlier []control.Pending) error {
	for _, p := range earlier {
		if err := d.one(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// forget drops what was stored of an interface that is attached again before the
// datastore heard of its detach. What was stored of all interfaces stays of the others.
func (d *detaches) forget(ctx context.Context, t control.Target, earlier []control.Pending) error {
	d.forgetting.Lock()
	defer d.forgetting.Unlock()
	for _, p := range earlier {
		if !p.Same() {
			continue
		}
		if p.Request.Interface == "" {
			if err := d.storeOthers(ctx, p.Request, t.Interface); err != nil {
				return err
			}
		}
		if err := os.Remove(p.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// storeOthers stores a detach of all interfaces of a workload as one of each but one.
func (d *detaches) storeOthers(ctx context.Context, r control.DetachRequest, but string) error {
	of := r.Endpoint(d.loop.cfg.Node)
	names, err := d.loop.Find(ctx, r.Orchestrator, r.Workload)
	if err != nil {
		return err
	}
	for _, name := range names {
		if r.Interface = strings.TrimPrefix(name, of); r.Interface == but {
			continue
		}
		if err := control.StorePending(d.dir, r); err != nil {
			return err
		}
	}
	return nil
}

// one works off one file, unless somebody did. One that took its place meanwhile stays,
// and has its own turn.
func (d *detaches) one(ctx context.Context, p control.Pending) error {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.turn }()
	if !p.Same() {
		return nil
	}
	d.asked.note(p.Request.Target, p.Stored())
	err := d.detach(ctx, p.Request.Target)
	if err == nil && p.Same() {
		err = os.Remove(p.Path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%s %s: %w", pending, p.Path, err)
	}
	d.loop.log.Info("pending detach worked off", "workload", p.Request.Workload, datastore.EventEndpoint.Mark())
	return nil
}
