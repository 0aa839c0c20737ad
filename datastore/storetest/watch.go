package storetest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/datastore"
)

// recorder collects what a watch says.
type recorder struct {
	mu      sync.Mutex
	batches []datastore.Batch
	cancel  context.CancelFunc
	ended   chan error
	more    chan struct{}
}

func record(ctx context.Context, s datastore.Store, prefix string, after int64) *recorder {
	ctx, cancel := context.WithCancel(ctx)
	r := &recorder{cancel: cancel, ended: make(chan error, 1), more: make(chan struct{}, 1)}
	go func() {
		r.ended <- s.Watch(ctx, strings.Fields(prefix), after, func(b datastore.Batch) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.batches = append(r.batches, b)
			select {
			case r.more <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	return r
}

// wait returns the batches with events once there are n events.
func (r *recorder) wait(t *testing.T, n int) []datastore.Batch {
	t.Helper()
	deadline := time.After(patience)
	for {
		var got []datastore.Batch
		events := 0
		r.mu.Lock()
		for _, b := range r.batches {
			if len(b.Events) > 0 {
				got = append(got, b)
				events += len(b.Events)
			}
		}
		r.mu.Unlock()
		if events >= n {
			return got
		}
		select {
		case <-r.more:
		case err := <-r.ended:
			t.Fatalf("watch ended after %d of %d events: %v", events, n, err)
		case <-deadline:
			t.Fatalf("%d of %d events", events, n)
		}
	}
}

func (r *recorder) stop(t *testing.T) error {
	t.Helper()
	r.cancel()
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		t.Fatal("watch does not end")
		return nil
	}
}

func events(batches []datastore.Batch) []datastore.Entry {
	var out []datastore.Entry
	for _, b := range batches {
		out = append(out, b.Events...)
	}
	return out
}

func watch(t *testing.T, ctx context.Context, s datastore.Store) {
	start := put(t, ctx, s, root+"before", "0")
	r := record(ctx, s, root+"w/", start)
	r1 := put(t, ctx, s, root+"w/a", "1")
	put(t, ctx, s, root+"other", "x")
	r2 := put(t, ctx, s, root+"w/a", "2")
	r3 := commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "w/a"}}})
	r4 := commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "w/e", Value: []byte{}}}})
	got := events(r.wait(t, 4))
	wanted := []datastore.Entry{
		{Key: root + "w/a", Value: []byte("1"), Revision: r1}, {Key: root + "w/a", Value: []byte("2"), Revision: r2},
		{Key: root + "w/a", Revision: r3}, {Key: root + "w/e", Value: []byte{}, Revision: r4},
	}
	if !reflect.DeepEqual(got, wanted) {
		t.Fatalf("got %+v", got)
	}
	if err := r.stop(t); !errors.Is(err, context.Canceled) {
		t.Fatalf("ended with %v", err)
	}
}

// watchSeveral watches two prefixes and resumes: nothing is left out, and nothing
// under another prefix is told.
func watchSeveral(t *testing.T, ctx context.Context, s datastore.Store) {
	start := put(t, ctx, s, root+"before", "0")
	both := root + "v/ " + root + "w/"
	r := record(ctx, s, both, start)
	put(t, ctx, s, root+"v/a", "1")
	put(t, ctx, s, root+"other", "x")
	put(t, ctx, s, root+"w/a", "2")
	last := commit(t, ctx, s, datastore.Txn{Then: []datastore.Op{{Key: root + "w/b", Value: []byte("3")}, {Key: root + "v/a"}}})
	batches := r.wait(t, 4)
	got := map[string]string{}
	for _, b := range batches {
		for _, e := range b.Events {
			got[e.Key] += string(e.Value) + ";"
		}
		if b.Revision > last {
			t.Errorf("complete up to %d, which nobody wrote", b.Revision)
		}
	}
	if want := map[string]string{root + "v/a": "1;;", root + "w/a": "2;", root + "w/b": "3;"}; !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	_ = r.stop(t)
	// Resumed where everything is complete, it may tell again but leaves nothing out.
	put(t, ctx, s, root+"v/c", "4")
	r = record(ctx, s, both, batches[len(batches)-1].Revision)
	for n := 1; ; n++ {
		if slices.ContainsFunc(events(r.wait(t, n)), func(e datastore.Entry) bool { return e.Key == root+"v/c" }) {
			break
		}
	}
	_ = r.stop(t)
}

