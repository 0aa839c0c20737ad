package datastore_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// populated is a store with a pool, a block in use, a profile, a network and an
// endpoint, and its View.
func populated(t *testing.T) (*memory.Store, *datastore.View) {
	t.Helper()
	ctx := context.Background()
	s := memory.New()
	for _, o := range []datastore.Object{
		&datastore.Node{Metadata: datastore.Metadata{Name: "n"}},
		&datastore.Peer{Metadata: datastore.Metadata{Name: "tor"}, Spec: datastore.PeerSpec{Address: netip.MustParseAddr("192.168.99.1"), AS: 1}},
		&datastore.Peer{Spec: datastore.PeerSpec{Interface: "swp*", AS: 1}},
		&datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/16")}},
		&datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.1.0.0/16")}},
		&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.0.0/26"), Affinity: "n",
			Allocations: []datastore.Allocation{{Ordinal: 1, Handle: "n/cni/w/eth0", Node: "n"}}}},
		&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("fd00::/118"), Affinity: "n",
			Allocations: []datastore.Allocation{{Ordinal: 0x301, Handle: "n/cni/w/eth0", Node: "n"}}}},
		&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.1.0.0/26"), Affinity: "n"}},
		&datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.7.0.0/26"), Affinity: "n"}},
		&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}},
		&datastore.Profile{Metadata: datastore.Metadata{Name: "free"}},
		&datastore.Network{Metadata: datastore.Metadata{Name: "web"}},
		&datastore.Endpoint{Spec: datastore.EndpointSpec{Node: "n", Orchestrator: "cni", Workload: "w", Interface: "eth0", Link: datastore.LinkName("nc", "n/cni/w/eth0"),
			Network: "web", Profiles: []string{"web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.5")}}},
	} {
		if err := datastore.Create(ctx, s, o); err != nil {
			t.Fatal(err)
		}
	}
	return s, listed(t, s)
}

func listed(t *testing.T, s datastore.Store) *datastore.View {
	t.Helper()
	snap, err := s.List(context.Background(), datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	v := datastore.NewView()
	if _, err := v.Replace(snap); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCheckPut(t *testing.T) {
	_, v := populated(t)
	endpoint := func(workload, linkOf string, profiles []string, addrs ...string) *datastore.Endpoint {
		e := &datastore.Endpoint{Spec: datastore.EndpointSpec{Node: "n", Orchestrator: "cni", Workload: workload, Interface: "eth0",
			Link: datastore.LinkName("nc", linkOf), Profiles: profiles}}
		for _, a := range addrs {
			e.Spec.Addresses = append(e.Spec.Addresses, netip.MustParseAddr(a))
		}
		return e
	}
	pool := func(cidr string, blockSize int) *datastore.Pool {
		return &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr), BlockSize: blockSize}}
	}
	told := func(communities ...string) *datastore.Pool {
		p := pool("10.2.0.0/16", 0)
		p.Spec.Communities = communities
		return p
	}
	for _, c := range []struct {
		o    datastore.Object
		want string
	}{
		{&datastore.Peer{Metadata: datastore.Metadata{Name: "new"}, Spec: datastore.PeerSpec{Address: netip.MustParseAddr("192.168.99.1"), AS: 1}},
			`spec.address "192.168.99.1": is that of peer tor already, for the same nodes (global)`},
		{&datastore.Peer{Metadata: datastore.Metadata{Name: "new"}, Spec: datastore.PeerSpec{Interface: "swp*", AS: 2}},
			`spec.interface "swp*": is that of peer swp already, for the same nodes (global)`},
		{&datastore.Peer{Spec: datastore.PeerSpec{Interface: "eth1", AS: 2}}, ""},
		{&datastore.Peer{Metadata: datastore.Metadata{Name: "tor"}, Spec: datastore.PeerSpec{Address: netip.MustParseAddr("192.168.99.1"), AS: 1}}, ""},
		{&datastore.Peer{Metadata: datastore.Metadata{Name: "new"}, Spec: datastore.PeerSpec{Address: netip.MustParseAddr("192.168.99.1"), AS: 1, Node: "n"}}, ""},
		{pool("10.2.0.0/16", 0), ""},
		{pool("10.0.0.0/16", 26), ""},
		{pool("10.0.0.0/8", 0), `spec.cidr "10.0.0.0/8": overlaps the pool 10.0.0.0/16`},
		{pool("10.0.1.0/24", 0), `spec.cidr "10.0.1.0/24": overlaps the pool 10.0.0.0/16`},
		{told("no-llgr", "blackhole"), `spec.communities[1] "blackhole": has the other nodes discard what goes to the pool: give it to the peers that are to`},
		{told("65535:6"), `spec.communities[0] "65535:6": is not told to most nodes: it is for those who keep what is gone`},
		{pool("10.0.0.0/16", 28), `in use: blocks of /26 cannot become /28: there is block 10.0.0.0/26`},
		{pool("10.7.0.0/16", 26), ""}, // over the block of a pool that is gone
		{pool("10.7.0.0/16", 27), `in use: blocks of /26 cannot become /27: there is block 10.7.0.0/26`},
		{pool("10.7.0.0/27", 27), `in use: blocks of /26 cannot become /27: there is block 10.7.0.0/26`},
		{&datastore.Network{Metadata: datastore.Metadata{Name: "x"}, Spec: datastore.NetworkSpec{Pools: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}}},
			`spec.pools[0] "10.9.0.0/16": there is no such pool`},
		{endpoint("w", "n/cni/w/eth0", []string{"web", "nope"}, "10.0.0.5"), `spec.profiles[1] "nope": there is no such profile`},
		{endpoint("w", "n/cni/w/eth0", nil), "spec.addresses: is empty, which cuts off a workload that runs: `netctl endpoint remove` ends it"},
		{endpoint("w", "n/cni/w/eth0", nil, "10.0.0.1"), ""},
		{endpoint("w", "n/cni/w/eth0", nil, "10.0.0.5"), ""}, // it has that already
		{endpoint("w", "n/cni/w/eth0", nil, "10.0.0.1", "8.8.8.8"), `spec.addresses[1] "8.8.8.8": no block holds it for this endpoint; an attach draws addresses`},
		{endpoint("w", "n/cni/w/eth0", nil, "10.0.0.2"), `spec.addresses[0] "10.0.0.2": no block holds it for this endpoint; an attach draws addresses`},
		{endpoint("w", "n/cni/w/eth0", nil, "fd00::301"), ""},
		{endpoint("copy", "n/cni/copy/eth0", nil, "10.0.0.1"), `spec.addresses[0] "10.0.0.1": is held by n/cni/w/eth0`},
		{endpoint("copy", "n/cni/w/eth0", nil), `spec.link "ncf4d00df0362": is another endpoint's: that of this name ends in f070fbe7c66`},
	} {
		c.o.SetDefaults()
		err := v.CheckPut(c.o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: got %v, want %s", c.o.Meta().Name, err, c.want)
		}
	}
}

