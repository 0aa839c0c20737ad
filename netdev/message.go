package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Attribute cuts the first attribute off a netlink message's list (struct
// nlattr, include/uapi/linux/netlink.h): its type without the flags, and its
// value, which is part of b. false: b is empty or does not begin with one.
func Attribute(b []byte) (kind uint16, value, rest []byte, ok bool) {
	const head, flags = 4, 0xc000 // NLA_F_NESTED and NLA_F_NET_BYTEORDER
	if len(b) < head {
		return 0, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < head || n > len(b) {
		return 0, nil, nil, false
	}
	aligned := min((n+3)&^3, len(b))
	return binary.NativeEndian.Uint16(b[2:]) &^ flags, b[head:n], b[aligned:], true
}

// LinkMessage is what the kernel says of a link (struct ifinfomsg and
// attributes, include/uapi/linux/rtnetlink.h and if_link.h).
type LinkMessage struct {
	Index int
	Name  string
	// Family is 0 (AF_UNSPEC) in a message about the link itself; a bridge
	// sends messages about its ports under its own family.
	Family uint8
	// Flags are those of net_device_flags, such as IFF_UP (1).
	Flags uint32
	MTU   int // bytes
	Group uint32
}

// Up says that the link is up administratively.
func (l LinkMessage) Up() bool { return l.Flags&1 != 0 }

// Running says that the link is up and has a carrier (IFF_RUNNING, IFF_LOWER_UP).
func (l LinkMessage) Running() bool { return l.Up() && l.Flags&(1<<6|1<<16) != 0 }

var errLinkMessage = errors.New("link message: malformed")

// ParseLink reads the body of an RTM_NEWLINK or RTM_DELLINK message.
func ParseLink(b []byte) (LinkMessage, error) {
	const head = 16
	const name, mtu, group = 3, 4, 27 // IFLA_IFNAME, IFLA_MTU, IFLA_GROUP
	if len(b) < head {
		return LinkMessage{}, errLinkMessage
	}
	l := LinkMessage{
		Family: b[0], Index: int(int32(binary.NativeEndian.Uint32(b[4:]))), Flags: binary.NativeEndian.Uint32(b[8:]),
	}
	for b = b[head:]; len(b) > 0; {
		kind, value, rest, ok := Attribute(b)
		if !ok || (kind == mtu || kind == group) && len(value) != 4 {
			return LinkMessage{}, errLinkMessage
		}
		switch kind {
		case name:
			text, _, _ := bytes.Cut(value, []byte{0})
			l.Name = string(text)
		case mtu:
			l.MTU = int(binary.NativeEndian.Uint32(value))
		case group:
			l.Group = binary.NativeEndian.Uint32(value)
		}
		b = rest
	}
	return l, nil
}
