package bgp

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

func TestDialScale(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.refuse.Store(true)
		time.Sleep(9 * time.Second)
		g.words("Active: connection refused")
		want := []time.Duration{0, 100, 200, 400, 800, 1600, 2000, 2000}
		if len(g.dials()) != len(want) || g.dials()[0] >= firstDial {
			t.Fatalf("dials at %v", g.dials())
		}
		for i := 1; i < len(want); i++ {
			if gap := g.dials()[i] - g.dials()[i-1]; gap != want[i]*time.Millisecond {
				t.Errorf("dial %d came %v after the one before, want %v", i, gap, want[i]*time.Millisecond)
			}
		}
	})
}

// extended gives an OPEN's parameters lengths of two bytes each (RFC 9072).
func extended(open []byte, short byte) []byte {
	body := open[headerLen:]
	params := body[10:]
	out := append([]byte(nil), body[:9]...)
	out = append(out, short, 255, 0, byte(len(params)+1), params[0], 0)
	return message(codec.BGP_MSG_OPEN, append(out, params[1:]...)...)
}

// Parameters in the extended encoding are read, whatever their short length says.
func TestExtendedParameters(t *testing.T) {
	for _, short := range []byte{255, 1, 7} {
		play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
			r := <-g.dialled
			r.expect(codec.BGP_MSG_OPEN)
			r.send(extended(theirOpen(withGR(false, true, true)), short), keepalive())
			if s := g.session(); s.State != "Established" || !s.GracefulRestart || !s.Notification {
				t.Errorf("short length %d: %+v", short, s)
			}
		})
	}
	head := []byte{4, 0xfb, 0xff, 0, 90, 10, 9, 0, 2}
	for name, params := range map[string][]byte{
		"short length 0": {0, 255, 0, 0}, "cut": {255, 255, 0}, "too long": {255, 255, 0, 9, 2, 0, 0}, "cut parameter": {255, 255, 0, 2, 2, 0},
	} {
		if o, f := parseOpen(append(head[:9:9], params...)); f == nil || f.code != codeOpen || f.subcode != 0 {
			t.Errorf("%s: %+v, %v", name, o, f)
		}
	}
	// More than 255 bytes, and a normal one of 255.
	large := append(head[:9:9], 255, 255, 1, 4, 2, 1, 1)
	for range 257 / 2 {
		large = append(large, 99, 0)
	}
	large[12]--
	large[15]--
	if o, f := parseOpen(large); f != nil || !o.families[IPv4] {
		t.Errorf("256 bytes of capabilities: %+v, %v", o, f)
	}
}

// Many requests to be told everything again cost one dump of each family, and one more
// for those that come meanwhile.
func TestManyRefreshes(t *testing.T) {
	p := robotPeer("10.9.0.2")
	p.Families, p.NextHopSelf = []Family{IPv4, IPv6}, []netip.Addr{addr(usID), addr("fd00::10")}
	play(t, Config{}, []PeerConfig{p}, func(g *stage) {
		g.s.Originate(prefixes("10.1.0.0/26", "fd80:1::/64"), nil)
		r := g.up(nil)
		told := func() (n int) {
			for {
				kind, _, _ := r.next()
				if kind == 0 {
					return n
				}
				n++
			}
		}
		told()
		request := join(message(codec.BGP_MSG_ROUTE_REFRESH, 0, 1, 0, 1), message(codec.BGP_MSG_ROUTE_REFRESH, 0, 2, 0, 1))
		for _, c := range []struct{ requests, at, after int }{
			{readSize / len(request), 2, 0}, // in one read
			{20_000, 2, 2},
			{1, 2, 0},
		} {
			r.send(bytes.Repeat(request, c.requests))
			if n := told(); n != c.at {
				t.Errorf("%d requests: %d updates at once, want %d", c.requests, n, c.at)
			}
			time.Sleep(2 * refreshPause)
			if n := told(); n != c.after {
				t.Errorf("%d requests: %d updates later, want %d", c.requests, n, c.after)
			}
			time.Sleep(refreshPause)
		}
		// What waits when the session is over does no harm.
		r.send(request, request)
		r.c.Close()
		time.Sleep(2 * refreshPause)
	})
}

