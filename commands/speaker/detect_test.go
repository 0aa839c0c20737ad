package speaker

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bfd"
	"netctl/routing/bgp"
)

// TestWatchable: nodes by the cluster's setting, if they are near; configured peers by
// their own; nobody whose session is down on purpose.
func TestWatchable(t *testing.T) {
	addr := netip.MustParseAddr
	peer := func(a string, c *datastore.PeerSpec) routing.Peer {
		p := routing.Peer{Address: addr(a), Local: addr("10.9.0.1")}
		if c != nil {
			p.Configured = &routing.Configured{Spec: *c}
		}
		return p
	}
	drained := peer("10.9.0.6", nil)
	drained.Drained = "drained"
	plan := routing.Plan{RestartTime: 120, Peers: []routing.Peer{
		peer("10.9.0.2", nil), peer("10.8.0.2", nil), drained,
		peer("10.9.0.3", &datastore.PeerSpec{}), peer("10.8.0.3", &datastore.PeerSpec{BFD: &datastore.BFD{Interval: 50, Multiplier: 5}}),
		peer("10.9.0.4", &datastore.PeerSpec{BFD: &datastore.BFD{Interval: 50, Multiplier: 5}, Shutdown: "repair"}),
	}}
	near := func(a netip.Addr) bool { return netip.MustParsePrefix("10.9.0.0/24").Contains(a) }
	is := func(a string, interval, multiplier int) bfd.Peer {
		return bfd.Peer{Address: addr(a), Local: addr("10.9.0.1"), Interval: time.Duration(interval) * time.Millisecond, Multiplier: uint8(multiplier), Away: 2 * time.Minute}
	}
	configured := is("10.8.0.3", 50, 5)
	if got := watchable(plan, near); !slices.Equal(got, []bfd.Peer{configured}) {
		t.Errorf("without the cluster's: %+v", got)
	}
	plan.BFD = &datastore.BFD{Interval: 100, Multiplier: 3}
	if got := watchable(plan, near); !slices.Equal(got, []bfd.Peer{is("10.9.0.2", 100, 3), configured}) {
		t.Errorf("with it: %+v", got)
	}
}

// TestUnwatched: a configured peer that BFD does not watch although it is to is a problem,
// once there was time for it.
func TestUnwatched(t *testing.T) {
	a := netip.MustParseAddr("10.9.0.2")
	plan := routing.Plan{Peers: []routing.Peer{{Name: "tor", Address: a, Configured: &routing.Configured{}}}}
	up := []bgp.Session{{Peer: a, State: "Established"}}
	long := time.Now().Add(-time.Hour)
	for name, c := range map[string]struct {
		sessions []bgp.Session
		path     bfd.Status
		want     string
	}{
		"nothing heard": {up, bfd.Status{State: bfd.Down, Since: long}, "BFD with tor (10.9.0.2) is down: nothing heard; until it is up only the hold time finds a dead path"},
		"not yet":       {up, bfd.Status{State: bfd.Down, Since: time.Now()}, ""},
		"up":            {up, bfd.Status{State: bfd.Up, Since: long}, ""},
		"no session":    {[]bgp.Session{{Peer: a, State: "Active"}}, bfd.Status{State: bfd.Down, Since: long}, ""},
	} {
		got := unwatched(plan, c.sessions, map[netip.Addr]bfd.Status{a: c.path})
		if c.want == "" && len(got) > 0 || c.want != "" && !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: %q", name, got)
		}
	}
	plan.Peers[0].Configured = nil
	if got := unwatched(plan, up, map[netip.Addr]bfd.Status{a: {State: bfd.Down, Since: long}}); len(got) > 0 {
		t.Errorf("a node: %q", got)
	}
}
