package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// reflected is what a robot was told, as lines "prefix hop originator clusters".
func (r *robot) reflected(known map[netip.Prefix]string) []string {
	r.t.Helper()
	d := decoder{families: [2]bool{true, true}, as4: true, localAS: r.as, peerAS: 64511, routerID: addr("10.9.0.250")}
	for {
		kind, body, _ := r.next()
		if kind == 0 {
			break
		}
		changes, f := d.update(body)
		if f != nil {
			r.t.Fatalf("update: %v", f)
		}
		for _, c := range changes {
			for _, p := range c.prefixes {
				if delete(known, p); c.attrs != nil {
					known[p] = fmt.Sprint(p, " ", c.attrs.nextHop, " ", c.attrs.originator, " ", c.attrs.clusters)
				}
			}
		}
	}
	lines := []string{}
	for _, line := range known {
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return lines
}

// cast is robots by the last byte of their address.
type cast struct {
	g      *stage
	robots map[int]*robot
	known  map[int]map[netip.Prefix]string
}

func robotAddr(i int) string { return fmt.Sprintf("10.9.0.%d", i) }

// enter establishes the sessions of robots.
func (c *cast) enter(change func(*open), list ...int) {
	c.g.t.Helper()
	for _, i := range list {
		r := c.g.incoming(robotAddr(i))
		r.establish(func(o *open) {
			if o.hold, o.id = 0, addr(robotAddr(i)); change != nil {
				change(o)
			}
		})
		c.robots[i], c.known[i] = r, map[netip.Prefix]string{}
	}
}

// check compares what a robot knows.
func (c *cast) check(i int, want ...string) {
	c.g.t.Helper()
	if got := c.robots[i].reflected(c.known[i]); !slices.Equal(got, append([]string{}, want...)) {
		c.g.t.Errorf("%d knows %q, want %q", i, got, want)
	}
}

func newCast(g *stage) *cast {
	return &cast{g, map[int]*robot{}, map[int]map[netip.Prefix]string{}}
}

func clientPeer(i int) PeerConfig {
	p := robotPeer(robotAddr(i))
	p.Client, p.Passive, p.Families = true, true, []Family{IPv4, IPv6}
	return p
}

func otherPeer(i int) PeerConfig {
	p := clientPeer(i)
	p.Client = false
	return p
}

// tell is an UPDATE with the attributes given.
func tell(a attrs, list ...string) []byte {
	look := outlook{as4: true, families: [2]bool{true, true}}
	a.localPref = 100
	var out []byte
	for _, p := range prefixes(list...) {
		b, _ := look.announce(&a, []netip.Prefix{p}, FamilyOf(p.Addr()))
		out = append(out, b.bytes...)
	}
	return out
}

// RFC 4456, section 6: who is told what; section 8: what is added; the next hop stays.
// 2 and 3 are clients, 4 and 5 are not.
func TestReflect(t *testing.T) {
	peers := []PeerConfig{clientPeer(2), clientPeer(3), otherPeer(4), otherPeer(5)}
	play(t, Config{ClusterID: addr("0.0.0.7")}, peers, func(g *stage) {
		c := newCast(g)
		c.enter(nil, 2, 3, 4, 5)
		c.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26"), tell(attrs{nextHop: addr("fd00::2")}, "fd80::/122"))
		both := []string{"10.1.0.0/26 10.9.0.2 10.9.0.2 [0.0.0.7]", "fd80::/122 fd00::2 10.9.0.2 [0.0.0.7]"}
		c.check(2)
		for _, i := range []int{3, 4, 5} {
			c.check(i, both...)
		}
		// From a non-client, which is a reflector itself: to the clients only.
		c.robots[4].send(tell(attrs{nextHop: addr("10.9.0.9"), originator: addr("10.9.0.99"), clusters: []netip.Addr{addr("10.9.0.4")}}, "10.2.0.0/26"))
		far := "10.2.0.0/26 10.9.0.9 10.9.0.99 [0.0.0.7 10.9.0.4]"
		c.check(2, far)
		c.check(3, both[0], far, both[1])
		c.check(4, both...)
		c.check(5, both...)
		// The client that it replaces is told of the better path, and the others.
		c.robots[3].send(tell(attrs{nextHop: addr("10.9.0.3"), originator: addr("10.9.0.1")}, "10.1.0.0/26"))
		better := "10.1.0.0/26 10.9.0.3 10.9.0.1 [0.0.0.7]"
		c.check(2, better, far)
		c.check(3, far, both[1])
		c.check(4, better, both[1])
		c.robots[3].send(withdrawal("10.1.0.0/26"))
		c.check(2, far)
		c.check(3, both[0], far, both[1])
		c.check(5, both...)
		// Our own routes have neither attribute.
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		c.check(5, "10.0.0.0/26 "+usID+" invalid IP []", both[0], both[1])
	})
}

// What went in a circle is none, and replaces what the peer said before.
func TestReflectionLoops(t *testing.T) {
	for name, a := range map[string]attrs{
		"originator": {nextHop: addr("10.9.0.9"), originator: addr(usID)},
		"cluster":    {nextHop: addr("10.9.0.9"), originator: addr("10.9.0.9"), clusters: []netip.Addr{addr("10.9.0.4"), addr("0.0.0.7")}},
		"own hop":    {nextHop: addr(usID), originator: addr(usID)},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, Config{ClusterID: addr("0.0.0.7")}, []PeerConfig{clientPeer(2), otherPeer(4)}, func(g *stage) {
				c := newCast(g)
				c.enter(nil, 2, 4)
				c.robots[4].send(tell(attrs{nextHop: addr("10.9.0.9")}, "10.1.0.0/26"))
				c.check(2, "10.1.0.0/26 10.9.0.9 10.9.0.4 [0.0.0.7]")
				c.robots[4].send(tell(a, "10.1.0.0/26"))
				c.check(2)
				g.has()
			})
		})
	}
}

