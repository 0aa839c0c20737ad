package bgp

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// The sides of the tests below beside ourAddress and theirAddress: two clients of ours,
// and two of the other speaker.
var (
	ourClients   = []string{"10.9.0.11", "10.9.0.12"}
	theirClients = []string{"10.9.0.21", "10.9.0.22"}
)

// side6 is the IPv6 address of a side.
func side6(a string) string { return "fd00:9::" + a[strings.LastIndex(a, ".")+1:] }

// clientOf runs an engine on h that has one peer and announces prefixes.
func clientOf(t *testing.T, h *host, local, peer string, list ...string) *Speaker {
	t.Helper()
	s, err := New(Config{RouterID: addr(local), AS: 64511})
	if err != nil {
		t.Fatal(err)
	}
	h.settle(s)
	if err := s.Configure([]PeerConfig{{
		Address: addr(peer), AS: 64511, LocalAddress: addr(local), Families: []Family{IPv4, IPv6},
		NextHopSelf: []netip.Addr{addr(side6(local))}, HoldTime: 9 * time.Second, ConnectRetry: time.Second,
	}}); err != nil {
		t.Fatal(err)
	}
	s.Originate(prefixes(list...), nil)
	run(t, s)
	return s
}

// capable holds against another reflector what both sides' capabilities bring: several
// paths both ways in both families, long messages, routes that are told again, and a
// restart of it that loses none of that, nor does a long absence of either. knows lists its
// paths to a prefix by next hop, kept says that those of ours have the community LLGR_STALE;
// again asks for our routes anew, and proto is its mark in the kernel.
func capable(t *testing.T, theyAre func(*host) foreign, knows func(foreign, string) []string, kept func(foreign) bool, again, proto string) {
	a, b := newHost(t), newHost(t)
	wire(a, b, []string{ourAddress + "/24", ourAddress6 + "/64"}, []string{theirAddress + "/24", theirAddress6 + "/64"})
	for _, c := range slices.Concat(ourClients, theirClients) {
		a.ip("addr add " + c + "/24 dev eth0")
		a.ip("addr add " + side6(c) + "/64 dev eth0 nodad")
	}
	they := theyAre(b)
	k := &kernel{}
	peers := []PeerConfig{{
		Address: addr(theirAddress), AS: 64511, LocalAddress: addr(ourAddress), Families: []Family{IPv4, IPv6}, Aliases: []netip.Addr{addr(theirAddress6)},
		NextHopSelf: []netip.Addr{addr(ourAddress6)}, HoldTime: 9 * time.Second, ConnectRetry: time.Second, SendPaths: -1, ReceivePaths: true,
		LongLived: time.Minute,
	}}
	for _, c := range ourClients {
		peers = append(peers, PeerConfig{
			Address: addr(c), AS: 64511, LocalAddress: addr(ourAddress), Families: []Family{IPv4, IPv6}, NextHopSelf: []netip.Addr{addr(ourAddress6)},
			HoldTime: 9 * time.Second, Client: true, Passive: true,
		})
	}
	var many []netip.Prefix
	for i := range 2000 {
		many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64, byte(i >> 8), byte(i)}), 32))
	}
	begin := func(again bool) (s *Speaker, end func()) {
		t.Helper()
		s, err := New(Config{
			RouterID: addr(ourAddress), AS: 64511, Listen: []netip.AddrPort{netip.AddrPortFrom(addr(ourAddress), Port)}, Installer: k,
			RestartTime: 2 * time.Second, Restarting: again, ForwardingPreserved: map[Family]bool{IPv4: again, IPv6: again},
		})
		if err != nil {
			t.Fatal(err)
		}
		a.settle(s)
		if err := s.Configure(peers); err != nil {
			t.Fatal(err)
		}
		s.Originate(many, nil)
		return s, run(t, s)
	}
	s, end := begin(false)
	first := clientOf(t, a, ourClients[0], ourAddress, "10.5.0.0/26", "fd85::/64")
	clientOf(t, a, ourClients[1], ourAddress, "10.5.0.0/26", "fd85::/64")
	for _, c := range theirClients {
		clientOf(t, a, c, theirAddress, "10.6.0.0/26", "fd86::/64")
	}

	session := func() Session {
		for _, st := range s.Status() {
			if st.Peer == addr(theirAddress) {
				return st
			}
		}
		return Session{}
	}
	six := func(list []string) (out []string) {
		for _, c := range list {
			out = append(out, side6(c))
		}
		return out
	}
	theirPaths := func(prefix string, want []string) {
		t.Helper()
		got := []string{}
		defer func() {
			if t.Failed() {
				t.Logf("%s: %q", prefix, got)
			}
		}()
		eventually(t, fmt.Sprintf("their paths to %s are %q", prefix, want), func() bool { got = knows(they, prefix); return slices.Equal(got, want) })
	}
	mine := []string{
		"10.5.0.0/26 via " + strings.Join(ourClients, " "), "10.6.0.0/26 via " + strings.Join(theirClients, " "),
		"fd85::/64 via " + strings.Join(six(ourClients), " "), "fd86::/64 via " + strings.Join(six(theirClients), " "),
	}
	eventually(t, "all paths here", func() bool { return slices.Equal(k.text(), mine) })
	theirPaths("10.5.0.0/26", ourClients)
	theirPaths("fd85::/64", six(ourClients))
	theirPaths("10.64.7.207/32", []string{ourAddress})
	heard := session().Heard
	for _, what := range []string{"route refresh", "enhanced route refresh", "extended messages", "several paths of ipv4: takes and sends", "several paths of ipv6: takes and sends"} {
		if !slices.Contains(heard, what) {
			t.Errorf("heard %q, without %q", heard, what)
		}
	}

	// Told again from either side, nothing goes and nothing is lost.
	deleted := b.watch()
	in, out := session().UpdatesIn, session().UpdatesOut
	if err := s.Refresh(addr(theirAddress)); err != nil {
		t.Error(err)
	}
	eventually(t, "they told it again", func() bool { return session().UpdatesIn >= in+2 })
	they.ask(again)
	eventually(t, "we told it again", func() bool { return session().UpdatesOut >= out+4 })
	theirPaths("10.5.0.0/26", ourClients)
	// zebra deletes an IPv6 route to install it anew with a second next hop, which may be late.
	if got := slices.DeleteFunc(deleted(), func(line string) bool { return !strings.Contains(line, "10.64.") }); len(got) > 0 || len(k.deletions()) > 0 {
		t.Errorf("deleted at theirs %q, here %v", got, k.deletions())
	}

	// One path goes, the other stays.
	first.Originate(nil, prefixes("10.5.0.0/26", "fd85::/64"))
	theirPaths("10.5.0.0/26", ourClients[1:])
	theirPaths("fd85::/64", six(ourClients[1:]))

	// They restart: all their paths are kept, and then told again.
	before := session().Established
	they.restart()
	eventually(t, "the session is back", func() bool {
		st := session()
		return st.Established > before && st.State == "Established" && st.Stale == 0 && st.Received == 4
	})
	mine[0], mine[2] = "10.5.0.0/26 via "+ourClients[1], "fd85::/64 via "+side6(ourClients[1])
	eventually(t, "all paths here", func() bool { return slices.Equal(k.text(), mine) })
	if got := k.deletions(); len(got) > 0 {
		t.Errorf("deleted here %v", got)
	}
	theirPaths("10.5.0.0/26", ourClients[1:])

	// They are away for longer than their restart time.
	old := func() (n int) {
		found, _ := s.Look(Query{Prefix: netip.MustParsePrefix("10.6.0.0/26"), Limit: 9})
		for _, p := range found {
			if p.Stale && slices.Contains(p.Communities, "llgr-stale") {
				n++
			}
		}
		return n
	}
	they.stop()
	eventually(t, "their paths are kept for long", func() bool { return old() == 2 })
	if list, _ := s.Look(Query{View: ViewAdvertised, Peer: addr(ourClients[1]), Prefix: netip.MustParsePrefix("10.6.0.0/26"), Limit: 9}); len(list) > 0 {
		t.Errorf("told to a peer without the capability: %v", list)
	}
	they.restart()
	eventually(t, "the session is back after long", func() bool {
		st := session()
		return st.State == "Established" && st.Stale == 0 && st.Received == 4 && old() == 0
	})
	if got := k.deletions(); len(got) > 0 || !slices.Equal(k.text(), mine) {
		t.Errorf("deleted here %v, left %q", got, k.text())
	}
	// So is this side.
	theirPaths("10.64.7.207/32", []string{ourAddress})
	eventually(t, "their kernel has our routes", func() bool { return len(b.routes(proto)) > len(many) })
	deleted = b.watch()
	end()
	eventually(t, "they keep our paths for long", func() bool { return kept(they) })
	s, _ = begin(true)
	eventually(t, "they have our paths again", func() bool { return !kept(they) })
	theirPaths("10.64.7.207/32", []string{ourAddress})
	if got := slices.DeleteFunc(deleted(), func(line string) bool { return !strings.Contains(line, "10.64.") }); len(got) > 0 {
		t.Errorf("deleted at theirs: %q", got)
	}
}

