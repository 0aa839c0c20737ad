package identity_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/etcd"
	"netctl/datastore/identity"
	"netctl/datastore/pki"
)

// server is a real etcd that the test stops, empties and restores.
type server struct {
	config embed.Config
	cancel context.CancelFunc
	ended  chan error
}

func newServer(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.Create(filepath.Join(dir, "tls"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(filepath.Join(dir, "tls"), pki.Node{Name: "n", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &server{config: embed.Config{
		Name: "n", Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "run", "etcd.sock"),
		PeerURL: "https://" + l.Addr().String(), CA: files.CA, Cert: files.Cert, Key: files.Key,
	}}
	t.Cleanup(func() { s.stop(t) })
	return s
}

func (s *server) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	s.cancel, s.ended = cancel, make(chan error, 1)
	go func() { s.ended <- embed.Run(ctx, s.config, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-s.ended:
		s.cancel = nil
		t.Fatalf("ended at start: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
}

func (s *server) stop(t *testing.T) {
	t.Helper()
	if s.cancel == nil {
		return
	}
	s.cancel()
	s.cancel = nil
	if err := <-s.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// node is a follower that keeps what it knows whatever it is told of the store.
type node struct {
	mu    sync.Mutex
	keys  map[string]bool
	calls chan string
}

func (n *node) has(key string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.keys[key]
}

func (n *node) Replace(s datastore.Snapshot) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.keys)
	for _, e := range s.Entries {
		n.keys[strings.TrimPrefix(e.Key, datastore.Prefix)] = true
	}
	n.calls <- "replace " + strings.Join(slices.Sorted(maps.Keys(n.keys)), " ")
	return nil
}

func (n *node) Apply(b datastore.Batch) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range b.Events {
		n.keys[strings.TrimPrefix(e.Key, datastore.Prefix)] = e.Value != nil
		n.calls <- "apply " + strings.TrimPrefix(e.Key, datastore.Prefix)
	}
	return nil
}

func (n *node) Lost(err error) {
	if errors.Is(err, datastore.ErrDetached) {
		n.calls <- "detached: " + err.Error()
	} else {
		n.calls <- "lost: " + err.Error()
	}
}

func (n *node) Back() { n.calls <- "back" }

// until reads calls up to one that begins with text; everything before must be
// a loss of the connection.
func (n *node) until(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-n.calls:
			if strings.HasPrefix(got, text) {
				return got
			}
			if !strings.HasPrefix(got, "lost: ") {
				t.Fatalf("got %q before %q", got, text)
			}
		case <-deadline:
			t.Fatalf("nothing begins with %q", text)
		}
	}
}

// knows reads calls up to the one that brought key: an event or a new listing.
func (n *node) knows(t *testing.T, key string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case got := <-n.calls:
			switch {
			case got == "apply "+key, strings.HasPrefix(got, "replace ") && slices.Contains(strings.Fields(got), key):
				return
			case strings.HasPrefix(got, "detached"):
				t.Fatalf("before %q is known: %s", key, got)
			}
		case <-deadline:
			t.Fatalf("%q is not known", key)
		}
	}
}

// TestEtcdComesBack follows a real etcd through a restart, a restored backup and
// an empty folder.
func TestEtcdComesBack(t *testing.T) {
	srv, dir := newServer(t), t.TempDir()
	srv.start(t)
	store, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + srv.config.Socket}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	file, n := open(t, dir, true), &node{keys: map[string]bool{}, calls: make(chan string, 100)}
	fenced := file.Fence(store)
	ctx, cancel := context.WithCancel(context.Background())
	followed := make(chan error, 1)
	go func() { followed <- datastore.Follow(ctx, store, nil, file, n) }()
	defer func() { cancel(); <-followed }()
	n.until(t, "replace")
	n.until(t, "apply cluster") // created between list and watch
	put(t, store, "a")
	n.until(t, "apply a")

	srv.stop(t)
	backup := filepath.Join(t.TempDir(), "backup")
	if err := os.CopyFS(backup, os.DirFS(srv.config.Dir)); err != nil {
		t.Fatal(err)
	}
	srv.start(t)
	putEventually(t, store, "b")
	n.knows(t, "b")

	// The backup is from before b.
	srv.stop(t)
	replaceDir(t, srv.config.Dir, backup)
	srv.start(t)
	if got := n.until(t, "detached: "); !strings.Contains(got, "revision went back") {
		t.Errorf("restored: %s", got)
	}
	keepsAndRefuses(t, n, fenced)
	adopted(t, store, n, dir, 2)
	if n.has("b") || !n.has("a") {
		t.Error("after adoption the backup is not what is known")
	}
	if _, err := fenced.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "b", Value: []byte("again")}}}); err != nil {
		t.Error(err)
	}
	n.until(t, "apply b")

	srv.stop(t)
	replaceDir(t, srv.config.Dir, t.TempDir())
	srv.start(t)
	if got := n.until(t, "detached: "); !strings.Contains(got, "no cluster identity") {
		t.Errorf("empty: %s", got)
	}
	keepsAndRefuses(t, n, fenced)
	adopted(t, store, n, dir, 3)
}

func replaceDir(t *testing.T, dir, with string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(with)); err != nil {
		t.Fatal(err)
	}
}

func keepsAndRefuses(t *testing.T, n *node, fenced datastore.Store) {
	t.Helper()
	if !n.has("a") || !n.has("b") {
		t.Error("something was taken away")
	}
	_, err := fenced.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "block", Value: []byte("v")}}})
	if !errors.Is(err, datastore.ErrDetached) {
		t.Errorf("written while detached: %v", err)
	}
}

func adopted(t *testing.T, s datastore.Store, n *node, dir string, generation int64) {
	t.Helper()
	c, err := identity.Adopt(t.Context(), s, dir)
	if err != nil || c.Generation != generation {
		t.Fatalf("%+v, %v", c, err)
	}
	n.until(t, "replace")
}

// putEventually writes a new key once, also where the answer to a commit was lost.
func putEventually(t *testing.T, s datastore.Store, key string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := s.Commit(t.Context(), datastore.Txn{
			If:   []datastore.Condition{{Key: datastore.Prefix + key}},
			Then: []datastore.Op{{Key: datastore.Prefix + key, Value: []byte("v")}},
		})
		if err == nil || errors.Is(err, datastore.ErrExists) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
