// Package memory owns a datastore.Store that lives in this process: for tests
// and for fakes. It behaves as etcd does where datastore/storetest looks, and can
// be told to be away, to forget its history, or to be made anew.
//
// It never writes to disk and starts no goroutine.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"netctl/datastore"
)

// Store keeps entries in memory. Its zero value is not usable; see New.
type Store struct {
	mu        sync.Mutex
	id        uint64
	line      int // counts broken connections
	revision  int64
	compacted int64 // history up to and including this revision is forgotten
	entries   map[string]datastore.Entry
	history   []datastore.Batch // one for each revision after compacted
	away      error             // what every call fails with, nil: none
	closed    bool
	changed   chan struct{} // closed and replaced at every change of state
}

var _ datastore.Store = (*Store)(nil)

// New returns an empty store at revision 1 with the identity 1, as a new etcd.
func New() *Store {
	return &Store{id: 1, revision: 1, compacted: 1, entries: map[string]datastore.Entry{}, changed: make(chan struct{})}
}

// Get implements datastore.Store.
func (s *Store) Get(ctx context.Context, key string) (datastore.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return datastore.Entry{}, err
	}
	e, ok := s.entries[key]
	if !ok {
		return datastore.Entry{}, fmt.Errorf("read %s: %w", key, datastore.ErrNotFound)
	}
	return clone(e), nil
}

// List implements datastore.Store.
func (s *Store) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return datastore.Snapshot{}, err
	}
	snap := datastore.Snapshot{Revision: s.revision}
	for k, e := range s.entries {
		if under(k, prefixes) {
			snap.Entries = append(snap.Entries, clone(e))
		}
	}
	slices.SortFunc(snap.Entries, func(a, b datastore.Entry) int { return strings.Compare(a.Key, b.Key) })
	return snap, nil
}

// Commit implements datastore.Store.
func (s *Store) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return 0, err
	}
	for _, c := range t.If {
		if have := s.entries[c.Key].Revision; have != c.Revision {
			return 0, c.Failed(have)
		}
	}
	next := s.revision + 1
	var events []datastore.Entry
	for _, op := range t.Then {
		e := clone(datastore.Entry{Key: op.Key, Value: op.Value, Revision: next})
		if op.Value != nil {
			s.entries[op.Key] = e
		} else if _, ok := s.entries[op.Key]; ok {
			delete(s.entries, op.Key)
		} else {
			continue
		}
		events = append(events, e)
	}
	if len(events) > 0 {
		s.revision = next
		s.history = append(s.history, datastore.Batch{Events: events, Revision: next})
		s.wake()
	}
	return s.revision, nil
}

// Watch implements datastore.Store.
func (s *Store) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	s.mu.Lock()
	line := s.line
	s.mu.Unlock()
	for {
		b, wait, err := s.next(ctx, prefixes, after, line)
		if err != nil {
			return err
		}
		if wait != nil {
			select {
			case <-wait:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		after = b.Revision
		if err := fn(b); err != nil {
			return err
		}
	}
}

// next is the first batch under the prefixes after the revision, or a channel that is
// closed when it is worth asking again.
func (s *Store) next(ctx context.Context, prefixes []string, after int64, line int) (datastore.Batch, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx); err != nil {
		return datastore.Batch{}, nil, err
	}
	if s.line != line {
		return datastore.Batch{}, nil, fmt.Errorf("watch %s: connection lost: %w", strings.Join(prefixes, " "), datastore.ErrUnavailable)
	}
	if after < s.compacted {
		return datastore.Batch{}, nil, fmt.Errorf("watch %s after revision %d: %w", strings.Join(prefixes, " "), after, datastore.ErrCompacted)
	}
	first, _ := slices.BinarySearchFunc(s.history, after+1, func(b datastore.Batch, r int64) int { return cmp.Compare(b.Revision, r) })
	for _, b := range s.history[first:] {
		out := datastore.Batch{Revision: b.Revision}
		for _, e := range b.Events {
			if under(e.Key, prefixes) {
				out.Events = append(out.Events, clone(e))
			}
		}
		if len(out.Events) > 0 {
			return out, nil, nil
		}
	}
	return datastore.Batch{}, s.changed, nil
}

// ID implements datastore.Store.
func (s *Store) ID(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id, s.usable(ctx)
}

// Close implements datastore.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.wake()
	return nil
}

// Compact forgets the history up to and including revision.
func (s *Store) Compact(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted = max(s.compacted, min(revision, s.revision))
	s.history = slices.DeleteFunc(s.history, func(b datastore.Batch) bool { return b.Revision <= s.compacted })
	s.wake()
}

// Away makes every call fail with an error that wraps datastore.ErrUnavailable
// and ends running watches, until Back. Nothing is forgotten.
func (s *Store) Away(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line++
	s.away = fmt.Errorf("%s: %w", reason, datastore.ErrUnavailable)
	s.wake()
}

// Break ends running watches as a lost connection does; the next call works.
func (s *Store) Break() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line++
	s.wake()
}

// Back ends Away.
func (s *Store) Back() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = nil
	s.wake()
}

// Restore makes the content the snapshot's, under another identity, as an etcd
// restored from a backup would; running watches end. An empty Snapshot with
// Revision 1 is a store made anew.
func (s *Store) Restore(snap datastore.Snapshot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id++
	s.line++
	s.revision, s.compacted = snap.Revision, snap.Revision
	s.history = nil
	s.entries = make(map[string]datastore.Entry, len(snap.Entries))
	for _, e := range snap.Entries {
		s.entries[e.Key] = clone(e)
	}
	s.wake()
}

func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed {
		return fmt.Errorf("store closed: %w", datastore.ErrUnavailable)
	}
	return s.away
}

func (s *Store) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// under says whether the key begins with one of the prefixes.
func under(key string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return datastore.Under(key, p) })
}

func clone(e datastore.Entry) datastore.Entry {
	e.Value = slices.Clone(e.Value)
	return e
}
