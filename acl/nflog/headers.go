package nflog

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"netctl/acl"
)

// headers reads what a rule can look at of an IP packet, of which only the begin may be
// there; false: it is none.
func headers(b []byte, p *acl.Packet) bool {
	rest, ok := network(b, p)
	if ok {
		transport(rest, p)
	}
	return ok
}

// network reads the IP headers. rest is what is behind them, if it begins with the next one.
func network(b []byte, p *acl.Packet) (rest []byte, ok bool) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		p.Src, p.Dst, p.Protocol = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])), b[9]
		n := int(b[0]&15) * 4
		if n < 20 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 { // a later fragment has no more headers
			return nil, n >= 20
		}
		return b[min(n, len(b)):], true
	case len(b) >= 40 && b[0]>>4 == 6:
		p.Src, p.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		next, rest := b[6], b[40:]
		for next == unix.IPPROTO_HOPOPTS || next == unix.IPPROTO_ROUTING || next == unix.IPPROTO_DSTOPTS || next == unix.IPPROTO_FRAGMENT {
			if len(rest) < 8 {
				break
			}
			n := int(rest[1])*8 + 8 // RFC 8200, section 4.3
			if next == unix.IPPROTO_FRAGMENT {
				n = 8
				if binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
					p.Protocol = rest[0]
					return nil, true
				}
			}
			next, rest = rest[0], rest[min(n, len(rest)):]
		}
		p.Protocol = next
		return rest, true
	}
	return nil, false
}

// datagram is what a UDP packet carries; false: it is none, or not all of it is there.
func datagram(b []byte, p *acl.Packet) (payload []byte, ok bool) {
	const head = 8 // RFC 768
	rest, ok := network(b, p)
	if !ok || p.Protocol != unix.IPPROTO_UDP || len(rest) < head {
		return nil, false
	}
	transport(rest, p)
	n := int(binary.BigEndian.Uint16(rest[4:]))
	if n < head || n > len(rest) {
		return nil, false
	}
	return rest[head:n], true
}

// transport reads ports, or the type of ICMP.
func transport(b []byte, p *acl.Packet) {
	switch p.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP:
		if len(b) >= 4 {
			p.SrcPort, p.DstPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		if len(b) >= 2 {
			p.Type, p.Code = b[0], b[1]
		}
	}
}
