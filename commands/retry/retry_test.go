package retry

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestEachProblemHasItsOwnTime: the tries of one are 1, 2, 4 … s apart, whatever
// becomes of another and however often it is looked at.
func TestEachProblemHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		wakes := make(chan struct{}, 100)
		s := New(time.Second, 30*time.Second, func() { wakes <- struct{}{} })
		defer s.Stop()
		s.Failed("a")
		var tries []time.Duration
		events := time.NewTicker(100 * time.Millisecond) // of something else
		defer events.Stop()
		for len(tries) < 8 {
			select {
			case <-wakes:
			case <-events.C:
				s.Failed("b") // fails all the time
				s.Solved("b")
				s.Solved("c")
			}
			if s.Again("a") {
				tries = append(tries, time.Since(begin).Round(time.Second))
				s.Failed("a")
			}
		}
		want := []time.Duration{1, 3, 7, 15, 31, 61, 91, 121}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(tries, want) {
			t.Errorf("tried at %v, want %v", tries, want)
		}
	})
}

func TestSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wakes := make(chan struct{}, 100)
		s := New(time.Second, 30*time.Second, func() { wakes <- struct{}{} })
		if !s.Due("a") || s.Again("a") {
			t.Error("what never failed is not to be tried again")
		}
		s.Failed("a")
		s.Failed("a") // tried for another reason
		if s.Due("a") || s.Again("a") {
			t.Error("due at once")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !s.Due("a") || !s.Again("a") || len(wakes) != 1 {
			t.Errorf("not due after a second, %d wakes", len(wakes))
		}
		s.Failed("a")
		s.Solved("a")
		if !s.Due("a") || s.Again("a") {
			t.Error("solved, and still a problem")
		}
		s.Failed("a") // anew: a second, not four
		s.Failed("b")
		time.Sleep(time.Second)
		synctest.Wait()
		if !s.Again("a") || !s.Again("b") {
			t.Error("a new problem has the wait of an old one")
		}
		s.Failed("a")
		s.Stop()
		n := len(wakes)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(wakes) != n {
			t.Error("woken after Stop")
		}
	})
}
