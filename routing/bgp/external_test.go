package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// heard is what a robot was told, as lines "prefix via hop path 1 2 pref 100 med 3", in
// order of prefixes; a withdrawal takes the line away. Attributes are read by the codec.
func (r *robot) heard(known map[string]string) []string {
	r.t.Helper()
	for {
		kind, body, _ := r.next()
		if kind != codec.BGP_MSG_UPDATE {
			break
		}
		m, err := codec.ParseBGPBody(&codec.BGPHeader{Type: kind, Len: uint16(headerLen + len(body))}, body)
		if err != nil {
			r.t.Fatal(err)
		}
		u := m.Body.(*codec.BGPUpdate)
		if ok, _ := u.IsEndOfRib(); ok {
			r.ends++
		}
		line := ""
		for _, a := range u.PathAttributes {
			switch a := a.(type) {
			case *codec.PathAttributeNextHop:
				line = " via " + a.Value.String() + line
			case *codec.PathAttributeAsPath:
				line += " path" + strings.TrimRight(" "+codec.AsPathString(a), " ")
			case *codec.PathAttributeLocalPref:
				line += fmt.Sprintf(" pref %d", a.Value)
			case *codec.PathAttributeMultiExitDisc:
				line += fmt.Sprintf(" med %d", a.Value)
			case *codec.PathAttributeCommunities, *codec.PathAttributeLargeCommunities:
				line += " " + a.String()
			}
		}
		for _, p := range u.WithdrawnRoutes {
			delete(known, p.String())
		}
		for _, p := range u.NLRI {
			known[p.String()] = p.String() + line
		}
	}
	lines := []string{}
	for _, l := range known {
		lines = append(lines, l)
	}
	slices.Sort(lines)
	return lines
}

// company is a stage with one robot a peer, each known by its address.
type company struct {
	*stage
	robots map[string]*robot
	known  map[string]map[string]string
}

func perform(g *stage, peers []PeerConfig, change func(PeerConfig, *open)) *company {
	c := &company{g, map[string]*robot{}, map[string]map[string]string{}}
	for _, p := range peers {
		a := p.Address.String()
		r := g.incoming(a)
		r.as = p.AS
		r.establish(func(o *open) {
			o.as, o.id, o.as4 = p.AS, p.Address, true
			if change != nil {
				change(p, o)
			}
		})
		c.robots[a], c.known[a] = r, map[string]string{}
	}
	return c
}

// quiet waits until everybody waits.
func (g *stage) quiet() { synctest.Wait() }

func (c *company) knows(who string, want ...string) {
	c.t.Helper()
	if got := c.robots[who].heard(c.known[who]); !slices.Equal(got, append([]string{}, want...)) {
		c.t.Errorf("%s knows\n%q, want\n%q", who, got, want)
	}
}

// sends announces with attributes as a peer of another AS.
func (c *company) sends(who string, a *attrs, list ...string) {
	c.t.Helper()
	r := c.robots[who]
	look := outlook{as4: true, external: r.as != robotAS, localAS: r.as, nextHop: [2]netip.Addr{addr(who)}}
	b, ok := look.announce(a, bare(prefixes(list...)), IPv4)
	if !ok {
		c.t.Fatal("does not fit")
	}
	r.send(b.bytes)
}

func bgpPeer(a string, as uint32, change func(*PeerConfig)) PeerConfig {
	p := robotPeer(a)
	p.AS = as
	if change != nil {
		change(&p)
	}
	return p
}

