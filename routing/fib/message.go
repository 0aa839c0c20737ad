package fib

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"netctl/netdev"
	"netctl/routing"
)

// defaultMetric6 is IP6_RT_PRIO_USER (include/uapi/linux/ipv6_route.h): what
// the kernel makes of metric 0.
const defaultMetric6 = 1024

// routeMessage is what this package reads of a route (struct rtmsg and
// attributes, include/uapi/linux/rtnetlink.h).
type routeMessage struct {
	prefix         netip.Prefix
	protocol, kind uint8 // RTPROT_…, RTN_…
	flags          uint32
	table, metric  uint32
	object         uint32 // the next-hop object that it names; 0: none
	mtu            uint32
	source         netip.Addr // not valid: none
	hops           []hopMessage
}

type hopMessage struct {
	addr   netip.Addr // not valid: none
	link   uint32     // its index; 0: none
	onlink bool
}

// key is what the route is known by.
func (m *routeMessage) key() routing.Key {
	k := routing.Key{Prefix: m.prefix, Metric: int(m.metric)}
	if m.prefix.Addr().Is6() && k.Metric == defaultMetric6 {
		k.Metric = 0
	}
	return k
}

// route is m in routing's words, without the next hops.
func (m *routeMessage) route() routing.Route {
	k := m.key()
	r := routing.Route{Prefix: k.Prefix, Metric: k.Metric, MTU: int(m.mtu), Source: m.source}
	if m.kind == unix.RTN_BLACKHOLE {
		r.Type = routing.Blackhole
	}
	return r
}

// nextHops are m's in routing's words, without the names of their links.
func (m *routeMessage) nextHops() []routing.NextHop {
	out := make([]routing.NextHop, len(m.hops))
	for i, h := range m.hops {
		out[i] = routing.NextHop{Addr: h.addr, Onlink: h.onlink}
	}
	return out
}

// cached says that the kernel keeps the route for one destination only.
func (m *routeMessage) cached() bool { return m.flags&unix.RTM_F_CLONED != 0 }

var errRoute = errors.New("route message: malformed or of another family")

// parse reads the body of an RTM_NEWROUTE or RTM_DELROUTE message into m, whose
// list of next hops is used again.
func (m *routeMessage) parse(b []byte) error {
	*m = routeMessage{hops: m.hops[:0]}
	if len(b) < unix.SizeofRtMsg {
		return errRoute
	}
	family, length := b[0], int(b[1])
	m.table, m.protocol, m.kind, m.flags = uint32(b[4]), b[5], b[7], binary.NativeEndian.Uint32(b[8:])
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return errRoute
	}
	dst := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	bits := dst.BitLen()
	single := hopMessage{onlink: m.flags&unix.RTNH_F_ONLINK != 0}
	for b = b[unix.SizeofRtMsg:]; len(b) > 0; {
		kind, value, rest, ok := netdev.Attribute(b)
		if !ok {
			return errRoute
		}
		switch kind {
		case unix.RTA_DST:
			dst, ok = address(value, bits)
		case unix.RTA_GATEWAY:
			single.addr, ok = address(value, bits)
		case unix.RTA_VIA:
			single.addr, ok = via(value)
		case unix.RTA_OIF:
			single.link, ok = number(value)
		case unix.RTA_PREFSRC:
			m.source, ok = address(value, bits)
		case unix.RTA_PRIORITY:
			m.metric, ok = number(value)
		case unix.RTA_TABLE:
			m.table, ok = number(value)
		case rtaNextHopID:
			m.object, ok = number(value)
		case unix.RTA_METRICS:
			m.mtu, ok = pathMTU(value)
		case unix.RTA_MULTIPATH:
			ok = m.multipath(value, bits)
		}
		if !ok {
			return errRoute
		}
		b = rest
	}
	if len(m.hops) == 0 {
		m.hops = append(m.hops, single)
	}
	m.prefix = netip.PrefixFrom(dst, length)
	if !m.prefix.IsValid() {
		return errRoute
	}
	return nil
}

// pathMTU finds the MTU among the metrics of a route; 0: there is none.
func pathMTU(b []byte) (mtu uint32, ok bool) {
	for len(b) > 0 {
		kind, value, rest, ok := netdev.Attribute(b)
		if ok && kind == unix.RTAX_MTU {
			mtu, ok = number(value)
		}
		if !ok {
			return 0, false
		}
		b = rest
	}
	return mtu, true
}

