package nft

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/netdev/netlab"
)

// TestVXLANTunnels: while the host has VXLAN tunnels, what is not from a node comes out of none
// of ours, and a virtual network of others is as it was.
func TestVXLANTunnels(t *testing.T) {
	const id, others = 0x6e63, 77
	l, x := wiredLab(t, onNFT)
	l.router.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	for name, vni := range map[string]string{"vx0": "28259", "vx1": "77"} {
		l.router.Run("ip", "link", "add", name, "type", "vxlan", "id", vni, "local", "192.0.2.1", "dstport", "4789", "nolearning")
		l.router.Run("ip", "link", "set", name, "up")
	}
	came := func(link string) string {
		_, rx, _ := strings.Cut(l.router.Run("ip", "-s", "-j", "link", "show", link), `"rx":{`)
		rx, _, _ = strings.Cut(rx, ",\"errors")
		return rx
	}
	// comes says whether what n sends in a virtual network comes out of the host's link: first
	// of ours, then, which nothing holds up, of the others'.
	comes := func() bool {
		t.Helper()
		ours, marked := came("vx0"), came("vx1")
		netlab.Until(t, 20*time.Second, "what is sent in another virtual network", func() string {
			vxlan(t, l.hosts["n"], id, "192.0.2.1")
			vxlan(t, l.hosts["n"], others, "192.0.2.1")
			if came("vx1") == marked {
				return "nothing comes"
			}
			return ""
		})
		return came("vx0") != ours
	}
	if !comes() {
		t.Error("nothing comes while nobody guards it")
	}
	x.SetVXLAN(id)
	l.apply(x.Flush())
	if comes() {
		t.Error("a stranger's packet comes out of the tunnel")
	}
	if wrote, err := l.table.Sync(t.Context(), l.rules); err != nil || wrote {
		t.Errorf("read back as something else: %v, %v", wrote, err)
	}
	x.Apply(node("n", "192.0.2.9/24"))
	l.apply(x.Flush())
	if !comes() {
		t.Error("a node's packet does not")
	}
	x.SetVXLAN(0)
	l.apply(x.Flush())
	if l.rules.Chains[acl.ChainVXLANIn] != nil {
		t.Error("the chain is there and the host has no such tunnels")
	}
}

// vxlan sends a frame in a virtual network.
func vxlan(t *testing.T, h *host, vni uint32, to string) {
	t.Helper()
	frame := append([]byte{8, 0, 0, 0}, binary.BigEndian.AppendUint32(nil, vni<<8)...)
	frame = append(frame, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0)
	frame = append(frame, make([]byte, 46)...)
	h.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Sendto(fd, frame, 0, &unix.SockaddrInet4{Port: 4789, Addr: netip.MustParseAddr(to).As4()})
			unix.Close(fd)
		}
		if err != nil {
			t.Error(os.NewSyscallError("sendto", err))
		}
	})
}
