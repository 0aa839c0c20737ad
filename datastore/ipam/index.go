package ipam

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"netctl/datastore"
)

// Index is what plans are made from: the nodes, pools, blocks and reservations, as
// of a revision of the store, and what this node knows to be newer. What a plan or
// a change costs does not grow with the number of nodes and blocks. Its owner feeds
// it with what the store tells, by Reset and Apply. It is safe for concurrent use;
// objects that it is given are not changed.
type Index struct {
	mu       sync.Mutex
	revision int64 // complete up to here

	nodes        map[string]*datastore.Node
	pools        prefixMap[*pooled]
	blocks       prefixMap[*datastore.Block]
	blocksOf     map[string][]*datastore.Block // by node and address
	roomy        prefixMap[*datastore.Block]   // blocks with addresses that nobody has
	released     prefixMap[*datastore.Block]   // blocks with released addresses
	excluded     prefixMap[[]taken]
	reservations map[string]*datastore.Reservation
	keptFor      map[string][]string // what For names to reservations, sorted

	// ahead is, by key, what is known beyond revision: own commits, and what a lost
	// race showed.
	ahead map[string]ahead
	// changed is told of blocks that came, changed or went, or whose pool did; nil:
	// nobody is.
	changed func(node string)
	// visits counts the objects that plans look at, for tests.
	visits int
}

// pooled is a pool and the places for blocks in it.
type pooled struct {
	*datastore.Pool
	slots *slots
}

// ahead is an object (nil: absent) as of a revision that the feed has not reached.
type ahead struct {
	object   datastore.Object
	revision int64
	// unreadable: the feed will never show what is there.
	unreadable bool
}

// NewIndex returns an empty index. changed is called, with the index locked, when a
// block of a node came, changed or went, or its pool did; with no node when a block of
// a pool that is removed went, since that may have been the last. It may be nil.
func NewIndex(changed func(node string)) *Index {
	x := &Index{ahead: map[string]ahead{}, changed: changed}
	x.clear()
	return x
}

func (x *Index) clear() {
	x.nodes, x.reservations = map[string]*datastore.Node{}, map[string]*datastore.Reservation{}
	x.keptFor, x.blocksOf = map[string][]string{}, map[string][]*datastore.Block{}
	x.pools, x.blocks, x.excluded = prefixMap[*pooled]{}, prefixMap[*datastore.Block]{}, prefixMap[[]taken]{}
	x.roomy, x.released = prefixMap[*datastore.Block]{}, prefixMap[*datastore.Block]{}
}

// Forget drops what is known beyond the feed, before a Reset to another store.
func (x *Index) Forget() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.ahead)
}

// Reset makes the index what the view holds. A view that is behind what was seen
// before is of another store, or of the same one restored: what was known beyond
// it counts no more.
func (x *Index) Reset(v *datastore.View) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if v.Revision() < x.revision {
		clear(x.ahead)
	}
	x.revision = v.Revision()
	x.clear()
	x.blocks.bulk, x.excluded.bulk, x.roomy.bulk, x.released.bulk = true, true, true, true
	for _, n := range v.Nodes() {
		x.put(datastore.KindNode, n.Metadata.Name, n)
	}
	for _, r := range v.Reservations() {
		x.put(datastore.KindReservation, r.Metadata.Name, r)
	}
	for _, b := range v.Blocks() {
		x.put(datastore.KindBlock, b.Metadata.Name, b)
	}
	for _, p := range v.Pools() {
		x.put(datastore.KindPool, p.Metadata.Name, p)
	}
	for key, a := range x.ahead {
		if kind, name, err := datastore.ParseKey(key); err == nil && (a.revision > x.revision || a.unreadable && v.Object(kind, name) == nil) {
			x.put(kind, name, a.object)
		} else {
			delete(x.ahead, key)
		}
	}
}

