package nft

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
)

// within is fn's error, in a namespace.
func within(n *netns, fn func() error) (err error) {
	n.Do(func() { err = fn() })
	return err
}

// TestTraceOfOneFlow: the kernel tells of that flow and of no other, in what chain of whose
// it ends, and nothing is left.
func TestTraceOfOneFlow(t *testing.T) {
	n := newNetns(t)
	n.Run("ip", "link", "set", "lo", "up")
	n.Run("nft", "add table inet corp; add chain inet corp late { type filter hook output priority 5; }; add rule inet corp late udp dport 9 counter drop comment \"no discard\"")
	var table *Table
	if err := within(n, func() (err error) { table, err = Open(slog.New(slog.DiscardHandler)); return err }); err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	send := func(from, to int) {
		t.Helper()
		if err := within(n, func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: from}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: to})
			if err != nil {
				return err
			}
			_, _ = c.Write([]byte("x")) // EPERM where it is dropped
			return c.Close()
		}); err != nil {
			t.Fatal(err)
		}
	}
	local := netip.MustParseAddr("127.0.0.1")
	trace := func(port uint16, sent ...int) ([]Step, datastore.Fate) {
		t.Helper()
		tr, err := table.Trace(datastore.TraceFlow{Sources: []netip.Addr{local}, Destination: local, Protocol: datastore.ProtocolUDP, SourcePort: 4000, DestinationPort: port})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.Close()
		if out := n.Run("nft", "list", "tables"); !strings.Contains(out, traceTable) {
			t.Fatalf("tables: %s", out)
		}
		if out, err := n.input("delete table inet "+traceTable+"\n", "nft", "-f", "-"); err == nil {
			t.Errorf("somebody else may delete it: %s", out)
		}
		for i := 0; i < len(sent); i += 2 {
			send(sent[i], sent[i+1])
		}
		patience := 10 * time.Second
		if sent[0] != 4000 {
			patience = 100 * time.Millisecond // what was sent is judged by now
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		steps, fate, lost, err := tr.Follow(ctx)
		if err != nil || lost {
			t.Fatal(err, lost)
		}
		return steps, fate
	}
	steps, fate := trace(9, 4000, 9)
	if last := len(steps) - 1; fate != datastore.Dropped || steps[last].Table != "inet corp" || steps[last].Chain != "late" || steps[last].Position != 1 || steps[last].Comment != "no discard" || steps[last].Hook != "output 5" {
		t.Errorf("dropped: %q %+v", fate, steps)
	}
	if steps, fate := trace(10, 4000, 10, 4000, 10); fate != datastore.Forwarded || len(steps) == 0 {
		t.Errorf("passed: %q %+v", fate, steps)
	}
	if steps, fate := trace(10, 4001, 10); fate != datastore.Unseen || len(steps) != 0 {
		t.Errorf("of another flow: %q %+v", fate, steps)
	}
	if out := n.Run("nft", "list", "tables"); strings.Contains(out, traceTable) {
		t.Errorf("left behind: %s", out)
	}
}

// TestWhatChainsRefuse: of other programs' chains, how they end and whether a rule may
// accept before.
func TestWhatChainsRefuse(t *testing.T) {
	for _, c := range []struct {
		rules, refuses string
		surely         bool
	}{
		{"reject", "reject", true},
		{"ct state established accept; counter; log prefix \"x\" drop", "drop", true},
		{"ip daddr 192.0.2.1 drop; tcp dport 22 drop", "", true},
		{"ip daddr 192.0.2.1 accept; reject", "reject", false},
		{"iifname \"eth0\" jump more; reject", "reject", false},
		{"iifname vmap { \"eth0\" : accept }; reject", "reject", false},
		{"accept; drop", "drop", false},
		{"tcp dport 22 reject", "", true},
	} {
		n := newNetns(t)
		n.Run("nft", "add table inet corp; add chain inet corp more; add chain inet corp late { type filter hook forward priority 5; }")
		for _, r := range strings.Split(c.rules, "; ") {
			n.Run("nft", "add rule inet corp late "+r)
		}
		var chains []BaseChain
		if err := within(n, func() (err error) { chains, err = BaseChains("nc"); return err }); err != nil || len(chains) != 1 {
			t.Fatal(err, chains)
		}
		if got := chains[0]; got.Refuses != c.refuses || got.Surely != c.surely {
			t.Errorf("%s: refuses %q, surely %v; want %q, %v", c.rules, got.Refuses, got.Surely, c.refuses, c.surely)
		}
	}
}
