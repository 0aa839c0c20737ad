package bgp

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"netctl/routing"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// long is an UPDATE of so many bytes in all that announces a prefix.
func long(size int, prefix string) []byte {
	nlri := routing.Pack(netip.MustParsePrefix(prefix)).Append(nil)
	list := join(okOrigin, okPath, okNextHop, okPref)
	list = appendAttr(list, flagOptional|flagTransitive|flagPartial, 200, make([]byte, size-headerLen-4-4-len(list)-len(nlri)))
	return message(codec.BGP_MSG_UPDATE, updateBody(nil, list, nlri)...)
}

// TestExtendedMessages: messages of up to 65535 bytes, both ways, where the peer has
// the capability, too; else the length ends the session (RFC 8654, sections 4 and 5).
func TestExtendedMessages(t *testing.T) {
	var many []netip.Prefix
	for i := range 4000 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)}), 32))
	}
	for _, agreed := range []bool{false, true} {
		peers := []PeerConfig{robotPeer("10.9.0.2"), bgpPeer("10.9.0.4", 65004, nil)}
		play(t, Config{}, peers, func(g *stage) {
			g.s.Originate(many, nil)
			other := g.incoming("10.9.0.4")
			other.as = 65004
			other.establish(func(o *open) { o.as, o.id = 65004, addr("10.9.0.4") })
			r := g.incoming("10.9.0.2")
			r.establish(func(o *open) { o.extended = agreed })
			longest := 0
			for kind, body, _ := r.next(); kind == codec.BGP_MSG_UPDATE; kind, body, _ = r.next() {
				longest = max(longest, headerLen+len(body))
			}
			if agreed && longest < 20000 || !agreed && longest > maxMessage {
				t.Errorf("agreed %v: longest message %d", agreed, longest)
			}
			r.send(long(maxMessage, "10.1.0.0/26"))
			g.has("10.1.0.0/26 via 10.9.0.2")
			r.send(long(maxMessage+1, "10.2.0.0/26"))
			if !agreed {
				if data := r.notified(1, 2); !slices.Equal(data, []byte{0x10, 0x01}) {
					t.Errorf("data %x", data)
				}
				return
			}
			// What does not fit into a message to others is not told them.
			known := map[netip.Prefix]netip.Addr{}
			other.told(known)
			r.send(long(maxExtended, "10.1.0.0/26"))
			g.has("10.1.0.0/26 via 10.9.0.2", "10.2.0.0/26 via 10.9.0.2")
			other.told(known)
			if known[netip.MustParsePrefix("10.1.0.0/26")].IsValid() || len(known) != len(many) {
				t.Errorf("told %d prefixes", len(known))
			}
			// OPENs stay short, whatever was agreed.
			if _, _, f := frame(message(codec.BGP_MSG_OPEN, make([]byte, maxMessage)...), maxExtended); f == nil || f.subcode != 2 {
				t.Errorf("a long OPEN: %v", f)
			}
			r.send(append(keepalive()[:16], 0, 20, 4, 0))
			r.notified(1, 2)
		})
	}
}

// refreshes are the messages up to the next pause: "begin ipv4", an UPDATE's outcome,
// "end ipv4".
func (r *robot) refreshes() (list []string) {
	r.t.Helper()
	d := testDecoder(false)
	d.localIP, d.routerID = addr("10.9.0.2"), addr("10.9.0.250")
	for {
		switch kind, body, _ := r.next(); kind {
		case codec.BGP_MSG_UPDATE:
			list = append(list, outcome(d, body))
		case codec.BGP_MSG_ROUTE_REFRESH:
			f, _ := familyFrom(uint16(body[0])<<8|uint16(body[1]), body[3])
			list = append(list, map[uint8]string{refreshRequest: "request ", refreshBegin: "begin ", refreshEnd: "end of refresh "}[body[2]]+f.String())
		default:
			return list
		}
	}
}

func (r *robot) sees(want ...string) {
	r.t.Helper()
	if got := r.refreshes(); !slices.Equal(got, want) {
		r.t.Errorf("got %q, want %q", got, want)
	}
}

// enhanced is a peer with both capabilities that route refresh needs, and graceful restart.
func enhanced(o *open) {
	withGR(false, true, true)(o)
	o.refresh, o.enhanced = true, true
}

