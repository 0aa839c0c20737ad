package identity

import (
	"context"
	"errors"
	"fmt"

	"netctl/datastore"
)

// Fence returns a store that writes only while the store is the right one:
// detached, or before the first check, Commit fails without asking; and every
// transaction holds only if the cluster key is the one that was checked, so that
// nothing is written into an empty etcd in the moment before it is noticed.
func (f *File) Fence(s datastore.Store) datastore.Store { return fenced{s, f} }

type fenced struct {
	datastore.Store
	file *File
}

// Commit implements datastore.Store. In a transaction with MaxTxnOps conditions
// there is no room for one more.
func (s fenced) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	s.file.mu.Lock()
	refused, key := s.file.refused, s.file.key
	s.file.mu.Unlock()
	if refused != nil {
		return 0, refused
	}
	if len(t.If) >= datastore.MaxTxnOps {
		return s.Store.Commit(ctx, t)
	}
	t.If = append(t.If[:len(t.If):len(t.If)], datastore.Condition{Key: datastore.ClusterKey, Revision: key})
	revision, err := s.Store.Commit(ctx, t)
	if !errors.Is(err, datastore.ErrConflict) {
		return revision, err
	}
	if e, gone := s.Get(ctx, datastore.ClusterKey); errors.Is(gone, datastore.ErrNotFound) {
		return 0, fmt.Errorf("%w: the datastore holds no cluster identity any more", datastore.ErrDetached)
	} else if gone == nil && e.Revision != key {
		return 0, fmt.Errorf("the cluster's identity is being checked: %w", datastore.ErrUnavailable)
	}
	return revision, err
}
