package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"netctl/datastore"
)

// unknown is the name of a field or type that there is not.
const unknown = "unknown"

// maxComment is the longest comment of a rule or set in bytes: nft refuses more
// than 128 with the ending zero.
const maxComment = 127

// clip makes s a comment that nft can print and read back: no quotes, no
// control characters, not too long.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '"':
			return '\''
		case r < ' ' || r == 0x7f || r == '\\':
			return ' '
		}
		return r
	}, s)
	if len(s) <= maxComment {
		return s
	}
	return strings.ToValidUTF8(s[:maxComment-3], "") + "..."
}

// String is the ruleset in the syntax of nft -f, everything sorted by name,
// base chains last.
func (r *Ruleset) String() string {
	var b strings.Builder
	r.print(&b, "inet", func(name string) bool { return !strings.HasPrefix(name, ARPPrefix) })
	r.print(&b, "arp", func(name string) bool { return strings.HasPrefix(name, ARPPrefix) })
	return b.String()
}

// print writes the table of a family, if anything is in it.
func (r *Ruleset) print(b *strings.Builder, family string, in func(name string) bool) {
	sets := slices.DeleteFunc(sortedKeys(r.Sets), func(n string) bool { return !in(n) })
	chains := slices.DeleteFunc(sortedKeys(r.Chains), func(n string) bool { return !in(n) })
	if len(sets)+len(chains) == 0 {
		return
	}
	fmt.Fprintf(b, "table %s %s {\n", family, TableName)
	for _, n := range sets {
		r.Sets[n].print(b)
	}
	for _, base := range []bool{false, true} {
		for _, n := range chains {
			if c := r.Chains[n]; (c.Hook != nil) == base {
				c.print(b)
			}
		}
	}
	b.WriteString("}\n")
}

func (s *Set) print(b *strings.Builder) {
	word := "set"
	if s.Type.Map() {
		word = "map"
	}
	fmt.Fprintf(b, " %s %s { type %s;", word, s.Name, s.Type)
	if s.Type.Interval() || s.Type.Ranges() {
		b.WriteString(" flags interval;")
	}
	if s.Type.Meter() {
		fmt.Fprintf(b, " size %d; flags dynamic,timeout; timeout %ds;", s.Type.MeterSize(), s.Type.MeterTimeout()/time.Second)
	}
	if len(s.Elements) > 0 {
		b.WriteString(" elements = { ")
		for i, e := range s.Sorted() {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(e.Text(s.Type))
		}
		b.WriteString(" };")
	}
	if s.Comment != "" {
		fmt.Fprintf(b, " comment %q;", s.Comment)
	}
	b.WriteString(" }\n")
}

func (c *Chain) print(b *strings.Builder) {
	fmt.Fprintf(b, " chain %s {\n", c.Name)
	if c.Hook != nil {
		fmt.Fprintf(b, "  type %s hook %s priority %d; policy accept;\n", c.Hook.Type(), c.Hook.Name, c.Hook.Priority)
	}
	for i := range c.Rules {
		fmt.Fprintf(b, "  %s\n", c.Rules[i].String())
	}
	b.WriteString(" }\n")
}

// String is the type as nft names it.
func (t SetType) String() string {
	switch t {
	case Addr4, Net4:
		return "ipv4_addr"
	case Addr6, Net6:
		return "ipv6_addr"
	case Port, PortRanges:
		return "inet_service"
	case Links, LinkMeter:
		return "ifname"
	case PairMeter:
		return "ifname . ifname"
	case LinkAddr4, LinkNet4, LinkAddrMeter4:
		return "ifname . ipv4_addr"
	case LinkAddr6, LinkNet6, LinkAddrMeter6:
		return "ifname . ipv6_addr"
	case LinkMAC:
		return "ifname . ether_addr"
	case NamedPort4:
		return "ipv4_addr . inet_proto . inet_service"
	case NamedPort6:
		return "ipv6_addr . inet_proto . inet_service"
	case ICMP6Types:
		return "icmpv6_type"
	case UnseenProtocols:
		return "inet_proto"
	case CutFlows4:
		return "ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service"
	case CutFlows6:
		return "ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service"
	case CutPairs4:
		return "ipv4_addr . ipv4_addr . inet_proto"
	case CutPairs6:
		return "ipv6_addr . ipv6_addr . inet_proto"
	case LinkVerdict:
		return "ifname : verdict"
	case AddrVerdict4:
		return "ipv4_addr : verdict"
	case AddrVerdict6:
		return "ipv6_addr : verdict"
	case PortVerdict:
		return "inet_service : verdict"
	}
	return unknown
}