// Malformed input is logged at a limited rate, in part, and what is left out is counted.
func TestComplaints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		c := &complaints{log: slog.New(slog.NewTextHandler(&text, nil))}
		lines := func() (list []string) {
			synctest.Wait()
			c.mu.Lock() // under which it writes
			defer c.mu.Unlock()
			for line := range strings.Lines(text.String()) {
				_, line, _ = strings.Cut(strings.TrimSpace(line), "level=")
				list = append(list, line)
			}
			text.Reset()
			return list
		}
		large := make([]byte, maxMessage)
		for range 1000 {
			c.say(slog.LevelWarn, "malformed update", "message", large, "cause", "x")
		}
		got := lines()
		if want := `WARN msg="malformed update" cause=x message="` + strings.Repeat("00", complaintBytes) + ` and 3840 bytes"`; len(got) != complaintLines || got[0] != want {
			t.Errorf("%d lines, the first %s\nwant %s", len(got), got[0], want)
		}
		time.Sleep(complaintEvery)
		if got := lines(); len(got) != 1 || got[0] != `WARN msg="more malformed input, not logged" messages=995` {
			t.Errorf("afterwards %q", got)
		}
		c.say(slog.LevelError, "panic while reading an attribute", "attribute", []byte{1, 2}, "panic", "y")
		if got := lines(); len(got) != 1 || got[0] != `ERROR msg="panic while reading an attribute" panic=y attribute=0102` {
			t.Errorf("later %q", got)
		}
		time.Sleep(2 * complaintEvery)
		for range complaintLines {
			c.say(slog.LevelWarn, "malformed update", "message", nil)
		}
		if got := lines(); len(got) != complaintLines {
			t.Errorf("in a new interval %d lines", len(got))
		}
	})
}

// A bad OPEN is answered by its NOTIFICATION, and the peer rests for 1, 2, 4 s.
func TestBadOpen(t *testing.T) {
	raw := func(at int, b ...byte) []byte {
		m := theirOpen(nil)
		copy(m[headerLen+at:], b)
		return m
	}
	parameter := theirOpen(nil)
	parameter[headerLen+10] = 1
	for name, c := range map[string]struct {
		message       []byte
		code, subcode uint8
		words         string
	}{
		"version":    {raw(0, 3), 2, 1, "unsupported BGP version 3"},
		"AS":         {theirOpen(func(o *open) { o.as = 64512 }), 2, 2, "bad peer AS 64512"},
		"identifier": {theirOpen(func(o *open) { o.id = addr(usID) }), 2, 3, "bad BGP identifier " + usID},
		"zero":       {theirOpen(func(o *open) { o.id = addr("0.0.0.0") }), 2, 3, "bad BGP identifier 0.0.0.0"},
		"parameter":  {parameter, 2, 4, "unknown OPEN parameter 1"},
		"hold time":  {theirOpen(func(o *open) { o.hold = 2 * time.Second }), 2, 6, "unacceptable hold time 2s"},
		"families":   {theirOpen(func(o *open) { o.families = [2]bool{false, true} }), 2, 7, "no common address family"},
		"marker":     {append([]byte{0}, theirOpen(nil)[1:]...), 1, 1, "message without marker"},
		"length":     {append(message(1), make([]byte, 10)...), 1, 2, "message of type 1 with length 19"},
		"type":       {message(9), 1, 3, "unknown message type 9"},
		"keepalive":  {keepalive(), 5, 1, ""},
		"update":     {endOfRIB(IPv4).bytes, 5, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
				for _, retry := range []string{"1", "2", "4"} {
					r := <-g.dialled
					r.expect(codec.BGP_MSG_OPEN)
					r.send(c.message)
					if c.words != "" {
						g.words("Idle: " + c.words + ", retry in " + retry + " s")
					}
					r.notified(c.code, c.subcode)
				}
			})
		})
	}
}

// A connection that ends before the peer's OPEN is no error.
func TestClosedBeforeOpen(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := <-g.dialled
		_ = r.c.Close()
		g.words("Active: connection closed before OPEN")
		first := g.dials()[0]
		before := g.changes.Load()
		g.up(nil)
		// Connect, OpenSent, OpenConfirm, Established.
		if n := g.changes.Load() - before; n != 4 {
			t.Errorf("%d changes were told", n)
		}
		if gap := g.dials()[1] - first; gap != 100*time.Millisecond {
			t.Errorf("dialled again after %v", gap)
		}
	})
}

