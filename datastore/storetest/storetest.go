// Package storetest owns the conformance suite of datastore.Store: whatever
// passes it may stand in for whatever else does; and what tests of several packages
// make of the model's language.
//
// It never looks behind the interface.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/datastore"
)

const root = datastore.Prefix + "suite/"

// patience is how long the suite waits for what must happen.
const patience = 20 * time.Second

// Run runs the suite. Each call of open returns a store without keys under
// datastore.Prefix; the suite closes it.
func Run(t *testing.T, open func() datastore.Store) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, context.Context, datastore.Store)
	}{
		{"read and write", readWrite},
		{"conditions", conditions},
		{"transaction is whole", whole},
		{"limits", limits},
		{"list", list},
		{"list is of one revision", listConsistent},
		{"watch", watch},
		{"watch from the past", watchPast},
		{"watch several prefixes", watchSeveral},
		{"list several prefixes", listSeveral},
		{"watch keeps a transaction together", watchTxn},
		{"watch ends", watchEnds},
		{"concurrent writers", concurrent},
		{"identity", identity},
		{"ended context", ended},
		{"closed", closed},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open()
			t.Cleanup(func() { s.Close() })
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			c.test(t, ctx, s)
		})
	}
}

func put(t *testing.T, ctx context.Context, s datastore.Store, key, value string) int64 {
	t.Helper()
	return commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte(value)}}})
}

func commit(t *testing.T, ctx context.Context, s datastore.Store, txn datastore.Txn) int64 {
	t.Helper()
	rev, err := s.Commit(ctx, txn)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func want(t *testing.T, err, sentinel error, mention string) {
	t.Helper()
	if !errors.Is(err, sentinel) || !strings.Contains(err.Error(), mention) {
		t.Fatalf("error %v, want %v that mentions %q", err, sentinel, mention)
	}
}

func readWrite(t *testing.T, ctx context.Context, s datastore.Store) {
	_, err := s.Get(ctx, root+"a")
	want(t, err, datastore.ErrNotFound, root+"a")
	first := put(t, ctx, s, root+"a", "one")
	second := put(t, ctx, s, root+"a", "two")
	if second <= first {
		t.Fatalf("revision %d after %d", second, first)
	}
	e, err := s.Get(ctx, root+"a")
	if err != nil || e.Key != root+"a" || string(e.Value) != "two" || e.Revision != second {
		t.Fatalf("got %+v, %v", e, err)
	}
	e.Value[0] = 'X'
	if again, _ := s.Get(ctx, root+"a"); string(again.Value) != "two" {
		t.Fatalf("the caller's copy changed the store: %q", again.Value)
	}
	commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "empty", Value: []byte{}}}})
	if e, err := s.Get(ctx, root+"empty"); err != nil || e.Value == nil || len(e.Value) != 0 {
		t.Fatalf("empty value: %+v, %v", e, err)
	}
	gone := commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "a"}}})
	_, err = s.Get(ctx, root+"a")
	want(t, err, datastore.ErrNotFound, root+"a")
	if again := commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "a"}}}); again != gone {
		t.Fatalf("deleting an absent key made revision %d of %d", again, gone)
	}
}

func conditions(t *testing.T, ctx context.Context, s datastore.Store) {
	a, b := root+"a", root+"b"
	rev := commit(t, ctx, s, datastore.Txn{
		If:   []datastore.Condition{{Key: a}, {Key: b}},
		Then: []datastore.Op{{Key: a, Value: []byte("1")}},
	})
	_, err := s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: a}}, Then: []datastore.Op{{Key: a, Value: []byte("2")}}})
	want(t, err, datastore.ErrExists, a)
	_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: a, Revision: rev + 7}}, Then: []datastore.Op{{Key: a}}})
	want(t, err, datastore.ErrConflict, a)
	_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: b, Revision: rev}}, Then: []datastore.Op{{Key: b, Value: []byte("2")}}})
	want(t, err, datastore.ErrConflict, b)
	// Not the first condition but the one that fails is named.
	_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: a, Revision: rev}, {Key: b, Revision: 3}}})
	want(t, err, datastore.ErrConflict, b)
	// A key of the conditions need not be one of the operations.
	next := commit(t, ctx, s, datastore.Txn{If: []datastore.Condition{{Key: a, Revision: rev}}, Then: []datastore.Op{{Key: b, Value: []byte("3")}}})
	if e, _ := s.Get(ctx, a); e.Revision != rev {
		t.Fatalf("%s changed at %d", a, e.Revision)
	}
	commit(t, ctx, s, datastore.Txn{If: []datastore.Condition{{Key: a, Revision: rev}, {Key: b, Revision: next}}, Then: []datastore.Op{{Key: a}, {Key: b}}})
	// The same key again after its deletion is a new key.
	commit(t, ctx, s, datastore.Txn{If: []datastore.Condition{{Key: a}}, Then: []datastore.Op{{Key: a, Value: []byte("4")}}})
}

