package nft

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
)

// TestRunsAreRepaired: what others do to a run is put right, and nothing else is touched.
func TestRunsAreRepaired(t *testing.T) {
	l, x := wiredLab(t, onNFT)
	rules := []string{"deny udp from cidr 10.0.0.2/32", "allow udp from cidr 10.0.0.0/30", "deny udp from cidr 172.16.0.0/12", "allow udp from cidr 192.0.2.0/24"}
	x.Apply(profile(t, "web", []string{"web"}, rules, []string{"allow"}))
	l.apply(x.Flush())
	text := listing(t, l.router)
	m, chain := regexp.MustCompile(`map (run_[0-9a-f]{12}) `).FindStringSubmatch(text)[1], regexp.MustCompile(`10\.0\.0\.2 : goto (rule_\w+)`).FindStringSubmatch(text)[1]
	want := sorted(text)
	for _, damage := range []string{
		"flush map inet netctl " + m,
		"delete element inet netctl " + m + " { 10.0.0.2 }",
		"add element inet netctl " + m + " { 203.0.113.0/24 : accept }",
		"add element inet netctl " + m + "_next { 10.0.0.2 : accept }",
		"delete element inet netctl " + m + " { 10.0.0.2 }; add element inet netctl " + m + " { 10.0.0.2 : accept }",
		"flush chain inet netctl " + chain,
		"insert rule inet netctl " + chain + " accept",
		"flush chain inet netctl " + chainOf(t, x),
		"flush chain inet netctl " + chainOf(t, x) + "; delete map inet netctl " + m,
		"flush chain inet netctl " + chainOf(t, x) + "; delete map inet netctl " + m + "; add set inet netctl " + m + " { type ipv4_addr; }",
		"flush map inet netctl " + m + "; delete chain inet netctl " + chain,
	} {
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		l.sync()
		if got := sorted(listing(t, l.router)); !slices.Equal(got, want) {
			t.Errorf("after %s", damage)
			sameLines(t, got, want)
		}
		before := generationOf(t, l.table)
		if _, err := l.table.Sync(t.Context(), l.rules); err != nil {
			t.Fatal(err)
		}
		if after := generationOf(t, l.table); after != before {
			t.Errorf("%s: second sync wrote", damage)
		}
		l.expect(false, "b", l.uniquePort(udp("10.0.0.2", "10.0.0.1", 7)))
		l.expect(true, "c", l.uniquePort(udp("10.0.0.3", "10.0.0.1", 7)))

		// A change that comes before the repair makes it.
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		for _, rules := range [][]string{append(slices.Clone(rules), "allow udp from cidr 10.0.0.0/8"), rules} {
			x.Apply(profile(t, "web", []string{"web"}, rules, []string{"allow"}))
			d := x.Flush()
			l.rules.Apply(d)
			if err := l.table.Apply(t.Context(), d); err != nil {
				t.Logf("%s: %v", damage, err)
			}
			l.sync()
		}
		if got := sorted(listing(t, l.router)); !slices.Equal(got, want) {
			t.Errorf("after %s and a change", damage)
			sameLines(t, got, want)
		}
	}
}

