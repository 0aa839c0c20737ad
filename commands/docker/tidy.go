package docker

import (
	"context"
	"errors"
	"time"

	"netctl/commands/control"
	"netctl/commands/engine"
	"netctl/datastore"
)

const (
	// tidyEvery is the time between two looks for what Docker forgot.
	tidyEvery = time.Minute
	// tidySoon is that between the first two.
	tidySoon = 5 * time.Second
)

// tidier releases endpoints that Docker does not have any more, and would never say so
// of: its folder was deleted, say. What it does not have at two looks in a row is gone.
type tidier struct {
	p       *plugin
	soon    time.Duration
	doubted map[string]bool // endpoints and networks that it did not have at the last look
}

// run looks until ctx ends. A plugin that Docker manages starts with Docker, which, if it
// had no time to end its tasks, has forgotten their endpoints: their ports are in the way
// of the tasks that it makes now. So the first two looks are at those of before alone, and
// soon.
func (t *tidier) run(ctx context.Context) error {
	before := map[string]bool{}
	for _, e := range t.p.state.allEndpoints(func(endpoint) bool { return true }) {
		before[e.ID] = true
	}
	for looks := 0; ; {
		wait := tidyEvery
		if len(before) > 0 && looks < 2 {
			wait = t.soon
			if t.once(ctx, before) {
				looks++
			}
		} else {
			t.once(ctx, nil)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// once makes one look, at these endpoints alone unless only is nil, and says whether Docker
// answered.
func (t *tidier) once(ctx context.Context, only map[string]bool) bool {
	before := t.doubted
	t.doubted = map[string]bool{}
	for _, n := range t.p.state.allNetworks(func(network) bool { return true }) {
		asked, cancel := context.WithTimeout(ctx, apiTimeout)
		told, err := t.p.names.api.Network(asked, n.ID)
		cancel()
		if err != nil && !errors.Is(err, engine.ErrNoSuch) {
			t.doubted = before
			return false // nobody knows
		}
		there := map[string]bool{}
		for _, c := range told.Containers {
			there[c.EndpointID] = true
		}
		for _, e := range t.p.state.allEndpoints(func(e endpoint) bool { return e.Network == n.ID && !there[e.ID] && (only == nil || only[e.ID]) }) {
			if t.doubted[e.ID] = true; before[e.ID] {
				t.release(ctx, e.ID)
			}
		}
		if err == nil || only != nil {
			continue
		}
		if t.doubted[n.ID] = true; before[n.ID] {
			if err := t.p.state.dropNetwork(n.ID); err != nil {
				t.p.log.Warn("network is remembered that Docker does not have", "network", n.Name, "error", err)
			}
		}
	}
	return true
}

func (t *tidier) release(ctx context.Context, id string) {
	req := control.DetachRequest{Target: target(id)}
	asked, cancel := short(ctx)
	defer cancel()
	err := t.p.agent.Detach(asked, req)
	if err == nil {
		err = t.p.state.dropEndpoint(id)
	}
	if err != nil {
		t.p.log.Warn("endpoint that Docker does not have is not released", "endpoint", id, "error", err, datastore.EventLeak.Mark())
		return
	}
	t.p.log.Info("endpoint released that Docker does not have any more", "endpoint", id, datastore.EventLeak.Mark())
}
