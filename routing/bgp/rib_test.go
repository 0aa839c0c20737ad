package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// told is what a robot knows after reading everything that it was sent: prefix
// to next hop, and the number of UPDATEs.
func (r *robot) told(known map[netip.Prefix]netip.Addr) (updates int) {
	r.t.Helper()
	d := decoder{families: [2]bool{true, true}, as4: true, localAS: r.as, peerAS: 64511, routerID: addr("10.9.0.250")}
	for {
		kind, body, _ := r.next()
		if kind != codec.BGP_MSG_UPDATE {
			return updates
		}
		updates++
		changes, f := d.update(body)
		if f != nil {
			r.t.Fatalf("update: %v", f)
		}
		for _, c := range changes {
			for _, p := range c.prefixes {
				if c.attrs == nil {
					delete(known, p)
				} else {
					known[p] = c.attrs.nextHop
				}
			}
		}
	}
}

// Internal routes are not passed to internal peers, external ones are, to all
// but their source; a source whose path lost is told of the better one.
func TestExport(t *testing.T) {
	external := robotPeer("10.9.0.4")
	external.AS = 64600
	peers := []PeerConfig{robotPeer("10.9.0.2"), robotPeer("10.9.0.3"), external}
	play(t, Config{}, peers, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		robots := map[string]*robot{}
		for _, p := range peers {
			robots[p.Address.String()] = g.incoming(p.Address.String())
			robots[p.Address.String()].as = p.AS
			robots[p.Address.String()].establish(func(o *open) { o.as, o.id = p.AS, p.Address })
		}
		in, other, ext := robots["10.9.0.2"], robots["10.9.0.3"], robots["10.9.0.4"]
		known := map[*robot]map[netip.Prefix]netip.Addr{in: {}, other: {}, ext: {}}
		check := func(r *robot, want ...string) {
			t.Helper()
			r.told(known[r])
			got := []string{}
			for p, hop := range known[r] {
				got = append(got, p.String()+" "+hop.String())
			}
			slices.Sort(got)
			if !slices.Equal(got, append([]string{}, want...)) {
				t.Errorf("knows %q, want %q", got, want)
			}
		}
		us := "10.0.0.0/26 " + usID
		check(in, us)
		check(ext, us)
		in.send(announce("10.9.0.2", "10.1.0.0/26"))
		check(other, us)
		check(ext, us, "10.1.0.0/26 "+usID)
		look := outlook{as4: true, external: true, localAS: 64600, nextHop: [2]netip.Addr{addr("10.9.0.4")}}
		b, _ := look.announce(&attrs{}, bare(prefixes("10.4.0.0/16", "10.1.0.0/26")), IPv4)
		ext.send(b.bytes)
		// The internal path has the shorter AS path and wins.
		check(in, us, "10.4.0.0/16 10.9.0.4")
		check(ext, us, "10.1.0.0/26 "+usID)
		in.send(withdrawal("10.1.0.0/26"))
		check(ext, us)
		check(in, us, "10.1.0.0/26 10.9.0.4", "10.4.0.0/16 10.9.0.4")
		check(other, us, "10.1.0.0/26 10.9.0.4", "10.4.0.0/16 10.9.0.4")
		g.s.Originate(nil, prefixes("10.0.0.0/26"))
		_ = ext.c.Close()
		check(in)
		check(other)
		if st := g.s.Status(); st[0].Sent != 0 || st[0].State != "Established" {
			t.Errorf("session %+v", st[0])
		}
	})
}

// A peer that does not read neither stops the others nor piles up memory, and
// knows in the end what they know.
func TestSlowPeer(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2"), robotPeer("10.9.0.3")}, func(g *stage) {
		fast := g.incoming("10.9.0.2")
		fast.establish(func(o *open) { o.hold = 0 })
		slow := g.incoming("10.9.0.3")
		slow.establish(func(o *open) { o.hold, o.id = 0, addr("10.9.0.3") })
		slow.pause.Lock()
		all := []netip.Prefix{}
		for i := range 4096 {
			all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 4), byte(i << 4)}), 28))
		}
		for round := range 80 {
			g.s.Originate(all[round:], all[:round])
			g.session()
			g.s.Originate(all[:round], all[round:])
			g.session()
		}
		g.s.Originate(all, nil)
		g.s.Originate(nil, prefixes("10.64.0.0/28"))
		g.session()
		want := map[netip.Prefix]netip.Addr{}
		fast.told(want)
		waiting := 0
		g.s.ask(func() {
			for _, p := range g.s.rib.peers {
				p.session.conn.mu.Lock()
				waiting = max(waiting, p.session.conn.size)
				p.session.conn.mu.Unlock()
				if got := p.session.behind != nil; got != (p.config.Address == addr("10.9.0.3")) {
					t.Errorf("%v is behind: %v", p.config.Address, got)
				}
			}
		})
		if waiting > queueLimit+100000 {
			t.Errorf("%d bytes wait", waiting)
		}
		slow.pause.Unlock()
		got := map[netip.Prefix]netip.Addr{}
		slow.told(got)
		if fmt.Sprint(got) != fmt.Sprint(want) || len(want) != 4095 {
			t.Errorf("the slow peer knows %d prefixes, the fast one %d", len(got), len(want))
		}
	})
}

