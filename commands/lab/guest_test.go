package lab

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/netdev/netlab"
	"netctl/netdev/qemulab"
)

// inGuest is set where the kernel has the tunnels that the tests below need.
const inGuest = "NETCTL_IN_GUEST"

// guestModules are what nodes need of Debian's kernel: nobody loads one there on demand.
var guestModules = []string{
	"veth", "bridge", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_limit", "nft_log", "nft_connlimit", "nft_fib_inet", "nft_reject_inet",
	"nfnetlink_log", "nf_conntrack", "nf_conntrack_netlink", "nf_defrag_ipv6", "ipip", "vxlan", "wireguard", "tun",
}

// TestInGuest runs, on Debian's cloud kernels in QEMU, the tests of tunnels that the
// kernel of this machine need not have: this very binary does, in the guest. On the older
// and the newer one two nodes and a tunnel are enough.
func TestInGuest(t *testing.T) {
	switch {
	case os.Getenv(inGuest) != "":
		t.Skip("this is the guest")
	case os.Getenv("NETCTL_GUEST") == "":
		t.Skip("takes some four minutes: `make test-all` has it, or set NETCTL_GUEST")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		name, kernel string
		modules      []string
		tests        []string
	}{
		{"6.1", qemulab.KernelDir, []string{"nf_log_syslog"}, []string{"IPIP", "WireGuard", "WireGuardIPv6", "WireGuardFamily", "Doctor"}},
		{"5.10", qemulab.KernelDir + "-bullseye", []string{"nf_log_ipv4", "nf_log_ipv6", "nft_counter"}, []string{"IPIP"}},
		{"6.12", qemulab.KernelDir + "-trixie", []string{"nf_log_syslog"}, []string{"IPIP"}},
	} {
		t.Run(k.name, func(t *testing.T) {
			g := qemulab.Guest{
				Kernel:  k.kernel,
				Modules: append(slices.Clone(guestModules), k.modules...),
				Tools:   []string{"ip", "ping", "tcpdump", "nft"},
				Files:   map[string]string{"/bin/netctl": netlab.Binary(t), "/bin/tests": self},
				Script: "mkdir -p /etc/cni/net.d /etc/iproute2/rt_protos.d /var/lib/netctl-node /var/lib/cni /opt/cni/bin && touch /etc/netctl.yaml && " +
					"/bin/tests -test.count=1 -test.v -test.timeout=25m -test.run='^TestGuest(" + strings.Join(k.tests, "|") + ")$'",
				Env:       []string{inGuest + "=1", "NETCTL_BINARY=/bin/netctl"},
				MemoryMiB: 1536,
			}
			ctx, cancel := context.WithTimeout(t.Context(), 27*time.Minute)
			defer cancel()
			var out strings.Builder
			err := g.Run(ctx, &out)
			t.Log(out.String())
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range k.tests {
				if !strings.Contains(out.String(), "--- PASS: TestGuest"+name+" ") {
					t.Errorf("%s did not run", name)
				}
			}
		})
	}
}

// guestLab is two nodes in different subnets with an endpoint each.
func guestLab(t *testing.T, ipv6 bool) (l *netlab.Lab, a, b *netlab.Container, a4, b4 netip.Addr) {
	t.Helper()
	if os.Getenv(inGuest) == "" {
		t.Skip("runs in the guest of TestInGuest")
	}
	l = forTest(t, Config{Nodes: 2, Subnets: 2, IPv6: ipv6})
	netlab.Must(t, l.Hosts[0], "netctl", "pool", "add", pool4)
	a, a4, _ = attach(t, l.Hosts[0], "a", "web")
	b, b4, _ = attach(t, l.Hosts[1], "b", "web")
	return l, a, b, a4, b4
}

// mode sets how packets of the guest's pool travel.
func mode(t *testing.T, h *netlab.Host, encap string) {
	t.Helper()
	manifest := fmt.Sprintf(`{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": %q, "encap": %q}}`, pool4, encap)
	netlab.Must(t, h, "sh", "-c", "echo '"+manifest+"' | netctl apply -f -")
}

// capture prints packets that a host sends and receives until it has seen enough of
// them.
func capture(t *testing.T, h *netlab.Host, link, filter string, during func()) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out, said strings.Builder
	var cmd *exec.Cmd
	err := h.Do(func() error {
		cmd = exec.CommandContext(ctx, "tcpdump", "-Z", "root", "-l", "-n", "-v", "-i", link, "-c", "4", filter)
		cmd.Stdout, cmd.Stderr = &out, &said
		return cmd.Start()
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for { // it sees nothing that comes before it listens
		during()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("tcpdump: %v: %s", err, &said)
			}
			return out.String()
		default:
		}
	}
}

