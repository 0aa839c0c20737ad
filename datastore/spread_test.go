package datastore_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// slow is a store whose listings take a while; it counts those at a time.
type slow struct {
	*memory.Store
	now, most, made atomic.Int64
}

const listingTakes = 50 * time.Millisecond

func (s *slow) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	if len(prefixes) > 1 {
		s.made.Add(1)
		if n := s.now.Add(1); n > s.most.Load() {
			s.most.Store(n)
		}
		time.Sleep(listingTakes)
		s.now.Add(-1)
	}
	return s.Store.List(ctx, prefixes...)
}

// TestListingsAreSpread: what makes every follower of a large cluster list again
// makes them list a few at a time, and no later than if they stood in line.
func TestListingsAreSpread(t *testing.T) {
	const followers = 400
	synctest.Test(t, func(t *testing.T) {
		s := &slow{Store: memory.New()}
		for i := range followers {
			write(t, s, fmt.Sprint("nodes/n", i, "={}"))
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range followers {
			go func() { _ = datastore.Follow(ctx, s, []datastore.Kind{datastore.KindNode}, nil, newModel()) }()
		}
		time.Sleep(listingTakes + time.Millisecond)
		synctest.Wait()
		if s.made.Load() != followers || s.now.Load() != 0 {
			t.Fatalf("%d of %d listed at the start", s.made.Load(), followers)
		}
		s.made.Store(0)
		s.most.Store(0)
		s.Break()
		s.Compact(write(t, s, "nodes/more={}"))
		time.Sleep(followers*listingTakes + 3*time.Second)
		synctest.Wait()
		if s.made.Load() != followers {
			t.Errorf("%d of %d listed again in the time of one after the other", s.made.Load(), followers)
		}
		if s.most.Load() > 12 {
			t.Errorf("%d listed at a time", s.most.Load())
		}
		cancel()
		synctest.Wait()
	})
}
