package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
)

// counting counts what is asked of a store and runs meddle before a commit.
type counting struct {
	datastore.Store
	reads, commits int
	meddle         func()
}

func (c *counting) Get(ctx context.Context, key string) (datastore.Entry, error) {
	c.reads++
	return c.Store.Get(ctx, key)
}

func (c *counting) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	c.reads++
	return c.Store.List(ctx, prefixes...)
}

func (c *counting) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	c.commits++
	if m := c.meddle; m != nil {
		c.meddle = nil
		m()
	}
	return c.Store.Commit(ctx, t)
}

// hung does not answer: a commit for as long as its caller waits, a read at once with why.
type hung struct {
	datastore.Store
	asked chan struct{}
}

func (h *hung) Commit(ctx context.Context, _ datastore.Txn) (int64, error) {
	h.asked <- struct{}{}
	<-ctx.Done()
	return 0, ctx.Err()
}

func (h *hung) Get(context.Context, string) (datastore.Entry, error) {
	return datastore.Entry{}, fmt.Errorf("read: %w: does not answer", datastore.ErrUnavailable)
}

// Who waits for another's commit until his time is over says why that is not done.
func TestTurnWhileStoreHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		view := datastore.NewView()
		snap, err := w.store.List(t.Context(), datastore.Prefix)
		if err == nil {
			_, err = view.Replace(snap)
		}
		if err != nil {
			t.Fatal(err)
		}
		x, store := NewIndex(nil), &hung{w.store, make(chan struct{}, 1)}
		x.Reset(view)
		a := New(Config{Node: "n1", Store: store, Boot: "b", Index: x})
		write := func([]netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
			return nil, []datastore.Op{{Key: datastore.Prefix + "a"}}, nil
		}
		long, cancel := context.WithCancel(t.Context())
		first := make(chan error)
		go func() { first <- a.Release(long, "n1/cni/a/eth0", nil, write) }()
		<-store.asked
		short, end := context.WithTimeout(t.Context(), 2*time.Second)
		defer end()
		err = a.Release(short, "n1/cni/b/eth0", nil, write)
		if !errors.Is(err, datastore.ErrUnavailable) || err.Error() != "release n1/cni/b/eth0: read: datastore unavailable: does not answer" {
			t.Errorf("got %v", err)
		}
		cancel()
		<-first
	})
}

// viewed is an allocator of n1 on a view that is as old as the test lets it be.
func viewed(t *testing.T, w *world) (*Allocator, *counting, func()) {
	t.Helper()
	store := &counting{Store: w.store}
	view, x := datastore.NewView(), NewIndex(nil)
	refresh := func() {
		snap, err := w.store.List(t.Context(), datastore.Prefix)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := view.Replace(snap); err != nil {
			t.Fatal(err)
		}
		x.Reset(view)
	}
	refresh()
	a := New(Config{Node: "n1", Store: store, Boot: "b", Index: x})
	return a, store, refresh
}

func endpoint(node, workload string) *datastore.Endpoint {
	return &datastore.Endpoint{Spec: datastore.EndpointSpec{Node: node, Orchestrator: "cni", Workload: workload, Interface: "eth0",
		Link: datastore.LinkName("nc", datastore.EndpointName(node, "cni", workload, "eth0"))}}
}

// attach asks for an address together with an endpoint that must be new.
func attach(ep *datastore.Endpoint, wants ...string) Request {
	ep.SetDefaults()
	r := request(ep.Metadata.Name, wants...)
	r.Workload = ep.Spec.Workload
	r.Commit = func(addrs []netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
		ep.Spec.Addresses = addrs
		cond, op, err := datastore.OpPut(ep)
		return []datastore.Condition{cond}, []datastore.Op{op}, err
	}
	return r
}

