package ipam

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// changes makes random ones of what plans are made from.
type changes struct {
	rng     *rand.Rand
	objects map[string]datastore.Object // by key
	at      int64
}

func (h *changes) change() datastore.Change {
	h.at++
	inside := func(bits int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(h.rng.IntN(16)), byte(h.rng.IntN(256))}), bits).Masked()
	}
	var o datastore.Object
	switch h.rng.IntN(4) {
	case 0, 1: // of other sizes than the pool's too
		o = &datastore.Block{Spec: datastore.BlockSpec{CIDR: inside(23 + h.rng.IntN(7)), Affinity: fmt.Sprintf("n%d", h.rng.IntN(3))}}
	case 2:
		n := node(fmt.Sprintf("n%d", h.rng.IntN(5)), "172.16.0.1/24")
		for range h.rng.IntN(3) {
			n.Status.Subnets = append(n.Status.Subnets, inside(20+h.rng.IntN(13)))
		}
		o = n
	default:
		o = reservation(fmt.Sprintf("r%d", h.rng.IntN(5)), []string{"", "w1"}[h.rng.IntN(2)], inside(20+h.rng.IntN(13)).String(), inside(24+h.rng.IntN(9)).String())
	}
	o.SetDefaults()
	key, err := datastore.KeyOf(o)
	if err != nil {
		panic(err)
	}
	c := datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, Old: h.objects[key], New: o}
	if c.Old != nil && h.rng.IntN(2) == 0 {
		c.New = nil
		delete(h.objects, key)
		return c
	}
	o.Meta().Revision = h.at
	h.objects[key] = o
	return c
}

// places are the free places for a block, found by looking at every one.
func (h *changes) places(pool netip.Prefix, size int, name string) map[netip.Prefix]bool {
	var blocks []netip.Prefix
	var all []taken
	for _, o := range h.objects {
		switch o := o.(type) {
		case *datastore.Block:
			blocks = append(blocks, o.Spec.CIDR)
		case *datastore.Node:
			all = append(all, takenByNode(o)...)
		case *datastore.Reservation:
			all = append(all, takenByReservation(o)...)
		}
	}
	free := map[netip.Prefix]bool{}
	for a := pool.Addr(); pool.Contains(a); a = datastore.LastAddr(netip.PrefixFrom(a, size)).Next() {
		c := netip.PrefixFrom(a, size)
		m, bad := new(bitmap), slices.ContainsFunc(blocks, c.Overlaps)
		for _, t := range all {
			if !t.cidr.Overlaps(c) {
				continue
			}
			if !t.part || t.cidr.Bits() <= size { // also where it is kept for the name: see keptBlock
				bad = true
			} else if t.keptFor == "" || t.keptFor != name {
				m.merge(within(c, slices.Values([]taken{t})))
			}
		}
		if n := 1 << (32 - size); !bad && m.count(n) < n {
			free[c] = true
		}
	}
	return free
}

// TestFreePlaces: after any history the index finds a free place if there is one,
// and what it excludes is what a look at everything excludes.
func TestFreePlaces(t *testing.T) {
	cidr := netip.MustParsePrefix("10.0.0.0/20")
	for seed := range uint64(20) {
		h := &changes{rng: rand.New(rand.NewPCG(seed, 6)), objects: map[string]datastore.Object{}}
		x := NewIndex(nil)
		size := 24 + h.rng.IntN(4)
		p := pool(cidr.String(), blockSize(size))
		p.SetDefaults()
		for i := range 150 {
			if i == 20 { // pools that come later see what is there
				x.Apply([]datastore.Change{{Kind: datastore.KindPool, Name: p.Metadata.Name, New: p}}, h.at)
			}
			c := h.change()
			x.Apply([]datastore.Change{c}, h.at)
			if i < 20 {
				continue
			}
			free := h.places(cidr, size, "w1")
			got, ok := x.freeBlock(p, "n"+strconv.Itoa(h.rng.IntN(9)), "w1", "")
			if ok != (len(free) > 0) || ok && !free[got] {
				t.Fatalf("seed %d, step %d: got %v, %v of %v", seed, i, got, ok, slices.Collect(maps.Keys(free)))
			}
		}
	}
}

