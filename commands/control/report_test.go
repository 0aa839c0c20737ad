package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// TestReportPace: how many reports a role writes, in virtual time.
func TestReportPace(t *testing.T) {
	type step struct {
		during time.Duration
		every  time.Duration // something changes; 0: nothing
		change func(*datastore.ReportStatus, int)
	}
	problem := func(s *datastore.ReportStatus, i int) { s.Problems = []string{fmt.Sprint(i)} }
	endpoints := func(s *datastore.ReportStatus, i int) { s.Endpoints = i + 1 }
	sessions := func(n int) func(*datastore.ReportStatus, int) {
		return func(s *datastore.ReportStatus, i int) {
			s.Sessions = nil
			for j := range n {
				s.Sessions = append(s.Sessions, datastore.SessionStatus{Peer: netip.AddrFrom4([4]byte{10, 0, byte(j >> 8), byte(j)}), State: "Established", Reason: fmt.Sprint(i)})
			}
		}
	}
	for _, c := range []struct {
		name        string
		step        step
		least, most int
	}{
		{"nothing changes", step{during: time.Hour}, 8, 12},
		{"woken all the time", step{during: time.Hour, every: 10 * time.Millisecond, change: func(*datastore.ReportStatus, int) {}}, 8, 12},
		{"a problem comes", step{during: 10 * time.Second, every: 8 * time.Second, change: problem}, 1, 2},
		{"problems flap", step{during: time.Minute, every: 50 * time.Millisecond, change: problem}, 13, 20},
		{"containers come and go", step{during: 10 * time.Minute, every: time.Second, change: endpoints}, 6, 11},
		{"1,000 sessions flap", step{during: time.Hour, every: time.Second, change: sessions(1000)}, 20, 40},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := memory.New()
				var now datastore.ReportStatus
				var asked atomic.Int64
				var mu sync.Mutex // of now
				r := NewReporter("n1", datastore.ReportAgent, store, func(context.Context) (datastore.ReportStatus, bool) {
					asked.Add(1)
					mu.Lock()
					defer mu.Unlock()
					return now, true
				}, slog.New(slog.DiscardHandler))
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- r.Run(ctx) }()
				before, err := store.List(ctx, datastore.ReportPrefix)
				if err != nil {
					t.Fatal(err)
				}
				if c.step.every == 0 {
					time.Sleep(c.step.during)
				} else {
					for i := range int(c.step.during / c.step.every) {
						time.Sleep(c.step.every)
						mu.Lock()
						c.step.change(&now, i)
						mu.Unlock()
						r.Wake()
						synctest.Wait()
					}
					time.Sleep(c.step.during % c.step.every)
				}
				after, err := store.List(ctx, datastore.ReportPrefix)
				if err != nil {
					t.Fatal(err)
				}
				if n := int(after.Revision - before.Revision); n < c.least || n > c.most {
					t.Errorf("%d reports, want %d to %d", n, c.least, c.most)
				}
				if most := int(c.step.during/reportSoon) + 1; int(asked.Load()) > most {
					t.Errorf("the status was asked %d times, want at most %d", asked.Load(), most)
				}
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// refusing refuses writes while it is told to, and counts them.
type refusing struct {
	datastore.Store
	refuse atomic.Bool
	tries  atomic.Int64
}

func (s *refusing) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	s.tries.Add(1)
	if s.refuse.Load() {
		return 0, errors.New("no")
	}
	return s.Store.Commit(ctx, t)
}

// TestReportIsTriedAgain: what could not be written is, later, and calmly.
func TestReportIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &refusing{Store: memory.New()}
		store.refuse.Store(true)
		var ready atomic.Bool
		r := NewReporter("n1", datastore.ReportSpeaker, store, func(context.Context) (datastore.ReportStatus, bool) {
			return datastore.ReportStatus{Problems: []string{"drift"}}, ready.Load()
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.Run(ctx) }()
		r.Wake()
		time.Sleep(time.Minute)
		if store.tries.Load() > 0 {
			t.Error("a role that is not ready reports")
		}
		ready.Store(true)
		r.Wake()
		time.Sleep(time.Minute)
		if n := store.tries.Load(); n < 10 || n > 20 {
			t.Errorf("%d tries in a minute", n)
		}
		store.refuse.Store(false)
		time.Sleep(10 * time.Second)
		got, err := datastore.Get[*datastore.Report](ctx, store, "n1/speaker")
		if err != nil || len(got.Status.Problems) != 1 || got.Status.Seen.IsZero() {
			t.Errorf("%+v, %v", got, err)
		}
		cancel()
		<-ended
	})
}

// TestAReportThatFailedIsTriedSoon: a heartbeat that the datastore did not take is not
// put off until the next one is due.
func TestAReportThatFailedIsTriedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		r := NewReporter("n1", datastore.ReportAgent, store, func(context.Context) (datastore.ReportStatus, bool) {
			return datastore.ReportStatus{Endpoints: 1}, true
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(2 * heartbeat)
		store.Away("cable cut")
		time.Sleep(2 * heartbeat)
		store.Back()
		back := time.Now()
		time.Sleep(5 * reportSoon)
		got, err := datastore.Get[*datastore.Report](t.Context(), store, r.Name)
		if err != nil || got.Status.Seen.Before(back.Add(-time.Second)) {
			t.Errorf("seen %v, back at %v, %v", got.Status.Seen, back, err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
