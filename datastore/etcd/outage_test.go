package etcd_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"netctl/datastore"
)

// wire is a way to a socket that can be cut; it counts what comes back over it.
type wire struct {
	path, to string
	received atomic.Int64 // bytes

	mu       sync.Mutex
	listener net.Listener // nil: cut
	conns    map[net.Conn]bool
	done     sync.WaitGroup
}

func (w *wire) connect(t *testing.T) {
	t.Helper()
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listener, w.conns = l, map[net.Conn]bool{}
	w.done.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("unix", w.to)
			w.mu.Lock()
			if err != nil || w.listener != l {
				near.Close()
				w.mu.Unlock()
				continue
			}
			w.conns[near], w.conns[far] = true, true
			w.mu.Unlock()
			w.done.Go(func() { _, _ = io.Copy(far, near); far.Close() })
			w.done.Go(func() { _, _ = io.Copy(near, io.TeeReader(far, counter{&w.received})); near.Close() })
		}
	})
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return len(b), nil }

func (w *wire) cut() {
	w.mu.Lock()
	if w.listener != nil {
		w.listener.Close()
		w.listener = nil
	}
	for c := range w.conns {
		c.Close()
	}
	w.mu.Unlock()
	w.done.Wait()
}

// copier is a follower that keeps what it was told.
type copier struct {
	mu       sync.Mutex
	have     map[string]string
	listings int
	lost     bool
}

func (c *copier) Replace(s datastore.Snapshot) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listings++
	c.have, c.lost = map[string]string{}, false
	for _, e := range s.Entries {
		c.have[e.Key] = string(e.Value)
	}
	return nil
}

func (c *copier) Apply(b datastore.Batch) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range b.Events {
		if delete(c.have, e.Key); e.Value != nil {
			c.have[e.Key] = string(e.Value)
		}
	}
	return nil
}

func (c *copier) Lost(error) { c.mu.Lock(); defer c.mu.Unlock(); c.lost = true }
func (c *copier) Back()      { c.mu.Lock(); defer c.mu.Unlock(); c.lost = false }

// TestAnOutageCostsWhatChanged cuts a follower off from a real etcd, changes a little
// meanwhile, and counts what is read over the wire once it is whole again: the same in
// a large store as in a small one, and next to nothing beside the first listing.
func TestAnOutageCostsWhatChanged(t *testing.T) {
	const changed = 20
	value := strings.Repeat("v", 400)
	measure := func(objects int) (listed, resumed int64) {
		m := newMember(t)
		m.start(t)
		direct := open(t, m.unix())
		want := map[string]string{}
		var txn datastore.Txn
		for i := range objects {
			key := fmt.Sprintf("%snodes/n%d", datastore.Prefix, i)
			want[key] = value
			if txn.Then = append(txn.Then, datastore.Op{Key: key, Value: []byte(value)}); len(txn.Then) == datastore.MaxTxnOps || i == objects-1 {
				if _, err := direct.Commit(t.Context(), txn); err != nil {
					t.Fatal(err)
				}
				txn.Then = nil
			}
		}
		w := &wire{path: filepath.Join(t.TempDir(), "wire.sock"), to: m.config.Socket}
		w.connect(t)
		through := m.unix()
		through.Endpoints = []string{"unix://" + w.path}
		c := &copier{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		store := open(t, through)
		go func() { defer close(ended); _ = datastore.Follow(ctx, store, nil, nil, c) }()
		defer func() { cancel(); w.cut(); <-ended }()
		until := func(what string, ok func() bool) {
			t.Helper()
			eventually(t, func() error {
				c.mu.Lock()
				defer c.mu.Unlock()
				if !ok() {
					return fmt.Errorf("%s: %d of %d objects, lost %v", what, len(c.have), len(want), c.lost)
				}
				return nil
			})
		}
		until("listed", func() bool { return maps.Equal(c.have, want) })
		put(t, direct, "nodes/mark", "listed")
		want[datastore.Prefix+"nodes/mark"] = "listed"
		until("watched", func() bool { return maps.Equal(c.have, want) })
		listed = w.received.Swap(0)

		w.cut()
		until("noticed", func() bool { return c.lost })
		for i := range changed {
			put(t, direct, fmt.Sprint("nodes/n", i), "changed")
			want[fmt.Sprint(datastore.Prefix, "nodes/n", i)] = "changed"
		}
		w.received.Store(0)
		w.connect(t)
		until("followed again", func() bool { return !c.lost && maps.Equal(c.have, want) })
		if c.listings != 1 {
			t.Errorf("%d objects: listed %d times", objects, c.listings)
		}
		return listed, w.received.Load()
	}
	_, few := measure(2 * changed)
	listed, many := measure(5000)
	t.Logf("first listing %d bytes; after the outage %d bytes, with %d objects %d", listed, many, 2*changed, few)
	// Both have the same changes, the same handshakes, and as many dials as it took
	// until the wire was whole.
	const handshakes = 4 << 10
	if many > few+handshakes || many > listed/20 {
		t.Errorf("%d bytes after the outage, %d with %d objects; the first listing took %d", many, few, 2*changed, listed)
	}
}