func TestCapabilitiesBIRD(t *testing.T) {
	peer := func(name, address, more string) string {
		return `
protocol bgp ` + name + ` {
  local ` + theirAddress + ` as 64511;
  neighbor ` + address + ` as 64511;
  rr client; enable extended messages on;
  hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time 2;
  long lived graceful restart on; long lived stale time 60;
  ipv4 { import all; export where source ~ [ RTS_STATIC, RTS_BGP ]; ` + more + ` };
  ipv6 { import all; export where source ~ [ RTS_STATIC, RTS_BGP ]; ` + more + ` };
}
`
	}
	capable(t, func(h *host) foreign {
		return startDaemonBIRD(h, `
router id `+theirAddress+`;
graceful restart wait 5;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol kernel { persist; graceful restart on; ipv4 { import none; export where source = RTS_BGP; }; }
`+peer("we", ourAddress, "add paths on;")+peer("c1", theirClients[0], "")+peer("c2", theirClients[1], ""))
	}, func(f foreign, prefix string) []string {
		return nextHopsIn(f.ask("show route "+prefix+" all"), "BGP.next_hop:")
	}, func(f foreign) bool { return strings.Contains(f.ask("show route 10.64.7.207/32 all"), "(65535,6)") }, "reload in we", "bird")
}