// TestExternal holds what goes over eBGP sessions against RFC 4271, sections 5.1 and 9.1:
// the path grows by this side's AS, the next hop is this side unless it is to be kept,
// LOCAL_PREF and MED stay inside, and what came from outside goes nowhere.
func TestExternal(t *testing.T) {
	const wide = 4200000001
	peers := []PeerConfig{
		bgpPeer("10.9.0.2", robotAS, nil),
		bgpPeer("10.9.0.3", robotAS, func(p *PeerConfig) { p.NextHop = NextHopThisSide }),
		bgpPeer("10.9.0.4", 65004, nil),
		bgpPeer("10.9.0.5", wide, func(p *PeerConfig) { p.NextHop = NextHopUnchanged }),
		bgpPeer("10.9.0.6", 65006, func(p *PeerConfig) { p.LocalAS, p.OwnOnly = wide+1, true }),
		bgpPeer("10.9.0.7", 65007, func(p *PeerConfig) { p.Outside = true }),
	}
	play(t, Config{}, peers, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		c := perform(g, peers, nil)
		own := "10.0.0.0/26 via " + usID + " path"
		c.knows("10.9.0.2", own+" pref 100")
		c.knows("10.9.0.4", own+" 64511")
		c.knows("10.9.0.5", own+" 64511")
		c.knows("10.9.0.6", fmt.Sprintf("%s %d", own, wide+1))
		// From a node: to the peers of other ASes.
		c.sends("10.9.0.2", &attrs{nextHop: addr("10.9.0.2"), localPref: 200, med: 7, hasMED: true}, "10.1.0.0/26")
		c.knows("10.9.0.3", own+" pref 100")
		c.knows("10.9.0.4", own+" 64511", "10.1.0.0/26 via "+usID+" path 64511")
		c.knows("10.9.0.5", own+" 64511", "10.1.0.0/26 via 10.9.0.2 path 64511")
		c.knows("10.9.0.6", fmt.Sprintf("%s %d", own, wide+1))
		// From another AS, with what is to be ignored: to everybody, by each one's rules.
		c.sends("10.9.0.5", &attrs{localPref: 700, med: 9, hasMED: true}, "10.5.0.0/16")
		five := fmt.Sprintf(" path %d", wide)
		c.knows("10.9.0.2", own+" pref 100", "10.5.0.0/16 via 10.9.0.5"+five+" pref 100")
		c.knows("10.9.0.3", own+" pref 100", "10.5.0.0/16 via "+usID+five+" pref 100")
		c.knows("10.9.0.4", own+" 64511", "10.1.0.0/26 via "+usID+" path 64511", "10.5.0.0/16 via "+usID+" path 64511"+five[5:])
		// From a peer outside: to nobody. A loop: never here.
		c.sends("10.9.0.7", &attrs{}, "10.7.0.0/16")
		loop := func(as uint32) *attrs {
			return &attrs{path: []segment{{codec.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{65099, as}}}}
		}
		c.sends("10.9.0.4", loop(64511), "10.41.0.0/16")
		c.sends("10.9.0.6", loop(64511), "10.61.0.0/16") // this speaker's, which the session does not speak as
		c.sends("10.9.0.6", loop(wide+1), "10.62.0.0/16")
		c.sends("10.9.0.6", loop(wide), "10.63.0.0/16")
		g.has("10.1.0.0/26 via 10.9.0.2", "10.5.0.0/16 via 10.9.0.5", "10.63.0.0/16 via 10.9.0.6", "10.7.0.0/16 via 10.9.0.7")
		c.knows("10.9.0.6", fmt.Sprintf("%s %d", own, wide+1))
		c.knows("10.9.0.4", own+" 64511", "10.1.0.0/26 via "+usID+" path 64511", "10.5.0.0/16 via "+usID+" path 64511"+five[5:],
			"10.63.0.0/16 via "+usID+" path 64511 65006 65099"+five[5:])
	})
}

