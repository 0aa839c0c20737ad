package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/acl/iptables"
	"netctl/netdev/netlab"
)

const hostMAC = "ee:ee:ee:ee:ee:ee"

// lab is a router namespace with the packet filter, and hosts behind it.
type lab struct {
	t      testing.TB
	router *netns
	hosts  map[string]*host
	on     string       // the back end that it tries
	table  *Table       // nil: that is another one
	filter backEnd      // what holds the rules
	rules  *acl.Ruleset // what it holds
	sent   uint64
}

// backEnd is what the suite asks of one.
type backEnd interface {
	Sync(ctx context.Context, want *acl.Ruleset) (wrote bool, err error)
	Adjust(ctx context.Context, want *acl.Ruleset) (wrote bool, err error)
	Apply(ctx context.Context, d acl.Delta) error
	Counts(ctx context.Context, rules []acl.Rule) ([]acl.Count, error)
	Dropped(ctx context.Context, chain string) (uint64, error)
	Doubt(ctx context.Context) error
}

// onNFT is this package's back end; the others are acl/iptables in its flavours.
const onNFT = "nftables"

// onAll has a test try every back end.
func onAll(t *testing.T, test func(t *testing.T, on string)) {
	for _, on := range []string{onNFT, "iptables-legacy", "iptables-nft"} {
		t.Run(on, func(t *testing.T) { test(t, on) })
	}
}

// onEach is onAll where there is time for it (make test-all).
func onEach(t *testing.T, test func(t *testing.T, on string)) {
	if os.Getenv("NETCTL_FLAVOURS") == "" {
		test(t, onNFT)
		return
	}
	onAll(t, test)
}

// openIPTables is the back end of a flavour in a namespace.
func openIPTables(t testing.TB, n *netns, on string) *iptables.Table {
	t.Helper()
	var table *iptables.Table
	n.Do(func() {
		var err error
		if table, err = iptables.Open(slog.New(slog.DiscardHandler), iptables.Mode(strings.TrimPrefix(on, "iptables-")), "nc"); err != nil {
			t.Error(err)
		}
	})
	if table == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

// listed is what the back end's own tools print, of both families.
func (l *lab) listed() string {
	l.t.Helper()
	if l.on == onNFT {
		return l.router.Run("nft", "list", "table", "inet", acl.TableName)
	}
	mode := strings.TrimPrefix(l.on, "iptables-")
	return l.router.Run("iptables-"+mode+"-save", "-c") + l.router.Run("ip6tables-"+mode+"-save", "-c")
}

// host is a namespace behind one link of the router.
type host struct {
	*netns
	link    string // the router's side
	group   uint32
	addrs   []netip.Addr
	mac     net.HardwareAddr
	send    int // packet socket on eth0
	receive int // packet socket on eth0: what comes in
	index   int
	tap     *os.File // it is a machine behind a TAP of the router, which only sends
}

func newLab(t testing.TB, on string) *lab {
	t.Helper()
	l := &lab{t: t, on: on, router: newNetns(t), hosts: map[string]*host{}, rules: acl.Static(testOptions())}
	l.router.sysctl("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0",
		"net.ipv4.conf.default.rp_filter=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0")
	l.router.Run("ip", "route", "add", "169.254.1.1", "dev", "lo", "scope", "link")
	l.router.Run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
	if on == onNFT {
		l.table = open(t, l.router)
		l.filter = l.table
	} else {
		l.filter = openIPTables(t, l.router, on)
	}
	if _, err := l.filter.Sync(t.Context(), l.rules); err != nil {
		t.Fatal(err)
	}
	return l
}

func (n *netns) sysctl(settings ...string) {
	n.t.Helper()
	n.Run(append([]string{"sysctl", "-q", "-w"}, settings...)...)
}

// addHost wires a host; group 0 is a link that is not ours.
func (l *lab) addHost(name, link string, group uint32, addrs ...string) *host {
	l.t.Helper()
	h := &host{netns: newNetns(l.t), link: link, group: group}
	l.hosts[name] = h
	h.sysctl("net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.router_solicitations=0")
	ipv6 := slices.ContainsFunc(addrs, func(a string) bool { return strings.Contains(a, ":") })
	if !ipv6 {
		// Its multicast reports would count as dropped.
		h.sysctl("net.ipv6.conf.default.disable_ipv6=1")
	}
	l.router.Run("ip", "link", "add", link, "group", strconv.Itoa(int(group)), "type", "veth", "peer", "name", "eth0", "netns", h.Name)
	l.router.Run("ip", "link", "set", link, "address", hostMAC, "up")
	h.Run("ip", "link", "set", "eth0", "up")
	h.Run("ip", "route", "add", "169.254.1.1", "dev", "eth0")
	h.Run("ip", "neigh", "replace", "169.254.1.1", "lladdr", hostMAC, "dev", "eth0")
	h.Run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
	if ipv6 {
		h.Run("ip", "neigh", "replace", "fe80::1", "lladdr", hostMAC, "dev", "eth0")
		h.Run("ip", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "onlink")
	}
	// Until the kernel has looked at a link that came up it drops what is sent there.
	for _, end := range []func() string{
		func() string { return h.Run("ip", "-br", "link", "show", "eth0") },
		func() string { return l.router.Run("ip", "-br", "link", "show", link) },
	} {
		netlab.Until(l.t, 10*time.Second, "links of "+name, func() string {
			if line := end(); strings.Fields(line)[1] != "UP" {
				return line
			}
			return ""
		})
	}
	mac, err := net.ParseMAC(strings.Fields(h.Run("ip", "-br", "link", "show", "eth0"))[2])
	if err != nil {
		l.t.Fatal(err)
	}
	h.mac = mac
	for _, s := range addrs {
		a := netip.MustParseAddr(s)
		h.addrs = append(h.addrs, a)
		add := []string{"ip", "addr", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "eth0"}
		if a.Is6() {
			add = append(add, "nodad") // or it cannot be bound to for a moment, whatever accept_dad is
		}
		h.Run(add...)
		if a.Is6() { // the kernel makes its route later
			netlab.Until(l.t, 10*time.Second, "route of "+s, func() string {
				if routes := h.Run("ip", "-6", "route", "show", "table", "local"); !strings.Contains(routes, "local "+s+" ") {
					return routes
				}
				return ""
			})
		}
		l.router.Run("ip", "route", "add", s, "dev", link)
		l.router.Run("ip", "neigh", "replace", s, "lladdr", mac.String(), "dev", link)
	}
	h.Do(func() { h.openSockets() })
	return h
}

func (h *host) openSockets() {
	link, err := net.InterfaceByName("eth0")
	if err != nil {
		h.t.Error(err)
		return
	}
	h.index = link.Index
	for _, fd := range []*int{&h.send, &h.receive} {
		if *fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			h.t.Error(err)
			return
		}
		h.t.Cleanup(func() { unix.Close(*fd) })
	}
	all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(h.receive, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}); err != nil {
		h.t.Error(err)
	}
	_ = unix.SetsockoptInt(h.receive, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
}

