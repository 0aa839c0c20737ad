package ipam

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// cutNode is a node that may be cut off from the store: then it goes by what it knew.
type cutNode struct {
	t     *testing.T
	name  string
	store *memory.Store
	cut   bool
	index *Index
	alloc *Allocator
	live  map[string]netip.Addr // by handle
	lent  map[string]bool       // handles that the store has yet to hear of
	ended map[string]bool       // handles whose release the store has yet to hear of
	next  int
}

// ways is the store as the node sees it; one commit in three that is cut off arrives.
type ways struct {
	datastore.Store
	node *cutNode
	rnd  *rand.Rand
}

var errCut = fmt.Errorf("cut: %w", datastore.ErrUnavailable)

func (w ways) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if w.node.cut {
		return 0, errCut
	}
	rev, err := w.Store.Commit(ctx, t)
	if err == nil && w.rnd.IntN(12) == 0 { // it is cut off before it hears of that
		w.node.cut = true
		return 0, errCut
	}
	return rev, err
}

func (w ways) Get(ctx context.Context, key string) (datastore.Entry, error) {
	if w.node.cut {
		return datastore.Entry{}, errCut
	}
	return w.Store.Get(ctx, key)
}

func (w ways) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	if w.node.cut {
		return datastore.Snapshot{}, errCut
	}
	return w.Store.List(ctx, prefixes...)
}

// feed tells the node what the store holds.
func (n *cutNode) feed() {
	v, err := load(n.t.Context(), n.store)
	if err != nil {
		n.t.Fatal(err)
	}
	n.index.Reset(v)
}

// add gives a new handle an address: of the store if that answers.
func (n *cutNode) add(wish netip.Addr) {
	n.next++
	req := Request{Handle: fmt.Sprintf("%s/cni/w%d/eth0", n.name, n.next), Workload: fmt.Sprint("w", n.next)}
	if wish.IsValid() {
		req.Wants = []netip.Addr{wish}
	}
	res, err := n.alloc.Assign(n.t.Context(), req)
	addrs, isAway := res.Addresses, errors.Is(err, datastore.ErrUnavailable)
	if isAway {
		addrs, err = n.alloc.Away(n.t.Context(), req)
	}
	if err != nil {
		return
	}
	for h, a := range n.live {
		if a == addrs[0] {
			n.t.Fatalf("%s gave %s to %s, %s has it", n.name, a, req.Handle, h)
		}
	}
	n.live[req.Handle] = addrs[0]
	if isAway {
		n.lent[req.Handle] = true
	}
}

// end gives an address back; the store hears of it if it answers, else once it does.
func (n *cutNode) end(handle string) {
	a := n.live[handle]
	delete(n.live, handle)
	if n.cut && n.lent[handle] {
		n.alloc.Rest(a)
	} else if err := n.alloc.Release(n.t.Context(), handle, nil, nil); err != nil {
		n.ended[handle] = true
	}
	delete(n.lent, handle)
}

// settle tells the store of what it missed, and says of whose address another has.
func (n *cutNode) settle(rnd *rand.Rand) (refused []netip.Addr) {
	for _, h := range slices.Sorted(maps.Keys(n.ended)) {
		if n.alloc.Release(n.t.Context(), h, nil, nil) != nil {
			return refused
		}
		delete(n.ended, h)
	}
	for _, h := range slices.Sorted(maps.Keys(n.lent)) {
		_, err := n.alloc.Assign(n.t.Context(), Request{Handle: h, Wants: []netip.Addr{n.live[h]}, Restore: true})
		switch {
		case errors.Is(err, datastore.ErrInUse):
			refused = append(refused, n.live[h])
			n.alloc.Rest(n.live[h])
			delete(n.live, h)
		case err != nil:
			return refused // cut off again
		}
		delete(n.lent, h)
		if rnd.IntN(4) == 0 {
			return refused // killed in between
		}
	}
	return refused
}