// TestFreePlaceOfAHugePool: the cost is that of what exists.
func TestFreePlaceOfAHugePool(t *testing.T) {
	x := NewIndex(nil)
	p := pool("fd80:24e2:f998:72d6::/64")
	p.SetDefaults()
	x.Apply([]datastore.Change{{Kind: datastore.KindPool, Name: p.Metadata.Name, New: p}}, 1)
	seen := map[netip.Prefix]bool{}
	for range 200 {
		c, ok := x.freeBlock(p, "n1")
		if !ok || seen[c] || !p.Spec.CIDR.Overlaps(c) {
			t.Fatalf("got %v, %v", c, ok)
		}
		seen[c] = true
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: c}}
		b.SetDefaults()
		x.Apply([]datastore.Change{{Kind: datastore.KindBlock, Name: b.Metadata.Name, New: b}}, 2)
	}
	// A reservation of half the pool is one step too.
	for _, half := range []string{"fd80:24e2:f998:72d6::/65", "fd80:24e2:f998:72d6:8000::/65"} {
		r := reservation("half", "", half)
		x.Apply([]datastore.Change{{Kind: datastore.KindReservation, Name: "half", New: r}}, 3)
		if c, ok := x.freeBlock(p, "n1"); !ok || c.Overlaps(r.Spec.CIDRs[0]) {
			t.Errorf("got %v, %v beside %s", c, ok, half)
		}
	}
	if one, two := startOf(p.Spec, "n1"), startOf(p.Spec, "n2"); one == two {
		t.Errorf("two nodes start at %s", one)
	}
}

// cluster is an allocator of n0 in a cluster of so many nodes, each with two blocks,
// all full but for those of n0.
func cluster(t testing.TB, nodes int, poolCIDR string) (*Allocator, *Index) {
	t.Helper()
	store := memory.New()
	put := func(o datastore.Object) {
		o.SetDefaults()
		if err := datastore.Create(context.Background(), store, o); err != nil {
			t.Fatal(err)
		}
	}
	p := netip.MustParsePrefix(poolCIDR)
	put(pool(poolCIDR))
	at := p.Addr()
	for i := range nodes {
		n := node(fmt.Sprintf("n%d", i), fmt.Sprintf("172.%d.%d.1/24", 16+i/250, i%250))
		n.Status.Subnets = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), n.Spec.Addresses[0].Masked()}
		put(n)
		for range 2 {
			b := &datastore.Block{Spec: datastore.BlockSpec{Affinity: n.Metadata.Name, CIDR: netip.PrefixFrom(at, 26)}}
			for o := range 64 {
				if i > 0 {
					b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: o, Handle: fmt.Sprintf("%s/cni/w%d/eth0", n.Metadata.Name, o), Node: n.Metadata.Name})
				}
			}
			put(b)
			at = datastore.LastAddr(b.Spec.CIDR).Next()
		}
	}
	snap, err := store.List(context.Background(), datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	v := datastore.NewView()
	if _, err := v.Replace(snap); err != nil {
		t.Fatal(err)
	}
	x := NewIndex(nil)
	x.Reset(v)
	return New(Config{Node: "n0", Store: store, Boot: "b", Index: x}), x
}

// TestPlansCostNoMoreInALargeCluster counts the objects that plans look at.
func TestPlansCostNoMoreInALargeCluster(t *testing.T) {
	count := func(nodes int) (visits []int) {
		a, x := cluster(t, nodes, "10.0.0.0/12")
		step := func(what string, fn func() error, fails bool) {
			before := x.visits
			if err := fn(); (err != nil) != fails {
				t.Fatalf("%d nodes, %s: %v", nodes, what, err)
			}
			visits = append(visits, x.visits-before)
		}
		assign := func(handle string, wants ...netip.Addr) func() error {
			return func() error {
				_, err := a.Assign(t.Context(), Request{Handle: handle, Wants: wants})
				return err
			}
		}
		step("attach", assign("a"), false)
		step("another", assign("b"), false)
		for i := range 126 { // both blocks full
			step("fill", assign(fmt.Sprint("f", i)), false)
		}
		step("attach with a new block", assign("c"), false)
		step("wish", assign("d", netip.MustParseAddr("10.15.0.9")), false)
		step("wish that somebody has", assign("e", netip.MustParseAddr("10.0.0.5")), true)
		step("detach", func() error { return a.Release(t.Context(), "c", nil, nil) }, false)
		return visits
	}
	if small, large := count(10), count(1000); !slices.Equal(small, large) {
		t.Errorf("objects looked at with 10 nodes %v\nwith 1000 nodes %v", small, large)
	}
}

