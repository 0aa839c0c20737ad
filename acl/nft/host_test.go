package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// hostLab is a lab whose router has host endpoints, and sends and gets packets itself.
type hostLab struct {
	*lab
	x          *acl.Index
	in         []int // raw sockets that get what is delivered to the router
	out4, out6 int   // raw sockets that it sends whole packets by
}

const router = "" // as the sender of a probe

func newHostLab(t *testing.T, on string) *hostLab {
	l := &hostLab{lab: newLab(t, on)}
	l.addHost("a", "nca", testGroup, "10.0.0.1", "fd00::1")
	l.addHost("n", "up0", 0, "192.0.2.9", "2001:db8::9")
	l.addHost("m", "up1", 0, "198.51.100.9", "2001:db8:1::9")
	l.router.Run("ip", "addr", "add", "fd99::1/128", "dev", "lo")
	// What its kernel answers to probes is not what is looked at.
	if out, err := l.router.input("table inet quiet { chain out { type filter hook output priority -400; meta mark 1 accept; tcp flags & rst == rst drop; icmp type { destination-unreachable, echo-reply } drop; icmpv6 type { destination-unreachable, echo-reply } drop; }; }", "nft", "-f", "-"); err != nil {
		t.Fatal(out)
	}
	l.router.Do(l.openRaw)
	o := testOptions()
	o.FailsafeInbound, o.FailsafeOutbound = []acl.HostPort{{Protocol: 6, Port: 22}}, []acl.HostPort{{Protocol: 17, Port: 53}}
	l.x = acl.NewIndex("n1", o)
	l.x.SetHostLinks(map[string][]netip.Addr{"up1": {netip.MustParseAddr("198.51.100.1")}})
	for _, c := range []datastore.Change{
		profile(t, "web", []string{"web"}, []string{"allow"}, []string{"allow"}),
		endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1"),
	} {
		l.x.Apply(c)
	}
	l.apply(l.x.Flush())
	return l
}

func (l *hostLab) openRaw() {
	open := func(family, proto int) int {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		if err != nil {
			l.t.Error(err)
			return -1
		}
		l.t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	for _, p := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP} {
		l.in = append(l.in, open(unix.AF_INET, p))
	}
	for _, p := range []int{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6} {
		l.in = append(l.in, open(unix.AF_INET6, p))
	}
	l.out4, l.out6 = open(unix.AF_INET, unix.IPPROTO_RAW), open(unix.AF_INET6, unix.IPPROTO_RAW)
	const hdrincl6 = 36 // IPV6_HDRINCL
	for _, err := range []error{unix.SetsockoptInt(l.out6, unix.IPPROTO_IPV6, hdrincl6, 1), unix.SetsockoptInt(l.out4, unix.SOL_SOCKET, unix.SO_MARK, 1), unix.SetsockoptInt(l.out6, unix.SOL_SOCKET, unix.SO_MARK, 1)} {
		if err != nil {
			l.t.Error(err)
		}
	}
}

// hostEndpoint is one of the router.
func hostEndpoint(t *testing.T, name, link, role string, profiles []string, expected ...string) datastore.Change {
	h := &datastore.HostEndpoint{Metadata: datastore.Metadata{Name: name, Labels: map[string]string{"role": role}}}
	h.Spec = datastore.HostEndpointSpec{Node: "n1", InterfaceName: link, Profiles: profiles}
	for _, a := range expected {
		h.Spec.ExpectedIPs = append(h.Spec.ExpectedIPs, netip.MustParseAddr(a))
	}
	return put(t, h)
}

// kind changes what a policy is asked about.
func kind(t *testing.T, c datastore.Change, set func(*datastore.PolicySpec)) datastore.Change {
	set(&c.New.(*datastore.Policy).Spec)
	return put(t, c.New)
}

func forward(s *datastore.PolicySpec) { s.ApplyOnForward = true }
func noTrack(s *datastore.PolicySpec) { s.ApplyOnForward, s.DoNotTrack = true, true }
func before(s *datastore.PolicySpec)  { s.ApplyOnForward, s.PreDNAT = true, true }

