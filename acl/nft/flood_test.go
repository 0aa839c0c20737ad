package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// flood is how many frames one workload sends; the kernel's neighbour table holds
// 1024, of all namespaces together.
const flood = 3000

// floodedLab is a wiredLab with bounds that a flood reaches.
func floodedLab(t *testing.T) (*lab, *acl.Index) {
	l, _ := wiredLab(t, onNFT)
	o := testOptions()
	o.FlowRate, o.FlowBurst = 1, 200
	x := acl.NewIndex("n1", o)
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow"}, []string{"allow"}))
	for name, h := range l.hosts {
		if h.group == 0 {
			continue
		}
		c := endpoint("n1", "n1/cni/"+name+"/eth0", h.link, []string{"web"}, h.addrs[0].String(), h.addrs[1].String())
		c.New.(*datastore.Endpoint).Spec.MAC = h.mac.String()
		x.Apply(c)
	}
	x.SetSubnets([]netip.Prefix{netip.MustParsePrefix("10.200.0.0/16"), netip.MustParsePrefix("fd0a::/64"), netip.MustParsePrefix("10.200.7.0/24")})
	x.Flush()
	l.rules = x.Ruleset()
	l.sync()
	return l, x
}

// frames has a host send raw frames of an Ethernet type, whose payload make makes.
func (l *lab) frames(h *host, eth uint16, n int, payload func(i int) []byte) {
	l.t.Helper()
	to := &unix.SockaddrLinklayer{Ifindex: h.index}
	for i := range n {
		frame := append([]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, h.mac...)
		frame = append(binary.BigEndian.AppendUint16(frame, eth), payload(i)...)
		for {
			err := unix.Sendto(h.send, frame, 0, to)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOBUFS) {
				l.t.Fatal(err)
			}
		}
	}
}

// arpRequest asks for the gateway in the name of sender.
func arpRequest(h *host, sender netip.Addr) []byte {
	out := append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, h.mac...)
	out = append(append(out, sender.AsSlice()...), 0, 0, 0, 0, 0, 0)
	return append(out, 169, 254, 1, 1)
}

// solicitation asks for the router's link-local address from src, with the sender's
// MAC as option.
func solicitation(h *host, src, target netip.Addr) []byte {
	body := append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target.AsSlice()...)
	body = append(append(body, 1, 1), h.mac...)
	pseudo := append(append([]byte{}, src.AsSlice()...), target.AsSlice()...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(body)), 0, 0, 0, 58)
	binary.BigEndian.PutUint16(body[2:], netlab.Checksum(append(pseudo, body...)))
	head := []byte{0x60, 0, 0, 0, 0, byte(len(body)), 58, 255}
	return append(append(append(head, src.AsSlice()...), target.AsSlice()...), body...)
}

// neighbours are those that the router has of a link.
func (l *lab) neighbours(family, link string) []string {
	return strings.Split(strings.TrimSpace(l.router.Run("ip", family, "neigh", "show", "dev", link)), "\n")
}

func TestAFloodOfARPTeachesNothing(t *testing.T) {
	l, _ := floodedLab(t)
	a := l.hosts["a"]
	l.router.Run("sysctl", "-q", "-w", "net.ipv4.conf.nca.proxy_arp=1", "net.ipv4.neigh.nca.proxy_delay=0")
	l.frames(a, unix.ETH_P_ARP, flood, func(i int) []byte {
		return arpRequest(a, netip.AddrFrom4([4]byte{10, 77, byte(i >> 8), byte(i)}))
	})
	spoofed := fmt.Sprintf("counter packets %d", flood)
	l.eventually("the guard to count the frames", func() bool {
		return strings.Contains(l.router.Run("nft", "list", "chain", "arp", acl.TableName, acl.ChainARP), spoofed)
	})
	if n := l.neighbours("-4", "nca"); len(n) > 1 {
		t.Errorf("the host learnt %d neighbours", len(n))
	}
	// Its own address is learnt as ever, from requests and from answers.
	l.router.Run("ip", "neigh", "del", "10.0.0.1", "dev", "nca")
	l.router.Run("ping", "-c1", "-W5", "10.0.0.1")
	l.router.Run("ip", "neigh", "flush", "dev", "nca")
	l.frames(a, unix.ETH_P_ARP, 1, func(int) []byte { return arpRequest(a, a.addrs[0]) })
	l.eventually("the workload's own address", func() bool { return strings.Contains(strings.Join(l.neighbours("-4", "nca"), " "), "10.0.0.1") })
}