func listSeveral(t *testing.T, ctx context.Context, s datastore.Store) {
	for _, k := range []string{"b/1", "a/1", "c/1", "a/2"} {
		put(t, ctx, s, root+k, k)
	}
	snap, err := s.List(ctx, root+"c/", root+"a/")
	if err != nil {
		t.Fatal(err)
	}
	if got := keys(snap.Entries); got != "a/1 a/2 c/1" {
		t.Errorf("listed %q", got)
	}
}

func watchPast(t *testing.T, ctx context.Context, s datastore.Store) {
	start := put(t, ctx, s, root+"a", "0")
	for i := range 50 {
		put(t, ctx, s, root+"a", fmt.Sprint(i+1))
	}
	r := record(ctx, s, root, start)
	batches := r.wait(t, 50)
	last := start
	for i, e := range events(batches) {
		if string(e.Value) != fmt.Sprint(i+1) || e.Revision <= last {
			t.Fatalf("event %d is %s at %d after %d", i, e.Value, e.Revision, last)
		}
		last = e.Revision
	}
	for _, b := range batches {
		if b.Revision < b.Events[len(b.Events)-1].Revision {
			t.Fatalf("batch of revision %d holds revision %d", b.Revision, b.Events[len(b.Events)-1].Revision)
		}
	}
	_ = r.stop(t)
	// A batch's revision is where the next watch starts: nothing twice, nothing left out.
	put(t, ctx, s, root+"a", "next")
	r = record(ctx, s, root, batches[len(batches)-1].Revision)
	if got := events(r.wait(t, 1)); len(got) != 1 || string(got[0].Value) != "next" {
		t.Fatalf("got %+v", got)
	}
	_ = r.stop(t)
}

// watchTxn writes transactions whose events are larger than one message of etcd.
func watchTxn(t *testing.T, ctx context.Context, s datastore.Store) {
	start := put(t, ctx, s, root+"a", "0")
	value := strings.Repeat("v", 12<<10)
	const txns = 6
	for range txns {
		var txn datastore.Txn
		for i := range datastore.MaxTxnOps {
			txn.Then = append(txn.Then, datastore.Op{Key: fmt.Sprintf("%sbig/%03d", root, i), Value: []byte(value)})
		}
		commit(t, ctx, s, txn)
	}
	r := record(ctx, s, root, start)
	seen := map[int64]int{} // batch by revision
	for i, b := range r.wait(t, txns*datastore.MaxTxnOps) {
		for _, e := range b.Events {
			if in, ok := seen[e.Revision]; ok && in != i {
				t.Fatalf("revision %d is in batches %d and %d", e.Revision, in, i)
			}
			seen[e.Revision] = i
		}
	}
	if len(seen) != txns {
		t.Fatalf("%d revisions of %d", len(seen), txns)
	}
	_ = r.stop(t)
}

func watchEnds(t *testing.T, ctx context.Context, s datastore.Store) {
	start := put(t, ctx, s, root+"a", "0")
	enough := errors.New("enough")
	put(t, ctx, s, root+"a", "1")
	if err := s.Watch(ctx, []string{root}, start, func(datastore.Batch) error { return enough }); !errors.Is(err, enough) {
		t.Fatalf("ended with %v", err)
	}
	r := record(ctx, s, root, start)
	r.wait(t, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-r.ended:
		want(t, err, datastore.ErrUnavailable, "")
	case <-time.After(patience):
		t.Fatal("watch survives Close")
	}
}
