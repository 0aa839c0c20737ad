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
		b, _ := look.announce(&a, bare([]netip.Prefix{p}), FamilyOf(p.Addr()))
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
		b, _ := look.announce(&attrs{}, bare(prefixes("10.4.0.0/16")), IPv4)
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