func TestCheckDelete(t *testing.T) {
	_, v := populated(t)
	for _, c := range []struct {
		o    datastore.Object
		want string
	}{
		{v.Pool("10.0.0.0-16"), "in use by addresses of block 10.0.0.0/26"},
		{v.Pool("10.1.0.0-16"), ""},
		{v.Profile("web"), "in use by endpoint n/cni/w/eth0 and network web"},
		{v.Profile("free"), ""},
		{v.Network("web"), "in use by endpoint n/cni/w/eth0"},
		{v.Node("n"), "in use by endpoint n/cni/w/eth0 and addresses of block 10.0.0.0/26, fd00::/118"},
		{v.Endpoint("n/cni/w/eth0"), ""},
	} {
		err := v.CheckDelete(c.o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want || !errors.Is(err, datastore.ErrInUse)) {
			t.Errorf("%s: got %v, want %s", c.o.Meta().Name, err, c.want)
		}
	}
}

// TestOverlappingPoolsAtTheSameTime lets two writers that saw the same pools
// add overlapping ones.
func TestOverlappingPoolsAtTheSameTime(t *testing.T) {
	ctx := context.Background()
	s, first := populated(t)
	second := listed(t, s)
	add := func(v *datastore.View, cidr string) error {
		p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr)}}
		cond, op, err := datastore.OpPut(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.CheckPut(p); err != nil {
			return err
		}
		set, touch := v.OpPools()
		_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{cond, set}, Then: []datastore.Op{op, touch}})
		return err
	}
	if err := add(first, "10.8.0.0/16"); err != nil {
		t.Fatal(err)
	}
	if err := add(second, "10.8.1.0/24"); !errors.Is(err, datastore.ErrExists) && !errors.Is(err, datastore.ErrConflict) {
		t.Errorf("the second overlapping pool: %v", err)
	}
	if err := add(listed(t, s), "10.8.1.0/24"); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("after reading again: %v", err)
	}
	if err := add(listed(t, s), "10.9.0.0/16"); err != nil {
		t.Errorf("a pool of its own: %v", err)
	}
}