// A table that fills the queue by itself is followed by its End-of-RIB all the same.
func TestLargeTableEndsWithMarker(t *testing.T) {
	var all []netip.Prefix
	for i := range uint32(queueLimit/5 + 1000) {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), 32))
	}
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.s.Originate(all, nil)
		r := g.up(nil)
		count, last := 0, []byte(nil)
		for kind, body, _ := r.next(); kind == codec.BGP_MSG_UPDATE; kind, body, _ = r.next() {
			count, last = count+1, body
		}
		if count < 2 || len(last) != 4 {
			t.Errorf("%d messages, the last one has %d bytes", count, len(last))
		}
	})
}

func TestRouteRefresh(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		r := g.up(nil)
		r.expect(codec.BGP_MSG_UPDATE)
		r.expect(codec.BGP_MSG_UPDATE)
		r.send(message(5, 0, 1, 0, 1))
		known := map[netip.Prefix]netip.Addr{}
		if n := r.told(known); n != 1 || len(known) != 1 {
			t.Errorf("%d updates, knows %v", n, known)
		}
		r.send(message(5, 0, 9, 0, 9))
		r.expect(0)
	})
}

func TestPrefixLimit(t *testing.T) {
	p := robotPeer("10.9.0.2")
	p.PrefixLimit = 2
	play(t, Config{}, []PeerConfig{p}, func(g *stage) {
		r := g.up(nil)
		r.expect(codec.BGP_MSG_UPDATE)
		r.send(announce("10.9.0.2", "10.1.0.0/26", "10.1.0.0/26", "10.1.0.64/26"))
		g.has(bothRoutes...)
		r.send(announce("10.9.0.2", "10.1.0.128/26"))
		g.words("Idle: sent more prefixes than its limit of 2, retry in 1 s")
		r.notified(6, 1)
		if d := g.k.deletions(); len(d) != 2 {
			t.Errorf("deleted %v", d)
		}
	})
}

// TestLimitRest: a session that the limit ended rests as long as is said, or until the
// limit is another.
func TestLimitRest(t *testing.T) {
	for rest, words := range map[time.Duration]string{
		20 * time.Second: "Idle: sent more prefixes than its limit of 2, retry in 20 s",
		-1:               "Idle: sent more prefixes than its limit of 2; its session stays down until that is changed",
	} {
		p := robotPeer("10.9.0.2")
		p.PrefixLimit, p.LimitRest = 2, rest
		play(t, Config{}, []PeerConfig{p}, func(g *stage) {
			much := func() {
				t.Helper()
				r := g.up(nil)
				r.send(announce("10.9.0.2", "10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"))
				g.words(words)
			}
			much()
			if rest > 0 {
				time.Sleep(rest - time.Millisecond)
				g.words(strings.Replace(words, "20 s", "1 s", 1))
				much()
			} else {
				time.Sleep(time.Hour)
				g.words(words)
				p.Description = "another"
				_ = g.s.Configure([]PeerConfig{p})
				g.words(words)
				for _, p.Shutdown = range []string{"for a look", ""} { // which starts it anew
					_ = g.s.Configure([]PeerConfig{p})
					g.quiet()
				}
				much()
			}
			p.PrefixLimit = 3
			_ = g.s.Configure([]PeerConfig{p})
			r := g.up(nil)
			r.send(announce("10.9.0.2", "10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"))
			g.has("10.1.0.0/26 via 10.9.0.2", "10.1.0.128/26 via 10.9.0.2", "10.1.0.64/26 via 10.9.0.2")
		})
	}
}