// Text is the element as nft writes it in a set of type t.
func (e Element) Text(t SetType) string {
	switch t {
	case Addr4, Addr6:
		return e.Prefix.Addr().String()
	case Net4, Net6:
		return e.Prefix.String()
	case LinkAddr4, LinkAddr6:
		return fmt.Sprintf("%q . %s", e.Link, e.Prefix.Addr())
	case LinkNet4, LinkNet6:
		return fmt.Sprintf("%q . %s", e.Link, e.Prefix)
	case NamedPort4, NamedPort6:
		return fmt.Sprintf("%s . %d . %d", e.Prefix.Addr(), e.Proto, e.First)
	case Links:
		return strconv.Quote(e.Link)
	case LinkMAC:
		return fmt.Sprintf("%q . %s", e.Link, e.MAC())
	case LinkVerdict:
		return fmt.Sprintf("%q : %s", e.Link, e.Verdict)
	case AddrVerdict4, AddrVerdict6:
		return fmt.Sprintf("%s : %s", rangeText(e.Prefix.Addr(), e.Until), e.Verdict)
	case PortVerdict:
		return fmt.Sprintf("%s : %s", e.Text(Port), e.Verdict)
	}
	if e.First != e.Last {
		return fmt.Sprintf("%d-%d", e.First, e.Last)
	}
	return strconv.Itoa(int(e.First))
}

// rangeText is a range of addresses as nft writes it: as a network if it is one.
func rangeText(first, last netip.Addr) string {
	for bits := range first.BitLen() + 1 {
		if p, err := first.Prefix(bits); err == nil && p.Addr() == first && datastore.LastAddr(p) == last {
			if p.IsSingleIP() {
				return first.String()
			}
			return p.String()
		}
	}
	return first.String() + "-" + last.String()
}

// String is the verdict as nft writes it.
func (v Verdict) String() string {
	switch v.Kind {
	case Accept:
		return "accept"
	case Drop:
		return "drop"
	case Return:
		return "return"
	case Jump:
		return "jump " + v.Chain
	case Goto:
		return "goto " + v.Chain
	case Lookup:
		return v.Key.String() + " vmap @" + v.Chain
	case Masquerade:
		return "masquerade"
	case Reject:
		return "reject with icmpx admin-prohibited"
	case Reset:
		return "reject with tcp reset"
	case Untrack:
		return "notrack accept"
	case Redirect:
		family := "ip"
		if v.To.Addr().Is6() {
			family = "ip6"
		}
		return "dnat " + family + " to " + v.To.String()
	}
	return ""
}

// String is the rule as nft writes it, without its handle.
func (r *Rule) String() string {
	var words []string
	transport := "th"
	for i, t := range r.Match {
		var next Field
		if i+1 < len(r.Match) {
			next = r.Match[i+1].Field
		}
		if t.Field == L4Proto && !t.Not && t.Set == "" {
			if name := transportName(t.Number); name != "" {
				transport = name
				if next == SrcPort || next == DstPort {
					continue
				}
			}
		}
		if t.Field == NFProto && !t.Not && next.family() == t.Number {
			continue
		}
		words = append(words, t.text(transport))
	}
	if r.CountsFirst() {
		words = append(words, "counter")
	}
	if r.Limit != (Limit{}) {
		words = append(words, r.Limit.String())
	}
	if r.Connections != 0 {
		words = append(words, fmt.Sprintf("ct count %d", r.Connections))
	}
	if r.Log != "" {
		words = append(words, fmt.Sprintf("log group %d prefix %q", LogGroup(r.Log), r.Log))
	}
	if r.MSS != 0 {
		words = append(words, fmt.Sprintf("tcp option maxseg size set %d", r.MSS))
	}
	if r.Counter && !r.CountsFirst() {
		words = append(words, "counter")
	}
	if v := r.Verdict.String(); v != "" {
		words = append(words, v)
	}
	if r.Comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(words, " ")
}

// String is the limit as nft writes it.
func (l Limit) String() string {
	rate := ""
	if l.Rate > 0 {
		over := ""
		if l.Over {
			over = "over "
		}
		rate = fmt.Sprintf(" limit rate %s%d/second burst %d packets", over, l.Rate, l.Burst)
	}
	if l.Set == "" {
		return strings.TrimSpace(rate)
	}
	return fmt.Sprintf("update @%s { %s%s }", l.Set, l.Key, rate)
}

