package bgp

import (
	"fmt"
	"slices"
	"testing"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// longPeer is a client whose stale paths are kept for a minute behind its restart time.
func longPeer(i int) PeerConfig {
	p := clientPeer(i)
	p.LongLived = time.Minute
	return p
}

// withLong gives graceful restart of 20 s and, behind it, long-lived graceful restart.
func withLong(four, six time.Duration, forwarding bool) func(*open) {
	return func(o *open) {
		withGR(false, true, true)(o)
		o.long = &longLived{[2]time.Duration{four, six}, [2]bool{forwarding, forwarding}}
	}
}

// carrying are communities of a path.
func carrying(list ...uint32) []carried { return attached(Communities{Standard: list}.wire()) }

// seen adds to what a robot knows, and lists it as "prefix hop" with " old" if it has the
// community LLGR_STALE.
func (r *robot) seen(known map[string]bool) []string {
	r.t.Helper()
	d := testDecoder(false)
	d.localIP, d.routerID, d.clusterID = addr("10.9.0.250"), addr("10.9.0.250"), addr("10.9.0.250")
	for {
		kind, body, _ := r.next()
		if kind != codec.BGP_MSG_UPDATE {
			break
		}
		changes, f := d.update(body)
		if f != nil {
			r.t.Fatalf("update: %v", f)
		}
		for _, c := range changes {
			for _, p := range c.prefixes {
				if delete(known, p.String()); c.attrs != nil {
					known[p.String()] = c.attrs.longStale
				}
			}
		}
	}
	list := []string{}
	for p, old := range known {
		if old {
			p += " old"
		}
		list = append(list, p)
	}
	slices.Sort(list)
	return list
}

// longCast is a reflector with a client 2 that comes and goes, 3 that has the capability
// and 4 that has not.
type longCast struct {
	*cast
	knows map[int]map[string]bool
}

func newLongCast(g *stage) *longCast {
	c := &longCast{newCast(g), map[int]map[string]bool{2: {}, 3: {}, 4: {}}}
	c.enter(withLong(time.Hour, time.Hour, true), 3)
	c.enter(withGR(false, true, true), 4)
	return c
}

func (c *longCast) check(i int, want ...string) {
	c.g.t.Helper()
	if got := c.robots[i].seen(c.knows[i]); !slices.Equal(got, append([]string{}, want...)) {
		c.g.t.Errorf("%d knows %q, want %q", i, got, want)
	}
}

// leaves ends 2's connection, and passes time up to that of a check.
func (c *longCast) leaves() { _ = c.robots[2].c.Close(); c.g.session() }

// TestLongLived: behind the restart time what a peer announced is kept as the worst of all
// paths and with LLGR_STALE, told only to those that know it; what says NO_LLGR goes; and
// all of it when the time of its family is over (RFC 9494, sections 4.2 and 4.3).
func TestLongLived(t *testing.T) {
	play(t, Config{}, []PeerConfig{longPeer(2), longPeer(3), longPeer(4)}, func(g *stage) {
		c := newLongCast(g)
		c.enter(withLong(time.Hour, 30*time.Second, true), 2) // this side says a minute
		c.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26", "10.2.0.0/26"), tell(attrs{nextHop: addr("fd00::2")}, "fd80::/64"),
			tell(attrs{nextHop: addr("10.9.0.2"), rest: carrying(NoLLGR)}, "10.3.0.0/26"), endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		all := []string{"10.1.0.0/26", "10.2.0.0/26", "10.3.0.0/26", "fd80::/64"}
		c.check(3, all...)
		c.check(4, all...)
		c.leaves()
		time.Sleep(19 * time.Second)
		c.check(3, all...)
		c.check(4, all...)
		time.Sleep(2 * time.Second) // 21 s
		c.check(3, "10.1.0.0/26 old", "10.2.0.0/26 old", "fd80::/64 old")
		c.check(4)
		g.has("10.1.0.0/26 via 10.9.0.2", "10.2.0.0/26 via 10.9.0.2", "fd80::/64 via fd00::2")
		// Any other path is better; of two that are old the one that somebody tells still.
		c.robots[3].send(tell(attrs{nextHop: addr("10.9.0.3"), path: []segment{{2, []uint32{1, 2, 3}}}}, "10.1.0.0/26"),
			tell(attrs{nextHop: addr("10.9.0.3"), path: []segment{{2, []uint32{1, 2, 3}}}, rest: carrying(LLGRStale)}, "10.2.0.0/26"))
		g.has("10.1.0.0/26 via 10.9.0.3", "10.2.0.0/26 via 10.9.0.3", "fd80::/64 via fd00::2")
		c.check(4, "10.1.0.0/26")
		var why []string
		found, _ := g.s.Look(Query{Prefix: prefixes("10.1.0.0/26")[0], Limit: 9})
		for _, p := range found {
			why = append(why, fmt.Sprintf("%v %v %v %s", p.Peer, p.Communities, p.Stale, p.Why))
		}
		if want := []string{
			"10.9.0.3 [] false best: that by 10.9.0.2 has the community llgr-stale: its source is gone for long",
			"10.9.0.2 [llgr-stale] true the community llgr-stale: its source is gone for long",
		}; !slices.Equal(why, want) {
			t.Errorf("looks like %q, want %q", why, want)
		}
		c.robots[3].send(withdrawal("10.1.0.0/26", "10.2.0.0/26"))
		c.check(4)
		time.Sleep(28 * time.Second) // 49 s
		g.has("10.1.0.0/26 via 10.9.0.2", "10.2.0.0/26 via 10.9.0.2", "fd80::/64 via fd00::2")
		time.Sleep(2 * time.Second) // 51 s
		g.has("10.1.0.0/26 via 10.9.0.2", "10.2.0.0/26 via 10.9.0.2")
		time.Sleep(28 * time.Second) // 79 s
		c.check(3, "10.1.0.0/26 old", "10.2.0.0/26 old")
		time.Sleep(2 * time.Second) // 81 s
		c.check(3)
		g.has()
	})
}

// TestLongLivedReturns: a peer that comes back has its old paths until its End-of-RIB, or
// until their time is over, if it kept them, too; else they go at once.
func TestLongLivedReturns(t *testing.T) {
	play(t, Config{}, []PeerConfig{longPeer(2), longPeer(3), longPeer(4)}, func(g *stage) {
		c := newLongCast(g)
		back := withLong(time.Minute, time.Minute, true)
		both := tell(attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26", "10.2.0.0/26")
		begin := func() {
			t.Helper()
			c.enter(back, 2)
			c.robots[2].send(both, endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
			c.check(4, "10.1.0.0/26", "10.2.0.0/26")
			c.leaves()
			time.Sleep(21 * time.Second)
			c.check(3, "10.1.0.0/26 old", "10.2.0.0/26 old")
			c.check(4)
		}
		begin()
		c.enter(back, 2)
		c.check(3, "10.1.0.0/26 old", "10.2.0.0/26 old")
		c.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26"))
		c.check(3, "10.1.0.0/26", "10.2.0.0/26 old")
		c.check(4, "10.1.0.0/26")
		c.robots[2].send(endOfRIB(IPv4).bytes)
		c.check(3, "10.1.0.0/26")
		c.leaves()
		// Without a word of it, or with F clear, nothing has been kept.
		time.Sleep(21 * time.Second)
		c.check(3, "10.1.0.0/26 old")
		c.enter(withGR(false, true, true), 2)
		c.check(3)
		begin()
		c.enter(withLong(time.Minute, time.Minute, false), 2)
		c.check(3)
		c.leaves()
		// The time runs on in a session that does not end what it began, and in a further
		// absence; what that brought has the whole time.
		begin() // 21 s
		time.Sleep(20 * time.Second)
		c.enter(back, 2)
		c.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26"))
		time.Sleep(20 * time.Second) // 61 s
		c.check(3, "10.1.0.0/26", "10.2.0.0/26 old")
		c.leaves()
		time.Sleep(18 * time.Second) // 79 s
		c.check(3, "10.1.0.0/26", "10.2.0.0/26 old")
		time.Sleep(2 * time.Second) // 81 s, the second restart time is over too
		c.check(3, "10.1.0.0/26 old")
		time.Sleep(58 * time.Second) // 139 s
		c.check(3, "10.1.0.0/26 old")
		time.Sleep(4 * time.Second)
		c.check(3)
		g.has()
		// Nothing runs that has nothing to do.
		g.s.ask(func() {
			if p := g.s.rib.peers[addr("10.9.0.2")]; p.clock != nil || p.aging[IPv4].clock != nil {
				t.Error("a clock runs")
			}
		})
		// An end by a Hard Reset is one, and the next absence has its whole time.
		begin()
		c.enter(back, 2)
		c.robots[2].send(message(codec.BGP_MSG_NOTIFICATION, 6, 9, 6, 4))
		c.check(3)
		c.enter(back, 2)
		c.robots[2].send(both) // and no End-of-RIB
		c.check(3, "10.1.0.0/26", "10.2.0.0/26")
		c.leaves()
		time.Sleep(66 * time.Second)
		c.check(3, "10.1.0.0/26 old", "10.2.0.0/26 old")
		time.Sleep(20 * time.Second)
		c.check(3)
		// An end on purpose is one.
		begin()
		if err := g.s.Configure([]PeerConfig{longPeer(3), longPeer(4)}); err != nil {
			t.Fatal(err)
		}
		c.check(3)
		time.Sleep(2 * time.Minute)
	})
}

// TestLongLivedAlone: a family that has no restart time is kept for long at once; without
// graceful restart the capability says nothing; and without the setting nothing is kept.
func TestLongLivedAlone(t *testing.T) {
	for name, c := range map[string]struct {
		long time.Duration
		open func(*open)
		want []string
	}{
		"IPv6 without restart time": {time.Minute, func(o *open) {
			withLong(time.Minute, time.Minute, true)(o)
			o.gr.listed[IPv6] = false
		}, []string{"10.1.0.0/26", "fd80::/64 old"}},
		"no graceful restart": {time.Minute, func(o *open) { withLong(time.Minute, time.Minute, true)(o); o.gr = nil }, nil},
		"not set":             {0, func(o *open) { withLong(time.Minute, time.Minute, true)(o); o.gr.time = 0 }, nil},
		"no restart time":     {time.Minute, func(o *open) { withLong(time.Minute, time.Minute, true)(o); o.gr.time = 0 }, []string{"10.1.0.0/26 old", "fd80::/64 old"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := longPeer(2)
			p.LongLived = c.long
			play(t, Config{}, []PeerConfig{p, longPeer(3), longPeer(4)}, func(g *stage) {
				k := newLongCast(g)
				k.enter(c.open, 2)
				k.robots[2].send(announce("10.9.0.2", "10.1.0.0/26"), announce("fd00::2", "fd80::/64"))
				k.check(3, "10.1.0.0/26", "fd80::/64")
				k.leaves()
				time.Sleep(time.Second)
				k.check(3, c.want...)
			})
		})
	}
}