// TestExternalChanges: what is announced, and how, changes in a running session, which
// is told the difference; another local AS is another session.
func TestExternalChanges(t *testing.T) {
	peers := []PeerConfig{bgpPeer("10.9.0.2", robotAS, nil), bgpPeer("10.9.0.4", 65004, nil), bgpPeer("10.9.0.5", 65005, nil)}
	play(t, Config{}, peers, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		c := perform(g, peers, nil)
		c.sends("10.9.0.2", &attrs{nextHop: addr("10.9.0.2")}, "10.1.0.0/26")
		own, learnt := "10.0.0.0/26 via "+usID+" path 64511", "10.1.0.0/26 via "+usID+" path 64511"
		c.knows("10.9.0.4", own, learnt)
		set := func(change func(*PeerConfig)) {
			t.Helper()
			change(&peers[1])
			if err := g.s.Configure(slices.Clone(peers)); err != nil {
				t.Fatal(err)
			}
			g.session()
		}
		set(func(p *PeerConfig) { p.OwnOnly = true })
		c.knows("10.9.0.4", own)
		set(func(p *PeerConfig) { p.OwnOnly, p.NextHop = false, NextHopUnchanged })
		c.knows("10.9.0.4", own, "10.1.0.0/26 via 10.9.0.2 path 64511")
		// Twice before anything is told.
		peers[1].OwnOnly = true
		_ = g.s.Configure(slices.Clone(peers))
		set(func(p *PeerConfig) { p.NextHop = NextHopUsual })
		c.knows("10.9.0.4", own)
		set(func(p *PeerConfig) { p.OwnOnly, p.Description, p.TTL, p.Passive = false, "x", 7, true })
		c.knows("10.9.0.4", own, learnt)
		c.knows("10.9.0.5", own, learnt)
		for _, st := range g.s.Status() {
			if st.Established != 1 || st.State != "Established" || st.Peer == addr("10.9.0.4") && st.Sent != 2 {
				t.Errorf("session %+v", st)
			}
		}
		c.robots["10.9.0.4"].expect(0)
		if n := c.robots["10.9.0.4"].ends; n != 1 {
			t.Errorf("%d End-of-RIBs", n)
		}
		// About to go: everything else is to be preferred.
		set(func(p *PeerConfig) { p.Draining = true })
		gone := " {Communities: planned-shut}"
		c.knows("10.9.0.4", own+gone, learnt+gone)
		c.knows("10.9.0.2", "10.0.0.0/26 via "+usID+" path pref 100")
		peers[0].Draining = true
		set(func(p *PeerConfig) { p.Draining = false })
		c.knows("10.9.0.4", own, learnt)
		c.knows("10.9.0.2", "10.0.0.0/26 via "+usID+" path pref 0"+gone)
		c.robots["10.9.0.4"].expect(0)
		set(func(p *PeerConfig) { p.LocalAS = 65400 })
		c.robots["10.9.0.4"].notified(6, 6)
		if st := g.s.Status()[1]; st.Reason != "configuration change: local AS" {
			t.Errorf("session %+v", st)
		}
	})
}

// TestOutsideMultipath: a prefix of a pool from several nodes has one next hop and is a
// conflict; from several routers outside it has them all.
func TestOutsideMultipath(t *testing.T) {
	outside := func(p *PeerConfig) { p.Outside = true }
	peers := []PeerConfig{bgpPeer("10.9.0.4", 65004, outside), bgpPeer("10.9.0.5", 65004, outside), bgpPeer("10.9.0.6", 65004, nil), bgpPeer("10.9.0.7", 65004, nil)}
	play(t, Config{SinglePath: func(p netip.Prefix) bool { return p.Addr().As4()[1] == 1 }}, peers, func(g *stage) {
		c := perform(g, peers, nil)
		for i, p := range []string{"10.1.0.0/26", "10.2.0.0/16"} {
			for _, who := range []string{"10.9.0.4", "10.9.0.5", "10.9.0.6", "10.9.0.7"} {
				if i == 1 || who < "10.9.0.6" {
					c.sends(who, &attrs{}, p)
				}
			}
		}
		c.sends("10.9.0.6", &attrs{}, "10.1.0.64/26")
		c.sends("10.9.0.7", &attrs{}, "10.1.0.64/26")
		c.sends("10.9.0.4", &attrs{}, "10.1.0.128/26")
		c.sends("10.9.0.6", &attrs{}, "10.1.0.128/26")
		g.has("10.1.0.0/26 via 10.9.0.4 10.9.0.5", "10.1.0.128/26 via 10.9.0.4", "10.1.0.64/26 via 10.9.0.6", "10.2.0.0/16 via 10.9.0.4 10.9.0.5 10.9.0.6 10.9.0.7")
		if got := fmt.Sprint(g.s.Conflicts()); got != "[{10.1.0.64/26 [10.9.0.6 10.9.0.7]}]" {
			t.Errorf("conflicts %s", got)
		}
	})
}