// Apply takes changes after which the index is complete up to revision.
func (x *Index) Apply(changes []datastore.Change, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range changes {
		if !planned(c.Kind) {
			continue
		}
		at := revision // of a deletion at most
		if c.New != nil {
			at = c.New.Meta().Revision
		}
		key := datastore.KindPrefix(c.Kind) + c.Name
		if a, ok := x.ahead[key]; ok {
			if at < a.revision {
				continue
			}
			delete(x.ahead, key)
		}
		x.put(c.Kind, c.Name, c.New)
	}
	if x.revision = max(x.revision, revision); len(x.ahead) > 0 {
		maps.DeleteFunc(x.ahead, func(_ string, a ahead) bool { return a.revision <= x.revision && !a.unreadable })
	}
}

// planned says whether plans are made from objects of a kind.
func planned(k datastore.Kind) bool {
	switch k {
	case datastore.KindNode, datastore.KindPool, datastore.KindBlock, datastore.KindReservation:
		return true
	}
	return false
}

// learn takes what is known before the feed tells it. The caller holds the lock.
func (x *Index) learn(key string, a ahead) {
	kind, name, err := datastore.ParseKey(key)
	if err != nil {
		return
	}
	if a.revision > x.revision || a.unreadable {
		x.ahead[key] = a
	}
	x.put(kind, name, a.object)
}

// put makes an object, nil for none, what the index has of that name.
func (x *Index) put(kind datastore.Kind, name string, o datastore.Object) {
	switch kind {
	case datastore.KindNode:
		n, _ := o.(*datastore.Node)
		old := x.nodes[name]
		replace(x.nodes, name, n)
		x.exclude(takenByNode(old), takenByNode(n))
	case datastore.KindReservation:
		r, _ := o.(*datastore.Reservation)
		old := x.reservations[name]
		replace(x.reservations, name, r)
		x.exclude(takenByReservation(old), takenByReservation(r))
		x.keepFor(old, r)
	case datastore.KindPool:
		if cidr, err := prefixOf(name); err == nil {
			p, _ := o.(*datastore.Pool)
			x.putPool(cidr, p)
		}
	case datastore.KindBlock:
		if cidr, err := prefixOf(name); err == nil {
			b, _ := o.(*datastore.Block)
			x.putBlock(cidr, b)
		}
	}
}

func prefixOf(name string) (netip.Prefix, error) {
	return netip.ParsePrefix(strings.Replace(name, "-", "/", 1))
}

func replace[T any](m map[string]*T, name string, o *T) {
	if o == nil {
		delete(m, name)
	} else {
		m[name] = o
	}
}

func (x *Index) keepFor(old, now *datastore.Reservation) {
	if old != nil && old.Spec.For != "" {
		names := x.keptFor[old.Spec.For]
		if i, ok := slices.BinarySearch(names, old.Metadata.Name); ok {
			x.keptFor[old.Spec.For] = slices.Delete(names, i, i+1)
		}
		if len(x.keptFor[old.Spec.For]) == 0 {
			delete(x.keptFor, old.Spec.For)
		}
	}
	if now != nil && now.Spec.For != "" {
		names := x.keptFor[now.Spec.For]
		i, _ := slices.BinarySearch(names, now.Metadata.Name)
		x.keptFor[now.Spec.For] = slices.Insert(names, i, now.Metadata.Name)
	}
}

func (x *Index) putPool(cidr netip.Prefix, p *datastore.Pool) {
	old := x.pools.get(cidr)
	if old == nil || p == nil || old.Spec.Removed != p.Spec.Removed {
		for _, b := range x.blocks.overlapping(cidr) {
			x.told(b.Spec.Affinity)
		}
	}
	switch {
	case p == nil:
		x.pools.remove(cidr)
		return
	case old != nil && old.Spec.BlockSize == p.Spec.BlockSize:
		x.pools.set(cidr, &pooled{p, old.slots})
		return
	}
	s := newSlots(cidr, p.Spec.BlockSize)
	for b := range x.blocks.overlapping(cidr) {
		s.add(b)
	}
	for e, by := range x.excluded.overlapping(cidr) {
		if obstructs(e, by, s) {
			s.add(e)
		}
	}
	x.pools.set(cidr, &pooled{p, s})
}

