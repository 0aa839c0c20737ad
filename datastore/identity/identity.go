// Package identity owns cluster.json, what a node remembers of the store it
// followed, and decides with it whether a store that answers is the right one
// (datastore.Guard): an etcd that comes back empty, restored or wrong must not
// tear a node down.
//
// It never changes kernel state. Only the owner (the agent) writes the file, at
// most once a second; the other roles read it and judge for themselves.
package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"netctl/datastore"
)

// FileName is the name of the file in the state folder.
const FileName = "cluster.json"

// writeEvery bounds how often the revision is written.
const writeEvery = time.Second

// File is a node's memory of its cluster. It implements datastore.Guard; all
// methods are safe for concurrent use.
type File struct {
	path  string
	owner bool
	log   *slog.Logger

	mu      sync.Mutex
	have    *datastore.Identity // what was accepted last
	key     int64               // revision of the cluster key then
	refused error               // why the last check failed; nil: attached
	written time.Time
	due     *time.Timer // the scheduled write; nil: none
	closed  bool

	writing sync.Mutex // held while the file is written
}

var _ datastore.Guard = (*File)(nil)

// Open opens the memory in the state folder dir, made (0700) if it does not
// exist. The file itself need not exist; a damaged one shows in Check.
func Open(dir string, owner bool, log *slog.Logger) (*File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cluster identity: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &File{
		path: filepath.Join(dir, FileName), owner: owner, log: log,
		refused: fmt.Errorf("the datastore was not reached yet: %w", datastore.ErrUnavailable),
	}, nil
}

// Check implements datastore.Guard. Without a file the store is taken as it is;
// the owner gives a store without identity a new one.
func (f *File) Check(ctx context.Context, s datastore.Store, snap datastore.Snapshot) error {
	err := f.check(ctx, s, snap)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && errors.Is(f.refused, datastore.ErrDetached) && !errors.Is(f.refused, datastore.ErrUnidentified) {
		f.log.Info("attached to the datastore again", "cluster", f.have.UUID, "generation", f.have.Generation, datastore.EventDatastore.Mark())
	}
	f.refused = err
	return err
}

func (f *File) check(ctx context.Context, s datastore.Store, snap datastore.Snapshot) error {
	// The file first, then the store: its owner may be ahead of snap.
	known, err := f.known()
	if err != nil {
		return err
	}
	id, err := s.ID(ctx)
	if err != nil {
		return err
	}
	if known != nil && snap.Revision < known.Revision {
		if snap, err = s.List(ctx, datastore.ClusterKey); err != nil {
			return err
		}
	}
	cluster, key, err := snap.Cluster()
	if err != nil {
		return fmt.Errorf("%w: %w", datastore.ErrDetached, err)
	}
	switch {
	case known != nil:
		if err := known.Judge(cluster, id, snap.Revision); err != nil {
			return err
		}
	case cluster == nil && !f.owner:
		return datastore.ErrUnidentified
	case cluster == nil:
		if cluster, key, err = f.create(ctx, s); err != nil {
			return err
		}
	}
	return f.accept(*cluster, id, key, snap.Revision)
}

// known is what the node remembers: the file or, where that is not newer, what
// this process accepted itself. nil: nothing.
func (f *File) known() (*datastore.Identity, error) {
	file, err := read(f.path)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.have == nil:
		return file, nil
	case file == nil, file.UUID == f.have.UUID && file.Generation <= f.have.Generation:
		have := *f.have
		if file != nil && file.Generation == have.Generation && file.Store == have.Store {
			have.Revision = max(have.Revision, file.Revision)
		}
		return &have, nil
	default:
		return file, nil // the node was taken into another cluster
	}
}

// create gives the store an identity; another node may be faster.
func (f *File) create(ctx context.Context, s datastore.Store) (*datastore.Cluster, int64, error) {
	c, revision, created, err := Create(ctx, s)
	if created {
		f.log.Info("cluster created", "cluster", c.UUID, datastore.EventDatastore.Mark())
	}
	return c, revision, err
}

