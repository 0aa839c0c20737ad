package agent

import (
	"context"
	"net/netip"
	"time"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

// returner gives blocks of this node back that hold nothing any more.
type returner struct {
	loop      *loop
	addresses *ipam.Allocator
	changed   chan struct{} // holds one: a block of this node changed
}

// String names the task.
func (*returner) String() string { return "give blocks back" }

// Run looks for idle blocks whenever a block changed and whenever the addresses of
// one have rested.
func (r *returner) Run(ctx context.Context) error {
	due := time.NewTimer(0)
	defer due.Stop()
	for retry := retryMin; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-due.C:
		}
		if err := r.loop.gate(ctx); err != nil {
			due.Reset(retryMax) // nothing is given back while the store is away
			continue
		}
		idle, later := r.addresses.Idle()
		var failed error
		for _, cidr := range idle {
			if err := r.giveBack(ctx, cidr); err != nil && ctx.Err() == nil {
				r.loop.log.Warn("block not given back", "block", cidr, "error", err)
				failed = err
			}
		}
		if failed != nil {
			later, retry = retry, min(2*retry, retryMax)
		} else {
			retry = retryMin
		}
		due.Stop()
		if later > 0 {
			due.Reset(later)
		}
	}
}

func (r *returner) giveBack(ctx context.Context, cidr netip.Prefix) error {
	gone, err := r.addresses.GiveBack(ctx, cidr, func(ctx context.Context) error { return r.loop.withdraw(ctx, cidr) })
	if !gone {
		r.loop.post(func() { r.loop.restore(cidr) })
		return err
	}
	r.loop.log.Info("block given back", "block", cidr)
	return nil
}

// withdraw takes a block's route out of the kernel and keeps it out.
func (l *loop) withdraw(ctx context.Context, block netip.Prefix) error {
	if err := l.do(ctx, func() { l.returning[block] = true; l.rerouteBlock(block) }); err != nil {
		return err
	}
	return l.await(ctx, func() (bool, error) {
		if err := l.why(); err != nil {
			return false, err
		}
		return !l.table.routed(block), l.table.err
	})
}

// restore undoes withdraw; the block stays, or is a new one.
func (l *loop) restore(block netip.Prefix) {
	if l.returning[block] {
		delete(l.returning, block)
		l.rerouteBlock(block)
	}
}

func (l *loop) rerouteBlock(block netip.Prefix) {
	name := datastore.PoolName(block)
	l.routeBlock(name, l.view.Block(name))
}
