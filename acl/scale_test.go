package acl

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"netctl/datastore"
)

// policyScale is a cluster with policies: as many endpoints, 200 of them of this node.
func policyScale(b *testing.B, endpoints, policies int) (*Index, func(i int) *datastore.Policy) {
	b.Helper()
	x := NewIndex("node0", testOptions())
	put := func(o datastore.Object) {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	for i := range endpoints {
		node := fmt.Sprint("node", i%(endpoints/200))
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: fmt.Sprintf("%s/cni/w%d/eth0", node, i), Labels: map[string]string{"role": fmt.Sprint("r", i%100), "zone": fmt.Sprint("z", i%7)}}}
		e.Spec = datastore.EndpointSpec{Node: node, Link: fmt.Sprint("nc", i), Profiles: []string{"web"}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
		put(e)
	}
	policy := func(i int) *datastore.Policy {
		p := &datastore.Policy{Metadata: datastore.Metadata{Name: fmt.Sprint("p", i)}}
		p.Spec.Order, p.Spec.Selector, p.Spec.Tier = new(i), fmt.Sprintf("role == 'r%d'", i%100), []string{"default", "first"}[i%2]
		for _, text := range []string{fmt.Sprintf("allow tcp from selector \"role == 'r%d'\" to ports %d", (i+1)%100, 1000+i), "pass udp"} {
			r, err := datastore.ParseRule(text)
			if err != nil {
				b.Fatal(err)
			}
			p.Spec.Ingress = append(p.Spec.Ingress, r)
		}
		p.SetDefaults()
		return p
	}
	for i := range policies {
		put(policy(i))
	}
	for x.Work() {
	}
	x.Flush()
	return x, policy
}

// BenchmarkPolicyStart is the whole of 100,000 endpoints and 1,000 policies, endpoints
// first, as a listing has them.
func BenchmarkPolicyStart(b *testing.B) {
	for b.Loop() {
		policyScale(b, 100_000, 1000)
	}
}

// BenchmarkPolicyEvent changes a rule of a policy that two endpoints of this node have, and
// moves it, in such a cluster.
func BenchmarkPolicyEvent(b *testing.B) {
	x, policy := policyScale(b, 100_000, 1000)
	for name, change := range map[string]func(n int, p *datastore.Policy){
		"rule":  func(n int, p *datastore.Policy) { p.Spec.Ingress = p.Spec.Ingress[n%2:] },
		"order": func(n int, p *datastore.Policy) { p.Spec.Order = new(10 + n%2) },
	} {
		b.Run(name, func(b *testing.B) {
			for n := 0; b.Loop(); n++ {
				p := policy(7)
				change(n, p)
				x.Apply(datastore.Change{Kind: datastore.KindPolicy, Name: p.Metadata.Name, New: p})
				for x.Work() {
				}
				x.Flush()
			}
		})
	}
}

// BenchmarkTagEvent moves an endpoint of another node that has one of a thousand tags, all of them
// in rules here, one after the other, in a cluster of 100,000.
func BenchmarkTagEvent(b *testing.B) {
	const tags, endpoints = 1000, 100_000
	x := NewIndex("node0", testOptions())
	put := func(o datastore.Object) {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	endpoint := func(i int, third byte) *datastore.Endpoint {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: fmt.Sprintf("node%d/cni/w%d/eth0", i%500, i)}}
		e.Spec = datastore.EndpointSpec{Node: fmt.Sprint("node", i%500), Link: fmt.Sprint("nc", i), Profiles: []string{fmt.Sprint("p", i%tags)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10 + third, byte(i >> 16), byte(i >> 8), byte(i)})}}
		return e
	}
	var rules []datastore.Rule
	for i := range tags {
		r, err := datastore.ParseRule(fmt.Sprint("allow from tag t", i))
		if err != nil {
			b.Fatal(err)
		}
		rules = append(rules, r)
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("p", i)}, Spec: datastore.ProfileSpec{Tags: []string{fmt.Sprint("t", i)}}})
	}
	put(&datastore.Policy{Metadata: datastore.Metadata{Name: "many"}, Spec: datastore.PolicySpec{Selector: "all()", Types: []datastore.PolicyType{datastore.Ingress}, Ingress: rules}})
	for i := range endpoints {
		put(endpoint(i, 0))
	}
	x.Flush()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for n := byte(1); b.Loop(); n ^= 1 {
		put(endpoint(777, n))
		x.Flush()
	}
	b.ReportMetric(float64(m.HeapAlloc)/(1<<20), "MiB")
}