func (x *Index) putBlock(cidr netip.Prefix, b *datastore.Block) {
	old := x.blocks.get(cidr)
	if old != nil {
		list := x.blocksOf[old.Spec.Affinity]
		if i, ok := slices.BinarySearchFunc(list, cidr, byCIDR); ok {
			x.blocksOf[old.Spec.Affinity] = slices.Delete(list, i, i+1)
		}
		if len(x.blocksOf[old.Spec.Affinity]) == 0 {
			delete(x.blocksOf, old.Spec.Affinity)
		}
		x.told(old.Spec.Affinity)
	}
	if b == nil {
		x.blocks.remove(cidr)
	} else {
		x.blocks.set(cidr, b)
		list := x.blocksOf[b.Spec.Affinity]
		i, _ := slices.BinarySearchFunc(list, cidr, byCIDR)
		x.blocksOf[b.Spec.Affinity] = slices.Insert(list, i, b)
		x.told(b.Spec.Affinity)
	}
	member(&x.roomy, cidr, b, b != nil && len(b.Spec.Allocations)+len(b.Spec.Released) < b.Size())
	member(&x.released, cidr, b, b != nil && len(b.Spec.Released) > 0)
	if (old == nil) == (b == nil) {
		return
	}
	for _, p := range x.pools.overlapping(cidr) {
		if b == nil {
			p.slots.remove(cidr)
			if p.Spec.Removed {
				x.told("")
			}
		} else {
			p.slots.add(cidr)
		}
	}
}

func (x *Index) told(node string) {
	if x.changed != nil {
		x.changed(node)
	}
}

func byCIDR(b *datastore.Block, cidr netip.Prefix) int {
	return datastore.ComparePrefix(b.Spec.CIDR, cidr)
}

func member(m *prefixMap[*datastore.Block], cidr netip.Prefix, b *datastore.Block, is bool) {
	if is {
		m.set(cidr, b)
	} else {
		m.remove(cidr)
	}
}

// exclude takes ranges out of what is excluded, and puts others in.
func (x *Index) exclude(old, now []taken) {
	if slices.Equal(old, now) {
		return
	}
	for _, t := range old {
		x.changeExclusion(t.cidr, func(by []taken) []taken {
			if i, ok := slices.BinarySearchFunc(by, t, compareTaken); ok {
				return slices.Delete(slices.Clone(by), i, i+1)
			}
			return by
		})
	}
	for _, t := range now {
		x.changeExclusion(t.cidr, func(by []taken) []taken {
			i, _ := slices.BinarySearchFunc(by, t, compareTaken)
			return slices.Insert(slices.Clone(by), i, t)
		})
	}
}

func (x *Index) changeExclusion(cidr netip.Prefix, change func([]taken) []taken) {
	was := x.excluded.get(cidr)
	now := change(was)
	if len(now) > 0 {
		for _, b := range x.blocks.overlapping(cidr) {
			x.told(b.Spec.Affinity)
		}
	}
	if len(now) == 0 {
		x.excluded.remove(cidr)
	} else {
		x.excluded.set(cidr, now)
	}
	for _, p := range x.pools.overlapping(cidr) {
		switch before, after := obstructs(cidr, was, p.slots), obstructs(cidr, now, p.slots); {
		case after && !before:
			p.slots.add(cidr)
		case before && !after:
			p.slots.remove(cidr)
		}
	}
}

// obstructs says whether no block may lie over what is taken: of a reservation that
// is smaller than a block only the addresses are left out.
func obstructs(cidr netip.Prefix, by []taken, s *slots) bool {
	return len(by) > 0 && (cidr.Bits() <= s.size || slices.ContainsFunc(by, func(t taken) bool { return !t.part }))
}

