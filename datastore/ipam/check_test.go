package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// findings is the report as text, one line each: problem, object, "repaired".
func findings(r Report) string {
	var lines []string
	for _, f := range r.Findings {
		what := f.Handle
		if f.Block.IsValid() {
			what = f.Block.String()
		}
		if f.Address.IsValid() {
			what = f.Address.String()
		}
		line := string(f.Problem) + " " + what
		if f.Repaired {
			line += " repaired"
		}
		lines = append(lines, strings.TrimSpace(line))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func endpointWith(node, workload string, addrs ...string) *datastore.Endpoint {
	ep := endpoint(node, workload)
	for _, a := range addrs {
		ep.Spec.Addresses = append(ep.Spec.Addresses, netip.MustParseAddr(a))
	}
	return ep
}

func TestCheckAndRepair(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"), node("n3"), node("n4", "192.168.99.2/24"))
	ctx := t.Context()
	n1, n2, n3 := w.on("n1"), w.on("n2"), w.on("n3")
	mustAssign := func(a *Allocator, req Request) {
		t.Helper()
		if _, err := a.Assign(ctx, req); err != nil {
			t.Fatal(err)
		}
	}
	mustAssign(n1, attach(endpoint("n1", "fine"), "10.0.0.1"))
	if r, err := Check(ctx, w.store); err != nil || findings(r) != "" || r.Addresses != 1 || r.Blocks != 1 || r.Endpoints != 1 {
		t.Fatalf("a sound store: %+v, %v", r, err)
	}

	w.one(n1, "n1/cni/dead/eth0", "10.0.0.2")                // leaked: no endpoint
	w.one(n1, "volume of another kind", "10.0.0.3")          // not judged
	w.put(endpointWith("n1", "moved", "10.0.0.9"))           // unallocated
	w.one(n1, "n1/cni/moved/eth0", "10.0.0.4")               // leaked: the endpoint has another
	w.put(endpointWith("n2", "bare", "10.0.0.200"))          // unallocated, no block
	w.put(endpointWith("n2", "second", "10.0.0.1"))          // double
	w.put(endpointWith("n2", "far", "8.8.8.8"))              // of no pool: a block would take 8.8.8.0/26
	w.put(endpointWith("n2", "host", "192.168.99.1"))        // a machine's, beside the node
	w.put(endpointWith("n2", "gateway", "169.254.1.1"))      // what no block can have ends no repair
	w.one(n3, "n3/cni/x/eth0", "10.0.0.65")                  // leaked in a block that will be orphaned
	mustAssign(n2, attach(endpoint("n2", "y"), "10.0.0.66")) // borrowed of that block
	w.put(&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("172.16.0.0/26"), Affinity: "n3"}})
	if err := datastore.Delete(ctx, w.store, node("n3")); err != nil {
		t.Fatal(err)
	}
	w.put(endpointWith("n3", "ghost"))
	if _, err := w.store.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: "/netctl/v1/blocks/10.0.0.128-26", Value: []byte("{}")}}}); err != nil {
		t.Fatal(err)
	}

	r, err := Repair(ctx, w.store)
	if err != nil {
		t.Fatal(err)
	}
	want(t, findings(r), strings.TrimSpace(`
double 10.0.0.1
homeless n3/cni/ghost/eth0
leaked 10.0.0.2 repaired
leaked 10.0.0.4 repaired
leaked 10.0.0.65 repaired
orphaned 10.0.0.64/26 repaired
orphaned 172.16.0.0/26 repaired
outside 172.16.0.0/26
unallocated 10.0.0.200 repaired
unallocated 10.0.0.9 repaired
unallocated 169.254.1.1
unallocated 192.168.99.1
unallocated 8.8.8.8
unreadable`))
	for _, f := range r.Findings {
		if f.Address.String() == "10.0.0.4" && !strings.Contains(f.Message, "does not have it") {
			t.Errorf("%+v: the endpoint exists", f)
		}
		if f.Message == "" || strings.Contains(f.Message, "\n") {
			t.Errorf("%+v: no line for a person", f)
		}
	}
	r, err = Check(ctx, w.store)
	if err != nil {
		t.Fatal(err)
	}
	want(t, findings(r), "double 10.0.0.1\nhomeless n3/cni/ghost/eth0\nunallocated 169.254.1.1\nunallocated 192.168.99.1\nunallocated 8.8.8.8\nunreadable")
	if b := w.block("10.0.0.64/26"); b.Spec.Affinity != "" || len(b.Spec.Allocations) != 1 {
		t.Errorf("a block with a live address of another node: %+v", b.Spec)
	}
	// Who needs a block takes the one without a node.
	if a := netip.MustParseAddr(w.one(n2, "z")); !netip.MustParsePrefix("10.0.0.192/26").Contains(a) {
		t.Errorf("%s is not of the node's own block", a)
	}
	w.one(n1, "q", "10.0.0.70")
	want(t, w.block("10.0.0.64/26").Spec.Affinity, "n1")
}

