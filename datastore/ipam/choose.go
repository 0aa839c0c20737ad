package ipam

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/datastore"
)

// eligible are the pools of a family to draw from, in order; refused says of
// the others why not.
func (p *planner) eligible(v6 bool, n *datastore.Node) (pools []*datastore.Pool, refused []string, err error) {
	listed := len(p.req.Pools) > 0
	var candidates []*datastore.Pool
	if !listed {
		candidates = p.index.sortedPools()
	}
	for _, cidr := range p.req.Pools {
		pool := p.index.pools.get(cidr.Masked())
		if pool == nil {
			return nil, nil, fmt.Errorf("pool %s: %w: name one that there is, or make it with `netctl pool add %s`", cidr, datastore.ErrNotFound, cidr.Masked())
		}
		candidates = append(candidates, pool.Pool)
	}
	for _, pool := range candidates {
		switch {
		case pool.Spec.CIDR.Addr().Is6() != v6:
		case pool.Spec.Disabled:
			word := " is disabled"
			if pool.Spec.Removed {
				word = " is removed"
			}
			refused = append(refused, pool.Spec.CIDR.String()+word)
		case !listed && !selects(pool, n):
			refused = append(refused, fmt.Sprintf("%s does not select node %s", pool.Spec.CIDR, p.node))
		default:
			pools = append(pools, pool)
		}
	}
	return pools, refused, nil
}

// selects evaluates a pool's node selector; one that does not parse selects
// nothing.
func selects(pool *datastore.Pool, n *datastore.Node) bool {
	if s := pool.Spec.NodeSelector; s != "" && s != "all()" {
		sel, err := datastore.ParseSelector(s)
		return err == nil && sel.Matches(n.Metadata.Labels)
	}
	return true
}

// describe names pools for an error.
func (p *planner) describe(v6 bool, pools []*datastore.Pool, refused []string) string {
	names := make([]string, 0, len(pools))
	for _, pool := range pools {
		names = append(names, pool.Spec.CIDR.String())
		if p.index.blocks.inside(pool.Spec.CIDR) > 0 {
			continue
		}
		for t := range p.taken(pool.Spec.CIDR) {
			refused = append(refused, fmt.Sprintf("%s overlaps %s", pool.Spec.CIDR, t.why()))
			break
		}
	}
	text := strings.Join(names, ", ")
	if len(pools) == 0 {
		family := "IPv4"
		if v6 {
			family = "IPv6"
		}
		text = fmt.Sprintf("(there is no %s pool for node %s; see `netctl pool show`)", family, p.node)
	}
	if len(refused) > 0 {
		text += " (" + strings.Join(refused, ", ") + ")"
	}
	return text
}

// open returns the space of a block, the same one each time.
func (p *planner) open(b *datastore.Block) *space {
	s := find(p.spaces, func(s *space) bool { return s.block.Metadata.Name == b.Metadata.Name })
	if s == nil {
		s = open(b, p.node, p.clock)
		p.spaces = append(p.spaces, s)
	}
	return s
}

func (p *planner) take(s *space, ordinal int) netip.Addr {
	return s.take(datastore.Allocation{Ordinal: ordinal, Handle: p.req.Handle, Node: p.node,
		Workload: p.req.Workload, Time: time.Now().UTC().Truncate(time.Second)})
}

// fit takes the next free address of a block, next-fit.
func (p *planner) fit(s *space) (netip.Addr, bool) {
	ordinal, ok := s.free(within(s.block.Spec.CIDR, p.taken(s.block.Spec.CIDR)))
	if !ok {
		return netip.Addr{}, false
	}
	s.block.Spec.Next = (ordinal + 1) % s.block.Size()
	s.block.Spec.Wished = s.block.Spec.Wished && s.block.Spec.Affinity != p.node
	return p.take(s, ordinal), true
}

