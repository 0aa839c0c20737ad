package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"netctl/acl"
	"netctl/acl/nflog"
	"netctl/datastore"
)

// logs collects what the router logs, as prefix, source and port.
func (l *lab) logs() (lines func() []string) {
	ctx, cancel := context.WithCancel(l.t.Context())
	var mu sync.Mutex
	var list []string
	ended := make(chan error, 1)
	go l.router.Do(func() {
		ended <- nflog.Listen(ctx, acl.NFLogGroup, func(e nflog.Entry) error {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, fmt.Sprintf("%s %s %d", e.Prefix, e.Src, e.DstPort))
			return nil
		})
	})
	l.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			l.t.Error(err)
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

// TestStagedPoliciesOnlyTell: what a staged policy would deny passes, is counted and logged
// with the rule; when it is promoted it is denied, and when it is staged again it passes.
func TestStagedPoliciesOnlyTell(t *testing.T) { onEach(t, testStagedPoliciesOnlyTell) }

func testStagedPoliciesOnlyTell(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	lines := l.logs()
	gate := func(staged bool) []datastore.RulePlace {
		c := policy(t, "gate", "first", 1, "role == 'web'", []string{"deny udp to ports 53", "pass udp to ports 54", "allow tcp"}, nil)
		c.New.(*datastore.Policy).Spec.Staged = staged
		x.Apply(c)
		l.apply(x.Flush())
		return acl.Places(c.New)
	}
	tier := &datastore.Tier{Metadata: datastore.Metadata{Name: "first"}}
	tier.Spec.Order = new(1)
	x.Apply(put(t, tier))
	rules := gate(true)
	logged := func(what string, p acl.Packet) {
		t.Helper()
		want := fmt.Sprintf("%s %s %d", what, p.Src, p.DstPort)
		l.eventually("the message "+want, func() bool { return slices.Contains(lines(), want) })
	}
	first := "SPI|" + rules[0].ID + "|first/gate"
	for _, to := range []string{"10.0.0.2", "fd00::2"} {
		from := map[string]string{"10.0.0.2": "10.0.0.1", "fd00::2": "fd00::1"}[to]
		l.expect(true, "a", l.uniquePort(udp(from, to, 53)))
		logged(first, udp(from, to, 53))
		l.expect(true, "a", l.uniquePort(udp(from, to, 54)))
		logged("SPI|"+rules[1].ID+"|first/gate", udp(from, to, 54))
		l.expect(true, "a", l.uniquePort(udp(from, to, 55)))
		logged("SPI|default|first", udp(from, to, 55))
		l.expect(true, "a", l.uniquePort(tcp(from, to, 56)))
	}
	l.expect(false, "n", l.uniquePort(udp("192.0.2.9", "10.0.0.2", 53))) // by its profile
	logged(first, udp("192.0.2.9", "10.0.0.2", 53))
	logged("DPI|default", udp("192.0.2.9", "10.0.0.2", 53))
	for rule, n := range map[string]uint64{"deny udp to ports 53": 3, "pass udp to ports 54": 2, "allow tcp": 2} {
		if got := l.counted(x, "gate")[rule]; got != n {
			t.Errorf("%q has counted %d packets, want %d", rule, got, n)
		}
	}
	if all := strings.Join(lines(), "\n"); strings.Contains(all, " 56") {
		t.Errorf("what it would allow is logged:\n%s", all)
	}
	l.list()
	gate(false)
	l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 53)))
	logged("DPI|"+rules[0].ID+"|first/gate", udp("10.0.0.1", "10.0.0.2", 53))
	l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 55)))
	gate(true)
	l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 53)))
	x.Apply(datastore.Change{Kind: datastore.KindPolicy, Name: "gate"})
	l.apply(x.Flush())
	for name := range l.rules.Chains {
		if strings.HasPrefix(name, "staged_") || strings.HasPrefix(name, "would_") {
			t.Errorf("chain %s is left", name)
		}
	}
}
