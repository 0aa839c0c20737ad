package nft

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// wiredLab has the endpoints a and b of profile web, c of profile db, and a
// neighbour host n behind a link that is not ours.
func wiredLab(t testing.TB, on string) (*lab, *acl.Index) {
	l := newLab(t, on)
	l.addHost("a", "nca", testGroup, "10.0.0.1", "fd00::1")
	l.addHost("b", "ncb", testGroup, "10.0.0.2", "fd00::2")
	l.addHost("c", "ncc", testGroup, "10.0.0.3", "fd00::3")
	l.addHost("n", "up0", 0, "192.0.2.9", "2001:db8::9")
	x := wiredIndex(t, testOptions())
	l.apply(x.Flush())
	return l, x
}

// wiredIndex knows what is wired there.
func wiredIndex(t testing.TB, o acl.Options) *acl.Index {
	x := acl.NewIndex("n1", o)
	for _, c := range []datastore.Change{
		profile(t, "web", []string{"web"}, []string{"allow from tag web"}, []string{"allow"}),
		profile(t, "db", []string{"db"}, []string{"allow from tag db"}, []string{"allow"}),
		endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1"),
		endpoint("n1", "n1/cni/b/eth0", "ncb", []string{"web"}, "10.0.0.2", "fd00::2"),
		endpoint("n1", "n1/cni/c/eth0", "ncc", []string{"db"}, "10.0.0.3", "fd00::3"),
	} {
		x.Apply(c)
	}
	return x
}

func TestTags(t *testing.T) { onEach(t, testTags) }

func testTags(t *testing.T, on string) {
	l, _ := wiredLab(t, on)
	l.expect(true, "a", udp("10.0.0.1", "10.0.0.2", 7))
	l.expect(true, "a", tcp("10.0.0.1", "10.0.0.2", 7))
	l.expect(true, "b", echo("10.0.0.2", "10.0.0.1"))
	l.expect(true, "a", udp("fd00::1", "fd00::2", 7))
	l.expect(true, "a", echo("fd00::1", "fd00::2"))
	l.expect(false, "a", udp("10.0.0.1", "10.0.0.3", 7))
	l.expect(false, "c", udp("10.0.0.3", "10.0.0.1", 7))
	l.expect(false, "c", echo("fd00::3", "fd00::1"))
	l.expect(true, "c", udp("10.0.0.3", "192.0.2.9", 7))
	l.expect(false, "n", udp("192.0.2.9", "10.0.0.1", 8))
	l.expect(true, "n", func() acl.Packet { // the answer to what c sent
		p := udp("192.0.2.9", "10.0.0.3", 9)
		p.SrcPort, p.State = 7, acl.Established
		return p
	}())
	l.list()
}

func TestRulesActAtOnce(t *testing.T) { onEach(t, testRulesActAtOnce) }

func testRulesActAtOnce(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	closed := []string{"allow from tag web"}
	opened := append(closed, "allow udp from tag db to ports 53")
	for range 3 {
		l.expect(false, "c", l.uniquePort(udp("10.0.0.3", "10.0.0.1", 53)))
		x.Apply(profile(t, "web", []string{"web"}, opened, []string{"allow"}))
		l.apply(x.Flush())
		l.expect(true, "c", l.uniquePort(udp("10.0.0.3", "10.0.0.1", 53)))
		l.expect(false, "c", l.uniquePort(udp("10.0.0.3", "10.0.0.1", 54)))
		l.expect(false, "c", l.uniquePort(tcp("10.0.0.3", "10.0.0.1", 53)))
		x.Apply(profile(t, "web", []string{"web"}, closed, []string{"allow"}))
		l.apply(x.Flush())
	}
}

// TestEstablishedPasses: what was opened goes on after its rule is gone.
func TestEstablishedPasses(t *testing.T) { onEach(t, testEstablishedPasses) }

