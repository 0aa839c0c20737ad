package nft

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// TestUpdatesAreHitless changes rules, members, classes and endpoints in a loop
// while packets flow: none that is allowed all the time is lost, none that is
// refused all the time leaks.
func TestUpdatesAreHitless(t *testing.T) { onAll(t, testUpdatesAreHitless) }

func testUpdatesAreHitless(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	b := l.hosts["b"]
	counters := "table inet count { chain in { type filter hook prerouting priority -400; udp dport 1000 counter; udp dport 2000 counter; udp dport 3000 counter; }\n}\n"
	if out, err := b.input(counters, "nft", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rules := []string{"allow udp from tag web to ports 1000", "allow udp from tag web to ports 3000"}
	other := append([]string{"deny from tag none", "allow tcp to ports 1:9000"}, rules...)
	gated := taggedRules("allow udp from tag none%d to ports 1000", 20) // what is allowed there is so behind a gate
	rules, other = slices.Insert(rules, 0, gated...), slices.Concat(gated[:9], other[2:3], gated[7:], gated[:4], other)
	x.Apply(profile(t, "web", []string{"web"}, rules, []string{"allow"}))
	l.apply(x.Flush())

	updates := 400
	if on != onNFT {
		updates = 18 // each takes as long as ten there
	}
	done := make(chan error, 1)
	go func() { done <- churn(t, l.filter, x, updates, rules, other) }()
	sent := 0
	for finished := false; !finished; {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			finished = true
		default:
		}
		for range 20 {
			fresh, refused, lasting := udp("10.0.0.1", "10.0.0.2", 1000), udp("10.0.0.1", "10.0.0.2", 2000), udp("10.0.0.1", "10.0.0.2", 3000)
			fresh.SrcPort = uint16(10000 + sent%50000)
			refused.SrcPort = fresh.SrcPort
			lasting.SrcPort = 5
			for _, p := range []acl.Packet{fresh, refused, lasting} {
				l.transmit(l.hosts["a"], p, uint64(sent))
			}
			sent++
		}
	}
	if sent < updates {
		t.Errorf("only %d packets of each kind for %d updates", sent, updates)
	}
	count := func() (n []int) {
		for _, m := range regexp.MustCompile(`counter packets (\d+)`).FindAllStringSubmatch(b.Run("nft", "list", "table", "inet", "count"), -1) {
			v, _ := strconv.Atoi(m[1])
			n = append(n, v)
		}
		return n
	}
	t.Logf("sent %d of each kind, arrived %v, dropped %d", sent, count(), l.dropped())
	l.eventually("the last packet", func() bool {
		n := count()
		if on != onNFT { // what a chain has dropped is not counted on when it changes
			return n[0]+n[2] >= 2*sent
		}
		return n[0]+n[1]+n[2]+l.dropped() >= 3*sent
	})
	if n := count(); n[0] != sent || n[1] != 0 || n[2] != sent {
		t.Errorf("of %d packets each arrived: allowed %d, refused %d, lasting %d", sent, n[0], n[1], n[2])
	}
	l.list()
}

// churn makes n updates of every kind that leaves the two flows as they are.
func churn(t *testing.T, table backEnd, x *acl.Index, n int, rules, other []string) error {
	for i := range n {
		switch i % 6 {
		case 0:
			x.Apply(profile(t, "web", []string{"web"}, other, []string{"allow"}))
		case 1:
			x.Apply(profile(t, "web", []string{"web", "more"}, rules, []string{"deny from cidr 9.0.0.0/8", "allow"}))
		case 2:
			x.Apply(endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web", "y"}, "10.0.0.1", "fd00::1"))
			x.Apply(endpoint("n1", "n1/cni/b/eth0", "ncb", []string{"web", "y"}, "10.0.0.2"))
		case 3:
			x.Apply(endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1"))
			x.Apply(endpoint("n1", "n1/cni/b/eth0", "ncb", []string{"web"}, "10.0.0.2", "fd00::2"))
		case 4:
			for j := range 20 {
				x.Apply(endpoint("n1", fmt.Sprintf("n1/cni/x%d/eth0", j), fmt.Sprintf("ncx%d", j), []string{"web", "y"}, fmt.Sprintf("10.1.0.%d", j)))
			}
		case 5:
			for j := range 20 {
				c := endpoint("n1", fmt.Sprintf("n1/cni/x%d/eth0", j), fmt.Sprintf("ncx%d", j), []string{"web"}, "10.1.0.1")
				c.Old, c.New = c.New, nil
				x.Apply(c)
			}
		}
		if err := table.Apply(t.Context(), x.Flush()); err != nil {
			return err
		}
		if i%10 == 0 {
			if _, err := table.Sync(t.Context(), x.Ruleset()); err != nil {
				return err
			}
		}
	}
	return nil
}

// thousandProfiles is a model with 10,000 rules on the node.
func thousandProfiles(b *testing.B) *acl.Index {
	x := acl.NewIndex("n1", testOptions())
	for i := range 1000 {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprintf("p%d", i)}}
		p.Spec.Tags = []string{p.Metadata.Name}
		for j := range 10 {
			r, err := datastore.ParseRule(fmt.Sprintf("allow tcp from tag p%d to ports %d", j, 1000+i))
			if err != nil {
				b.Fatal(err)
			}
			p.Spec.Inbound = append(p.Spec.Inbound, r)
		}
		x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: p.Metadata.Name, New: p})
		x.Apply(endpoint("n1", fmt.Sprintf("n1/cni/%d/eth0", i), fmt.Sprintf("nc%d", i), []string{p.Metadata.Name}, fmt.Sprintf("10.0.%d.%d", i/250, i%250)))
	}
	x.Flush()
	return x
}

// BenchmarkAddEndpoint adds and removes an endpoint of an existing class.
func BenchmarkAddEndpoint(b *testing.B) {
	x, table := thousandProfiles(b), open(b, newNetns(b))
	if _, err := table.Sync(b.Context(), x.Ruleset()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		add := endpoint("n1", "n1/cni/new/eth0", "ncnew", []string{"p7"}, "10.9.9.9")
		del := datastore.Change{Kind: add.Kind, Name: add.Name, Old: add.New}
		for _, c := range []datastore.Change{add, del} {
			x.Apply(c)
			if err := table.Apply(b.Context(), x.Flush()); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkSyncNothing reads back and finds everything right.
func BenchmarkSyncNothing(b *testing.B) {
	rules, table := thousandProfiles(b).Ruleset(), open(b, newNetns(b))
	for b.Loop() {
		if _, err := table.Sync(b.Context(), rules); err != nil {
			b.Fatal(err)
		}
	}
}
