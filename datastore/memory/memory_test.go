package memory_test

import (
	"context"
	"errors"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/datastore/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func() datastore.Store { return memory.New() })
}

func TestFaults(t *testing.T) {
	s, ctx, key := memory.New(), t.Context(), datastore.Prefix+"a"
	write := func() int64 {
		rev, err := s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte("v")}}})
		if err != nil {
			t.Fatal(err)
		}
		return rev
	}
	start := write()
	middle := write()
	last := write()
	s.Compact(middle)
	ignore := func(datastore.Batch) error { return nil }
	if err := s.Watch(ctx, []string{key}, start, ignore); !errors.Is(err, datastore.ErrCompacted) {
		t.Errorf("watch of a compacted revision: %v", err)
	}
	for _, f := range []struct {
		what  string
		fault func()
	}{
		{"away", func() { s.Away("cable cut") }},
		{"restored", func() { s.Restore(datastore.Snapshot{Revision: 1}) }},
	} {
		ended := make(chan error, 1)
		running := make(chan struct{})
		from := last - 1
		go func() {
			ended <- s.Watch(context.Background(), []string{key}, from, func(datastore.Batch) error { close(running); return nil })
		}()
		<-running
		f.fault()
		if err := <-ended; !errors.Is(err, datastore.ErrUnavailable) {
			t.Errorf("%s: watch ended with %v", f.what, err)
		}
		s.Back()
		last = write()
	}
	if id, err := s.ID(ctx); err != nil || id != 2 {
		t.Errorf("identity %d, %v after one restore", id, err)
	}
}