// TestFiltersAreNamed: who names a filter that is not there is refused, and so is to
// remove one that somebody names.
func TestFiltersAreNamed(t *testing.T) {
	put := func(v *datastore.View, o datastore.Object) {
		t.Helper()
		o.SetDefaults()
		_, op, err := datastore.OpPut(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Apply(datastore.Entry{Key: op.Key, Value: op.Value, Revision: 1}); err != nil {
			t.Fatal(err)
		}
	}
	peer := &datastore.Peer{Spec: datastore.PeerSpec{Address: netip.MustParseAddr("192.168.99.1"), AS: 1, Filters: []string{"tor"}}}
	config := &datastore.BGPConfig{Spec: datastore.BGPConfigSpec{Filters: []datastore.PeerFilters{{Peers: "all()", Filters: []string{"tor"}}}}}
	filter := &datastore.BGPFilter{Metadata: datastore.Metadata{Name: "tor"}}
	v := datastore.NewView()
	peer.SetDefaults()
	config.SetDefaults()
	if peer.Metadata.Needs != 2 || config.Metadata.Needs != 2 {
		t.Errorf("older netctls pass over the filters: needs %d and %d", peer.Metadata.Needs, config.Metadata.Needs)
	}
	for o, want := range map[datastore.Object]string{peer: `spec.filters[0] "tor": there is no such filter`, config: `spec.filters[0].filters[0] "tor": there is no such filter`} {
		if err := v.CheckPut(o); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	put(v, filter)
	if err := errors.Join(v.CheckPut(peer), v.CheckPut(config), v.CheckDelete(filter)); err != nil {
		t.Error(err)
	}
	put(v, peer)
	put(v, config)
	if err := v.CheckDelete(filter); !errors.Is(err, datastore.ErrInUse) || !strings.Contains(err.Error(), "peer 192.168.99.1 and bgpconfig default") {
		t.Errorf("removed: %v", err)
	}
}

// TestPolicyIsKeptByAll: none is written while an agent would pass it over, and none loses
// its tier or a set that its rules name.
func TestPolicyIsKeptByAll(t *testing.T) {
	ctx := context.Background()
	s, v := populated(t)
	rule, err := datastore.ParseRule("deny from set bad")
	if err != nil {
		t.Fatal(err)
	}
	policy := &datastore.Policy{Metadata: datastore.Metadata{Name: "p"}, Spec: datastore.PolicySpec{Tier: "first", Ingress: []datastore.Rule{rule}}}
	policy.SetDefaults()
	tier := &datastore.Tier{Metadata: datastore.Metadata{Name: "first"}}
	set := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "bad"}}
	if err := v.CheckPut(policy); err == nil || !strings.Contains(err.Error(), `spec.tier "first": there is no such tier`) || !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("without its tier: %v", err)
	}
	for _, o := range []datastore.Object{tier, set, policy} {
		if o != datastore.Object(policy) {
			if err := v.CheckPut(o); err != nil {
				t.Error(err)
			}
		}
		if err := datastore.Create(ctx, s, o); err != nil {
			t.Fatal(err)
		}
	}
	v = listed(t, s)
	for _, o := range []datastore.Object{tier, set} {
		if err := v.CheckDelete(o); !errors.Is(err, datastore.ErrInUse) || !strings.Contains(err.Error(), "by policy p") {
			t.Errorf("delete %s: %v", o.Kind(), err)
		}
	}
	if err := errors.Join(v.CheckPut(policy), v.CheckDelete(policy)); err != nil {
		t.Error(err)
	}
	staged := *policy
	staged.Metadata.Name, staged.Spec.Staged = "draft", true
	staged.SetDefaults()
	near := &datastore.Node{Metadata: datastore.Metadata{Name: "near"}, Status: datastore.NodeStatus{Host: "near", Model: 3}}
	if err := errors.Join(v.CheckPut(&staged), datastore.Create(ctx, s, near)); err != nil {
		t.Error(err)
	}
	v = listed(t, s)
	if err := v.CheckPut(&staged); !errors.Is(err, datastore.ErrInvalid) || err.Error() != "spec.staged: staged policies are passed over by the older netctl of node near: upgrade it there first" {
		t.Errorf("put a staged policy: %v", err)
	}
	if err := v.CheckPut(policy); err != nil {
		t.Error(err)
	}
	for _, n := range []struct {
		name  string
		model int
	}{{"old", 2}, {"older", 0}, {"new", datastore.ModelVersion}} {
		node := &datastore.Node{Metadata: datastore.Metadata{Name: n.name}, Status: datastore.NodeStatus{Host: n.name, Model: n.model}}
		if err := datastore.Create(ctx, s, node); err != nil {
			t.Fatal(err)
		}
	}
	v = listed(t, s)
	host := &datastore.HostEndpoint{Metadata: datastore.Metadata{Name: "h"}, Spec: datastore.HostEndpointSpec{Node: "new", InterfaceName: "eth0"}}
	for _, o := range []datastore.Object{policy, tier, set, host} {
		if err := v.CheckPut(o); !errors.Is(err, datastore.ErrInvalid) || !strings.Contains(err.Error(), "old, older: upgrade it there first") {
			t.Errorf("put %s: %v", o.Kind(), err)
		}
	}
	// Agents that know policies, one of them staged ones too, and no host endpoints.
	for name, model := range map[string]int{"old": 3, "older": 3, "near": 4} {
		node := v.Node(name)
		node.Status.Model = model
		if err := datastore.Update(ctx, s, node); err != nil {
			t.Fatal(err)
		}
	}
	v = listed(t, s)
	forward := &datastore.Policy{Metadata: datastore.Metadata{Name: "forward"}, Spec: datastore.PolicySpec{ApplyOnForward: true}}
	forward.SetDefaults()
	if err := v.CheckPut(policy); err != nil {
		t.Error(err)
	}
	names := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "names"}, Spec: datastore.NetworkSetSpec{Domains: []string{"example.com"}}}
	names.SetDefaults()
	if err := v.CheckPut(names); !errors.Is(err, datastore.ErrInvalid) || !strings.HasPrefix(err.Error(), "spec.domains: domains of network sets are passed over by the older netctl of node near, old") {
		t.Errorf("put a network set with domains: %v", err)
	}
	listed, err := datastore.ParseRule("deny from cidr 192.0.2.0/25,198.51.100.0/24")
	if err != nil {
		t.Fatal(err)
	}
	lists := []datastore.Object{
		&datastore.Policy{Metadata: datastore.Metadata{Name: "lists"}, Spec: datastore.PolicySpec{Egress: []datastore.Rule{listed}}},
		&datastore.Profile{Metadata: datastore.Metadata{Name: "lists"}, Spec: datastore.ProfileSpec{Inbound: []datastore.Rule{listed}}},
	}
	for _, o := range lists {
		o.SetDefaults()
		if err := v.CheckPut(o); o.Meta().Needs != 7 || !errors.Is(err, datastore.ErrInvalid) || !strings.HasPrefix(err.Error(), "spec: rules with several CIDRs are passed over by the older netctl of node near, old") {
			t.Errorf("put a %s with a list of networks, which needs %d: %v", o.Kind(), o.Meta().Needs, err)
		}
	}
	names.Spec.Domains = nil
	if names.SetDefaults(); names.Metadata.Needs != 0 || v.CheckPut(names) != nil {
		t.Errorf("without domains it needs %d: %v", names.Metadata.Needs, v.CheckPut(names))
	}
	both := &datastore.Policy{Metadata: datastore.Metadata{Name: "both"}, Spec: datastore.PolicySpec{Staged: true, ApplyOnForward: true, PreDNAT: true}}
	both.SetDefaults()
	for _, o := range []datastore.Object{host, forward, both} {
		if err := v.CheckPut(o); !errors.Is(err, datastore.ErrInvalid) || !strings.Contains(err.Error(), "older netctl of node near, old, older: upgrade it there first") {
			t.Errorf("put %s: %v", o.Kind(), err)
		}
	}
}

