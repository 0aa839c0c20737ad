package nft

import (
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/netdev/netlab"
)

// TestAnswersInCutFlows: what answers there are in flows that were cut begin none, for as
// long as they come and whatever becomes of the table; everything else does.
func TestAnswersInCutFlows(t *testing.T) {
	l, _ := wiredLab(t, onNFT)
	other := func(src, dst string) acl.Packet {
		p := echo(src, dst)
		p.Protocol, p.Type = 253, 0
		return p
	}
	answers := []acl.Packet{
		udp("10.0.0.1", "192.0.2.9", 7), udp("fd00::1", "2001:db8::9", 7),
		other("10.0.0.1", "192.0.2.9"), other("fd00::1", "2001:db8::9"),
	}
	var flows []acl.Flow
	for _, p := range answers {
		flows = append(flows, acl.Flow{Src: p.Src, Dst: p.Dst, Protocol: p.Protocol, SrcPort: p.SrcPort, DstPort: p.DstPort})
	}
	if err := l.table.Cut(t.Context(), append(flows, acl.Flow{Src: answers[0].Src, Dst: answers[0].Dst, Protocol: 1})); err != nil {
		t.Fatal(err)
	}
	dropped := func() {
		t.Helper()
		before := l.unseen("was cut")
		for _, p := range answers {
			l.transmit(l.hosts["a"], p, 0)
		}
		netlab.Until(t, 10*time.Second, "answers dropped", func() string {
			if n := l.unseen("was cut") - before; n < len(answers) {
				return "not all"
			}
			return ""
		})
	}
	dropped()
	l.expect(true, "a", udp("10.0.0.1", "192.0.2.9", 8))
	l.expect(true, "a", tcp("10.0.0.1", "192.0.2.9", 7))
	l.expect(true, "a", other("10.0.0.1", "10.0.0.2"))
	l.expect(true, "a", udp("fd00::1", "2001:db8::9", 8))
	if !l.table.IsCut(flows[1]) || l.table.IsCut(acl.Flow{Src: flows[1].Dst, Dst: flows[1].Src, Protocol: 17, SrcPort: 7, DstPort: 9}) {
		t.Error("not known as cut")
	}
	rest := func() time.Duration {
		t.Helper()
		m := regexp.MustCompile(`10\.0\.0\.1 \. 192\.0\.2\.9 \. udp \. 9 \. 7 expires (\w+)`).FindStringSubmatch(l.router.Run("nft", "list", "set", "inet", acl.TableName, "cut4"))
		if m == nil {
			return 0
		}
		d, err := time.ParseDuration(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var less time.Duration
	netlab.Until(t, 10*time.Second, "time goes by", func() string {
		if less = rest(); less > acl.CutRest-time.Second || less == 0 {
			return less.String()
		}
		return ""
	})
	if dropped(); rest() <= less {
		t.Errorf("%v are left after an answer, %v before", rest(), less)
	}
	l.router.Run("nft", "flush", "ruleset")
	l.sync()
	dropped()
	many := make([]acl.Flow, acl.MaxCut)
	for i := range many {
		many[i] = acl.Flow{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("192.0.2.9"), Protocol: 17, SrcPort: 1, DstPort: uint16(i)}
	}
	if err := l.table.Cut(t.Context(), many); err == nil {
		t.Error("more are kept than there is room for")
	}
	dropped()
}

// TestTrackingGoesOn: connections are tracked while the table is gone, by one that nobody
// else can take away, and that goes with its socket. Nothing began unseen then.
func TestTrackingGoesOn(t *testing.T) {
	l, _ := wiredLab(t, onNFT)
	keeper := open(t, l.router)
	if err := keeper.KeepTracking(); err != nil {
		t.Fatal(err)
	}
	if _, err := keeper.Sync(t.Context(), l.rules); err != nil {
		t.Fatal(err)
	}
	doubted := func() bool {
		return strings.Contains(l.router.Run("nft", "list", "set", "inet", acl.TableName, acl.SetUnseen), "expires")
	}
	tables := func() string { return l.router.Run("nft", "list", "tables") }
	for _, foreign := range []string{"flush ruleset", "delete table inet netctl_tracking", "flush table inet netctl_tracking", "delete chain inet netctl_tracking tracking"} {
		_, err := l.router.input(foreign+"\n", "nft", "-f", "-")
		if (err == nil) != (foreign == "flush ruleset") {
			t.Errorf("%s: %v", foreign, err)
		}
	}
	if got := tables(); got != "table inet netctl_tracking\n" {
		t.Errorf("left are %q", got)
	}
	for _, a := range [][2]string{{"10.0.0.1", "10.0.0.3"}, {"fd00::1", "fd00::3"}} {
		l.transmit(l.hosts["a"], udp(a[0], a[1], 77), 0)
	}
	netlab.Until(t, 10*time.Second, "tracked", func() string {
		text := l.router.Run("sh", "-c", "conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null")
		for _, a := range []string{"10.0.0.1", "fd00::1"} {
			if !regexp.MustCompile(`src=` + a + ` dst=\S+ sport=9 dport=77`).MatchString(text) {
				return text
			}
		}
		return ""
	})
	if wrote, err := keeper.Sync(t.Context(), l.rules); !wrote || err != nil || doubted() {
		t.Errorf("tracked all the time: wrote %v, doubted %v, %v", wrote, doubted(), err)
	}
	l.expect(true, "a", port(udp("10.0.0.1", "192.0.2.9", 123), 123))
	l.expect(true, "a", port(udp("fd00::1", "2001:db8::9", 51820), 51820))
	end := func() {
		t.Helper()
		if err := keeper.keeper.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// Once it was not, everything may have begun.
	end()
	if got := tables(); strings.Contains(got, "tracking") {
		t.Errorf("left are %q", got)
	}
	l.router.Run("nft", "flush", "ruleset")
	if err := keeper.KeepTracking(); err != nil {
		t.Fatal(err)
	}
	if wrote, err := keeper.Sync(t.Context(), l.rules); !wrote || err != nil || !doubted() {
		t.Errorf("not tracked for a time: wrote %v, doubted %v, %v", wrote, doubted(), err)
	}
	// A table of that name that is not ours is no obstacle, as one that a file brought.
	end()
	l.router.Run("nft", "add", "table", "inet", "netctl_tracking")
	if err := keeper.KeepTracking(); err != nil {
		t.Fatal(err)
	}
	if _, err := keeper.Sync(t.Context(), l.rules); err != nil {
		t.Fatal(err)
	}
	if got := l.router.Run("nft", "list", "table", "inet", "netctl_tracking"); !strings.Contains(got, "flags owner") {
		t.Errorf("not taken over:\n%s", got)
	}
}

// TestClosedUntilCut: what began while there was no table is to be cut before anything passes,
// also by who finds it gone at its start, and had nothing tracked.
func TestClosedUntilCut(t *testing.T) {
	for name, keep := range map[string]bool{"tracked": true, "at the start": false} {
		t.Run(name, func(t *testing.T) {
			l, _ := wiredLab(t, onNFT)
			table := open(t, l.router)
			if keep {
				if err := table.KeepTracking(); err != nil {
					t.Fatal(err)
				}
				if _, err := table.Sync(t.Context(), l.rules); err != nil {
					t.Fatal(err)
				}
			}
			l.router.Run("nft", "flush", "ruleset")
			var when []string
			table.OnClosed = func(*acl.Ruleset) {
				when = append(when, l.router.Run("nft", "list", "table", "inet", acl.TableName))
			}
			if _, err := table.Sync(t.Context(), l.rules); err != nil {
				t.Fatal(err)
			}
			if len(when) != 1 || strings.Contains(when[0], "fwd_to_next") || !strings.Contains(when[0], "drop") {
				t.Errorf("told %d times, with\n%s", len(when), strings.Join(when, "\n"))
			}
		})
	}
}
