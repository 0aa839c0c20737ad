package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// markers counts the End-of-RIBs among what waits for the robot, and routes.
func (r *robot) markers() (markers, routes int) {
	d := decoder{families: [2]bool{true, true}, as4: true, localAS: r.as, peerAS: 64511}
	for {
		kind, body, _ := r.next()
		if kind == 0 {
			return markers, routes
		}
		changes, _ := d.update(body)
		for _, c := range changes {
			if c.endOfRIB {
				markers++
			}
			routes += len(c.prefixes)
		}
	}
}

// A reflector that restarted says that this was all when its peers have said so, but for
// those that do not say it; a dead one costs 5 s.
func TestReflectorRestarts(t *testing.T) {
	restarted := Config{Restarting: true, ForwardingPreserved: map[Family]bool{IPv4: true, IPv6: true}}
	gr := withGR(false, true, true)
	for name, c := range map[string]struct {
		config Config
		peers  []PeerConfig
		wait   bool
		speak  bool // 3 says End-of-RIB
	}{
		"waits":          {restarted, []PeerConfig{clientPeer(2), clientPeer(3)}, true, true},
		"non-client":     {restarted, []PeerConfig{clientPeer(2), otherPeer(3)}, true, true},
		"dead":           {restarted, []PeerConfig{clientPeer(2), clientPeer(3), clientPeer(9)}, true, false},
		"no reflector":   {restarted, []PeerConfig{otherPeer(2), otherPeer(3)}, false, false},
		"first start":    {Config{}, []PeerConfig{clientPeer(2), clientPeer(3)}, false, false},
		"after a reboot": {Config{Restarting: true}, []PeerConfig{clientPeer(2), clientPeer(3)}, false, false},
		"one restarts":   {restarted, []PeerConfig{clientPeer(2), clientPeer(4)}, true, true},
		"one says none":  {restarted, []PeerConfig{clientPeer(2), clientPeer(5)}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, c.config, c.peers, func(g *stage) {
				k := newCast(g)
				g.s.Originate(prefixes("10.0.0.0/26"), nil)
				other := 3
				switch name {
				case "one restarts":
					k.enter(withGR(true, true, true), 4)
					other = 4
				case "one says none":
					k.enter(nil, 5)
					other = 5
				default:
					k.enter(gr, 3)
				}
				k.enter(gr, 2)
				k.robots[2].send(message(2, updateBody(nil, nil, nil)...), endOfRIB(IPv6).bytes)
				k.robots[other].send(tell(attrs{nextHop: addr("10.9.0.3")}, "10.3.0.0/26"))
				markers, routes := k.robots[2].markers()
				reflects := 1
				if name == "no reflector" {
					reflects = 0
				}
				if c.wait && (markers != 0 || routes != 1) || !c.wait && (markers != 2 || routes != 1+reflects) {
					t.Fatalf("at once: %d End-of-RIBs, %d routes", markers, routes)
				}
				if !c.wait {
					return
				}
				if c.speak {
					k.robots[other].send(endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
				} else {
					time.Sleep(deferral - 100*time.Millisecond)
					if markers, routes := k.robots[2].markers(); markers+routes != 0 {
						t.Errorf("early: %d End-of-RIBs, %d routes", markers, routes)
					}
					time.Sleep(200 * time.Millisecond)
				}
				if markers, routes := k.robots[2].markers(); markers != 2 || routes != 1 {
					t.Errorf("then: %d End-of-RIBs, %d routes", markers, routes)
				}
			})
		})
	}
}

