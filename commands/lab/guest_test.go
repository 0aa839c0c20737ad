package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
	"netctl/netdev/qemulab"
)

// inGuest is set where the kernel has the tunnels that the tests below need.
const inGuest = "NETCTL_IN_GUEST"

// TestInGuest runs, on Debian's cloud kernel in QEMU, the tests of tunnels that the
// kernel of this machine need not have: this very binary does, in the guest.
func TestInGuest(t *testing.T) {
	switch {
	case os.Getenv(inGuest) != "":
		t.Skip("this is the guest")
	case os.Getenv("NETCTL_GUEST") == "":
		t.Skip("takes one to two minutes: `make test-all` has it, or set NETCTL_GUEST")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := qemulab.Guest{
		Modules: []string{
			"veth", "bridge", "nf_tables", "nft_ct", "nft_masq", "nft_chain_nat", "nft_limit", "nft_log", "nft_connlimit", "nf_log_syslog", "nfnetlink_log",
			"nf_conntrack", "nf_conntrack_netlink", "nf_defrag_ipv6", "ipip", "vxlan", "wireguard", "tun",
		},
		Tools: []string{"ip", "ping", "tcpdump", "nft"},
		Files: map[string]string{"/bin/netctl": netlab.Binary(t), "/bin/tests": self},
		Script: `mkdir -p /etc/cni/net.d /etc/iproute2/rt_protos.d /var/lib/netctl-node /var/lib/cni /opt/cni/bin && touch /etc/netctl.yaml &&
			/bin/tests -test.count=1 -test.v -test.timeout=8m -test.run='^TestGuest'`,
		Env:       []string{inGuest + "=1", "NETCTL_BINARY=/bin/netctl"},
		MemoryMiB: 1536,
	}
	ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute)
	defer cancel()
	var out strings.Builder
	err = g.Run(ctx, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"IPIP"} {
		if !strings.Contains(out.String(), "--- PASS: TestGuest"+name+" ") {
			t.Errorf("%s did not run", name)
		}
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
