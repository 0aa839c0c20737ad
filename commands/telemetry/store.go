package telemetry

import (
	"context"
	"errors"
	"time"

	"netctl/datastore"
)

// Requests are a role's to the datastore: how long they take, and which it does not
// answer.
type Requests struct {
	get, list, commit Histogram
	failed            Counter
}

// Put puts them on a page.
func (r *Requests) Put(p *Page) {
	p.Durations("netctl_datastore_request_seconds", &r.get, "get")
	p.Durations("netctl_datastore_request_seconds", &r.list, "list")
	p.Durations("netctl_datastore_request_seconds", &r.commit, "commit")
	p.Counts("netctl_datastore_request_errors_total", &r.failed)
}

// Store is the same store, whose requests are counted. A refusal is an answer.
func (r *Requests) Store(s datastore.Store) datastore.Store { return &timed{s, r} }

type timed struct {
	datastore.Store
	r *Requests
}

func (t *timed) took(h *Histogram, operation string, began time.Time, err error) {
	if errors.Is(err, datastore.ErrUnavailable) {
		t.r.failed.Add(operation, 1)
		return
	}
	h.Observe(time.Since(began))
}

// Get implements datastore.Store.
func (t *timed) Get(ctx context.Context, key string) (datastore.Entry, error) {
	began := time.Now()
	e, err := t.Store.Get(ctx, key)
	t.took(&t.r.get, "get", began, err)
	return e, err
}

// List implements datastore.Store.
func (t *timed) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	began := time.Now()
	s, err := t.Store.List(ctx, prefixes...)
	t.took(&t.r.list, "list", began, err)
	return s, err
}

// Commit implements datastore.Store.
func (t *timed) Commit(ctx context.Context, txn datastore.Txn) (int64, error) {
	began := time.Now()
	n, err := t.Store.Commit(ctx, txn)
	t.took(&t.r.commit, "commit", began, err)
	return n, err
}