// TestPrefixWarning: what nears the limit is said, and where that is all the limit does
// the session stays.
func TestPrefixWarning(t *testing.T) {
	p := bgpPeer("10.9.0.2", robotAS, func(p *PeerConfig) { p.PrefixLimit, p.PrefixWarning, p.LimitWarns = 3, 2, true })
	play(t, Config{}, []PeerConfig{p}, func(g *stage) {
		r := g.up(nil)
		r.send(announce("10.9.0.2", "10.1.0.0/26"))
		if g.session().Full {
			t.Error("full with one prefix")
		}
		r.send(announce("10.9.0.2", "10.1.0.64/26", "10.1.0.128/26", "10.1.0.192/26"))
		if st := g.session(); !st.Full || st.State != "Established" || st.Received != 4 {
			t.Errorf("session %+v", st)
		}
		r.send(withdrawal("10.1.0.64/26", "10.1.0.128/26", "10.1.0.192/26"))
		if g.session().Full {
			t.Error("still full")
		}
		r.send(announce("10.9.0.2", "10.1.0.64/26"))
		p.PrefixWarning = 0
		_ = g.s.Configure([]PeerConfig{p})
		if g.session().Full {
			t.Error("full without a bound")
		}
	})
}

// TestKeepaliveTime: KEEPALIVEs come as often as configured, or more often where the
// hold time needs it.
func TestKeepaliveTime(t *testing.T) {
	for _, c := range []struct {
		hold, keepalive time.Duration
		want            int
	}{{9 * time.Second, time.Second, 8}, {9 * time.Second, time.Minute, 2}, {12 * time.Second, 0, 2}, {0, time.Second, 0}} {
		p := bgpPeer("10.9.0.2", robotAS, func(p *PeerConfig) { p.HoldTime, p.KeepaliveTime = c.hold, c.keepalive })
		play(t, Config{}, []PeerConfig{p}, func(g *stage) {
			g.up(nil)
			before := g.session().MessagesOut
			time.Sleep(8500 * time.Millisecond)
			if got := int(g.session().MessagesOut - before); got != c.want {
				t.Errorf("%+v: %d messages in 8.5 s", c, got)
			}
		})
	}
}

