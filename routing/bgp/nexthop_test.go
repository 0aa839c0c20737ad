package bgp

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"netctl/routing"
)

// reach4 is an MP_REACH of IPv4 with a next hop and one prefix.
func reach4(hops ...string) []byte {
	var hop []byte
	for _, h := range hops {
		hop = append(hop, addr(h).AsSlice()...)
	}
	value := join([]byte{0, 1, 1, byte(len(hop))}, hop, []byte{0}, okNLRI)
	return join([]byte{0x80, 14, byte(len(value))}, value)
}

// TestNextHopsOfTheOtherFamily: which next hop of an MP_REACH is taken (RFC 8950, section
// 3; RFC 2545, section 3), over a session of global addresses and over one of a link.
func TestNextHopsOfTheOtherFamily(t *testing.T) {
	for _, c := range []struct {
		hops     []string
		crossing bool
		zone     string
		want     string
	}{
		{[]string{"fd00:9::2"}, true, "", "fd00:9::2"},
		{[]string{"fd00:9::2", "fe80::2"}, true, "", "fd00:9::2"},
		{[]string{"10.9.0.2"}, true, "", "10.9.0.2"},
		{[]string{"10.9.0.2"}, false, "", "10.9.0.2"},
		{[]string{"fd00:9::2"}, false, "", "reset 3/9"},
		{[]string{"fd00:9::2", "10.9.0.2"}, true, "", "reset 3/9"},
		{[]string{"fe80::2"}, true, "", "withdraw 10.1.0.0/26"},
		{[]string{"::ffff:10.9.0.2"}, true, "", "withdraw 10.1.0.0/26"},
		{[]string{"::", "fe80::2"}, true, "", "withdraw 10.1.0.0/26"},
		{[]string{"fe80::2"}, true, "eth0", "fe80::2%eth0"},
		{[]string{"fe80::2", "fe80::2"}, true, "eth0", "fe80::2%eth0"},
		{[]string{"::", "fe80::2"}, true, "eth0", "fe80::2%eth0"},
		{[]string{"fd00:9::2", "fe80::2"}, true, "eth0", "fe80::2%eth0"},
		{[]string{"fd00:9::2"}, true, "eth0", "fd00:9::2"},
		{[]string{"fd00:9::2", "::"}, true, "eth0", "fd00:9::2"},
		{[]string{"::", "::"}, true, "eth0", "withdraw 10.1.0.0/26"},
		{[]string{"fe80::1"}, true, "eth0", "withdraw 10.1.0.0/26"}, // this side
	} {
		d := testDecoder(false)
		d.crossing, d.zone = c.crossing, c.zone
		if c.zone != "" {
			d.localIP = addr("fe80::1%eth0")
		}
		body := updateBody(nil, join(reach4(c.hops...), okOrigin, okPath, okPref), nil)
		got := outcome(d, body)
		if got == "announce 10.1.0.0/26" {
			changes, _ := d.update(body)
			got = changes[0].attrs.nextHop.String()
		}
		if got != c.want {
			t.Errorf("%v, crossing %v, link %q: %s, want %s", c.hops, c.crossing, c.zone, got, c.want)
		}
	}
}

