package bgp

import (
	"testing"
	"testing/synctest"
	"time"
)

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
