package doctor

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Numbers of ICMP (RFC 792) and ICMPv6 (RFC 4443), and of IP protocols.
const (
	icmpEchoReply      = 0
	icmpUnreachable    = 3
	icmpEcho           = 8
	icmpTimestamp      = 13
	icmpTimestampReply = 14
	icmp6Unreachable   = 1
	icmp6TooBig        = 2
	icmp6Parameter     = 4
	icmp6Echo          = 128
	icmp6EchoReply     = 129

	protoICMP  = 1
	protoIPIP  = 4
	protoUDP   = 17
	protoICMP6 = 58

	ipv4Header = 20 // bytes
	ipv6Header = 40
	icmpHeader = 8

	sequence = 1 // of every echo request of ours
)

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// echoMessage is an echo request of so many bytes. The checksum of ICMPv6, which has the
// addresses in it, is left to the kernel unless they are given.
func echoMessage(id uint16, bytes int, from, to netip.Addr, v6 bool) []byte {
	b := make([]byte, max(bytes, icmpHeader))
	b[0] = icmpEcho
	if v6 {
		b[0] = icmp6Echo
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], sequence)
	switch {
	case !v6:
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	case from.IsValid(): // RFC 4443, section 2.3: the pseudo-header
		pseudo := append(append([]byte{}, from.AsSlice()...), to.AsSlice()...)
		pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
		pseudo = append(pseudo, 0, 0, 0, protoICMP6)
		binary.BigEndian.PutUint16(b[2:], checksum(append(pseudo, b...)))
	}
	return b
}

// ipPacket puts a header in front (RFC 791, RFC 8200).
func ipPacket(protocol byte, from, to netip.Addr, payload []byte) []byte {
	if to.Is6() {
		b := make([]byte, ipv6Header)
		b[0] = 6 << 4
		binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
		b[6], b[7] = protocol, 64
		copy(b[8:], from.AsSlice())
		copy(b[24:], to.AsSlice())
		return append(b, payload...)
	}
	b := make([]byte, ipv4Header)
	b[0] = 4<<4 | ipv4Header/4
	binary.BigEndian.PutUint16(b[2:], uint16(ipv4Header+len(payload)))
	b[8], b[9] = 64, protocol
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	return append(b, payload...)
}

// vxlanID is the virtual network of netctl's tunnels, as netdev/kernel makes them.
const vxlanID = 0x6e63

// vxlanPacket is what UDP carries (RFC 7348, section 5): the header, and a frame to mac.
func vxlanPacket(mac net.HardwareAddr, inner []byte, v6 bool) []byte {
	b := make([]byte, 8, 8+14+len(inner))
	b[0] = 1 << 3 // the network is said
	binary.BigEndian.PutUint32(b[4:], vxlanID<<8)
	b = append(b, mac...)
	b = append(b, 0x02, 0x6e, 0x63, 0, 0, 1)
	kind := uint16(0x0800)
	if v6 {
		kind = 0x86dd
	}
	return append(binary.BigEndian.AppendUint16(b, kind), inner...)
}

// heard judges an ICMP message that came in: ok is false where it is about something else.
// id is of the echo request, protocol and port of the packet that was sent
// (port 0: it has none).
func heard(b []byte, v6 bool, from, to netip.Addr, id uint16, protocol byte, port uint16) (a Answer, ok bool) {
	if len(b) < icmpHeader {
		return a, false
	}
	reply, kind, code := byte(icmpEchoReply), b[0], b[1]
	if v6 {
		reply = icmp6EchoReply
	}
	if kind == reply {
		is := from == to && binary.BigEndian.Uint16(b[4:]) == id && binary.BigEndian.Uint16(b[6:]) == sequence
		return Answer{Reply: Answered, From: from}, is
	}
	if !aboutOurs(b[icmpHeader:], v6, to, id, protocol, port) {
		return a, false
	}
	a.From = from
	if v6 {
		return judge6(a, b, kind, code)
	}
	return judge4(a, b, kind, code, to)
}

// judge4: the codes are those of RFC 792 and RFC 1812, section 5.2.7.1.
func judge4(a Answer, b []byte, kind, code byte, to netip.Addr) (Answer, bool) {
	if kind != icmpUnreachable {
		return a, false
	}
	switch code {
	case 2, 3: // protocol, port
		a.Reply = Refused
		if a.From != to {
			a.Reply = Prohibited // a router does not know ports: it is a firewall's refusal
		}
	case 4:
		a.Reply, a.MTU = TooLarge, int(binary.BigEndian.Uint16(b[6:]))
	case 9, 10, 13:
		a.Reply = Prohibited
	default:
		a.Reply = NoRoute
	}
	return a, true
}

func judge6(a Answer, b []byte, kind, code byte) (Answer, bool) {
	switch {
	case kind == icmp6TooBig:
		a.Reply, a.MTU = TooLarge, int(binary.BigEndian.Uint32(b[4:]))
	case kind == icmp6Unreachable && code == 4, kind == icmp6Parameter && code == 1: // port, next header
		a.Reply = Refused
	case kind == icmp6Unreachable && code == 1, kind == icmp6Unreachable && code == 5, kind == icmp6Unreachable && code == 6:
		a.Reply = Prohibited
	case kind == icmp6Unreachable:
		a.Reply = NoRoute
	default:
		return a, false
	}
	return a, true
}

// aboutOurs says whether the packet that an error quotes is the one that was sent.
func aboutOurs(quoted []byte, v6 bool, to netip.Addr, id uint16, protocol byte, port uint16) bool {
	length, at := ipv4Header, 16
	if v6 {
		length, at = ipv6Header, 24
	}
	if len(quoted) < length+8 {
		return false
	}
	next := quoted[6]
	if !v6 {
		next = quoted[9]
		length = int(quoted[0]&0xf) * 4
		if len(quoted) < length+8 {
			return false
		}
	}
	dst, _ := netip.AddrFromSlice(quoted[at : at+to.BitLen()/8])
	if dst != to || next != protocol {
		return false
	}
	inner := quoted[length:]
	switch protocol {
	case protoUDP:
		return binary.BigEndian.Uint16(inner[2:]) == port
	case protoICMP, protoICMP6:
		return binary.BigEndian.Uint16(inner[4:]) == id && binary.BigEndian.Uint16(inner[6:]) == sequence
	}
	return true
}
