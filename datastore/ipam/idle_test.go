package ipam

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"netctl/datastore"
)

// TestIdle: which blocks may go back, and when it is worth looking again.
func TestIdle(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/20"))
	a, _, refresh := viewed(t, w)
	a.cfg.Now = func() time.Duration { return w.now }
	nothing := func(context.Context) error { return nil }

	// A block that was claimed for a wish is not the one that is kept.
	w.one(a, "first")
	w.one(a, "wish", "10.0.0.5")
	w.release(a, "wish")
	if idle, later := a.Idle(); len(idle) != 0 || later != Quarantine {
		t.Errorf("idle %v, later %v", idle, later)
	}
	w.now += Quarantine
	idle, _ := a.Idle()
	if len(idle) != 1 || !idle[0].Contains(netip.MustParseAddr("10.0.0.5")) {
		t.Fatalf("idle %v", idle)
	}
	if gone, err := a.GiveBack(t.Context(), idle[0], nothing); !gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}

	// Of several that rest the first to be rested counts, but for the one that is kept.
	for i := range 4 * 64 {
		w.one(a, fmt.Sprint("h", i))
	}
	for i := range 4 * 64 {
		w.release(a, fmt.Sprint("h", i))
		w.now += 100 * time.Millisecond
	}
	list, err := datastore.List[*datastore.Block](t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	var rests []time.Duration // of the empty blocks, in the order of their CIDRs
	for _, b := range list {
		if len(b.Spec.Allocations) == 0 {
			last := slices.MaxFunc(b.Spec.Released, func(a, b datastore.Released) int { return cmp.Compare(a.At, b.At) })
			rests = append(rests, time.Duration(last.At)*time.Millisecond+Quarantine-w.now)
		}
	}
	if idle, later := a.Idle(); len(rests) < 3 || len(idle) != 0 || later != slices.Min(rests[1:]) || later == slices.Max(rests[1:]) {
		t.Errorf("idle %v, later %v of %v", idle, later, rests)
	}

	// Another node's block is not ours to give.
	theirs := netip.PrefixFrom(netip.MustParseAddr(w.one(w.on("n2"), "theirs")), 26).Masked()
	w.release(w.on("n2"), "theirs")
	w.now += 2 * Quarantine
	refresh()
	before := w.block(theirs.String())
	if gone, err := a.GiveBack(t.Context(), theirs, nothing); gone || err != nil {
		t.Errorf("gone %v, %v", gone, err)
	}
	if b := w.block(theirs.String()); b.Metadata.Revision != before.Metadata.Revision {
		t.Errorf("their block is %+v", b.Spec)
	}
}

// TestAheadIsForgotten: what the feed has told already is not kept beside it.
func TestAheadIsForgotten(t *testing.T) {
	x := NewIndex(nil)
	x.Apply(nil, 100)
	key := datastore.KindPrefix(datastore.KindNode) + "n1"
	for revision, kept := range map[int64]int{100: 0, 101: 1} {
		clear(x.ahead)
		x.learn(key, ahead{object: &datastore.Node{Metadata: datastore.Metadata{Name: "n1"}}, revision: revision})
		if len(x.ahead) != kept {
			t.Errorf("of revision %d at 100: %d kept", revision, len(x.ahead))
		}
	}
}

// TestAPoolOfAnotherBlockSize has its places worked out anew.
func TestAPoolOfAnotherBlockSize(t *testing.T) {
	x := NewIndex(nil)
	for _, bits := range []int{26, 27} {
		p := pool("10.0.0.0/24", blockSize(bits))
		x.put(datastore.KindPool, datastore.PoolName(p.Spec.CIDR), p)
		if got, ok := x.freeBlock(p, "n1"); !ok || got.Bits() != bits {
			t.Errorf("a free block of a pool of /%d: %v, %v", bits, got, ok)
		}
	}
}

// TestIdleOverASubnet: a block that a subnet of a node came over is not the one that is
// kept.
func TestIdleOverASubnet(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"))
	a, _, _ := viewed(t, w)
	a.cfg.Now = func() time.Duration { return w.now }
	block := netip.PrefixFrom(netip.MustParseAddr(w.one(a, "h")), 26).Masked()
	w.release(a, "h")
	w.now += Quarantine
	if idle, later := a.Idle(); len(idle) != 0 || later != 0 {
		t.Fatalf("idle %v, later %v", idle, later)
	}
	told := false
	a.cfg.Index.changed = func(node string) { told = told || node == "n1" }
	n3 := node("n3", netip.PrefixFrom(block.Addr().Next(), 28).String())
	a.cfg.Index.Apply([]datastore.Change{{Kind: datastore.KindNode, Name: "n3", New: n3}}, 1000)
	if idle, _ := a.Idle(); !told || !slices.Equal(idle, []netip.Prefix{block}) {
		t.Errorf("idle %v, told %v", idle, told)
	}
}

// TestDropPools: a pool that is removed goes when the last block of any node went, which
// every node is told; another one stays.
func TestDropPools(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"), pool("10.1.0.0/24"))
	w.one(w.on("n2"), "theirs", "10.0.0.5")
	if _, err := datastore.Modify(t.Context(), w.store, "10.0.0.0-24", func(p *datastore.Pool) error { p.Spec.Removed = true; return nil }); err != nil {
		t.Fatal(err)
	}
	a, _, refresh := viewed(t, w)
	told := 0
	a.cfg.Index.changed = func(node string) {
		if node == "" {
			told++
		}
	}
	pools := func() int {
		if err := a.DropPools(t.Context()); err != nil {
			t.Fatal(err)
		}
		list, err := datastore.List[*datastore.Pool](t.Context(), w.store)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if n := pools(); n != 2 || told != 0 {
		t.Errorf("%d pools with the block in use, told %d times", n, told)
	}
	block := w.block("10.0.0.0/26")
	if err := datastore.Delete(t.Context(), w.store, block); err != nil {
		t.Fatal(err)
	}
	a.cfg.Index.Apply([]datastore.Change{{Kind: datastore.KindBlock, Name: block.Metadata.Name, Old: block}}, block.Metadata.Revision+1)
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	if n := pools(); n != 1 {
		t.Errorf("%d pools are left", n)
	}
	refresh()
	if n := pools(); n != 1 {
		t.Errorf("%d pools are left in the end", n)
	}
}
