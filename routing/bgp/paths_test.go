package bgp

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/routing"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// bothWays is the capability of a peer that takes and sends several paths.
func bothWays(o *open) {
	o.paths = [2]codec.BGPAddPathMode{codec.BGP_ADD_PATH_BOTH, codec.BGP_ADD_PATH_BOTH}
}

// withIDs is an UPDATE about paths with IDs, as an internal peer sends them: "prefix id".
func withIDs(hop string, list ...string) []byte {
	look := outlook{as4: true, ids: [2]bool{true, true}}
	var items []nlri
	for _, text := range list {
		var prefix string
		var n nlri
		if _, err := fmt.Sscan(text, &prefix, &n.id); err != nil {
			panic(err)
		}
		n.prefix = routing.Pack(netip.MustParsePrefix(prefix))
		items = append(items, n)
	}
	family := IPv4
	if !items[0].prefix.Is4() {
		family = IPv6
	}
	if hop == "" {
		return look.withdraw(items, family).bytes
	}
	b, _ := look.announce(&attrs{nextHop: addr(hop), localPref: 100}, items, family)
	return b.bytes
}

// paths is what a robot was told, by prefix and ID.
type paths map[nlri]string

// several adds what the robot was told since: "hop", by prefix and ID.
func (r *robot) several(known paths, ids bool) {
	r.t.Helper()
	d := decoder{
		complaints: &complaints{log: slog.New(slog.DiscardHandler)}, families: [2]bool{true, true}, ids: [2]bool{ids, ids}, as4: true,
		localAS: r.as, peerAS: 64511, routerID: addr("10.9.0.250"), clusterID: addr("10.9.0.250"),
	}
	for {
		kind, body, _ := r.next()
		if kind != codec.BGP_MSG_UPDATE {
			return
		}
		changes, f := d.update(body)
		if f != nil {
			r.t.Fatalf("update: %v", f)
		}
		for _, c := range changes {
			for i, p := range c.prefixes {
				n := nlri{routing.Pack(p), c.id(i)}
				if delete(known, n); c.attrs != nil {
					known[n] = c.attrs.nextHop.String()
				}
			}
		}
	}
}

// lines are "prefix hop hop …", whatever the IDs; no two paths of a prefix have one.
func (p paths) lines() []string {
	hops := map[routing.Packed][]string{}
	for n, hop := range p {
		hops[n.prefix] = append(hops[n.prefix], hop)
	}
	out := []string{}
	for prefix, list := range hops {
		slices.Sort(list)
		out = append(out, prefix.Prefix().String()+" "+strings.Join(list, " "))
	}
	slices.Sort(out)
	return out
}

func (p paths) are(t *testing.T, who string, want ...string) {
	t.Helper()
	if got := p.lines(); !slices.Equal(got, append([]string{}, want...)) {
		t.Errorf("%s knows %q, want %q", who, got, want)
	}
}