// probe is a packet to send: who sends it, and what the filter can know of it.
type probe struct {
	from string
	p    acl.Packet
}

// transmit puts the packet on the sender's wire, marked with id.
func (l *lab) transmit(from *host, p acl.Packet, id uint64) {
	l.t.Helper()
	eth := unix.ETH_P_IP
	if p.Src.Is6() {
		eth = unix.ETH_P_IPV6
	}
	dst, _ := net.ParseMAC(hostMAC)
	frame := append(append([]byte{}, dst...), from.mac...)
	frame = binary.BigEndian.AppendUint16(frame, uint16(eth))
	frame = append(frame, packetBytes(p, id)...)
	if from.tap != nil {
		if _, err := from.tap.Write(frame); err != nil {
			l.t.Errorf("send: %v", err)
		}
		return
	}
	to := &unix.SockaddrLinklayer{Ifindex: from.index}
	for {
		err := unix.Sendto(from.send, frame, 0, to)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.ENOBUFS) {
			l.t.Fatalf("send: %v", err)
		}
	}
}

// packetBytes is the IP packet with right checksums; id is its last 8 bytes.
func packetBytes(p acl.Packet, id uint64) []byte {
	var body []byte
	switch p.Protocol {
	case unix.IPPROTO_TCP:
		body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
		body = append(body, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0) // SYN
	case unix.IPPROTO_UDP:
		body = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.SrcPort), p.DstPort)
		body = append(body, 0, 16, 0, 0)
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		body = []byte{p.Type, p.Code, 0, 0, byte(id >> 8), byte(id), 0, 1}
	}
	body = binary.BigEndian.AppendUint64(body, id)
	checksumAt := map[uint8]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6, unix.IPPROTO_ICMP: 2, unix.IPPROTO_ICMPV6: 2}
	if at, ok := checksumAt[p.Protocol]; ok {
		var pseudo []byte
		if p.Protocol != unix.IPPROTO_ICMP {
			pseudo = append(append(pseudo, p.Src.AsSlice()...), p.Dst.AsSlice()...)
			pseudo = append(pseudo, 0, p.Protocol, 0, byte(len(body)))
		}
		binary.BigEndian.PutUint16(body[at:], netlab.Checksum(append(pseudo, body...)))
	}
	if p.Src.Is6() {
		head := []byte{0x60, 0, 0, 0, 0, byte(len(body)), p.Protocol, 64}
		return append(append(append(head, p.Src.AsSlice()...), p.Dst.AsSlice()...), body...)
	}
	head := []byte{0x45, 0, 0, byte(20 + len(body)), 0, 0, 0, 0, 64, p.Protocol, 0, 0}
	head = append(append(head, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], netlab.Checksum(head))
	return append(head, body...)
}

// received drains what reached the host and returns the marks.
func (h *host) received() []uint64 {
	var out []uint64
	buffer := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(h.receive, buffer, unix.MSG_DONTWAIT)
		if err != nil {
			return out
		}
		if a, ok := from.(*unix.SockaddrLinklayer); ok && a.Pkttype != unix.PACKET_OUTGOING && n >= 14+20+8 {
			out = append(out, binary.BigEndian.Uint64(buffer[n-8:n]))
		}
	}
}

