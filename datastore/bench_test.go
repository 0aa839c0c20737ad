package datastore

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// cluster is the listing of a large cluster: nodes with a block each of 100
// endpoints, and as many profiles as nodes.
func cluster(tb testing.TB, nodes, perNode int) Snapshot {
	tb.Helper()
	var s Snapshot
	put := func(o Object) {
		_, op, err := OpPut(o)
		if err != nil {
			tb.Fatal(err)
		}
		s.Revision++
		s.Entries = append(s.Entries, Entry{Key: op.Key, Value: op.Value, Revision: s.Revision})
	}
	when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var endpoints []*Endpoint
	for n := range nodes {
		node := fmt.Sprintf("node-%04d", n)
		put(&Node{Metadata: Metadata{Name: node}, Spec: NodeSpec{Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(n >> 8), byte(n)}), 16)}}, Status: NodeStatus{Host: "0123456789abcdef"}})
		put(&Profile{Metadata: Metadata{Name: fmt.Sprintf("profile-%04d", n)}})
		base := uint32(10<<24 + n<<7)
		at := func(i int) netip.Addr {
			a := base + uint32(i)
			return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
		}
		b := &Block{Spec: BlockSpec{CIDR: netip.PrefixFrom(at(0), 25), Affinity: node}}
		for i := range perNode {
			workload := fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, n, i)))
			e := &Endpoint{Spec: EndpointSpec{Node: node, Orchestrator: "cni", Workload: workload, Interface: "eth0",
				Network: fmt.Sprintf("profile-%04d", i*7%nodes), Link: LinkName("nc", EndpointName(node, "cni", workload, "eth0")), MAC: fmt.Sprintf("02:00:00:00:%02x:%02x", n&255, i),
				Addresses: []netip.Addr{at(i)}, Profiles: []string{fmt.Sprintf("profile-%04d", i*7%nodes)}}}
			e.SetDefaults()
			endpoints = append(endpoints, e)
			b.Spec.Allocations = append(b.Spec.Allocations, Allocation{Ordinal: i, Handle: e.Metadata.Name, Node: node, Workload: workload, Time: when})
		}
		put(b)
	}
	for _, e := range endpoints {
		put(e)
	}
	return s
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func live() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkViewOfALargeCluster is what the store's side of a role's start costs at
// 1,000 nodes, 100,000 endpoints and 1,000 profiles: CPU time of the first listing,
// of the same listing again, and the memory that stays.
func BenchmarkViewOfALargeCluster(b *testing.B) {
	s := cluster(b, 1000, 100)
	for b.Loop() {
		before, start := live(), cpu()
		v := NewView()
		if _, err := v.Replace(s); err != nil {
			b.Fatal(err)
		}
		first := cpu()
		if changes, err := v.Replace(s); err != nil || len(changes) != 0 {
			b.Fatal(len(changes), err)
		}
		b.ReportMetric(float64((first - start).Milliseconds()), "ms/first")
		b.ReportMetric(float64((cpu() - first).Milliseconds()), "ms/again")
		b.ReportMetric(float64(live()-before)/1e6, "MB-live")
		runtime.KeepAlive(v)
	}
}

func BenchmarkDecode(b *testing.B) {
	s := cluster(b, 10, 100)
	for _, i := range []int{0, 1, 2, len(s.Entries) - 1} {
		e := s.Entries[i]
		kind, _, _ := ParseKey(e.Key)
		b.Run(string(kind), func(b *testing.B) {
			b.ReportAllocs()
			v := NewView()
			if _, err := v.Replace(s); err != nil {
				b.Fatal(err)
			}
			d := v.decoder
			for b.Loop() {
				if _, _, err := d.stored(e.Key, e.Value); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecodeManyRules is a profile of which one rule of 1,000 changed.
func BenchmarkDecodeManyRules(b *testing.B) {
	p := &Profile{Metadata: Metadata{Name: "p"}}
	for i := range MaxRules {
		r, err := ParseRule(fmt.Sprintf("allow tcp from tag t%d to ports %d", i, i+1))
		if err != nil {
			b.Fatal(err)
		}
		p.Spec.Inbound = append(p.Spec.Inbound, r)
	}
	_, op, err := OpPut(p)
	if err != nil {
		b.Fatal(err)
	}
	d := NewView().decoder
	for b.Loop() {
		if _, _, err := d.stored(op.Key, op.Value); err != nil {
			b.Fatal(err)
		}
	}
}
