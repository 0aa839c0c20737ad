package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// ifinfo is the fixed head of a link message (struct ifinfomsg).
func ifinfo(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], change)
	return b
}

// message is a request of the given type: head, then attributes. The encoder
// cannot fail on what this package puts in: fixed-size values and short strings.
func message(kind uint16, flags netlink.HeaderFlags, head []byte, attrs func(*netlink.AttributeEncoder)) netlink.Message {
	m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: flags}, Data: head}
	if attrs == nil {
		return m
	}
	ae := netlink.NewAttributeEncoder()
	attrs(ae)
	b, err := ae.Encode()
	if err != nil {
		panic(fmt.Sprintf("netlink attributes: %v", err))
	}
	m.Data = append(m.Data, b...)
	return m
}

// newVeth makes a pair: the host side here, its peer inside w.Netns.
func newVeth(w Wire, peerMAC, hostMAC net.HardwareAddr, group uint32) netlink.Message {
	side := func(ae *netlink.AttributeEncoder, name string, mac net.HardwareAddr) {
		ae.String(unix.IFLA_IFNAME, name)
		ae.Bytes(unix.IFLA_ADDRESS, mac)
		if w.MTU != 0 {
			ae.Uint32(unix.IFLA_MTU, uint32(w.MTU))
		}
	}
	return message(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfo(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		side(ae, w.Link, hostMAC)
		ae.Uint32(unix.IFLA_GROUP, group)
		ae.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
			info.String(unix.IFLA_INFO_KIND, "veth")
			info.Nested(unix.IFLA_INFO_DATA, func(veth *netlink.AttributeEncoder) error {
				peer := message(0, 0, ifinfo(0, 0, 0), func(pe *netlink.AttributeEncoder) {
					side(pe, w.Interface, peerMAC)
					pe.Uint32(unix.IFLA_NET_NS_FD, uint32(w.Netns))
				})
				veth.Bytes(vethInfoPeer, peer.Data)
				return nil
			})
			return nil
		})
	})
}

// setLink changes flags of a link known by index or, if that is 0, by name.
func setLink(index int, name string, flags, change uint32, attrs func(*netlink.AttributeEncoder)) netlink.Message {
	return message(unix.RTM_NEWLINK, 0, ifinfo(index, flags, change), func(ae *netlink.AttributeEncoder) {
		if index == 0 {
			ae.String(unix.IFLA_IFNAME, name)
		}
		if attrs != nil {
			attrs(ae)
		}
	})
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// newAddress adds a host address; an IPv6 one without duplicate address
// detection (RFC 4862, section 5.4): IPAM guarantees that it is unique.
func newAddress(index int, a netip.Addr) netlink.Message {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0], head[1] = family(a), uint8(a.BitLen())
	if a.Is6() {
		head[2] = unix.IFA_F_NODAD
	}
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	return message(unix.RTM_NEWADDR, netlink.Create|netlink.Excl, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_LOCAL, a.AsSlice())
		ae.Bytes(unix.IFA_ADDRESS, a.AsSlice())
	})
}

// newRoute adds a route to a table; an invalid dst is the default route, an
// invalid gateway a route on the link itself. Metric 0 is the kernel's default.
func newRoute(index int, dst, gateway netip.Addr, table, metric uint32) netlink.Message {
	head := make([]byte, unix.SizeofRtMsg)
	head[5], head[7] = unix.RTPROT_BOOT, unix.RTN_UNICAST
	head[6] = unix.RT_SCOPE_UNIVERSE
	if dst.IsValid() {
		head[0], head[1] = family(dst), uint8(dst.BitLen())
	} else {
		head[0] = family(gateway)
	}
	if !gateway.IsValid() && dst.Is4() {
		head[6] = unix.RT_SCOPE_LINK
	}
	return message(unix.RTM_NEWROUTE, netlink.Create|netlink.Excl, head, func(ae *netlink.AttributeEncoder) {
		if dst.IsValid() {
			ae.Bytes(unix.RTA_DST, dst.AsSlice())
		}
		if gateway.IsValid() {
			ae.Bytes(unix.RTA_GATEWAY, gateway.AsSlice())
		}
		ae.Uint32(unix.RTA_OIF, uint32(index))
		ae.Uint32(unix.RTA_TABLE, table)
		if metric != 0 {
			ae.Uint32(unix.RTA_PRIORITY, metric)
		}
	})
}

// newRule has what is from a looked up in a table.
func newRule(a netip.Addr, table uint32) netlink.Message {
	const (
		ruleSize     = 12 // struct fib_rule_hdr (linux/fib_rules.h)
		actionLookup = 1  // FR_ACT_TO_TBL
		attrSource   = 2  // FRA_SRC
		attrTable    = 15 // FRA_TABLE
	)
	head := make([]byte, ruleSize)
	head[0], head[2], head[7] = family(a), uint8(a.BitLen()), actionLookup
	return message(unix.RTM_NEWRULE, netlink.Create|netlink.Excl, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(attrSource, a.AsSlice())
		ae.Uint32(attrTable, table)
	})
}

// rawLink is what this package reads of a link message.
type rawLink struct {
	Link
	group uint32
	mac   net.HardwareAddr
	flags uint32
}

func parseLink(m netlink.Message) (rawLink, error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return rawLink{}, fmt.Errorf("link message: %d bytes", len(m.Data))
	}
	l := rawLink{flags: binary.NativeEndian.Uint32(m.Data[8:])}
	l.Index = int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	l.Up = l.flags&unix.IFF_UP != 0
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return rawLink{}, fmt.Errorf("link message: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.Name = ad.String()
		case unix.IFLA_MTU:
			l.MTU = int(ad.Uint32())
		case unix.IFLA_GROUP:
			l.group = ad.Uint32()
		case unix.IFLA_ADDRESS:
			l.mac = net.HardwareAddr(append([]byte(nil), ad.Bytes()...))
		}
	}
	if err := ad.Err(); err != nil {
		return rawLink{}, fmt.Errorf("link message: %w", err)
	}
	return l, nil
}

// rawAddress is what this package reads of an address message.
type rawAddress struct {
	index  int
	prefix netip.Prefix // the address itself with its prefix length
	subnet netip.Prefix // what it is connected to
}

func parseAddress(m netlink.Message) (rawAddress, error) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return rawAddress{}, fmt.Errorf("address message: %d bytes", len(m.Data))
	}
	a := rawAddress{index: int(binary.NativeEndian.Uint32(m.Data[4:]))}
	bits := int(m.Data[1])
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return rawAddress{}, fmt.Errorf("address message: %w", err)
	}
	var local, address netip.Addr
	for ad.Next() {
		switch ad.Type() {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(ad.Bytes())
		}
	}
	if err := ad.Err(); err != nil {
		return rawAddress{}, fmt.Errorf("address message: %w", err)
	}
	if !local.IsValid() { // IPv6 has no IFA_LOCAL unless it is point-to-point
		local = address
	}
	if !local.IsValid() || bits > local.BitLen() || !address.IsValid() {
		return rawAddress{}, fmt.Errorf("address message: no address")
	}
	a.prefix = netip.PrefixFrom(local, bits)
	a.subnet = netip.PrefixFrom(address, bits).Masked()
	return a, nil
}