// TestTraceThroughARun: the kernel's steps of a packet name the rule of the model that decided.
func TestTraceThroughARun(t *testing.T) {
	l, x := wiredLab(t, onNFT)
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow udp from cidr 10.0.0.3/32", "deny udp from cidr 10.0.0.0/8", "deny udp from cidr 172.16.0.0/12", "allow udp from cidr 192.0.2.0/24"}, []string{"allow"}))
	x.Apply(profile(t, "db", nil, nil, []string{"allow"}))
	l.apply(x.Flush())
	for from, want := range map[string]string{"b": "deny udp from cidr 10.0.0.0/8", "c": "allow udp from cidr 10.0.0.3/32"} {
		p := udp(l.hosts[from].addrs[0].String(), "10.0.0.1", 7)
		tr, err := l.table.Trace(datastore.TraceFlow{Sources: []netip.Addr{p.Src}, Destination: p.Dst, Protocol: datastore.ProtocolUDP, SourcePort: p.SrcPort, DestinationPort: p.DstPort})
		if err != nil {
			t.Fatal(err)
		}
		l.check([]probe{{from, p}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		steps, _, _, err := tr.Follow(ctx)
		cancel()
		tr.Close()
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, s := range steps {
			for _, p := range x.Placed(s.Chain) {
				if s.Is(&p.Rule) && p.Place.Direction == "inbound" {
					found = append(found, p.Place.Rule)
				}
			}
		}
		if !slices.Equal(found, []string{want}) {
			t.Errorf("from %s: %q, want %q; steps %+v", from, found, want, steps)
		}
	}
}

// TestRunsComeAndGo: what a rule has counted it keeps when it comes to be in a run, and when
// it is in one no more.
func TestRunsComeAndGo(t *testing.T) { onEach(t, testRunsComeAndGo) }

func testRunsComeAndGo(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	others := []string{"deny icmp type 13", "deny icmp type 14", "deny sctp", "deny icmp type 15", "deny udp to ports 90 from cidr 10.0.0.0/8", "deny icmp type 17"}
	one := []string{"allow udp from cidr 10.0.0.3/32", "deny udp from cidr 10.0.0.2/32"}
	more := append(slices.Clone(one), "allow udp from cidr 172.16.0.0/12", "allow udp from cidr 10.0.0.0/8")
	want := uint64(0)
	for round, rules := range [][]string{
		one, more, one, slices.Concat(others, one), slices.Concat(others, more), slices.Concat(one[:1], others, more[1:]), slices.Concat(more, others), one,
	} {
		x.Apply(profile(t, "web", []string{"web"}, rules, []string{"allow"}))
		l.apply(x.Flush())
		l.expect(true, "c", l.uniquePort(udp("10.0.0.3", "10.0.0.1", 7)))
		l.expect(false, "b", l.uniquePort(udp("10.0.0.2", "10.0.0.1", 7)))
		want++
		for _, r := range one {
			if got := l.counted(x, "web")[r]; got != want {
				t.Fatalf("round %d: %q has counted %d packets, want %d\n%s", round, r, got, want, l.listed())
			}
		}
		if wrote, err := l.filter.Sync(t.Context(), l.rules); wrote || err != nil {
			t.Fatalf("round %d: wrote %v, %v", round, wrote, err)
		}
	}
	l.list()
}

// TestRunsOfAnOlderTable: where the rules stand one after the other, as they did before there
// were runs, what they have counted goes with them.
func TestRunsOfAnOlderTable(t *testing.T) {
	l, x := wiredLab(t, onNFT)
	const allow, deny = "allow udp from cidr 10.0.0.3/32", "deny udp from cidr 10.0.0.0/8"
	x.Apply(profile(t, "web", []string{"web"}, []string{allow, deny, "deny udp from cidr 172.16.0.0/12", "allow udp from cidr 192.0.2.0/24"}, []string{"allow"}))
	l.rules.Apply(x.Flush())
	have, err := l.table.snapshot()
	if err != nil {
		t.Fatal(err)
	}
	older := newTransaction()
	compare(older, l.rules, have, handles{})
	if err := l.table.commit(t.Context(), older); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.expect(true, "c", l.uniquePort(udp("10.0.0.3", "10.0.0.1", 7)))
		l.expect(false, "b", l.uniquePort(udp("10.0.0.2", "10.0.0.1", 7)))
		l.expect(false, "b", l.uniquePort(udp("10.0.0.2", "10.0.0.1", 8)))
		l.sync()
	}
	if got := l.counted(x, "web"); got[allow] != 2 || got[deny] != 4 {
		t.Errorf("counted %v", got)
	}
	if !strings.Contains(listing(t, l.router), "goto rule_") {
		t.Error("they still stand one after the other")
	}
}

// TestRunsChangeHitless: while the elements of a run that hold two senders are cut anew again and
// again, the one that is allowed loses no packet, and of the other none gets through. A
// packet that met neither the old element nor the new one would.
func TestRunsChangeHitless(t *testing.T) {
	l, x := wiredLab(t, onNFT)
	b := l.hosts["b"]
	counters := "table inet count { chain in { type filter hook prerouting priority -400; udp dport 1000 counter; udp dport 2000 counter; }\n}\n"
	if out, err := b.input(counters, "nft", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rules := []string{"deny from cidr 10.0.0.2/31", "allow from cidr 10.0.0.0/31", "allow from cidr 172.16.0.0/12", "deny from cidr 172.32.0.0/16", "deny udp to ports 1000", "allow udp to ports 2000"}
	cuts := [][]string{
		nil,
		{"deny from cidr 10.0.0.2/32"},
		{"allow from cidr 10.0.0.0/32"},
		{"allow from cidr 10.0.0.1/32", "deny from cidr 10.0.0.3/32"},
		{"deny sctp", "deny from cidr 10.0.0.2/32", "allow from cidr 10.0.0.0/32"},
		{"deny from cidr 10.0.0.2/32", "deny sctp", "allow from cidr 10.0.0.0/32"},
	}
	change := func(i int) error {
		x.Apply(profile(t, "web", []string{"web"}, slices.Concat(cuts[i%len(cuts)], rules), []string{"allow"}))
		return l.table.Apply(t.Context(), x.Flush())
	}
	x.Apply(profile(t, "db", nil, nil, []string{"allow"}))
	if err := change(0); err != nil {
		t.Fatal(err)
	}
	const updates = 200
	done := make(chan error, 1)
	go func() {
		rng := rand.New(rand.NewPCG(1, 2))
		for range updates {
			if err := change(rng.IntN(len(cuts))); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
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
			for from, p := range map[string]acl.Packet{"a": udp("10.0.0.1", "10.0.0.2", 1000), "c": udp("10.0.0.3", "10.0.0.2", 2000)} {
				p.SrcPort = uint16(10000 + sent%50000)
				l.transmit(l.hosts[from], p, uint64(sent))
			}
			sent++
		}
	}
	count := func() (n []int) {
		for _, m := range regexp.MustCompile(`counter packets (\d+)`).FindAllStringSubmatch(b.Run("nft", "list", "table", "inet", "count"), -1) {
			v, _ := strconv.Atoi(m[1])
			n = append(n, v)
		}
		return n
	}
	l.eventually("the last packet", func() bool {
		n := count()
		return n[0]+n[1]+l.dropped() >= 2*sent
	})
	if n := count(); sent < updates || n[0] != sent || n[1] != 0 {
		t.Errorf("of %d packets each arrived: allowed %d, refused %d", sent, n[0], n[1])
	}
}
