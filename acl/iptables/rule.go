package iptables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"netctl/acl"
)

// quote writes a word as iptables-save(8) does.
func quote(s string) string {
	plain := s != "" && strings.IndexFunc(s, func(r rune) bool {
		return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
	if plain {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `'`, `\'`).Replace(s) + `"`
}

// IANA protocol numbers.
const (
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoSCTP  = 132
)

// Bits of a flow's status (linux/netfilter/nf_conntrack_common.h).
const (
	statusExpected  = 1
	statusConfirmed = 8
	statusDNAT      = 32
)

// typeName is the type of an address (rtnetlink(7), rtm_type) as iptables names it.
func typeName(n uint32) string {
	if n == unix.RTN_LOCAL {
		return "LOCAL"
	}
	return "UNICAST"
}

func protoName(n uint32) string {
	name, is := map[uint32]string{protoICMP: "icmp", protoTCP: "tcp", protoUDP: "udp", protoICMP6: "ipv6-icmp", protoSCTP: "sctp"}[n]
	if is {
		return name
	}
	return strconv.Itoa(int(n))
}

// matching is what a packet must be, in the order in which iptables-save(8) prints it.
type matching struct {
	rules                    *acl.Ruleset
	ipv6                     bool
	src, dst, in, out, proto string
	protocol                 uint32 // 0: any, or any but one
	extensions               []string
	either                   [][]string // one of each list
	icmpType                 uint32
	unless                   []string
	never                    bool
}

func inverted(not bool, s string) string {
	if not {
		return "! " + s
	}
	return s
}

// matches are the alternatives of what a rule matches. unless are matches that keep a packet
// from it. Not possible: no packet of the family matches.
func (e *emitter) matches(r *acl.Rule) (alternatives, unless []string, possible bool) {
	m := matching{rules: e.rules, ipv6: e.ipv6}
	terms := r.Match
	if r.MSS != 0 || r.Verdict.Kind == acl.Reset && e.table == "filter" {
		if !slices.ContainsFunc(terms, func(t acl.Term) bool { return t.Field == acl.L4Proto }) {
			terms = append(slices.Clone(terms), acl.Term{Field: acl.L4Proto, Number: protoTCP})
		}
	}
	// The protocol first: ports and types are those of a protocol.
	terms = slices.Clone(terms)
	slices.SortStableFunc(terms, func(a, b acl.Term) int {
		return cmp.Compare(a.Field, b.Field)
	})
	for _, t := range terms {
		m.term(t)
	}
	if r.MSS != 0 {
		m.transport("--tcp-flags SYN SYN")
	}
	if m.never {
		return nil, nil, false
	}
	alternatives = []string{m.String()}
	for _, list := range m.either {
		var all []string
		for _, one := range alternatives {
			for _, other := range list {
				all = append(all, strings.TrimSpace(one+" "+other))
			}
		}
		alternatives = all
	}
	return alternatives, m.unless, true
}

func (m *matching) String() string {
	var words []string
	for _, w := range append([]string{m.src, m.dst, m.in, m.out, m.proto}, m.extensions...) {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

func (m *matching) extend(format string, args ...any) {
	m.extensions = append(m.extensions, fmt.Sprintf(format, args...))
}

// transport matches what the protocol's header has, all of it at once.
func (m *matching) transport(option string) {
	name := "-m " + protoName(m.protocol)
	if n := len(m.extensions); n > 0 && strings.HasPrefix(m.extensions[n-1], name+" ") {
		m.extensions[n-1] += " " + option
		return
	}
	m.extend("%s %s", name, option)
}

func (m *matching) set(t acl.Term, name, flags string) {
	m.extend("-m set %s", inverted(t.Not, "--match-set "+setName(name)+" "+flags))
}

func (m *matching) term(t acl.Term) {
	switch t.Field {
	case acl.NFProto:
		const ipv6 = 10
		m.never = m.never || (t.Number == ipv6 == m.ipv6) == t.Not
	case acl.L4Proto:
		m.l4proto(t)
	case acl.SrcPort, acl.DstPort:
		m.port(t)
	case acl.ICMPType, acl.ICMP6Type, acl.ICMPCode, acl.ICMP6Code:
		m.icmp(t)
	case acl.TCPFlags:
		m.transport(inverted(t.Not, "--tcp-flags SYN SYN"))
	case acl.InLink:
		m.in = inverted(t.Not, "-i "+linkPattern(t.Text))
	case acl.OutLink:
		m.out = inverted(t.Not, "-o "+linkPattern(t.Text))
	case acl.InGroup:
		m.extend("-m devgroup %s", inverted(t.Not, fmt.Sprintf("--src-group 0x%x", t.Number)))
	case acl.OutGroup:
		m.extend("-m devgroup %s", inverted(t.Not, fmt.Sprintf("--dst-group 0x%x", t.Number)))
	case acl.DstType:
		if t.Number == unix.RTN_UNICAST && t.Not && m.ipv6 { // for it an address of the host's own is unicast, too
			m.either = append(m.either, []string{"-m addrtype --dst-type LOCAL,ANYCAST", "-m addrtype --dst-type MULTICAST"})
			return
		}
		m.extend("-m addrtype %s", inverted(t.Not, "--dst-type "+typeName(t.Number)))
	case acl.CTState, acl.CTStatus, acl.CTDirection:
		m.tracked(t)
	case acl.SrcRoute, acl.SrcReturn, acl.SrcLink, acl.VNI:
		m.never = true // see Lacks: only what drops asks for them
	default:
		m.address(t)
	}
}

func linkPattern(name string) string {
	if before, is := strings.CutSuffix(name, "*"); is {
		return before + "+"
	}
	return name
}

func (m *matching) l4proto(t acl.Term) {
	switch {
	case t.Set == acl.SetUnseen && t.Not:
		m.unless = unseenMatches(m.ipv6)
	case t.Set != "":
		m.never = true // no such rule
	case t.Not:
		m.proto = "! -p " + protoName(t.Number)
	default:
		m.proto, m.protocol = "-p "+protoName(t.Number), t.Number
	}
}

// unseenMatches are the protocols whose flows may have begun unseen: each has a set of all
// addresses for as long as that is so.
func unseenMatches(ipv6 bool) (list []string) {
	for _, p := range unseenProtocols() {
		list = append(list, fmt.Sprintf("-p %s -m set --match-set %s src", protoName(uint32(p)), unseenSet(p, ipv6)))
	}
	return list
}

func (m *matching) port(t acl.Term) {
	flags, word := "src", "--sport"
	if t.Field == acl.DstPort {
		flags, word = "dst", "--dport"
	}
	switch m.protocol {
	case protoTCP, protoUDP, protoSCTP:
		if t.Set == "" {
			m.transport(inverted(t.Not, fmt.Sprintf("%s %d", word, t.Number)))
			return
		}
	default:
		if t.Set == "" {
			m.never = true // no such rule
			return
		}
	}
	m.set(t, t.Set, flags)
}

// icmp takes a type, and then the code of that.
func (m *matching) icmp(t acl.Term) {
	family, word := "icmp", "--icmp-type"
	if t.Field == acl.ICMP6Type || t.Field == acl.ICMP6Code {
		family, word = "icmp6", "--icmpv6-type"
	}
	if (family == "icmp6") != m.ipv6 {
		m.never = true
		return
	}
	if m.protocol == 0 {
		m.proto, m.protocol = "-p "+map[bool]string{false: "icmp", true: "ipv6-icmp"}[m.ipv6], map[bool]uint32{false: protoICMP, true: protoICMP6}[m.ipv6]
	}
	switch {
	case t.Set != "" && t.Not:
		m.never = true // no such rule
	case t.Set != "":
		var types []string
		for _, e := range m.rules.Sets[t.Set].Sorted() {
			types = append(types, fmt.Sprintf("-m icmp6 --icmpv6-type %d", e.First))
		}
		m.either, m.never = append(m.either, types), m.never || len(types) == 0
	case t.Field == acl.ICMPType || t.Field == acl.ICMP6Type:
		m.icmpType = t.Number
		m.extend("-m %s %s", family, inverted(t.Not, fmt.Sprintf("%s %d", word, t.Number)))
	default:
		m.extend("-m %s %s", family, inverted(t.Not, fmt.Sprintf("%s %d/%d", word, m.icmpType, t.Number)))
	}
}

func (m *matching) tracked(t acl.Term) {
	switch {
	case t.Field == acl.CTState:
		m.extend("-m conntrack %s", inverted(t.Not, "--ctstate "+states(acl.State(t.Number))))
	case t.Field == acl.CTDirection:
		m.extend("-m conntrack %s", inverted(t.Not, "--ctdir "+map[uint32]string{0: "ORIGINAL", 1: "REPLY"}[t.Number]))
	case t.Number == statusDNAT && t.Not: // as in nftables, of what is tracked
		m.extend("-m conntrack ! --ctstate INVALID,UNTRACKED,DNAT")
	case t.Number == statusDNAT:
		m.extend("-m conntrack --ctstate DNAT")
	default:
		m.extend("-m conntrack %s", inverted(t.Not, "--ctstatus "+map[uint32]string{statusExpected: "EXPECTED", statusConfirmed: "CONFIRMED"}[t.Number]))
	}
}

func states(s acl.State) string {
	var list []string
	for _, x := range []struct {
		state acl.State
		name  string
	}{{acl.Invalid, "INVALID"}, {acl.New, "NEW"}, {acl.Related, "RELATED"}, {acl.Established, "ESTABLISHED"}, {acl.Untracked, "UNTRACKED"}} {
		if s&x.state != 0 {
			list = append(list, x.name)
		}
	}
	return strings.Join(list, ",")
}

func (m *matching) address(t acl.Term) {
	switch t.Field {
	case acl.SrcIP4, acl.SrcIP6:
		m.prefix(t, "src", &m.src, "-s ", t.Field == acl.SrcIP6)
	case acl.DstIP4, acl.DstIP6:
		m.prefix(t, "dst", &m.dst, "-d ", t.Field == acl.DstIP6)
	case acl.LinkSrcIP4, acl.LinkSrcIP6:
		m.concatenated(t, t.Field == acl.LinkSrcIP6, "src,src")
	case acl.LinkDstIP4, acl.LinkDstIP6: // of a meter, which has the addresses alone
		m.concatenated(t, t.Field == acl.LinkDstIP6, "dst")
	case acl.SrcNamedPort4, acl.SrcNamedPort6:
		m.concatenated(t, t.Field == acl.SrcNamedPort6, "src,src")
	case acl.DstNamedPort4, acl.DstNamedPort6:
		m.concatenated(t, t.Field == acl.DstNamedPort6, "dst,dst")
	case acl.Flow4, acl.Flow6:
		if (t.Field == acl.Flow6) != m.ipv6 {
			m.never = true
			return
		}
		for _, s := range cutSets(t.Set) {
			m.set(t, s.name, s.flags)
		}
	default: // acl.Pair4, acl.Pair6: no type of set has them
		m.never = true
	}
}

func (m *matching) concatenated(t acl.Term, ipv6 bool, flags string) {
	if ipv6 != m.ipv6 {
		m.never = true
		return
	}
	m.set(t, t.Set, flags)
}

func (m *matching) prefix(t acl.Term, flags string, place *string, word string, ipv6 bool) {
	p := t.Prefix.Masked()
	switch {
	case ipv6 != m.ipv6:
		m.never = true
	case t.Set != "":
		m.set(t, t.Set, flags)
	case p.Bits() == 0:
		m.never = m.never || t.Not
	case *place == "":
		*place = inverted(t.Not, word+p.String())
	default: // a rule has one of each
		m.extend("-m iprange %s", inverted(t.Not, fmt.Sprintf("--%s-range %s-%s", flags, p.Addr(), lastOf(p))))
	}
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// limits are what a rule matches beside what the packet is: how often, of how many connections.
// A limit of each link is one of each address, which is nobody else's: who sends, and for what
// is written of packets between two links, who receives. In the raw table senders are not known
// yet, and all have one limit together.
func (e *emitter) limits(chain string, r *acl.Rule) (text string) {
	if l := r.Limit; l.Rate > 0 {
		word, mode, name := "upto", "", l.Set
		if l.Over {
			word = "above"
		}
		switch {
		case l.Set == acl.MeterLog: // of all together: a table of addresses, of which there are too many, drops what it has no room for
		case l.Set == "":
			name = fmt.Sprintf("%s_%d_%d", chain, l.Rate, l.Burst)
		case e.table == "raw":
		case l.Key == acl.LinkPair, l.Key == acl.OutLink:
			mode = " --hashlimit-mode dstip"
		default:
			mode = " --hashlimit-mode srcip"
		}
		const most = 1000000 // of a rate and of a burst (xt_hashlimit.h)
		text = fmt.Sprintf(" -m hashlimit --hashlimit-%s %d/sec --hashlimit-burst %d%s --hashlimit-name %s --hashlimit-htable-max 65536 --hashlimit-htable-expire 60000",
			word, min(l.Rate, most), min(l.Burst, most), mode, setName(name))
	}
	if r.Connections != 0 {
		text += fmt.Sprintf(" -m connlimit --connlimit-upto %d --connlimit-mask 0 --connlimit-saddr", r.Connections)
	}
	return text
}

// targets are what a rule does, in order; all but the last go on. "": it only counts.
func (e *emitter) targets(r *acl.Rule, next *frame, after func() *frame) (list []string) {
	if r.Limit.Set != "" && r.Limit.Rate == 0 {
		list = append(list, addTargets(r.Limit)...)
	}
	if r.Log != "" {
		list = append(list, fmt.Sprintf("-j NFLOG --nflog-prefix %s --nflog-group %d", quote(r.Log), acl.LogGroup(r.Log)))
	}
	if r.MSS != 0 {
		list = append(list, fmt.Sprintf("-j TCPMSS --set-mss %d", r.MSS))
	}
	switch v := r.Verdict; v.Kind {
	case acl.Accept:
		list = append(list, "-j RETURN")
	case acl.Untrack:
		if e.table == "raw" { // behind it the packet is untracked already
			list = append(list, "-j CT --notrack")
		}
		list = append(list, "-j RETURN")
	case acl.Drop:
		list = append(list, "-j DROP")
	case acl.Reject, acl.Reset:
		list = append(list, e.reject(v.Kind))
	case acl.Return:
		list = append(list, e.to(next))
	case acl.Goto:
		list = append(list, e.into(v.Chain, next))
	case acl.Jump:
		list = append(list, e.into(v.Chain, after()))
	case acl.Masquerade:
		list = append(list, "-j MASQUERADE")
	case acl.Redirect:
		if v.To.Addr().Is6() == e.ipv6 {
			list = append(list, "-j DNAT --to-destination "+v.To.String())
		}
	}
	if len(list) == 0 {
		list = []string{""}
	}
	return list
}

// reject is possible in the table filter alone.
func (e *emitter) reject(k acl.VerdictKind) string {
	switch {
	case e.table != "filter":
		return "-j DROP"
	case k == acl.Reset:
		return "-j REJECT --reject-with tcp-reset"
	case e.ipv6:
		return "-j REJECT --reject-with icmp6-adm-prohibited"
	}
	return "-j REJECT --reject-with icmp-admin-prohibited"
}

// addTargets note a packet in a meter.
func addTargets(l acl.Limit) (list []string) {
	add := func(name, flags string, seconds int) {
		list = append(list, fmt.Sprintf("-j SET --add-set %s %s --exist --timeout %d", setName(name), flags, seconds))
	}
	switch l.Key {
	case acl.LinkDstIP4, acl.LinkDstIP6:
		add(l.Set, "dst", int(acl.LinkAddrMeter4.MeterTimeout().Seconds()))
	case acl.Flow4, acl.Flow6:
		for _, s := range cutSets(l.Set) {
			add(s.name, s.flags, int(acl.CutRest.Seconds()))
		}
	}
	return list
}
