package ipam

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"netctl/datastore"
)

// While the store does not answer, a node gives out of its own blocks, as it knew them
// last. Nobody else can write then if all are cut off; where this node alone is, another
// may borrow of its blocks, or wish for one of their addresses. Who borrows takes what
// comes next in a block, so what is chosen here is what comes last, and of a block that
// nobody has borrowed of if there is one. What was given is written when the store
// answers again (Request.Restore), on the condition that nobody else has it by then.

// forAway is how long an address that was given while the store is away is kept from
// others: until LetGo, Release or Rest.
const forAway = time.Duration(math.MaxInt64)

// Away chooses addresses while the store does not answer, and keeps other requests from
// them. Nothing is written but what the caller keeps of it. A handle whose Assign may
// have reached the store gets what that would have given it. Errors are Assign's, and of
// what cannot be had of the node's own blocks ErrExhausted, ErrInUse or ErrInvalid.
func (a *Allocator) Away(ctx context.Context, req Request) ([]netip.Addr, error) {
	req.Away = true
	addrs, err := a.choose(ctx, req, req, forAway)
	if err != nil {
		return nil, fmt.Errorf("assign %s: %w", req.Handle, err)
	}
	return addrs, nil
}

// Keep keeps addresses from other requests as Away does: an earlier process gave them.
func (a *Allocator) Keep(addrs ...netip.Addr) { a.holds.keep(forAway, addrs) }

// Rest ends what Away began where the store never heard of it; the addresses rest first.
func (a *Allocator) Rest(addrs ...netip.Addr) { a.holds.keep(a.cfg.Now()+a.cfg.Quarantine, addrs) }

// keep holds addresses until a moment of the allocator's clock.
func (h *holds) keep(until time.Duration, addrs []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range addrs {
		h.until[a] = until
	}
}

// doubt notes that handle's addresses may be written, and nobody knows until sure.
func (h *holds) doubt(handle string, addrs []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if handle != "" {
		h.doubts[handle] = slices.Clone(addrs)
	}
}

// sure notes that the store answered: what was written before is known.
func (h *holds) sure() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.doubts)
}

// doubted are the addresses that handle may have, and those that others may.
func (h *holds) doubted(handle string) (own, others []netip.Addr) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for who, addrs := range h.doubts {
		if who == handle {
			own = addrs
		} else {
			others = append(others, addrs...)
		}
	}
	return own, others
}

// owned says of a block whether addresses may be given out of it: to a request for
// while the store is away, only if it is the node's.
func (p *planner) owned(b *datastore.Block) bool {
	return !p.req.Away || b.Spec.Affinity == p.node
}

// lend is search while the store is away: in own blocks only, first in those that nobody
// borrowed of.
func (p *planner) lend(pools []*datastore.Pool) (netip.Addr, bool) {
	var own []*datastore.Block
	for _, pool := range pools {
		own = append(own, p.ownBlocks(pool)...)
	}
	slices.SortStableFunc(own, func(a, b *datastore.Block) int { return min(1, len(Borrowed(a))) - min(1, len(Borrowed(b))) })
	for _, b := range own {
		s := p.open(b)
		if ordinal, ok := s.farthest(within(b.Spec.CIDR, p.taken(b.Spec.CIDR))); ok {
			return p.take(s, ordinal), true
		}
	}
	return p.rested(slices.Values(own))
}

// farthest is the free ordinal that next-fit would come to last.
func (s *space) farthest(excluded *bitmap) (int, bool) {
	m := s.unfree(excluded)
	size := s.block.Size()
	for i := range size {
		if ordinal := (s.block.Spec.Next + size - 1 - i) % size; !m.has(ordinal) {
			return ordinal, true
		}
	}
	return 0, false
}

// giveUp takes back what the handle has in blocks of this node beside its addresses: a
// store that heard of an Assign without anybody knowing may have others.
func (p *planner) giveUp() {
	for _, b := range p.index.blocksOf[p.node] {
		for _, a := range Held(b, p.req.Handle) {
			if !slices.Contains(p.addrs, a) {
				p.open(b).give(p.req.Handle, ordinalOf(b.Spec.CIDR, a))
			}
		}
	}
}
