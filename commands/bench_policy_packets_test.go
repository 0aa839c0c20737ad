//go:build bench

package commands_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/netdev"
	"netctl/netdev/netlab"
)

// The packets that are measured: of a flow that was answered, the first of an allowed
// flow, the first of one that is refused.
const (
	established = iota
	first
	denied
	kinds
)

const (
	burstSize   = 200
	burstRounds = 250
)

// ground is a router with the veths of two neighbours and one of the rulesets.
type ground struct {
	what      string
	from, to  *neighbour
	conntrack *netlink.Handle
	took      [kinds][]float64 // ns for one packet, of each burst
	refuses   bool
	port      uint16 // source of the next new flow
}

// neighbour is a namespace with one address behind the router.
type neighbour struct {
	ns      *netlab.Netns
	handle  *netlink.Handle
	send    int    // packet socket on eth0
	frame   []byte // UDP from it to the other one
	arrived uint64
}

// newGround wires both; links are the names of the router's sides.
func newGround(t *testing.T, what string, at tested, links [2]string) (*ground, *netlab.Netns) {
	router := netlab.NetnsForTest(t)
	router.Run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0",
		"net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	g := &ground{what: what, conntrack: handleIn(t, router), from: &neighbour{}, to: &neighbour{}, port: 10000}
	ends := []*neighbour{g.from, g.to}
	mac, err := net.ParseMAC(netdev.HostMAC)
	if err != nil {
		t.Fatal(err)
	}
	var macs [2]net.HardwareAddr
	for i, number := range []int{at.from, at.to} {
		n := ends[i]
		n.ns = netlab.NetnsForTest(t)
		n.ns.Run("sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
		n.handle = handleIn(t, n.ns)
		router.Run("ip", "link", "add", links[i], "group", fmt.Sprint(netdev.Group), "type", "veth", "peer", "name", "eth0", "netns", n.ns.Name)
		router.Run("ip", "link", "set", links[i], "address", mac.String(), "up")
		n.ns.Run("ip", "link", "set", "eth0", "up")
		router.Run("ip", "route", "add", policyAddress(number).String(), "dev", links[i])
		// It is not the neighbour's own, so that its kernel drops at once what arrives.
		router.Run("ip", "neigh", "replace", policyAddress(number).String(), "lladdr", "02:00:00:00:00:99", "dev", links[i])
		netlab.Until(t, 10*time.Second, "links of "+what, func() string {
			if line := n.ns.Run("ip", "-br", "link", "show", "eth0"); strings.Fields(line)[1] != "UP" {
				return line
			}
			return ""
		})
		link, err := n.handle.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		macs[i] = link.Attrs().HardwareAddr
		n.ns.Do(func() { n.send, err = packetSocket(link.Attrs().Index) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(n.send) })
	}
	g.from.frame = udpFrame(mac, macs[0], at.from, at.to, 9, openPort)
	g.to.frame = udpFrame(mac, macs[1], at.to, at.from, openPort, 9)
	return g, router
}

func handleIn(t *testing.T, n *netlab.Netns) *netlink.Handle {
	t.Helper()
	ns, err := netns.GetFromPath(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// packetSocket sends frames on a link and receives none.
func packetSocket(index int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: index})
	}
	return fd, err
}

const sourcePort, destinationPort = 34, 36 // where they are in a frame

// udpFrame has no UDP checksum, so that a port can be changed alone.
func udpFrame(dst, src net.HardwareAddr, from, to int, sport, dport uint16) []byte {
	head := []byte{0x45, 0, 0, 46, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	head = append(append(head, policyAddress(from).AsSlice()...), policyAddress(to).AsSlice()...)
	binary.BigEndian.PutUint16(head[10:], netlab.Checksum(head))
	f := append(append(slices.Clone([]byte(dst)), src...), 8, 0)
	f = append(f, head...)
	f = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(f, sport), dport)
	return append(f, append([]byte{0, 26, 0, 0}, make([]byte, 18)...)...)
}

// news is how many packets have arrived since it was asked last.
func (n *neighbour) news(t *testing.T) uint64 {
	link, err := n.handle.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	before := n.arrived
	n.arrived = link.Attrs().Statistics.RxPackets
	return n.arrived - before
}

func (n *neighbour) transmit(t *testing.T) {
	if _, err := unix.Write(n.send, n.frame); err != nil {
		t.Fatal(err)
	}
}

// burst sends packets of a kind and one that passes behind them. The kernel takes each to
// its end before the call returns; a burst of which that is not true does not count.
func (g *ground) burst(t *testing.T, kind int) {
	if err := g.conntrack.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
	sport, dport := g.from.frame[sourcePort:], g.from.frame[destinationPort:]
	lasting := func() {
		binary.BigEndian.PutUint16(sport, 9)
		binary.BigEndian.PutUint16(dport, openPort)
	}
	lasting()
	g.from.transmit(t)
	g.to.transmit(t) // the answer
	g.from.transmit(t)
	g.to.news(t)
	want := uint64(burstSize + 1)
	if kind == denied {
		binary.BigEndian.PutUint16(dport, closedPort)
		want = 1
	}
	began := time.Now()
	for range burstSize {
		if kind != established {
			binary.BigEndian.PutUint16(sport, g.port)
			if g.port++; g.port < 10000 {
				g.port = 10000
			}
		}
		g.from.transmit(t)
	}
	took := time.Since(began)
	lasting()
	g.from.transmit(t)
	if got := g.to.news(t); got == want {
		g.took[kind] = append(g.took[kind], float64(took.Nanoseconds())/burstSize)
	}
}

