package identity

import (
	"context"
	"fmt"
	"path/filepath"

	"netctl/datastore"
)

// Own is the cluster that the node with this state folder belongs to; nil: none yet.
func Own(dir string) (*datastore.Identity, error) { return read(filepath.Join(dir, FileName)) }

// Restored says that the store holds cluster c again, of a backup: it gets c's identity
// with a generation above every known one, so that its nodes attach and write back
// what runs. dir is the state folder. It returns the store's revision of that too.
func Restored(ctx context.Context, s datastore.Store, dir string, c datastore.Cluster) (datastore.Cluster, int64, error) {
	own, err := Own(dir)
	if err != nil {
		return c, 0, err
	}
	c, err = raise(ctx, s, func(stored *datastore.Cluster) (datastore.Cluster, error) {
		next := c
		if own != nil && own.UUID == c.UUID {
			next.Generation = max(next.Generation, own.Generation)
		}
		if stored != nil && stored.UUID != c.UUID {
			return c, fmt.Errorf("restore: the datastore became cluster %s: %w", stored.UUID, datastore.ErrConflict)
		}
		if stored != nil {
			next.Generation = max(next.Generation, stored.Generation)
		}
		next.Generation++
		return next, nil
	})
	if err != nil {
		return c, 0, err
	}
	e, err := s.Get(ctx, datastore.ClusterKey)
	return c, e.Revision, err
}