func whole(t *testing.T, ctx context.Context, s datastore.Store) {
	rev := put(t, ctx, s, root+"a", "1")
	_, err := s.Commit(ctx, datastore.Txn{
		If:   []datastore.Condition{{Key: root + "a", Revision: rev}, {Key: root + "x", Revision: rev}},
		Then: []datastore.Op{{Key: root + "a", Value: []byte("2")}, {Key: root + "b", Value: []byte("2")}},
	})
	want(t, err, datastore.ErrConflict, root+"x")
	snap, err := s.List(ctx, root)
	if err != nil || len(snap.Entries) != 1 || string(snap.Entries[0].Value) != "1" || snap.Revision != rev {
		t.Fatalf("something was applied: %+v, %v", snap, err)
	}
	rev = commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "a", Value: []byte("2")}, {Key: root + "b", Value: []byte("2")}}})
	snap, err = s.List(ctx, root)
	if err != nil || len(snap.Entries) != 2 || snap.Entries[0].Revision != rev || snap.Entries[1].Revision != rev {
		t.Fatalf("not one revision: %+v, %v", snap, err)
	}
}

func limits(t *testing.T, ctx context.Context, s datastore.Store) {
	var txn datastore.Txn
	for i := range datastore.MaxTxnOps {
		key := fmt.Sprintf("%sn%03d", root, i)
		txn.If = append(txn.If, datastore.Condition{Key: key})
		txn.Then = append(txn.Then, datastore.Op{Key: key, Value: []byte("v")})
	}
	commit(t, ctx, s, txn)
	_, err := s.Commit(ctx, txn)
	want(t, err, datastore.ErrExists, root+"n000")
	txn.Then = append(txn.Then, datastore.Op{Key: root + "more", Value: []byte("v")})
	_, err = s.Commit(ctx, txn)
	want(t, err, datastore.ErrInvalid, "")
	_, err = s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: root + "d", Value: []byte("v")}, {Key: root + "d"}}})
	want(t, err, datastore.ErrInvalid, root+"d")
	_, err = s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Value: []byte("v")}}})
	want(t, err, datastore.ErrInvalid, "")
}

func list(t *testing.T, ctx context.Context, s datastore.Store) {
	snap, err := s.List(ctx, root)
	if err != nil || len(snap.Entries) != 0 || snap.Revision <= 0 {
		t.Fatalf("empty: %+v, %v", snap, err)
	}
	put(t, ctx, s, root+"b/2", "2")
	put(t, ctx, s, root+"b/20", "20")
	put(t, ctx, s, root+"b/10", "10")
	put(t, ctx, s, root+"a", "a")
	rev := put(t, ctx, s, root+"c", "c")
	snap, err = s.List(ctx, root+"b/")
	if err != nil || snap.Revision != rev || keys(snap.Entries) != "b/10 b/2 b/20" {
		t.Fatalf("got %s at %d, %v", keys(snap.Entries), snap.Revision, err)
	}
	if snap, _ = s.List(ctx, root); keys(snap.Entries) != "a b/10 b/2 b/20 c" {
		t.Fatalf("got %s", keys(snap.Entries))
	}
	if snap, _ = s.List(ctx, root+"b/2", root+"c", root+"none"); keys(snap.Entries) != "b/2 c" || snap.Revision != rev {
		t.Fatalf("two keys: got %s at %d", keys(snap.Entries), snap.Revision)
	}
	if snap, _ = s.List(ctx, root+"c"); keys(snap.Entries) != "c" {
		t.Fatalf("a whole key is a prefix of itself: got %s", keys(snap.Entries))
	}
}

