// Package datastore owns the model of netctl and its language: the kinds, their
// names and keys, the grammars of rules and selectors, the strict JSON they are
// stored as, and Store, the interface to whatever keeps them.
//
// It never talks to a network or a kernel and imports the standard library only;
// datastore/etcd and datastore/memory implement Store.
//
// Invariants: a key is checked when written and when read; a value that does not
// parse is reported, never used; everything that changes several keys is one Txn.
package datastore

import (
	"context"
	"errors"
	"fmt"
)

// Prefix is the root of every key netctl owns.
const Prefix = "/netctl/v1/"

// MaxTxnOps is the largest number of operations a Txn may hold (etcd refuses
// more than 128 operations; conditions count too, so netctl stays below).
const MaxTxnOps = 100

// MaxTxnBytes bounds the values of a Txn with several operations, in bytes; etcd
// refuses requests of more than 1.5 MiB.
const MaxTxnBytes = 1 << 20

// The outcomes a caller can act on. Every error of a Store wraps one of them or
// is the context's own error.
var (
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("already exists")
	ErrConflict    = errors.New("changed meanwhile")
	ErrInUse       = errors.New("in use")
	ErrInvalid     = errors.New("invalid")
	ErrExhausted   = errors.New("no address left")
	ErrUnavailable = errors.New("datastore unavailable")
	ErrFull        = errors.New("datastore full")
	ErrCompacted   = errors.New("revision compacted")
	ErrDetached    = errors.New("detached from the datastore")
	ErrDenied      = errors.New("not allowed")
	// ErrUnidentified is an ErrDetached that ends by itself.
	ErrUnidentified = fmt.Errorf("%w: the datastore holds no cluster identity yet; the first agent makes it", ErrDetached)
)

// RoomAgain is how many bytes of its quota may be in use where netctl's own etcd, once
// full, takes writes again.
func RoomAgain(quota int64) int64 { return quota / 10 * 9 }

// Entry is one stored key. Revision is the store-wide revision of its last
// change. In a Batch a nil Value means the key was deleted.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64
}

// Snapshot is the content of a prefix at one revision, sorted by key.
type Snapshot struct {
	Entries  []Entry
	Revision int64
}

// Batch is changes of one prefix, of one or more consecutive revisions, in order;
// the changes of one transaction under one prefix are never split. Revision is
// what is complete under every prefix that is watched: with several of them it
// may be less than the revision of an event, which is then given again if the
// watch is resumed after Revision.
type Batch struct {
	Events   []Entry
	Revision int64
}

// Condition holds when the key's last change is Revision; 0 means that the key
// does not exist.
type Condition struct {
	Key      string
	Revision int64
}

// Op writes Value under Key; a nil Value deletes the key.
type Op struct {
	Key   string
	Value []byte
}

// Txn is a set of conditions and, if all hold, operations applied as one.
type Txn struct {
	If   []Condition
	Then []Op
}

// Store keeps entries. Implementations pass datastore/storetest. All methods
// are safe for concurrent use.
type Store interface {
	// Get returns the entry, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns every entry under the prefixes, none of which begins another,
	// consistent at one revision. A prefix that does not end in / is one key.
	List(ctx context.Context, prefixes ...string) (Snapshot, error)
	// Commit applies t and returns the revision of the change. If a condition
	// does not hold nothing is applied and the error wraps ErrExists (the
	// condition was Revision 0) or ErrConflict, and names the key.
	Commit(ctx context.Context, t Txn) (int64, error)
	// Watch calls fn for every batch of changes under the prefixes (as List has them) after the given
	// revision, until ctx ends, fn fails, or the watch breaks (ErrCompacted,
	// ErrUnavailable). It never returns nil. The batches of one prefix come in
	// order; those of two prefixes may overtake each other, and a transaction over
	// both may come as two batches.
	Watch(ctx context.Context, prefixes []string, after int64, fn func(Batch) error) error
	// ID is the store's own identity (etcd's cluster ID), which changes when
	// the store is made anew.
	ID(ctx context.Context) (uint64, error)
	// Close releases connections; watches end.
	Close() error
}
