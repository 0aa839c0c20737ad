package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// countedCommits counts writes.
type countedCommits struct {
	*memory.Store
	commits atomic.Int32
}

func (s *countedCommits) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	s.commits.Add(1)
	return s.Store.Commit(ctx, t)
}

// TestEventsAreShared: what roles of a node say is told to who follows all nodes, once and in
// its order, from the first to the last; a burst costs a few writes, and a role that may not
// write writes nothing.
func TestEventsAreShared(t *testing.T) {
	store := &countedCommits{Store: memory.New()}
	g := newRig(t.TempDir(), slog.LevelInfo)
	quiet := slog.New(slog.DiscardHandler)
	var may atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	for _, node := range []string{"n1", "n2"} { // n2 has the folder of n1, and says nothing of it
		s := &Sharer{Node: node, StateDir: g.dir, Store: store, Log: quiet, May: func(context.Context) bool { return node == "n1" && may.Load() }}
		go func() { ended <- s.Run(ctx) }()
	}
	told := make(chan datastore.Event, 1000)
	go func() {
		ended <- FollowAll(ctx, store, func(list []datastore.Event) error {
			for _, e := range list {
				told <- e
			}
			return nil
		}, func(err error) { t.Error(err) })
	}()
	for i := range 40 {
		g.log.Info(fmt.Sprint("event ", i), datastore.EventSession.Mark())
	}
	g.flush()
	if n := store.commits.Load(); n != 0 {
		t.Errorf("%d writes of a role that may not", n)
	}
	may.Store(true)
	for i := range 40 {
		select {
		case e := <-told:
			if e.Text != fmt.Sprint("event ", i) || e.Node != "n1" {
				t.Fatalf("%d: %+v", i, e)
			}
		case <-time.After(time.Minute):
			t.Fatal("not told of ", i)
		}
	}
	if n := store.commits.Load(); n > 3 {
		t.Errorf("%d writes of 40 events", n)
	}
	cancel()
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if len(told) != 0 {
		t.Errorf("told again: %+v", <-told)
	}
	// Who prints them may fail.
	broken := errors.New("broken pipe")
	if err := FollowAll(t.Context(), store, func([]datastore.Event) error { return broken }, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}