func TestUnexpectedMessages(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := <-g.dialled
		r.expect(codec.BGP_MSG_OPEN)
		r.send(theirOpen(nil))
		if st := g.session(); st.State != "OpenConfirm" {
			t.Errorf("state %s", st.State)
		}
		r.send(endOfRIB(IPv4).bytes)
		r.notified(5, 2)
		r = g.up(nil)
		r.expect(codec.BGP_MSG_UPDATE) // End-of-RIB
		r.send(theirOpen(nil))
		r.notified(5, 3)
	})
}

func TestHoldTimer(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		r := g.up(nil)
		r.expect(codec.BGP_MSG_UPDATE)
		for range 3 {
			time.Sleep(8 * time.Second)
			r.send(keepalive())
		}
		if st := g.session(); st.State != "Established" || st.HoldTime != 9*time.Second {
			t.Errorf("session %+v", st)
		}
		time.Sleep(9*time.Second - time.Millisecond)
		r.expect(0)
		time.Sleep(time.Millisecond)
		g.words("Active: hold timer expired")
		r.notified(4, 0)
	})
}

// KEEPALIVEs come every third of the hold time when nothing else is sent, and
// never when that is 0.
func TestKeepalives(t *testing.T) {
	for hold, want := range map[time.Duration]int{9 * time.Second: 11, 0: 1} {
		play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
			r := <-g.dialled
			r.expect(codec.BGP_MSG_OPEN)
			r.send(theirOpen(func(o *open) { o.hold = hold }), keepalive())
			count := 0
			for range 30 {
				time.Sleep(time.Second)
				if hold > 0 {
					r.send(keepalive())
				}
				synctest.Wait()
			drain:
				for {
					select {
					case in := <-r.in:
						if in.kind == codec.BGP_MSG_KEEPALIVE {
							count++
						}
					default:
						break drain
					}
				}
			}
			if count != want {
				t.Errorf("hold %v: %d keepalives in 30 s, want %d", hold, count, want)
			}
			if hold == 0 {
				time.Sleep(24 * time.Hour)
				g.words("Established")
			}
		})
	}
}

// The connection of the higher identifier stays, whoever is asked and however far the
// other one came; but the first, if the OPENs on it are exchanged and ours is not yet sent on
// the second.
func TestCollision(t *testing.T) {
	for _, id := range []string{"10.9.0.2", "10.9.0.99"} {
		theyWin := addr(id).Compare(addr(usID)) > 0
		change := func(o *open) { o.id = addr(id) }
		for _, far := range []string{"OpenSent", "OpenConfirm", "Established"} {
			for _, incomingFirst := range []bool{false, true} {
				t.Run(id+far, func(t *testing.T) {
					play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
						out := <-g.dialled
						out.expect(codec.BGP_MSG_OPEN)
						in := g.incoming("10.9.0.2")
						in.expect(0) // ours comes behind theirs
						first, second := out, in
						if incomingFirst {
							first, second = in, out
						}
						switch far {
						case "OpenConfirm":
							first.send(theirOpen(change))
						case "Established":
							first.send(theirOpen(change), keepalive())
						}
						if far != "OpenSent" && first == in {
							in.expect(codec.BGP_MSG_OPEN)
						}
						if far == "Established" {
							first.expect(codec.BGP_MSG_UPDATE)
						}
						if st := g.session(); st.State != far {
							t.Fatalf("state %s", st.State)
						}
						second.send(theirOpen(change))
						if far == "OpenSent" {
							first.send(theirOpen(change))
							if second == in {
								in.expect(codec.BGP_MSG_OPEN)
							}
						}
						winner, loser := out, in
						if theyWin && (far == "OpenSent") != (first == in) {
							winner, loser = in, out
						}
						loser.notified(6, 7)
						winner.send(keepalive())
						g.words("Established")
					})
				})
			}
		}
	}
}

// A peer that opens one connection after the other, and closes none, does not
// pile them up here.
func TestFloodOfConnections(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		var robots []*robot
		for range 100 {
			r := g.incoming("10.9.0.2")
			r.send(theirOpen(nil))
			robots = append(robots, r)
		}
		open := 0
		for _, r := range robots {
			ok := true
			for kind := uint8(1); ok && kind != 0; {
				kind, _, ok = r.next()
			}
			if ok {
				open++
			}
		}
		if open > maxLingering+2 {
			t.Errorf("%d connections are open", open)
		}
	})
}

