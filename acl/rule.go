package acl

import (
	"net/netip"
	"slices"
)

// Field is what a Term looks at in a packet.
type Field uint8

// The fields. Those with two or three parts are keys of concatenated sets.
const (
	NFProto       Field = iota + 1 // 2: IPv4, 10: IPv6
	L4Proto                        // IANA protocol number
	SrcPort                        // of tcp, udp, sctp
	DstPort                        //
	ICMPType                       //
	ICMPCode                       //
	ICMP6Type                      //
	ICMP6Code                      //
	SrcIP4                         //
	DstIP4                         //
	SrcIP6                         //
	DstIP6                         //
	InLink                         // name of the link; a trailing * matches the rest
	OutLink                        //
	InGroup                        // device group
	OutGroup                       //
	CTState                        // bits of State
	LinkSrcIP4                     // InLink . SrcIP4
	LinkSrcIP6                     // InLink . SrcIP6
	SrcNamedPort4                  // SrcIP4 . L4Proto . SrcPort
	DstNamedPort4                  // DstIP4 . L4Proto . DstPort
	SrcNamedPort6                  // SrcIP6 . L4Proto . SrcPort
	DstNamedPort6                  // DstIP6 . L4Proto . DstPort
	LinkPair                       // InLink . OutLink
	LinkDstIP4                     // InLink . DstIP4
	LinkDstIP6                     // InLink . DstIP6
	LinkARPIP4                     // InLink . sender's address, of an ARP packet
	CTStatus                       // bits of the connection tracking entry's status
	TCPFlags                       // bits of the flags of a TCP segment
	DstType                        // what the destination is to this host (rtnetlink(7), rtm_type)
	Flow4                          // SrcIP4 . DstIP4 . L4Proto . SrcPort . DstPort
	Flow6                          // SrcIP6 . DstIP6 . L4Proto . SrcPort . DstPort
	Pair4                          // SrcIP4 . DstIP4 . L4Proto
	Pair6                          // SrcIP6 . DstIP6 . L4Proto
	CTDirection                    // 0: as the flow began, 1: its answers
	SrcRoute                       // 1: there is a route to the source, 0: there is none
	SrcReturn                      // 1: the route to the source may lead out by InLink, 0: it leads elsewhere
	VNI                            // virtual network of a VXLAN packet (RFC 7348, section 5)
	SrcLink                        // name of the link that the route to the source leads to; a trailing * as of InLink
	LinkSrcMAC                     // InLink . sender of the frame
	LinkARPMAC                     // InLink . sender's hardware address, of an ARP packet
	InType                         // ARPHRD_… of InLink
)

// The values of NFProto.
const (
	nfIPv4 = 2
	nfIPv6 = 10
)

// The DstType of an address that is another machine's, and of one of this host (RTN_UNICAST,
// RTN_LOCAL).
const (
	typeUnicast = 1
	typeLocal   = 2
)

// statusConfirmed is the CTStatus of a flow that has its entry in the table already
// (IPS_CONFIRMED). Its packets are of state new all the same until somebody answers.
const statusConfirmed = 8

// statusExpected is the CTStatus of a flow that came of another one (IPS_EXPECTED), and is
// judged by that.
const statusExpected = 1

// typeEther is the InType of links whose frames have MACs (ARPHRD_ETHER).
const typeEther = 1

// directionReply is the CTDirection of answers.
const directionReply = 1

// statusDNAT is the CTStatus of a flow whose destination is translated (IPS_DST_NAT).
const statusDNAT = 32

// Term is one match. Exactly one of Set, Text, Prefix (if valid) and Number
// (else) is compared with Field; Not inverts.
type Term struct {
	Field  Field
	Not    bool
	Set    string
	Text   string
	Prefix netip.Prefix
	Number uint32
}

// VerdictKind is what happens to a packet.
type VerdictKind uint8

// The verdicts. Continue goes on to the next rule. Accept ends the base chain
// only, so ingress is still asked after egress accepted.
const (
	Continue VerdictKind = iota
	Accept
	Drop
	Return
	Jump
	Goto
	// Lookup takes the verdict from a map, and continues if it has none.
	Lookup
	// Masquerade gives the packet's flow the address of the link it leaves by.
	Masquerade
	// Redirect gives the packet's flow the destination To.
	Redirect
	// Reject drops, and tells the sender by an ICMP error; Reset by a TCP segment.
	Reject
	Reset
	// Untrack accepts, and has the packet not tracked.
	Untrack
)

// Verdict is what a rule or an element of a verdict map does.
type Verdict struct {
	Kind  VerdictKind
	Chain string         // of Jump and Goto; the map of Lookup
	Key   Field          // of Lookup
	To    netip.AddrPort // of Redirect
}

// Limit bounds how often a rule goes on: Rate times a second and Burst at once for
// each value of Key, which the kernel notes in the meter Set. With Over it goes on
// only with what is more. Rate 0 notes the value, and always goes on. The zero Limit
// is none. Without a Set all there is counts as one.
type Limit struct {
	Set         string
	Key         Field
	Rate, Burst uint32 // packets
	Over        bool
}

// Rule is one rule of a chain: if all Match hold, then limit, log, segment size, count
// and the verdict, in this order. One that logs and goes on counts before the limit.
type Rule struct {
	Match []Term
	Limit Limit
	Log   string // prefix of an NFLOG message; empty: none
	// Connections, if not 0, is with how many flows that came to the rule it still goes on.
	Connections uint32
	MSS         uint16 // a larger maximum segment size that a TCP segment tells becomes this; 0: none
	Counter     bool
	Verdict     Verdict
	Comment     string // readable origin, at most 127 bytes
}

// CountsFirst says whether the rule counts before its limit.
func (r Rule) CountsFirst() bool {
	return r.Counter && r.Log != "" && r.Verdict.Kind == Continue
}

// Equal says whether two rules are the same, comment and all.
func (r Rule) Equal(o Rule) bool {
	return r.Limit == o.Limit && r.Log == o.Log && r.MSS == o.MSS && r.Connections == o.Connections && r.Counter == o.Counter && r.Verdict == o.Verdict && r.Comment == o.Comment &&
		slices.Equal(r.Match, o.Match)
}

// The rate of logged packets and of echo requests to the host, per second, and the
// burst.
const (
	limitRate  = 50
	limitBurst = 100
)

// few is limitRate of each value of a key.
func few(meter string, key Field) Limit {
	return Limit{Set: meter, Key: key, Rate: limitRate, Burst: limitBurst}
}
