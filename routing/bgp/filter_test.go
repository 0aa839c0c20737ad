package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"netctl/datastore"
	"netctl/datastore/storetest"
	"netctl/routing"
)

// policy compiles a filter called f of one direction, that rejects the rest.
func policy(t *testing.T, d routing.Direction, rules ...string) *routing.Policy {
	t.Helper()
	list := storetest.FilterRules(t, rules...)
	f := routing.Filter{Name: "f", Spec: datastore.BGPFilterSpec{Import: list, ImportDefault: datastore.FilterReject, Export: list, ExportDefault: datastore.FilterReject}}
	return new(routing.Policies).Compile(d, []routing.Filter{f}, []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16")})
}

// TestFilters: what is taken and told by filters, how it is changed on the way, and that
// another filter is in force at once, in the running session.
func TestFilters(t *testing.T) {
	peers := []PeerConfig{bgpPeer("10.9.0.2", robotAS, nil), bgpPeer("10.9.0.4", 65004, nil), bgpPeer("10.9.0.5", 65005, nil), bgpPeer("10.9.0.6", 65005, nil)}
	peers[1].ImportFilter = policy(t, routing.Import, "reject prefix 10.41.0.0/16", "accept community 1:1 then local-pref 200 and prepend 2 and remove community 1:* and add community 64512:9",
		"accept prefix 10.0.0.0/8 le 32")
	peers[2].ExportFilter = policy(t, routing.Export, "accept source local then med 5 and prepend 2", "accept prefix 10.40.0.0/16 then med 7 and community no-export, 1:2:3")
	play(t, Config{}, peers, func(g *stage) {
		g.s.Originate(prefixes("10.65.0.0/26"), nil)
		c := perform(g, peers, nil)
		set := func() {
			t.Helper()
			if err := g.s.Configure(slices.Clone(peers)); err != nil {
				t.Fatal(err)
			}
			g.quiet()
		}
		us := " via " + usID + " path"
		own := "10.65.0.0/26" + us
		with := func() *attrs {
			return &attrs{rest: attached(Communities{Standard: []uint32{1<<16 | 1, 2<<16 | 2}}.wire())}
		}
		c.sends("10.9.0.4", with(), "10.40.0.0/16", "10.41.0.0/16")
		c.sends("10.9.0.4", &attrs{}, "10.42.0.0/16", "172.16.0.0/12")
		changed := " path 65004 65004 65004 pref 200 {Communities: 2:2, 64512:9}"
		c.knows("10.9.0.2", "10.40.0.0/16 via 10.9.0.4"+changed, "10.42.0.0/16 via 10.9.0.4 path 65004 pref 100", own+" pref 100")
		c.knows("10.9.0.5", "10.40.0.0/16"+us+" 64511 65004 65004 65004 med 7 {Communities: no-export} {LargeCommunity: [ 1:2:3]}", own+" 64511 64511 64511 med 5")
		c.knows("10.9.0.6", "10.40.0.0/16"+us+" 64511 65004 65004 65004 {Communities: 2:2, 64512:9}", "10.42.0.0/16"+us+" 64511 65004", own+" 64511")
		look := func(q Query, want ...string) {
			t.Helper()
			q.Limit = 100
			paths, _ := g.s.Look(q)
			var got []string
			for _, p := range paths {
				got = append(got, fmt.Sprintf("%v %v %d [%s] %v", p.Prefix, p.Peer, p.LocalPref, p.ASPath, p.Why))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%+v:\n%s\nwant\n%s", q, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		look(Query{View: ViewRejected}, "10.41.0.0/16 10.9.0.4 100 [65004] refused: filter f, import rule 1: reject prefix 10.41.0.0/16",
			"172.16.0.0/12 10.9.0.4 100 [65004] refused: filter f, import default: reject")
		look(Query{View: ViewRejected, Peer: addr("10.9.0.5")}, "10.42.0.0/16 10.9.0.4 100 [65004] not announced to it: filter f, export default: reject")
		look(Query{View: ViewReceived, Peer: addr("10.9.0.4"), Covers: addr("10.40.0.1")}, "10.40.0.0/16 10.9.0.4 100 [65004] best: the only one")
		look(Query{Covers: addr("10.40.0.1")}, "10.40.0.0/16 10.9.0.4 200 [65004 65004 65004] best: the only one")
		look(Query{View: ViewAdvertised, Peer: addr("10.9.0.5"), Prefix: prefixes("10.65.0.0/26")[0]}, "10.65.0.0/26 invalid IP 0 [64511 64511 64511] advertised")
		// What came is judged by another filter, by none, and again by that, without a word
		// of the peer; what is the same is not told again.
		first := peers[1].ImportFilter
		peers[1].ImportFilter = policy(t, routing.Import, "accept prefix 10.41.0.0/16, 172.16.0.0/12 then local-pref 50", "accept prefix 10.42.0.0/16")
		set()
		c.knows("10.9.0.2", "10.41.0.0/16 via 10.9.0.4 path 65004 pref 50 {Communities: 1:1, 2:2}", "10.42.0.0/16 via 10.9.0.4 path 65004 pref 100", own+" pref 100", "172.16.0.0/12 via 10.9.0.4 path 65004 pref 50")
		peers[1].ImportFilter = nil
		set()
		c.knows("10.9.0.2", "10.40.0.0/16 via 10.9.0.4 path 65004 pref 100 {Communities: 1:1, 2:2}", "10.41.0.0/16 via 10.9.0.4 path 65004 pref 100 {Communities: 1:1, 2:2}",
			"10.42.0.0/16 via 10.9.0.4 path 65004 pref 100", own+" pref 100", "172.16.0.0/12 via 10.9.0.4 path 65004 pref 100")
		peers[1].ImportFilter = first
		set()
		c.knows("10.9.0.2", "10.40.0.0/16 via 10.9.0.4"+changed, "10.42.0.0/16 via 10.9.0.4 path 65004 pref 100", own+" pref 100")
		// The peer says the same again, and then another thing.
		c.sends("10.9.0.4", with(), "10.40.0.0/16")
		g.quiet()
		c.robots["10.9.0.2"].expect(0)
		c.sends("10.9.0.4", &attrs{}, "10.40.0.0/16")
		c.knows("10.9.0.2", "10.40.0.0/16 via 10.9.0.4 path 65004 pref 100", "10.42.0.0/16 via 10.9.0.4 path 65004 pref 100", own+" pref 100")
		// Exports: withdrawn, changed, and all.
		c.robots["10.9.0.6"].heard(c.known["10.9.0.6"])
		peers[2].ExportFilter, peers[3].ExportFilter = policy(t, routing.Export, "accept pool any then med 5 and prepend 2"), policy(t, routing.Export, "reject")
		set()
		c.knows("10.9.0.5", own+" 64511 64511 64511 med 5")
		c.knows("10.9.0.6")
		peers[2].ExportFilter, peers[3].ExportFilter = nil, nil
		set()
		all := []string{"10.40.0.0/16" + us + " 64511 65004", "10.42.0.0/16" + us + " 64511 65004", own + " 64511"}
		c.knows("10.9.0.5", all...)
		c.knows("10.9.0.6", all...)
		for _, st := range g.s.Status() {
			if st.Established != 1 || st.State != "Established" {
				t.Errorf("session %+v", st)
			}
		}
		if st := g.s.Status()[1]; st.Received != 4 || st.Accepted != 2 {
			t.Errorf("received %d, accepted %d", st.Received, st.Accepted)
		}
	})
}

// TestFilterCommunitiesAreHeeded: what an import filter adds and takes away means what it
// does from a peer.
func TestFilterCommunitiesAreHeeded(t *testing.T) {
	peers := []PeerConfig{bgpPeer("10.9.0.2", robotAS, nil), bgpPeer("10.9.0.4", 65004, nil), bgpPeer("10.9.0.5", 65005, nil)}
	peers[1].ImportFilter = policy(t, routing.Import, "accept prefix 10.1.0.0/16 then add community no-export", "accept prefix 10.2.0.0/16 then remove community no-export",
		"accept prefix 10.3.0.0/16 then community blackhole", "accept prefix 10.4.0.0/16 then add community graceful-shutdown", "accept prefix 10.5.0.0/16 then add community graceful-shutdown and local-pref 9")
	play(t, Config{}, peers, func(g *stage) {
		c := perform(g, peers, nil)
		c.sends("10.9.0.4", &attrs{rest: attached(Communities{Standard: []uint32{NoExport}}.wire())}, "10.2.0.0/16")
		c.sends("10.9.0.4", &attrs{}, "10.1.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "10.5.0.0/16")
		g.has("10.1.0.0/16 via 10.9.0.4", "10.2.0.0/16 via 10.9.0.4", "10.3.0.0/16 via 0.0.0.0", "10.4.0.0/16 via 10.9.0.4", "10.5.0.0/16 via 10.9.0.4")
		from := " via 10.9.0.4 path 65004 pref "
		c.knows("10.9.0.2", "10.1.0.0/16"+from+"100 {Communities: no-export}", "10.2.0.0/16"+from+"100", "10.4.0.0/16"+from+"0 {Communities: planned-shut}", "10.5.0.0/16"+from+"9 {Communities: planned-shut}")
		us := " via " + usID + " path 64511 65004"
		c.knows("10.9.0.5", "10.2.0.0/16"+us, "10.4.0.0/16"+us+" {Communities: planned-shut}", "10.5.0.0/16"+us+" {Communities: planned-shut}")
		// Another filter, and the blackhole is a route again.
		peers[1].ImportFilter = nil
		_ = g.s.Configure(slices.Clone(peers))
		g.has("10.1.0.0/16 via 10.9.0.4", "10.2.0.0/16 via 10.9.0.4", "10.3.0.0/16 via 10.9.0.4", "10.4.0.0/16 via 10.9.0.4", "10.5.0.0/16 via 10.9.0.4")
	})
}

// TestFilterOfANewSession: a session that comes up just when its peer is given another
// filter has that one.
func TestFilterOfANewSession(t *testing.T) {
	reject := policy(t, routing.Export, "reject")
	for range 40 {
		p := bgpPeer("10.9.0.4", 65004, nil)
		play(t, Config{}, []PeerConfig{p}, func(g *stage) {
			g.s.Originate(prefixes("10.65.0.0/26"), nil)
			r := <-g.dialled
			r.as = p.AS
			r.expect(codec.BGP_MSG_OPEN)
			r.send(theirOpen(func(o *open) { o.as, o.id, o.as4 = p.AS, p.Address, true }))
			g.quiet()
			p.ExportFilter = reject
			_ = g.s.Configure([]PeerConfig{p})
			r.send(keepalive())
			if got := r.heard(map[string]string{}); len(got) > 0 {
				t.Errorf("told %q", got)
			}
		})
		if t.Failed() {
			return
		}
	}
}
