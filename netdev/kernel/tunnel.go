package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev"
)

// Tunnel is the device at one end of the tunnels to other nodes. Who is at the others,
// its routes and the neighbours it is told say (routing/fib).
type Tunnel struct {
	Name string
	Kind datastore.TunnelKind
	// Local is the address that packets are sent from. The kernel's own tunl0 takes
	// whatever a route says.
	Local netip.Addr
	MAC   string // of VXLAN
	MTU   int    // bytes
	// Addresses are the host's own in the tunnel.
	Addresses []netip.Addr
	// Private and Port are of WireGuard.
	Private WireGuardKey
	Port    uint16
}

// kernelsIPIP is the device that the kernel makes in every namespace with IPIP; it can
// be neither deleted nor given a local address.
const kernelsIPIP = "tunl0"

// SetTunnel makes a tunnel's device what t says and sets it up; one that is right is
// left as it is. It returns the device's index. One that another program made is
// ErrExists.
func (k *Kernel) SetTunnel(t Tunnel) (index int, err error) {
	l, err := k.tunnel(t)
	if err != nil {
		return 0, fmt.Errorf("tunnel %s: %w", t.Name, err)
	}
	if err := k.setUpTunnel(l, t); err != nil {
		return 0, fmt.Errorf("tunnel %s: %w", t.Name, err)
	}
	return l.Index, nil
}

// tunnel finds the device, or makes it.
func (k *Kernel) tunnel(t Tunnel) (*netlink.LinkAttrs, error) {
	l, err := k.host.LinkByName(t.Name)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return k.makeTunnel(t)
	case err != nil:
		return nil, cause(err)
	}
	a := l.Attrs()
	ours := a.Group == netdev.GroupTunnel || t.Name == kernelsIPIP && l.Type() == "ipip"
	switch {
	case ours && t.is(l):
		return a, nil
	case !ours:
		return nil, fmt.Errorf("%w: another program has an interface of that name: name another one in the setting tunnels", datastore.ErrExists)
	}
	if err := k.host.LinkDel(l); err != nil {
		return nil, cause(err)
	}
	return k.makeTunnel(t)
}

func (k *Kernel) makeTunnel(t Tunnel) (*netlink.LinkAttrs, error) {
	err := k.host.LinkAdd(t.link())
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return nil, fmt.Errorf("this kernel has no %s devices, nor a module for them: %w", t.link().Type(), err)
	case t.Name == kernelsIPIP && errors.Is(err, unix.EEXIST): // it came with its module
	case err != nil:
		return nil, cause(err)
	}
	return linkByName(k.host, t.Name)
}

// VXLANID is the virtual network of all tunnels; vxlanPort is what IANA says (RFC 7348,
// section 5).
const (
	VXLANID   = 0x6e63
	vxlanPort = 4789
)

// link is the device as it is made.
func (t Tunnel) link() netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = t.Name, t.MTU
	if t.Kind == datastore.TunnelIPIP {
		tun := &netlink.Iptun{LinkAttrs: attrs, PMtuDisc: 1}
		if t.Name != kernelsIPIP {
			tun.Local = t.Local.AsSlice()
		}
		return tun
	}
	if t.Kind == datastore.TunnelWireGuard {
		return &netlink.Wireguard{LinkAttrs: attrs}
	}
	attrs.HardwareAddr, _ = net.ParseMAC(t.MAC)
	return &netlink.Vxlan{LinkAttrs: attrs, VxlanId: VXLANID, SrcAddr: t.Local.AsSlice(), Port: vxlanPort, UDPCSum: true}
}

// is says whether l has what cannot be changed of a device.
func (t Tunnel) is(l netlink.Link) bool {
	local := net.IP(t.Local.AsSlice())
	switch l := l.(type) {
	case *netlink.Iptun:
		return t.Kind == datastore.TunnelIPIP && (t.Name == kernelsIPIP || l.Local.Equal(local))
	case *netlink.Vxlan:
		return (t.Kind == datastore.TunnelVXLAN || t.Kind == datastore.TunnelVXLAN6) && l.VxlanId == VXLANID && l.Port == vxlanPort && !l.Learning && !l.FlowBased &&
			l.SrcAddr.Equal(local) && l.HardwareAddr.String() == t.MAC
	case *netlink.Wireguard:
		return t.Kind == datastore.TunnelWireGuard
	}
	return false
}