// do sends the probes, and holds what arrives against Eval.
func (l *hostLab) do(probes []probe) []bool {
	l.t.Helper()
	for i := range probes {
		if probes[i].from != router {
			l.complete(&probes[i])
			continue
		}
		l.hosts[router] = &host{}
		l.complete(&probes[i])
		delete(l.hosts, router)
	}
	l.delivered(nil)
	before, start := l.dropped(), l.sent
	for _, p := range probes {
		if p.from == router {
			l.sendOwn(p.p, l.mark(l.sent))
		} else {
			l.transmit(l.hosts[p.from], p.p, l.mark(l.sent))
		}
		l.sent++
	}
	arrived, n := make([]bool, len(probes)), 0
	l.eventually("every probe to arrive or be dropped", func() bool {
		l.delivered(func(mark uint64, at *host) {
			if i := mark - l.mark(start); i < uint64(len(probes)) && !arrived[i] && (at == nil || at != l.hosts[probes[i].from]) {
				arrived[i] = true
				n++
			}
		})
		return n+l.dropped()-before >= len(probes)
	})
	for i, p := range probes {
		if d := l.rules.Eval(p.p); d.Allowed != arrived[i] {
			l.t.Fatalf("from %q %+v: arrived %v, but Eval: %s\n%s\n%s", p.from, p.p, arrived[i], d, l.rules, l.listed())
		}
	}
	return arrived
}

// delivered drains what reached hosts and, at nil, the router.
func (l *hostLab) delivered(fn func(mark uint64, at *host)) {
	for _, h := range l.hosts {
		for _, mark := range h.received() {
			if fn != nil {
				fn(mark, h)
			}
		}
	}
	buffer := make([]byte, 2048)
	for _, fd := range l.in {
		for {
			n, _, err := unix.Recvfrom(fd, buffer, unix.MSG_DONTWAIT)
			if err != nil {
				break
			}
			if n >= 8 && fn != nil {
				fn(binary.BigEndian.Uint64(buffer[n-8:n]), nil)
			}
		}
	}
}

// sendOwn sends a packet from the router itself; one that is dropped on its way out fails.
func (l *hostLab) sendOwn(p acl.Packet, id uint64) {
	l.t.Helper()
	var err error
	if p.Dst.Is4() {
		err = unix.Sendto(l.out4, packetBytes(p, id), 0, &unix.SockaddrInet4{Addr: p.Dst.As4()})
	} else {
		err = unix.Sendto(l.out6, packetBytes(p, id), 0, &unix.SockaddrInet6{Addr: p.Dst.As16()})
	}
	if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EHOSTUNREACH) {
		l.t.Fatalf("send: %v", err)
	}
}

// arrives wants one probe to arrive or not, also by Eval.
func (l *hostLab) arrives(want bool, from string, p acl.Packet) {
	l.t.Helper()
	if got := l.do([]probe{{from, p}}); got[0] != want {
		l.t.Errorf("from %q %v to %v proto %d port %d: arrived %v\n%s", from, p.Src, p.Dst, p.Protocol, p.DstPort, got[0], l.rules)
	}
}

// change applies changes of the store to the kernel.
func (l *hostLab) change(list ...datastore.Change) {
	l.t.Helper()
	for _, c := range list {
		l.x.Apply(c)
	}
	l.apply(l.x.Flush())
}

// both calls fn for each family: the addresses of n, of the router, of m and of the endpoint a.
func both(fn func(n, own, m, a string)) {
	fn("192.0.2.9", "10.99.0.1", "198.51.100.9", "10.0.0.1")
	fn("2001:db8::9", "fd99::1", "2001:db8:1::9", "fd00::1")
}

// TestHostEndpointInKernel goes through what host endpoints do with real packets, of both
// families: in, out, forwarded, before DNAT and untracked.
func TestHostEndpointInKernel(t *testing.T) { onAll(t, testHostEndpointInKernel) }