// TestRepairKeepsClocks: a tool that repairs does not judge a node's clock.
func TestRepairKeepsClocks(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/29"))
	n1 := w.on("n1")
	w.one(n1, "a", "10.0.0.1")
	w.release(n1, "a")
	w.one(n1, "n1/cni/dead/eth0", "10.0.0.2")
	w.put(endpointWith("n1", "bare", "10.0.0.3"))
	if _, err := Repair(t.Context(), w.store); err != nil {
		t.Fatal(err)
	}
	released := w.block("10.0.0.0/29").Spec.Released
	want(t, fmt.Sprint(released), fmt.Sprint([]datastore.Released{{Ordinal: 1, Boot: "boot of n1", At: w.now.Milliseconds()}, {Ordinal: 2}}))
}

func TestCheckOverlap(t *testing.T) {
	n3 := node("n3")
	n3.Status.Subnets = []netip.Prefix{netip.MustParsePrefix("10.0.0.64/28")}
	w := newWorld(t, pool("10.0.0.0/24"), n3)
	for _, c := range []string{"10.0.0.0/26", "10.0.0.32/28", "10.0.0.64/26"} {
		w.put(&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix(c), Affinity: "n1"}})
	}
	r, err := Check(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	want(t, findings(r), "overlap 10.0.0.32/28\noverlap 10.0.0.64/26")
}