// An eBGP peer is told neither attribute, and what it says of them is ignored: what
// comes from it goes to all as before.
func TestReflectionEndsAtTheAS(t *testing.T) {
	outside := otherPeer(6)
	outside.AS, outside.Client = 64600, true
	play(t, Config{}, []PeerConfig{clientPeer(2), otherPeer(4), outside}, func(g *stage) {
		c := newCast(g)
		c.enter(nil, 2, 4)
		c.enter(func(o *open) { o.as = 64600 }, 6)
		c.robots[6].as = 64600
		c.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2"), clusters: []netip.Addr{addr("1.1.1.1")}}, "10.1.0.0/26"))
		c.check(4, "10.1.0.0/26 10.9.0.2 10.9.0.2 ["+usID+" 1.1.1.1]")
		if kinds := c.robots[6].kinds(); !slices.Equal(kinds, []uint8{attrOrigin, attrPath, attrNextHop}) {
			t.Errorf("eBGP is told attributes %v", kinds)
		}
		look := outlook{external: true, as4: true, localAS: 64600, nextHop: [2]netip.Addr{addr("10.9.0.6")}}
		b, _ := look.announce(&attrs{}, prefixes("10.4.0.0/16"), IPv4)
		c.robots[6].send(b.bytes)
		c.check(2, "10.4.0.0/16 10.9.0.6 invalid IP []")
		c.check(4, "10.1.0.0/26 10.9.0.2 10.9.0.2 ["+usID+" 1.1.1.1]", "10.4.0.0/16 10.9.0.6 invalid IP []")
	})
}

// kinds are the attributes' types of the first UPDATE with a route that waits.
func (r *robot) kinds() (kinds []uint8) {
	for len(kinds) == 0 {
		kind, body, _ := r.next()
		if kind == 0 {
			return nil
		}
		_, b, _ := cut(body)
		list, _, _ := cut(b)
		w, _ := (&decoder{as4: true}).walk(list)
		for _, c := range w.list {
			kinds = append(kinds, c.kind)
		}
	}
	return kinds
}

