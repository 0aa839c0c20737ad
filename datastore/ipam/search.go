package ipam

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"sort"

	"netctl/datastore"
)

// taken is a range that is not to be given out, and whose it is.
type taken struct {
	cidr netip.Prefix
	what string // before the name of what takes it
	name string
	// part: a block may lie around it; only the ordinals in it are skipped.
	part bool
}

// why says what takes the range.
func (t taken) why() string { return t.cidr.String() + ", " + t.what + " " + t.name }

// exclusions are the ranges that nothing may be given out of: what any node has
// on its links, and reservations that are not kept for one of the names.
func exclusions(src Source, names ...string) []taken {
	nodes := src.Nodes()
	all := make([]taken, 0, 4*len(nodes))
	for _, n := range nodes {
		for _, p := range n.Spec.Addresses {
			all = append(all, taken{cidr: p.Masked(), what: "the subnet of node", name: n.Metadata.Name})
		}
		for _, p := range n.Status.Subnets {
			all = append(all, taken{cidr: p.Masked(), what: "a connected subnet of node", name: n.Metadata.Name})
		}
	}
	for _, r := range src.Reservations() {
		if r.Spec.For != "" && slices.Contains(names, r.Spec.For) {
			continue
		}
		for _, p := range r.Spec.CIDRs {
			all = append(all, taken{cidr: p.Masked(), what: "reservation", name: r.Metadata.Name, part: true})
		}
	}
	return all
}

// within is the ordinals of block that are excluded.
func within(block netip.Prefix, all []taken) *bitmap {
	m := new(bitmap)
	for _, t := range all {
		switch {
		case !t.cidr.Overlaps(block):
		case t.cidr.Bits() <= block.Bits():
			m.setRange(0, ordinalOf(block, last(block)))
		default:
			m.setRange(ordinalOf(block, t.cidr.Addr()), ordinalOf(block, last(t.cidr)))
		}
	}
	return m
}

// newBlock looks for a block of the pool that overlaps nothing: neither a block
// nor what is excluded. It begins at a place drawn from node and pool, so that
// nodes do not race for the same block, and leaps from one obstacle to the next:
// the cost grows with what exists, not with the size of the pool.
func newBlock(pool datastore.PoolSpec, node string, blocks []*datastore.Block, all []taken) (netip.Prefix, bool) {
	var in []netip.Prefix
	add := func(p netip.Prefix) {
		if p.Overlaps(pool.CIDR) {
			in = append(in, p)
		}
	}
	for _, b := range blocks {
		add(b.Spec.CIDR)
	}
	for _, t := range all {
		if !t.part || t.cidr.Bits() <= pool.BlockSize {
			add(t.cidr)
		}
	}
	in = outermost(in)
	start := startOf(pool, node)
	at, wrapped := start, false
	for {
		if !at.IsValid() || !pool.CIDR.Contains(at) {
			at, wrapped = pool.CIDR.Masked().Addr(), true
			if start == at {
				return netip.Prefix{}, false
			}
		}
		candidate := netip.PrefixFrom(at, pool.BlockSize)
		end := last(candidate)
		if obstacle, ok := overlapping(in, candidate); ok {
			if o := last(obstacle); end.Less(o) {
				end = o
			}
		} else if size := ordinalOf(candidate, end) + 1; within(candidate, all).count(size) < size {
			return candidate, true
		}
		next := end.Next()
		if wrapped && (!next.IsValid() || !next.Less(start)) {
			return netip.Prefix{}, false
		}
		at = next
	}
}

// outermost sorts prefixes and drops those that lie in another: what is left is
// disjoint.
func outermost(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, comparePrefix)
	out := list[:0]
	for _, p := range list {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// overlapping finds an element of a disjoint, sorted list that overlaps p; of
// several the last.
func overlapping(disjoint []netip.Prefix, p netip.Prefix) (netip.Prefix, bool) {
	end := last(p)
	i := sort.Search(len(disjoint), func(i int) bool { return end.Less(disjoint[i].Addr()) })
	if i > 0 && disjoint[i-1].Overlaps(p) {
		return disjoint[i-1], true
	}
	return netip.Prefix{}, false
}

// startOf is the first address of one of the pool's blocks, evenly drawn from
// node and pool.
func startOf(pool datastore.PoolSpec, node string) netip.Addr {
	sum := sha256.Sum256([]byte(node + " " + pool.CIDR.String()))
	b := pool.CIDR.Masked().Addr().AsSlice()
	for i := pool.CIDR.Bits(); i < pool.BlockSize; i++ {
		b[i/8] |= sum[i/8] & (0x80 >> (i % 8))
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// poolAround is the pool that a is in, nil if there is none.
func poolAround(src Source, a netip.Addr) *datastore.Pool {
	return find(src.Pools(), func(pool *datastore.Pool) bool { return pool.Spec.CIDR.Contains(a) })
}

// blockAround is the CIDR of the block that a would be in; a pool of nil has
// blocks of the default size (DESIGN section 6).
func blockAround(a netip.Addr, pool *datastore.Pool) netip.Prefix {
	size := 26
	switch {
	case pool != nil:
		size = pool.Spec.BlockSize
	case a.Is6():
		size = 122
	}
	return netip.PrefixFrom(a, size).Masked()
}

// blockOf is the block that a is in, most likely the one with that CIDR; nil if
// there is none.
func blockOf(src Source, a netip.Addr, likely netip.Prefix) *datastore.Block {
	if b := src.Block(datastore.PoolName(likely)); b != nil {
		return b
	}
	return find(src.Blocks(), func(b *datastore.Block) bool { return b.Spec.CIDR.Contains(a) })
}