func TestShow(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"), pool("fd80:24e2:f998:72d6::/64"), reservation("r", "", "10.0.0.0/30", "10.0.0.0/31"))
	w.one(w.on("n1"), "a", "10.0.0.5")
	w.one(w.on("n2"), "b", "10.0.0.6")
	w.one(w.on("n2"), "c", "10.0.0.7")
	w.release(w.on("n2"), "c")
	v, err := load(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	pools := Use(v)
	p := pools[0]
	want(t, fmt.Sprint(p.CIDR, p.Size, p.MaxBlocks, p.Used, p.Excluded, p.Free), "10.0.0.0/24 256 4 2 4 250")
	want(t, fmt.Sprintf("%+v", p.Blocks), "[{CIDR:10.0.0.0/26 Affinity:n1 Size:64 Used:2 Borrowed:1 Resting:1 Free:58}]")
	want(t, fmt.Sprint(pools[1].Size, pools[1].MaxBlocks, pools[1].Free), "18446744073709551616 288230376151711744 18446744073709551616")
}

func TestInfoAndReleaseAddress(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, pool("10.0.0.0/24"), reservation("r", "", "10.0.0.250/32"))
	if _, err := w.on("n1").Assign(ctx, attach(endpoint("n1", "live"), "10.0.0.5")); err != nil {
		t.Fatal(err)
	}
	w.one(w.on("n2"), "n2/cni/dead/eth0", "10.0.0.6")
	addr := netip.MustParseAddr
	i, err := Info(ctx, w.store, addr("10.0.0.5"))
	if err != nil || i.Pool.String() != "10.0.0.0/24" || i.Block.String() != "10.0.0.0/26" || i.Affinity != "n1" || i.Allocation == nil || i.Endpoint == nil {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err = Info(ctx, w.store, addr("10.0.0.250")); err != nil || !strings.Contains(i.Excluded, "reservation r") {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err = Info(ctx, w.store, addr("192.0.2.1")); err != nil || i != (AddressInfo{Address: addr("192.0.2.1")}) {
		t.Errorf("%+v, %v", i, err)
	}
	if h, err := ReleaseAddress(ctx, w.store, addr("10.0.0.5"), false); !errors.Is(err, datastore.ErrInUse) || !strings.Contains(err.Error(), h) {
		t.Errorf("%s, %v", h, err)
	}
	for a, force := range map[string]bool{"10.0.0.5": true, "10.0.0.6": false} {
		if _, err := ReleaseAddress(ctx, w.store, addr(a), force); err != nil {
			t.Error(err)
		}
		if i, err = Info(ctx, w.store, addr(a)); err != nil || i.Allocation != nil || !i.Released {
			t.Errorf("%+v, %v", i, err)
		}
		if _, err := ReleaseAddress(ctx, w.store, addr(a), true); !errors.Is(err, datastore.ErrNotFound) {
			t.Errorf("again: %v", err)
		}
	}
}

// TestRepairLosesRaces: what is judged wrong may be put right by its owner before
// the repair is written.
func TestRepairLosesRaces(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/24"))
	w.one(w.on("n1"), "n1/cni/late/eth0", "10.0.0.2")
	store := &counting{Store: w.store, meddle: func() { w.put(endpointWith("n1", "late", "10.0.0.2")) }}
	r, err := Repair(t.Context(), store)
	if err != nil || findings(r) != "leaked 10.0.0.2" || !strings.Contains(r.Findings[0].Message, "not repaired") {
		t.Errorf("got %+v, %v", r.Findings, err)
	}
	if i, err := Info(t.Context(), w.store, netip.MustParseAddr("10.0.0.2")); err != nil || i.Allocation == nil {
		t.Errorf("released under a live endpoint: %+v, %v", i, err)
	}

	w = newWorld(t, pool("10.0.0.0/24"))
	w.put(&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.0.0/26"), Affinity: "late"}})
	store = &counting{Store: w.store, meddle: func() { w.put(node("late")) }}
	r, err = Repair(t.Context(), store)
	if err != nil || findings(r) != "orphaned 10.0.0.0/26" || w.block("10.0.0.0/26").Spec.Affinity != "late" {
		t.Errorf("got %+v, %v", r.Findings, err)
	}

	w = newWorld(t, pool("10.0.0.0/24"))
	ep := endpointWith("n1", "leaving", "10.0.0.2")
	w.put(ep)
	store = &counting{Store: w.store, meddle: func() {
		if err := datastore.Delete(context.Background(), w.store, ep); err != nil {
			t.Fatal(err)
		}
	}}
	r, err = Repair(t.Context(), store)
	if err != nil || findings(r) != "unallocated 10.0.0.2" {
		t.Errorf("got %+v, %v", r.Findings, err)
	}
}

func TestCheckTwins(t *testing.T) {
	a, b, c, d := node("m1"), node("m1.example.com"), node("m3"), node("m4")
	a.Status.Host, b.Status.Host, c.Status.Host = "00000000000000aa", "00000000000000aa", "00000000000000cc"
	a.Spec.Addresses = []netip.Prefix{netip.MustParsePrefix("192.168.99.1/24")}
	b.Spec.Addresses = a.Spec.Addresses
	w := newWorld(t, a, b, c, d)
	r, err := Repair(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	want(t, findings(r), "twin\ntwin 192.168.99.1")
	for i, words := range []string{"nodes m1 and m1.example.com: registered by one host (00000000000000aa)", "address 192.168.99.1: nodes m1 and m1.example.com have it"} {
		if !strings.HasPrefix(r.Findings[i].Message, words) {
			t.Errorf("says %q, want %q", r.Findings[i].Message, words)
		}
	}
}
