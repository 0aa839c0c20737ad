package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"netctl/datastore"
)

// Idle returns the node's blocks that can be given back: nobody has an address of
// them and none rests. Of the empty blocks of a pool the first is kept, so that a
// node with few endpoints does not claim and give back in turn; not of a pool that is
// removed, nor one over a subnet of a node. later is how long
// it is until there may be more; 0: not before something changes. It needs
// Config.Index.
func (a *Allocator) Idle() (idle []netip.Prefix, later time.Duration) {
	x, c := a.cfg.Index, a.clock()
	x.mu.Lock()
	defer x.mu.Unlock()
	spare := map[netip.Prefix]bool{} // pools that have their empty block
	for _, b := range x.blocksOf[a.cfg.Node] {
		if len(b.Spec.Allocations) > 0 {
			continue
		}
		pool := x.poolAround(b.Spec.CIDR.Addr())
		if pool != nil && !pool.Spec.Removed && !b.Spec.Wished && !spare[pool.Spec.CIDR] && !x.overTaken(b.Spec.CIDR) {
			spare[pool.Spec.CIDR] = true
			continue
		}
		rest := time.Duration(0)
		for _, r := range b.Spec.Released {
			if c.resting(r, true) && r.Boot != "" {
				rest = max(rest, time.Duration(r.At)*time.Millisecond+c.rest-c.now)
			}
		}
		if rest == 0 {
			idle = append(idle, b.Spec.CIDR)
		} else if later == 0 || rest < later {
			later = rest
		}
	}
	return idle, later
}

// DropPools deletes the pools that are removed and have no block any more. Every node
// tries that when the last block goes, and one succeeds. It needs Config.Index.
func (a *Allocator) DropPools(ctx context.Context) error {
	x := a.cfg.Index
	x.mu.Lock()
	var gone []*datastore.Pool
	for _, p := range x.sortedPools() {
		if p.Spec.Removed && x.holdsNoBlock(p.Spec.CIDR) {
			gone = append(gone, p)
		}
	}
	x.mu.Unlock()
	for _, p := range gone {
		cond, op, err := datastore.OpDelete(p)
		if err != nil {
			return err
		}
		if _, err := a.cfg.Store.Commit(ctx, datastore.Txn{If: []datastore.Condition{cond}, Then: []datastore.Op{op}}); err != nil && !isRace(err) {
			return fmt.Errorf("remove pool %s: %w", p.Spec.CIDR, err)
		}
	}
	return nil
}

// GiveBack deletes one of the node's blocks if it is still idle. withdraw is called
// before, and takes its route out of the kernel: who gets the block next announces
// it. gone is false if somebody took an address of it meanwhile, or if addresses of
// it were released by others, whose rest begins now.
func (a *Allocator) GiveBack(ctx context.Context, cidr netip.Prefix, withdraw func(context.Context) error) (gone bool, err error) {
	release, err := a.take(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	fail := func(err error) (bool, error) { return false, fmt.Errorf("give back %s: %w", cidr, err) }
	x := a.cfg.Index
	x.mu.Lock()
	b := x.blocks.get(cidr)
	if b == nil || b.Spec.Affinity != a.cfg.Node || len(b.Spec.Allocations) > 0 {
		x.mu.Unlock()
		return false, nil
	}
	s := open(b, a.cfg.Node, a.clock())
	x.mu.Unlock()
	s.settle()
	c := change{gone: []*datastore.Block{b}}
	if len(s.block.Spec.Released) > 0 {
		c = change{blocks: []*datastore.Block{s.block}}
	} else if err := withdraw(ctx); err != nil {
		return fail(err)
	}
	txn, _, err := c.txn(nil)
	if err != nil {
		return fail(err)
	}
	rev, err := a.cfg.Store.Commit(ctx, txn)
	switch {
	case err == nil:
		x.committed(c.blocks, c.gone, rev)
		return len(c.gone) > 0, nil
	case isRace(err):
		err = x.reread(ctx, a.cfg.Store, txn.If)
	}
	if err != nil {
		return fail(err)
	}
	return false, nil
}
