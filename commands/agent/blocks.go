package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

// returner gives blocks of this node back that hold nothing any more, and lets the
// pools go that were removed and whose last block went.
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
		if r.loop.waiting(ctx) > 0 { // a block is theirs that looks idle
			due.Reset(retryMin)
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
		if err := r.addresses.DropPools(ctx); err != nil && ctx.Err() == nil {
			r.loop.log.Warn("removed pool not deleted", "error", err)
			failed = err
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
		r.loop.post(func() { r.loop.blocks.keepOut(cidr, false) })
		return err
	}
	r.loop.log.Info("block given back", "block", cidr)
	return nil
}

// withdraw takes a block's route out of the kernel and keeps it out.
func (l *loop) withdraw(ctx context.Context, block netip.Prefix) error {
	if err := l.do(ctx, func() { l.blocks.keepOut(block, true) }); err != nil {
		return err
	}
	return l.await(ctx, func() (bool, error) {
		if err := l.standing.why(); err != nil {
			return false, err
		}
		return !l.table.routed(block), l.table.err
	})
}

// blocks has the table want the routes of this node's blocks. Its owner is the loop.
type blocks struct {
	node  string
	view  *datastore.View
	table *table
	links *links
	// returning are blocks that are being given back: they have no route.
	returning map[netip.Prefix]bool
}

// own are this node's blocks that have a route: not those that are being given back, nor
// those in a subnet of the host, where it would take the host's machines from it, the
// datastore and other nodes among them. Nobody claims such a block, but who writes what he
// likes, and one that was there before the subnet.
func (s *blocks) own() []*datastore.Block {
	return slices.DeleteFunc(s.view.BlocksOf(s.node), func(b *datastore.Block) bool { return !s.routed(b) })
}

func (s *blocks) routed(b *datastore.Block) bool {
	return b.Spec.Affinity == s.node && !s.returning[b.Spec.CIDR] && !s.links.surrounds(b.Spec.CIDR)
}

// changed takes a change of a block; nil: it was not, or is not there.
func (s *blocks) changed(name string, was, is *datastore.Block) {
	if was != nil && is == nil {
		delete(s.returning, was.Spec.CIDR)
	}
	s.route(name, is)
}

// keepOut keeps a block's route out of the kernel, or no longer: then the block
// stays, or is a new one.
func (s *blocks) keepOut(block netip.Prefix, out bool) {
	if s.returning[block] == out {
		return
	}
	delete(s.returning, block)
	if out {
		s.returning[block] = true
	}
	name := datastore.PoolName(block)
	s.route(name, s.view.Block(name))
}

// route has the table want a block's route, if it is to have one (nil: it is not there).
func (s *blocks) route(name string, b *datastore.Block) {
	if b != nil && s.routed(b) {
		s.table.want("block "+name, blockRoute(b))
		return
	}
	s.table.want("block " + name)
}