func TestAFloodOfSolicitationsTeachesLittle(t *testing.T) {
	l, _ := floodedLab(t)
	a := l.hosts["a"]
	link := strings.Fields(l.router.Run("ip", "-6", "-br", "addr", "show", "dev", "nca"))
	target := netip.MustParsePrefix(link[len(link)-1]).Addr()
	if !target.IsLinkLocalUnicast() {
		t.Fatalf("no link-local address in %q", link)
	}
	l.frames(a, unix.ETH_P_IPV6, flood, func(i int) []byte {
		return solicitation(a, netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: 0x77, 14: byte(i >> 8), 15: byte(i)}), target)
	})
	// 16 at once and one a second: the flood takes less than a second.
	if n := l.neighbours("-6", "nca"); len(n) > 100 {
		t.Errorf("the host learnt %d neighbours", len(n))
	}
	own := netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: a.mac[0] ^ 2, 9: a.mac[1], 10: a.mac[2], 11: 0xff, 12: 0xfe, 13: a.mac[3], 14: a.mac[4], 15: a.mac[5]})
	l.frames(a, unix.ETH_P_IPV6, 1, func(int) []byte { return solicitation(a, own, target) })
	l.eventually("the address made of the MAC", func() bool { return strings.Contains(strings.Join(l.neighbours("-6", "nca"), " "), own.String()) })
}

