package kernel

import (
	"encoding/binary"
	"fmt"
	"net"
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
	family uint8 // AF_UNSPEC in what is about the link itself
	group  uint32
	flags  uint32
	mac    net.HardwareAddr
	master int    // index; 0: none
	kind   string // such as "veth"
	queue  string // where packets leave it, such as "noqueue"
	// peer is the index of a veth's other side and nsid the number of the namespace
	// that has it; apart is false where that is this one.
	peer  int
	nsid  uint32
	apart bool
	// aliases are its further names.
	aliases []string
}

func parseLink(m netlink.Message) (rawLink, error) {
	if len(m.Data) < unix.SizeofIfInfomsg {
		return rawLink{}, fmt.Errorf("link message: %d bytes", len(m.Data))
	}
	l := rawLink{family: m.Data[0], flags: binary.NativeEndian.Uint32(m.Data[8:])}
	l.Index = int(int32(binary.NativeEndian.Uint32(m.Data[4:])))
	l.Up, l.Carrier = l.flags&unix.IFF_UP != 0, l.flags&(unix.IFF_UP|unix.IFF_LOWER_UP) == unix.IFF_UP|unix.IFF_LOWER_UP
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
		case unix.IFLA_QDISC:
			l.queue = ad.String()
		case unix.IFLA_GROUP:
			l.group = ad.Uint32()
		case unix.IFLA_ADDRESS:
			l.mac = ad.Bytes()
		case unix.IFLA_MASTER:
			l.master = int(ad.Uint32())
		case unix.IFLA_LINK:
			l.peer = int(ad.Uint32())
		case unix.IFLA_LINK_NETNSID:
			l.nsid, l.apart = ad.Uint32(), true
		case unix.IFLA_PROP_LIST:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.IFLA_ALT_IFNAME {
						l.aliases = append(l.aliases, ad.String())
					}
				}
				return nil
			})
		case unix.IFLA_LINKINFO:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.IFLA_INFO_KIND {
						l.kind = ad.String()
					}
				}
				return nil
			})
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

// rawNeighbor is what this package reads of a neighbour message.
type rawNeighbor struct {
	index int
	state uint16 // such as NUD_PERMANENT
	mac   net.HardwareAddr
}

func parseNeighbor(m netlink.Message) (rawNeighbor, error) {
	if len(m.Data) < unix.SizeofNdMsg {
		return rawNeighbor{}, fmt.Errorf("neighbour message: %d bytes", len(m.Data))
	}
	n := rawNeighbor{index: int(int32(binary.NativeEndian.Uint32(m.Data[4:]))), state: binary.NativeEndian.Uint16(m.Data[8:])}
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofNdMsg:])
	if err != nil {
		return rawNeighbor{}, fmt.Errorf("neighbour message: %w", err)
	}
	for ad.Next() {
		if ad.Type() == unix.NDA_LLADDR {
			n.mac = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return rawNeighbor{}, fmt.Errorf("neighbour message: %w", err)
	}
	return n, nil
}

// The notifications of settings (include/uapi/linux/netconf.h) that are read here.
const (
	netconfIndex      = 1
	netconfForwarding = 2
	netconfPath       = 3 // rp_filter
	netconfProxy      = 5 // proxy_arp or proxy_ndp
	netconfAll        = -1
	sizeofNetconf     = 4 // struct netconfmsg, aligned
)

// rawSetting is what this package reads of a notification of settings.
type rawSetting struct {
	v4    bool
	index int // netconfAll: of all interfaces
	// forwarding and proxy are what is told: nil if nothing is.
	forwarding, proxy *bool
	path              bool // rp_filter is told
}

func parseSetting(m netlink.Message) (rawSetting, error) {
	if len(m.Data) < sizeofNetconf {
		return rawSetting{}, fmt.Errorf("settings message: %d bytes", len(m.Data))
	}
	s := rawSetting{v4: m.Data[0] == unix.AF_INET}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofNetconf:])
	if err != nil {
		return rawSetting{}, fmt.Errorf("settings message: %w", err)
	}
	for ad.Next() {
		switch ad.Type() {
		case netconfIndex:
			s.index = int(ad.Int32())
		case netconfForwarding:
			on := ad.Uint32() != 0
			s.forwarding = &on
		case netconfPath:
			s.path = true
		case netconfProxy:
			on := ad.Uint32() != 0
			s.proxy = &on
		}
	}
	if err := ad.Err(); err != nil {
		return rawSetting{}, fmt.Errorf("settings message: %w", err)
	}
	return s, nil
}

const sizeofTcMsg = 20 // struct tcmsg

// rawQueue is what this package reads of a queue (struct tcmsg and attributes,
// include/uapi/linux/rtnetlink.h and pkt_sched.h); the numbers are of a token bucket
// filter alone.
type rawQueue struct {
	index         int // of the device
	handle        uint32
	parent        uint32
	kind          string
	rate          uint64 // bytes per second
	limit, buffer uint32 // bytes, ticks
}

func parseQueue(m netlink.Message) (rawQueue, error) {
	const kind, options, parms, rate64, sizeofTBF = 1, 2, 1, 4, 36
	if len(m.Data) < sizeofTcMsg {
		return rawQueue{}, fmt.Errorf("queue message: %d bytes", len(m.Data))
	}
	q := rawQueue{index: int(int32(binary.NativeEndian.Uint32(m.Data[4:]))), handle: binary.NativeEndian.Uint32(m.Data[8:]), parent: binary.NativeEndian.Uint32(m.Data[12:])}
	ad, err := netlink.NewAttributeDecoder(m.Data[sizeofTcMsg:])
	if err != nil {
		return rawQueue{}, fmt.Errorf("queue message: %w", err)
	}
	tbf := func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch b := ad.Bytes(); {
			case ad.Type() == parms && len(b) >= sizeofTBF:
				q.rate = max(q.rate, uint64(binary.NativeEndian.Uint32(b[8:])))
				q.limit, q.buffer = binary.NativeEndian.Uint32(b[24:]), binary.NativeEndian.Uint32(b[28:])
			case ad.Type() == rate64 && len(b) == 8:
				q.rate = binary.NativeEndian.Uint64(b)
			}
		}
		return nil
	}
	for ad.Next() {
		switch {
		case ad.Type() == kind:
			q.kind = ad.String()
		case ad.Type() == options && q.kind == "tbf":
			ad.Nested(tbf)
		}
	}
	if err := ad.Err(); err != nil {
		return rawQueue{}, fmt.Errorf("queue message: %w", err)
	}
	return q, nil
}