func testEstablishedPasses(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	flow, back := udp("10.0.0.1", "10.0.0.2", 99), udp("10.0.0.2", "10.0.0.1", 9)
	back.SrcPort, back.State = 99, acl.Established
	l.expect(true, "a", flow)
	l.expect(true, "b", back)
	x.Apply(profile(t, "web", []string{"web"}, nil, []string{"allow"}))
	l.apply(x.Flush())
	flow.State = acl.Established
	l.expect(true, "a", flow)
	l.expect(true, "b", back)
	l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 99)))
}

func TestAntiSpoofing(t *testing.T) { onAll(t, testAntiSpoofing) }

func testAntiSpoofing(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow"}, []string{"allow"}))
	l.apply(x.Flush())
	l.expect(false, "a", udp("10.0.0.2", "10.0.0.2", 7))
	l.expect(false, "a", udp("10.0.0.3", "10.0.0.2", 7))
	l.expect(false, "a", udp("10.0.0.9", "10.0.0.2", 7))
	l.expect(false, "a", udp("192.0.2.9", "10.0.0.2", 7))
	l.expect(false, "a", udp("fd00::2", "fd00::2", 7))
	l.expect(false, "a", udp("fd00::9", "fd00::2", 7))
	l.expect(true, "a", udp("10.0.0.1", "10.0.0.2", 7))
	l.expect(true, "a", udp("fd00::1", "fd00::2", 7))
	// An established flow's answers cannot be forged by somebody else either.
	forged := udp("10.0.0.2", "10.0.0.1", 9)
	forged.SrcPort, forged.State = 7, acl.Established
	l.expect(false, "c", forged)
}

func TestGuards(t *testing.T) { onAll(t, testGuards) }

func testGuards(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	l.expect(false, "a", udp("10.0.0.1", "192.0.2.9", 4789))
	dhcp := udp("10.0.0.1", "192.0.2.9", 68)
	dhcp.SrcPort = 67
	l.expect(false, "a", dhcp)
	ipip := acl.Packet{Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("192.0.2.9"), Protocol: 4}
	l.expect(false, "a", ipip)
	ipip.Protocol = 99
	l.expect(true, "a", ipip)
	// But where an overlay is allowed; a node's tunnels are not reached by it.
	open := endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1")
	open.New.(*datastore.Endpoint).Spec.AllowEncapsulation = true
	x.Apply(open)
	x.Apply(node("n2", "192.0.2.10/24"))
	l.apply(x.Flush())
	ipip.Protocol = 4
	l.expect(true, "a", ipip)
	l.expect(true, "a", udp("10.0.0.1", "192.0.2.9", 4789))
	l.expect(true, "a", udp("fd00::1", "2001:db8::9", 4789))
	l.expect(false, "c", udp("10.0.0.3", "192.0.2.9", 4789))
	x.Apply(node("n2", "192.0.2.9/24", "2001:db8::9/64"))
	l.apply(x.Flush())
	l.expect(false, "a", ipip)
	l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "192.0.2.9", 4789)))
	l.expect(false, "a", l.uniquePort(udp("fd00::1", "2001:db8::9", 4789)))
	l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "192.0.2.9", 4790)))
	ra := acl.Packet{Src: netip.MustParseAddr("fe80::1"), Dst: netip.MustParseAddr("ff02::1"), Protocol: 58, Type: 134}
	l.expect(false, "a", ra)
	ra.Src = netip.MustParseAddr("fd00::1")
	l.expect(false, "a", ra)
}

// TestGatewayAddress: nothing sent to it goes anywhere, from wherever it comes.
func TestGatewayAddress(t *testing.T) { onEach(t, testGatewayAddress) }

func testGatewayAddress(t *testing.T, on string) {
	l, _ := wiredLab(t, on)
	for _, c := range []struct {
		from string
		acl.Packet
	}{
		{"a", echo("10.0.0.1", "169.254.1.1")}, {"a", udp("10.0.0.1", "169.254.1.1", 9)},
		{"n", echo("192.0.2.9", "169.254.1.1")}, {"n", udp("192.0.2.9", "169.254.1.1", 9)},
	} {
		before := l.dropped()
		l.expect(false, c.from, c.Packet)
		if n := l.dropped() - before; n != 1 {
			t.Errorf("what %s sent was dropped %d times: it circled", c.from, n)
		}
	}
	before := l.dropped()
	if out, err := l.router.input("", "ping", "-c1", "-W1", "-t255", "169.254.1.1"); err == nil {
		t.Errorf("the host's own ping was answered: %s", out)
	}
	if n := l.dropped() - before; n != 1 {
		t.Errorf("the host's own ping was dropped %d times: it circled", n)
	}
}

