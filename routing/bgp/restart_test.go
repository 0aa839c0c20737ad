package bgp

import (
	"net/netip"
	"testing"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

var oneRoute = []string{"10.1.0.0/26 via 10.9.0.2"}

// learnt establishes a session and learns 10.1.0.0/26 and 10.1.0.64/26.
func (g *stage) learnt(change func(*open)) *robot {
	r := g.up(change)
	r.expect(codec.BGP_MSG_UPDATE) // End-of-RIB
	r.send(announce("10.9.0.2", "10.1.0.0/26", "10.1.0.64/26"), endOfRIB(IPv4).bytes)
	return r
}

var bothRoutes = []string{"10.1.0.0/26 via 10.9.0.2", "10.1.0.64/26 via 10.9.0.2"}

// What becomes of a peer's routes when its session ends.
func TestHelperKeeps(t *testing.T) {
	n := func(code, subcode uint8) func(*robot) {
		return func(r *robot) { r.send((&fault{code: code, subcode: subcode}).message()) }
	}
	hang := func(r *robot) { _ = r.c.Close() }
	for name, c := range map[string]struct {
		gr   func(*open)
		end  func(*robot)
		kept bool
	}{
		"lost":                  {withGR(false, false, true), hang, true},
		"lost without":          {nil, hang, false},
		"lost, other family":    {func(o *open) { withGR(false, true, true)(o); o.gr.listed[IPv4] = false }, hang, false},
		"cease":                 {withGR(false, false, true), n(6, 4), false},
		"cease with N":          {withGR(false, true, true), n(6, 4), true},
		"hard reset with N":     {withGR(false, true, true), n(6, 9), false},
		"hold timer":            {withGR(false, false, true), func(*robot) { time.Sleep(10 * time.Second) }, false},
		"hold timer with N":     {withGR(false, true, true), func(*robot) { time.Sleep(10 * time.Second) }, true},
		"our error":             {withGR(false, false, true), func(r *robot) { r.send(message(2, 0, 9, 0, 0)) }, false},
		"our error with N":      {withGR(false, true, true), func(r *robot) { r.send(message(2, 0, 9, 0, 0)) }, true},
		"no N, half a shutdown": {withGR(false, false, true), func(r *robot) { r.send(appendHeader(nil, 2)[:10]); hang(r) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
				r := g.learnt(c.gr)
				g.has(bothRoutes...)
				c.end(r)
				g.refuse.Store(true)
				if !c.kept {
					g.has()
					return
				}
				g.has(bothRoutes...)
				if st := g.session(); st.Stale != 2 {
					t.Errorf("session %+v", st)
				}
			})
		})
	}
}

// Stale routes live for the peer's restart time (20 s).
func TestHelperRestartTime(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := g.learnt(withGR(false, true, true))
		g.refuse.Store(true)
		_ = r.c.Close()
		time.Sleep(19 * time.Second)
		g.has(bothRoutes...)
		time.Sleep(2 * time.Second)
		g.has()
	})
}

// A restarted peer: what it announces again stays, the rest goes with its
// End-of-RIB, and our routes are there before ours.
func TestHelperEndOfRIB(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		r := g.up(withGR(false, true, true))
		r.expect(codec.BGP_MSG_UPDATE)
		r.expect(codec.BGP_MSG_UPDATE)
		r.send(announce("10.9.0.2", "10.1.0.0/26", "10.1.0.64/26"))
		_ = r.c.Close()
		r = g.up(withGR(true, true, true))
		if body := r.expect(codec.BGP_MSG_UPDATE); len(body) == 4 {
			t.Error("End-of-RIB before our routes")
		}
		if body := r.expect(codec.BGP_MSG_UPDATE); len(body) != 4 {
			t.Errorf("no End-of-RIB but %x", body)
		}
		r.send(announce("10.9.0.2", "10.1.0.0/26"))
		g.has(bothRoutes...)
		r.send(endOfRIB(IPv6).bytes)
		g.has(bothRoutes...)
		batches := g.k.count()
		r.send(endOfRIB(IPv4).bytes)
		g.has(oneRoute...)
		if g.k.count() != batches+1 {
			t.Errorf("%d batches", g.k.count()-batches)
		}
		time.Sleep(300 * time.Second)
	})
}