// multipath reads a list of struct rtnexthop, each with its attributes.
func (m *routeMessage) multipath(b []byte, bits int) bool {
	for len(b) > 0 {
		if len(b) < unix.SizeofRtNexthop {
			return false
		}
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			return false
		}
		h := hopMessage{link: binary.NativeEndian.Uint32(b[4:]), onlink: b[2]&unix.RTNH_F_ONLINK != 0}
		for list := b[unix.SizeofRtNexthop:n]; len(list) > 0; {
			kind, value, rest, ok := netdev.Attribute(list)
			switch {
			case ok && kind == unix.RTA_GATEWAY:
				h.addr, ok = address(value, bits)
			case ok && kind == unix.RTA_VIA:
				h.addr, ok = via(value)
			}
			if !ok {
				return false
			}
			list = rest
		}
		m.hops = append(m.hops, h)
		b = b[min((n+3)&^3, len(b)):]
	}
	return true
}

// via reads a struct rtvia: a gateway of the other family.
func via(b []byte) (netip.Addr, bool) {
	if len(b) < 2 {
		return netip.Addr{}, false
	}
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return address(b[2:], 32)
	case unix.AF_INET6:
		return address(b[2:], 128)
	}
	return netip.Addr{}, false
}

// address reads an address of the family with that many bits.
func address(b []byte, bits int) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(b)
	return a, ok && a.BitLen() == bits
}

func number(b []byte) (uint32, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return binary.NativeEndian.Uint32(b), true
}

// appendRtMsg appends a struct rtmsg.
func appendRtMsg(b []byte, p netip.Prefix, table, protocol, scope, kind uint8, flags uint32) []byte {
	b = append(b, family(p.Addr()), uint8(p.Bits()), 0, 0, table, protocol, scope, kind)
	return binary.NativeEndian.AppendUint32(b, flags)
}

func appendNumber(b []byte, kind uint16, value uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 8)
	b = binary.NativeEndian.AppendUint16(b, kind)
	return binary.NativeEndian.AppendUint32(b, value)
}

// appendMTU appends a route's metrics, with an MTU alone.
func appendMTU(b []byte, mtu uint32) []byte {
	b = binary.NativeEndian.AppendUint16(b, 4+8)
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_METRICS)
	return appendNumber(b, unix.RTAX_MTU, mtu)
}

// appendAddress appends an attribute that holds an address; both families' are
// a multiple of four bytes long, as attributes must be.
func appendAddress(b []byte, kind uint16, a netip.Addr) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+a.BitLen()/8))
	b = binary.NativeEndian.AppendUint16(b, kind)
	if a.Is4() {
		four := a.As4()
		return append(b, four[:]...)
	}
	sixteen := a.As16()
	return append(b, sixteen[:]...)
}

// appendSource appends the source address of a route, if it has one.
func appendSource(b []byte, a netip.Addr) []byte {
	if !a.IsValid() {
		return b
	}
	return appendAddress(b, unix.RTA_PREFSRC, a)
}

// appendGateway appends the gateway of a route to an IPv4 prefix (four) or an IPv6 one.
func appendGateway(b []byte, four bool, a netip.Addr) []byte {
	switch {
	case !a.IsValid():
		return b
	case a.Is4() == four:
		return appendAddress(b, unix.RTA_GATEWAY, a)
	}
	value := append(binary.NativeEndian.AppendUint16(nil, uint16(family(a))), a.AsSlice()...)
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_VIA)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// appendHops appends where a unicast route goes: the gateway and interface of its
// only next hop, or the list of all.
func appendHops(b []byte, four bool, hops []hopMessage) []byte {
	if len(hops) == 1 {
		b = appendGateway(b, four, hops[0].addr)
		return appendNumber(b, unix.RTA_OIF, hops[0].link)
	}
	start := len(b)
	b = append(b, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, unix.RTA_MULTIPATH)
	for _, h := range hops {
		at := len(b)
		b = append(b, 0, 0, onlink(h), 0)
		b = binary.NativeEndian.AppendUint32(b, h.link)
		b = appendGateway(b, four, h.addr)
		binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	}
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

func onlink(h hopMessage) uint8 {
	if h.onlink {
		return unix.RTNH_F_ONLINK
	}
	return 0
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