func TestOneTransactionWithoutReads(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"))
	a, store, refresh := viewed(t, w)
	var first netip.Addr
	for i := range 3 { // the view never learns of the block in between
		ep := endpoint("n1", "w"+string(rune('1'+i)))
		res, err := a.Assign(t.Context(), attach(ep))
		if err != nil {
			t.Fatal(err)
		}
		if (i == 0) != (len(res.NewBlocks) == 1) {
			t.Errorf("attach %d: new blocks %v", i, res.NewBlocks)
		}
		if i == 0 {
			first = res.Addresses[0]
		}
		stored, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, ep.Metadata.Name)
		if err != nil || stored.Metadata.Revision != res.Revision || stored.Spec.Addresses[0] != res.Addresses[0] {
			t.Errorf("attach %d: stored %+v, %v; result %+v", i, stored, err, res)
		}
	}
	if store.reads != 0 || store.commits != 3 {
		t.Errorf("%d reads and %d commits for three addresses", store.reads, store.commits)
	}
	refresh()
	err := a.Release(t.Context(), "n1/cni/w1/eth0", []netip.Addr{first}, func(addrs []netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
		if !slices.Equal(addrs, []netip.Addr{first}) {
			t.Errorf("released %v", addrs)
		}
		return nil, []datastore.Op{{Key: "/netctl/v1/endpoints/n1/cni/w1/eth0"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if store.reads != 0 || store.commits != 4 {
		t.Errorf("%d reads and %d commits after a release", store.reads, store.commits)
	}
	if len(a.cfg.Index.ahead) != 1 {
		t.Errorf("what the view knows already is kept: %v", a.cfg.Index.ahead)
	}
}

func TestLostRace(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/26"))
	a, store, _ := viewed(t, w)
	other := w.on("n2")
	store.meddle = func() { w.one(other, "thief") } // takes the only block
	res, err := a.Assign(t.Context(), attach(endpoint("n1", "w")))
	if err != nil {
		t.Fatal(err)
	}
	if b := w.block("10.0.0.0/26"); b.Spec.Affinity != "n2" || len(b.Spec.Allocations) != 2 {
		t.Errorf("%v of block %+v", res.Addresses, b.Spec)
	}
	store.meddle = func() { w.release(other, "thief"); w.one(other, "thief", "10.0.0.9") }
	fails(t, a, request("x", "10.0.0.9"), datastore.ErrInUse, "held by thief")

	// A block that is known only from a lost race is still somebody else's.
	w = newWorld(t, pool("10.0.0.0/26"), pool("10.1.0.0/26"))
	a, store, _ = viewed(t, w)
	store.meddle = func() { w.one(w.on("n2"), "thief", "10.0.0.1") }
	for _, h := range []string{"w", "x"} {
		if got := w.one(a, h); !strings.HasPrefix(got, "10.1.0.") {
			t.Errorf("%s borrowed %s while a block was free", h, got)
		}
	}

	// A pool that goes while a block of it is claimed.
	w = newWorld(t, pool("10.0.0.0/26"))
	a, store, _ = viewed(t, w)
	store.meddle = func() {
		if err := datastore.Delete(context.Background(), w.store, defaulted("10.0.0.0/26")); err != nil {
			t.Fatal(err)
		}
	}
	fails(t, a, request("x"), datastore.ErrExhausted, "no IPv4 pool")
}

func TestForeignConflict(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/26"))
	a, store, _ := viewed(t, w)
	taken := endpoint("n1", "w")
	taken.SetDefaults()
	store.meddle = func() { w.put(taken) }
	_, err := a.Assign(t.Context(), attach(endpoint("n1", "w")))
	if !errors.Is(err, datastore.ErrExists) || !strings.Contains(err.Error(), "endpoints/n1/cni/w/eth0") {
		t.Errorf("got %v, want that the endpoint exists", err)
	}
}

func TestUnreadableBlock(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/25"))
	key := datastore.KindPrefix(datastore.KindBlock) + datastore.PoolName(startBlock("10.0.0.0/25", "n1"))
	if _, err := w.store.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte("{")}}}); err != nil {
		t.Fatal(err)
	}
	got := netip.MustParseAddr(w.one(w.on("n1"), "a"))
	if startBlock("10.0.0.0/25", "n1").Contains(got) {
		t.Errorf("%s is of a block that cannot be read", got)
	}
}

func startBlock(cidr, node string) netip.Prefix {
	p := defaulted(cidr)
	return netip.PrefixFrom(startOf(p.Spec, node), p.Spec.BlockSize)
}

func defaulted(cidr string) *datastore.Pool {
	p := pool(cidr)
	p.SetDefaults()
	return p
}

func TestRestore(t *testing.T) {
	w := newWorld(t) // a store that came back without pools
	n1 := w.on("n1")
	req := request("n1/cni/w/eth0", "10.0.0.48", "fd00::48")
	req.Restore = true
	want(t, strings.Join(w.assign(n1, req), " "), "10.0.0.48 fd00::48")
	want(t, strings.Join(w.assign(n1, req), " "), "10.0.0.48 fd00::48")
	want(t, w.block("10.0.0.0/26").Spec.Affinity, "n1")
	req.Handle = "n2/cni/w/eth0"
	fails(t, w.on("n2"), req, datastore.ErrInUse, "held by n1/cni/w/eth0")
}

func TestStoreRestored(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/26"))
	a, _, refresh := viewed(t, w)
	for _, h := range strings.Fields("a b c") {
		w.one(a, h)
	}
	refresh()
	w.one(a, "d") // known beyond the view
	*w = *newWorld(t, pool("10.0.0.0/26"))
	a.cfg.Store = w.store
	refresh()
	want(t, w.one(a, "e", "10.0.0.3"), "10.0.0.3") // d's, before
}