// A client that is back with another router ID is another originator.
func TestOriginatorChanges(t *testing.T) {
	play(t, Config{}, []PeerConfig{clientPeer(2), clientPeer(3)}, func(g *stage) {
		c := newCast(g)
		gr := withGR(false, true, true)
		c.enter(gr, 2, 3)
		route := tell(attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26")
		c.robots[2].send(route)
		c.check(3, "10.1.0.0/26 10.9.0.2 10.9.0.2 ["+usID+"]")
		_ = c.robots[2].c.Close()
		c.enter(func(o *open) { withGR(true, true, true)(o); o.id = addr("10.9.0.222") }, 2)
		c.robots[2].send(route)
		c.check(3, "10.1.0.0/26 10.9.0.2 10.9.0.222 ["+usID+"]")
	})
}

// A peer that becomes a client is told what it lacks at once; one that is none any
// more, after a restart time. No session is reset and nothing is told twice.
func TestClientInPlace(t *testing.T) {
	peers := []PeerConfig{otherPeer(2), otherPeer(3), otherPeer(4)}
	play(t, Config{RestartTime: 20 * time.Second}, peers, func(g *stage) {
		c := newCast(g)
		c.enter(nil, 2, 3, 4)
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		for i := 2; i <= 4; i++ {
			c.robots[i].send(tell(attrs{nextHop: addr(robotAddr(i))}, fmt.Sprintf("10.%d.0.0/26", i)))
		}
		own := "10.0.0.0/26 " + usID + " invalid IP []"
		from := func(i int) string { return fmt.Sprintf("10.%d.0.0/26 10.9.0.%d 10.9.0.%d [%s]", i, i, i, usID) }
		c.check(2, own)
		configure := func(list ...PeerConfig) {
			t.Helper()
			if err := g.s.Configure(list); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		configure(clientPeer(2), otherPeer(3), otherPeer(4))
		if updates := c.robots[2].count(); updates != 2 { // one for each source
			t.Errorf("%d updates for two routes more", updates)
		}
		c.check(3, own, from(2))
		// 4 has all it had, and so has 2.
		configure(clientPeer(2), clientPeer(3), otherPeer(4))
		c.check(3, own, from(2), from(4))
		c.check(4, own, from(2), from(3))
		configure(otherPeer(2), otherPeer(3), otherPeer(4))
		time.Sleep(19 * time.Second)
		c.check(3, own, from(2), from(4))
		configure(otherPeer(2), clientPeer(3), otherPeer(4))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		c.check(4, own, from(3))
		c.check(3, own, from(2), from(4))
		for _, s := range g.s.Status() {
			if s.Established != 1 || s.State != "Established" {
				t.Errorf("session %+v", s)
			}
		}
		if st := g.s.Status()[0]; st.Sent != 2 { // own and 3's
			t.Errorf("sent %d", st.Sent)
		}
	})
}

// count is the number of messages that wait for the robot.
func (r *robot) count() (n int) {
	for {
		if kind, _, _ := r.next(); kind == 0 {
			return n
		}
		n++
	}
}

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

// A peer that leaves goes when those that stay carry what it told, without a word, and
// its routes do not move through nothing.
func TestLeaving(t *testing.T) {
	play(t, Config{RestartTime: 20 * time.Second}, []PeerConfig{otherPeer(2)}, func(g *stage) {
		k := newCast(g)
		gr := withGR(false, true, true)
		k.enter(gr, 2)
		k.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2")}, "10.2.0.0/26", "10.22.0.0/26"))
		leaving := otherPeer(2)
		leaving.Leaving = true
		configure := func(list ...PeerConfig) {
			t.Helper()
			if err := g.s.Configure(list); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		there := func() bool { time.Sleep(time.Second); synctest.Wait(); return len(g.s.Status()) == 2 }
		configure(leaving, otherPeer(3))
		if !there() {
			t.Fatal("went while nobody else is up")
		}
		k.enter(gr, 3)
		k.robots[3].send(endOfRIB(IPv6).bytes, tell(attrs{nextHop: addr("10.9.0.2"), originator: addr("10.9.0.2")}, "10.2.0.0/26"))
		if !there() {
			t.Fatal("went with routes that nobody else has")
		}
		k.robots[3].send(tell(attrs{nextHop: addr("10.9.0.2"), originator: addr("10.9.0.2")}, "10.22.0.0/26"))
		if !there() {
			t.Fatal("went before the others had told all")
		}
		k.robots[2].count()
		_ = k.robots[3].c.Close()
		k.enter(gr, 3)
		k.robots[3].send(endOfRIB(IPv6).bytes)
		if !there() {
			t.Fatal("went for stale routes")
		}
		k.robots[3].send(tell(attrs{nextHop: addr("10.9.0.2"), originator: addr("10.9.0.2")}, "10.2.0.0/26", "10.22.0.0/26"))
		k.robots[3].send(endOfRIB(IPv4).bytes)
		if there() {
			t.Fatal("stays for nothing")
		}
		k.robots[2].over()
		g.has("10.2.0.0/26 via 10.9.0.2", "10.22.0.0/26 via 10.9.0.2")
		if d := g.k.deletions(); len(d) != 0 {
			t.Errorf("deleted %v", d)
		}
		// It is not added again as one that leaves, and as an ordinary one it is.
		configure(leaving, otherPeer(3))
		if len(g.s.Status()) != 1 {
			t.Error("a peer that left is there again")
		}
		configure(otherPeer(2), otherPeer(3))
		if len(g.s.Status()) != 2 {
			t.Error("the peer is not there")
		}
	})
}

// Who is dead is waited for no longer than a restart time, and a peer that leaves and
// is none any more is told so.
func TestLeavingBesideTheDead(t *testing.T) {
	leaving := otherPeer(2)
	play(t, Config{RestartTime: 20 * time.Second}, []PeerConfig{leaving, otherPeer(3), otherPeer(4)}, func(g *stage) {
		leaving.Leaving = true
		k := newCast(g)
		k.enter(nil, 2, 3)
		if err := g.s.Configure([]PeerConfig{leaving, otherPeer(3), otherPeer(4)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(19 * time.Second)
		synctest.Wait()
		if len(g.s.Status()) != 3 {
			t.Error("went without waiting")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(g.s.Status()) != 2 {
			t.Error("waits for the dead")
		}
	})
	play(t, Config{}, []PeerConfig{otherPeer(2), otherPeer(3)}, func(g *stage) {
		k := newCast(g)
		k.enter(nil, 2)
		if err := g.s.Configure([]PeerConfig{leaving, otherPeer(3)}); err != nil {
			t.Fatal(err)
		}
		if err := g.s.Configure([]PeerConfig{otherPeer(3)}); err != nil {
			t.Fatal(err)
		}
		k.robots[2].expect(2)
		k.robots[2].expect(2)
		k.robots[2].notified(6, 3)
	})
}