// TestGuestIPIP: the documents' tunnel routes, packets by them as large as the endpoints'
// interfaces take, and what is on the wire.
func TestGuestIPIP(t *testing.T) {
	l, a, b, a4, b4 := guestLab(t, false)
	n1, n2 := l.Hosts[0], l.Hosts[1]
	mode(t, n1, "ipip")
	goes(t, n1, "tunl0", b4)
	goes(t, n2, "tunl0", a4)
	for h, want := range map[*netlab.Host]string{
		n1: `(?m)^10\.65\.\d+\.\d+/26 via 192\.168\.100\.103 dev tunl0 proto netctl-bgp metric 32 onlink *$`,
		n2: `(?m)^10\.65\.\d+\.\d+/26 via 192\.168\.99\.102 dev tunl0 proto netctl-bgp metric 32 onlink *$`,
	} {
		if out := strings.ReplaceAll(netlab.Must(t, h, "ip", "route"), "proto 88", "proto netctl-bgp"); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s: routes\n%s\nlack %s", h.Name, out, want)
		}
	}
	pings(t, a, b4)
	fits(t, a, b, b4, 1480)
	wire := capture(t, n1, "eth1", "ip proto 4", func() { pings(t, a, b4) })
	for _, want := range []string{"192.168.99.102 > 192.168.100.103: ", a4.String() + " > " + b4.String() + ": ICMP echo request", b4.String() + " > " + a4.String() + ": ICMP echo reply"} {
		if !strings.Contains(wire, want) {
			t.Errorf("%q is not on the wire:\n%s", want, wire)
		}
	}
	healthyStatus(t, l)
}

// fits checks that both endpoints have an MTU, that packets of that size pass whole, and
// that TCP does.
func fits(t *testing.T, a, b *netlab.Container, b4 netip.Addr, mtu int) {
	t.Helper()
	for _, c := range []*netlab.Container{a, b} {
		netlab.Until(t, patience, "MTU", func() string {
			if out := netlab.Must(t, c, "ip", "link", "show", "eth0"); !strings.Contains(out, fmt.Sprintf(" mtu %d ", mtu)) {
				return out
			}
			return ""
		})
	}
	pings(t, a, b4, "-M", "do", "-s", fmt.Sprint(mtu-28))
	if out, err := netlab.Try(t, a, "ping", "-n", "-c1", "-W1", "-M", "do", "-s", fmt.Sprint(mtu-27), b4.String()); err == nil {
		t.Errorf("larger than the MTU: %s", out)
	}
	transfer(t, a, b, b4)
}

// healthyStatus waits until nothing is wrong on any node.
func healthyStatus(t *testing.T, l *netlab.Lab) {
	t.Helper()
	for _, h := range l.Hosts {
		netlab.Until(t, patience, "status", func() string {
			out, err := netlab.Try(t, h, "netctl", "status")
			if err != nil {
				return fmt.Sprint(out, err)
			}
			return ""
		})
	}
}