// When one of two connections ends the other goes on.
func TestSecondConnectionTakesOver(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		out := <-g.dialled
		in := g.incoming("10.9.0.2")
		_ = out.c.Close()
		in.establish(nil)
		g.words("Established")
	})
}

func TestStrangerAndWrongAddress(t *testing.T) {
	p := robotPeer("10.9.0.2")
	p.LocalAddress = addr("10.9.0.77")
	p.Passive = true
	play(t, Config{}, []PeerConfig{p}, func(g *stage) {
		for _, a := range []string{"10.9.0.3", "10.9.0.2"} {
			r := g.incoming(a)
			r.over()
		}
		g.words("Active")
	})
}

func TestConfigureInPlace(t *testing.T) {
	p := robotPeer("10.9.0.2")
	play(t, Config{}, []PeerConfig{p}, func(g *stage) {
		r := g.up(withGR(false, true, false))
		r.expect(codec.BGP_MSG_UPDATE)
		q := p
		q.Description, q.ConnectRetry, q.HoldTime = "rack 4", time.Minute, 30*time.Second
		set := func(list ...PeerConfig) {
			if err := g.s.Configure(list); err != nil {
				t.Fatal(err)
			}
		}
		set(q, robotPeer("10.9.0.3"))
		time.Sleep(time.Second)
		r.expect(0)
		if all := g.s.Status(); len(all) != 2 || all[0].Description != "rack 4" || all[0].State != "Established" {
			t.Errorf("sessions %+v", all)
		}
		if what := p.ResetBy(q); what != "" {
			t.Errorf("reset by %s", what)
		}
		q.Families = []Family{IPv4, IPv6}
		if what := p.ResetBy(q); what != "families" {
			t.Errorf("reset by %q", what)
		}
		set(q)
		r.notified(6, 6)
		for len(g.dialled) > 1 {
			<-g.dialled // the one that 10.9.0.3 had
		}
		r = g.up(withGR(false, true, false))
		r.expect(codec.BGP_MSG_UPDATE)
		r.expect(codec.BGP_MSG_UPDATE)
		q.Shutdown = "maintenance till noon"
		set(q)
		g.words("Idle: shut down: maintenance till noon")
		if text := r.notified(6, 9); string(text[3:]) != q.Shutdown || text[0] != 6 || text[1] != 2 {
			t.Errorf("hard reset %x", text)
		}
		time.Sleep(time.Hour)
		if r := g.incoming("10.9.0.2"); r != nil {
			r.over()
		}
		q.Shutdown = ""
		set(q)
		r = g.up(nil)
		set()
		r.expect(codec.BGP_MSG_UPDATE)
		r.expect(codec.BGP_MSG_UPDATE)
		r.notified(6, 3)
		if all := g.s.Status(); len(all) != 0 {
			t.Errorf("sessions %+v", all)
		}
	})
}

func TestConfigErrors(t *testing.T) {
	s, err := New(Config{RouterID: addr("10.0.0.1"), AS: 64511})
	if err != nil {
		t.Fatal(err)
	}
	for want, p := range map[string]PeerConfig{
		"peer 0.0.0.0: not an address to connect to":                   {Address: addr("0.0.0.0"), AS: 1},
		"peer 10.0.0.2: AS 0: reserved":                                {Address: addr("10.0.0.2")},
		"peer 10.0.0.2: hold time 2s: neither 0 nor at least 3 s":      {Address: addr("10.0.0.2"), AS: 1, HoldTime: 2 * time.Second},
		"peer 10.0.0.2: hold time 3.5s: not whole seconds up to 65535": {Address: addr("10.0.0.2"), AS: 1, HoldTime: 3500 * time.Millisecond},
		"peer 10.0.0.2: local address fd00::1: of another family":      {Address: addr("10.0.0.2"), AS: 1, LocalAddress: addr("fd00::1")},
		"peer ::ffff:10.0.0.2: not an address to connect to":           {Address: addr("::ffff:10.0.0.2"), AS: 1},
	} {
		if err := s.Configure([]PeerConfig{p}); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if err := s.Configure([]PeerConfig{robotPeer("10.0.0.2"), robotPeer("10.0.0.2")}); err == nil {
		t.Error("a peer configured twice is taken")
	}
	for _, c := range []Config{{AS: 1}, {RouterID: addr("fd00::1"), AS: 1}, {RouterID: addr("10.0.0.1")}, {RouterID: addr("10.0.0.1"), AS: 1, RestartTime: 2 * time.Hour}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