// TestEnhancedRefresh: what a peer asks to be told again stands between BoRR and EoRR,
// and of what it tells again between them the rest is withdrawn (RFC 7313, section 4).
func TestEnhancedRefresh(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		r := g.up(enhanced)
		own := "announce 10.0.0.0/26"
		r.sees(own, "end ipv4")
		r.send(routeRefresh(IPv4, refreshRequest))
		r.sees("begin ipv4", own, "end of refresh ipv4")
		// Before the peer's own End-of-RIB its BoRR means nothing, and so does a lone EoRR.
		r.send(announce("10.9.0.2", "10.1.0.0/26", "10.1.0.64/26"), routeRefresh(IPv4, refreshBegin), routeRefresh(IPv4, refreshEnd))
		g.has(bothRoutes...)
		r.send(endOfRIB(IPv4).bytes, routeRefresh(IPv4, refreshEnd), routeRefresh(IPv4, 3), message(codec.BGP_MSG_ROUTE_REFRESH, 0, 1, 9, 1, 1, 1))
		g.has(bothRoutes...)
		// What is not repeated stays in use meanwhile. A BoRR begins anew.
		r.send(routeRefresh(IPv4, refreshBegin), announce("10.9.0.2", "10.1.0.64/26"), routeRefresh(IPv4, refreshBegin), announce("10.9.0.2", "10.1.0.0/26"))
		g.has(bothRoutes...)
		r.send(routeRefresh(IPv4, refreshEnd))
		g.has(oneRoute...)
		if d := g.k.deletions(); len(d) != 1 {
			t.Errorf("deleted %v", d)
		}
		// One that does not end what it began is given a while.
		r.send(routeRefresh(IPv4, refreshBegin))
		end := time.Now().Add(repeatTime)
		for time.Until(end) > time.Second {
			time.Sleep(time.Second)
			r.send(keepalive())
		}
		g.has(oneRoute...)
		time.Sleep(2 * time.Second)
		g.has()
		r.refreshes()
		if err := g.s.Refresh(addr("10.9.0.2")); err != nil {
			t.Error(err)
		}
		r.sees("request ipv4")
		if err := g.s.Refresh(addr("10.9.0.3")); err == nil {
			t.Error("a session that is not there was asked")
		}
		// Nothing of a session that is over is to be repeated in the next.
		r.send(announce("10.9.0.2", "10.1.0.0/26"), routeRefresh(IPv4, refreshBegin))
		_ = r.c.Close()
		r = g.up(enhanced)
		r.send(announce("10.9.0.2", "10.1.0.0/26"), endOfRIB(IPv4).bytes, routeRefresh(IPv4, refreshEnd))
		g.has(oneRoute...)
		r.sees(own, "end ipv4")
		r.send(message(codec.BGP_MSG_ROUTE_REFRESH, 0, 1, 1, 1, 0))
		if data := r.notified(7, 1); !slices.Equal(data, message(codec.BGP_MSG_ROUTE_REFRESH, 0, 1, 1, 1, 0)) {
			t.Errorf("data %x", data)
		}
	})
}

// TestEnhancedRefreshBehind: a peer that falls behind while it is told everything again
// has it all before the EoRR, and a further request is answered when it has caught up.
func TestEnhancedRefreshBehind(t *testing.T) {
	play(t, Config{}, []PeerConfig{robotPeer("10.9.0.2")}, func(g *stage) {
		g.s.Originate(prefixes("10.0.0.0/26"), nil)
		r := g.up(enhanced)
		own := "announce 10.0.0.0/26"
		r.sees(own, "end ipv4")
		var s *session
		full := func(by int) { // as if so much waited for the peer
			s.conn.mu.Lock()
			s.conn.size += by
			s.conn.mu.Unlock()
		}
		g.s.ask(func() {
			s = g.s.rib.peers[addr("10.9.0.2")].session
			full(queueLimit)
			g.s.rib.refresh(s, IPv4)
			if s.behind == nil {
				t.Error("the peer keeps up")
			}
		})
		r.sees("begin ipv4")
		r.send(routeRefresh(IPv4, refreshRequest))
		time.Sleep(5 * refreshPause / 2)
		r.sees()
		g.s.ask(func() { full(-queueLimit); g.s.rib.drained(s) })
		r.sees(own, "end of refresh ipv4")
		time.Sleep(2 * refreshPause)
		r.sees("begin ipv4", own, "end of refresh ipv4")
		time.Sleep(2 * refreshPause)
		r.sees()
	})
}
