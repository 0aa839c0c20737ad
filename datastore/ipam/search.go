package ipam

import (
	"cmp"
	"crypto/sha256"
	"iter"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// taken is a range that is not to be given out, and whose it is.
type taken struct {
	cidr netip.Prefix
	what string // before the name of what takes it
	name string
	// part: a block may lie around it; only the ordinals in it are skipped.
	part bool
	// keptFor is who may have it all the same.
	keptFor string
}

// why says what takes the range.
func (t taken) why() string { return t.cidr.String() + ", " + t.what + " " + t.name }

// compareTaken puts what is no part first, nodes by name before reservations.
func compareTaken(a, b taken) int {
	part := func(t taken) int {
		if t.part {
			return 1
		}
		return 0
	}
	return cmp.Or(part(a)-part(b), cmp.Compare(a.name, b.name), cmp.Compare(b.what, a.what), datastore.ComparePrefix(a.cidr, b.cidr), cmp.Compare(a.keptFor, b.keptFor))
}

// takenByNode is what a node (nil: none) has on its links.
func takenByNode(n *datastore.Node) (all []taken) {
	if n == nil {
		return nil
	}
	for _, p := range n.Spec.Addresses {
		all = append(all, taken{cidr: p.Masked(), what: "the subnet of node", name: n.Metadata.Name})
	}
	for _, p := range n.Status.Subnets {
		all = append(all, taken{cidr: p.Masked(), what: "a connected subnet of node", name: n.Metadata.Name})
	}
	return all
}

// takenByReservation is what a reservation (nil: none) keeps.
func takenByReservation(r *datastore.Reservation) (all []taken) {
	if r == nil {
		return nil
	}
	for _, p := range r.Spec.CIDRs {
		all = append(all, taken{cidr: p.Masked(), what: "reservation", name: r.Metadata.Name, part: true, keptFor: r.Spec.For})
	}
	return all
}

// exclusions are all ranges that nothing may be given out of.
func exclusions(v *datastore.View) (all []taken) {
	for _, n := range v.Nodes() {
		all = append(all, takenByNode(n)...)
	}
	for _, r := range v.Reservations() {
		all = append(all, takenByReservation(r)...)
	}
	return all
}

// within is the ordinals of block that lie in one of the ranges.
func within(block netip.Prefix, all iter.Seq[taken]) *bitmap {
	m := new(bitmap)
	for t := range all {
		switch {
		case !t.cidr.Overlaps(block):
		case t.cidr.Bits() <= block.Bits():
			m.setRange(0, ordinalOf(block, datastore.LastAddr(block)))
		default:
			m.setRange(ordinalOf(block, t.cidr.Addr()), ordinalOf(block, datastore.LastAddr(t.cidr)))
		}
	}
	return m
}

// outermost sorts prefixes and drops those that lie in another: what is left is
// disjoint.
func outermost(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, datastore.ComparePrefix)
	out := list[:0]
	for _, p := range list {
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
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
func poolAround(v *datastore.View, a netip.Addr) *datastore.Pool {
	return find(v.Pools(), func(pool *datastore.Pool) bool { return pool.Spec.CIDR.Contains(a) })
}

// blockAround is the CIDR of the block that a would be in; a pool of nil has
// blocks of the default size (docs/design.md, "The model").
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
func blockOf(v *datastore.View, a netip.Addr, likely netip.Prefix) *datastore.Block {
	if b := v.Block(datastore.PoolName(likely)); b != nil {
		return b
	}
	return find(v.Blocks(), func(b *datastore.Block) bool { return b.Spec.CIDR.Contains(a) })
}