func TestCapabilitiesFRR(t *testing.T) {
	var conf, families strings.Builder
	fmt.Fprintf(&conf, "router bgp 64511\n bgp router-id %s\n no bgp default ipv4-unicast\n bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n bgp graceful-restart restart-time 2\n"+
		" bgp long-lived-graceful-restart stale-time 60\n", theirAddress)
	for _, family := range []string{"ipv4", "ipv6"} {
		fmt.Fprintf(&families, " address-family %s unicast\n", family)
		for _, c := range append([]string{ourAddress}, theirClients...) {
			fmt.Fprintf(&families, "  neighbor %s activate\n  neighbor %[1]s route-reflector-client\n", c)
		}
		fmt.Fprintf(&families, "  neighbor %s addpath-tx-all-paths\n exit-address-family\n", ourAddress)
	}
	for _, c := range append([]string{ourAddress}, theirClients...) {
		fmt.Fprintf(&conf, " neighbor %s remote-as 64511\n neighbor %[1]s timers 3 9\n neighbor %[1]s timers connect 1\n", c)
	}
	capable(t, func(h *host) foreign { return startDaemonFRR(h, conf.String()+families.String()) }, func(f foreign, prefix string) []string {
		family := "ipv4"
		if strings.Contains(prefix, ":") {
			family = "ipv6"
		}
		return nextHopsIn(f.ask("show bgp "+family+" unicast "+prefix), "from "+ourAddress)
	}, func(f foreign) bool {
		return strings.Contains(f.ask("show bgp ipv4 unicast 10.64.7.207/32"), "llgr-stale")
	}, "clear bgp "+ourAddress+" soft in", "bgp")
}

// nextHopsIn are the next hops in lines with a mark: the first address of the line that
// is not in the mark, sorted.
func nextHopsIn(text, mark string) []string {
	out := []string{}
	for line := range strings.Lines(text) {
		if !strings.Contains(line, mark) {
			continue
		}
		for _, word := range strings.Fields(strings.Replace(line, mark, "", 1)) {
			if a, err := netip.ParseAddr(strings.Trim(word, ",()")); err == nil {
				out = append(out, a.String())
				break
			}
		}
	}
	slices.Sort(out)
	return out
}
