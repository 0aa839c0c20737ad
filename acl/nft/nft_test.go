package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

const testGroup = 77

func testOptions() acl.Options {
	return acl.Options{
		LinkPrefix: "nc", Group: testGroup,
		Gateways:       []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("169.254.1.16")},
		WorkloadToHost: []acl.HostPort{{Protocol: 17, Port: 53}, {Protocol: 6, Port: 53}},
	}
}

func open(t testing.TB, n *netns) *Table {
	t.Helper()
	var table *Table
	n.Do(func() {
		var err error
		if table, err = Open(slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	if table == nil {
		t.FailNow()
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table
}

// listing is what nft shows, without counts; JSON output must work as well.
func listing(t testing.TB, n *netns) string {
	t.Helper()
	if out := n.Run("nft", "-j", "list", "ruleset"); !strings.HasPrefix(out, "{") {
		t.Errorf("nft -j: %s", out)
	}
	out := n.Run("nft", "list", "ruleset")
	if strings.Contains(strings.ReplaceAll(out, "unknown endpoint", ""), "unknown") || strings.Contains(out, "@th,") || strings.Contains(out, "@nh,") {
		t.Errorf("nft cannot print a rule:\n%s", out)
	}
	out = regexp.MustCompile(`\n\s*elements = \{[^}]* expires [^}]*\}`).ReplaceAllString(out, "") // they come and go
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(out, "packets 0 bytes 0")
}

func parseRules(t testing.TB, text ...string) []datastore.Rule {
	t.Helper()
	var out []datastore.Rule
	for _, s := range text {
		r, err := datastore.ParseRule(s)
		if err != nil {
			t.Fatalf("rule %q: %v", s, err)
		}
		out = append(out, r)
	}
	return out
}

func profile(t testing.TB, name string, tags, in, out []string) datastore.Change {
	t.Helper()
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
	p.Spec.Tags, p.Spec.Inbound, p.Spec.Outbound = tags, parseRules(t, in...), parseRules(t, out...)
	return datastore.Change{Kind: datastore.KindProfile, Name: name, New: p}
}

func endpoint(node, name, link string, profiles []string, addrs ...string) datastore.Change {
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name, Labels: map[string]string{"role": profiles[0]}}}
	e.Spec = datastore.EndpointSpec{Node: node, Link: link, Profiles: profiles}
	e.Spec.Ports = []datastore.Port{{Name: "http", Protocol: "tcp", Port: 8080}}
	for _, a := range addrs {
		e.Spec.Addresses = append(e.Spec.Addresses, netip.MustParseAddr(a))
	}
	return datastore.Change{Kind: datastore.KindEndpoint, Name: name, New: e}
}

// everything is an index with every kind of match and set.
func everything(t *testing.T) *acl.Index {
	x := acl.NewIndex("n1", testOptions())
	in := []string{
		"allow tcp from tag web to ports 5432", "allow from tag db", "deny from not tag web", "allow udp to ports 53,1000:2000,65000:65535",
		"log tcp from tag web", "allow icmp", "allow icmp type 8 code 0", "deny not icmp type 8 code 0", "allow icmpv6 type 128 code 1",
		"deny not icmpv6 type 128", "allow from cidr 10.0.0.0/8", "allow from cidr 0.0.0.0/0", "allow from cidr 255.0.0.0/8 to cidr 1.2.3.4/32",
		"deny from not cidr 10.0.0.1/32", "allow from cidr fd00::/8", "deny from not cidr ff00::/8 to cidr fd00::1/128",
		"allow tcp to ports http", "allow tcp to not ports http,22", "allow udp from ports http to ports 1", "allow sctp from not ports 1:3 to ports 7",
		"allow tcp from tag web and not cidr 10.0.0.0/29 to ports http,80:90", "allow not tcp", "allow 132 from tag web to tag db",
		"allow from selector \"role == 'web'\"", "deny from not selector \"has(zone)\" to not tag db",
	}
	for _, c := range []datastore.Change{
		profile(t, "db", []string{"db"}, in, []string{"allow"}),
		profile(t, "web", []string{"web"}, []string{"allow tcp to ports 80,443", "allow from tag web"}, []string{"allow"}),
		endpoint("n1", "n1/cni/a/eth0", "nc000000000a", []string{"db"}, "10.65.0.1", "fd80:24e2:f998:72d6::1"),
		endpoint("n1", "n1/cni/b/eth0", "nc000000000b", []string{"db", "web"}, "10.65.0.2"),
		endpoint("n1", "n1/cni/c/eth0", "nc000000000c", []string{"web"}, "10.65.0.3", "fd80:24e2:f998:72d6::3"),
		endpoint("n2", "n2/cni/d/eth0", "nc000000000d", []string{"web"}, "10.65.9.9"),
	} {
		x.Apply(c)
	}
	return x
}

// TestSameAsText holds what the encoder puts into the kernel against what nft
// makes of the ruleset's text, as nft lists both.
func TestSameAsText(t *testing.T) {
	rules := everything(t).Ruleset()
	text, encoded := newNetns(t), newNetns(t)
	if out, err := text.input(rules.String(), "nft", "-f", "-"); err != nil {
		t.Fatalf("nft -f: %v\n%s\n%s", err, out, rules)
	}
	if _, err := open(t, encoded).Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	sameLines(t, sorted(listing(t, encoded)), sorted(listing(t, text)))
}

// sorted is a listing with its sets, maps and chains in the order of their
// names: nft lists them in the order of their creation.
func sorted(listing string) []string {
	body := regexp.MustCompile(`(?m)^(table \w+ netctl \{|\})\n`).ReplaceAllString(listing, "")
	parts := strings.Split(body, "\n\t}\n")
	out := map[string]bool{}
	for _, p := range parts {
		out[strings.TrimSpace(p)] = true
	}
	var lines []string
	for _, k := range sortedKeys(out) {
		lines = append(lines, strings.Split(k, "\n")...)
	}
	return lines
}

func sameLines(t *testing.T, got, want []string) {
	t.Helper()
	for i := range max(len(got), len(want)) {
		var g, w string
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			t.Errorf("line %d:\n got %s\nwant %s", i, g, w)
		}
	}
	if t.Failed() {
		t.Fatalf("got\n%s", strings.Join(got, "\n"))
	}
}

func generationOf(t *testing.T, table *Table) uint32 {
	t.Helper()
	g, err := table.Generation()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestSyncWritesNothingWhenRight is the restart of an agent: read back, adopt,
// zero writes, whatever another table of the same family holds.
func TestSyncWritesNothingWhenRight(t *testing.T) {
	n, rules := newNetns(t), everything(t).Ruleset()
	if out, err := n.input("table inet other { set strange { type ipv4_addr; }; chain stranger { accept; }; chain raw_pre { accept; }; }", "nft", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if _, err := open(t, n).Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	again := open(t, n)
	before, list := generationOf(t, again), listing(t, n)
	for _, f := range []func() error{
		func() error { _, err := again.Sync(t.Context(), rules); return err },
		func() error { return again.Apply(t.Context(), acl.Delta{}) },
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
		if after := generationOf(t, again); after != before {
			t.Fatalf("generation %d, was %d: something was written\n%s", after, before, list)
		}
	}
}

// TestSyncRepairs changes the table by hand in many ways; each is put right, and
// the objects that were right are not touched.
func TestSyncRepairs(t *testing.T) {
	n, rules := newNetns(t), everything(t).Ruleset()
	table := open(t, n)
	if _, err := table.Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	want := sorted(listing(t, n))
	var inDB, portRanges string
	for name, c := range rules.Chains {
		if len(c.Rules) > 20 {
			inDB = name
		}
	}
	for name, s := range rules.Sets {
		if s.Type == acl.PortRanges && name != "port_ephemeral" {
			portRanges = name
		}
	}
	for _, damage := range []string{
		"flush chain inet netctl raw_pre",
		"flush chain inet netctl " + inDB,
		"add rule inet netctl " + inDB + " accept",
		"insert rule inet netctl deny_in accept",
		"flush chain inet netctl deny_in; add rule inet netctl deny_in accept; add rule inet netctl deny_in accept",
		"add table inet netctl { flags dormant; }",
		"add chain inet netctl fwd_to { policy drop; }",
		"add chain inet netctl stranger; add rule inet netctl stranger tcp dport { 1, 2 } accept; add rule inet netctl from_wl jump stranger",
		"add set inet netctl strange { type ipv4_addr; }",
		"add element inet netctl src4 { eth0 . 1.2.3.4 }",
		"delete element inet netctl src4 { nc000000000a . 10.65.0.1 }",
		"delete element inet netctl from_ep { nc000000000a }",
		"delete element inet netctl from_ep { nc000000000a }; add element inet netctl from_ep { nc000000000a : accept }",
		"flush set inet netctl " + portRanges,
		"add element inet netctl " + portRanges + " { 7-9 }",
		"flush chain inet netctl " + inDB + "; delete set inet netctl " + portRanges + "; add set inet netctl " + portRanges + " { type ipv4_addr; }",
		"flush chain inet netctl fwd_to; delete chain inet netctl fwd_to; add chain inet netctl fwd_to { type filter hook forward priority 5; }",
		"add chain inet netctl a; add chain inet netctl b; add chain inet netctl c; add rule inet netctl a jump b; add rule inet netctl c jump a",
		"flush chain arp netctl arp_in",
		"add table arp netctl { flags dormant; }",
		"delete element arp netctl arp_src4 { nc000000000a . 10.65.0.1 }",
		"flush chain arp netctl arp_in; delete chain arp netctl arp_in; add chain arp netctl arp_in { type filter hook output priority 5; }",
		"add rule inet netctl deny_in update @m_host { iifname limit rate 1/second }",
		"delete table arp netctl",
		"delete table inet netctl",
		"flush ruleset",
		"add set inet netctl strange { type ipv4_addr; }; flush set inet netctl unseen_protocols",
	} {
		if out, err := n.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		if _, err := table.Sync(t.Context(), rules); err != nil {
			t.Fatalf("%s: %v", damage, err)
		}
		if set := n.Run("nft", "list", "set", "inet", acl.TableName, acl.SetUnseen); strings.Count(set, "expires") != len(acl.Unseen()) {
			t.Errorf("after %s nothing is doubted:\n%s", damage, set)
		}
		got := sorted(listing(t, n))
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("after %s", damage)
			sameLines(t, got, want)
		}
		before := generationOf(t, table)
		if _, err := table.Sync(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		if after := generationOf(t, table); after != before {
			t.Errorf("%s: second sync wrote", damage)
		}
	}
}

// TestApplyFollowsIndex applies deltas and holds the table against one that was
// made at once.
func TestApplyFollowsIndex(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	if _, err := table.Sync(t.Context(), acl.Static(testOptions())); err != nil {
		t.Fatal(err)
	}
	step := func(changes ...datastore.Change) {
		t.Helper()
		for _, c := range changes {
			x.Apply(c)
		}
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			t.Fatal(err)
		}
		before := generationOf(t, table)
		if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
			t.Fatal(err)
		}
		if after := generationOf(t, table); after != before {
			t.Fatalf("sync after apply wrote\n%s", listing(t, n))
		}
	}
	a := endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1")
	b := endpoint("n1", "n1/cni/b/eth0", "ncb", []string{"db", "web"}, "10.0.0.2")
	step(a)
	step(profile(t, "web", []string{"web"}, []string{"allow from tag web", "allow udp to ports 5,100:200"}, []string{"allow"}))
	step(b, profile(t, "db", nil, []string{"allow tcp from tag web to ports http"}, nil))
	step(profile(t, "web", []string{"web", "db"}, []string{"allow from cidr 10.0.0.0/8"}, []string{"deny from cidr 10.0.0.0/9", "allow"}))
	step(endpoint("n1", "n1/cni/a/eth0", "nca", []string{"db"}, "10.0.0.3"))
	step(endpoint("n2", "n2/cni/c/eth0", "ncc", []string{"db"}, "10.0.0.4", "fd00::4"))
	four, six := pool("10.0.0.0/24", true), pool("fd00::/64", true)
	step(four, node("n2", "192.0.2.2/24", "2001:db8::2/64"))
	step(six, pool("10.0.1.0/24", false))
	step(pool("10.0.1.0/24", true), node("n2", "192.0.2.3/24"))
	step(pool("10.0.1.0/24", false))
	for _, c := range []datastore.Change{four, six} {
		c.Old, c.New = c.New, nil
		step(c)
	}
	for _, c := range []datastore.Change{a, b} {
		c.Old, c.New = c.New, nil
		step(c)
	}
	if got, want := sorted(listing(t, n)), acl.Static(testOptions()); strings.Count(strings.Join(got, "\n"), "chain ") != len(want.Chains) {
		t.Errorf("left over:\n%s", strings.Join(got, "\n"))
	}
}

// TestLargeRuleset needs several batches and must still be right.
func TestLargeRuleset(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := acl.NewIndex("n1", testOptions())
	for i := range 300 {
		name := fmt.Sprintf("p%d", i)
		var in []string
		for j := range 10 {
			in = append(in, fmt.Sprintf("allow tcp from tag p%d to ports %d", j, 1000+i))
		}
		x.Apply(profile(t, name, []string{name}, in, []string{"allow"}))
		for j := range 3 {
			x.Apply(endpoint("n1", fmt.Sprintf("n1/cni/%d-%d/eth0", i, j), fmt.Sprintf("nc%d-%d", i, j), []string{name},
				fmt.Sprintf("10.%d.%d.%d", j, i/250, i%250)))
		}
	}
	for i := range 3000 {
		x.Apply(endpoint("n2", fmt.Sprintf("n2/cni/%d/eth0", i), "ncx", []string{"p0"}, fmt.Sprintf("10.200.%d.%d", i/250, i%250)))
	}
	rules := x.Ruleset()
	if _, err := table.Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	before := generationOf(t, table)
	if before < 3 {
		t.Errorf("generation %d: not split", before)
	}
	if _, err := table.Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	if after := generationOf(t, table); after != before {
		t.Errorf("second sync wrote")
	}
	listing(t, n)
}

// TestErrorNamesTheObject: one bad object does not hold up the others.
func TestErrorNamesTheObject(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := everything(t)
	rules := x.Ruleset()
	rules.Chains["bad"] = &acl.Chain{Name: "bad", Rules: []acl.Rule{{Match: []acl.Term{{Field: acl.SrcIP4, Set: "nowhere"}}}}}
	_, err := table.Sync(t.Context(), rules)
	var refused *acl.RefusedError
	if !errors.As(err, &refused) || len(refused.Refusals) != 1 || refused.Refusals[0].Kind != "chain" || refused.Refusals[0].Name != "bad" {
		t.Fatalf("error %v does not name the chain", err)
	}
	got := strings.Replace(strings.Join(sorted(listing(t, n)), "\n"), "chain bad {\n", "", 1)
	delete(rules.Chains, "bad")
	fresh := newNetns(t)
	if _, err := open(t, fresh).Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	sameLines(t, strings.Split(got, "\n"), sorted(listing(t, fresh)))
}

// TestRefusedElementIsNamed: of many elements in one message only the bad one is
// missing, and an element that is gone already does not keep the others.
func TestRefusedElementIsNamed(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	x := everything(t)
	if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	to := func(link, chain string) acl.Element {
		return acl.Element{Link: link, Verdict: acl.Verdict{Kind: acl.Goto, Chain: chain}}
	}
	change := acl.SetChange{Name: "from_ep", Type: acl.LinkVerdict, Add: []acl.Element{to("ncx", "deny_in"), to("ncy", "nowhere"), to("ncz", "deny_in")}}
	err := table.Apply(t.Context(), acl.Delta{Sets: []acl.SetChange{change}})
	var refused *acl.RefusedError
	if !errors.As(err, &refused) || len(refused.Refusals) != 1 || refused.Refusals[0].Link != "ncy" {
		t.Fatalf("error %v does not name the element", err)
	}
	if !errors.Is(err, unix.ENOENT) {
		t.Errorf("error %v hides the kernel's answer", err)
	}
	if out := n.Run("nft", "list", "map", "inet", "netctl", "from_ep"); !strings.Contains(out, "ncx") || !strings.Contains(out, "ncz") {
		t.Errorf("the others are not in:\n%s", out)
	}
	change.Add, change.Del = nil, change.Add
	if err := table.Apply(t.Context(), acl.Delta{Sets: []acl.SetChange{change}}); err != nil {
		t.Fatal(err)
	}
	if out := n.Run("nft", "list", "map", "inet", "netctl", "from_ep"); strings.Contains(out, "ncx") || strings.Contains(out, "ncz") {
		t.Errorf("the others are still in:\n%s", out)
	}
}

// TestWatch reports what others do to the table, and neither what we do to it
// nor what others do elsewhere.
func TestWatch(t *testing.T) {
	n := newNetns(t)
	table := open(t, n)
	rules := everything(t).Ruleset()
	if _, err := table.Sync(t.Context(), rules); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ours, others := make(chan struct{}, 100), make(chan struct{}, 100)
	done := make(chan error, 2)
	go func() { done <- table.Watch(ctx, func() { ours <- struct{}{} }) }()
	go func() { done <- table.WatchOthers(ctx, func() { others <- struct{}{} }) }()
	<-ours // what was changed before may have been missed
	<-others
	if err := table.Apply(ctx, acl.Delta{Sets: []acl.SetChange{{Name: "x", Type: acl.Addr4, New: true}}}); err != nil {
		t.Fatal(err)
	}
	n.Run("nft", "add", "table", "ip", "netctl")
	<-others
	n.Run("nft", "add", "table", "inet", "other")
	<-others
	if len(ours) != 0 {
		t.Error("reported our own change or another table's")
	}
	n.Run("nft", "flush", "chain", "inet", "netctl", "raw_pre")
	<-ours
	if _, err := table.Sync(ctx, rules); err != nil {
		t.Fatal(err)
	}
	n.Run("nft", "flush", "ruleset")
	<-ours
	<-others
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if len(ours) != 0 {
		t.Error("reported the repair")
	}
}