// Create gives a store an identity if it has none, and returns the one that it has, with
// its revision.
func Create(ctx context.Context, s datastore.Store) (_ *datastore.Cluster, revision int64, created bool, err error) {
	c := datastore.NewCluster(time.Now())
	value, err := c.Encode()
	if err != nil {
		return nil, 0, false, fmt.Errorf("cluster identity: %w", err)
	}
	revision, err = s.Commit(ctx, datastore.Txn{
		If:   []datastore.Condition{{Key: datastore.ClusterKey}},
		Then: []datastore.Op{{Key: datastore.ClusterKey, Value: value}},
	})
	if err == nil {
		return &c, revision, true, nil
	}
	if !errors.Is(err, datastore.ErrExists) {
		return nil, 0, false, err
	}
	e, err := s.Get(ctx, datastore.ClusterKey)
	if err != nil {
		return nil, 0, false, err
	}
	if c, err = datastore.DecodeCluster(e.Value); err != nil {
		return nil, 0, false, fmt.Errorf("%w: %w", datastore.ErrDetached, err)
	}
	return &c, e.Revision, false, nil
}

// accept remembers the store; a changed identity is on disk before it is used.
func (f *File) accept(c datastore.Cluster, id uint64, key, revision int64) error {
	now := datastore.Identity{UUID: c.UUID, Generation: c.Generation, Store: id, Revision: revision}
	f.mu.Lock()
	same := f.have != nil && f.have.UUID == now.UUID && f.have.Generation == now.Generation && f.have.Store == now.Store
	if same {
		now.Revision = max(now.Revision, f.have.Revision)
	}
	f.have, f.key = &now, key
	f.mu.Unlock()
	if same || !f.owner {
		return nil
	}
	return f.write()
}

// Progress implements datastore.Guard.
func (f *File) Progress(revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil || f.refused != nil || revision <= f.have.Revision {
		return
	}
	f.have.Revision = revision
	if f.owner && f.due == nil && !f.closed {
		f.due = time.AfterFunc(max(0, time.Until(f.written.Add(writeEvery))), func() {
			if err := f.write(); err != nil {
				f.log.Warn("cluster identity not written", "error", err)
			}
		})
	}
}

// Restore writes the file again if it went, or can be read no more, while the store was the
// right one. Another one that can be read is who took the node into another cluster's.
func (f *File) Restore() error {
	f.mu.Lock()
	attached := f.owner && f.have != nil && f.refused == nil && !f.closed
	f.mu.Unlock()
	if !attached {
		return nil
	}
	if have, err := read(f.path); err == nil && have != nil {
		return nil
	}
	return f.write()
}

// Close writes what is due; nothing is written afterwards.
func (f *File) Close() error {
	f.mu.Lock()
	f.closed = true
	due := f.due != nil
	f.mu.Unlock()
	if !due {
		f.writing.Lock() // one that began before may still be at it
		defer f.writing.Unlock()
		return nil
	}
	return f.write()
}

// write places what is remembered on disk.
func (f *File) write() error {
	f.writing.Lock()
	defer f.writing.Unlock()
	f.mu.Lock()
	now := *f.have
	if f.due != nil {
		f.due.Stop()
	} else if f.closed {
		f.mu.Unlock()
		return nil // Close was faster
	}
	f.due, f.written = nil, time.Now()
	f.mu.Unlock()
	return write(f.path, now)
}

// Identity is what was accepted last and, if the store is not right or was not
// reached yet, why.
func (f *File) Identity() (datastore.Identity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have == nil {
		return datastore.Identity{}, f.refused
	}
	return *f.have, f.refused
}

// read returns nil if there is no file.
func read(path string) (*datastore.Identity, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cluster identity: %w", err)
	}
	i, err := datastore.DecodeIdentity(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w; if the datastore is the right one, remove the file", datastore.ErrDetached, path, err)
	}
	return &i, nil
}

// write replaces the file.
func write(path string, i datastore.Identity) error {
	text, err := json.Marshal(i)
	if err == nil {
		err = datastore.WriteFile(path, append(text, '\n'), datastore.FileOptions{})
	}
	if err != nil {
		return fmt.Errorf("cluster identity: %w", err)
	}
	return nil
}
