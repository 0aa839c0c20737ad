package bgp

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// exaRoutes are announcements that no router makes, a line each.
const exaRoutes = `
route 10.1.0.0/26 next-hop 10.9.0.2 path-information 0.0.0.1 community [ 65010:1 no-export ] large-community [ 65010:1:2 ] extended-community [ target:65010:1 ] attribute [ 0x99 0xe0 0x0102 ];
route 10.1.0.0/26 next-hop 10.9.0.3 path-information 0.0.0.2 med 7 aggregator ( 65010:10.9.0.2 ) atomic-aggregate originator-id 10.9.0.77 cluster-list [ 10.9.0.78 ] local-preference 700;
route 10.2.0.0/26 next-hop 10.9.0.2 path-information 255.255.255.255 as-path [ 65010 LONG ];
route 10.3.0.0/26 next-hop 10.9.0.2 as-path [ 65010 64511 ];
route 10.4.0.0/26 next-hop 10.9.0.2 attribute [ 0x63 0x80 0x01 ];
route 10.5.0.0/26 next-hop 10.9.0.2 as-path [ 65011 ];
route 10.6.0.0/26 next-hop 10.9.0.1;
route 10.7.0.0/26 next-hop 10.9.0.2 attribute [ 0x08 0xc0 0x0102 ];
route 10.8.0.0/26 next-hop 10.9.0.2 community [ 65535:666 ];
route 10.9.128.0/26 next-hop 10.9.0.2 community [ 65535:0 ];
route 10.10.0.0/26 next-hop 10.9.0.2 attribute [ 0x01 0x40 0x09 ];
route 10.11.0.0/26 next-hop 10.9.0.2 community [ 65535:6 65535:7 ];
route fd81::/64 next-hop fd00:9::2 path-information 0.0.0.1;
route fd81::/64 next-hop fd00:9::3 path-information 0.0.0.2;
`

// TestExaBGP takes what ExaBGP sends: several paths with IDs in both families, attributes
// that are unknown, wrong or not for us, families that were not agreed; what can stand is
// there as it was sent, the rest is not, and the session stays.
func TestExaBGP(t *testing.T) {
	path, err := exec.LookPath("exabgp")
	if err != nil {
		t.Skip("exabgp is not installed")
	}
	a, b := newHost(t), newHost(t)
	wire(a, b, []string{ourAddress + "/24", ourAddress6 + "/64"}, []string{theirAddress + "/24", theirAddress6 + "/64"})
	k := &kernel{}
	s, err := New(Config{RouterID: addr(ourAddress), AS: 64511, Listen: []netip.AddrPort{netip.AddrPortFrom(addr(ourAddress), Port)}, Installer: k})
	if err != nil {
		t.Fatal(err)
	}
	a.settle(s)
	if err := s.Configure([]PeerConfig{{
		Address: addr(theirAddress), AS: 65010, LocalAddress: addr(ourAddress), Families: []Family{IPv4, IPv6}, NextHopSelf: []netip.Addr{addr(ourAddress6)},
		HoldTime: 9 * time.Second, Passive: true, SendPaths: -1, ReceivePaths: true,
	}}); err != nil {
		t.Fatal(err)
	}
	s.Originate(prefixes("10.0.0.0/26"), nil)
	run(t, s)
	long := make([]string, 300)
	for i := range long {
		long[i] = fmt.Sprint(65100 + i)
	}
	conf := write(t, t.TempDir(), "exabgp.conf", `neighbor `+ourAddress+` {
  router-id `+theirAddress+`; local-address `+theirAddress+`; local-as 65010; peer-as 64511; hold-time 9;
  family { ipv4 unicast; ipv6 unicast; ipv4 flow; ipv4 mpls-vpn; }
  capability { route-refresh enable; add-path send/receive; extended-message enable; graceful-restart 20; }
  static {`+strings.Replace(exaRoutes, "LONG", strings.Join(long, " "), 1)+`}
}
`)
	b.daemon("env", "exabgp.daemon.user=root", "exabgp.api.cli=false", "exabgp.tcp.attempts=0", path, conf)
	want := []string{
		"10.1.0.0/26 #1 via 10.9.0.2 pref 100 med 0 [65010:1 no-export 65010:1:2] used true",
		"10.1.0.0/26 #2 via 10.9.0.3 pref 100 med 7 [] used false",
		"10.11.0.0/26 #0 via 10.9.0.2 pref 100 med 0 [llgr-stale no-llgr] used true",
		"10.2.0.0/26 #4294967295 via 10.9.0.2 pref 100 med 0 [] used true",
		"10.4.0.0/26 #0 via 10.9.0.2 pref 100 med 0 [] used true",
		"10.8.0.0/26 #0 via 10.9.0.2 pref 100 med 0 [blackhole] used false",
		"10.9.128.0/26 #0 via 10.9.0.2 pref 0 med 0 [graceful-shutdown] used true",
		"fd81::/64 #1 via fd00:9::2 pref 100 med 0 [] used true",
		"fd81::/64 #2 via fd00:9::3 pref 100 med 0 [] used true",
	}
	got := []string{}
	look := func() []string {
		got = got[:0]
		found, _ := s.Look(Query{View: ViewReceived, Peer: addr(theirAddress), Limit: 99})
		for _, p := range found {
			got = append(got, fmt.Sprintf("%v #%d via %v pref %d med %d %v used %v", p.Prefix, p.ID, p.NextHop, p.LocalPref, p.MED, p.Communities, p.Used))
		}
		slices.Sort(got)
		return got
	}
	defer func() {
		if t.Failed() {
			t.Logf("here are\n%s\n%+v", strings.Join(got, "\n"), only(s))
		}
	}()
	eventually(t, "all that can stand is here", func() bool { return slices.Equal(look(), want) })
	st := only(s)
	if st.State != "Established" || st.Established != 1 || !slices.Contains(st.Heard, "extended messages") || !slices.Contains(st.Heard, "several paths of ipv4: takes and sends") {
		t.Errorf("session %+v", st)
	}
	if got := k.deletions(); len(got) > 0 {
		t.Errorf("deleted %v", got)
	}
}
