package agent

import (
	"log/slog"
	"net/netip"
	"slices"
	"testing"

	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing/fib"
)

// TestAnAddressThatMovesHere: the flows of an endpoint elsewhere are forgotten at once
// where one of this node gets its address, and not later, when they are that one's.
func TestAnAddressThatMovesHere(t *testing.T) {
	l := newLoop(Config{Node: "n1", LinkPrefix: "nc", Gateway: netdev.Gateway4(), StateDir: t.TempDir()}, slog.New(slog.DiscardHandler),
		&kernel.Fake{}, fib.NewFake().Table(87), &nft.Fake{})
	a := netip.MustParseAddr("10.0.0.1")
	there, here := remote("n2", "web", a, "web"), remote("n1", "web", a, "web")
	there.SetDefaults()
	here.SetDefaults()
	change := func(old, now *datastore.Endpoint) {
		c := datastore.Change{Kind: datastore.KindEndpoint}
		if old != nil {
			c.Name, c.Old = old.Metadata.Name, old
		}
		if now != nil {
			c.Name, c.New = now.Metadata.Name, now
		}
		l.changed(c)
	}
	change(nil, there)
	change(there, nil)
	if _, _, gone, more := l.flows.take(); len(gone) > 0 || more == 0 {
		t.Errorf("forgotten before anybody has it: %v, more after %v", gone, more)
	}
	change(nil, here)
	if _, _, gone, more := l.flows.take(); !slices.Equal(gone, []netip.Addr{a}) || more != 0 {
		t.Errorf("to be forgotten is %v, more after %v", gone, more)
	}
}
