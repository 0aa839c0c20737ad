package nft

import (
	"testing"

	"netctl/acl"
)

// TestStrict: a strict filter judges each packet of an established flow that goes as the flow
// began, lets answers through, and is what is read back.
func TestStrict(t *testing.T) { onEach(t, testStrict) }

func testStrict(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	strict := func(now bool) {
		t.Helper()
		x.SetStrict(now)
		l.rules = x.Ruleset()
		if wrote, err := l.filter.Adjust(t.Context(), l.rules); !wrote || err != nil {
			t.Fatalf("strict %v: wrote %v, %v", now, wrote, err)
		}
		if wrote, err := l.filter.Sync(t.Context(), l.rules); wrote || err != nil {
			t.Fatalf("strict %v: wrote again: %v, %v", now, wrote, err)
		}
		if l.rules.Strict() != now {
			t.Error("not known as that")
		}
	}
	web := func(inbound ...string) {
		t.Helper()
		x.Apply(profile(t, "web", []string{"web"}, inbound, []string{"allow"}))
		l.apply(x.Flush())
	}
	for _, a := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
		first, answer := l.uniquePort(udp(a[0], a[1], 53)), udp(a[1], a[0], 0)
		answer.SrcPort, answer.DstPort, answer.State, answer.Reply = first.DstPort, first.SrcPort, acl.Established, true
		later := first
		later.State = acl.Established
		l.expect(true, "a", first)
		l.expect(true, "b", answer)
		web("deny")
		l.expect(true, "a", later)
		strict(true)
		l.expect(false, "a", later)
		l.expect(true, "b", answer)
		web("allow udp")
		l.expect(true, "a", later)
		strict(false)
		web("allow from tag web")
	}
	l.list()
}
