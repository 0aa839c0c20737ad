package tap

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// The ports and ICMPv6 types of the three protocols.
const (
	server4, client4   = 67, 68
	server6, client6   = 547, 546
	routerSolicitation = 133
)

// The lengths of headers in bytes.
const (
	ethernetLen = 14
	ipv4Len     = 20 // without options
	ipv6Len     = 40
	udpLen      = 8
)

// hopLimit is what a message of neighbour discovery must have left (RFC 4861, section 6.1).
const hopLimit = 255

// answer is the frame that a frame from the TAP is answered with; nil: none. Checksums are
// not looked at: the machine leaves them to a device that there is not.
func (g Guest) answer(frame []byte) []byte {
	if len(frame) < ethernetLen || !slices.Equal(net.HardwareAddr(frame[6:12]), g.MAC) {
		return nil
	}
	switch packet := frame[ethernetLen:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		return g.answerIPv4(packet)
	case unix.ETH_P_IPV6:
		return g.answerIPv6(packet)
	}
	return nil
}

func (g Guest) answerIPv4(p []byte) []byte {
	if len(p) < ipv4Len || p[0]>>4 != 4 {
		return nil
	}
	header, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
	const fragment = 0x3fff // more of them, or not the first
	if header < ipv4Len || total > len(p) || total < header || p[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(p[6:])&fragment != 0 {
		return nil
	}
	text, _, ok := datagram(p[header:total], server4)
	if !ok {
		return nil
	}
	req, err := dhcpv4.FromBytes(text)
	if err != nil {
		return nil
	}
	res, to := g.answer4(req)
	if res == nil {
		return nil
	}
	mac := g.MAC
	if to.IsUnspecified() || to == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		mac = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	}
	return frame4(mac, g.Gateway, to, res.ToBytes())
}

func (g Guest) answerIPv6(p []byte) []byte {
	if len(p) < ipv6Len || p[0]>>4 != 6 || !g.address(false).IsValid() {
		return nil
	}
	from, length := netip.AddrFrom16([16]byte(p[8:24])), int(binary.BigEndian.Uint16(p[4:]))
	if length > len(p)-ipv6Len {
		return nil
	}
	next, hops, payload := p[6], p[7], p[ipv6Len:ipv6Len+length]
	switch {
	case next == unix.IPPROTO_ICMPV6 && hops == hopLimit && len(payload) >= 8 && payload[0] == routerSolicitation && payload[1] == 0:
		return g.advertise()
	case next != unix.IPPROTO_UDP || !from.IsLinkLocalUnicast():
		return nil
	}
	text, port, ok := datagram(payload, server6)
	if !ok {
		return nil
	}
	req, err := dhcpv6.MessageFromBytes(text)
	if err != nil {
		return nil
	}
	res := g.answer6(req)
	if res == nil {
		return nil
	}
	return frame6(g.MAC, from, unix.IPPROTO_UDP, hopLimit, udp(netdev.HostLinkLocal(), from, server6, port, res.ToBytes()))
}

// advertise is the frame of a router advertisement.
func (g Guest) advertise() []byte {
	all := netip.MustParseAddr("ff02::1")
	text, err := ndp.MarshalMessageChecksum(g.advertisement(), netdev.HostLinkLocal(), all)
	if err != nil {
		return nil
	}
	return frame6(net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, all, unix.IPPROTO_ICMPV6, hopLimit, text)
}

// datagram is what a UDP packet to a port holds, and the port that it came from.
func datagram(p []byte, to uint16) (text []byte, from uint16, ok bool) {
	if len(p) < udpLen || binary.BigEndian.Uint16(p[2:]) != to {
		return nil, 0, false
	}
	length := int(binary.BigEndian.Uint16(p[4:]))
	if length < udpLen || length > len(p) {
		return nil, 0, false
	}
	return p[udpLen:length], binary.BigEndian.Uint16(p), true
}

func frame4(mac net.HardwareAddr, from, to netip.Addr, text []byte) []byte {
	payload := udp(from, to, server4, client4, text)
	p := make([]byte, ipv4Len, ipv4Len+len(payload))
	p[0], p[8], p[9] = 4<<4|ipv4Len/4, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(ipv4Len+len(payload)))
	copy(p[12:], from.AsSlice())
	copy(p[16:], to.AsSlice())
	binary.BigEndian.PutUint16(p[10:], checksum(p))
	return ethernet(mac, unix.ETH_P_IP, append(p, payload...))
}

func frame6(mac net.HardwareAddr, to netip.Addr, next, hops byte, payload []byte) []byte {
	p := make([]byte, ipv6Len, ipv6Len+len(payload))
	p[0], p[6], p[7] = 6<<4, next, hops
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], netdev.HostLinkLocal().AsSlice())
	copy(p[24:], to.AsSlice())
	return ethernet(mac, unix.ETH_P_IPV6, append(p, payload...))
}

func ethernet(to net.HardwareAddr, kind uint16, packet []byte) []byte {
	return append(binary.BigEndian.AppendUint16(slices.Concat(to, hostMAC()), kind), packet...)
}

// udp is a datagram with its checksum (RFC 768; RFC 8200, section 8.1).
func udp(from, to netip.Addr, source, destination uint16, text []byte) []byte {
	p := make([]byte, udpLen, udpLen+len(text))
	binary.BigEndian.PutUint16(p, source)
	binary.BigEndian.PutUint16(p[2:], destination)
	binary.BigEndian.PutUint16(p[4:], uint16(udpLen+len(text)))
	p = append(p, text...)
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, unix.IPPROTO_UDP}, p[4:6])
	sum := checksum(append(pseudo, p...))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(p[6:], sum)
	return p
}

// checksum is the Internet's (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
