package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"netctl/datastore"
)

// The pace of sharing. What comes is written after shareSoon, with what comes meanwhile,
// and not before sharePause after the last time, nor more than shareRate a second since.
// A node that has no right to asks again after shareDenied.
const (
	shareSoon   = 300 * time.Millisecond
	sharePause  = 3 * time.Second
	shareRate   = 1024 // bytes
	shareDenied = 5 * time.Minute
)

// Sharer keeps the last events of all roles of a node in the datastore, for who asks on
// another one; calmly, and with jitter. What happens faster than it writes is on the node
// alone.
type Sharer struct {
	Node, StateDir string
	Store          datastore.Store
	// May says whether the node may write now: the role is in sync, and the node its own.
	May func(context.Context) bool
	Log *slog.Logger

	mu     sync.Mutex
	events []datastore.Event // the last ones
}

// String names the task.
func (s *Sharer) String() string { return "share events" }

// Run shares events until ctx ends. Nothing depends on it: what fails is tried again.
func (s *Sharer) Run(ctx context.Context) error {
	if err := os.MkdirAll(EventsDir(s.StateDir), 0o700); err != nil {
		s.Log.Warn("events are not shared", "error", err)
		return nil
	}
	changed := make(chan struct{}, 1)
	following := make(chan error, 1)
	go func() {
		following <- Follow(ctx, s.StateDir, func(list []datastore.Event) error {
			s.add(list)
			select {
			case changed <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	s.share(ctx, changed, following)
	return nil
}

// share writes after each change, until ctx ends or following does.
func (s *Sharer) share(ctx context.Context, changed chan struct{}, following <-chan error) {
	said := ""
	for {
		select {
		case err := <-following:
			if ctx.Err() == nil {
				s.Log.Warn("events are not shared", "error", errors.Join(err, errors.New("the folder of events is not watched any more")))
				<-ctx.Done()
			}
			return
		case <-changed:
		}
		if !sleep(ctx, shareSoon) {
			continue
		}
		size, err := s.write(ctx)
		pause, level := sharePause+time.Duration(size)*time.Second/shareRate, slog.LevelDebug
		if errors.Is(err, datastore.ErrDenied) {
			pause, level = shareDenied, slog.LevelWarn
		}
		if err != nil {
			if said != err.Error() && ctx.Err() == nil {
				said = err.Error()
				s.Log.Log(ctx, level, "events are not shared yet", "error", err)
			}
			select {
			case changed <- struct{}{}: // again
			default:
			}
		}
		sleep(ctx, time.Duration(float64(pause)*(1+rand.Float64()/2)))
	}
}

// sleep waits; false: ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (s *Sharer) add(list []datastore.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, list...)
	slices.SortStableFunc(s.events, func(a, b datastore.Event) int { return a.Time.Compare(b.Time) })
	s.events = slices.Clone(s.events[max(0, len(s.events)-datastore.SharedEvents):])
}

// errNotYet is that the role is not in sync, or that the name is another host's.
var errNotYet = errors.New("the role is not in sync")

// write writes them, and returns how many bytes that were.
func (s *Sharer) write(ctx context.Context) (int, error) {
	if s.May != nil && !s.May(ctx) {
		return 0, errNotYet
	}
	s.mu.Lock()
	events := s.events
	s.mu.Unlock()
	op, err := datastore.EventsOp(s.Node, events)
	if err == nil {
		_, err = s.Store.Commit(ctx, datastore.Txn{Then: []datastore.Op{op}})
	}
	return len(op.Value), err
}

// FollowAll calls fn with the events that nodes share, the oldest first, and with further
// ones as they come, until ctx ends (nil) or fn fails. With the datastore away it waits:
// lost is told why, once.
func FollowAll(ctx context.Context, store datastore.Store, fn func([]datastore.Event) error, lost func(error)) error {
	seen := seen{}
	away := false
	for {
		list, revision, err := datastore.ListEvents(ctx, store)
		if err == nil {
			away = false
			if err := seen.tell(list, fn); err != nil {
				return err
			}
			var failed error
			err = store.Watch(ctx, []string{datastore.EventsPrefix}, revision, func(b datastore.Batch) error {
				for _, e := range b.Events {
					if failed = seen.tell(datastore.DecodeEvents(e), fn); failed != nil {
						return failed
					}
				}
				return nil
			})
			if failed != nil {
				return failed
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		if !away && err != nil {
			away = true
			lost(err)
		}
		sleep(ctx, time.Second)
	}
}