// TestPolicyNeedsWhatItSays: what a policy needs is the most of what it says now. What it says
// no more it does not need, and what it still says is not forgotten for that.
func TestPolicyNeedsWhatItSays(t *testing.T) {
	reject, err := datastore.ParseRule("reject")
	if err != nil {
		t.Fatal(err)
	}
	p := &datastore.Policy{Metadata: datastore.Metadata{Name: "p"}}
	for _, c := range []struct {
		what   string
		change func(s *datastore.PolicySpec)
		needs  int
	}{
		{"nothing new", func(*datastore.PolicySpec) {}, 0},
		{"a rule that rejects", func(s *datastore.PolicySpec) { s.Ingress = []datastore.Rule{reject} }, 3},
		{"staged", func(s *datastore.PolicySpec) { s.Staged = true }, 4},
		{"staged, before DNAT", func(s *datastore.PolicySpec) { s.ApplyOnForward, s.PreDNAT = true, true }, 5},
		{"promoted", func(s *datastore.PolicySpec) { s.Staged = false }, 5},
		{"staged again, applyOnForward alone", func(s *datastore.PolicySpec) { s.Staged, s.PreDNAT = true, false }, 5},
		{"applyOnForward cleared", func(s *datastore.PolicySpec) { s.ApplyOnForward = false }, 4},
		{"promoted again", func(s *datastore.PolicySpec) { s.Staged = false }, 3},
		{"without the rule", func(s *datastore.PolicySpec) { s.Ingress = nil }, 0},
	} {
		c.change(&p.Spec)
		p.SetDefaults()
		if p.Metadata.Needs != c.needs {
			t.Errorf("%s: needs %d, want %d", c.what, p.Metadata.Needs, c.needs)
		}
		if err := p.Validate(); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	p.Metadata.Needs = datastore.ModelVersion + 1
	if p.SetDefaults(); p.Validate() == nil {
		t.Error("what needs a newer netctl is taken for understood")
	}
}