// TestAwayHistories: two nodes of a small pool, cut off at random, in doubt about their
// last write at random, borrow of each other and wish for each other's addresses. An
// address is never given twice by one node; one that both gave is refused when the store
// hears of it; and in the end the store has exactly what runs.
func TestAwayHistories(t *testing.T) {
	conflicts, lent := 0, 0
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 14))
		store := memory.New()
		pool := netip.MustParsePrefix("10.0.0.0/27")
		put := func(o datastore.Object) {
			o.SetDefaults()
			if err := datastore.Create(t.Context(), store, o); err != nil {
				t.Fatal(err)
			}
		}
		put(&datastore.Pool{Metadata: datastore.Metadata{Name: datastore.PoolName(pool)}, Spec: datastore.PoolSpec{CIDR: pool, BlockSize: 29}})
		var nodes []*cutNode
		for i := range 2 {
			n := &cutNode{t: t, name: fmt.Sprint("n", i), store: store, index: NewIndex(nil), live: map[string]netip.Addr{}, lent: map[string]bool{}, ended: map[string]bool{}}
			put(&datastore.Node{Metadata: datastore.Metadata{Name: n.name}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 0, byte(i + 1)}), 24)}}})
			now := time.Duration(0)
			n.alloc = New(Config{Node: n.name, Store: ways{store, n, rnd}, Index: n.index, Boot: n.name, Quarantine: time.Second,
				Now: func() time.Duration { now += 200 * time.Millisecond; return now }})
			nodes = append(nodes, n)
		}
		both := map[netip.Addr]bool{} // given by both, not refused yet
		refuse := func(list []netip.Addr) {
			for _, a := range list {
				delete(both, a)
				conflicts++
			}
		}
		for range 80 {
			n := nodes[rnd.IntN(2)]
			if !n.cut {
				n.feed()
				refuse(n.settle(rnd))
			}
			switch rnd.IntN(10) {
			case 0:
				n.cut = true
			case 1, 2:
				n.cut = false
			case 3, 4:
				if all := slices.Sorted(maps.Keys(n.live)); len(all) > 0 {
					n.end(all[rnd.IntN(len(all))])
				}
			case 5:
				n.add(netip.AddrFrom4([4]byte{10, 0, 0, byte(rnd.IntN(32))}))
			default:
				n.add(netip.Addr{})
			}
			lent += len(n.lent)
			for _, a := range nodes[0].live {
				for _, b := range nodes[1].live {
					if a == b {
						both[a] = true
					}
				}
			}
		}
		for _, n := range nodes { // all is well again
			for try := 0; try < 1000; try++ {
				n.cut = false
				n.feed()
				refuse(n.settle(rnd))
				if len(n.lent)+len(n.ended) == 0 && !n.cut {
					break
				}
			}
		}
		holders(t, store, nodes, seed)
		for a := range both {
			held := 0
			for _, n := range nodes {
				for _, is := range n.live {
					if is == a {
						held++
					}
				}
			}
			if held > 1 {
				t.Errorf("seed %d: %s is held twice, and nobody says so", seed, a)
			}
		}
	}
	if conflicts == 0 || lent == 0 {
		t.Errorf("%d conflicts, %d lent: the histories show nothing", conflicts, lent)
	}
	t.Logf("%d conflicts refused, %d lent", conflicts, lent)
}

// holders compares what the store holds with what runs.
func holders(t *testing.T, store *memory.Store, nodes []*cutNode, seed uint64) {
	t.Helper()
	blocks, err := datastore.List[*datastore.Block](t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]netip.Addr{}
	for _, b := range blocks {
		for _, a := range b.Spec.Allocations {
			addr := addressOf(b.Spec.CIDR, a.Ordinal)
			if was, twice := stored[a.Handle]; twice {
				t.Errorf("seed %d: %s holds %s and %s", seed, a.Handle, was, addr)
			}
			stored[a.Handle] = addr
		}
	}
	for _, n := range nodes {
		for h, a := range n.live {
			if stored[h] != a {
				t.Errorf("seed %d: %s runs with %s, the store has %v", seed, h, a, stored[h])
			}
		}
	}
}

// TestAwayWithoutABlock: a node that has none is not told that its blocks are full.
func TestAwayWithoutABlock(t *testing.T) {
	s := memory.New()
	if err := datastore.Create(t.Context(), s, &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/24")}}); err != nil {
		t.Fatal(err)
	}
	if err := datastore.Create(t.Context(), s, &datastore.Node{Metadata: datastore.Metadata{Name: "n6"}}); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{Node: "n6", Store: s}).Away(t.Context(), Request{Handle: "n6/cni/a/eth0"})
	if !errors.Is(err, datastore.ErrExhausted) || !strings.Contains(err.Error(), "node n6 has no block yet") {
		t.Error(err)
	}
}
