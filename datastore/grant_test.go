package datastore

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

// shelf is what is stored, for a Grant of node n2.
type shelf map[string]Entry

func (s shelf) grant() Grant {
	return Grant{
		Node: "n2",
		Get:  func(key string, _ int64) (Entry, error) { return s[key], nil },
		Nodes: func() (list []Entry, err error) {
			for key, e := range s {
				if Under(key, KindPrefix(KindNode)) {
					list = append(list, e)
				}
			}
			return list, nil
		},
	}
}

func (s shelf) put(t *testing.T, o Object) string {
	t.Helper()
	_, op, err := OpPut(o)
	if err != nil {
		t.Fatal(err)
	}
	s[op.Key] = Entry{Key: op.Key, Value: op.Value, Revision: 7}
	return op.Key
}

// try judges the writing of o (or its deletion) at the revision that it is stored in.
func (s shelf) try(t *testing.T, o Object, remove bool) error {
	t.Helper()
	_, op, err := OpPut(o)
	if err != nil {
		t.Fatal(err)
	}
	if remove {
		op.Value = nil
	}
	return s.grant().Write(Txn{If: []Condition{{Key: op.Key, Revision: s[op.Key].Revision}}, Then: []Op{op}})
}

func blockOf(cidr, affinity string, allocations ...Allocation) *Block {
	b := &Block{Spec: BlockSpec{CIDR: netip.MustParsePrefix(cidr), Affinity: affinity, Allocations: allocations}}
	b.SetDefaults()
	return b
}

