package acl

import (
	"cmp"
	"math/bits"
	"slices"

	"netctl/datastore"
)

// labelIndex knows which members have a label. There is one only while a selector
// needs it, and it is built in slices (Work).
type labelIndex struct {
	keys map[string]*labelKey
	upto int // members at places below it are in the index; whole: all are
}

// labelKey is the places of the members that have a key, and by its value.
type labelKey struct {
	all    placeSet
	values map[string]placeSet
}

func (l *labelIndex) add(place int, labels map[string]string) {
	for key, value := range labels {
		k := l.keys[key]
		if k == nil {
			k = &labelKey{values: map[string]placeSet{}}
			l.keys[key] = k
		}
		k.all = k.all.with(place)
		k.values[value] = k.values[value].with(place)
	}
}

// remove forgets a member that has been added with these labels.
func (l *labelIndex) remove(place int, labels map[string]string) {
	for key, value := range labels {
		k := l.keys[key]
		k.all = k.all.without(place)
		if len(k.all) == 0 {
			delete(l.keys, key)
			continue
		}
		if k.values[value] = k.values[value].without(place); len(k.values[value]) == 0 {
			delete(k.values, value)
		}
	}
}

// next is the first word, number from or later, with members that meet the need;
// its bits are 0 if there is none.
func (l *labelIndex) next(n *datastore.Need, from int) word {
	switch {
	case n.All != nil:
		return l.nextOfAll(n.All, from)
	case n.Any != nil:
		var first word
		for _, a := range n.Any {
			first = first.orEarlier(l.next(a, from))
		}
		return first
	}
	k := l.keys[n.Key]
	switch {
	case k == nil:
		return word{}
	case n.Values == nil:
		return k.all.next(from)
	}
	var first word
	for _, v := range n.Values {
		first = first.orEarlier(k.values[v].next(from))
	}
	return first
}

func (l *labelIndex) nextOfAll(all []*datastore.Need, from int) word {
	for {
		common := l.next(all[0], from)
		if common.bits == 0 {
			return common
		}
		for _, n := range all[1:] {
			w := l.next(n, common.number)
			if w.bits == 0 {
				return w
			}
			if w.number > common.number { // nothing in common before that one
				common = word{number: w.number - 1}
				break
			}
			common.bits &= w.bits
		}
		if common.bits != 0 {
			return common
		}
		from = common.number + 1
	}
}

// lookups is about how many look-ups next makes.
func lookups(n *datastore.Need) int {
	if n == nil {
		return 0
	}
	sum := max(1, len(n.Values))
	for _, list := range [][]*datastore.Need{n.All, n.Any} {
		for _, o := range list {
			sum += lookups(o)
		}
	}
	return sum
}

// placeSet is a set of places: the words that are not empty, ascending.
type placeSet []word

// word is the places from 64 times number on, one for each bit.
type word struct {
	number int
	bits   uint64
}

// orEarlier is the earlier one of two words, or both in one. A word without bits is
// none.
func (w word) orEarlier(o word) word {
	switch {
	case w.bits == 0 || o.bits != 0 && o.number < w.number:
		return o
	case o.bits != 0 && o.number == w.number:
		w.bits |= o.bits
	}
	return w
}

// from leaves out the places before place, which is in the word or before it.
func (w word) from(place int) word {
	if w.number == place/64 {
		w.bits &= ^uint64(0) << (place % 64)
	}
	return w
}

// take returns the lowest place of a word that is not empty, and the word without it.
func (w word) take() (place int, rest word) {
	return w.number*64 + bits.TrailingZeros64(w.bits), word{w.number, w.bits & (w.bits - 1)}
}

func (s placeSet) find(number int) (at int, found bool) {
	return slices.BinarySearchFunc(s, number, func(w word, n int) int { return cmp.Compare(w.number, n) })
}

func (s placeSet) with(place int) placeSet {
	at, found := s.find(place / 64)
	if !found {
		s = slices.Insert(s, at, word{number: place / 64})
	}
	s[at].bits |= 1 << (place % 64)
	return s
}

func (s placeSet) without(place int) placeSet {
	at, found := s.find(place / 64)
	if !found {
		return s
	}
	if s[at].bits &^= 1 << (place % 64); s[at].bits == 0 {
		s = slices.Delete(s, at, at+1)
	}
	return s
}

// next is the first word of number from or later; without bits if there is none.
func (s placeSet) next(from int) word {
	if at, _ := s.find(from); at < len(s) {
		return s[at]
	}
	return word{}
}