// TestUnknownIsClosed: a link of ours without an endpoint, and a link with our
// prefix without our group, neither send nor receive.
func TestUnknownIsClosed(t *testing.T) { onEach(t, testUnknownIsClosed) }

func testUnknownIsClosed(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow"}, []string{"allow"}))
	l.apply(x.Flush())
	l.addHost("u", "ncu", testGroup, "10.0.0.7")
	l.addHost("g", "ncg", 0, "10.0.0.8")
	l.expect(false, "u", udp("10.0.0.7", "10.0.0.1", 7))
	l.expect(false, "a", udp("10.0.0.1", "10.0.0.7", 7))
	l.expect(false, "n", udp("192.0.2.9", "10.0.0.7", 7))
	l.expect(false, "g", udp("10.0.0.8", "10.0.0.1", 7))
	l.expect(false, "a", udp("10.0.0.1", "10.0.0.8", 7))
	x.Apply(endpoint("n1", "n1/cni/u/eth0", "ncu", []string{"web"}, "10.0.0.7"))
	l.apply(x.Flush())
	l.expect(true, "u", udp("10.0.0.7", "10.0.0.1", 7))
	gone := endpoint("n1", "n1/cni/u/eth0", "ncu", []string{"web"}, "10.0.0.7")
	gone.Old, gone.New = gone.New, nil
	x.Apply(gone)
	l.apply(x.Flush())
	l.expect(false, "u", l.uniquePort(udp("10.0.0.7", "10.0.0.1", 7)))
	// Emptied chains are no way through.
	if l.on != onNFT { // there one that is emptied returns, until it is repaired
		return
	}
	l.router.Run("nft", "flush", "chain", "inet", "netctl", "from_wl")
	l.router.Run("nft", "flush", "chain", "inet", "netctl", "to_wl")
	l.rules.Chains["from_wl"].Rules, l.rules.Chains["to_wl"].Rules = nil, nil
	l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "192.0.2.9", 7)))
	l.expect(false, "n", l.uniquePort(udp("192.0.2.9", "10.0.0.2", 7)))
}

// TestHost: a workload reaches its own host by echo and by what is listed, the
// host reaches the workload.
func TestHost(t *testing.T) { onEach(t, testHost) }