// Two reflectors that restart do not wait for each other: what the clients said goes to
// the other one at once, and what that says to the clients.
func TestReflectorsRestart(t *testing.T) {
	c := Config{Restarting: true, ForwardingPreserved: map[Family]bool{IPv4: true, IPv6: true}}
	play(t, c, []PeerConfig{clientPeer(2), otherPeer(3)}, func(g *stage) {
		k := newCast(g)
		k.enter(withGR(true, true, true), 2, 3)
		k.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2")}, "10.2.0.0/26"))
		if markers, routes := k.robots[3].markers(); markers+routes != 0 {
			t.Errorf("to the other: %d End-of-RIBs, %d routes before the client had told all", markers, routes)
		}
		k.robots[2].send(endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		if markers, routes := k.robots[3].markers(); markers != 2 || routes != 1 {
			t.Errorf("to the other: %d End-of-RIBs, %d routes", markers, routes)
		}
		k.robots[3].send(tell(attrs{nextHop: addr("10.9.0.9"), originator: addr("10.9.0.9")}, "10.9.9.0/26"))
		if markers, routes := k.robots[2].markers(); markers+routes != 0 {
			t.Errorf("to the client: %d End-of-RIBs, %d routes before the other had told all", markers, routes)
		}
		k.robots[3].send(endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		if markers, routes := k.robots[2].markers(); markers != 2 || routes != 1 {
			t.Errorf("to the client: %d End-of-RIBs, %d routes", markers, routes)
		}
	})
}

// A client that restarts is no news for anybody, although another reflector still
// tells of its route.
func TestRestartIsNoNews(t *testing.T) {
	play(t, Config{}, []PeerConfig{clientPeer(2), clientPeer(3), otherPeer(4)}, func(g *stage) {
		c := newCast(g)
		c.enter(withGR(false, true, true), 2, 3, 4)
		route := tell(attrs{nextHop: addr("10.9.0.2")}, "10.2.0.0/26")
		c.robots[2].send(route)
		c.robots[4].send(tell(attrs{nextHop: addr("10.9.0.2"), originator: addr("10.9.0.2"), clusters: []netip.Addr{addr("10.9.0.4")}}, "10.2.0.0/26"))
		c.robots[3].count()
		c.robots[4].count()
		_ = c.robots[2].c.Close()
		c.enter(withGR(true, true, true), 2)
		c.robots[2].send(route, endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		if a, b := c.robots[3].count(), c.robots[4].count(); a+b != 0 {
			t.Errorf("%d messages to a client, %d to a reflector", a, b)
		}
		// Another path of the prefix is better than a stale one.
		_ = c.robots[2].c.Close()
		c.robots[4].send(tell(attrs{nextHop: addr("10.9.0.77"), originator: addr("10.9.0.77")}, "10.2.0.0/26"))
		g.has("10.2.0.0/26 via 10.9.0.77")
	})
}

// A stale route over somebody who is no peer may be any reflector's: it stays until
// the last of them has ended without it.
func TestStaleBehindReflectors(t *testing.T) {
	a, b := otherPeer(2), otherPeer(3)
	a.Reflects, b.Reflects = true, true
	stale := []Route{
		{Prefix: netip.MustParsePrefix("10.7.0.0/26"), NextHops: []netip.Addr{addr("10.9.0.77")}},
		{Prefix: netip.MustParsePrefix("10.8.0.0/26"), NextHops: []netip.Addr{addr("10.9.0.77")}},
		{Prefix: netip.MustParsePrefix("10.2.0.0/26"), NextHops: []netip.Addr{addr("10.9.0.2")}},
	}
	c := Config{Restarting: true, ForwardingPreserved: map[Family]bool{IPv4: true}, Stale: stale}
	play(t, c, []PeerConfig{a, b}, func(g *stage) {
		k := newCast(g)
		k.enter(withGR(false, true, true), 2)
		k.robots[2].send(tell(attrs{nextHop: addr("10.9.0.77"), originator: addr("10.9.0.77")}, "10.7.0.0/26"), endOfRIB(IPv4).bytes)
		if d := g.k.deletions(); len(d) != 0 {
			t.Errorf("deleted %v while a reflector is away", d)
		}
		k.enter(withGR(false, true, true), 3)
		k.robots[3].send(tell(attrs{nextHop: addr("10.9.0.77"), originator: addr("10.9.0.77")}, "10.7.0.0/26"), endOfRIB(IPv4).bytes)
		if d := g.k.deletions(); len(d) != 2 || slices.Contains(d, stale[0].Prefix) {
			t.Errorf("deleted %v", d)
		}
		if c := g.s.Conflicts(); len(c) != 0 {
			t.Errorf("conflicts %v", c)
		}
	})
}

// Two reflectors tell the same path: that is no conflict; two nodes with one prefix are.
func TestConflictBehindReflectors(t *testing.T) {
	c := Config{SinglePath: func(netip.Prefix) bool { return true }}
	play(t, c, []PeerConfig{otherPeer(2), otherPeer(3)}, func(g *stage) {
		k := newCast(g)
		k.enter(nil, 2, 3)
		for _, i := range []int{2, 3} {
			k.robots[i].send(tell(attrs{nextHop: addr("10.9.0.77"), originator: addr("10.9.0.77")}, "10.7.0.0/26"))
		}
		g.has("10.7.0.0/26 via 10.9.0.77")
		if c := g.s.Conflicts(); len(c) != 0 {
			t.Errorf("conflicts %v", c)
		}
		k.robots[3].send(tell(attrs{nextHop: addr("10.9.0.78"), originator: addr("10.9.0.78")}, "10.7.0.0/26"))
		synctest.Wait()
		if c := g.s.Conflicts(); len(c) != 1 || fmt.Sprint(c[0].NextHops) != "[10.9.0.77 10.9.0.78]" {
			t.Errorf("conflicts %v", c)
		}
	})
}