func testHostEndpointInKernel(t *testing.T, on string) {
	l := newHostLab(t, on)
	u := l.uniquePort
	both(func(n, own, m, a string) {
		l.arrives(true, "n", u(tcp(n, own, 80)))
		l.arrives(true, router, u(tcp(own, n, 80)))
	})
	l.change(hostEndpoint(t, "up", "up0", "edge", nil))
	both(func(n, own, m, a string) { // without a policy all is denied but failsafe ports
		l.arrives(false, "n", u(tcp(n, own, 80)))
		l.arrives(true, "n", u(tcp(n, own, 22)))
		l.arrives(false, "n", u(udp(n, own, 22)))
		l.arrives(false, router, u(tcp(own, n, 80)))
		l.arrives(true, router, u(udp(own, n, 53)))
		l.arrives(true, "m", u(tcp(m, own, 80)))    // another interface
		l.arrives(true, router, u(tcp(own, m, 80))) //
		l.arrives(true, router, u(tcp(own, a, 80))) // a workload
		l.arrives(true, "n", u(tcp(n, m, 80)))      // forwarded
		l.arrives(true, "n", u(tcp(n, a, 80)))      //
	})
	l.change(policy(t, "open", "", 1, "role == 'edge'", []string{"allow tcp to ports 80", "deny tcp to ports 22"}, []string{"allow tcp to ports 81"}))
	both(func(n, own, m, a string) {
		l.arrives(true, "n", u(tcp(n, own, 80)))
		l.arrives(true, "n", u(tcp(n, own, 22)))
		l.arrives(false, "n", u(tcp(n, own, 81)))
		l.arrives(false, router, u(tcp(own, n, 80)))
		l.arrives(true, router, u(tcp(own, n, 81)))
		l.arrives(true, "n", u(tcp(n, m, 82)))
	})
	l.change(kind(t, policy(t, "through", "", 2, "role == 'edge'", []string{"allow tcp to ports 83"}, []string{"allow tcp to ports 84"}), forward))
	both(func(n, own, m, a string) {
		l.arrives(false, "n", u(tcp(n, m, 82)))
		l.arrives(true, "n", u(tcp(n, m, 83)))
		l.arrives(true, "n", u(tcp(n, a, 83)))
		l.arrives(false, "n", u(tcp(n, a, 22))) // failsafe ports are the host's own
		l.arrives(false, "m", u(tcp(m, n, 83)))
		l.arrives(true, "m", u(tcp(m, n, 84)))
		l.arrives(false, "a", u(tcp(a, n, 85)))
		l.arrives(true, "a", u(tcp(a, n, 84)))
		l.arrives(true, "n", u(tcp(n, own, 83))) // and the host's own connections
	})
	l.change(kind(t, policy(t, "early", "", 1, "role == 'edge'", []string{"deny tcp to ports 83", "allow udp to ports 86"}, nil), before))
	both(func(n, own, m, a string) {
		l.arrives(false, "n", u(tcp(n, m, 83)))
		l.arrives(false, "n", u(tcp(n, own, 83)))
		l.arrives(true, "n", u(udp(n, own, 86))) // others are not asked
		l.arrives(true, "n", u(udp(n, m, 86)))
		l.arrives(true, "n", u(tcp(n, own, 80))) // what it does not decide goes on
		l.arrives(true, "n", u(tcp(n, own, 22)))
	})
	l.change(kind(t, policy(t, "raw", "", 1, "role == 'edge'", []string{"allow udp to ports 87", "deny tcp to ports 22,80"}, []string{"allow udp from ports 87"}), noTrack))
	l.router.Run("conntrack", "-F")
	both(func(n, own, m, a string) {
		l.arrives(true, "n", u(udp(n, own, 87)))
		l.arrives(true, router, port(udp(own, n, 4711), 87))
		l.arrives(true, "n", u(udp(n, m, 87)))
		l.arrives(false, "n", u(tcp(n, own, 80)))
		l.arrives(true, "n", u(tcp(n, own, 22)))
		l.arrives(true, "n", u(udp(n, own, 86)))
	})
	for _, family := range []string{"ipv4", "ipv6"} {
		if flows := l.router.Run("conntrack", "-L", "-f", family); strings.Contains(flows, "port=87 ") || !strings.Contains(flows, "port=86 ") {
			t.Errorf("tracked: %s", flows)
		}
	}
	if l.on == onNFT {
		if out, err := l.router.input("flush ruleset\n"+listing(t, l.router), "nft", "-f", "-"); err != nil {
			t.Errorf("nft does not read what it lists: %v\n%s", err, out)
		}
	}
	l.sync()
	both(func(n, own, m, a string) { l.arrives(true, "n", u(udp(n, own, 87))) })
	l.change(datastore.Change{Kind: datastore.KindHostEndpoint, Name: "up"})
	both(func(n, own, m, a string) { l.arrives(true, "n", u(tcp(n, own, 81))) })
	if strings.Contains(l.listed(), "hostep_") {
		t.Error("chains of host endpoints are left")
	}
}

// TestPreDNAT: a policy before DNAT sees the port that is published, one for what is
// forwarded the port that it leads to.
func TestPreDNAT(t *testing.T) { onEach(t, testPreDNAT) }

