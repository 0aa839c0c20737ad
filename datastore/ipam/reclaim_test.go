package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
)

func TestPlanReclaim(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	block := func(cidr, node string, held ...datastore.Allocation) *datastore.Block {
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: prefix(cidr), Affinity: node, Allocations: held}}
		b.SetDefaults()
		return b
	}
	held := func(ordinal int, handle string) datastore.Allocation {
		node, _, _ := strings.Cut(handle, "/")
		return datastore.Allocation{Ordinal: ordinal, Handle: handle, Node: node, Time: at}
	}
	endpoint := func(name string, addrs ...string) *datastore.Endpoint {
		part := strings.Split(name, "/")
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}, Spec: datastore.EndpointSpec{
			Node: part[0], Orchestrator: part[1], Workload: part[2], Interface: part[3], Link: datastore.LinkName("nc", name)}}
		for _, a := range addrs {
			e.Spec.Addresses = append(e.Spec.Addresses, addr(a))
		}
		return e
	}
	tunnel := held(1, datastore.TunnelHandle("n1"))
	tunnel.Node = "n1"
	backup := []*datastore.Block{
		block("10.0.0.0/26", "n1", tunnel, held(5, "n1/cni/a/eth0"), held(6, "n1/cni/b/eth0")),
		block("10.0.0.128/26", "n1", held(1, "n1/cni/c/eth0")),
		block("10.0.1.0/26", "n2", held(1, "n2/cni/d/eth0")),
		block("10.0.2.0/26", "n9", held(1, "n1/cni/h/eth0")),
	}
	v := datastore.NewView()
	for _, o := range []datastore.Object{
		&datastore.Node{Metadata: datastore.Metadata{Name: "n1"}}, &datastore.Node{Metadata: datastore.Metadata{Name: "n2"}},
		&datastore.Pool{Spec: datastore.PoolSpec{CIDR: prefix("10.0.0.0/16")}},
		block("10.0.0.0/26", "n1", tunnel, held(6, "n2/cni/live/eth0"), held(7, "n1/cni/e/eth0")),
		block("10.0.1.0/27", "n1"),
	} {
		_, op, err := datastore.OpPut(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Apply(datastore.Entry{Key: op.Key, Value: op.Value, Revision: 3}); err != nil {
			t.Fatal(err)
		}
	}
	r := PlanReclaim(v, backup, []*datastore.Endpoint{
		endpoint("n1/cni/a/eth0", "10.0.0.5"),            // free again
		endpoint("n1/cni/b/eth0", "10.0.0.6", "fd00::1"), // taken by one that runs: neither
		endpoint("n1/cni/c/eth0", "10.0.0.129"),          // its block is not there
		endpoint("n2/cni/d/eth0", "10.0.1.33"),           // its block would overlap
		endpoint("n1/cni/e/eth0", "10.0.0.7"),            // holds it already
		endpoint("n1/cni/f/eth0", "10.0.3.9"),            // no block ever
		endpoint("n1/cni/g/eth0", "10.0.0.5"),            // another of the backup has it
		endpoint("n1/cni/h/eth0", "10.0.2.1"),            // its block's node is gone
	}, time.Now())
	var got []string
	for _, b := range r.Blocks {
		if err := b.Validate(); err != nil {
			t.Error(err)
		}
		s := fmt.Sprintf("%s %s %d", b.Spec.CIDR, b.Spec.Affinity, b.Metadata.Revision)
		for _, a := range b.Spec.Allocations {
			s += fmt.Sprintf(" %d=%s", a.Ordinal, a.Handle)
			if a.Handle == "n1/cni/a/eth0" && !a.Time.Equal(at) {
				t.Errorf("held since %s", a.Time)
			}
		}
		got = append(got, s)
	}
	want := []string{
		"10.0.0.0/26 n1 3 1=tunnel/n1 5=n1/cni/a/eth0 6=n2/cni/live/eth0 7=n1/cni/e/eth0",
		"10.0.0.128/26 n1 0 1=n1/cni/c/eth0",
		"10.0.2.0/26  0 1=n1/cni/h/eth0",
		"10.0.3.0/26 n1 0 9=n1/cni/f/eth0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("blocks\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for name, why := range map[string]string{
		"n1/cni/b/eth0": "its address 10.0.0.6 is held by n2/cni/live/eth0",
		"n2/cni/d/eth0": "the block 10.0.1.0/26 of its address 10.0.1.33 overlaps block 10.0.1.0/27",
		"n1/cni/g/eth0": "its address 10.0.0.5 is held by n1/cni/a/eth0",
	} {
		if r.Refused[name] != why {
			t.Errorf("%s: %q, want %q", name, r.Refused[name], why)
		}
		delete(r.Refused, name)
	}
	if len(r.Refused) > 0 || len(r.Held) != 5 {
		t.Errorf("refused %v, held %d", r.Refused, len(r.Held))
	}
}
