package agent

import (
	"context"
	"maps"
	"sync"
	"time"

	"netctl/commands/control"
)

// givenUpFor is how long it is known that a detach was asked for: longer than a runtime
// waits for an attach.
const givenUpFor = time.Minute

// givenUp are the detaches that were asked for, by whom an attach that was begun before, and
// comes later, was given up: it waited for the agent, or for the datastore.
type givenUp struct {
	node string
	mu   sync.Mutex
	at   map[string]time.Time // by endpoint, or workload, which then ends in a slash
}

func newGivenUp(node string) *givenUp { return &givenUp{node: node, at: map[string]time.Time{}} }

// note remembers that a detach was asked for, before it is done.
func (g *givenUp) note(t control.Target, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.at, func(_ string, at time.Time) bool { return time.Since(at) > givenUpFor })
	if at = at.Round(0); at.After(g.at[t.Endpoint(g.node)]) { // callers say theirs by the clock
		g.at[t.Endpoint(g.node)] = at
	}
}

// since says whether a detach was asked for after the attach that ctx belongs to was begun.
// Once it has its turn no other one comes in between.
func (g *givenUp) since(ctx context.Context, t control.Target) bool {
	began := control.Began(ctx)
	all := t
	all.Interface = ""
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range []control.Target{t, all} {
		at, ok := g.at[t.Endpoint(g.node)]
		if ok && !began.IsZero() && at.After(began) && !at.After(time.Now().Round(0)) {
			return true
		}
	}
	return false
}
