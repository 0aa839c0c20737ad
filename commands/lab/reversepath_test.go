package lab

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// TestReversePath: a machine on the uplink that sends with the address of a member of node1 is
// not let in as one, and told of; members of other nodes are, and a restart of the speaker costs them nothing.
func TestReversePath(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.0.0.0/16")
	netlab.Must(t, n1, "netctl", "network", "create", "web")
	waitHealthy(t, l)
	a, a4, _ := attach(t, n1, "a", "web")
	_, member, _ := attach(t, n1, "member", "web")
	b, _, _ := attach(t, n2, "b", "web")
	pings(t, b, a4)

	p, err := n1.Start("drops", netlab.Cmd{Args: []string{"netctl", "drops", "-f"}})
	if err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "what came from elsewhere is told of", func() string {
		pretend(t, n2, member, a4)
		if out := p.Output(); !strings.Contains(out, "denied udp "+member.String()+":9 (node1/cni/") || !strings.Contains(out, "inbound: it came by another way than its source is reached by (agent.reversePath)") {
			return out
		}
		return ""
	})
	if err := p.Stop(); err != nil {
		t.Errorf("drops -f: %v\n%s", err, p.Output())
	}

	const says = "denied: it came by another way than its source is reached by (agent.reversePath)"
	explain := func(code int, says string, words ...string) {
		t.Helper()
		if out, got := exitOf(t, n1, append([]string{"netctl", "explain"}, words...)...); got != code || !strings.Contains(out, says) {
			t.Errorf("explain %v: exit %d\n%s", words, got, out)
		}
	}
	explain(3, "inbound of node1/cni/"+a.ID+"/eth0 (as its agent has it): "+says, member.String(), a.ID, "udp", "7", "--live", "--in", "eth1")
	explain(0, "Allowed", member.String(), a.ID, "udp", "7", "--live")
	explain(0, "Allowed", b.ID, a.ID, "udp", "7", "--live", "--in", "eth1")
	for free := a4; ; free = free.Next() { // the block's next that nobody has
		if out, _ := netlab.Try(t, n1, "netctl", "ipam", "info", free.String()); !strings.Contains(out, "in use") {
			explain(3, says, free.String(), a.ID, "udp", "7")
			explain(3, says, free.String(), a.ID, "udp", "7", "--live")
			break
		}
	}
	explain(2, "--in takes --live", member.String(), a.ID, "--in", "eth1")
	explain(1, "interface eth7 of this node: not found", member.String(), a.ID, "udp", "7", "--live", "--in", "eth7")

	flood, err := netlab.StartFlood(b, a4, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	before := pid(t, n1, "speaker", 0)
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pid(t, n1, "speaker", before)
	netlab.Until(t, patience, "its session", func() string {
		if out, _ := netlab.Try(t, n1, "netctl", "status"); !strings.Contains(out, "Established") {
			return out
		}
		return ""
	})
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("lost of a member's packets across a restart of the speaker: %v", r.Lost)
	}
	netlab.Until(t, patience, "status tells of it", func() string {
		if out, _ := netlab.Try(t, n1, "netctl", "status"); !strings.Contains(out, "came by another way than that is reached by") {
			return out
		}
		return ""
	})
	netlab.Until(t, patience, "explain tells of it", func() string {
		if out, _ := exitOf(t, n1, "netctl", "explain", member.String(), a.ID, "udp", "7"); !strings.Contains(out, "Note: node1: ") || !strings.Contains(out, "agent.reversePath is to be") {
			return out
		}
		return ""
	})
}

// pretend sends a datagram from a host with the source of another.
func pretend(t *testing.T, h *netlab.Host, src, dst netip.Addr) {
	t.Helper()
	packet := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	packet = append(append(packet, src.AsSlice()...), dst.AsSlice()...)
	packet = append(binary.BigEndian.AppendUint16(packet, 9), 0, 7, 0, 8, 0, 0)
	err := h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		return os.NewSyscallError("sendto", unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: dst.As4()}))
	})
	if err != nil {
		t.Fatal(err)
	}
}