// Import is asked for each path, again on Reimport, and its reasons are shown.
func TestImport(t *testing.T) {
	var allowed atomic.Value
	allowed.Store(netip.MustParsePrefix("10.1.0.0/16"))
	c := Config{Import: func(peer netip.Addr, p netip.Prefix, hop netip.Addr) (bool, string) {
		if peer != addr("10.9.0.2") || hop != addr("10.9.0.2") {
			t.Errorf("asked about %v via %v from %v", p, hop, peer)
		}
		return allowed.Load().(netip.Prefix).Overlaps(p), "outside every pool"
	}}
	play(t, c, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := g.up(nil)
		r.send(announce("10.9.0.2", "10.1.0.0/26", "10.2.0.0/26"))
		g.has(oneRoute...)
		st := g.session()
		if st.Received != 2 || st.Accepted != 1 || len(st.Refused) != 1 || st.Refused[0].Reason != "outside every pool" {
			t.Errorf("session %+v", st)
		}
		allowed.Store(netip.MustParsePrefix("10.2.0.0/16"))
		g.s.Reimport()
		g.has("10.2.0.0/26 via 10.9.0.2")
	})
}

// Equal paths are one multipath route, except where a prefix has one owner;
// then a stale path loses and both peers are named.
func TestMultipath(t *testing.T) {
	pool := netip.MustParsePrefix("10.1.0.0/16")
	c := Config{SinglePath: func(p netip.Prefix) bool { return pool.Overlaps(p) }}
	play(t, c, []PeerConfig{robotPeer("10.9.0.2"), robotPeer("10.9.0.3")}, func(g *stage) {
		two, three := g.incoming("10.9.0.2"), g.incoming("10.9.0.3")
		two.establish(withGR(false, true, true))
		three.establish(func(o *open) { withGR(false, true, true)(o); o.id = addr("10.9.0.3") })
		two.send(announce("10.9.0.2", "10.1.0.0/26", "172.16.0.0/16"))
		three.send(announce("10.9.0.3", "10.1.0.0/26", "172.16.0.0/16"))
		g.has("10.1.0.0/26 via 10.9.0.2", "172.16.0.0/16 via 10.9.0.2 10.9.0.3")
		conflicts := g.s.Conflicts()
		if len(conflicts) != 1 || len(conflicts[0].NextHops) != 2 {
			t.Errorf("conflicts %v", conflicts)
		}
		_ = two.c.Close()
		g.has("10.1.0.0/26 via 10.9.0.3", "172.16.0.0/16 via 10.9.0.3")
		if routes := g.s.Routes(); len(routes) != 2 || routes[0].Peer != addr("10.9.0.3") || routes[0].Stale {
			t.Errorf("routes %+v", routes)
		}
	})
}

// A route has no more next hops than MaxPaths says, and when a session ends all routes
// that go elsewhere are told together.
func TestMaxPaths(t *testing.T) {
	peers := []PeerConfig{robotPeer("10.9.0.2"), robotPeer("10.9.0.3"), robotPeer("10.9.0.4")}
	play(t, Config{MaxPaths: 2}, peers, func(g *stage) {
		var prefixes, want, after []string
		for i := range 2 * installBatch {
			p := fmt.Sprintf("10.%d.%d.0/24", 1+i/250, i%250)
			prefixes = append(prefixes, p)
			want = append(want, p+" via 10.9.0.2 10.9.0.3")
			after = append(after, p+" via 10.9.0.3 10.9.0.4")
		}
		var robots []*robot
		for _, p := range peers {
			r := g.incoming(p.Address.String())
			r.establish(func(o *open) { o.id = p.Address })
			for list := range slices.Chunk(prefixes, 500) {
				r.send(announce(p.Address.String(), list...))
			}
			robots = append(robots, r)
		}
		slices.Sort(want)
		slices.Sort(after)
		g.has(want...)
		before := g.k.count()
		_ = robots[0].c.Close()
		g.has(after...)
		if n := g.k.count() - before; n != 1 {
			t.Errorf("told in %d parts", n)
		}
	})
}

// Many changes that arrive together are one batch, a single one waits for
// nothing.
func TestBatches(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := g.up(nil)
		var list []string
		for i := range 1000 {
			list = append(list, fmt.Sprintf("10.1.%d.%d/32", i/250, i%250))
		}
		r.send(announce("10.9.0.2", list...))
		g.session()
		if len(g.k.text()) != 1000 || g.k.count() > 10 {
			t.Errorf("%d routes in %d batches", len(g.k.text()), g.k.count())
		}
		before := time.Now()
		r.send(announce("10.9.0.2", "10.2.0.0/26"))
		g.session()
		if len(g.k.text()) != 1001 || time.Since(before) != 0 {
			t.Errorf("a single change took %v", time.Since(before))
		}
	})
}