// listConsistent lists many entries while every one of them is rewritten by
// transactions that keep all of them equal.
func listConsistent(t *testing.T, ctx context.Context, s datastore.Store) {
	const groups, lists = 25, 15
	write := func(n int) error {
		// Each group of 100 is one transaction; the last group carries a mark.
		for g := range groups {
			var txn datastore.Txn
			for i := range datastore.MaxTxnOps {
				txn.Then = append(txn.Then, datastore.Op{Key: fmt.Sprintf("%s%02d/%03d", root, i, g), Value: fmt.Appendf(nil, "%d", n)})
			}
			if _, err := s.Commit(ctx, txn); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(0); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := write(n); err != nil {
				done <- err
				return
			}
		}
	}()
	for range lists {
		snap, err := s.List(ctx, root)
		if err != nil || len(snap.Entries) != groups*datastore.MaxTxnOps {
			t.Fatalf("%d entries, %v", len(snap.Entries), err)
		}
		values := map[string]string{} // by group
		for _, e := range snap.Entries {
			g := e.Key[len(e.Key)-3:]
			if v, ok := values[g]; ok && v != string(e.Value) {
				t.Fatalf("group %s holds %s and %s", g, v, e.Value)
			}
			values[g] = string(e.Value)
			if e.Revision > snap.Revision {
				t.Fatalf("%s of revision %d in a list of revision %d", e.Key, e.Revision, snap.Revision)
			}
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func concurrent(t *testing.T, ctx context.Context, s datastore.Store) {
	const writers, each = 4, 10
	key := root + "counter"
	put(t, ctx, s, key, "")
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				e, err := s.Get(ctx, key)
				if err != nil {
					t.Error(err)
					return
				}
				_, err = s.Commit(ctx, datastore.Txn{
					If:   []datastore.Condition{{Key: key, Revision: e.Revision}},
					Then: []datastore.Op{{Key: key, Value: append(slices.Clone(e.Value), 'x')}},
				})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, datastore.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if e, err := s.Get(ctx, key); err != nil || len(e.Value) != writers*each {
		t.Fatalf("%d updates of %d, %v", len(e.Value), writers*each, err)
	}
}

func identity(t *testing.T, ctx context.Context, s datastore.Store) {
	id, err := s.ID(ctx)
	if err != nil || id == 0 {
		t.Fatalf("identity %d, %v", id, err)
	}
	put(t, ctx, s, root+"a", "1")
	if again, err := s.ID(ctx); err != nil || again != id {
		t.Fatalf("identity %d, then %d, %v", id, again, err)
	}
}

func ended(t *testing.T, ctx context.Context, s datastore.Store) {
	rev := put(t, ctx, s, root+"a", "1")
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, get := s.Get(ctx, root+"a")
	_, list := s.List(ctx, root)
	_, write := s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: root + "a"}}})
	_, id := s.ID(ctx)
	watch := s.Watch(ctx, []string{root}, rev, func(datastore.Batch) error { return nil })
	for what, err := range map[string]error{"get": get, "list": list, "commit": write, "id": id, "watch": watch} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want %v", what, err, context.Canceled)
		}
	}
}

func closed(t *testing.T, ctx context.Context, s datastore.Store) {
	rev := put(t, ctx, s, root+"a", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, get := s.Get(ctx, root+"a")
	_, list := s.List(ctx, root)
	_, write := s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: root + "a"}}})
	watch := s.Watch(ctx, []string{root}, rev, func(datastore.Batch) error { return nil })
	for what, err := range map[string]error{"get": get, "list": list, "commit": write, "watch": watch} {
		if !errors.Is(err, datastore.ErrUnavailable) {
			t.Errorf("%s: %v, want %v", what, err, datastore.ErrUnavailable)
		}
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func keys(entries []datastore.Entry) string {
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimPrefix(e.Key, root))
	}
	return strings.Join(out, " ")
}