// Without F, or without the family, stale routes go at once.
func TestHelperForwardingLost(t *testing.T) {
	for name, change := range map[string]func(*open){
		"F=0": withGR(true, true, false), "no capability": nil,
		"no family": func(o *open) { withGR(true, true, true)(o); o.gr.listed[IPv4] = false },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
				_ = g.learnt(withGR(false, true, true)).c.Close()
				g.has(bothRoutes...)
				g.up(change)
				g.has()
			})
		})
	}
}

// A new session without End-of-RIB: 120 s. Further losses neither delete nor
// restart the clock.
func TestHelperClockRunsOnce(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		_ = g.learnt(withGR(false, true, true)).c.Close()
		time.Sleep(time.Second)
		for at := 0; at < 116; at += 4 {
			r := g.up(withGR(true, true, true))
			time.Sleep(2 * time.Second)
			_ = r.c.Close()
			g.has(bothRoutes...)
			time.Sleep(2 * time.Second)
		}
		g.has(bothRoutes...)
		time.Sleep(5 * time.Second)
		g.has()
	})
}

// A restarted peer connects while its old connection still looks alive: the
// new one replaces it and the routes stay.
func TestHelperNewConnectionReplaces(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		old := g.learnt(withGR(false, true, true))
		time.Sleep(time.Second)
		r := g.incoming("10.9.0.2")
		r.establish(withGR(true, true, true))
		g.words("Established")
		g.has(bothRoutes...)
		old.over()
		r.expect(codec.BGP_MSG_UPDATE)
		r.send(announce("10.9.0.2", "10.1.0.0/26"), endOfRIB(IPv4).bytes)
		g.has(oneRoute...)
	})
}

// A connection that opens and closes beside a session changes nothing.
func TestHelperIgnoresPassers(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		_ = g.learnt(withGR(false, true, true)).c.Close()
		time.Sleep(time.Millisecond)
		for range 3 {
			r := g.incoming("10.9.0.2")
			_ = r.c.Close()
			g.has(bothRoutes...)
		}
	})
}

func stale(list ...string) (routes []Route) {
	for _, p := range prefixes(list...) {
		routes = append(routes, Route{Prefix: p, NextHops: []netip.Addr{addr("10.9.0.2")}})
	}
	return routes
}

// The kernel's routes are taken over: the Installer hears of changes only.
func TestRestarting(t *testing.T) {
	c := Config{
		Restarting: true, ForwardingPreserved: map[Family]bool{IPv4: true},
		Stale: append(stale("10.1.0.0/26", "10.1.0.64/26"), Route{Prefix: prefixes("10.7.0.0/26")[0], NextHops: []netip.Addr{addr("10.9.0.7")}}),
	}
	play(t, c, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.has()
		if d := g.k.deletions(); len(d) != 1 || d[0].String() != "10.7.0.0/26" {
			t.Errorf("deleted %v", d)
		}
		if st := g.session(); st.Stale != 2 || st.Received != 2 {
			t.Errorf("session %+v", st)
		}
		r := <-g.dialled
		o, f := parseOpen(r.expect(codec.BGP_MSG_OPEN))
		if f != nil || !o.gr.restarting || !o.gr.notification || !o.gr.forwarding[IPv4] || o.gr.forwarding[IPv6] || o.gr.time != DefaultRestartTime {
			t.Errorf("open %+v %v", o.gr, f)
		}
		// A peer that did not restart leaves F alone.
		r.send(theirOpen(withGR(false, true, false)), keepalive())
		r.expect(codec.BGP_MSG_UPDATE)
		r.send(announce("10.9.0.2", "10.1.0.0/26"))
		if g.k.count() != 1 {
			t.Errorf("%d batches", g.k.count())
		}
		_ = r.c.Close() // a second restart inside the window
		r = g.up(withGR(true, true, true))
		r.send(announce("10.9.0.2", "10.1.0.0/26"))
		if g.session(); g.k.count() != 1 {
			t.Errorf("%d batches", g.k.count())
		}
		r.send(endOfRIB(IPv4).bytes)
		g.session()
		if d := g.k.deletions(); len(d) != 2 || d[1].String() != "10.1.0.64/26" {
			t.Errorf("deleted %v", d)
		}
	})
}

