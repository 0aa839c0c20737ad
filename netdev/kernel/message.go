package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

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

// rawLink is what this package reads of a link message.
type rawLink struct {
	Link
	group uint32
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
	flags  uint8        // IFA_F_…
}

func parseAddress(m netlink.Message) (rawAddress, error) {
	if len(m.Data) < unix.SizeofIfAddrmsg {
		return rawAddress{}, fmt.Errorf("address message: %d bytes", len(m.Data))
	}
	a := rawAddress{index: int(binary.NativeEndian.Uint32(m.Data[4:]))}
	bits := int(m.Data[1])
	a.flags = m.Data[2]
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
