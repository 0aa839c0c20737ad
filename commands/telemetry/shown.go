package telemetry

import (
	"log/slog"
	"maps"
	"slices"
	"sync"

	"netctl/datastore"
)

// mostShown bounds how many problems at one time are told of: a link that is down can make
// one of each route.
const mostShown = datastore.SharedEvents / 2

// Problem is one that status shows.
type Problem struct {
	What string // is wrong: a key, or a kind of problem
	Text string // one line
}

// Shown tells of each problem that status shows that it came, and that it is over, as events.
// Safe for concurrent use.
type Shown struct {
	Log *slog.Logger

	mu   sync.Mutex
	told map[string]Problem
}

// Set takes what status shows now, by what makes one the same as before.
func (s *Shown) Set(now map[string]Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.told == nil {
		s.told = map[string]Problem{}
	}
	for _, id := range slices.Sorted(maps.Keys(s.told)) {
		if _, is := now[id]; !is {
			Over(s.Log, s.told[id])
			delete(s.told, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(now)) {
		p := now[id]
		_, is := s.told[id]
		if !is && len(s.told) == mostShown {
			continue
		}
		if s.told[id] = p; !is {
			s.Log.Warn("problem", "what", p.What, "cause", p.Text, datastore.EventProblem.Mark())
		}
	}
}

// Over tells that a problem is.
func Over(log *slog.Logger, p Problem) {
	log.Info("problem is over", "what", p.What, "was", p.Text, datastore.EventProblem.Mark())
}
