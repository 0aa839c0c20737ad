package kernel

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev"
)

// run runs ip(8) in the host's namespace.
func (h *host) ip(t *testing.T, args ...string) string {
	t.Helper()
	var out []byte
	err := inNetns(h.ns, func() (err error) {
		out, err = exec.Command("ip", args...).CombinedOutput()
		return err
	})
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in\n%s", w, text)
		}
	}
}

func TestTunnel(t *testing.T) {
	h := newHost(t)
	h.ip(t, "addr", "add", "192.0.2.1/24", "dev", "lo")
	v := Tunnel{
		Name: "vx.test", Kind: datastore.TunnelVXLAN, Local: netip.MustParseAddr("192.0.2.1"), MAC: "02:00:00:00:00:01", MTU: 1450,
		Addresses: []netip.Addr{netip.MustParseAddr("10.65.0.1"), netip.MustParseAddr("fd80::1")},
	}
	index, err := h.SetTunnel(v)
	if err != nil {
		t.Fatal(err)
	}
	text := h.ip(t, "-d", "addr", "show", "vx.test")
	wantWords(t, text, "id 28259 local 192.0.2.1", "dstport 4789 nolearning", "mtu 1450", "02:00:00:00:00:01", "UP", "group 28261",
		"inet 10.65.0.1/32", "inet6 fd80::1/128")
	if strings.Contains(text, "fe80") {
		t.Errorf("it has a link-local address:\n%s", text)
	}
	if connected := h.ip(t, "-6", "route", "show", "dev", "vx.test", "proto", "kernel", "fd80::/16"); connected != "" {
		t.Errorf("connected: %s", connected)
	}
	subnets, err := h.Subnets()
	if err != nil || slices.ContainsFunc(subnets, netip.MustParsePrefix("10.65.0.0/24").Overlaps) {
		t.Errorf("subnets %v, %v", subnets, err)
	}
	if again, err := h.SetTunnel(v); err != nil || again != index {
		t.Errorf("once more: index %d, %v, was %d", again, err, index)
	}
	run(t, h.ns, "sh", "-ec", "cd /proc/sys/net/ipv4/conf/vx.test; echo 0 > forwarding; echo 1 > rp_filter")
	if again, err := h.SetTunnel(v); err != nil || again != index {
		t.Errorf("after another program: index %d, %v, was %d", again, err, index)
	}
	if is := run(t, h.ns, "sh", "-ec", "cd /proc/sys/net/ipv4/conf/vx.test; cat forwarding rp_filter"); is != "1\n0\n" {
		t.Errorf("forwarding and rp_filter are %q", is)
	}
	wantWords(t, h.log.String(), "setting=net/ipv4/conf/vx.test/forwarding old=0 new=1", "setting=net/ipv4/conf/vx.test/rp_filter old=1 new=0")
	if strings.Count(h.log.String(), "is put back") != 2 {
		t.Errorf("making it was logged too:\n%s", h.log)
	}
	v.MTU, v.Addresses = 1400, v.Addresses[:1]
	if again, err := h.SetTunnel(v); err != nil || again != index {
		t.Errorf("changed in place: index %d, %v, was %d", again, err, index)
	}
	text = h.ip(t, "-d", "addr", "show", "vx.test")
	if wantWords(t, text, "mtu 1400", "inet 10.65.0.1/32"); strings.Contains(text, "inet6") {
		t.Errorf("the address is still there:\n%s", text)
	}
	v.MAC = "02:00:00:00:00:02"
	if again, err := h.SetTunnel(v); err != nil || again == index {
		t.Errorf("made anew: index %d, %v", again, err)
	}
	if names, err := h.Tunnels(); err != nil || !slices.Equal(names, []string{"vx.test"}) {
		t.Errorf("tunnels %v, %v", names, err)
	}
	if err := errors.Join(h.RemoveTunnel("vx.test"), h.RemoveTunnel("vx.test")); err != nil {
		t.Fatal(err)
	}
	if err := inNetns(h.ns, func() error { return exec.Command("ip", "link", "show", "vx.test").Run() }); err == nil {
		t.Error("it is still there")
	}
}

// TestTunnelOfAnother: what another program calls so is neither taken nor removed.
func TestTunnelOfAnother(t *testing.T) {
	h := newHost(t)
	h.ip(t, "link", "add", "vx.test", "type", "veth", "peer", "name", "other")
	_, err := h.SetTunnel(Tunnel{Name: "vx.test", Kind: datastore.TunnelVXLAN, Local: netip.MustParseAddr("127.0.0.1"), MAC: "02:00:00:00:00:01"})
	if !errors.Is(err, datastore.ErrExists) {
		t.Errorf("taken: %v", err)
	}
	if err := h.RemoveTunnel("vx.test"); err != nil {
		t.Error(err)
	}
	h.ip(t, "link", "show", "vx.test")
}

// TestTunnelWithoutTheKernel: a kernel that has no such devices says so in words.
func TestTunnelWithoutTheKernel(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/proc/sys/net/ipv4/conf/tunl0"); err == nil {
		t.Skip("this kernel has IPIP")
	}
	_, err := h.SetTunnel(Tunnel{Name: "tunl0", Kind: datastore.TunnelIPIP, Local: netip.MustParseAddr("192.0.2.1"), MTU: 1480})
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "no ipip devices") {
		t.Errorf("tunl0: %v", err)
	}
	if netdev.DefaultTunnels()[datastore.TunnelIPIP] != kernelsIPIP {
		t.Error("the kernel's device is not the default")
	}
}

// TestWireGuardWithoutTheKernel: a kernel that has no such devices says so in words, and
// there is nothing to remove.
func TestWireGuardWithoutTheKernel(t *testing.T) {
	h := newHost(t)
	d := Tunnel{Name: "wg.test", Kind: datastore.TunnelWireGuard, MTU: 1440, Private: WireGuardKey{8, 31: 64}, Port: 51820}
	_, err := h.SetTunnel(d)
	if err == nil {
		if err := h.RemoveTunnel(d.Name); err != nil {
			t.Error(err)
		}
		t.Skip("this kernel has WireGuard")
	}
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "tunnel wg.test: this kernel has no wireguard devices, nor a module for them") {
		t.Errorf("wg.test: %v", err)
	}
	err = h.SetWireGuardPeers(d.Name, nil, nil, []WireGuardKey{{1}})
	if _, read := h.WireGuardPeers(d.Name); !errors.Is(err, unix.EOPNOTSUPP) || !errors.Is(read, unix.EOPNOTSUPP) {
		t.Errorf("peers: %v, %v", err, read)
	}
	if names, err := h.Tunnels(); err != nil || len(names) > 0 {
		t.Errorf("tunnels %v, %v", names, err)
	}
}