// TestReceivePaths: a peer's paths to a prefix are told apart by their IDs: several next
// hops, each withdrawn and replaced by itself, counted by the limit, and kept over a
// restart until the End-of-RIB comes without them.
func TestReceivePaths(t *testing.T) {
	p := robotPeer("10.9.0.2")
	p.ReceivePaths, p.Families, p.PrefixLimit = true, []Family{IPv4, IPv6}, 5
	play(t, Config{}, []PeerConfig{p}, func(g *stage) {
		change := func(o *open) { withGR(false, true, true)(o); bothWays(o) }
		r := g.up(change)
		r.send(withIDs("10.9.0.3", "10.1.0.0/26 1", "10.2.0.0/26 7"), withIDs("10.9.0.4", "10.1.0.0/26 2"), withIDs("fd00::5", "fd80::/64 4294967295"), withIDs("fd00::6", "fd80::/64 0"))
		g.has("10.1.0.0/26 via 10.9.0.3 10.9.0.4", "10.2.0.0/26 via 10.9.0.3", "fd80::/64 via fd00::5 fd00::6")
		if st := g.session(); st.Received != 5 || st.Accepted != 5 {
			t.Errorf("session %+v", st)
		}
		var why []string
		found, _ := g.s.Look(Query{Prefix: netip.MustParsePrefix("10.1.0.0/26"), Limit: 9})
		for _, p := range found {
			why = append(why, fmt.Sprintf("%d %v best %v used %v %s", p.ID, p.NextHop, p.Best, p.Used, p.Why))
		}
		if want := []string{"1 10.9.0.3 best true used true best: that by 10.9.0.2 has path ID 2, not 1", "2 10.9.0.4 best false used true equal, path ID 2, not 1"}; !slices.Equal(why, want) {
			t.Errorf("looks like %q, want %q", why, want)
		}
		// Each by itself: another next hop, and gone; what was never there is not missed.
		r.send(withIDs("10.9.0.5", "10.1.0.0/26 2"), withIDs("", "10.2.0.0/26 1", "10.1.0.0/26 3"), withIDs("", "fd80::/64 0"))
		g.has("10.1.0.0/26 via 10.9.0.3 10.9.0.5", "10.2.0.0/26 via 10.9.0.3", "fd80::/64 via fd00::5")
		// The peer restarts: one path comes again, one as another, one not.
		r.send(endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		_ = r.c.Close()
		g.has("10.1.0.0/26 via 10.9.0.3 10.9.0.5", "10.2.0.0/26 via 10.9.0.3", "fd80::/64 via fd00::5")
		r = g.up(func(o *open) { withGR(true, true, true)(o); bothWays(o) })
		if st := g.session(); st.Stale != 4 {
			t.Errorf("session %+v", st)
		}
		r.send(withIDs("10.9.0.3", "10.1.0.0/26 1", "10.2.0.0/26 8"), withIDs("fd00::5", "fd80::/64 4294967295"))
		r.send(endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		g.has("10.1.0.0/26 via 10.9.0.3", "10.2.0.0/26 via 10.9.0.3", "fd80::/64 via fd00::5")
		// It comes back as one that sends one path only.
		_ = r.c.Close()
		r = g.up(withGR(true, true, true))
		r.send(announce("10.9.0.3", "10.1.0.0/26"), endOfRIB(IPv4).bytes, endOfRIB(IPv6).bytes)
		g.has("10.1.0.0/26 via 10.9.0.3")
		g.s.ask(func() {
			if p := g.s.rib.peers[addr("10.9.0.2")]; p.ids != nil || len(p.refused) > 0 {
				t.Errorf("left over: %v, %v", p.ids, p.refused)
			}
		})
		_ = r.c.Close()
		r = g.up(func(o *open) { withGR(true, true, true)(o); bothWays(o) })
		// What is stale does not count.
		r.send(withIDs("10.9.0.3", "10.1.0.0/26 1", "10.1.0.0/26 2", "10.1.0.0/26 3", "10.1.0.0/26 4", "10.1.0.0/26 5"), withIDs("10.9.0.3", "10.1.0.0/26 5"))
		if st := g.session(); st.State != "Established" {
			t.Errorf("session %+v", st)
		}
		r.send(withIDs("10.9.0.3", "10.1.0.0/26 6"))
		g.words("Idle: sent more prefixes than its limit of 5, retry in 1 s")
	})
}

// TestSendPaths: a client that takes several paths has them all, or so many as it is to
// have; others have the best one; who sent a path is not told it. It changes in place but
// for on and off.
func TestSendPaths(t *testing.T) {
	peers := []PeerConfig{clientPeer(2), clientPeer(3), clientPeer(4), clientPeer(5), clientPeer(6)}
	peers[0].SendPaths, peers[2].SendPaths, peers[3].SendPaths = -1, -1, 2
	peers[2].NextHopSelf, peers[0].NextHopSelf = []netip.Addr{addr(usID), addr("fd00::a")}, []netip.Addr{addr(usID), addr("fd00::a")}
	play(t, Config{}, peers, func(g *stage) {
		g.s.Originate(prefixes("10.3.0.0/26", "fd83::/64"), nil)
		c := newCast(g)
		c.enter(bothWays, 2, 3, 4, 5, 6)
		know := map[int]paths{2: {}, 3: {}, 4: {}, 5: {}, 6: {}}
		check := func(i int, want ...string) {
			t.Helper()
			c.robots[i].several(know[i], i == 2 || i == 4 || i == 5)
			know[i].are(t, fmt.Sprint(i), want...)
		}
		for i := range 3 {
			i += 2
			hop, hop6 := robotAddr(i), fmt.Sprintf("fd00::%d", i)
			c.robots[i].send(announce(hop, "10.1.0.0/26", "10.3.0.0/26"), announce(hop6, "fd80::/64"))
		}
		own := "fd83::/64 fd00::a"
		check(2, "10.1.0.0/26 10.9.0.3 10.9.0.4", "10.3.0.0/26 "+usID+" 10.9.0.3 10.9.0.4", "fd80::/64 fd00::3 fd00::4", own)
		check(4, "10.1.0.0/26 10.9.0.2 10.9.0.3", "10.3.0.0/26 "+usID+" 10.9.0.2 10.9.0.3", "fd80::/64 fd00::2 fd00::3", own)
		check(5, "10.1.0.0/26 10.9.0.2 10.9.0.3", "10.3.0.0/26 "+usID+" 10.9.0.2", "fd80::/64 fd00::2 fd00::3")
		check(6, "10.1.0.0/26 10.9.0.2", "10.3.0.0/26 "+usID, "fd80::/64 fd00::2")
		check(3, "10.1.0.0/26 10.9.0.2", "10.3.0.0/26 "+usID, "fd80::/64 fd00::2")
		// A path that is another one keeps its ID, one that goes takes nothing with it.
		before := fmt.Sprint(know[5])
		c.robots[3].send(announce("10.9.0.33", "10.1.0.0/26"))
		c.robots[2].send(withdrawal("10.3.0.0/26"))
		check(5, "10.1.0.0/26 10.9.0.2 10.9.0.33", "10.3.0.0/26 "+usID+" 10.9.0.3", "fd80::/64 fd00::2 fd00::3")
		if n, m := strings.Count(before, " "), strings.Count(fmt.Sprint(know[5]), " "); n != m {
			t.Errorf("%s became %v", before, know[5])
		}
		check(2, "10.1.0.0/26 10.9.0.33 10.9.0.4", "10.3.0.0/26 "+usID+" 10.9.0.3 10.9.0.4", "fd80::/64 fd00::3 fd00::4", own)
		var told []string
		list, _ := g.s.Look(Query{View: ViewAdvertised, Peer: addr("10.9.0.5"), Prefix: prefixes("10.1.0.0/26")[0], Limit: 9})
		for _, p := range list {
			told = append(told, fmt.Sprintf("%v by %v, ID set %v", p.NextHop, p.Peer, p.ID > 0))
		}
		slices.Sort(told)
		if want := []string{"10.9.0.2 by 10.9.0.2, ID set true", "10.9.0.33 by 10.9.0.3, ID set true"}; !slices.Equal(told, want) {
			t.Errorf("told %q", told)
		}
		// More of them in a running session, and told again on request.
		set := func(n int) {
			t.Helper()
			peers[3].SendPaths = n
			if err := g.s.Configure(slices.Clone(peers)); err != nil {
				t.Fatal(err)
			}
			g.session()
		}
		set(-1)
		all := []string{"10.1.0.0/26 10.9.0.2 10.9.0.33 10.9.0.4", "10.3.0.0/26 " + usID + " 10.9.0.3 10.9.0.4", "fd80::/64 fd00::2 fd00::3 fd00::4"}
		check(5, all...)
		set(1)
		check(5, "10.1.0.0/26 10.9.0.2", "10.3.0.0/26 "+usID, "fd80::/64 fd00::2")
		set(3)
		check(5, all...)
		clear(know[5])
		c.robots[5].send(routeRefresh(IPv4, refreshRequest), routeRefresh(IPv6, refreshRequest))
		check(5, all...)
		if st := g.s.Status()[3]; st.Sent != 9 || st.Established != 1 {
			t.Errorf("session %+v", st)
		}
		_ = c.robots[3].c.Close()
		check(5, "10.1.0.0/26 10.9.0.2 10.9.0.4", "10.3.0.0/26 "+usID+" 10.9.0.4", "fd80::/64 fd00::2 fd00::4")
		set(0)
		c.robots[5].notified(6, 6)
	})
}

// TestPathsAtRandom: whatever is announced and withdrawn in whichever batches, what peers
// know in the end is what the others announced, also one that falls behind.
func TestPathsAtRandom(t *testing.T) {
	peers := []PeerConfig{clientPeer(2), clientPeer(3), clientPeer(4), clientPeer(5)}
	for i := range peers {
		peers[i].ReceivePaths = i < 3
		peers[i].SendPaths = []int{0, -1, 2, -1}[i]
	}
	play(t, Config{}, peers, func(g *stage) {
		c := newCast(g)
		c.enter(bothWays, 2, 3, 4, 5)
		rnd := rand.New(rand.NewPCG(7, 8))
		model, known := map[string]string{}, map[int]paths{3: {}, 5: {}}
		for round := range 40 {
			behind := round%10 == 7
			g.s.ask(func() {
				if s := g.s.rib.peers[addr(robotAddr(5))].session; behind && s.behind == nil {
					s.behind = map[nlri]struct{}{} // as if its queue had been full
				}
			})
			for range 1 + rnd.IntN(4) {
				from := 2 + rnd.IntN(3)
				var out []byte
				for range 1 + rnd.IntN(6) {
					key := fmt.Sprintf("10.1.%d.0/24 %d", rnd.IntN(4), rnd.IntN(4))
					hop := ""
					if rnd.IntN(3) > 0 {
						hop = fmt.Sprintf("10.8.0.%d", 1+rnd.IntN(4))
					}
					out = append(out, withIDs(hop, key)...)
					if who := fmt.Sprint(from, " ", key); hop == "" {
						delete(model, who)
					} else {
						model[who] = hop
					}
				}
				c.robots[from].send(out)
			}
			g.s.ask(func() {
				if s := g.s.rib.peers[addr(robotAddr(5))].session; behind {
					g.s.rib.drained(s)
				}
			})
			for _, who := range []int{3, 5} {
				hops := map[string][]string{}
				for key, hop := range model {
					if f := strings.Fields(key); f[0] != fmt.Sprint(who) {
						hops[f[1]] = append(hops[f[1]], hop)
					}
				}
				want := []string{}
				for p, list := range hops {
					slices.Sort(list)
					want = append(want, p+" "+strings.Join(list, " "))
				}
				slices.Sort(want)
				c.robots[who].several(known[who], true)
				if got := known[who].lines(); !slices.Equal(got, want) {
					t.Fatalf("round %d: %d knows %q, want %q", round, who, got, want)
				}
			}
		}
		// Nothing is left of what goes.
		for _, i := range []int{2, 3, 4} {
			_ = c.robots[i].c.Close()
		}
		time.Sleep(time.Second)
		g.s.ask(func() {
			for _, group := range g.s.rib.groups {
				if len(group.sent)+len(group.lanes)+len(group.sources) > 0 {
					t.Errorf("left: %v, %v", group.sent, group.lanes)
				}
			}
			if len(g.s.rib.dests) > 0 {
				t.Errorf("%d prefixes left", len(g.s.rib.dests))
			}
		})
	})
}

// TestPathIDIsNotUsedAtOnce: a path that comes in the batch in which another one of the
// prefix goes is told under another ID, since the withdrawal may be sent last.
func TestPathIDIsNotUsedAtOnce(t *testing.T) {
	peers := []PeerConfig{clientPeer(2), clientPeer(3)}
	peers[0].ReceivePaths, peers[1].SendPaths = true, -1
	play(t, Config{}, peers, func(g *stage) {
		c := newCast(g)
		c.enter(bothWays, 2, 3)
		known := paths{}
		check := func(want ...string) {
			t.Helper()
			c.robots[3].several(known, true)
			known.are(t, "3", want...)
		}
		c.robots[2].send(withIDs("10.9.0.3", "10.2.0.0/26 1"))
		check("10.2.0.0/26 10.9.0.3")
		c.robots[2].send(join(withIDs("10.9.0.4", "10.1.0.0/26 1", "10.2.0.0/26 2"), withIDs("", "10.2.0.0/26 1")))
		check("10.1.0.0/26 10.9.0.4", "10.2.0.0/26 10.9.0.4")
	})
}

// TestAdoptSeveralPaths: after a restart of ours a route of several next hops, which are no
// peers, stays as it is until the peer that sends several paths has told them again.
func TestAdoptSeveralPaths(t *testing.T) {
	p := robotPeer("10.9.0.2")
	p.ReceivePaths = true
	stale := []Route{
		{Prefix: prefixes("10.1.0.0/26")[0], NextHops: []netip.Addr{addr("10.9.0.2"), addr("10.9.0.4"), addr("10.9.0.3")}},
		{Prefix: prefixes("10.2.0.0/26")[0], NextHops: []netip.Addr{addr("10.9.0.4")}},
	}
	play(t, Config{Stale: stale, Restarting: true}, []PeerConfig{p}, func(g *stage) {
		if n := g.k.count(); n > 0 {
			t.Errorf("%d changes at start: %q", n, g.k.text())
		}
		r := g.up(func(o *open) { withGR(false, true, true)(o); bothWays(o) })
		r.send(join(withIDs("10.9.0.3", "10.1.0.0/26 1"), withIDs("10.9.0.4", "10.1.0.0/26 2", "10.2.0.0/26 1"), withIDs("10.9.0.2", "10.1.0.0/26 3")))
		r.send(endOfRIB(IPv4).bytes)
		g.session()
		if n := g.k.count(); n > 0 {
			t.Errorf("%d changes: %q", n, g.k.text())
		}
		if st := g.session(); st.Received != 4 || st.Stale != 0 {
			t.Errorf("session %+v", st)
		}
	})
}

// TestPathsAndFilters: a filter counts before the number of paths; what it changes is told
// so; and what is kept for long stays the worst whatever it does with communities.
func TestPathsAndFilters(t *testing.T) {
	peers := []PeerConfig{clientPeer(2), clientPeer(3), clientPeer(4)}
	peers[0].LongLived, peers[2].LongLived = time.Minute, time.Minute
	peers[0].ImportFilter = policy(t, routing.Import, "accept prefix 10.0.0.0/8 le 32 then local-pref 200 and remove community 65535:*")
	peers[2].SendPaths, peers[2].ExportFilter = 1, policy(t, routing.Export, "reject community 1:1", "accept prefix 10.0.0.0/8 le 32 then add community 2:2")
	play(t, Config{}, peers, func(g *stage) {
		c := newCast(g)
		c.enter(func(o *open) { withLong(time.Hour, time.Hour, true)(o); bothWays(o) }, 2, 3, 4)
		known := paths{}
		check := func(want ...string) {
			t.Helper()
			c.robots[4].several(known, true)
			known.are(t, "4", want...)
		}
		c.robots[2].send(tell(attrs{nextHop: addr("10.9.0.2"), rest: carrying(1<<16 | 1)}, "10.1.0.0/26"), tell(attrs{nextHop: addr("10.9.0.2")}, "10.2.0.0/26"))
		c.robots[3].send(tell(attrs{nextHop: addr("10.9.0.3")}, "10.1.0.0/26", "10.2.0.0/26"))
		check("10.1.0.0/26 10.9.0.3", "10.2.0.0/26 10.9.0.2")
		list, _ := g.s.Look(Query{View: ViewAdvertised, Peer: addr(robotAddr(4)), Limit: 9})
		if len(list) != 2 || !slices.Contains(list[1].Communities, "2:2") || list[1].LocalPref != 200 {
			t.Errorf("told %+v", list)
		}
		_ = c.robots[2].c.Close()
		time.Sleep(21 * time.Second)
		check("10.1.0.0/26 10.9.0.3", "10.2.0.0/26 10.9.0.3")
		c.robots[3].send(withdrawal("10.2.0.0/26"))
		check("10.1.0.0/26 10.9.0.3", "10.2.0.0/26 10.9.0.2")
		found, _ := g.s.Look(Query{Prefix: prefixes("10.2.0.0/26")[0], Limit: 9})
		if len(found) != 1 || found[0].LocalPref != 200 || !slices.Equal(found[0].Communities, []string{"llgr-stale"}) {
			t.Errorf("kept: %+v", found)
		}
		time.Sleep(time.Minute)
		check("10.1.0.0/26 10.9.0.3")
	})
}