// Adopted routes wait for their peer until the restart time ends; R with them.
func TestRestartingPeerIsLate(t *testing.T) {
	c := Config{Restarting: true, Stale: stale("10.1.0.0/26")}
	play(t, c, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.refuse.Store(true)
		time.Sleep(119 * time.Second)
		if d := g.k.deletions(); len(d) != 0 {
			t.Errorf("deleted %v", d)
		}
		time.Sleep(2 * time.Second)
		if d := g.k.deletions(); len(d) != 1 {
			t.Errorf("deleted %v", d)
		}
		g.refuse.Store(false)
		r := <-g.dialled
		if o, _ := parseOpen(r.expect(codec.BGP_MSG_OPEN)); o.gr.restarting {
			t.Error("R after the restart time")
		}
	})
}

// A peer without graceful restart promises no End-of-RIB: its adopted routes
// stay while its connection comes and goes, unless it says that it ends.
func TestRestartingPeerWithoutRestart(t *testing.T) {
	play(t, Config{Restarting: true, Stale: stale("10.1.0.0/26")}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		_ = g.up(nil).c.Close()
		r := g.up(nil)
		r.send((&fault{code: codeCease, subcode: ceaseCollision}).message())
		r = g.up(nil)
		if d := g.k.deletions(); len(d) != 0 {
			t.Errorf("deleted %v", d)
		}
		r.send(cease(ceaseShutdown, "").message())
		g.words("Active: peer says administrative shutdown")
		if d := g.k.deletions(); len(d) != 1 {
			t.Errorf("deleted %v", d)
		}
	})
}

// Both restarted and the peer's kernel lost its state.
func TestRestartingPeerLostForwarding(t *testing.T) {
	play(t, Config{Restarting: true, Stale: stale("10.1.0.0/26")}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.up(withGR(true, true, false))
		if d := g.k.deletions(); len(d) != 1 {
			t.Errorf("deleted %v", d)
		}
	})
}

// F is set to a peer that had a session with this very process.
func TestForwardingAfterSession(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := <-g.dialled
		if o, _ := parseOpen(r.expect(codec.BGP_MSG_OPEN)); o.gr.forwarding[IPv4] {
			t.Error("F at the first start")
		}
		r.send(theirOpen(nil), keepalive())
		_ = r.c.Close()
		r = <-g.dialled
		if o, _ := parseOpen(r.expect(codec.BGP_MSG_OPEN)); !o.gr.forwarding[IPv4] || o.gr.restarting {
			t.Errorf("open %+v", o.gr)
		}
	})
}

// The end of Run is not said to the peers.
func TestEndWithoutCease(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := g.up(nil)
		r.expect(codec.BGP_MSG_UPDATE)
		g.stop()
		r.over()
	})
}

// Who restarts and, as FRR, tells its name, has a second for its next hops until it is told
// that this was all; the routes do not wait, and nobody else does.
func TestEndOfRIBIsNotHasty(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*open)
		wait   time.Duration
	}{
		"named, restarts": {func(o *open) { withGR(true, true, true)(o); o.named = true }, time.Second},
		"named":           {func(o *open) { withGR(false, true, true)(o); o.named = true }, 0},
		"restarts":        {withGR(true, true, true), 0},
		"named without":   {func(o *open) { o.named = true }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
				g.s.Originate(prefixes("10.65.0.0/26"), nil)
				r := g.up(c.change)
				if body := r.expect(codec.BGP_MSG_UPDATE); len(body) < 20 {
					t.Fatalf("%x, want a route", body)
				}
				if c.wait > 0 {
					time.Sleep(c.wait - time.Millisecond)
					if kind, body, _ := r.next(); kind != 0 {
						t.Fatalf("message %d %x too early", kind, body)
					}
					time.Sleep(time.Millisecond)
				}
				if body := r.expect(codec.BGP_MSG_UPDATE); len(body) != 4 {
					t.Errorf("%x, want End-of-RIB", body)
				}
			})
		})
	}
}
