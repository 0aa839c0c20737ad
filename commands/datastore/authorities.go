//go:build !bundled

package datastore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
)

// peerLife is how long the certificate of the peer port holds; it is looked at each time
// the role starts.
const peerLife = 10 * 365 * 24 * time.Hour

// authorities are those of the clients and of the members, as this member has them.
type authorities struct {
	mu   sync.Mutex
	keys join.Keys
}

func (a *authorities) now() join.Keys {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys
}

// clientDir is where the clients' authority is, with its key.
func (d *door) clientDir() string { return filepath.Dir(d.c.CA) }

// load reads the authorities as they are in the files, in a phase of their replacement.
func (d *door) load(p datastore.Phase) error {
	ca, err := pki.Open(d.clientDir())
	if err != nil {
		return err
	}
	k := join.Keys{CA: ca, Phase: p}
	if next, err := pki.OpenNext(d.clientDir()); err == nil {
		k.Next = next
	} else if !errors.Is(err, datastore.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if k.Peer, err = pki.Open(PeerFolder(d.c.StateDir)); err != nil {
		k.Peer = nil // it lets in nodes all the same
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.keys = k
	return nil
}

// follow does this member's part while the cluster's authorities are replaced, until ctx
// ends. Every step may be interrupted, and is done again.
func (d *door) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := d.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		d.log.Debug("the cluster's authority is not followed", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(doorAgain):
		}
	}
}

func (d *door) watch(ctx context.Context) error {
	store, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + d.c.Socket}, Log: d.log})
	if err != nil {
		return err
	}
	defer store.Close()
	prefixes := []string{datastore.AuthorityKey, datastore.MembersKey, datastore.JoinPrefix, datastore.KindPrefix(datastore.KindNode)}
	snap, err := store.List(ctx, prefixes[:1]...)
	if err != nil {
		return err
	}
	step := func() error {
		err := d.step(ctx, store)
		if err != nil && ctx.Err() == nil {
			d.log.Warn("the cluster's authority: this member's part is not done", "error", err, "again", doorAgain, datastore.EventCertificate.Mark())
		}
		return err
	}
	if err := step(); err != nil {
		return err
	}
	return store.Watch(ctx, prefixes, snap.Revision, func(datastore.Batch) error { return step() })
}

// step does what this member has to do next.
func (d *door) step(ctx context.Context, store *etcd.Store) error {
	var r datastore.Rotation
	revision, err := datastore.Record(ctx, store, datastore.AuthorityKey, &r)
	if err != nil || revision == 0 || r.Phase == datastore.PhaseDone && d.followed == r.ID {
		return err
	}
	if err := d.converge(ctx, store, r); err != nil {
		return err
	}
	list, err := store.Members(ctx)
	if err != nil {
		return err
	}
	var members []string
	for _, m := range list {
		members = append(members, m.Label())
	}
	if d.stale() {
		return d.again(ctx, store, r, members)
	}
	if err := d.acknowledge(ctx, store, r); err != nil {
		return err
	}
	if r.Phase == datastore.PhaseDone {
		d.followed = r.ID
	}
	_, err = r.Advance(ctx, store, revision, members, time.Now())
	return err
}

// converge makes the files what they have to be in a phase.
func (d *door) converge(ctx context.Context, store datastore.Store, r datastore.Rotation) error {
	var sealed datastore.SealedKeys
	if _, err := datastore.Record(ctx, store, datastore.SealedKey, &sealed); err != nil {
		return err
	}
	if err := succeed(d.clientDir(), d.c.CA, r.Clients, r.Phase, sealed.Clients); err != nil {
		return err
	}
	peers := PeerFolder(d.c.StateDir)
	if err := succeed(peers, pki.In(peers, "ca").Cert, r.Peers, r.Phase, sealed.Peers); err != nil {
		return err
	}
	if err := d.load(r.Phase); err != nil {
		return err
	}
	if !r.Phase.Reached(datastore.PhaseServers) {
		return nil
	}
	next, err := newest(peers)
	if err == nil {
		err = d.c.peerCertificate(next)
	}
	if err == nil {
		err = d.certify()
	}
	return err
}

