package ipam

import (
	"iter"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// prefixMap is a map by masked prefix, of both families, that also tells which of
// its prefixes lie around or inside another. Its zero value is empty.
type prefixMap[T any] struct {
	values  map[netip.Prefix]T
	sorted  []netip.Prefix // by address, then length
	lengths [2][129]int    // how many prefixes of IPv4 and IPv6 there are of each
	bulk    bool           // sorted is to be sorted before it is used
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (m *prefixMap[T]) get(p netip.Prefix) T { return m.values[p] }

func (m *prefixMap[T]) set(p netip.Prefix, v T) {
	if m.values == nil {
		m.values = map[netip.Prefix]T{}
	}
	if _, ok := m.values[p]; !ok {
		m.lengths[family(p.Addr())][p.Bits()]++
		if m.bulk {
			m.sorted = append(m.sorted, p)
		} else {
			i, _ := slices.BinarySearchFunc(m.sorted, p, datastore.ComparePrefix)
			m.sorted = slices.Insert(m.sorted, i, p)
		}
	}
	m.values[p] = v
}

func (m *prefixMap[T]) remove(p netip.Prefix) {
	if _, ok := m.values[p]; !ok {
		return
	}
	m.sort()
	delete(m.values, p)
	m.lengths[family(p.Addr())][p.Bits()]--
	if i, ok := slices.BinarySearchFunc(m.sorted, p, datastore.ComparePrefix); ok {
		m.sorted = slices.Delete(m.sorted, i, i+1)
	}
}

// sort ends the filling in bulk.
func (m *prefixMap[T]) sort() {
	if m.bulk {
		slices.SortFunc(m.sorted, datastore.ComparePrefix)
		m.bulk = false
	}
}

// around yields the prefixes that hold all of p, the widest first.
func (m *prefixMap[T]) around(p netip.Prefix) iter.Seq2[netip.Prefix, T] {
	return func(yield func(netip.Prefix, T) bool) {
		for bits, n := range m.lengths[family(p.Addr())][:p.Bits()+1] {
			if n == 0 {
				continue
			}
			wider := netip.PrefixFrom(p.Addr(), bits).Masked()
			if v, ok := m.values[wider]; ok && !yield(wider, v) {
				return
			}
		}
	}
}

// overlapping yields the prefixes around p and then, by address, those inside it.
func (m *prefixMap[T]) overlapping(p netip.Prefix) iter.Seq2[netip.Prefix, T] {
	return func(yield func(netip.Prefix, T) bool) {
		for wider, v := range m.around(p) {
			if !yield(wider, v) {
				return
			}
		}
		m.sort()
		i, _ := slices.BinarySearchFunc(m.sorted, p, datastore.ComparePrefix)
		for _, inner := range m.sorted[i:] {
			if !p.Contains(inner.Addr()) {
				return
			}
			if inner.Bits() > p.Bits() && !yield(inner, m.values[inner]) {
				return
			}
		}
	}
}

// inside is how many prefixes lie in p, itself included.
func (m *prefixMap[T]) inside(p netip.Prefix) int {
	m.sort()
	i, _ := slices.BinarySearchFunc(m.sorted, p, datastore.ComparePrefix)
	end := datastore.LastAddr(p)
	j, _ := slices.BinarySearchFunc(m.sorted[i:], end, func(q netip.Prefix, a netip.Addr) int {
		if c := q.Addr().Compare(a); c != 0 {
			return c
		}
		return -1 // all that begin there are inside
	})
	return j
}
