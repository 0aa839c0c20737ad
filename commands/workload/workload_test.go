package workload

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev"
)

func record(link string) *Record {
	name := "n1/cni/w/eth0"
	return &Record{
		Endpoint: &datastore.Endpoint{
			Metadata: datastore.Metadata{Name: name},
			Spec: datastore.EndpointSpec{
				Node: "n1", Orchestrator: "cni", Workload: "w", Interface: "eth0", Link: link, MAC: "02:00:00:00:00:01",
				Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Profiles: []string{"web"},
			},
		},
		Attachment: control.Attachment{Endpoint: name, Link: link, MTU: 1500},
		Boot:       "b", Index: 7, Dev: 4, Ino: 1 << 40, Cluster: datastore.Cluster{UUID: "u", Generation: 3},
	}
}

func TestRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "endpoints")
	r := NewRecords(dir)
	if all, err := r.All(); len(all) != 0 || err != nil {
		t.Fatalf("no folder: %v, %v", all, err)
	}
	if _, err := r.Read("nc1"); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("no record: %v", err)
	}
	rec := record("nc1")
	for range 2 {
		if err := r.Put(rec); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "nc1.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	got, err := r.Read("nc1")
	if err != nil || !reflect.DeepEqual(got, rec) {
		t.Errorf("read %+v, %v", got, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "nc1.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"nc2.json": string(text), "nc3.json": "{", "nc4.json": `{"boot":"b"}`, ".nc5.json-7": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := r.All()
	if len(all) != 1 {
		t.Errorf("%d records", len(all))
	}
	for _, bad := range []string{"nc2.json", "nc3.json", "nc4.json"} {
		if err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s not reported: %v", bad, err)
		}
	}
	for range 2 {
		if err := errors.Join(r.Sweep(), r.Remove("nc1")); err != nil {
			t.Error(err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 3 {
		t.Errorf("left: %v", left)
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"endpoint":{"metadata":{"name":"n1/cni/w/eth0"},"spec":{"node":"n1","orchestrator":"cni","workload":"w","interface":"eth0","link":"nc1","addresses":["10.0.0.1"]}},"boot":"b","ino":5}`))
	f.Add([]byte(`{"endpoint":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		rec, err := parseRecord(text)
		if err == nil && rec.Endpoint.Spec.Link == "" {
			t.Errorf("%s: accepted without a link", text)
		}
	})
}

func TestTurns(t *testing.T) {
	ts := turns{held: map[string]chan struct{}{}}
	release, err := ts.take(t.Context(), "n1/cni/w/eth0")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := ts.take(short, "n1/cni/w/eth0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("taken twice: %v", err)
	}
	other, err := ts.take(t.Context(), "n1/cni/x/eth0")
	if err != nil {
		t.Fatal(err)
	}
	other()
	if got := ts.under("n1/cni/w/"); len(got) != 1 || len(ts.under("n1/cni/x/")) != 0 {
		t.Errorf("held: %v", got)
	}
	done := make(chan error)
	go func() {
		again, err := ts.take(t.Context(), "n1/cni/w/eth0")
		if err == nil {
			again()
		}
		done <- err
	}()
	release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPlan(t *testing.T) {
	s := New(Config{Node: "n1", LinkPrefix: "nc"})
	target := control.Target{Orchestrator: "docker", Workload: "w", Interface: "eth0"}
	foreign := datastore.ForeignName("my net")
	pools := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	web := &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}
	network := &datastore.Network{Metadata: datastore.Metadata{Name: "net"}, Spec: datastore.NetworkSpec{Pools: pools, Profile: "web", IPv6: true}}
	for name, c := range map[string]struct {
		req      control.AttachRequest
		known    Known
		create   string
		profiles string
		ipv6     bool
		pools    int
		network  string
	}{
		"nothing known": {req: control.AttachRequest{Target: target, Network: "net"}, create: "Network net, Profile net", profiles: "net", network: "net"},
		"network known": {
			req: control.AttachRequest{Target: target, Network: "net"}, known: Known{Network: network, Profiles: []*datastore.Profile{web}},
			profiles: "web", ipv6: true, pools: 1, network: "net",
		},
		"network's profile lost": {req: control.AttachRequest{Target: target, Network: "net"}, known: Known{Network: network}, create: "Profile web", profiles: "web", ipv6: true, pools: 1, network: "net"},
		"profiles asked for": {
			req: control.AttachRequest{Target: target, Profiles: []string{"web"}}, known: Known{Profiles: []*datastore.Profile{web}}, profiles: "web",
		},
		"foreign name": {
			req:    control.AttachRequest{Target: target, Network: foreign, Labels: map[string]string{datastore.LabelNetwork: "my net"}},
			create: "Network " + foreign + " my net, Profile " + foreign, profiles: foreign, network: foreign,
		},
		"no network": {req: control.AttachRequest{Target: target, Pools: pools}, pools: 1},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := s.plan("n1/docker/w/eth0", "02:00:00:00:00:01", c.req, c.known)
			if err != nil {
				t.Fatal(err)
			}
			var create []string
			for _, o := range p.create {
				create = append(create, strings.Join(append([]string{string(o.Kind()), o.Meta().Name}, slices.Sorted(maps.Values(o.Meta().Labels))...), " "))
			}
			spec := p.endpoint.Spec
			if got := strings.Join(create, ", "); got != c.create || strings.Join(spec.Profiles, " ") != c.profiles ||
				p.ipv6 != c.ipv6 || len(p.pools) != c.pools || spec.Network != c.network || spec.Link != netdev.LinkName("nc", "n1/docker/w/eth0") {
				t.Errorf("creates %s; %+v", got, spec)
			}
			if !maps.Equal(p.endpoint.Metadata.Labels, c.req.Labels) {
				t.Errorf("labels = %v", p.endpoint.Metadata.Labels)
			}
			conds, ops, err := p.commit([]netip.Addr{netip.MustParseAddr("10.0.0.1")})
			if err != nil || len(ops) != len(p.create)+1 || len(conds) != len(ops) {
				t.Errorf("%d conditions, %d operations, %v", len(conds), len(ops), err)
			}
		})
	}
	if _, err := s.plan("n1/docker/w/eth0", "", control.AttachRequest{Target: target, Profiles: []string{"nobody"}}, Known{}); !errors.Is(err, datastore.ErrNotFound) ||
		!strings.Contains(err.Error(), "netctl profile add nobody") {
		t.Errorf("unknown profile: %v", err)
	}
}

// TestAsk: the store and the node's own blocks are asked for the same: of the family alone
// that the network has, and of the ranges alone that the runtime wants.
func TestAsk(t *testing.T) {
	s := New(Config{Node: "n1", LinkPrefix: "nc"})
	no := false
	network := &datastore.Network{Metadata: datastore.Metadata{Name: "net"}, Spec: datastore.NetworkSpec{IPv4: &no}}
	within := []netip.Prefix{netip.MustParsePrefix("fd00::/120")}
	req := control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: "w", Interface: "eth0"}, Network: "net", Within: within, Labels: map[string]string{"name": "x"}}
	p, err := s.plan("n1/cni/w/eth0", "02:00:00:00:00:01", req, Known{Network: network})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.ask("n1/cni/w/eth0", req); got.Family != 6 || !slices.Equal(got.Within, within) || got.Handle != "n1/cni/w/eth0" || got.Name != "x" {
		t.Errorf("%+v", got)
	}
}
