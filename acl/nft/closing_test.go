package nft

import (
	"strings"
	"testing"

	"netctl/acl"
)

// TestAnOpenTableIsClosedFirst: after the first of a repair's transactions nothing new
// passes, and what is established and not spoofed goes on.
func TestAnOpenTableIsClosedFirst(t *testing.T) {
	l, _ := wiredLab(t)
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
		"flush map inet netctl states; add element inet netctl states { new : accept }",
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
		if _, err := l.table.Sync(t.Context(), whole); err != nil {
			t.Fatalf("%s: %v", damage, err)
		}
		l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 99)))
		l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.3", 7)))
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
