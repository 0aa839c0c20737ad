package ipam

import (
	"cmp"
	"math/bits"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// maxBlockBits is the base-2 logarithm of the largest block (a /22 or /118).
const maxBlockBits = 10

// bitmap has one bit for each ordinal of a block.
type bitmap [1 << maxBlockBits / 64]uint64

func (m *bitmap) set(i int)      { m[i/64] |= 1 << (i % 64) }
func (m *bitmap) has(i int) bool { return m[i/64]&(1<<(i%64)) != 0 }

// setRange sets first to last, both included.
func (m *bitmap) setRange(first, last int) {
	for i := first; i <= last; i++ {
		m.set(i)
	}
}

func (m *bitmap) merge(o *bitmap) {
	for i := range m {
		m[i] |= o[i]
	}
}

// count is the number of set bits below size.
func (m *bitmap) count(size int) (n int) {
	for i := range (size + 63) / 64 {
		w := m[i]
		if rest := size - i*64; rest < 64 {
			w &= 1<<rest - 1
		}
		n += bits.OnesCount64(w)
	}
	return n
}

// clear finds the first bit that is not set, from start to size and then from
// 0 to start.
func (m *bitmap) clear(start, size int) (int, bool) {
	for _, r := range [2][2]int{{start, size}, {0, start}} {
		for i := r[0]; i < r[1]; i += 64 - i%64 {
			if w := ^m[i/64] >> (i % 64); w != 0 {
				if i += bits.TrailingZeros64(w); i < r[1] {
					return i, true
				}
				break
			}
		}
	}
	return 0, false
}

// space is a block being changed: a copy, with the rules of who may take what.
type space struct {
	block *datastore.Block
	owner bool // changed on the node that the block belongs to
	clock clock
	dirty bool
}

// open copies b; the copy's spec.next is brought into range if it is not.
func open(b *datastore.Block, node string, c clock) *space {
	own := *b
	own.Spec.Allocations = slices.Clone(b.Spec.Allocations)
	own.Spec.Released = slices.Clone(b.Spec.Released)
	if own.Spec.Next < 0 || own.Spec.Next >= own.Size() {
		own.Spec.Next = 0
	}
	return &space{block: &own, owner: c.boot != "" && b.Spec.Affinity == node, clock: c}
}

func (s *space) used() *bitmap {
	m := new(bitmap)
	for _, a := range s.block.Spec.Allocations {
		m.set(a.Ordinal)
	}
	return m
}

// free is the next ordinal, next-fit, that is neither allocated, excluded nor in
// quarantine.
func (s *space) free(excluded *bitmap) (int, bool) {
	return s.unfree(excluded).clear(s.block.Spec.Next, s.block.Size())
}

// unfree are the ordinals that are allocated, excluded or in quarantine.
func (s *space) unfree(excluded *bitmap) *bitmap {
	m := s.used()
	m.merge(excluded)
	for _, r := range s.block.Spec.Released {
		if s.clock.resting(r, s.owner) {
			m.set(r.Ordinal)
		}
	}
	return m
}

// resting is the free ordinal that is longest in quarantine and not excluded.
func (s *space) resting(excluded *bitmap) (datastore.Released, bool) {
	var oldest datastore.Released
	found := false
	m := s.used()
	m.merge(excluded)
	for _, r := range s.block.Spec.Released {
		if !m.has(r.Ordinal) && s.clock.resting(r, s.owner) && (!found || older(r, oldest)) {
			oldest, found = r, true
		}
	}
	return oldest, found
}

// older orders quarantines; one without a time was released after the owner
// last looked.
func older(a, b datastore.Released) bool {
	if (a.Boot == "") != (b.Boot == "") {
		return b.Boot == ""
	}
	return a.At < b.At
}

// holder is the allocation of an ordinal, nil if it is free.
func (s *space) holder(ordinal int) *datastore.Allocation {
	i, ok := slices.BinarySearchFunc(s.block.Spec.Allocations, ordinal, byOrdinal)
	if !ok {
		return nil
	}
	return &s.block.Spec.Allocations[i]
}

// held is the address that handle holds, if any.
func (s *space) held(handle string) (netip.Addr, bool) {
	for _, a := range s.block.Spec.Allocations {
		if a.Handle == handle {
			return addressOf(s.block.Spec.CIDR, a.Ordinal), true
		}
	}
	return netip.Addr{}, false
}

// Held are the addresses of a block that handle holds.
func Held(b *datastore.Block, handle string) (list []netip.Addr) {
	for _, a := range b.Spec.Allocations {
		if a.Handle == handle {
			list = append(list, addressOf(b.Spec.CIDR, a.Ordinal))
		}
	}
	return list
}

// Borrowed are the addresses of a block that other nodes than its own have, with these.
func Borrowed(b *datastore.Block) map[netip.Addr]string {
	var out map[netip.Addr]string
	for _, a := range b.Spec.Allocations {
		if a.Node == b.Spec.Affinity {
			continue
		}
		if out == nil {
			out = map[netip.Addr]string{}
		}
		out[addressOf(b.Spec.CIDR, a.Ordinal)] = a.Node
	}
	return out
}

// take allocates a free ordinal; its quarantine is over.
func (s *space) take(a datastore.Allocation) netip.Addr {
	spec := &s.block.Spec
	i, _ := slices.BinarySearchFunc(spec.Allocations, a.Ordinal, byOrdinal)
	spec.Allocations = slices.Insert(spec.Allocations, i, a)
	spec.Released = slices.DeleteFunc(spec.Released, func(r datastore.Released) bool { return r.Ordinal == a.Ordinal })
	s.dirty = true
	return addressOf(spec.CIDR, a.Ordinal)
}

// give releases what handle holds and returns the addresses; only limits it to
// one ordinal, -1 to none.
func (s *space) give(handle string, only int) (addrs []netip.Addr) {
	spec := &s.block.Spec
	spec.Allocations = slices.DeleteFunc(spec.Allocations, func(a datastore.Allocation) bool {
		if a.Handle != handle || only >= 0 && a.Ordinal != only {
			return false
		}
		spec.Released = append(spec.Released, s.clock.released(a.Ordinal, s.owner))
		addrs = append(addrs, addressOf(spec.CIDR, a.Ordinal))
		return true
	})
	slices.SortStableFunc(spec.Released, func(a, b datastore.Released) int { return cmp.Compare(a.Ordinal, b.Ordinal) })
	spec.Released = slices.CompactFunc(spec.Released, func(a, b datastore.Released) bool { return a.Ordinal == b.Ordinal })
	s.dirty = s.dirty || len(addrs) > 0
	return addrs
}

// settle is what the owner does before it writes the block: quarantines that
// are over go, and those that another machine began start now, on our clock.
func (s *space) settle() {
	if !s.owner {
		return
	}
	spec := &s.block.Spec
	spec.Released = slices.DeleteFunc(spec.Released, func(r datastore.Released) bool { return !s.clock.resting(r, true) })
	for i, r := range spec.Released {
		if r.Boot == "" {
			spec.Released[i] = s.clock.released(r.Ordinal, true)
		}
	}
}

func byOrdinal(a datastore.Allocation, ordinal int) int { return cmp.Compare(a.Ordinal, ordinal) }

// ordinalOf is the position of a in block; a must be in it.
func ordinalOf(block netip.Prefix, a netip.Addr) int {
	first, at := block.Masked().Addr().AsSlice(), a.AsSlice()
	n := 0
	for i := range at {
		n = n<<8 | int(at[i]^first[i])
	}
	return n
}

// addressOf is the inverse of ordinalOf.
func addressOf(block netip.Prefix, ordinal int) netip.Addr {
	b := block.Masked().Addr().AsSlice()
	for i := len(b) - 1; ordinal > 0; i-- {
		b[i] |= byte(ordinal)
		ordinal >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
