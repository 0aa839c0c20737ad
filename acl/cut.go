package acl

import (
	"net/netip"
	"time"
)

// Flow is the packets that one end of a connection sends to the other. The answers in one
// that was cut are dropped for as long as the kernel would have remembered it, since
// their sender may be allowed to begin such a flow, and conntrack would take the next
// of them for its first packet.
type Flow struct {
	Src, Dst         netip.Addr
	Protocol         uint8  // IANA number
	SrcPort, DstPort uint16 // 0 where the protocol has none
}

// MaxCut is how many flows of a family and of protocols with ports, or without, are kept
// from being answered.
const MaxCut = 16384

// CutRest is for how long no answer may have come before one may begin a flow: what
// netfilter remembers a flow of any protocol but TCP for, at most
// (net.netfilter.nf_conntrack_generic_timeout).
const CutRest = 10 * time.Minute

// cutTCP is the same of TCP, whose ends may both be silent for long, and whose new flows
// begin with SYN (nf_conntrack_tcp_timeout_established).
const cutTCP = 5 * 24 * time.Hour

// Cut is the set that keeps the flow's packets from beginning another, of which type, and
// for how long. false: they never do.
func (f Flow) Cut() (set string, t SetType, d time.Duration, ok bool) {
	ip6 := f.Src.Is6()
	switch f.Protocol {
	case protoICMP, protoICMP6:
		return "", 0, 0, false
	case protoTCP:
		d = cutTCP
	case protoUDP, protoUDPLite, protoSCTP, protoDCCP:
		d = CutRest
	default:
		if ip6 {
			return setCutPairs6, CutPairs6, CutRest, true
		}
		return setCutPairs4, CutPairs4, CutRest, true
	}
	if ip6 {
		return setCutFlows6, CutFlows6, d, true
	}
	return setCutFlows4, CutFlows4, d, true
}