// again is the address that the handle has in a block of this node.
func (p *planner) again(v6 bool) (netip.Addr, bool) {
	for _, b := range p.index.blocksOf[p.node] {
		if b.Spec.CIDR.Addr().Is6() == v6 {
			if a, ok := open(b, p.node, p.clock).held(p.req.Handle); ok {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// kept is an address that a reservation keeps for this workload alone.
func (p *planner) kept(v6 bool, pools []*datastore.Pool) (netip.Addr, bool) {
	for _, r := range p.index.reservedFor(p.req.Workload, p.req.Name) {
		for _, c := range r.Spec.CIDRs {
			a := c.Addr()
			if !c.IsSingleIP() || a.Is6() != v6 {
				continue
			}
			pool := find(pools, func(pool *datastore.Pool) bool { return pool.Spec.CIDR.Contains(a) })
			if pool == nil {
				continue
			}
			if got, err := p.explicit(a, pool); err == nil {
				return got, true
			}
		}
	}
	return netip.Addr{}, false
}

// search takes whatever address is best: of an own block, of a new one, pool by
// pool; then of another node's block; then the one longest in quarantine. Own blocks
// that were claimed for one address come after the others. In a pool that is short
// a released address, however fresh, comes before a new block.
func (p *planner) search(pools []*datastore.Pool) (netip.Addr, bool) {
	if p.req.Away {
		return p.lend(pools)
	}
	for _, pool := range pools {
		own := p.ownBlocks(pool)
		for _, wished := range []bool{false, true} {
			for _, b := range own {
				if b.Spec.Wished != wished {
					continue
				}
				if a, ok := p.fit(p.open(b)); ok {
					return a, true
				}
			}
		}
		if p.index.short(pool) {
			if a, ok := p.rested(slices.Values(own)); ok {
				return a, true
			}
		}
		if s := p.claim(pool); s != nil {
			return p.fit(s)
		}
	}
	return p.borrow(pools)
}

// ownBlocks are this node's blocks of a pool.
func (p *planner) ownBlocks(pool *datastore.Pool) (own []*datastore.Block) {
	for _, b := range p.index.blocksOf[p.node] {
		if p.index.visits++; pool.Spec.CIDR.Overlaps(b.Spec.CIDR) {
			own = append(own, b)
		}
	}
	return own
}

// claim gives the node a block of the pool: one without a node, or a new one.
func (p *planner) claim(pool *datastore.Pool) *space {
	for _, b := range p.index.blocksOf[""] {
		if p.index.visits++; !pool.Spec.CIDR.Overlaps(b.Spec.CIDR) {
			continue
		}
		s := p.open(b)
		if _, ok := s.free(within(b.Spec.CIDR, p.taken(b.Spec.CIDR))); ok {
			p.own(s)
			return s
		}
	}
	var cidr netip.Prefix
	var ok bool
	if len(p.req.Within) > 0 {
		cidr, ok = p.blockIn(pool, p.req.Within)
	} else if cidr, ok = p.index.freeBlock(pool, p.node, p.req.Workload, p.req.Name); !ok {
		cidr, ok = p.keptBlock(pool)
	}
	if !ok {
		return nil
	}
	return p.create(cidr, pool)
}

// keptBlock is a place for a block in what a reservation keeps for this workload.
func (p *planner) keptBlock(pool *datastore.Pool) (netip.Prefix, bool) {
	for _, r := range p.index.reservedFor(p.req.Workload, p.req.Name) {
		whole := slices.DeleteFunc(slices.Clone(r.Spec.CIDRs), func(c netip.Prefix) bool { return c.Bits() > pool.Spec.BlockSize })
		if place, ok := p.blockIn(pool, whole); ok {
			return place, true
		}
	}
	return netip.Prefix{}, false
}

// blockIn is a place for a block of the pool in one of the prefixes, or around it.
func (p *planner) blockIn(pool *datastore.Pool, prefixes []netip.Prefix) (netip.Prefix, bool) {
	for _, c := range prefixes {
		if c = c.Masked(); !pool.Spec.CIDR.Overlaps(c) {
			continue
		}
		if c.Bits() < pool.Spec.CIDR.Bits() {
			c = pool.Spec.CIDR
		}
		if c.Bits() > pool.Spec.BlockSize {
			c = netip.PrefixFrom(c.Addr(), pool.Spec.BlockSize).Masked()
		}
		s := newSlots(c, pool.Spec.BlockSize)
		for b := range p.index.blocks.overlapping(c) {
			s.add(b)
		}
		for t := range p.taken(c) {
			if obstructs(t.cidr, []taken{t}, s) {
				s.add(t.cidr)
			}
		}
		if place, ok := p.index.roomyPlace(s, c.Addr(), netip.Addr{}, []string{p.req.Workload, p.req.Name}); ok {
			return place, true
		}
	}
	return netip.Prefix{}, false
}

// create opens a block that does not exist yet. The pool must not change
// meanwhile: it may be on its way out.
func (p *planner) create(cidr netip.Prefix, pool *datastore.Pool) *space {
	b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: cidr}}
	b.SetDefaults()
	s := p.open(b)
	if pool != nil && !slices.Contains(p.pools, pool) {
		p.pools = append(p.pools, pool)
	}
	p.own(s)
	return s
}

func (p *planner) own(s *space) {
	s.block.Spec.Affinity = p.node
	s.owner, s.dirty = p.clock.boot != "", true
	p.claimed = append(p.claimed, s.block)
}

// borrow takes an address of another node's block or, if there is none, the one
// that is longest in quarantine, own blocks first.
func (p *planner) borrow(pools []*datastore.Pool) (netip.Addr, bool) {
	for _, pool := range pools {
		for _, b := range p.index.roomy.overlapping(pool.Spec.CIDR) {
			if p.index.visits++; b.Spec.Affinity == p.node {
				continue // search has been there
			}
			if a, ok := p.fit(p.open(b)); ok {
				return a, true
			}
		}
	}
	for _, pool := range pools {
		if a, ok := p.rested(slices.Values(p.ownBlocks(pool))); ok {
			return a, true
		}
	}
	return p.rested(func(yield func(*datastore.Block) bool) {
		for _, pool := range pools {
			for _, b := range p.index.released.overlapping(pool.Spec.CIDR) {
				if b.Spec.Affinity != p.node && !yield(b) {
					return
				}
			}
		}
	})
}

// rested takes the address of the blocks that is longest in quarantine.
func (p *planner) rested(blocks iter.Seq[*datastore.Block]) (netip.Addr, bool) {
	var (
		from   *space
		oldest datastore.Released
	)
	for b := range blocks {
		p.index.visits++
		if from != nil && !slices.ContainsFunc(b.Spec.Released, func(r datastore.Released) bool { return older(r, oldest) }) {
			continue
		}
		s := p.open(b)
		if r, ok := s.resting(within(b.Spec.CIDR, p.taken(b.Spec.CIDR))); ok && (from == nil || older(r, oldest)) {
			from, oldest = s, r
		}
	}
	if from == nil {
		return netip.Addr{}, false
	}
	return p.take(from, oldest.Ordinal), true
}

// explicit takes the wanted address: of the block it is in, whoever's that is,
// else of a new block around it.
func (p *planner) explicit(wish netip.Addr, pool *datastore.Pool) (netip.Addr, error) {
	for t := range p.taken(netip.PrefixFrom(wish, wish.BitLen())) {
		return wish, fmt.Errorf("address %s: %w: it is in %s", wish, datastore.ErrInUse, t.why())
	}
	cidr := blockAround(wish, pool)
	var s *space
	if b := p.index.blockAround(wish); b != nil && p.owned(b) {
		s = p.open(b)
	} else if p.req.Away {
		return wish, fmt.Errorf("address %s: %w: is in no block of node %s, and no other can be had while the datastore is away", wish, datastore.ErrInvalid, p.node)
	} else {
		if err := p.clear(wish, cidr); err != nil {
			return wish, err
		}
		s = p.create(cidr, pool)
		s.block.Spec.Wished = !p.req.Restore
	}
	ordinal := ordinalOf(s.block.Spec.CIDR, wish)
	switch h := s.holder(ordinal); {
	case h == nil:
		if s.block.Spec.Affinity == "" {
			p.own(s)
		}
		return p.take(s, ordinal), nil
	case h.Handle == p.req.Handle:
		return wish, nil
	default:
		return wish, fmt.Errorf("address %s: %w: held by %s", wish, datastore.ErrInUse, h.Handle)
	}
}

// clear says what a new block around a wish would overlap.
func (p *planner) clear(wish netip.Addr, cidr netip.Prefix) error {
	for t := range p.taken(cidr) {
		if !t.part {
			return fmt.Errorf("address %s: %w: its block %s overlaps %s", wish, datastore.ErrInUse, cidr, t.why())
		}
	}
	for b := range p.index.blocks.overlapping(cidr) {
		return fmt.Errorf("address %s: %w: its block %s overlaps block %s", wish, datastore.ErrInUse, cidr, b)
	}
	return nil
}

// change is what the plan writes.
func (p *planner) change() change {
	return change{addrs: p.addrs, blocks: written(p.spaces), pools: p.pools}
}

func written(spaces []*space) (blocks []*datastore.Block) {
	for _, s := range spaces {
		if s.dirty {
			s.settle()
			blocks = append(blocks, s.block)
		}
	}
	return blocks
}

// releasePlan takes back what handle holds: in the blocks of addrs, or anywhere.
func releasePlan(x *Index, node, handle string, addrs []netip.Addr, c clock) change {
	var (
		blocks []*datastore.Block
		spaces []*space
		freed  []netip.Addr
	)
	for _, a := range addrs {
		b := x.blockAround(a)
		if b != nil && !slices.Contains(blocks, b) {
			blocks = append(blocks, b)
		}
	}
	if addrs == nil {
		for _, b := range x.blocks.values {
			blocks = append(blocks, b)
		}
	}
	for _, b := range blocks {
		if slices.ContainsFunc(b.Spec.Allocations, func(a datastore.Allocation) bool { return a.Handle == handle }) {
			s := open(b, node, c)
			freed = append(freed, s.give(handle, -1)...)
			spaces = append(spaces, s)
		}
	}
	return change{addrs: freed, blocks: written(spaces)}
}