// What follows is for plans, which hold the lock.

// sortedPools are the pools by address.
func (x *Index) sortedPools() []*datastore.Pool {
	x.pools.sort()
	out := make([]*datastore.Pool, 0, len(x.pools.sorted))
	for _, cidr := range x.pools.sorted {
		out = append(out, x.pools.get(cidr).Pool)
	}
	return out
}

// poolAround is the pool that a is in, nil if there is none.
func (x *Index) poolAround(a netip.Addr) *datastore.Pool {
	for _, p := range x.pools.around(netip.PrefixFrom(a, a.BitLen())) {
		return p.Pool
	}
	return nil
}

// blockAround is the block that a is in, nil if there is none.
func (x *Index) blockAround(a netip.Addr) *datastore.Block {
	for _, b := range x.blocks.around(netip.PrefixFrom(a, a.BitLen())) {
		return b
	}
	return nil
}

// overTaken says whether no block of that CIDR would be claimed today.
func (x *Index) overTaken(block netip.Prefix) bool {
	p := x.pools.get(x.poolAround(block.Addr()).Spec.CIDR)
	for cidr, by := range x.excluded.overlapping(block) {
		if obstructs(cidr, by, p.slots) {
			return true
		}
	}
	return false
}

// holdsNoBlock says whether no block has addresses of p.
func (x *Index) holdsNoBlock(p netip.Prefix) bool {
	for range x.blocks.overlapping(p) {
		return false
	}
	return true
}

// reservedFor are the reservations that are kept for one of the names.
func (x *Index) reservedFor(names ...string) (all []*datastore.Reservation) {
	for i, name := range names {
		if name == "" || slices.Contains(names[:i], name) {
			continue
		}
		for _, r := range x.keptFor[name] {
			all = append(all, x.reservations[r])
		}
	}
	return all
}

// taken yields what is excluded and overlaps p, leaving out reservations that are
// kept for one of the names.
func (x *Index) taken(p netip.Prefix, names ...string) iter.Seq[taken] {
	return func(yield func(taken) bool) {
		for _, by := range x.excluded.overlapping(p) {
			for _, t := range by {
				x.visits++
				if t.keptFor != "" && slices.Contains(names, t.keptFor) {
					continue
				}
				if !yield(t) {
					return
				}
				break // one is enough for a range
			}
		}
	}
}

// within is the ordinals of block that are excluded.
func (x *Index) within(block netip.Prefix, names ...string) *bitmap {
	return within(block, x.taken(block, names...))
}

// freeBlock is a place for a new block of the pool. It begins at one drawn from node
// and pool, so that nodes do not race for the same block.
func (x *Index) freeBlock(pool *datastore.Pool, node string, names ...string) (netip.Prefix, bool) {
	s := x.pools.get(pool.Spec.CIDR).slots
	start := startOf(pool.Spec, node)
	if p, ok := x.roomyPlace(s, start, netip.Addr{}, names); ok {
		return p, true
	}
	return x.roomyPlace(s, s.pool.Addr(), start, names)
}

// roomyPlace is the first free place from an address on, and before another, in
// which not every address is excluded.
func (x *Index) roomyPlace(s *slots, from, before netip.Addr, names []string) (netip.Prefix, bool) {
	for {
		x.visits++
		p, ok := s.free(from)
		if !ok || before.IsValid() && !p.Addr().Less(before) {
			return p, false
		}
		if size := 1 << (p.Addr().BitLen() - p.Bits()); x.within(p, names...).count(size) < size {
			return p, true
		}
		from = datastore.LastAddr(p).Next()
	}
}

// short says whether a pool has few places for blocks left: three quarters are
// taken.
func (x *Index) short(pool *datastore.Pool) bool {
	bits := pool.Spec.BlockSize - pool.Spec.CIDR.Bits()
	return bits < 62 && 4*x.blocks.inside(pool.Spec.CIDR) >= 3<<bits
}