func (k *Kernel) setUpTunnel(l *netlink.LinkAttrs, t Tunnel) error {
	d := device(l.Index)
	var errs []error
	do := func(err error) { errs = append(errs, cause(err)) }
	if l.Group != netdev.GroupTunnel { // before it has an address: it is none of the host's subnets
		do(k.host.LinkSetGroup(d, int(netdev.GroupTunnel)))
	}
	if l.MTU != t.MTU && t.MTU != 0 {
		do(k.host.LinkSetMTU(d, t.MTU))
	}
	do(k.tunnelSettings(t, l.Flags&net.FlagUp == 0))
	if t.Kind == datastore.TunnelWireGuard {
		do(k.setWireGuard(t))
	}
	do(k.tunnelAddresses(l.Index, t.Addresses))
	if l.Flags&net.FlagUp == 0 {
		do(k.host.LinkSetUp(d))
	}
	return errors.Join(errs...)
}

// tunnelSettings are for a device that is down, which fresh says, or that another program
// may have changed. Packets of one flow may come by the
// tunnel and go without, while a pool's setting changes, so that sources are judged by
// the packet filter only.
func (k *Kernel) tunnelSettings(t Tunnel, fresh bool) error {
	settings := []setting{{"ipv4/conf", "forwarding", "1"}, {"ipv4/conf", "rp_filter", "0"}}
	if slices.ContainsFunc(t.Addresses, netip.Addr.Is6) {
		settings = append(settings, setting{"ipv6/conf", "disable_ipv6", "0"})
	}
	const noLinkLocal = "1" // IN6_ADDR_GEN_MODE_NONE: there is nobody to speak to
	settings = append(settings, setting{"ipv6/conf", "addr_gen_mode", noLinkLocal}, setting{"ipv6/conf", "accept_ra", "0"})
	for _, s := range settings {
		name := t.Name + "/" + s.name
		old, err := k.sys.read(s.dir, name)
		if err == nil && old != s.value {
			if err = k.sys.write(s.dir, name, s.value); err == nil && !fresh {
				k.log.Warn("a setting of a tunnel was changed by another program, and is put back", "setting", "net/"+s.dir+"/"+name, "old", old, "new", s.value, datastore.Drift(datastore.DriftSetting))
			}
		}
		if err != nil && (s.dir != "ipv6/conf" || !errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

func (k *Kernel) tunnelAddresses(index int, want []netip.Addr) error {
	have, err := k.addressesOf(index)
	if err != nil {
		return err
	}
	for _, a := range want {
		if !slices.Contains(have, a) {
			addr := newAddress(a)
			addr.Flags |= unix.IFA_F_NOPREFIXROUTE // no subnet is connected here
			if err := k.host.AddrAdd(device(index), addr); err != nil {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
	}
	for _, a := range have {
		if !slices.Contains(want, a) {
			if err := k.host.AddrDel(device(index), &netlink.Addr{IPNet: hostNet(a)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("address %s: %w", a, err)
			}
		}
	}
	return nil
}

// addressesOf are the addresses of a device but IPv6's link-local ones.
func (k *Kernel) addressesOf(index int) (list []netip.Addr, err error) {
	have, err := again(func() ([]netlink.Addr, error) { return k.host.AddrList(device(index), netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); ip.Is4() || !ip.IsLinkLocalUnicast() {
			list = append(list, ip)
		}
	}
	return list, nil
}

// RemoveTunnel deletes a tunnel's device, if it is netctl's; the kernel's own is put
// back as it was.
func (k *Kernel) RemoveTunnel(name string) error {
	l, err := linkByName(k.host, name)
	if errors.Is(err, os.ErrNotExist) || err == nil && l.Group != netdev.GroupTunnel {
		return nil
	}
	if err == nil {
		d := device(l.Index)
		if name != kernelsIPIP {
			err = k.host.LinkDel(d)
		} else {
			err = errors.Join(k.host.LinkSetDown(d), k.tunnelAddresses(l.Index, nil), k.host.LinkSetGroup(d, 0))
		}
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove tunnel %s: %w", name, cause(err))
	}
	return nil
}

// Tunnels are the names of the devices of tunnels that netctl made.
func (k *Kernel) Tunnels() (names []string, err error) {
	all, err := k.links()
	if err != nil {
		return nil, fmt.Errorf("list tunnels: %w", err)
	}
	for _, l := range all {
		if l.group == netdev.GroupTunnel {
			names = append(names, l.Name)
		}
	}
	return names, nil
}