func testPreDNAT(t *testing.T, on string) {
	l := newHostLab(t, on)
	c := endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1")
	c.New.(*datastore.Endpoint).Spec.HostPorts = []datastore.HostPort{{Protocol: "udp", HostPort: 8080, Port: 80}}
	l.change(c, hostEndpoint(t, "all", "*", "edge", nil), kind(t, policy(t, "through", "", 1, "", []string{"allow udp to ports 80"}, nil), forward))
	reaches := func(when string, want bool, port uint16) {
		t.Helper()
		both(func(n, own, m, a string) {
			before, mark := l.dropped(), l.mark(l.sent)
			l.sent++
			l.transmit(l.hosts["n"], l.uniquePort(udp(n, own, port)), mark)
			got := false
			l.eventually("the packet to arrive or be dropped", func() bool {
				for _, m := range l.hosts["a"].received() {
					got = got || m == mark
				}
				return got || l.dropped() > before
			})
			if got != want {
				t.Errorf("%s: %s port %d arrived %v", when, own, port, got)
			}
		})
	}
	reaches("published", true, 8080)
	l.change(kind(t, policy(t, "early", "", 1, "", []string{"deny udp to ports 8080"}, nil), before))
	reaches("denied before DNAT", false, 8080)
	l.change(kind(t, policy(t, "early", "", 1, "", []string{"deny udp to ports 80", "allow"}, nil), before))
	reaches("denied by the port behind", true, 8080)
	l.change(kind(t, policy(t, "through", "", 1, "", []string{"allow udp to ports 8080"}, nil), forward))
	reaches("forwarding denied", false, 8080)
}

