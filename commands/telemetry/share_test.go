package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
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

// deniedCommits lets nobody write until granted.
type deniedCommits struct {
	*countedCommits
	granted atomic.Bool
}

func (s *deniedCommits) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if revision, err := s.countedCommits.Commit(ctx, t); s.granted.Load() {
		return revision, err
	}
	return 0, fmt.Errorf("put: %w to user n1", datastore.ErrDenied)
}

// TestSharingDenied: who has no right to write events asks a few times an hour, says so
// once, and shares what it has when it is let.
func TestSharingDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &deniedCommits{countedCommits: &countedCommits{Store: memory.New()}}
		var said bytes.Buffer
		s := &Sharer{Node: "n1", Store: store, Log: slog.New(slog.NewTextHandler(&said, nil))}
		s.add([]datastore.Event{{Node: "n1", Kind: datastore.EventSession, Text: "up"}})
		ctx, cancel := context.WithCancel(t.Context())
		changed, following := make(chan struct{}, 1), make(chan error, 1)
		changed <- struct{}{}
		go s.share(ctx, changed, following)
		defer func() {
			cancel()
			following <- nil
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := store.commits.Load(); n < 6 || n > 13 {
			t.Errorf("%d writes in an hour", n)
		}
		if n := strings.Count(said.String(), "level=WARN"); n != 1 || !strings.Contains(said.String(), "not allowed") {
			t.Errorf("said:\n%s", said.String())
		}
		store.granted.Store(true)
		before := store.commits.Load()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := store.commits.Load() - before; n != 1 {
			t.Errorf("%d writes once it may", n)
		}
	})
}