var dropLine = regexp.MustCompile(`(?m)^\[(\d+):\d+\] -A nctl-.* -j (?:DROP|REJECT)\b`)

var dropCounter = regexp.MustCompile(`counter packets (\d+) bytes \d+ (?:drop|reject)`)

// dropped is how many packets the filter dropped or rejected so far.
func (l *lab) dropped() int {
	l.t.Helper()
	total := 0
	counter := dropCounter
	if l.on != onNFT {
		counter = dropLine
	}
	for _, m := range counter.FindAllStringSubmatch(l.listed(), -1) {
		n, _ := strconv.Atoi(m[1])
		total += n
	}
	return total
}

// try sends every probe and tells which arrived. Each either arrives or is
// counted as dropped, so nothing waits for silence.
func (l *lab) try(probes []probe) []bool {
	l.t.Helper()
	for _, h := range l.hosts {
		h.received()
	}
	before, start := l.dropped(), l.sent
	for _, p := range probes {
		l.transmit(l.hosts[p.from], p.p, l.mark(l.sent))
		l.sent++
	}
	arrived, n := make([]bool, len(probes)), 0
	l.eventually("every probe to arrive or be dropped", func() bool {
		for _, h := range l.hosts {
			for _, mark := range h.received() {
				for i := range probes {
					if mark == l.mark(start+uint64(i)) && !arrived[i] && h != l.hosts[probes[i].from] { // who is refused may get his own back
						arrived[i] = true
						n++
					}
				}
			}
		}
		return n+l.dropped()-before >= len(probes)
	})
	return arrived
}

// mark makes a sequence number unlikely in any other packet.
func (l *lab) mark(n uint64) uint64 { return 0x6e65746374000000 ^ uint64(os.Getpid())<<40 + n }

func (l *lab) eventually(what string, ok func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("waited for %s\n%s", what, l.listed())
		}
		time.Sleep(time.Millisecond)
	}
}

// complete fills in what the router will see of the probe.
func (l *lab) complete(p *probe) {
	from := l.hosts[p.from]
	p.p.InLink, p.p.InGroup = from.link, from.group
	for _, h := range l.hosts {
		for _, a := range h.addrs {
			if a == p.p.Dst {
				p.p.OutLink, p.p.OutGroup = h.link, h.group
			}
		}
	}
	if p.p.State == 0 {
		p.p.State = acl.New
	}
}

// check sends the probes and holds what happens against Eval.
func (l *lab) check(probes []probe) []bool {
	l.t.Helper()
	for i := range probes {
		l.complete(&probes[i])
	}
	got := l.try(probes)
	for i, p := range probes {
		if d := l.rules.Eval(p.p); d.Allowed != got[i] {
			l.t.Errorf("%+v: arrived %v, but Eval: %s", p.p, got[i], d)
		}
	}
	if l.t.Failed() {
		l.t.Fatalf("rules:\n%s\n%s", l.rules, l.listed())
	}
	return got
}

// expect sends one probe and wants it to arrive or not, also by Eval.
func (l *lab) expect(arrives bool, from string, p acl.Packet) {
	l.t.Helper()
	if got := l.check([]probe{{from, p}}); got[0] != arrives {
		l.t.Errorf("from %s %v to %v proto %d port %d: arrived %v", from, p.Src, p.Dst, p.Protocol, p.DstPort, got[0])
	}
}

// sync makes the table whole, and waits no more for flows that began unseen.
func (l *lab) sync() {
	l.t.Helper()
	if _, err := l.filter.Sync(l.t.Context(), l.rules); err != nil {
		l.t.Fatal(err)
	}
	if l.on == onNFT {
		l.router.Run("nft", "flush", "set", "inet", acl.TableName, acl.SetUnseen)
		return
	}
	for p := range acl.Unseen() {
		for _, family := range []string{"4", "6"} {
			l.router.Run("ipset", "flush", fmt.Sprintf("nctl-unseen_%d_%s", p, family))
		}
	}
}

// apply writes a delta to the kernel and to the rules Eval uses.
func (l *lab) apply(d acl.Delta) {
	l.t.Helper()
	if err := l.filter.Apply(l.t.Context(), d); err != nil {
		l.t.Fatal(err)
	}
	l.rules.Apply(d)
}

func udp(src, dst string, port uint16) acl.Packet {
	return acl.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 17, SrcPort: 9, DstPort: port}
}

func tcp(src, dst string, port uint16) acl.Packet {
	p := udp(src, dst, port)
	p.Protocol = 6
	return p
}

func echo(src, dst string) acl.Packet {
	p := acl.Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Protocol: 1, Type: 8}
	if p.Src.Is6() {
		p.Protocol, p.Type = 58, 128
	}
	return p
}

// uniquePort gives each probe a source port of its own: a new flow.
func (l *lab) uniquePort(p acl.Packet) acl.Packet {
	p.SrcPort = uint16(20000 + l.sent%40000)
	return p
}

// list is listing, where that is what the rules are in.
func (l *lab) list() {
	l.t.Helper()
	if l.on == onNFT {
		listing(l.t, l.router)
	}
}
