package speaker

import (
	"context"
	"errors"
	"net/netip"

	"netctl/routing"
	"netctl/routing/fib"
)

// bare stands for the kernel's routes where there is nobody to route for: a reflector
// on a machine without endpoints announces nothing of its own and installs nothing.
// Next hops are the clients', and not this machine's to resolve.
type bare struct{}

func (bare) Routes(context.Context) ([]routing.Route, error)    { return nil, nil }
func (bare) Connected(context.Context) ([]routing.Route, error) { return nil, nil }
func (bare) Apply(context.Context, routing.Changes) error       { return nil }
func (bare) Gather(context.Context) error                       { return nil }
func (bare) Adopt([]routing.Route)                              {}
func (bare) Missing() []routing.Route                           { return nil }
func (bare) Compare(context.Context) (routing.Changes, error)   { return routing.Changes{}, nil }
func (bare) SetNeighbours(context.Context, []string, []routing.Neighbour) error {
	return nil
}

func (bare) Watch(ctx context.Context, _ fib.Ignore, _ func(fib.Event)) error {
	<-ctx.Done()
	return nil
}

func (bare) Reach(context.Context, netip.Addr) (routing.NextHop, netip.Addr, error) {
	return routing.NextHop{Link: "none"}, netip.Addr{}, nil
}

// errEndpoints ends a bare reflector once an agent is there: the next one is its speaker.
var errEndpoints = errors.New("this machine has an agent now: starting again as its speaker")

// untilEndpoints waits for a route of the agent's.
func untilEndpoints(ctx context.Context, agent table) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := agent.Watch(ctx, fib.Ignore{Foreign: true}, func(e fib.Event) {
		for _, c := range e.Changes {
			if !c.Gone {
				cancel(errEndpoints)
			}
		}
		if e.Lost {
			if routes, err := agent.Routes(ctx); err == nil && len(routes) > 0 {
				cancel(errEndpoints)
			}
		}
	})
	if cause := context.Cause(ctx); errors.Is(cause, errEndpoints) {
		return cause
	}
	return err
}
