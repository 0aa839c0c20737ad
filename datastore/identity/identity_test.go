package identity_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/identity"
	"netctl/datastore/memory"
)

const patience = 20 * time.Second

func open(t *testing.T, dir string, owner bool) *identity.File {
	t.Helper()
	f, err := identity.Open(dir, owner, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// check is what Follow does before it replaces.
func check(t *testing.T, f *identity.File, s datastore.Store) error {
	t.Helper()
	snap, err := s.List(t.Context(), datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Check(t.Context(), s, snap); err != nil {
		return err
	}
	f.Progress(snap.Revision)
	return nil
}

func detached(t *testing.T, err error, mention string) {
	t.Helper()
	if !errors.Is(err, datastore.ErrDetached) || !strings.Contains(err.Error(), mention) {
		t.Fatalf("got %v, want detached and %q", err, mention)
	}
}

func stored(t *testing.T, s datastore.Store) datastore.Cluster {
	t.Helper()
	e, err := s.Get(t.Context(), datastore.ClusterKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := datastore.DecodeCluster(e.Value)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func onDisk(t *testing.T, dir string) datastore.Identity {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, identity.FileName))
	if err != nil {
		t.Fatal(err)
	}
	var i datastore.Identity
	if err := json.Unmarshal(text, &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func put(t *testing.T, s datastore.Store, key string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + key, Value: []byte("v")}}})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestFirstNodes(t *testing.T) {
	s, one, two := memory.New(), t.TempDir(), t.TempDir()
	early := open(t, one, false)
	detached(t, check(t, early, s), "no cluster identity yet")
	agent := open(t, one, true)
	if err := check(t, agent, s); err != nil {
		t.Fatal(err)
	}
	c := stored(t, s)
	if c.Generation != 1 || onDisk(t, one).UUID != c.UUID {
		t.Fatalf("%+v, %+v", c, onDisk(t, one))
	}
	if err := check(t, early, s); err != nil {
		t.Fatal(err)
	}
	second := open(t, two, true)
	if err := check(t, second, s); err != nil {
		t.Fatal(err)
	}
	if onDisk(t, two).UUID != c.UUID || stored(t, s) != c {
		t.Fatal("the second node made its own cluster")
	}
	if st, err := os.Stat(filepath.Join(two, identity.FileName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestReaderNeverWrites(t *testing.T) {
	s, dir := memory.New(), t.TempDir()
	if err := check(t, open(t, t.TempDir(), true), s); err != nil {
		t.Fatal(err)
	}
	if err := check(t, open(t, dir, false), s); err != nil {
		t.Fatal(err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("reader wrote %v", entries)
	}
}

// cluster is a store with two nodes and a speaker, all attached.
type cluster struct {
	store   *memory.Store
	dirs    [2]string
	agents  [2]*identity.File
	speaker *identity.File // on the first node
	backup  datastore.Snapshot
	uuid    string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{store: memory.New(), dirs: [2]string{t.TempDir(), t.TempDir()}}
	for i, dir := range c.dirs {
		c.agents[i] = open(t, dir, true)
		if err := check(t, c.agents[i], c.store); err != nil {
			t.Fatal(err)
		}
	}
	c.speaker = open(t, c.dirs[0], false)
	var err error
	if c.backup, err = c.store.List(t.Context(), datastore.Prefix); err != nil {
		t.Fatal(err)
	}
	put(t, c.store, "a")
	for _, f := range c.all() {
		if err := check(t, f, c.store); err != nil {
			t.Fatal(err)
		}
	}
	c.uuid = stored(t, c.store).UUID
	return c
}

func (c *cluster) all() []*identity.File {
	return []*identity.File{c.agents[0], c.agents[1], c.speaker}
}

func (c *cluster) wantDetached(t *testing.T, mention string) {
	t.Helper()
	for _, f := range c.all() {
		detached(t, check(t, f, c.store), mention)
	}
	// A role that starts now judges by the file.
	detached(t, check(t, open(t, c.dirs[0], false), c.store), mention)
	detached(t, check(t, open(t, c.dirs[1], true), c.store), mention)
}

func (c *cluster) wantAttached(t *testing.T) {
	t.Helper()
	for _, f := range append(c.all(), open(t, c.dirs[0], false), open(t, c.dirs[1], true)) {
		if err := check(t, f, c.store); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEmptyStoreIsAdopted(t *testing.T) {
	c := newCluster(t)
	c.store.Restore(datastore.Snapshot{Revision: 1})
	c.wantDetached(t, "no cluster identity")
	got, err := identity.Adopt(t.Context(), c.store, c.dirs[1])
	if err != nil || got.UUID != c.uuid || got.Generation != 2 || stored(t, c.store) != got {
		t.Fatalf("%+v, %v", got, err)
	}
	c.wantAttached(t)
	if i := onDisk(t, c.dirs[0]); i.Generation != 2 || i.Store != 2 {
		t.Errorf("on disk: %+v", i)
	}
}

func TestRestoredStoreIsAdopted(t *testing.T) {
	c := newCluster(t)
	c.store.Restore(c.backup)
	c.wantDetached(t, "restored")
	if _, err := identity.Adopt(t.Context(), c.store, c.dirs[0]); err != nil {
		t.Fatal(err)
	}
	c.wantAttached(t)
	// An older backup, from before that adoption.
	c.store.Restore(c.backup)
	c.wantDetached(t, "generation went back")
	got, err := identity.Adopt(t.Context(), c.store, c.dirs[0])
	if err != nil || got.Generation != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	c.wantAttached(t)
}

func TestAnotherClustersStore(t *testing.T) {
	c, strangers := newCluster(t), newCluster(t)
	for range 4 { // theirs is of a higher generation
		if _, err := identity.Adopt(t.Context(), strangers.store, strangers.dirs[0]); err != nil {
			t.Fatal(err)
		}
	}
	strangers.wantAttached(t)
	theirs := strangers.store
	c.store = theirs
	c.wantDetached(t, "holds cluster "+strangers.uuid)
	got, err := identity.Adopt(t.Context(), theirs, c.dirs[0])
	if err != nil || got.UUID != c.uuid || got.Generation != 6 {
		t.Fatalf("%+v, %v", got, err)
	}
	c.wantAttached(t)
	// The others' nodes need their own: here they join.
	strangers.wantDetached(t, "holds cluster "+c.uuid)
	if _, err := identity.Join(t.Context(), theirs, strangers.dirs[0]); err != nil {
		t.Fatal(err)
	}
	if err := check(t, strangers.agents[0], theirs); err != nil {
		t.Error(err)
	}
	if err := check(t, strangers.speaker, theirs); err != nil {
		t.Error(err)
	}
	detached(t, check(t, strangers.agents[1], theirs), "holds cluster")
	c.wantAttached(t)
}

func TestAdoptNeedsAFile(t *testing.T) {
	c := newCluster(t)
	if _, err := identity.Adopt(t.Context(), c.store, t.TempDir()); !errors.Is(err, datastore.ErrNotFound) || !strings.Contains(err.Error(), identity.FileName) {
		t.Errorf("%v", err)
	}
	if _, err := identity.Join(t.Context(), memory.New(), c.dirs[0]); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestDamagedFile(t *testing.T) {
	for _, text := range []string{"", "{", `{"uuid":"a"}`, "null", `{"uuid":"a","generation":1,"store":1,"revision":1,"store":2}`} {
		c := newCluster(t)
		path := filepath.Join(c.dirs[0], identity.FileName)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		detached(t, check(t, open(t, c.dirs[0], true), c.store), path)
	}
}

// TestOwnerIsAhead: a reader's list may be older than what the owner wrote.
func TestOwnerIsAhead(t *testing.T) {
	c := newCluster(t)
	old, err := c.store.List(t.Context(), datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	put(t, c.store, "b")
	restarted := open(t, c.dirs[0], true) // writes at once
	if err := check(t, restarted, c.store); err != nil {
		t.Fatal(err)
	}
	if onDisk(t, c.dirs[0]).Revision <= old.Revision {
		t.Fatal("the file is not ahead")
	}
	if err := open(t, c.dirs[0], false).Check(t.Context(), c.store, old); err != nil {
		t.Error(err)
	}
}

func TestRevisionIsWrittenNowAndThen(t *testing.T) {
	c := newCluster(t)
	var last int64
	begin, seen := time.Now(), map[int64]bool{}
	for time.Since(begin) < 1500*time.Millisecond {
		last = put(t, c.store, "a")
		c.agents[0].Progress(last)
		seen[onDisk(t, c.dirs[0]).Revision] = true
	}
	if len(seen) > 4 {
		t.Errorf("%d states of the file in %v", len(seen), time.Since(begin))
	}
	for deadline := time.Now().Add(patience); onDisk(t, c.dirs[0]).Revision != last; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("on disk %+v, last %d", onDisk(t, c.dirs[0]), last)
		}
	}
	c.agents[1].Progress(last)
	c.store.Restore(datastore.Snapshot{Revision: 1})
	detached(t, check(t, c.agents[1], c.store), "")
	c.agents[1].Progress(last + 5) // says nothing while detached
	if i, err := c.agents[1].Identity(); i.Revision > last || !errors.Is(err, datastore.ErrDetached) {
		t.Errorf("%+v, %v", i, err)
	}
}

func TestFence(t *testing.T) {
	c := newCluster(t)
	txn := datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "x", Value: []byte("v")}}}
	fresh := open(t, t.TempDir(), true)
	if _, err := fresh.Fence(c.store).Commit(t.Context(), txn); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("before the first check: %v", err)
	}
	s := c.agents[0].Fence(c.store)
	if _, err := s.Commit(t.Context(), txn); err != nil {
		t.Fatal(err)
	}
	stale := datastore.Txn{If: []datastore.Condition{{Key: datastore.Prefix + "x", Revision: 1}}}
	if _, err := s.Commit(t.Context(), stale); !errors.Is(err, datastore.ErrConflict) || !strings.Contains(err.Error(), "x") {
		t.Errorf("an ordinary conflict: %v", err)
	}
	// The store is another one, and nobody has noticed yet.
	c.store.Restore(datastore.Snapshot{Revision: 1})
	if _, err := s.Commit(t.Context(), txn); !errors.Is(err, datastore.ErrDetached) {
		t.Errorf("into an empty store: %v", err)
	}
	if _, err := c.store.Get(t.Context(), datastore.Prefix+"x"); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("it was written: %v", err)
	}
	detached(t, check(t, c.agents[0], c.store), "")
	c.store.Away("") // it does not even ask
	if _, err := s.Commit(t.Context(), txn); !errors.Is(err, datastore.ErrDetached) {
		t.Errorf("detached: %v", err)
	}
	c.store.Back()
	if _, err := identity.Adopt(context.Background(), c.store, c.dirs[0]); err != nil {
		t.Fatal(err)
	}
	c.wantAttached(t)
	if _, err := s.Commit(t.Context(), txn); err != nil {
		t.Error(err)
	}
}

// TestRestore: the file comes back when it is removed while the node is attached, and
// not after the store was refused: then that is how a person lets it in.
func TestRestore(t *testing.T) {
	dir, s := t.TempDir(), memory.New()
	f := open(t, dir, true)
	if err := check(t, f, s); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, identity.FileName)
	before, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.Remove(path), f.Restore())
	}
	if after, e := os.ReadFile(path); err != nil || e != nil || string(after) != string(before) {
		t.Errorf("%v, %v: %s, was %s", err, e, after, before)
	}
	if err := errors.Join(os.WriteFile(path, []byte("{"), 0o600), f.Restore()); err != nil { // in place
		t.Error(err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("cut off: %v: %s, was %s", err, after, before)
	}
	if err := open(t, dir, false).Restore(); err != nil {
		t.Error(err)
	}
	detached(t, check(t, f, memory.New()), "no cluster identity")
	if err := errors.Join(os.Remove(path), f.Restore()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("came back though the store is refused: %v", err)
	}
}
