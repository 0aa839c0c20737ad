package ipam

import (
	"net/netip"

	"netctl/datastore"
)

// slots knows which places for a block a pool has left. It is a binary tree over
// the pool: a node is full if something lies over all of it or both its halves are
// full. What is asked and what changes costs its depth, however many blocks there
// are.
type slots struct {
	pool netip.Prefix
	size int                  // length of a block in bits
	over map[netip.Prefix]int // how many things lie exactly there
	full map[netip.Prefix]bool
}

func newSlots(pool netip.Prefix, size int) *slots {
	return &slots{pool: pool, size: size, over: map[netip.Prefix]int{}, full: map[netip.Prefix]bool{}}
}

// place is the node of the tree that p makes full: what is smaller than a block
// takes the place of one.
func (s *slots) place(p netip.Prefix) netip.Prefix {
	switch {
	case p.Bits() > s.size:
		return netip.PrefixFrom(p.Addr(), s.size).Masked()
	case p.Bits() < s.pool.Bits():
		return s.pool
	}
	return p
}

func (s *slots) add(p netip.Prefix) {
	p = s.place(p)
	s.over[p]++
	s.update(p)
}

func (s *slots) remove(p netip.Prefix) {
	p = s.place(p)
	if s.over[p]--; s.over[p] <= 0 {
		delete(s.over, p)
	}
	s.update(p)
}

// update sets what follows for p, and for what it is a half of.
func (s *slots) update(p netip.Prefix) {
	for {
		full := s.over[p] > 0
		if !full && p.Bits() < s.size {
			low, high := halves(p)
			full = s.full[low] && s.full[high]
		}
		if full == s.full[p] {
			return
		}
		if full {
			s.full[p] = true
		} else {
			delete(s.full, p)
		}
		if p.Bits() == s.pool.Bits() {
			return
		}
		p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
	}
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(a, p.Bits()+1)
}

// free is the first place for a block from an address on.
func (s *slots) free(from netip.Addr) (netip.Prefix, bool) {
search:
	for from.IsValid() && s.pool.Contains(from) {
		for bits := s.pool.Bits(); bits <= s.size; bits++ {
			if p := netip.PrefixFrom(from, bits).Masked(); s.full[p] {
				from = datastore.LastAddr(p).Next()
				continue search
			}
		}
		return netip.PrefixFrom(from, s.size).Masked(), true
	}
	return netip.Prefix{}, false
}