// succeed makes the files of an authority's folder what they have to be in a phase; file
// is the one with those that are trusted.
func succeed(dir, file string, s datastore.Succession, p datastore.Phase, sealed []byte) error {
	if err := pki.Promote(dir); err != nil {
		return err
	}
	own, err := pki.Open(dir)
	if err != nil {
		return err
	}
	if !bytes.Equal(own.CertPEM(), s.New) {
		if !bytes.Equal(own.CertPEM(), s.Old) {
			return fmt.Errorf("%s is not the authority that is replaced, and stays as it is: %w", file, datastore.ErrInvalid)
		}
		if err := receive(dir, own, s, sealed); err != nil {
			return err
		}
	}
	text := s.Trusted(p)
	if have, err := os.ReadFile(file); err != nil || !bytes.Equal(have, text) {
		if err := datastore.WriteFile(file, text, datastore.FileOptions{Mode: 0o644}); err != nil {
			return err
		}
	}
	return pki.Promote(dir)
}

// receive writes the next authority, unless it is there.
func receive(dir string, own *pki.Authority, s datastore.Succession, sealed []byte) error {
	if next, err := pki.OpenNext(dir); err == nil && bytes.Equal(next.CertPEM(), s.New) {
		return nil
	}
	if sealed == nil {
		return fmt.Errorf("%s: the new authority's key is given to members no more, and this one does not have it: remove it (`netctl datastore member remove`), and let it join again: %w", dir, datastore.ErrNotFound)
	}
	key, err := own.Unseal(sealed)
	if err != nil {
		return err
	}
	next, err := pki.Parse(s.New, key)
	if err != nil {
		return err
	}
	return next.WriteNext(dir)
}

// newest is the authority of a folder that replaces the other, or the only one.
func newest(dir string) (*pki.Authority, error) {
	next, err := pki.OpenNext(dir)
	if errors.Is(err, datastore.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return pki.Open(dir)
	}
	return next, err
}

// stale says that the server runs with other authorities of members than those that are
// good now: it reads the ones that it calls with when it starts, and then no more.
func (d *door) stale() bool {
	now, err := os.ReadFile(pki.In(PeerFolder(d.c.StateDir), "ca").Cert)
	return err == nil && !bytes.Equal(now, d.peers)
}

// again has the role start again, when it is this member's turn: one at a time.
func (d *door) again(ctx context.Context, store datastore.Store, r datastore.Rotation, members []string) error {
	var t datastore.Turn
	revision, err := datastore.Record(ctx, store, datastore.TurnKey, &t)
	if err != nil {
		return err
	}
	// Who has it and is no member any more, or is given up, gives it back to nobody.
	if revision != 0 && t.Member != d.c.Node && slices.Contains(members, t.Member) && !slices.Contains(r.Without, t.Member) {
		return nil
	}
	op, err := datastore.RecordOp(datastore.TurnKey, datastore.Turn{Member: d.c.Node})
	if err != nil {
		return err
	}
	_, err = store.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: datastore.TurnKey, Revision: revision}}, Then: []datastore.Op{op}})
	if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists) {
		return nil // another was faster
	}
	if err == nil {
		d.log.Info("starts again, with the authorities of now", "phase", r.Phase, datastore.EventCertificate.Mark())
		d.restart()
	}
	return err
}

// acknowledge tells the others how far this member is, and gives its turn back.
func (d *door) acknowledge(ctx context.Context, store datastore.Store, r datastore.Rotation) error {
	at, err := datastore.AckKey(d.c.Node)
	if err != nil {
		return err
	}
	var had datastore.Ack
	if _, err := datastore.Record(ctx, store, at, &had); err != nil {
		return err
	}
	var txn datastore.Txn
	if is := (datastore.Ack{ID: r.ID, Phase: r.Phase}); had != is {
		op, err := datastore.RecordOp(at, is)
		if err != nil {
			return err
		}
		txn.Then = append(txn.Then, op)
	}
	var t datastore.Turn
	if revision, err := datastore.Record(ctx, store, datastore.TurnKey, &t); err != nil {
		return err
	} else if t.Member == d.c.Node {
		txn.If = []datastore.Condition{{Key: datastore.TurnKey, Revision: revision}}
		txn.Then = append(txn.Then, datastore.Op{Key: datastore.TurnKey})
	}
	if len(txn.Then) == 0 {
		return nil
	}
	_, err = store.Commit(ctx, txn)
	return err
}