func heldBy(ordinal int, node, handle string) Allocation {
	return Allocation{Ordinal: ordinal, Node: node, Handle: handle, Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

func TestGrantBlocks(t *testing.T) {
	others, mine := heldBy(1, "n1", "n1/cni/a/eth0"), heldBy(2, "n2", "n2/cni/b/eth0")
	for name, c := range map[string]struct {
		before, after *Block // nil: there is none, it is deleted
		allowed       bool
	}{
		"a claim":                        {nil, blockOf("10.0.0.0/26", "n2"), true},
		"a claim with an address":        {nil, blockOf("10.0.0.0/26", "n2", mine), true},
		"a claim for another":            {nil, blockOf("10.0.0.0/26", "n1"), false},
		"a claim for nobody":             {nil, blockOf("10.0.0.0/26", ""), false},
		"a claim with another's address": {nil, blockOf("10.0.0.0/26", "n2", others), false},
		"an address":                     {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n2", mine), true},
		"an address given back":          {blockOf("10.0.0.0/26", "n2", mine), blockOf("10.0.0.0/26", "n2"), true},
		"an address of a tunnel":         {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n2", heldBy(0, "n2", TunnelHandle("n2"))), true},
		"an address of another's tunnel": {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n2", heldBy(0, "n2", TunnelHandle("n1"))), false},
		"a borrowed address":             {blockOf("10.0.0.0/26", "n1", others), blockOf("10.0.0.0/26", "n1", others, mine), true},
		"another's address taken":        {blockOf("10.0.0.0/26", "n1", others), blockOf("10.0.0.0/26", "n1", heldBy(1, "n2", "n2/cni/b/eth0")), false},
		"another's address given back":   {blockOf("10.0.0.0/26", "n1", others), blockOf("10.0.0.0/26", "n1"), false},
		"another's, of its own block":    {blockOf("10.0.0.0/26", "n2", others), blockOf("10.0.0.0/26", "n2"), false},
		"another's address moved":        {blockOf("10.0.0.0/26", "n1", others), blockOf("10.0.0.0/26", "n1", heldBy(3, "n1", "n1/cni/a/eth0")), false},
		"an address for another":         {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n2", heldBy(1, "n1", "n1/cni/a/eth0")), false},
		"another's handle":               {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n2", heldBy(1, "n2", "n1/cni/a/eth0")), false},
		"a longer name":                  {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n2", heldBy(1, "n2", "n22/cni/a/eth0")), false},
		"another's block":                {blockOf("10.0.0.0/26", "n1"), blockOf("10.0.0.0/26", "n2"), false},
		"nobody's block":                 {blockOf("10.0.0.0/26", "", others), blockOf("10.0.0.0/26", "n2", others), true},
		"its own for another":            {blockOf("10.0.0.0/26", "n2"), blockOf("10.0.0.0/26", "n1"), false},
		"back":                           {blockOf("10.0.0.0/26", "n2", mine), nil, true},
		"back with another's":            {blockOf("10.0.0.0/26", "n2", others), nil, false},
		"another's back":                 {blockOf("10.0.0.0/26", "n1"), nil, false},
	} {
		s := shelf{}
		if c.before != nil {
			s.put(t, c.before)
		}
		after, remove := c.after, false
		if after == nil {
			after, remove = c.before, true
		}
		if err := s.try(t, after, remove); (err == nil) != c.allowed || err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGrantNodes(t *testing.T) {
	node := func(name, addr string, change func(*Node)) *Node {
		n := &Node{Metadata: Metadata{Name: name}, Spec: NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix(addr)}}}
		if change != nil {
			change(n)
		}
		return n
	}
	key := "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	s := shelf{}
	s.put(t, node("n1", "192.0.2.1/24", func(n *Node) { n.Status.Tunnels = []Tunnel{{Kind: TunnelWireGuard, Key: key}} }))
	for name, c := range map[string]struct {
		registered bool
		now        *Node
		allowed    bool
	}{
		"registers":              {false, node("n2", "192.0.2.2/24", nil), true},
		"with another's address": {false, node("n2", "192.0.2.1/24", nil), false},
		"as another":             {false, node("n3", "192.0.2.3/24", nil), false},
		"with an AS number":      {false, node("n2", "192.0.2.2/24", func(n *Node) { n.Spec.AS = 65000 }), false},
		"moves":                  {true, node("n2", "192.0.2.9/24", nil), true},
		"to another's address":   {true, node("n2", "192.0.2.1/25", nil), false},
		"with another's key":     {true, node("n2", "192.0.2.2/24", func(n *Node) { n.Status.Tunnels = []Tunnel{{Kind: TunnelWireGuard, Key: key}} }), false},
		"has labels":             {true, node("n2", "192.0.2.2/24", func(n *Node) { n.Metadata.Labels = map[string]string{"a": "b"} }), true},
		"has a version":          {true, node("n2", "192.0.2.2/24", func(n *Node) { n.Status.Version = "2" }), true},
		"reflects":               {true, node("n2", "192.0.2.2/24", func(n *Node) { n.Spec.Reflector = &Reflector{Mode: ReflectorAlways} }), false},
		"drains itself":          {true, node("n2", "192.0.2.2/24", func(n *Node) { n.Spec.Drain = &Drain{} }), false},
		"changes another":        {true, node("n1", "192.0.2.8/24", nil), false},
		"says that one is away": {true, node("n1", "192.0.2.1/24", func(n *Node) {
			n.Status.Tunnels, n.Status.Away = []Tunnel{{Kind: TunnelWireGuard, Key: key}}, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		}), true},
	} {
		now := shelf{}
		for k, v := range s {
			now[k] = v
		}
		if c.registered {
			now.put(t, node("n2", "192.0.2.2/24", nil))
		}
		if err := now.try(t, c.now, false); (err == nil) != c.allowed || err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGrantRevisions: what a node may do depends on what is there, so that it has to say
// what it believes that to be.
func TestGrantRevisions(t *testing.T) {
	s := shelf{}
	key := s.put(t, blockOf("10.0.0.0/26", "n2"))
	_, op, err := OpPut(blockOf("10.0.0.0/26", "n2"))
	if err != nil {
		t.Fatal(err)
	}
	for revision, allowed := range map[int64]bool{
		7: true,
		6: true, // the store refuses it
		0: true,
		8: false, // of what nobody has seen
	} {
		if err := s.grant().Write(Txn{If: []Condition{{Key: key, Revision: revision}}, Then: []Op{op}}); (err == nil) != allowed {
			t.Errorf("revision %d: %v", revision, err)
		}
	}
	if err := s.grant().Write(Txn{Then: []Op{op}}); !errors.Is(err, ErrDenied) {
		t.Errorf("without a condition: %v", err)
	}
}

// TestGrantAbsent: what is written if nothing is there is judged as that, though something
// is there now: it may be deleted while the write is under way.
func TestGrantAbsent(t *testing.T) {
	s := shelf{}
	profile := &Profile{Metadata: Metadata{Name: "web"}}
	network := &Network{Metadata: Metadata{Name: "web"}}
	pool := &Pool{Spec: PoolSpec{CIDR: netip.MustParsePrefix("10.1.0.0/16"), Removed: true, Disabled: true}}
	node := func(name string, as uint32) *Node {
		return &Node{Metadata: Metadata{Name: name}, Spec: NodeSpec{AS: as, Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}}
	}
	for _, o := range []Object{profile, network, pool, node("n1", 0), blockOf("10.0.0.0/26", "n1"), blockOf("10.0.0.64/26", "n2")} {
		o.SetDefaults()
		s.put(t, o)
	}
	open := &Profile{Metadata: Metadata{Name: "web"}, Spec: ProfileSpec{Tags: []string{"open"}, Inbound: []Rule{}, Outbound: []Rule{}}}
	for name, c := range map[string]struct {
		o       Object
		allowed bool
	}{
		"a profile of rules":   {open, false},
		"a plain profile":      {profile, true},
		"a network's profile":  {&Network{Metadata: Metadata{Name: "web"}, Spec: NetworkSpec{Profile: "db"}}, false},
		"a plain network":      {network, true},
		"a pool":               {pool, false},
		"another node":         {node("n1", 0), false},
		"itself, with an AS":   {node("n2", 65000), false},
		"another's block":      {blockOf("10.0.0.0/26", "n1"), false},
		"another's addresses":  {blockOf("10.0.0.64/26", "n2", heldBy(1, "n1", "n1/cni/a/eth0")), false},
		"a claim that is late": {blockOf("10.0.0.0/26", "n2"), true},
	} {
		_, op, err := OpPut(c.o)
		if err != nil {
			t.Fatal(err)
		}
		err = s.grant().Write(Txn{If: []Condition{{Key: op.Key}}, Then: []Op{op}})
		if (err == nil) != c.allowed || err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGrantRest(t *testing.T) {
	s := shelf{}
	removed := &Pool{Spec: PoolSpec{CIDR: netip.MustParsePrefix("10.1.0.0/16"), Removed: true, Disabled: true}}
	kept := &Pool{Spec: PoolSpec{CIDR: netip.MustParsePrefix("10.2.0.0/16")}}
	for _, p := range []*Pool{removed, kept} {
		p.SetDefaults()
		s.put(t, p)
	}
	web := &Profile{Metadata: Metadata{Name: "web"}}
	web.SetDefaults()
	open := &Profile{Metadata: Metadata{Name: "open"}, Spec: ProfileSpec{Tags: []string{"open"}, Inbound: []Rule{}, Outbound: []Rule{}}}
	network := &Network{Metadata: Metadata{Name: "web", Labels: map[string]string{"a": "b"}}}
	network.SetDefaults()
	special := &Network{Metadata: Metadata{Name: "special"}, Spec: NetworkSpec{Profile: "db"}}
	own := &Network{Metadata: Metadata{Name: "own"}, Spec: NetworkSpec{Pools: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")}, IPv6: true}}
	own.SetDefaults()
	more := &Network{Metadata: Metadata{Name: "more"}, Spec: NetworkSpec{Options: map[string]string{"a": "b"}}}
	more.SetDefaults()
	for name, c := range map[string]struct {
		o       Object
		remove  bool
		allowed bool
	}{
		"the last of a pool":  {removed, true, true},
		"a pool":              {kept, true, false},
		"a pool changed":      {removed, false, false},
		"a profile":           {web, false, true},
		"a profile of rules":  {open, false, false},
		"a network":           {network, false, true},
		"a network's profile": {special, false, false},
		"a network's pools":   {own, false, true},
		"a network's options": {more, false, false},
	} {
		if err := s.try(t, c.o, c.remove); (err == nil) != c.allowed {
			t.Errorf("%s: %v", name, err)
		}
	}
	s.put(t, web)
	if err := s.try(t, web, false); !errors.Is(err, ErrDenied) {
		t.Errorf("a profile that is there: %v", err)
	}
	g := s.grant()
	for key, allowed := range map[string]bool{
		Prefix + "endpoints/n22/cni/a/eth0": false, Prefix + "endpoints/n1/cni/a/eth0": false,
		ReportPrefix + "n1/agent": false, EventsPrefix + "n2/last": true, EventsPrefix + "n2/x": false, EventsPrefix + "n1/last": false, AsksPrefix + "n2/x": true, AsksPrefix + "n1/x": false, AsksPrefix + Anybody + "/x": false, AnswersPrefix + "n2/x": true, AnswersPrefix + "n1/x": false, ConfirmsPrefix + "x": false, ClusterKey: false, PoolsKey: false, MembersKey: false, "/x": false,
		Prefix + "endpoints/n2/../n1/cni/a": false, JoinPrefix + "nodes/n2": false, Prefix + "bgpconfigs/default": false,
	} {
		if err := g.Write(Txn{Then: []Op{{Key: key, Value: []byte("{}")}}}); (err == nil) != allowed {
			t.Errorf("%s: %v", key, err)
		}
	}
	for _, c := range []struct {
		key, end string
		allowed  bool
	}{
		{Prefix, "/netctl/v10", true}, {Prefix + "nodes/", Prefix + "nodes0", true}, {Prefix + "nodes/n1", "", true}, {MembersKey, "", true},
		{ReportPrefix, "/netctl/reports/v10", true}, {EventsPrefix, "/netctl/events/v10", true}, {Prefix + "nodes/a\x00", Prefix + "nodes0", true}, {Prefix + "z", "/netctl/v10", true},
		{Prefix, "\x00", false}, {"\x00", "\x00", false}, {"/netctl/", "/netctl0", false}, {JoinPrefix, "/netctl/join/v10", false},
		{MembersKey, "/netctl/n", false}, {Prefix, "/netctl/v2", false}, {JoinPrefix + "tokens/a", "", false}, {"/netctl/a", "/netctl/v1/b", false},
	} {
		var end []byte
		if c.end != "" {
			end = []byte(c.end)
		}
		if err := g.Read(c.key, end); (err == nil) != c.allowed {
			t.Errorf("read %q to %q: %v", c.key, c.end, err)
		}
	}
}

// TestGrantSound: what a node writes of its own is what others can read, and act on.
func TestGrantSound(t *testing.T) {
	endpoint := &Endpoint{Metadata: Metadata{Name: "n2/cni/a/eth0"}, Spec: EndpointSpec{Node: "n2", Orchestrator: "cni", Workload: "a", Interface: "eth0",
		Link: LinkName("cali", "n2/cni/a/eth0"), Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
	_, op, err := OpPut(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	endpoint.Spec.Link = LinkName("cali", "n2/cni/b/eth0")
	_, others, err := OpPut(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	_, report, err := OpPut(&Report{Metadata: Metadata{Name: ReportName("n2", ReportAgent)}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		op      Op
		allowed bool
	}{
		"an endpoint":         {op, true},
		"none":                {Op{Key: op.Key}, true},
		"an empty object":     {Op{Key: op.Key, Value: []byte("{}")}, false},
		"no object":           {Op{Key: op.Key, Value: []byte("x")}, false},
		"nothing":             {Op{Key: op.Key, Value: []byte{}}, false},
		"another's link":      {others, false},
		"another's value":     {Op{Key: Prefix + "endpoints/n2/cni/b/eth0", Value: op.Value}, false},
		"a name of few parts": {Op{Key: Prefix + "endpoints/n2/a", Value: op.Value}, false},
		"a report":            {report, true},
		"an empty report":     {Op{Key: report.Key, Value: []byte("{}")}, false},
	} {
		if err := (shelf{}).grant().Write(Txn{Then: []Op{c.op}}); (err == nil) != c.allowed || err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
