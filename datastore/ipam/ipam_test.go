package ipam

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// world is a store with the nodes of the documents' demo and a clock that the
// test moves.
type world struct {
	t     *testing.T
	store *memory.Store
	now   time.Duration
}

func newWorld(t *testing.T, objects ...datastore.Object) *world {
	t.Helper()
	w := &world{t: t, store: memory.New(), now: time.Hour}
	w.put(node("n1", "192.168.99.102/24"), node("n2", "192.168.99.103/24"))
	w.put(objects...)
	return w
}

func node(name string, addrs ...string) *datastore.Node {
	n := &datastore.Node{Metadata: datastore.Metadata{Name: name}}
	for _, a := range addrs {
		n.Spec.Addresses = append(n.Spec.Addresses, netip.MustParsePrefix(a))
	}
	return n
}

func pool(cidr string, change ...func(*datastore.PoolSpec)) *datastore.Pool {
	p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr)}}
	for _, c := range change {
		c(&p.Spec)
	}
	return p
}

func blockSize(n int) func(*datastore.PoolSpec) {
	return func(s *datastore.PoolSpec) { s.BlockSize = n }
}

func reservation(name, forWhom string, cidrs ...string) *datastore.Reservation {
	r := &datastore.Reservation{Metadata: datastore.Metadata{Name: name}, Spec: datastore.ReservationSpec{For: forWhom}}
	for _, c := range cidrs {
		r.Spec.CIDRs = append(r.Spec.CIDRs, netip.MustParsePrefix(c))
	}
	return r
}

func (w *world) put(objects ...datastore.Object) {
	w.t.Helper()
	for _, o := range objects {
		o.SetDefaults()
		if err := datastore.Create(context.Background(), w.store, o); err != nil {
			w.t.Fatal(err)
		}
	}
}

// on returns an allocator of a node that lists the store for each plan.
func (w *world) on(name string) *Allocator {
	return New(Config{Node: name, Store: w.store, Boot: "boot of " + name, Now: func() time.Duration { return w.now }})
}

func (w *world) assign(a *Allocator, req Request) []string {
	w.t.Helper()
	res, err := a.Assign(context.Background(), req)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, a := range res.Addresses {
		out = append(out, a.String())
	}
	return out
}

func (w *world) one(a *Allocator, handle string, wants ...string) string {
	w.t.Helper()
	return w.assign(a, request(handle, wants...))[0]
}