func testHost(t *testing.T, on string) {
	l, _ := wiredLab(t, on)
	a := l.hosts["a"]
	a.Run("ping", "-c1", "-W5", "10.99.0.1")
	l.router.Run("ping", "-c1", "-W5", "10.0.0.1")
	l.router.Run("ping", "-c1", "-W5", "fd00::1")
	counts := "table inet probe {\n chain in { type filter hook input priority 100; iifname nca udp dport { 53, 54 } counter; iifname nca tcp dport 53 counter; }\n}\n"
	if out, err := l.router.input(counts, "nft", "-f", "-"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	passed := func(p acl.Packet) bool {
		p.InLink, p.InGroup, p.State = "nca", testGroup, acl.New
		before, drops := l.router.Run("nft", "list", "table", "inet", "probe"), l.dropped()
		l.transmit(a, p, 1)
		arrived := false
		l.eventually("the packet to arrive or be dropped", func() bool {
			arrived = l.router.Run("nft", "list", "table", "inet", "probe") != before
			return arrived || l.dropped() > drops
		})
		if d := l.rules.Eval(p); d.Allowed != arrived {
			t.Errorf("%+v: arrived %v, Eval %s", p, arrived, d)
		}
		return arrived
	}
	for _, c := range []struct {
		p    acl.Packet
		want bool
	}{
		{udp("10.0.0.1", "10.99.0.1", 53), true},
		{udp("10.0.0.1", "10.99.0.1", 54), false},
		{tcp("10.0.0.1", "10.99.0.1", 53), true},
		{tcp("10.0.0.1", "10.99.0.1", 22), false},
		{udp("10.0.0.2", "10.99.0.1", 53), false},
	} {
		if got := passed(c.p); got != c.want {
			t.Errorf("%+v arrived %v", c.p, got)
		}
	}
}

// TestKernelAgreesWithEval applies random models and sends random packets.
func TestKernelAgreesWithEval(t *testing.T) { onAll(t, testKernelAgreesWithEval) }

func testKernelAgreesWithEval(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	rng := rand.New(rand.NewPCG(1, 2))
	rules := parseRules(t,
		"allow", "deny from tag web", "allow from tag web", "allow from tag db", "deny from not tag web", "allow tcp to ports 80,443",
		"allow udp to ports 53,1000:2000", "allow icmp", "allow icmp type 8 code 0", "deny not icmp type 8 code 0", "allow icmpv6",
		"deny not icmpv6 type 128", "allow from cidr 10.0.0.0/30", "allow from not cidr 10.0.0.1/32", "deny to cidr 10.0.0.2/31",
		"allow from cidr 10.0.0.1/32,10.0.0.3/32,fd00::2/127", "deny udp from not cidr 10.0.0.2/31,192.0.2.0/24,fd00::/126", "allow to cidr 0.0.0.0/0,10.0.0.0/8,fd00::1/128,fd00::3/128",
		"allow from cidr fd00::/64", "deny from not cidr fd00::2/127", "allow tcp to ports http", "allow tcp to not ports http,80",
		"allow tcp from tag web and cidr 10.0.0.0/29 to ports http,80", "allow not tcp", "allow 99", "log udp from tag db",
		"allow from selector \"role == 'web'\"", "deny from not selector \"role == 'db'\"", "allow udp from ports 53 to tag db")
	pick := func(n int) []datastore.Rule {
		var out []datastore.Rule
		for range rng.IntN(n) {
			out = append(out, rules[rng.IntN(len(rules))])
		}
		return out
	}
	addresses := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.9", "fd00::1", "fd00::2", "fd00::3", "2001:db8::9"}
	owner := []string{"a", "b", "c", "n"}
	passed, refused := 0, 0
	for range 40 {
		for _, name := range []string{"web", "db"} {
			p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
			p.Spec.Tags, p.Spec.Inbound, p.Spec.Outbound = []string{name}, pick(5), append(pick(3), rules[0])
			x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: name, New: p})
		}
		links := []string{"nca", "ncb", "ncc"}
		profiles := [][]string{{"web"}, {"db"}, {"web", "db"}, {"db", "web"}}
		i := rng.IntN(3)
		x.Apply(endpoint("n1", "n1/cni/"+owner[i]+"/eth0", links[i], profiles[rng.IntN(4)], addresses[i], addresses[i+4]))
		l.apply(x.Flush())
		var probes []probe
		for range 30 {
			family := 4 * rng.IntN(2)
			from, to := rng.IntN(4), rng.IntN(4)
			if from == to {
				continue
			}
			p := acl.Packet{Src: netip.MustParseAddr(addresses[from+family]), Dst: netip.MustParseAddr(addresses[to+family])}
			switch rng.IntN(4) {
			case 0:
				// Connection tracking knows it by its addresses alone: the way back
				// would be the answer.
				if from > to {
					continue
				}
				p.Protocol = 99
			case 1:
				p.Protocol, p.Type = 1, 8
				if family > 0 {
					p.Protocol, p.Type = 58, 128
				}
			default:
				p.Protocol = []uint8{6, 17}[rng.IntN(2)]
				p.SrcPort = uint16(20000 + len(probes) + int(l.sent)%40000)
				p.DstPort = []uint16{53, 80, 443, 8080, 1500, 22}[rng.IntN(6)]
			}
			probes = append(probes, probe{owner[from], p})
		}
		l.router.Run("conntrack", "-F")
		for _, ok := range l.check(probes) {
			if ok {
				passed++
			} else {
				refused++
			}
		}
	}
	l.list()
	if passed < 100 || refused < 100 {
		t.Errorf("only %d passed and %d were refused", passed, refused)
	}
}