// TestCommunities: those of own prefixes and of peers are added to what a peer is told,
// changes of either come in the running session, and the well-known ones do what they say.
func TestCommunities(t *testing.T) {
	in, ext := bgpPeer("10.9.0.2", robotAS, nil), bgpPeer("10.9.0.4", 65004, nil)
	peers := []PeerConfig{in, ext, bgpPeer("10.9.0.5", 65005, func(p *PeerConfig) {
		p.Communities = Communities{Standard: []uint32{65005<<16 | 2, NoExport, 65005<<16 | 1, NoExport}, Large: [][3]uint32{{4200000001, 2, 3}, {1, 2, 3}}}
	})}
	tags := map[netip.Prefix]Communities{}
	c := Config{Tags: func(p netip.Prefix) Communities { return tags[p] }}
	both := []string{"10.0.0.0/26", "10.0.0.64/26"}
	play(t, c, peers, func(g *stage) {
		tags[prefixes(both[1])[0]] = Communities{Standard: []uint32{64511<<16 | 9}}
		g.s.Originate(prefixes(both...), nil)
		c := perform(g, peers, nil)
		us := " via " + usID + " path"
		c.knows("10.9.0.2", both[0]+us+" pref 100", both[1]+us+" pref 100 {Communities: 64511:9}")
		c.knows("10.9.0.5", both[0]+us+" 64511 {Communities: 65005:1, 65005:2, no-export} {LargeCommunity: [ 1:2:3, 4200000001:2:3]}",
			both[1]+us+" 64511 {Communities: 64511:9, 65005:1, 65005:2, no-export} {LargeCommunity: [ 1:2:3, 4200000001:2:3]}")
		// Own prefixes that are to stay, or are about to go.
		retag := func(c Communities) {
			t.Helper()
			g.s.order(func() { tags[prefixes(both[1])[0]] = c })
			g.s.Retag()
			g.quiet()
		}
		c.knows("10.9.0.4", both[0]+us+" 64511", both[1]+us+" 64511 {Communities: 64511:9}")
		retag(Communities{Standard: []uint32{NoExport}})
		c.knows("10.9.0.4", both[0]+us+" 64511")
		c.knows("10.9.0.2", both[0]+us+" pref 100", both[1]+us+" pref 100 {Communities: no-export}")
		retag(Communities{Standard: []uint32{NoAdvertise}})
		c.knows("10.9.0.2", both[0]+us+" pref 100")
		retag(Communities{Standard: []uint32{GracefulShutdown}})
		c.knows("10.9.0.2", both[0]+us+" pref 100", both[1]+us+" pref 0 {Communities: planned-shut}")
		peers[2].Communities = Communities{}
		_ = g.s.Configure(slices.Clone(peers))
		g.quiet()
		c.knows("10.9.0.5", both[0]+us+" 64511", both[1]+us+" 64511 {Communities: planned-shut}")
		// What peers say with them.
		with := func(n uint32) *attrs { return &attrs{rest: attached(Communities{Standard: []uint32{n}}.wire())} }
		c.sends("10.9.0.5", with(NoExport), "10.1.0.0/26")
		c.sends("10.9.0.5", with(NoExportSubconfed), "10.2.0.0/26")
		c.sends("10.9.0.5", with(NoAdvertise), "10.3.0.0/26")
		c.sends("10.9.0.5", with(Blackhole), "10.4.0.0/26")
		c.sends("10.9.0.5", with(GracefulShutdown), "10.5.0.0/26")
		c.sends("10.9.0.4", &attrs{path: []segment{{codec.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{65099, 65098}}}}, "10.5.0.0/26")
		g.has("10.1.0.0/26 via 10.9.0.5", "10.2.0.0/26 via 10.9.0.5", "10.3.0.0/26 via 10.9.0.5", "10.5.0.0/26 via 10.9.0.4")
		c.knows("10.9.0.2", both[0]+us+" pref 100", both[1]+us+" pref 0 {Communities: planned-shut}",
			"10.1.0.0/26 via 10.9.0.5 path 65005 pref 100 {Communities: no-export}", "10.2.0.0/26 via 10.9.0.5 path 65005 pref 100 {Communities: no-export-subconfed}",
			"10.5.0.0/26 via 10.9.0.4 path 65004 65099 65098 pref 100")
		c.knows("10.9.0.4", both[0]+us+" 64511", both[1]+us+" 64511 {Communities: planned-shut}")
		if r := g.s.Status()[2].Refused; len(r) != 1 || r[0].Reason != "carries the community BLACKHOLE, which this peer may not use" {
			t.Errorf("refused %v", r)
		}
		peers[2].Blackhole = true
		_ = g.s.Configure(slices.Clone(peers))
		g.has("10.1.0.0/26 via 10.9.0.5", "10.2.0.0/26 via 10.9.0.5", "10.3.0.0/26 via 10.9.0.5", "10.4.0.0/26 via 0.0.0.0", "10.5.0.0/26 via 10.9.0.4")
		c.sends("10.9.0.5", with(Blackhole), "0.0.0.0/0")
		if r := g.s.Status()[2].Refused; len(r) != 1 || r[0].Reason != "carries the community BLACKHOLE, and would discard everything" {
			t.Errorf("refused %v", r)
		}
		c.robots["10.9.0.2"].expect(0)
	})
}
