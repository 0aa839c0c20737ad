package nft

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/netdev/netlab"
)

// unseen is how many answers were dropped, in flows that were cut or that began unseen.
func (l *lab) unseen(why string) (n int) {
	l.t.Helper()
	list := func(chain string) string { return l.router.Run("nft", "list", "chain", "inet", acl.TableName, chain) }
	for line := range strings.Lines(list("unseen") + list("unseen_to")) {
		if _, text, counts := strings.Cut(line, "counter packets "); counts && strings.Contains(line, why) {
			var packets int
			if _, err := fmt.Sscan(text, &packets); err != nil {
				l.t.Fatalf("chain unseen: %v", err)
			}
			n += packets
		}
	}
	return n
}

func port(p acl.Packet, src uint16) acl.Packet {
	p.SrcPort = src
	return p
}

// TestAnOpenTableIsClosedFirst: after the first of a repair's transactions nothing new
// passes, and what is established and not spoofed goes on.
func TestAnOpenTableIsClosedFirst(t *testing.T) {
	l, _ := wiredLab(t, onNFT)
	flow, back := udp("10.0.0.1", "10.0.0.2", 99), udp("10.0.0.2", "10.0.0.1", 9)
	back.SrcPort, back.State = 99, acl.Established
	l.expect(true, "a", flow)
	l.expect(true, "b", back)
	whole := l.rules
	for _, damage := range []string{
		"flush ruleset",
		"delete table inet netctl",
		"flush chain inet netctl fwd_to",
		"delete table arp netctl",
		"flush chain inet netctl from_wl",
		"add table inet netctl { flags dormant; }",
		"flush chain inet netctl fwd_from; add rule inet netctl fwd_from ct state new accept",
		"flush chain inet netctl fwd_to; delete chain inet netctl fwd_to; add chain inet netctl fwd_to { type filter hook forward priority 5; }",
	} {
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		have, err := l.table.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		tx := closing(whole, have)
		if tx.empty() {
			t.Fatalf("%s: nothing to close", damage)
		}
		if len(tx.parts()) != 1 {
			t.Fatalf("%s: closed in %d parts", damage, len(tx.parts()))
		}
		if err := l.table.commit(t.Context(), tx); err != nil {
			t.Fatalf("%s: %v", damage, err)
		}
		if damage == "flush ruleset" {
			l.rules = whole.Closed()
			l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 99)))
			l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "192.0.2.9", 99)))
			l.expect(false, "n", l.uniquePort(udp("192.0.2.9", "10.0.0.1", 99)))
			l.expect(false, "c", udp("10.0.0.1", "10.0.0.2", 9))
			l.expect(true, "b", back)
			l.rules = whole
		}
		l.sync()
		l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 99)))
		l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.3", 7)))
	}
	// The answer in a flow that nobody saw begin begins none of its sender's, which would
	// let the other end through. A client's packet does, and what begins with SYN.
	for _, damage := range []string{"flush ruleset", ""} {
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		if damage != "" {
			if _, err := l.table.Sync(t.Context(), whole); err != nil {
				t.Fatal(err)
			}
		} else if l.table.doubted.Store(nil); l.table.Doubt(t.Context()) != nil {
			t.Fatal("not doubted")
		}
		l.expect(true, "a", port(tcp("10.0.0.1", "192.0.2.9", 40000), 80))
		l.expect(true, "a", port(udp("10.0.0.1", "192.0.2.9", 53), 40000))
		l.expect(true, "a", port(udp("fd00::1", "2001:db8::9", 53), 40000))
		before := l.unseen("began unseen")
		for _, p := range []acl.Packet{
			port(udp("10.0.0.1", "192.0.2.9", 40000), 80), port(udp("fd00::1", "2001:db8::9", 40000), 80),
			port(udp("10.0.0.1", "192.0.2.9", 40000), 50051), port(udp("10.0.0.1", "192.0.2.9", 99), 80),
		} {
			l.transmit(l.hosts["a"], p, 0)
		}
		netlab.Until(t, 10*time.Second, "answers dropped", func() string {
			if n := l.unseen("began unseen") - before; n != 4 {
				return fmt.Sprintf("%d of 4", n)
			}
			return ""
		})
		l.sync()
	}
	// Nothing began unseen where a table that was right is to be another one, but where there is none.
	for damage, want := range map[string]int{"": 0, "flush ruleset": len(acl.Unseen())} {
		o := testOptions()
		o.FlowRate, o.FlowBurst = 7, uint32(7+want)
		l.rules = l.rules.WithStatic(o)
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		if wrote, err := l.table.Adjust(t.Context(), l.rules); !wrote || err != nil {
			t.Fatalf("adjusted: %v, %v", wrote, err)
		}
		if set := l.router.Run("nft", "list", "set", "inet", acl.TableName, acl.SetUnseen); strings.Count(set, "expires") != want {
			t.Errorf("after %q:\n%s", damage, set)
		}
		l.sync()
	}
	whole = l.rules
	// Of a table that is gone and not known nothing is let through; of another one all stays.
	for damage, want := range map[string]bool{"": false, "flush ruleset": true} {
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		if wrote, err := l.table.Shut(t.Context(), acl.Static(testOptions())); wrote != want || err != nil {
			t.Fatalf("after %q shut: %v, %v", damage, wrote, err)
		}
		if l.rules = whole; want {
			l.rules = acl.Static(testOptions())
		}
		l.expect(!want, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 99)))
		l.rules = whole
		l.sync()
	}
	// One that starts closes before it knows what the table is to be; what began is told of.
	for damage, want := range map[string]bool{"": false, "flush ruleset": true} {
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		for again := range 2 { // the first one was killed
			if wrote, err := l.table.Block(t.Context(), acl.Static(testOptions())); wrote != (want && again == 0) || err != nil {
				t.Fatalf("after %q blocked: %v, %v", damage, wrote, err)
			}
		}
		told := 0
		l.table.OnClosed = func(*acl.Ruleset) {
			told++
			l.rules = acl.Static(testOptions())
			l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 80)))
			l.rules = whole
		}
		if want {
			l.table.OnClosed(nil) // nothing is let through
			told = 0
		}
		l.sync()
		if (told > 0) != want {
			t.Errorf("after %q told of %d times", damage, told)
		}
		l.table.OnClosed = nil
		l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 80)))
	}
	// What opens nothing is not closed.
	for _, damage := range []string{"delete element inet netctl src4 { nca . 10.0.0.1 }", "delete element inet netctl from_ep { nca }", "flush set inet netctl onlink4"} {
		if out, err := l.router.input(damage+"\n", "nft", "-f", "-"); err != nil {
			t.Fatalf("%s: %v\n%s", damage, err, out)
		}
		have, err := l.table.snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if tx := closing(whole, have); !tx.empty() {
			t.Errorf("%s: %d objects to close", damage, tx.objects())
		}
		if _, err := l.table.Sync(t.Context(), whole); err != nil {
			t.Fatal(err)
		}
	}
	if text := whole.Closed().String(); strings.Contains(text, "goto class_") || strings.Contains(text, "profile web") {
		t.Errorf("the closed part knows endpoints:\n%s", text)
	}
}
