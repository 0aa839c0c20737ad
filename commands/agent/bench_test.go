//go:build bench

package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// TestBenchCluster runs one agent on fakes in a cluster of 1,000 nodes with 100,000
// endpoints and 1,000 profiles, and measures what it costs this node.
func TestBenchCluster(t *testing.T) {
	const nodes, each, profiles, events = 1000, 100, 1000, 200
	w := newWorld(t)
	w.log = slog.New(slog.DiscardHandler)
	var t0 datastore.Txn
	flush := func() {
		if len(t0.Then) > 0 {
			if _, err := w.store.Commit(t.Context(), t0); err != nil {
				t.Fatal(err)
			}
		}
		t0 = datastore.Txn{}
	}
	put := func(o datastore.Object) {
		o.SetDefaults()
		_, op, err := datastore.OpPut(o)
		if err != nil {
			t.Fatal(err)
		}
		if t0.Then = append(t0.Then, op); len(t0.Then) == datastore.MaxTxnOps {
			flush()
		}
	}
	w.pool("10.0.0.0/8")
	for i := range profiles {
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("p", i)}})
	}
	at := netip.MustParseAddr("10.0.0.0")
	for i := range nodes {
		name := fmt.Sprint("other", i)
		put(&datastore.Node{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 16)}}})
		for j := range each {
			if j%50 == 0 {
				b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.PrefixFrom(at, 26), Affinity: name}}
				a := at
				for o := range 50 {
					b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: o, Node: name, Workload: fmt.Sprint("w", j+o),
						Handle: datastore.EndpointName(name, "cni", fmt.Sprint("w", j+o), "eth0"), Time: time.Unix(1700000000, 0)})
				}
				put(b)
				for o := range 50 {
					put(remote(name, fmt.Sprint("w", j+o), a, fmt.Sprint("p", (i*each+j+o)%profiles)))
					a = a.Next()
				}
				at = netip.AddrFrom4([4]byte{10, byte((i*2 + j/50 + 1) >> 10), byte((i*2 + j/50 + 1) >> 2), byte((i*2 + j/50 + 1) << 6)})
			}
		}
	}
	flush()
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, began := heap(), time.Now()
	w.start()
	w.ready()
	start, live := time.Since(began), heap()-before

	measure := func(make func(i int) datastore.Object) float64 {
		write := func(s datastore.Store) time.Duration {
			from := cpu()
			for i := range events {
				if err := datastore.Create(t.Context(), s, make(i)); err != nil {
					t.Fatal(err)
				}
			}
			if s == datastore.Store(w.store) {
				w.settled()
			}
			return cpu() - from
		}
		w.settled()
		runtime.GC()
		alone := write(memory.New()) // what writing costs, which others do
		return float64((write(w.store) - alone).Microseconds()) / events / 1000
	}
	free := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 200, byte(i >> 2), byte(i << 6)}) }
	block := measure(func(i int) datastore.Object {
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.PrefixFrom(free(i), 26), Affinity: "other1"}}
		b.SetDefaults()
		return b
	})
	elsewhere := measure(func(i int) datastore.Object {
		e := remote("other2", fmt.Sprint("new", i), free(i), "p7")
		e.SetDefaults()
		return e
	})
	for _, r := range []struct {
		what     string
		got, may float64
		unit     string
	}{
		{"start of one agent until ready", start.Seconds(), 3, "s"},
		{"  its live memory", live, 120, "MiB"},
		{"one new block elsewhere, CPU", block, 1, "ms"},
		{"one attach elsewhere, CPU", elsewhere, 0.1, "ms"},
	} {
		over := ""
		if r.got > r.may {
			over = "  OVER"
			t.Errorf("%s: %.2f %s is over %.1f", r.what, r.got, r.unit, r.may)
		}
		fmt.Printf("%-52s %9.3f %-3s %9.2f %-3s  limit%s\n", r.what, r.got, r.unit, r.may, r.unit, over)
	}
}