// TestNextHopsGoOut: what of a path is told to whom, as the codec reads it.
func TestNextHopsGoOut(t *testing.T) {
	six, link := addr("fd00:9::7"), addr("fe80::7%eth0")
	for _, c := range []struct {
		name   string
		look   outlook
		hop    netip.Addr // of the path; not valid: own
		prefix string
		want   string // "": not told
	}{
		{"own over IPv6", outlook{crossing: true, nextHop: [2]netip.Addr{six, six}}, netip.Addr{}, "10.1.0.0/26", "reach fd00:9::7"},
		{"own over a link", outlook{crossing: true, nextHop: [2]netip.Addr{link, link}}, netip.Addr{}, "10.1.0.0/26", "reach fe80::7"},
		{"own IPv6 over a link", outlook{nextHop: [2]netip.Addr{{}, link}}, netip.Addr{}, "fd80:1::/48", "reach fe80::7"},
		{"own with IPv4 at hand", outlook{crossing: true, nextHop: [2]netip.Addr{addr("10.9.0.1"), six}}, netip.Addr{}, "10.1.0.0/26", "10.9.0.1"},
		{"own to who cannot", outlook{nextHop: [2]netip.Addr{six, six}}, netip.Addr{}, "10.1.0.0/26", ""},
		{"kept", outlook{crossing: true, nextHop: [2]netip.Addr{addr("10.9.0.1")}}, addr("fd00:9::8"), "10.1.0.0/26", "reach fd00:9::8"},
		{"kept, to who cannot", outlook{nextHop: [2]netip.Addr{addr("10.9.0.1")}}, addr("fd00:9::8"), "10.1.0.0/26", ""},
		{"of a link, passed on", outlook{nextHop: [2]netip.Addr{addr("10.9.0.1")}, mode: NextHopUnchanged}, addr("fe80::8%eth1"), "10.1.0.0/26", "10.9.0.1"},
	} {
		a, p := &attrs{nextHop: c.hop, localPref: 100}, netip.MustParsePrefix(c.prefix)
		family := FamilyOf(p.Addr())
		c.look.as4, c.look.families = true, [2]bool{true, true}
		g := group{look: c.look, rib: &rib{}}
		got := ""
		best := &path{attrs: a}
		if g.export(&dest{key: routing.Pack(p), best: best}, best) != nil {
			b, ok := c.look.announce(a, bare([]netip.Prefix{p}), family)
			if !ok || b.messages != 1 {
				t.Fatalf("%s: %+v", c.name, b)
			}
			m, err := codec.ParseBGPMessage(b.bytes)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			u := m.Body.(*codec.BGPUpdate)
			for _, x := range u.PathAttributes {
				switch x := x.(type) {
				case *codec.PathAttributeNextHop:
					got += x.Value.String()
				case *codec.PathAttributeMpReachNLRI:
					got += "reach " + x.Nexthop.String()
					if len(x.Value) != 1 || x.Value[0].String() != c.prefix || len(u.NLRI) > 0 {
						t.Errorf("%s: %v", c.name, m)
					}
				}
			}
		}
		if got != c.want {
			t.Errorf("%s: told %q, want %q", c.name, got, c.want)
		}
	}
}

// TestExtendedNextHop: the capability is offered where IPv4 is, and IPv4 prefixes have
// IPv6 next hops, both ways, if both sides said it.
func TestExtendedNextHop(t *testing.T) {
	for _, both := range []bool{true, false} {
		t.Run(fmt.Sprint(both), func(t *testing.T) {
			c := robotPeer("fd00:9::2")
			c.Families, c.NextHopSelf = []Family{IPv4, IPv6}, []netip.Addr{addr("fd00:9::1")}
			play(t, Config{}, []PeerConfig{c}, func(g *stage) {
				g.s.Originate(prefixes("10.0.0.0/26"), nil)
				r := <-g.dialled
				ours, f := parseOpen(r.expect(codec.BGP_MSG_OPEN))
				if f != nil || !ours.crossing || !slices.Contains(ours.words(), "ipv6 next hops of ipv4") {
					t.Fatalf("our OPEN %+v, %v", ours, f)
				}
				r.send(theirOpen(func(o *open) { o.crossing = both }), keepalive())
				var updates []byte
				for {
					kind, body, _ := r.next()
					if kind != codec.BGP_MSG_UPDATE {
						break
					}
					updates = append(updates, body...)
				}
				if told := bytes.Contains(updates, join([]byte{0, 1, 1, 16}, addr("fd00:9::1").AsSlice(), []byte{0, 26, 10, 0, 0, 0})); told != both {
					t.Errorf("IPv4 over IPv6 is told: %v, want %v: %x", told, both, updates)
				}
				r.send(message(codec.BGP_MSG_UPDATE, updateBody(nil, join(reach4("fd00:9::2"), okOrigin, okPath, okPref), nil)...))
				if both {
					g.has("10.1.0.0/26 via fd00:9::2")
					r.send(withdrawal("10.1.0.0/26"))
				}
				g.has()
				if st := g.session(); strings.HasPrefix(st.State, "Est") != both {
					t.Errorf("session %s", st.Words(st.Since))
				}
			})
		})
	}
}
