package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// largeView is a view of 1000 nodes with three subnets each and ten blocks each; n1 has
// one block and room in it.
func largeView(b *testing.B, store datastore.Store) *datastore.View {
	b.Helper()
	v := datastore.NewView()
	put := func(o datastore.Object) {
		o.SetDefaults()
		key, err := datastore.KeyOf(o)
		if err != nil {
			b.Fatal(err)
		}
		value, err := datastore.Encode(o)
		if err != nil {
			b.Fatal(err)
		}
		rev, err := store.Commit(context.Background(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: value}}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := v.Apply(datastore.Entry{Key: key, Value: value, Revision: rev}); err != nil {
			b.Fatal(err)
		}
	}
	put(pool("10.0.0.0/8"))
	for i := range 1000 {
		name := fmt.Sprintf("n%d", i)
		n := node(name, fmt.Sprintf("172.16.%d.%d/20", i/250, i%250+1))
		for s := range 3 {
			n.Status.Subnets = append(n.Status.Subnets, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(160 + s), byte(i / 250), 0}), 24))
		}
		put(n)
		blocks := 10
		if name == "n1" {
			blocks = 1
		}
		for k := range blocks {
			at := (i*10 + k) * 64
			put(&datastore.Block{Spec: datastore.BlockSpec{Affinity: name,
				CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(at >> 16), byte(at >> 8), byte(at)}), 26)}})
		}
	}
	return v
}

// BenchmarkAssign is an attach and a detach on a node of a cluster of 1000.
func BenchmarkAssign(b *testing.B) {
	w := &world{store: memory.New()}
	v := largeView(b, w.store)
	x := NewIndex(nil)
	x.Reset(v)
	a := New(Config{Node: "n1", Store: w.store, Boot: "b", Index: x})
	for b.Loop() {
		res, err := a.Assign(b.Context(), Request{Handle: "h"})
		if err != nil {
			b.Fatal(err)
		}
		if err := a.Release(b.Context(), "h", res.Addresses, nil); err != nil {
			b.Fatal(err)
		}
	}
}