func (w *world) release(a *Allocator, handle string) {
	w.t.Helper()
	if err := a.Release(context.Background(), handle, nil, nil); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) block(cidr string) *datastore.Block {
	w.t.Helper()
	b, err := datastore.Get[*datastore.Block](context.Background(), w.store, datastore.PoolName(netip.MustParsePrefix(cidr)))
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func request(handle string, wants ...string) Request {
	r := Request{Handle: handle}
	for _, a := range wants {
		r.Wants = append(r.Wants, netip.MustParseAddr(a))
	}
	return r
}

func want(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func fails(t *testing.T, a *Allocator, req Request, is error, says ...string) {
	t.Helper()
	res, err := a.Assign(context.Background(), req)
	if !errors.Is(err, is) {
		t.Fatalf("got %v, %v; want error %v", res.Addresses, err, is)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

func TestDemo(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/26"), pool("192.168.0.0/16"))
	n1, n2 := w.on("n1"), w.on("n2")
	want(t, w.one(n1, "n1/cni/dataman/eth0", "10.0.0.48"), "10.0.0.48")
	want(t, w.one(n1, "n1/cni/app-a/eth0", "192.168.32.193"), "192.168.32.193")
	want(t, w.one(n2, "n2/cni/dataman/eth0", "192.168.115.193"), "192.168.115.193")
	want(t, w.one(n2, "n2/cni/app-b/eth0"), "192.168.115.192")
	for cidr, owner := range map[string]string{"10.0.0.0/26": "n1", "192.168.32.192/26": "n1", "192.168.115.192/26": "n2"} {
		want(t, w.block(cidr).Spec.Affinity, owner)
	}
}

func TestWish(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"), pool("192.168.0.0/16"), pool("10.9.0.0/24", func(s *datastore.PoolSpec) { s.Disabled = true }),
		reservation("gateways", "", "10.0.0.1/32"), reservation("db", "db1", "10.0.0.2/32"))
	n1, n2 := w.on("n1"), w.on("n2")
	w.one(n1, "a", "10.0.0.5")
	want(t, w.one(n2, "b", "10.0.0.6"), "10.0.0.6") // borrowed
	want(t, w.block("10.0.0.0/26").Spec.Affinity, "n1")
	want(t, w.block("10.0.0.0/26").Spec.Allocations[1].Node, "n2")

	fails(t, n2, request("c", "10.0.0.5"), datastore.ErrInUse, "10.0.0.5", "held by a")
	fails(t, n2, request("c", "10.0.0.1"), datastore.ErrInUse, "reservation gateways")
	fails(t, n2, request("c", "10.0.0.2"), datastore.ErrInUse, "reservation db")
	fails(t, n2, request("c", "10.9.0.2"), datastore.ErrInvalid, "10.9.0.0/24 is disabled")
	fails(t, n2, request("c", "172.16.0.1"), datastore.ErrInvalid, "10.0.0.0/24, 192.168.0.0/16")
	fails(t, n2, request("c", "192.168.99.7"), datastore.ErrInUse, "192.168.99.0/24", "node n1")
	fails(t, n2, request("c", "10.0.0.7", "10.0.0.8"), datastore.ErrInvalid, "only one of a family")
	fails(t, n2, Request{Handle: "c", Pools: []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}}, datastore.ErrNotFound, "10.7.0.0/16")
	fails(t, w.on("n3"), request("c"), datastore.ErrNotFound, "n3")

	// The same handle again gets what it has.
	want(t, w.one(n1, "a"), "10.0.0.5")
	want(t, w.one(n1, "a", "10.0.0.5"), "10.0.0.5")
	// What is kept for a workload it gets without asking.
	want(t, w.assign(n2, Request{Handle: "d", Name: "db1"})[0], "10.0.0.2")
}

func TestConnectedSubnets(t *testing.T) {
	n3 := node("n3")
	n3.Status.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/25"), netip.MustParsePrefix("10.1.0.200/32")}
	w := newWorld(t, n3, pool("10.1.0.0/24"), reservation("half", "", "10.1.0.128/27", "10.1.0.162/31"))
	var got []string
	for _, h := range strings.Fields(strings.Repeat("h ", 30)) {
		got = append(got, w.one(w.on("n1"), h+string(rune('a'+len(got)))))
	}
	for _, a := range got {
		if x := netip.MustParseAddr(a); !netip.MustParsePrefix("10.1.0.160/27").Contains(x) || netip.MustParsePrefix("10.1.0.162/31").Contains(x) {
			t.Errorf("%s is in what is taken", a)
		}
	}
	fails(t, w.on("n1"), request("x"), datastore.ErrExhausted, "10.1.0.0/24")
	fails(t, w.on("n1"), request("x", "10.1.0.201"), datastore.ErrInUse, "10.1.0.192/26", "10.1.0.200/32")

	w = newWorld(t, n3fresh(), pool("10.1.0.0/25"))
	fails(t, w.on("n1"), request("x"), datastore.ErrExhausted, "10.1.0.0/25 overlaps 10.1.0.0/25", "node n3")
}

func n3fresh() *datastore.Node {
	n := node("n3")
	n.Status.Subnets = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/25")}
	return n
}

func TestPoolOrder(t *testing.T) {
	rack := func(s *datastore.PoolSpec) { s.NodeSelector = "rack == 'a'" }
	w := newWorld(t, pool("10.2.0.0/30", blockSize(31)), pool("10.1.0.0/30", blockSize(30)), pool("10.0.0.0/30", rack))
	n1 := w.on("n1")
	var got []string
	for _, h := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		got = append(got, w.one(n1, h))
	}
	slices.Sort(got)
	want(t, strings.Join(got, " "), "10.1.0.0 10.1.0.1 10.1.0.2 10.1.0.3 10.2.0.0 10.2.0.1 10.2.0.2 10.2.0.3")
	fails(t, n1, request("i"), datastore.ErrExhausted, "10.1.0.0/30, 10.2.0.0/30", "10.0.0.0/30 does not select node n1")
	// A list overrides the selector, and its order counts.
	want(t, w.assign(n1, Request{Handle: "i", Pools: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/30"), netip.MustParsePrefix("10.0.0.0/30")}})[0], "10.0.0.0")
}

func TestBorrow(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/29", blockSize(30)))
	n1, n2, n3 := w.on("n1"), w.on("n2"), w.on("n3")
	w.put(node("n3"))
	first := w.one(n1, "a")
	w.one(n2, "b")
	got := netip.MustParseAddr(w.one(n3, "c")) // no block is left
	own := 0
	blocks, err := datastore.List[*datastore.Block](t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if b.Spec.CIDR.Contains(got) && b.Spec.Affinity != "n3" {
			own++
		}
	}
	if own != 1 || len(blocks) != 2 {
		t.Errorf("%s is not borrowed: %d blocks", got, len(blocks))
	}
	w.release(n3, "c")
	// All six others, then what rests: own first.
	for _, h := range strings.Fields("d e f g h") {
		w.one(n3, h)
	}
	want(t, w.one(n3, "i"), got.String())
	fails(t, n1, request("x"), datastore.ErrExhausted)
	w.release(n1, "a")
	want(t, w.one(n3, "x"), first)
	// Of two that rest, a node takes its own, even if the other rests longer.
	w.release(n3, "x")
	w.now += time.Second
	w.release(n2, "b")
	if got := w.one(n2, "y"); got == first {
		t.Errorf("%s is not of the node's own block", got)
	}
}

func TestQuarantine(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/29"))
	n1 := w.on("n1")
	for _, h := range strings.Fields("a b c d e f g h") {
		w.one(n1, h)
	}
	w.release(n1, "c") // 10.0.0.2
	w.now += 10 * time.Second
	w.release(n1, "a") // 10.0.0.0
	w.release(n1, "a")
	want(t, w.one(n1, "i", "10.0.0.0"), "10.0.0.0") // explicit: at once
	w.release(n1, "i")
	w.now += 49 * time.Second
	want(t, w.one(n1, "j"), "10.0.0.2") // nothing else is left: the oldest
	w.release(n1, "f")                  // 10.0.0.5
	w.now += 12 * time.Second           // 10.0.0.0 has rested, 10.0.0.5 has not
	want(t, w.one(n1, "k"), "10.0.0.0")
	want(t, w.one(n1, "l"), "10.0.0.5")
	w.release(n1, "h") // 10.0.0.7
	w.release(n1, "g") // 10.0.0.6
	rebooted := New(Config{Node: "n1", Store: w.store, Boot: "another", Now: func() time.Duration { return 0 }})
	want(t, w.one(rebooted, "m"), "10.0.0.6")
	if r := w.block("10.0.0.0/29").Spec.Released; len(r) != 0 {
		t.Errorf("quarantines of the last boot are left: %v", r)
	}
}

func TestQuarantineByAnother(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/30"))
	n1, n2 := w.on("n1"), w.on("n2")
	w.one(n1, "a")
	w.one(n2, "b", "10.0.0.1")
	w.release(n2, "b")
	w.now += time.Minute // n1's clock did not see it
	want(t, w.one(n1, "c"), "10.0.0.2")
	w.now += 59 * time.Second
	want(t, w.one(n1, "d"), "10.0.0.3")
	w.release(n1, "a")
	w.now += time.Second
	want(t, w.one(n1, "e"), "10.0.0.1") // a minute since n1 first wrote the block
}

func TestNextFit(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/26"))
	n1 := w.on("n1")
	want(t, w.one(n1, "a"), "10.0.0.0")
	w.release(n1, "a")
	w.now += time.Hour
	want(t, w.one(n1, "b"), "10.0.0.1")
	want(t, w.one(n1, "c", "10.0.0.40"), "10.0.0.40")
	want(t, w.one(n1, "d"), "10.0.0.2")
}

func TestIPv6(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/26"), pool("fd80:24e2:f998:72d6::/64"), node("n6", "192.168.99.104/24", "fd00:99::4/64"))
	n1, n6 := w.on("n1"), w.on("n6")
	fails(t, n1, Request{Handle: "a", V6: true}, datastore.ErrInvalid, "node n1")
	fails(t, n1, request("a", "fd80:24e2:f998:72d6::7"), datastore.ErrInvalid, "node n1")
	if got := w.assign(n6, Request{Handle: "b"}); len(got) != 1 {
		t.Errorf("got %v without asking for IPv6", got)
	}
	got := w.assign(n6, Request{Handle: "c", V6: true})
	if len(got) != 2 || !strings.HasPrefix(got[1], "fd80:24e2:f998:72d6:") {
		t.Errorf("got %v", got)
	}
	got = w.assign(n6, Request{Handle: "d", V6: true, Pools: []netip.Prefix{netip.MustParsePrefix("fd80:24e2:f998:72d6::/64")}})
	if len(got) != 1 {
		t.Errorf("got %v of an IPv6 pool", got)
	}
	want(t, w.assign(n6, request("e", "fd80:24e2:f998:72d6::7"))[1], "fd80:24e2:f998:72d6::7")
	fails(t, n6, Request{Handle: "f", V6: true, Pools: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/26")}}, datastore.ErrExhausted, "no IPv6 pool for node n6")
}

// TestIPv6Alone: without an IPv4 pool an endpoint has an IPv6 address, asked for or not.
func TestIPv6Alone(t *testing.T) {
	w := newWorld(t, pool("fd80:24e2:f998:72d6::/64"), node("n6", "fd00:99::4/64"))
	n6 := w.on("n6")
	for _, req := range []Request{{Handle: "a"}, {Handle: "b", V6: true}, {Handle: "c", Pools: []netip.Prefix{netip.MustParsePrefix("fd80:24e2:f998:72d6::/64")}}} {
		if got := w.assign(n6, req); len(got) != 1 || !strings.HasPrefix(got[0], "fd80:24e2:f998:72d6:") {
			t.Errorf("%s got %v", req.Handle, got)
		}
	}
	fails(t, w.on("n1"), Request{Handle: "d"}, datastore.ErrExhausted, "no IPv4 pool for node n1")
	fails(t, n6, request("e", "10.0.0.1"), datastore.ErrInvalid, "no IPv4 pool for node n6")
}

// TestIPv6AskedForAlone: a pool of other nodes, in which nobody here has an address, keeps
// nobody from an IPv6 address that was asked for; one that is disabled does.
func TestIPv6AskedForAlone(t *testing.T) {
	elsewhere := func(s *datastore.PoolSpec) { s.NodeSelector = "rack == 'b'" }
	w := newWorld(t, pool("10.0.0.0/26", elsewhere), pool("fd80:24e2:f998:72d6::/64"), node("n6", "192.168.99.104/24", "fd00:99::4/64"))
	if got := w.assign(w.on("n6"), Request{Handle: "a", V6: true}); len(got) != 1 || !strings.HasPrefix(got[0], "fd80:24e2:f998:72d6:") {
		t.Errorf("got %v", got)
	}
	fails(t, w.on("n6"), Request{Handle: "b"}, datastore.ErrExhausted, "does not select node n6")
	w.put(pool("10.1.0.0/26", func(s *datastore.PoolSpec) { s.Disabled = true }))
	fails(t, w.on("n6"), Request{Handle: "c", V6: true}, datastore.ErrExhausted, "10.1.0.0/26 is disabled")
}

// TestLargestBlock: a full one of the longest names can be stored.
func TestLargestBlock(t *testing.T) {
	long := strings.Repeat("n", datastore.MaxName)
	b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.0.0/22"), Affinity: long}}
	for i := range b.Size() {
		b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: i, Node: long, Workload: long,
			Handle: datastore.EndpointName(long, long, long, "fifteen-letters"), Time: time.Now()})
	}
	if _, _, err := datastore.OpPut(b); err != nil {
		t.Error(err)
	}
}

// TestRestoreIntoAnotherStore: the blocks of the store before are no knowledge of
// the one that is adopted, whatever its revision.
func TestRestoreIntoAnotherStore(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"))
	empty, err := w.store.List(context.Background(), datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	a := w.on("n1")
	req := request("h", "10.0.0.5")
	req.Restore = true
	for range 2 {
		want(t, w.assign(a, req)[0], "10.0.0.5")
		if b := w.block("10.0.0.0/26"); len(b.Spec.Allocations) != 1 {
			t.Errorf("allocations %v", b.Spec.Allocations)
		}
		w.store.Restore(empty)
	}
}