// least is what one packet takes of the machine when nothing else does: the shortest burst.
func (g *ground) least(t *testing.T, kind int) float64 {
	t.Helper()
	if len(g.took[kind]) < burstRounds/2 {
		t.Fatalf("%s: of %d bursts of kind %d only %d passed as they should", g.what, burstRounds, kind, len(g.took[kind]))
	}
	return slices.Min(g.took[kind])
}

// load has a program read a ruleset.
func load(t *testing.T, n *netlab.Netns, text string, args ...string) {
	t.Helper()
	c := n.Command(args...)
	c.Stdin = strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%.500s", args, err, out)
	}
}

// packetRows sends the packets through each of the rulesets in turn.
func packetRows(t *testing.T) []row {
	few, many := policyModel{10}, policyModel{5000}
	var all []*ground
	at := map[string]*ground{}
	add := func(what string, m policyModel, prefix string, refuses bool, rules func(*netlab.Netns)) {
		links := [2]string{policyLink(prefix, m.tested().from), policyLink(prefix, m.tested().to)}
		if prefix == "cali" {
			links = [2]string{m.calicoLink(m.tested().from), m.calicoLink(m.tested().to)}
		}
		began := time.Now()
		g, router := newGround(t, what, m.tested(), links)
		rules(router)
		g.refuses = refuses
		all = append(all, g)
		at[what] = g
		t.Logf("%s is there after %v", what, time.Since(began))
	}
	add("no rules", few, "nc", false, func(*netlab.Netns) {})
	add("conntrack only", few, "nc", false, func(n *netlab.Netns) {
		load(t, n, "table inet t { chain unused { ct state new; }; }\n", "nft", "-f", "-")
	})
	add("conntrack and a drop", few, "nc", true, func(n *netlab.Netns) {
		load(t, n, fmt.Sprintf("table inet t { chain unused { ct state new; }; chain f { type filter hook forward priority 0; udp dport %d drop; }; }\n", closedPort), "nft", "-f", "-")
	})
	for _, m := range []policyModel{few, many} {
		for _, name := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
			add(fmt.Sprintf("netctl %s, %d", name, m.endpoints), m, "nc", true, func(n *netlab.Netns) {
				if _, err := filterIn(t, n, name).Sync(t.Context(), m.index(t).Ruleset()); err != nil {
					t.Fatal(err)
				}
				if name == "nftables" {
					n.Run("nft", "flush", "set", "inet", acl.TableName, acl.SetUnseen)
				}
			})
		}
		for _, name := range []string{"iptables-nft", "iptables-legacy"} {
			add(fmt.Sprintf("Calico %s, %d", name, m.endpoints), m, "cali", true, func(n *netlab.Netns) {
				sets, rules := m.calico()
				load(t, n, sets, "ipset", "restore")
				load(t, n, rules, name+"-restore", "--noflush")
			})
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range burstRounds {
		for _, g := range all {
			for kind := range kinds {
				if kind != denied || g.refuses {
					g.burst(t, kind)
				}
			}
		}
	}
	for _, g := range all {
		line := fmt.Sprintf("%-28s", g.what)
		for kind, took := range g.took {
			if len(took) > 0 {
				slices.Sort(took)
				line += fmt.Sprintf("  %-6s %6.0f ns (median %6.0f)", kindNames()[kind], took[0], took[len(took)/2])
			}
		}
		t.Log(line)
	}
	return comparePackets(t, at)
}

func kindNames() []string { return []string{"lasts", "first", "denied"} }

// comparePackets holds what was measured against its references. The bounds are somewhat
// above what is reached; docs/policy.md, "What it costs", says what was aimed at.
func comparePackets(t *testing.T, at map[string]*ground) (rows []row) {
	add := func(what string, kind int, ours, theirs string, reference int, bound float64) {
		rows = append(rows, row{what, at[ours].least(t, kind), at[theirs].least(t, reference), "ns", theirs, bound})
	}
	const alone = "conntrack only"
	add("tracking alone, established packet", established, alone, "no rules", established, 0)
	add("tracking alone, first packet", first, alone, "no rules", established, 0)
	for _, n := range []string{"10", "5000"} {
		ours := "netctl nftables, " + n
		add("established packet, "+n+" endpoints", established, ours, alone, established, 1.2)
		add("first packet, "+n, first, ours, alone, first, 1.75)
		add("denied packet, "+n, denied, ours, alone, first, 1.65)
		add("  beside tracking and one rule that drops", denied, ours, "conntrack and a drop", denied, 0)
	}
	for kind, name := range []string{"established packet", "first packet", "denied packet"} {
		for _, filter := range []string{"nftables", "iptables-nft", "iptables-legacy"} {
			bound := 1.1
			if filter == "iptables-nft" {
				bound = 0 // its tree of names has chains that grow
			}
			add(name+", "+filter+", 5,000 endpoints", kind, "netctl "+filter+", 5000", "netctl "+filter+", 10", kind, bound)
		}
	}
	for kind, name := range []string{"established packet", "first packet", "denied packet"} {
		for _, n := range []string{"10", "5000"} {
			bound := 0.6
			if n == "10" {
				bound = 1
			}
			add(name+", nftables, "+n, kind, "netctl nftables, "+n, "Calico iptables-nft, "+n, kind, bound)
			for _, filter := range []string{"iptables-nft", "iptables-legacy"} {
				add(name+", "+filter+", "+n, kind, "netctl "+filter+", "+n, "Calico "+filter+", "+n, kind, 0)
			}
		}
	}
	return rows
}