func (t Term) text(transport string) string {
	field := t.Field.String()
	if t.Field == SrcPort || t.Field == DstPort {
		field = transport + strings.TrimPrefix(field, "th")
	}
	op := " "
	if t.Not && t.Field.bits() {
		op = " ! " // none of the bits
	} else if t.Not {
		op = " != "
	}
	return field + op + t.value()
}

func (t Term) value() string {
	switch {
	case t.Set != "":
		return "@" + t.Set
	case (t.Field == SrcRoute || t.Field == SrcReturn) && t.Number == 0:
		return "missing"
	case t.Field == SrcRoute || t.Field == SrcReturn:
		return "exists"
	case t.Text != "":
		return strconv.Quote(t.Text)
	case t.Prefix.IsValid() && t.Prefix.IsSingleIP():
		return t.Prefix.Addr().String()
	case t.Prefix.IsValid():
		return t.Prefix.String()
	case t.Field == CTState:
		return State(t.Number).String()
	case t.Field == CTStatus && t.Number == statusConfirmed:
		return "confirmed"
	case t.Field == CTStatus && t.Number == statusExpected:
		return "expected"
	case t.Field == CTDirection && t.Number == directionReply:
		return "reply"
	case t.Field == CTStatus && t.Number == statusDNAT:
		return "dnat"
	case t.Field == TCPFlags && t.Number == tcpSYN:
		return "syn"
	case t.Field == DstType && t.Number == typeLocal:
		return "local"
	case t.Field == DstType && t.Number == typeUnicast:
		return "unicast"
	case t.Field == NFProto && t.Number == nfIPv4:
		return "ipv4"
	case t.Field == NFProto && t.Number == nfIPv6:
		return "ipv6"
	}
	return strconv.FormatUint(uint64(t.Number), 10)
}

func transportName(proto uint32) string {
	switch proto {
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoSCTP:
		return "sctp"
	}
	return ""
}

// family is the NFProto the field exists in, 0 for both.
func (f Field) family() uint32 {
	switch f {
	case SrcIP4, DstIP4, LinkSrcIP4, LinkDstIP4, SrcNamedPort4, DstNamedPort4, Flow4, Pair4:
		return nfIPv4
	case SrcIP6, DstIP6, LinkSrcIP6, LinkDstIP6, SrcNamedPort6, DstNamedPort6, Flow6, Pair6:
		return nfIPv6
	}
	return 0
}

// bits says that the bits of a Term's Number are looked at: one of them, or with Not
// none.
func (f Field) bits() bool { return f == CTStatus || f == TCPFlags || f == CTState }

// String is the field as nft writes it.
func (f Field) String() string {
	names := [...]string{
		NFProto: "meta nfproto", L4Proto: "meta l4proto", SrcPort: "th sport", DstPort: "th dport",
		ICMPType: "icmp type", ICMPCode: "icmp code", ICMP6Type: "icmpv6 type", ICMP6Code: "icmpv6 code",
		SrcIP4: "ip saddr", DstIP4: "ip daddr", SrcIP6: "ip6 saddr", DstIP6: "ip6 daddr",
		InLink: "iifname", OutLink: "oifname", InGroup: "iifgroup", InType: "iiftype", OutGroup: "oifgroup", CTState: "ct state",
		LinkSrcIP4: "iifname . ip saddr", LinkSrcIP6: "iifname . ip6 saddr",
		SrcNamedPort4: "ip saddr . meta l4proto . th sport", DstNamedPort4: "ip daddr . meta l4proto . th dport",
		SrcNamedPort6: "ip6 saddr . meta l4proto . th sport", DstNamedPort6: "ip6 daddr . meta l4proto . th dport",
		LinkPair: "iifname . oifname", LinkDstIP4: "iifname . ip daddr", LinkDstIP6: "iifname . ip6 daddr", LinkARPIP4: "iifname . arp saddr ip", LinkSrcMAC: "iifname . ether saddr", LinkARPMAC: "iifname . arp saddr ether",
		CTStatus: "ct status", CTDirection: "ct direction", TCPFlags: "tcp flags", DstType: "fib daddr type",
		SrcRoute: "fib saddr oif", SrcReturn: "fib saddr . iif oif", SrcLink: "fib saddr oifname", VNI: "@th,96,24",
		Flow4: "ip saddr . ip daddr . meta l4proto . th sport . th dport", Flow6: "ip6 saddr . ip6 daddr . meta l4proto . th sport . th dport",
		Pair4: "ip saddr . ip daddr . meta l4proto", Pair6: "ip6 saddr . ip6 daddr . meta l4proto",
	}
	if int(f) < len(names) {
		return names[f]
	}
	return unknown
}
