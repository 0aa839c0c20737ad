// Package retry owns when what failed is tried again: each problem has a due time
// of its own, which doubles with each failure. Another problem's success, failure
// or events do not move it.
//
// It never tries anything itself and starts no goroutine but the timers that say
// that something is due.
package retry

import "time"

// Schedule holds the due times of one owner's problems. It is not safe for
// concurrent use.
type Schedule struct {
	least, most time.Duration
	wake        func()
	problems    map[string]*problem
}

type problem struct {
	wait  time.Duration
	due   time.Time
	timer *time.Timer
}

// New returns a schedule whose first wait is least and whose longest is most. wake
// is called, in a goroutine of its own, once for each due time: who then finds that
// Due holds tries again.
func New(least, most time.Duration, wake func()) *Schedule {
	return &Schedule{least: least, most: most, wake: wake, problems: map[string]*problem{}}
}

// Failed books a failure, and when it is to be tried again. A failure before the
// due time, of a try that something else called for, moves nothing.
func (s *Schedule) Failed(what string) {
	p := s.problems[what]
	switch {
	case p == nil:
		p = &problem{wait: s.least}
		s.problems[what] = p
	case time.Now().Before(p.due):
		return
	default:
		p.wait = min(2*p.wait, s.most)
	}
	p.due = time.Now().Add(p.wait)
	p.timer = time.AfterFunc(p.wait, s.wake)
}

// Solved forgets a problem.
func (s *Schedule) Solved(what string) {
	if p := s.problems[what]; p != nil {
		p.timer.Stop()
		delete(s.problems, what)
	}
}

// Due says whether something may be tried: it did not fail, or its time has come.
func (s *Schedule) Due(what string) bool {
	p := s.problems[what]
	return p == nil || !time.Now().Before(p.due)
}

// Again says whether something failed and its time has come.
func (s *Schedule) Again(what string) bool { return s.problems[what] != nil && s.Due(what) }

// Stop ends all timers.
func (s *Schedule) Stop() {
	for what := range s.problems {
		s.Solved(what)
	}
}