// conntracks is how many flows the router has.
func (l *lab) conntracks() int {
	n, err := strconv.Atoi(strings.TrimSpace(l.router.Run("cat", "/proc/sys/net/netfilter/nf_conntrack_count")))
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

func TestAFloodOfFlowsIsBounded(t *testing.T) {
	l, _ := floodedLab(t)
	a, before := l.hosts["a"], l.conntracks()
	l.frames(a, unix.ETH_P_IP, flood, func(i int) []byte {
		p := udp("10.0.0.1", "192.0.2.9", 1000)
		p.SrcPort = uint16(10000 + i)
		return packetBytes(p, 0)
	})
	if n := l.conntracks() - before; n < 200 || n > 400 {
		t.Errorf("%d flows are tracked, want some 200", n)
	}
	l.expect(true, "b", udp("10.0.0.2", "192.0.2.9", 1000))
}

// TestAnotherRateActsAtOnce, also on workloads that have just reached the one before.
func TestAnotherRateActsAtOnce(t *testing.T) {
	l, _ := floodedLab(t)
	for round, most := range []int{200, 16000} {
		o, before := testOptions(), l.conntracks()
		o.FlowRate, o.FlowBurst = uint32(1+round), uint32(most)
		l.rules = l.rules.WithStatic(o)
		l.sync()
		l.frames(l.hosts["a"], unix.ETH_P_IP, flood, func(i int) []byte {
			p := udp("10.0.0.1", "192.0.2.9", 1000)
			p.SrcPort = uint16(10000*(1+round) + i)
			return packetBytes(p, 0)
		})
		if n := l.conntracks() - before; n < min(most, flood) || n > 2*most {
			t.Errorf("%d flows are tracked, want some %d", n, min(most, flood))
		}
	}
}

// TestOneFlowIsNotAFlood: a flow that nobody answers (syslog, RTP) is of state new for
// ever, and counts once.
func TestOneFlowIsNotAFlood(t *testing.T) {
	l, _ := floodedLab(t)
	l.frames(l.hosts["a"], unix.ETH_P_IP, flood, func(i int) []byte {
		return packetBytes(udp("10.0.0.1", "192.0.2.9", 1000), uint64(i))
	})
	if out := l.router.Run("nft", "list", "chain", "inet", acl.TableName, "from_wl"); !strings.Contains(out, "counter packets 0 bytes 0 drop comment \"too many new flows\"") {
		t.Errorf("packets of one flow are dropped:\n%s", out)
	}
}

// TestAFloodOfStrangersIsBounded: packets to addresses of the host's own subnets that
// nobody has make it look for a neighbour each.
func TestAFloodOfStrangersIsBounded(t *testing.T) {
	l, x := floodedLab(t)
	o := testOptions() // without a bound of flows, which would come first
	open := acl.Static(o).Chains["from_wl"]
	l.rules.Chains["from_wl"] = open
	l.sync()
	a, n := l.hosts["a"], l.hosts["n"]
	l.router.Run("ip", "addr", "add", "10.200.0.1/16", "dev", "up0")
	l.router.Run("ip", "addr", "add", "fd0a::1/64", "dev", "up0", "nodad")
	n.Run("ip", "addr", "add", "10.200.255.9/16", "dev", "eth0")
	l.frames(a, unix.ETH_P_IP, flood, func(i int) []byte {
		p := udp("10.0.0.1", "192.0.2.9", 1000)
		p.Dst = netip.AddrFrom4([4]byte{10, 200, byte(1 + i>>8), byte(i)})
		return packetBytes(p, 0)
	})
	l.frames(a, unix.ETH_P_IPV6, flood, func(i int) []byte {
		p := udp("fd00::1", "fd0a::9", 1000)
		p.Dst = netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x0a, 14: byte(i >> 8), 15: byte(i)})
		return packetBytes(p, 0)
	})
	if got := len(l.neighbours("-4", "up0")) + len(l.neighbours("-6", "up0")); got > 500 {
		t.Errorf("the host looks for %d neighbours", got)
	}
	l.hosts["b"].Run("ping", "-c1", "-W5", "10.200.255.9")
	// Subnets that the host is not connected to any more are free again.
	x.SetSubnets(nil)
	l.apply(x.Flush())
	if got := listing(t, l.router); !strings.Contains(got, "set onlink4 {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\tcomment \"subnets of the host\"\n\t}") {
		t.Errorf("onlink4 is not empty:\n%s", got)
	}
}

// TestAFloodOfEchoesIsBounded, whether each has an identifier of its own or all have one,
// whose answer makes them established.
func TestAFloodOfEchoesIsBounded(t *testing.T) {
	l, _ := floodedLab(t)
	for _, several := range []uint64{0, 1} {
		before := l.answers()
		l.frames(l.hosts["a"], unix.ETH_P_IP, flood, func(i int) []byte { return packetBytes(echo("10.0.0.1", "10.99.0.1"), several*uint64(i)) })
		if n := l.answers() - before; n < 1 || n > 500 {
			t.Errorf("%d echo requests are answered", n)
		}
	}
}

// answers is how many echo requests the router has answered.
func (l *lab) answers() int {
	fields := strings.Fields(l.router.Run("nstat", "-saz", "IcmpOutEchoReps"))
	n, err := strconv.Atoi(fields[len(fields)-2])
	if err != nil {
		l.t.Fatal(fields, err)
	}
	return n
}

// TestAFloodOfEchoesIsTheSendersOwn: the budget of echo requests to the host is each
// link's.
func TestAFloodOfEchoesIsTheSendersOwn(t *testing.T) {
	l, _ := floodedLab(t)
	a := l.hosts["a"]
	l.frames(a, unix.ETH_P_IP, flood, func(i int) []byte { return packetBytes(echo("10.0.0.1", "10.99.0.1"), uint64(i)) })
	out := l.hosts["b"].Run("ping", "-c20", "-i0.01", "-W5", "10.99.0.1")
	if !strings.Contains(out, "20 received") {
		t.Errorf("another workload's echoes are lost:\n%s", out)
	}
}
