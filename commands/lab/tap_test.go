package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// vm stands in for a virtual machine: a namespace whose eth0 is a TAP too, with a cable
// between both. What a kernel and its DHCP client make of what they are told is real.
type vm struct {
	*netlab.Container
	t     *testing.T
	tap   string
	mac   string
	lease string // what the client was told
	cable []*os.File
	wait  sync.WaitGroup
}

// addTap has a host attach a TAP and returns the machine that has it, which is off.
func addTap(t *testing.T, h *netlab.Host, name string, args ...string) (m *vm, addrs []netip.Addr) {
	t.Helper()
	out := netlab.Must(t, h, append([]string{"netctl", "endpoint", "add", "--tap", name}, args...)...)
	words := strings.Fields(out)
	if len(words) != 3 || words[0] != h.Name+"/manual/"+name+"/eth0" {
		t.Fatalf("endpoint add --tap said %q", out)
	}
	for _, text := range strings.Split(words[1], ",") {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	c, err := h.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	m = &vm{Container: c, t: t, tap: name, mac: words[2], lease: filepath.Join(t.TempDir(), "lease")}
	t.Cleanup(func() {
		m.off()
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	})
	return m, addrs
}

// plug opens a TAP; one that is not there is made and goes with its file.
func (m *vm) plug(at netlab.Place, name string) *os.File {
	m.t.Helper()
	var fd int
	if err := at.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return fmt.Errorf("open TAP %s: %w", name, err)
		}
		return unix.SetNonblock(fd, true)
	}); err != nil {
		m.t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

// on starts the machine: it has an interface then, and no address.
func (m *vm) on() {
	m.t.Helper()
	m.cable = []*os.File{m.plug(m.Host, m.tap), m.plug(m, "eth0")}
	for i, f := range m.cable {
		to := m.cable[1-i]
		m.wait.Go(func() {
			frame := make([]byte, 1<<16)
			for {
				n, err := f.Read(frame)
				if err != nil {
					return
				}
				_, _ = to.Write(frame[:n])
			}
		})
	}
	netlab.Must(m.t, m, "sh", "-ec", "echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad; ip link set lo up; ip link set eth0 address "+m.mac+" up")
}

// off ends it as if somebody had pulled its plug.
func (m *vm) off() {
	for _, f := range m.cable {
		_ = f.Close()
	}
	m.wait.Wait()
	m.cable = nil
}

// dhcp has udhcpc ask for an address, set what it is told, and keep that.
func (m *vm) dhcp() string {
	m.t.Helper()
	const script = `#!/bin/sh -e
case $1 in bound|renew) ;; *) exit 0;; esac
env >%s
ip addr flush dev eth0 scope global
ip addr add $ip/$mask dev eth0
ip link set eth0 mtu $mtu
set -- $staticroutes
while [ $# -gt 1 ]; do
	if [ $2 = 0.0.0.0 ]; then ip route replace $1 dev eth0 scope link; else ip route replace $1 via $2; fi
	shift 2
done
`
	file := m.lease + ".sh"
	if err := os.WriteFile(file, []byte(fmt.Sprintf(script, m.lease)), 0o755); err != nil {
		m.t.Fatal(err)
	}
	netlab.Must(m.t, m, "busybox", "udhcpc", "-i", "eth0", "-f", "-q", "-n", "-t", "8", "-T", "1", "-O", "staticroutes", "-O", "mtu", "-O", "search", "-s", file)
	text, err := os.ReadFile(m.lease)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(text)
}

// dhcp6 has the machine, whose kernel hears of its router, ask for its IPv6 address.
func (m *vm) dhcp6(want netip.Addr) {
	m.t.Helper()
	netlab.Until(m.t, patience, "a router", func() string {
		out := netlab.Must(m.t, m, "ip", "-6", "route", "show", "default")
		if !strings.Contains(out, "via fe80::ecee:eeff:feee:eeee dev eth0 proto ra") {
			return "routes: " + out
		}
		return ""
	})
	if out := netlab.Must(m.t, m, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "global"); out != "" {
		m.t.Errorf("it made itself an address: %s", out)
	}
	netlab.Until(m.t, patience, "an address of the link", func() string {
		return netlab.Must(m.t, m, "ip", "-6", "addr", "show", "dev", "eth0", "tentative") // nothing can be bound to it
	})
	var client *nclient6.Client
	err := m.Do(func() (err error) {
		client, err = nclient6.New("eth0")
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	defer client.Close()
	adv, err := client.Solicit(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	reply, err := client.Request(m.t.Context(), adv)
	if err != nil {
		m.t.Fatal(err)
	}
	addr := reply.Options.OneIANA().Options.OneAddress()
	if addr == nil || addr.IPv6Addr.String() != want.String() || len(reply.Options.DNS()) != 1 {
		m.t.Fatalf("told %s", reply.Summary())
	}
	netlab.Must(m.t, m, "ip", "addr", "add", want.String()+"/128", "dev", "eth0", "nodad")
}

// TestTap: a virtual machine on one node is told its address by DHCP, reaches a container
// on another node and is reached as the profile says, cannot take another address, and
// survives the agent, its own end, and the end of its TAP.
func TestTap(t *testing.T) {
	if _, err := exec.LookPath("busybox"); err != nil {
		t.Skip("busybox is not installed")
	}
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	waitHealthy(t, l)
	one, two := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.0.0.0/16")
	netlab.Must(t, one, "netctl", "pool", "add", pool6)
	netlab.Must(t, one, "netctl", "network", "create", "web", "--ipv6", "--runtime", "none")
	flags := []string{"--network", "web", "--dns", "192.0.2.53,2001:db8::53", "--dns-search", "example.org", "--mac"}
	m, addrs := addTap(t, one, "vm1", flags[:len(flags)-1]...)
	again := append([]string{"netctl", "endpoint", "add", "--tap", "vm1"}, flags...)
	netlab.Must(t, one, append(again, strings.ToUpper(m.mac))...)
	if out, failed := netlab.Try(t, one, append(again, "02:00:00:00:00:11")...); failed == nil || !strings.Contains(failed.Error(), "with the MAC "+m.mac) {
		t.Errorf("another MAC for a TAP that is there: %s%v", out, failed)
	}
	c, c4, c6 := attach(t, two, "c", "web")
	m.on()
	lease := m.dhcp()
	for _, want := range []string{
		"ip=" + addrs[0].String(), "mask=32", "router=169.254.1.1", "staticroutes=169.254.1.1/32 0.0.0.0 0.0.0.0/0 169.254.1.1",
		"dns=192.0.2.53", "search=example.org", "hostname=vm1", "lease=86400", "mtu=1500", "serverid=169.254.1.1",
	} {
		if !strings.Contains(lease+"\n", want+"\n") && !strings.Contains(lease, want) {
			t.Errorf("the lease has no %s:\n%s", want, lease)
		}
	}
	pings := func(from netlab.Place, to netip.Addr, want bool) {
		t.Helper()
		netlab.Until(t, patience, fmt.Sprintf("ping %s: %t", to, want), func() string {
			out, failed := netlab.Try(t, from, "ping", "-n", "-c1", "-W1", to.String())
			if (failed == nil) != want {
				return fmt.Sprint(out, failed)
			}
			return ""
		})
	}
	pings(m, c4, true)
	pings(c, addrs[0], true)
	m.dhcp6(addrs[1])
	pings(m, c6, true)
	pings(c, addrs[1], true)

	// What is not of its network does not reach it until a rule says so, and it cannot be
	// somebody else.
	other, _, _ := attach(t, two, "other", "db")
	pings(other, addrs[0], false)
	netlab.Must(t, one, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "icmp", "from", "tag", "db")
	pings(other, addrs[0], true)
	netlab.Must(t, m, "sh", "-ec", "ip addr add 10.0.99.99/32 dev eth0")
	if out, failed := netlab.Try(t, m, "ping", "-n", "-c2", "-W1", "-i", "0.2", "-I", "10.0.99.99", c4.String()); failed == nil {
		t.Errorf("with an address of somebody else:\n%s", out)
	}
	netlab.Must(t, m, "ip", "addr", "del", "10.0.99.99/32", "dev", "eth0")

	// Neither its agent's end nor its own costs it its address.
	before := pid(t, one, "agent", 0)
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pings(m, c4, true)
	pid(t, one, "agent", before)
	if again := m.dhcp(); !strings.Contains(again, "ip="+addrs[0].String()) {
		t.Errorf("after the agent's end:\n%s", again)
	}
	says(t, one, "1 TAP, 1 open by a virtual machine\n")
	m.off()
	says(t, one, "1 TAP, 0 open by a virtual machine; not "+one.Name+"/manual/vm1/eth0\n")
	netlab.Must(t, one, "ip", "route", "get", addrs[0].String())
	m.on()
	m.dhcp()
	pings(c, addrs[0], true)

	// A TAP that somebody deletes is made again, and the machine, which has lost it, starts
	// anew.
	netlab.Must(t, one, "ip", "link", "del", "vm1")
	m.off()
	netlab.Until(t, patience, "another TAP", func() string {
		if out, failed := netlab.Try(t, one, "ip", "link", "show", "dev", "vm1"); failed != nil {
			return out + failed.Error()
		}
		return ""
	})
	m.on()
	m.dhcp()
	pings(c, addrs[0], true)

	config := netlab.Must(t, two, "netctl", "endpoint", "show", "vm1", "-o", "cloud-init")
	for _, want := range []string{"version: 2", "macaddress: " + m.mac, "- " + addrs[0].String() + "/32", "via: 169.254.1.1", "on-link: true", "- 192.0.2.53", "- example.org"} {
		if !strings.Contains(config, want) {
			t.Errorf("cloud-init is not told %q:\n%s", want, config)
		}
	}
	netlab.Must(t, one, "netctl", "endpoint", "remove", one.Name+"/manual/vm1/eth0")
	if out, failed := netlab.Try(t, one, "ip", "link", "show", "dev", "vm1"); failed == nil {
		t.Errorf("removed, and there:\n%s", out)
	}
	says(t, one, "in sync, 0 endpoints\nnetctl version")
}

// says waits until status says something.
func says(t *testing.T, h *netlab.Host, want string) {
	t.Helper()
	netlab.Until(t, patience, "status", func() string {
		out, _ := netlab.Try(t, h, "netctl", "status")
		if !strings.Contains(out, want) {
			return fmt.Sprintf("no %q in\n%s", want, out)
		}
		return ""
	})
}