// TestRefusalsCostNoMoreInALargeCluster: everything is full.
func TestRefusalsCostNoMoreInALargeCluster(t *testing.T) {
	count := func(nodes int, cidr string) int {
		a, x := cluster(t, nodes, cidr)
		for i := 0; ; i++ {
			before := x.visits
			_, err := a.Assign(t.Context(), Request{Handle: fmt.Sprint("h", i)})
			if err != nil {
				if i != 128 {
					t.Fatalf("%d nodes: %d addresses: %v", nodes, i, err)
				}
				return x.visits - before
			}
		}
	}
	// 8 and 1,024 nodes fill these pools with 16 and 2,048 blocks.
	if small, large := count(8, "10.0.0.0/22"), count(1024, "10.0.0.0/15"); small != large {
		t.Errorf("%d objects looked at with 8 nodes, %d with 1024", small, large)
	}
}

// BenchmarkRefused is a request where 2,048 blocks of 1,024 nodes are full.
func BenchmarkRefused(b *testing.B) {
	a, _ := cluster(b, 1024, "10.0.0.0/15")
	for i := range 128 {
		if _, err := a.Assign(b.Context(), Request{Handle: fmt.Sprint("h", i)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := a.Assign(b.Context(), Request{Handle: "one more"}); err == nil {
			b.Fatal("there is room")
		}
	}
}

// TestIndexAhead: what a node knows before the store tells it survives older news,
// and goes with a store that is another one.
func TestIndexAhead(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"))
	a, _, refresh := viewed(t, w)
	x := a.cfg.Index
	res, err := a.Assign(t.Context(), request("h"))
	if err != nil {
		t.Fatal(err)
	}
	b := res.NewBlocks[0]
	has := func() bool { return x.blocks.get(b.Spec.CIDR) != nil }
	// News of before the commit: the block was there and went.
	x.Apply([]datastore.Change{{Kind: datastore.KindBlock, Name: b.Metadata.Name, Old: b}}, res.Revision-1)
	if !has() || len(x.ahead) != 1 {
		t.Errorf("older news took the block: %v", x.ahead)
	}
	refresh()
	if !has() || len(x.ahead) != 0 {
		t.Errorf("%v is kept though the store tells it", x.ahead)
	}
	x.Apply([]datastore.Change{{Kind: datastore.KindBlock, Name: b.Metadata.Name, Old: b}}, res.Revision+1)
	if has() {
		t.Error("a deleted block is there")
	}
	if _, err := a.Assign(t.Context(), request("h2")); err != nil {
		t.Fatal(err)
	}
	x.Reset(datastore.NewView()) // made anew
	if len(x.ahead) != 0 || len(x.blocks.values) != 0 {
		t.Errorf("of another store: %v", x.ahead)
	}
}

// TestBlocksGoBack is the measure: 1,600 addresses in turn, never more than
// one in use, leave one block.
func TestBlocksGoBack(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/16"))
	a, store, _ := viewed(t, w)
	a.cfg.Now = func() time.Duration { return w.now }
	most, withdrawn := 0, 0
	var idle []netip.Prefix
	var later time.Duration
	work := func() {
		for idle, later = a.Idle(); len(idle) > 0; idle, later = a.Idle() {
			for _, cidr := range idle {
				gone, err := a.GiveBack(t.Context(), cidr, func(context.Context) error { withdrawn++; return nil })
				if err != nil || !gone {
					t.Fatalf("%s: gone %v, %v", cidr, gone, err)
				}
			}
		}
	}
	for i := range 1600 {
		handle := fmt.Sprint("h", i)
		res, err := a.Assign(t.Context(), request(handle))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Release(t.Context(), handle, res.Addresses, nil); err != nil {
			t.Fatal(err)
		}
		w.now += 50 * time.Millisecond
		work()
		most = max(most, len(a.cfg.Index.blocksOf["n1"]))
	}
	if most > 21 { // 60 s of 20 addresses a second, and one block being filled
		t.Errorf("%d blocks at a time", most)
	}
	for later > 0 {
		w.now += later
		work()
	}
	left, err := datastore.List[*datastore.Block](t.Context(), w.store)
	if err != nil || len(left) != 1 || len(a.cfg.Index.blocksOf["n1"]) != 1 {
		t.Errorf("%d blocks left, %v", len(left), err)
	}
	if store.reads != 0 {
		t.Errorf("%d reads", store.reads)
	}
	if withdrawn < 15 {
		t.Errorf("%d routes withdrawn", withdrawn)
	}
}

// TestGiveBackLoses: somebody takes an address of the block in the meantime.
func TestGiveBackLoses(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/25"))
	a, store, refresh := viewed(t, w)
	a.cfg.Now = func() time.Duration { return w.now }
	for i := range 65 { // two blocks
		w.one(a, fmt.Sprint("h", i))
	}
	for i := range 65 {
		if err := a.Release(t.Context(), fmt.Sprint("h", i), nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if idle, later := a.Idle(); len(idle) != 0 || later != Quarantine {
		t.Fatalf("idle %v, later %v", idle, later)
	}
	w.now += Quarantine
	idle, later := a.Idle()
	if len(idle) != 1 || later != 0 {
		t.Fatalf("idle %v, later %v", idle, later)
	}
	store.meddle = func() { w.one(w.on("n2"), "theirs", idle[0].Addr().Next().String()) }
	if gone, err := a.GiveBack(t.Context(), idle[0], func(context.Context) error { return nil }); gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
	if idle, _ := a.Idle(); len(idle) != 0 {
		t.Errorf("idle %v, with an address in use", idle)
	}
	// What another machine released rests by our clock, from when we look.
	if err := w.on("n2").Release(t.Context(), "theirs", nil, nil); err != nil {
		t.Fatal(err)
	}
	refresh()
	if idle, _ = a.Idle(); len(idle) != 1 {
		t.Fatalf("idle %v", idle)
	}
	if gone, err := a.GiveBack(t.Context(), idle[0], nil); gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
	if idle, later := a.Idle(); len(idle) != 0 || later != Quarantine {
		t.Errorf("idle %v, later %v", idle, later)
	}
	// A route that cannot be withdrawn keeps the block.
	w.now += Quarantine
	if gone, err := a.GiveBack(t.Context(), idle[0], func(context.Context) error { return fmt.Errorf("no") }); gone || err == nil {
		t.Errorf("gone %v, %v", gone, err)
	}
}

// TestAWishIsNoHome: a block that was claimed for one address is not what others
// draw from next, while the node has another.
func TestAWishIsNoHome(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/20"))
	a := w.on("n1")
	home := netip.PrefixFrom(netip.MustParseAddr(w.one(a, "first")), 26).Masked()
	w.one(a, "wish", "10.0.0.5")
	for i := range 63 {
		if got := w.one(a, fmt.Sprint("h", i)); !home.Contains(netip.MustParseAddr(got)) {
			t.Fatalf("request %d got %s beside the wish, want one of %s", i, got, home)
		}
	}
	// With its home full it uses what it has before it takes another block.
	wished := w.block("10.0.0.0/26")
	if !wished.Spec.Wished {
		t.Errorf("block %+v", wished.Spec)
	}
	if got := w.one(a, "next"); !wished.Spec.CIDR.Contains(netip.MustParseAddr(got)) || w.block("10.0.0.0/26").Spec.Wished {
		t.Errorf("with its home full it got %s", got)
	}
}

// TestAShortPool: where few blocks are left, a released address is used again before
// another block is claimed, however short it has rested.
func TestAShortPool(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"))
	a := w.on("n1")
	for i := range 3 * 64 {
		w.one(a, fmt.Sprint("h", i))
	}
	given := w.one(a, "h7") // what it has already
	if err := a.Release(t.Context(), "h7", nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := w.one(a, "next"); got != given {
		t.Errorf("got %s, want %s", got, given)
	}
	if got := w.one(a, "new"); !netip.MustParsePrefix("10.0.0.0/24").Contains(netip.MustParseAddr(got)) {
		t.Errorf("got %s", got)
	}
}