// transfer sends a megabyte over a TCP connection.
func transfer(t *testing.T, from, at netlab.Place, to netip.Addr) {
	t.Helper()
	const size = 1 << 20
	var in net.Listener
	if err := at.Do(func() (err error) {
		in, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	got := make(chan int64, 1)
	go func() {
		c, err := in.Accept()
		if err != nil {
			got <- 0
			return
		}
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}()
	if err := from.Do(func() error {
		c, err := net.DialTimeout("tcp", in.Addr().String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Write(make([]byte, size))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != size {
		t.Errorf("%d of %d bytes arrived", n, size)
	}
}

// TestGuestWireGuard: a pool goes from IPIP to WireGuard and back without a lost packet,
// what is on the wire can be read by nobody, a node takes another key, and the kernel has
// the peers that it is told.
func TestGuestWireGuard(t *testing.T) {
	l, a, b, a4, b4 := guestLab(t, true)
	n1, n2 := l.Hosts[0], l.Hosts[1]
	const wg = "wg.netctl"
	// The fabric of the lab does not know pools: packets need a tunnel from the start.
	mode(t, n1, "ipip")
	goes(t, n1, "tunl0", b4)
	goes(t, n2, "tunl0", a4)
	pings(t, a, b4)
	unhurt(t, a, b4, "from IPIP to WireGuard", func() {
		mode(t, n1, "wireguard")
		goes(t, n1, wg, b4)
		goes(t, n2, wg, a4)
	})
	fits(t, a, b, b4, 1440)
	wire := capture(t, n1, "eth1", "udp port 51820", func() { pings(t, a, b4) })
	if !strings.Contains(wire, "192.168.99.102.51820 > 192.168.100.103.51820: UDP") || strings.Contains(wire, a4.String()) || strings.Contains(wire, "ICMP") {
		t.Errorf("on the wire:\n%s", wire)
	}
	// A packet that one node sends by the old key once the other has taken the new one is
	// lost; so are none after that, and none goes another way.
	before := publicKeyOf(t, n1)
	flood, err := netlab.StartFlood(a, b4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, n1, "netctl", "node", "rotate-key", n1.Name)
	netlab.Until(t, patience, "another key", func() string {
		if now := publicKeyOf(t, n1); now == before {
			return now
		}
		return ""
	})
	pings(t, a, b4)
	goes(t, n1, wg, b4)
	goes(t, n2, wg, a4)
	t.Logf("across a new key: %s", flood.Stop())
	unhurt(t, a, b4, "after the new key", func() { pings(t, b, a4) })
	if mode := netlab.Must(t, n1, "stat", "-c", "%a", "/var/lib/netctl-node/wireguard.key"); strings.TrimSpace(mode) != "600" {
		t.Errorf("the key's file has mode %s", mode)
	}
	unhurt(t, a, b4, "from WireGuard to IPIP", func() {
		mode(t, n1, "ipip")
		goes(t, n1, "tunl0", b4)
		goes(t, n2, "tunl0", a4)
	})
	healthyStatus(t, l)
	keepsPeers(t, a)
}

// keepsPeers writes peers of a device in a container, and reads them back: addresses come,
// move and go one by one.
func keepsPeers(t *testing.T, at netlab.Place) {
	t.Helper()
	var k *kernel.Kernel
	if err := at.Do(func() (err error) {
		k, err = kernel.Open(slog.New(slog.DiscardHandler))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	const device = "wg.test"
	if _, err := k.SetTunnel(kernel.Tunnel{Name: device, Kind: datastore.TunnelWireGuard, MTU: 1400, Private: kernel.WireGuardKey{8, 31: 64}, Port: 51820}); err != nil {
		t.Fatal(err)
	}
	one, two, six, single := netip.MustParsePrefix("10.1.0.0/26"), netip.MustParsePrefix("10.1.0.64/26"), netip.MustParsePrefix("fd80::/122"), netip.MustParsePrefix("10.1.0.5/32")
	first := kernel.WireGuardPeer{Key: kernel.WireGuardKey{1}, Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Allowed: []netip.Prefix{one, two, six}, Asks: true}
	second := kernel.WireGuardPeer{Key: kernel.WireGuardKey{2}, Endpoint: netip.MustParseAddrPort("[2001:db8::2]:51820"), Allowed: []netip.Prefix{single}}
	has := func(want map[byte][]netip.Prefix) {
		t.Helper()
		peers, err := k.WireGuardPeers(device)
		if err != nil {
			t.Fatal(err)
		}
		have := map[byte][]netip.Prefix{}
		for key, p := range peers {
			slices.SortFunc(p.Allowed, datastore.ComparePrefix)
			have[key[0]] = p.Allowed
		}
		if fmt.Sprint(have) != fmt.Sprint(want) {
			t.Errorf("peers %v, want %v", have, want)
		}
	}
	set := func(nobodys []netip.Prefix, remove []kernel.WireGuardKey, peers ...kernel.WireGuardPeer) {
		t.Helper()
		if err := k.SetWireGuardPeers(device, peers, nobodys, remove); err != nil {
			t.Fatal(err)
		}
	}
	set(nil, nil, first, second)
	has(map[byte][]netip.Prefix{1: {one, two, six}, 2: {single}})
	set([]netip.Prefix{two}, nil)
	has(map[byte][]netip.Prefix{1: {one, six}, 2: {single}})
	second.Allowed = append(second.Allowed, six)
	set([]netip.Prefix{single}, nil, second)
	has(map[byte][]netip.Prefix{1: {one}, 2: {six}})
	set(nil, []kernel.WireGuardKey{first.Key})
	has(map[byte][]netip.Prefix{2: {six}})
}

// unhurt floods while something happens, and for some packets after it, and wants none
// lost.
func unhurt(t *testing.T, from netlab.Place, to netip.Addr, what string, do func()) {
	t.Helper()
	flood, err := netlab.StartFlood(from, to, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	do()
	more := flood.Answered() + 20
	netlab.Until(t, patience, "traffic", func() string {
		if flood.Answered() < more {
			return "none"
		}
		return ""
	})
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("%s: %s: %v", what, r, r.Lost)
	}
}

// publicKeyOf is the public key that a node tells of its end.
func publicKeyOf(t *testing.T, h *netlab.Host) string {
	t.Helper()
	out := netlab.Must(t, h, "netctl", "get", "node", h.Name, "-o", "json")
	_, rest, found := strings.Cut(out, `"key": "`)
	if !found {
		t.Fatalf("no key in %s", out)
	}
	key, _, _ := strings.Cut(rest, `"`)
	return key
}
