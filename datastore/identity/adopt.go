package identity

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"netctl/datastore"
)

// attempts bounds how often an adoption meets another one.
const attempts = 5

// Adopt says that the store is the right one: this node's cluster is written
// back to it, with a generation above every known one. The node's agent and every
// other node of the cluster then attach by themselves. dir is the state folder.
func Adopt(ctx context.Context, s datastore.Store, dir string) (datastore.Cluster, error) {
	own, err := read(filepath.Join(dir, FileName))
	if err != nil {
		return datastore.Cluster{}, err
	}
	if own == nil {
		return datastore.Cluster{}, fmt.Errorf("adopt: %s is not there: this node belongs to no cluster yet, its agent takes the datastore as it is: %w", filepath.Join(dir, FileName), datastore.ErrNotFound)
	}
	return raise(ctx, s, func(stored *datastore.Cluster) (datastore.Cluster, error) {
		c := datastore.Cluster{UUID: own.UUID, Created: time.Now().UTC().Truncate(time.Second), Generation: own.Generation + 1}
		if stored != nil {
			c.Generation = max(own.Generation, stored.Generation) + 1
			if stored.UUID == own.UUID {
				c.Created = stored.Created
			}
		}
		return c, nil
	})
}

// Join takes this node into the cluster that the store holds, whatever it
// belonged to before; the other nodes of that cluster are not disturbed.
func Join(ctx context.Context, s datastore.Store, dir string) (datastore.Cluster, error) {
	return raise(ctx, s, func(stored *datastore.Cluster) (datastore.Cluster, error) {
		if stored == nil {
			return datastore.Cluster{}, fmt.Errorf("join: the datastore holds no cluster identity: %w", datastore.ErrNotFound)
		}
		id, err := s.ID(ctx)
		if err != nil {
			return datastore.Cluster{}, err
		}
		// The next generation wakes the agent: it sees one above the file's.
		if err := write(filepath.Join(dir, FileName), datastore.Identity{UUID: stored.UUID, Generation: stored.Generation, Store: id}); err != nil {
			return datastore.Cluster{}, err
		}
		next := *stored
		next.Generation++
		return next, nil
	})
}

// raise replaces the stored cluster by what next makes of it.
func raise(ctx context.Context, s datastore.Store, next func(*datastore.Cluster) (datastore.Cluster, error)) (datastore.Cluster, error) {
	for attempt := 1; ; attempt++ {
		snap, err := s.List(ctx, datastore.ClusterKey)
		if err != nil {
			return datastore.Cluster{}, err
		}
		stored, key, err := snap.Cluster()
		if err != nil {
			stored = nil // unreadable: written over
		}
		c, err := next(stored)
		if err != nil {
			return c, err
		}
		value, err := c.Encode()
		if err != nil {
			return c, fmt.Errorf("adopt: %w", err)
		}
		_, err = s.Commit(ctx, datastore.Txn{
			If:   []datastore.Condition{{Key: datastore.ClusterKey, Revision: key}},
			Then: []datastore.Op{{Key: datastore.ClusterKey, Value: value}},
		})
		again := errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists)
		if err == nil || !again || attempt == attempts {
			return c, err
		}
	}
}
