package docker

import (
	"context"
	"errors"
	"time"

	"netctl/commands/control"
	"netctl/commands/engine"
	"netctl/datastore"
)

// tidyEvery is the time between two looks for what Docker forgot.
const tidyEvery = time.Minute

// tidier releases endpoints that Docker does not have any more, and would never say so
// of: its folder was deleted, say. What it does not have at two looks in a row is gone.
type tidier struct {
	p       *plugin
	doubted map[string]bool // endpoints and networks that it did not have at the last look
}

// run looks until ctx ends.
func (t *tidier) run(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		t.once(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// once makes one look.
func (t *tidier) once(ctx context.Context) {
	before := t.doubted
	t.doubted = map[string]bool{}
	for _, n := range t.p.state.allNetworks(func(network) bool { return true }) {
		asked, cancel := context.WithTimeout(ctx, apiTimeout)
		told, err := t.p.names.api.Network(asked, n.ID)
		cancel()
		if err != nil && !errors.Is(err, engine.ErrNoSuch) {
			t.doubted = before
			return // Docker does not answer: nobody knows
		}
		there := map[string]bool{}
		for _, c := range told.Containers {
			there[c.EndpointID] = true
		}
		for _, e := range t.p.state.allEndpoints(func(e endpoint) bool { return e.Network == n.ID && !there[e.ID] }) {
			if t.doubted[e.ID] = true; before[e.ID] {
				t.release(ctx, e.ID)
			}
		}
		if err == nil {
			continue
		}
		if t.doubted[n.ID] = true; before[n.ID] {
			if err := t.p.state.dropNetwork(n.ID); err != nil {
				t.p.log.Warn("network is remembered that Docker does not have", "network", n.Name, "error", err)
			}
		}
	}
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
