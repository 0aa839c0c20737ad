package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

// tunneller draws the node's own addresses in tunnels from the pools, and gives back
// those that are not needed any more.
type tunneller struct {
	loop      *loop
	addresses *ipam.Allocator
	changed   chan struct{} // holds one: others may be needed
}

// String names the task.
func (*tunneller) String() string { return "draw addresses of tunnels" }

// Run works whenever something changed, and again after a failure.
func (t *tunneller) Run(ctx context.Context) error {
	again := time.NewTimer(0)
	defer again.Stop()
	for retry := retryMin; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-t.changed:
		case <-again.C:
		}
		text := ""
		switch err := t.loop.gate(ctx); {
		case err != nil:
			again.Reset(retryMax)
			continue
		default:
			if err := t.once(ctx); err != nil && ctx.Err() == nil {
				again.Reset(retry)
				retry = min(2*retry, retryMax)
				text = fmt.Sprintf("what this host itself sends to endpoints elsewhere has no address in the tunnels: %s", oneLine(err.Error()))
			} else {
				retry = retryMin
			}
		}
		t.loop.post(func() { t.loop.problems.note("addresses of tunnels", text) })
	}
}

func (t *tunneller) once(ctx context.Context) error {
	var needs tunnelNeeds
	if err := t.loop.do(ctx, func() { needs = t.loop.tunnelNeeds() }); err != nil {
		return err
	}
	handle := datastore.TunnelHandle(t.loop.cfg.Node)
	for _, a := range needs.release {
		if err := t.addresses.Release(ctx, handle, []netip.Addr{a}, nil); err != nil {
			return err
		}
	}
	for _, pools := range needs.assign {
		res, err := t.addresses.Assign(ctx, ipam.Request{Handle: handle, Pools: pools, V6: pools[0].Addr().Is6()})
		if err != nil {
			return err
		}
		t.loop.log.Info("address of tunnels drawn", "addresses", res.Addresses)
	}
	return nil
}