// TestFailsafesHoldInEveryStage: after each of a repair's transactions SSH gets in and DNS out,
// and what goes on goes on; the host's own packets are held up by no other stage.
func TestFailsafesHoldInEveryStage(t *testing.T) {
	l := newHostLab(t, onNFT)
	u := l.uniquePort
	l.change(hostEndpoint(t, "all", "*", "edge", nil), kind(t, policy(t, "open", "", 1, "", []string{"allow tcp to ports 80"}, []string{"allow tcp to ports 80"}), forward))
	whole := l.rules
	var in net.Listener
	var out net.Conn
	var err error
	l.router.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	l.router.Do(func() { in, err = net.Listen("tcp", "192.0.2.1:80") })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	l.hosts["n"].Do(func() { out, err = net.DialTimeout("tcp", "192.0.2.1:80", 10*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	served, err := in.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	goesOn := func(when string) {
		t.Helper()
		_ = served.SetDeadline(time.Now().Add(10 * time.Second))
		_ = out.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := out.Write([]byte("x")); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := served.Read(make([]byte, 1)); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	stage := func(when string, rules *acl.Ruleset, open bool) {
		t.Helper()
		l.rules = rules
		both(func(n, own, m, a string) {
			l.arrives(true, "n", u(tcp(n, own, 22)))
			l.arrives(true, router, u(udp(own, n, 53)))
			l.arrives(open, "n", u(tcp(n, own, 80)))
			l.arrives(open, router, u(tcp(own, n, 80)))
		})
		goesOn(when)
		l.rules = whole
	}
	stage("whole", whole, true)
	l.router.Run("nft", "flush", "ruleset")
	have, err := l.table.snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.table.block(t.Context(), whole, have); err != nil {
		t.Fatal(err)
	}
	both(func(n, own, m, a string) { l.arrivesUnfiltered("n", u(tcp(n, own, 22))) })
	goesOn("shut")
	if have, err = l.table.snapshot(); err != nil {
		t.Fatal(err)
	}
	if err := l.table.commit(t.Context(), closing(whole, have)); err != nil {
		t.Fatal(err)
	}
	stage("closed first", whole.Closed(), false)
	l.sync()
	stage("whole again", whole, true)
}

// arrivesUnfiltered wants the packet to be delivered to the router.
func (l *hostLab) arrivesUnfiltered(from string, p acl.Packet) {
	l.t.Helper()
	mark := l.mark(l.sent)
	l.sent++
	l.transmit(l.hosts[from], p, mark)
	l.eventually("a packet to be delivered", func() (got bool) {
		l.delivered(func(m uint64, at *host) { got = got || m == mark && at == nil })
		return got
	})
}

// TestKernelAgreesWithEvalOnHostEndpoints applies random host endpoints and policies, and
// sends random packets.
func TestKernelAgreesWithEvalOnHostEndpoints(t *testing.T) {
	onEach(t, testKernelAgreesWithEvalOnHostEndpoints)
}

func testKernelAgreesWithEvalOnHostEndpoints(t *testing.T, on string) {
	l := newHostLab(t, on)
	rng := rand.New(rand.NewPCG(5, 6))
	texts := []string{
		"allow", "deny", "pass", "allow tcp", "deny udp to ports 53", "allow tcp to ports 80,443", "pass udp to not ports 53", "deny from cidr 192.0.2.0/24", "allow from cidr 2001:db8::/48",
		"allow to selector \"role == 'web'\"", "deny from not selector \"role == 'edge'\"", "allow icmp type echo-request", "allow icmpv6 type echo-request", "log tcp", "allow tcp to ports ssh", "deny tcp to ports 22",
	}
	pick := func() (out []string) {
		for range 1 + rng.IntN(3) {
			out = append(out, texts[rng.IntN(len(texts))])
		}
		return out
	}
	addresses := []string{"10.0.0.1", "192.0.2.9", "198.51.100.9", "10.99.0.1", "fd00::1", "2001:db8::9", "2001:db8:1::9", "fd99::1"}
	owner := []string{"a", "n", "m", router}
	passed, refused := map[string]int{}, map[string]int{}
	for range 50 {
		var list []datastore.Change
		for range 3 {
			switch name := fmt.Sprint("p", rng.IntN(5)); rng.IntN(8) {
			case 0:
				list = append(list, datastore.Change{Kind: datastore.KindPolicy, Name: name})
			case 1:
				list = append(list, hostEndpoint(t, "up", "up0", []string{"edge", "core"}[rng.IntN(2)], []string{"web"}[:rng.IntN(2)], "192.0.2.1", "10.99.0.1"))
			case 2:
				list = append(list, hostEndpoint(t, "by", "", "edge", nil, "198.51.100.1"))
			case 3:
				list = append(list, hostEndpoint(t, "all", "*", "core", []string{"web"}[:rng.IntN(2)]))
			case 4:
				list = append(list, datastore.Change{Kind: datastore.KindHostEndpoint, Name: []string{"up", "by", "all"}[rng.IntN(3)]})
			default:
				c := policy(t, name, "", rng.IntN(3), []string{"all()", "role == 'edge'", "role == 'core'"}[rng.IntN(3)], pick(), pick())
				s := &c.New.(*datastore.Policy).Spec
				switch rng.IntN(4) {
				case 0:
					noTrack(s)
				case 1:
					before(s)
					s.Egress, s.Types = nil, []datastore.PolicyType{datastore.Ingress}
				case 2:
					forward(s)
				}
				list = append(list, put(t, c.New))
			}
		}
		l.change(list...)
		var probes []probe
		var kinds []string
		for range 30 {
			family, from, to := 4*rng.IntN(2), rng.IntN(4), rng.IntN(4)
			if from == to || owner[from] == "a" && owner[to] == router {
				continue
			}
			p := acl.Packet{Src: netip.MustParseAddr(addresses[from+family]), Dst: netip.MustParseAddr(addresses[to+family])}
			if rng.IntN(5) == 0 {
				p = echo(addresses[from+family], addresses[to+family])
			} else {
				p.Protocol, p.SrcPort = []uint8{6, 17}[rng.IntN(2)], uint16(20000+len(probes)+int(l.sent)%40000)
				p.DstPort = []uint16{22, 53, 80, 443}[rng.IntN(4)]
			}
			probes = append(probes, probe{owner[from], p})
			kinds = append(kinds, map[bool]string{owner[from] == router: "out", owner[to] == router: "in"}[true])
		}
		l.router.Run("conntrack", "-F")
		for i, ok := range l.do(probes) {
			if ok {
				passed[kinds[i]]++
			} else {
				refused[kinds[i]]++
			}
		}
	}
	l.list()
	if wrote, err := l.filter.Sync(t.Context(), l.rules); wrote || err != nil {
		t.Errorf("what the deltas made is not what is wanted: wrote %v, %v", wrote, err)
	}
	for _, k := range []string{"in", "out", ""} {
		if passed[k] < 50 || refused[k] < 50 {
			t.Errorf("%q: only %d passed and %d were refused", k, passed[k], refused[k])
		}
	}
}
