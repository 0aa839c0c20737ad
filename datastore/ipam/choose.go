package ipam

import (
	"fmt"
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
	candidates := p.src.Pools()
	if listed {
		candidates = nil
		for _, cidr := range p.req.Pools {
			pool := find(p.src.Pools(), func(pool *datastore.Pool) bool { return pool.Spec.CIDR == cidr.Masked() })
			if pool == nil {
				return nil, nil, fmt.Errorf("pool %s: %w", cidr, datastore.ErrNotFound)
			}
			candidates = append(candidates, pool)
		}
	}
	for _, pool := range candidates {
		switch {
		case pool.Spec.CIDR.Addr().Is6() != v6:
		case pool.Spec.Disabled:
			refused = append(refused, pool.Spec.CIDR.String()+" is disabled")
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
		inside := func(b *datastore.Block) bool { return pool.Spec.CIDR.Overlaps(b.Spec.CIDR) }
		if slices.ContainsFunc(p.src.Blocks(), inside) {
			continue
		}
		for _, t := range p.excluded {
			if t.cidr.Overlaps(pool.Spec.CIDR) {
				refused = append(refused, fmt.Sprintf("%s overlaps %s", pool.Spec.CIDR, t.why()))
				break
			}
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
	ordinal, ok := s.free(within(s.block.Spec.CIDR, p.excluded))
	if !ok {
		return netip.Addr{}, false
	}
	s.block.Spec.Next = (ordinal + 1) % s.block.Size()
	return p.take(s, ordinal), true
}

// again is the address that the handle has in a block of this node.
func (p *planner) again(v6 bool) (netip.Addr, bool) {
	for _, b := range p.src.BlocksOf(p.node) {
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
	for _, r := range p.src.Reservations() {
		if r.Spec.For == "" || r.Spec.For != p.req.Workload && r.Spec.For != p.req.Name {
			continue
		}
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
// pool; then of another node's block; then the one longest in quarantine.
func (p *planner) search(pools []*datastore.Pool) (netip.Addr, bool) {
	for _, pool := range pools {
		for _, b := range p.src.BlocksOf(p.node) {
			if pool.Spec.CIDR.Overlaps(b.Spec.CIDR) {
				if a, ok := p.fit(p.open(b)); ok {
					return a, true
				}
			}
		}
		if s := p.claim(pool); s != nil {
			return p.fit(s)
		}
	}
	return p.borrow(pools)
}

// claim gives the node a block of the pool: one without a node, or a new one.
func (p *planner) claim(pool *datastore.Pool) *space {
	for _, b := range p.src.Blocks() {
		if b.Spec.Affinity == "" && pool.Spec.CIDR.Overlaps(b.Spec.CIDR) {
			s := p.open(b)
			if _, ok := s.free(within(b.Spec.CIDR, p.excluded)); ok {
				p.own(s)
				return s
			}
		}
	}
	cidr, ok := newBlock(pool.Spec, p.node, p.src.Blocks(), p.excluded)
	if !ok {
		return nil
	}
	return p.create(cidr, pool)
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
	var own, others []*datastore.Block
	for _, pool := range pools {
		for _, b := range p.src.Blocks() {
			switch {
			case !pool.Spec.CIDR.Overlaps(b.Spec.CIDR):
			case b.Spec.Affinity == p.node:
				own = append(own, b)
			default:
				others = append(others, b)
			}
		}
	}
	for _, b := range others {
		if a, ok := p.fit(p.open(b)); ok {
			return a, true
		}
	}
	for _, blocks := range [][]*datastore.Block{own, others} {
		var (
			from   *space
			oldest datastore.Released
		)
		for _, b := range blocks {
			s := p.open(b)
			if r, ok := s.resting(within(b.Spec.CIDR, p.excluded)); ok && (from == nil || older(r, oldest)) {
				from, oldest = s, r
			}
		}
		if from != nil {
			return p.take(from, oldest.Ordinal), true
		}
	}
	return netip.Addr{}, false
}

// explicit takes the wanted address: of the block it is in, whoever's that is,
// else of a new block around it.
func (p *planner) explicit(wish netip.Addr, pool *datastore.Pool) (netip.Addr, error) {
	for _, t := range p.excluded {
		if t.cidr.Contains(wish) {
			return wish, fmt.Errorf("address %s: %w: it is in %s", wish, datastore.ErrInUse, t.why())
		}
	}
	cidr := blockAround(wish, pool)
	var s *space
	if b := blockOf(p.src, wish, cidr); b != nil {
		s = p.open(b)
	} else {
		if err := p.clear(wish, cidr); err != nil {
			return wish, err
		}
		s = p.create(cidr, pool)
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
	for _, t := range p.excluded {
		if !t.part && t.cidr.Overlaps(cidr) {
			return fmt.Errorf("address %s: %w: its block %s overlaps %s", wish, datastore.ErrInUse, cidr, t.why())
		}
	}
	for _, b := range p.src.Blocks() {
		if b.Spec.CIDR.Overlaps(cidr) {
			return fmt.Errorf("address %s: %w: its block %s overlaps block %s", wish, datastore.ErrInUse, cidr, b.Spec.CIDR)
		}
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
func releasePlan(src Source, node, handle string, addrs []netip.Addr, c clock) change {
	var (
		blocks []*datastore.Block
		spaces []*space
		freed  []netip.Addr
	)
	for _, a := range addrs {
		b := blockOf(src, a, blockAround(a, poolAround(src, a)))
		if b != nil && !slices.Contains(blocks, b) {
			blocks = append(blocks, b)
		}
	}
	if addrs == nil {
		blocks = src.Blocks()
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
