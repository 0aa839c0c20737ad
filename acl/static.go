package acl

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netctl/datastore"
)

// IANA protocol numbers the static part and rules name.
const (
	protoICMP  = 1
	protoIPIP  = 4
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
	protoDCCP  = 33
	protoSCTP  = 132

	protoUDPLite = 136
)

const vxlanPort = 4789

// Static is the part that does not depend on the datastore: base chains, guards
// and the empty maps. With nothing else it drops whatever a link of ours sends
// or receives.
func Static(o Options) *Ruleset {
	r := &Ruleset{Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	for _, s := range staticSets(o) {
		r.Sets[s.Name] = s
	}
	for _, c := range append(staticChains(o), baseChains(o)...) {
		for i := range c.Rules {
			c.Rules[i].Comment = clip(c.Rules[i].Comment)
		}
		r.Chains[c.Name] = c
	}
	return r
}

func staticSets(o Options) []*Set {
	gateways := newSet(setGateway4, Addr4, "gateways of workloads")
	for _, a := range gateways4(o) {
		gateways.add(addrElement(a))
	}
	sets := []*Set{
		gateways,
		newSet(mapFromEP, LinkVerdict, "egress of each link"),
		newSet(mapToEP, LinkVerdict, "ingress of each link"),
		newSet(NextMap(mapFromEP), LinkVerdict, "while an element of from_ep changes"),
		newSet(NextMap(mapToEP), LinkVerdict, "while an element of to_ep changes"),
		newSet(setSrc4, LinkAddr4, "sources a link may use"),
		newSet(setSrc6, LinkAddr6, "sources a link may use"),
		newSet(setARP4, LinkAddr4, "senders a link may show"),
		newSet(setNets4, LinkNet4, "networks behind a link"),
		newSet(setNets6, LinkNet6, "networks behind a link"),
		newSet(setARPNets4, LinkNet4, "networks behind a link"),
		newSet(setGuarded, Links, "links judged by their MAC"),
		newSet(setMACs, LinkMAC, "MACs a link may use"),
		newSet(setMACSrc4, LinkAddr4, "sources a link may use, with its MAC"),
		newSet(setMACSrc6, LinkAddr6, "sources a link may use, with its MAC"),
		newSet(setARPGuarded, Links, "links judged by their MAC"),
		newSet(setARPMACs, LinkMAC, "MACs a link may use"),
		newSet(setARPMACSrc4, LinkAddr4, "senders a link may show, with its MAC"),
		newSet(setEncap4, LinkNet4, "who may encapsulate"),
		newSet(setEncap6, LinkNet6, "who may encapsulate"),
		newSet(setLL6, LinkAddr6, "link-local addresses made of the MACs"),
		newSet(setOnLink4, Net4, "subnets of the host"),
		newSet(setOnLink6, Net6, "subnets of the host"),
		newSet(meterDenyIn, PairMeter, "log lines"),
		newSet(meterDenyOut, LinkMeter, "log lines"),
		newSet(meterHost, LinkMeter, "log lines"),
		newSet(meterReverse, LinkMeter, "log lines"),
		newSet(meterDNS, LinkMeter, "answers of DNS servers"),
		newSet(setPool4, Net4, "pools"),
		newSet(setPool6, Net6, "pools"),
		newSet(setNode4, Net4, "addresses of nodes"),
		newSet(setNode6, Net6, "addresses of nodes"),
		newSet(MeterLog, PairMeter, "log lines"),
		newSet(meterEcho, LinkMeter, "echo requests to the host"),
		newSet(meterND, LinkMeter, "neighbour discovery"),
		newSet(flowMeter(o), LinkMeter, "flows begun"),
		newSet(meterReach, LinkMeter, "neighbours looked for"),
		newSet(meterSeen4, LinkAddrMeter4, "neighbours sent to"),
		newSet(meterSeen6, LinkAddrMeter6, "neighbours sent to"),
		newSet(SetUnseen, UnseenProtocols, "whose flows may have begun unseen"),
		newSet(setCutFlows4, CutFlows4, "answers in flows that were cut"),
		newSet(setCutFlows6, CutFlows6, "answers in flows that were cut"),
		newSet(setCutPairs4, CutPairs4, "answers in flows that were cut"),
		newSet(setCutPairs6, CutPairs6, "answers in flows that were cut"),
		newSet(setEphemeral, PortRanges, "clients", Element{First: 32768, Last: 65535}),
		newSet(setDHCP, Port, "DHCP servers", numberElement(67), numberElement(547)),
		// RFC 4443, RFC 4861, RFC 3810: multicast listener report and done,
		// router solicitation, neighbour solicitation and advertisement.
		newSet(setLink6, ICMP6Types, "neighbours and multicast listeners", numberElement(131), numberElement(132),
			numberElement(133), numberElement(135), numberElement(136), numberElement(143)),
		newSet(setRouter6, ICMP6Types, "router advertisement and redirect", numberElement(134), numberElement(137)),
	}
	if o.Adopts {
		sets = append(sets, newSet(setAdopted, Links, "links of endpoints that others made"), newSet(setAdoptedARP, Links, "links of endpoints that others made"))
	}
	for _, p := range []uint32{protoTCP, protoUDP, protoSCTP} {
		s := newSet(setHostPrefix+transportName(p), Port, "agent.workloadToHost")
		for _, h := range o.WorkloadToHost {
			if uint32(h.Protocol) == p {
				s.add(numberElement(h.Port))
			}
		}
		sets = append(sets, s)
	}
	return sets
}

func drop() Verdict                   { return Verdict{Kind: Drop} }
func accept() Verdict                 { return Verdict{Kind: Accept} }
func num(f Field, n uint32) Term      { return Term{Field: f, Number: n} }
func inSet(f Field, set string) Term  { return Term{Field: f, Set: set} }
func goTo(chain string) Verdict       { return Verdict{Kind: Goto, Chain: chain} }
func vmap(f Field, m string) Rule     { return Rule{Verdict: Verdict{Kind: Lookup, Key: f, Chain: m}} }
func match(v Verdict, m ...Term) Rule { return Rule{Match: m, Verdict: v} }
func invalid() Rule                   { return match(drop(), num(CTState, uint32(Invalid))) }

// known lets through what belongs to a flow that was judged when it began; if each of its
// packets is, only answers, and what came of another flow.
func known(o Options) []Rule {
	state := func(s State, m ...Term) Rule {
		return match(accept(), append([]Term{num(CTState, uint32(s))}, m...)...)
	}
	if !o.Strict {
		return []Rule{state(Established | Related)}
	}
	return []Rule{state(Related), state(Established, num(CTDirection, directionReply)), state(Established, num(CTStatus, statusExpected))}
}

// refuse drops and counts.
func refuse(comment string, m ...Term) Rule {
	return Rule{Match: m, Counter: true, Verdict: drop(), Comment: comment}
}

// flowMeter is the meter of flows begun. Its elements keep the rate that they were added
// with for as long as packets come, so another rate has another meter.
func flowMeter(o Options) string { return fmt.Sprintf("%s_%d_%d", meterFlows, o.FlowRate, o.FlowBurst) }

// flowGuards drop the flows that a workload begins in excess: they would fill the
// connection tracking table, and with those to addresses of the host's own subnets
// that answer to nobody the neighbour table.
func flowGuards(o Options) (list []Rule) {
	if o.FlowRate > 0 {
		// Only what has no entry yet: without answers every packet of a flow is new.
		list = append(list, Rule{Match: []Term{{Field: CTStatus, Number: statusConfirmed, Not: true}},
			Limit:   Limit{flowMeter(o), InLink, o.FlowRate, o.FlowBurst, true},
			Counter: true, Verdict: drop(), Comment: "too many new flows"})
	}
	for _, f := range []struct {
		dst, pair    Field
		subnets, met string
	}{{DstIP4, LinkDstIP4, setOnLink4, meterSeen4}, {DstIP6, LinkDstIP6, setOnLink6, meterSeen6}} {
		family := num(NFProto, f.dst.family())
		list = append(list,
			Rule{Match: []Term{family, inSet(f.dst, f.subnets), {Field: f.pair, Set: f.met, Not: true}}, Limit: Limit{meterReach, InLink, 20, 200, true},
				Counter: true, Verdict: drop(), Comment: "too many neighbours looked for"},
			Rule{Match: []Term{family, inSet(f.dst, f.subnets)}, Limit: Limit{Set: f.met, Key: f.pair}})
	}
	return list
}

func staticChains(o Options) []*Chain {
	echoes := few(meterEcho, InLink)
	echoes.Over = true
	excess := func(m ...Term) Rule {
		return Rule{Match: m, Limit: echoes, Counter: true, Verdict: drop(), Comment: "too many echo requests"}
	}
	unseen := func(chain string) Rule {
		r := match(Verdict{Kind: Jump, Chain: chain})
		if o.Strict {
			r.Match = []Term{num(CTState, uint32(New))}
		}
		return r
	}
	toHost := slices.Concat([]Rule{
		// First, since an identifier that was answered once is established.
		excess(num(L4Proto, protoICMP), num(ICMPType, 8)),
		excess(num(L4Proto, protoICMP6), num(ICMP6Type, 128)),
	}, known(o), []Rule{invalid()}, gatewayGuards(o), []Rule{
		refuse("router advertisement guard", num(L4Proto, protoICMP6), inSet(ICMP6Type, setRouter6)),
		match(accept(), num(L4Proto, protoICMP6), inSet(ICMP6Type, setLink6)),
		match(accept(), num(L4Proto, protoICMP), num(ICMPType, 8)),
		match(accept(), num(L4Proto, protoICMP6), num(ICMP6Type, 128)),
	})
	if o.FlowRate > 0 {
		toHost = append(toHost, flowGuards(o)[0])
	}
	for _, p := range []uint32{protoUDP, protoTCP, protoSCTP} {
		toHost = append(toHost, match(accept(), num(L4Proto, p), inSet(DstPort, setHostPrefix+transportName(p))))
	}
	toHost = append(toHost, Rule{Limit: few(meterHost, InLink), Log: "DPH|host"}, Rule{Counter: true, Verdict: drop()})
	chains := []*Chain{
		{Name: chainFromWL, Rules: slices.Concat([]Rule{invalid()}, gatewayGuards(o), []Rule{
			match(Verdict{Kind: Jump, Chain: chainEncap}, num(L4Proto, protoUDP), num(DstPort, vxlanPort)),
			match(Verdict{Kind: Jump, Chain: chainEncap}, num(L4Proto, protoIPIP)),
			refuse("DHCP server guard", num(L4Proto, protoUDP), inSet(SrcPort, setDHCP)),
			unseen(chainUnseen),
		}, flowGuards(o), []Rule{
			vmap(InLink, mapFromEP),
			vmap(InLink, NextMap(mapFromEP)),
			refuse("unknown endpoint"),
		})},
		{Name: chainToWL, Rules: slices.Concat([]Rule{invalid()}, reversePath(o, false), []Rule{
			unseen(chainUnseenTo),
			vmap(OutLink, mapToEP),
			vmap(OutLink, NextMap(mapToEP)),
			refuse("unknown endpoint"),
		})},
		{Name: chainEncap, Rules: encapRules()},
		{Name: ChainReverse, Rules: []Rule{{Limit: few(meterReverse, InLink), Log: reverseLog}, refuse(reverseReason)}},
		{Name: chainWLHost, Rules: toHost},
		{Name: chainUnseen, Rules: unseenRules()},
		{Name: chainUnseenTo, Rules: append([]Rule{match(Verdict{Kind: Return}, num(InGroup, o.Group))}, unseenRules()...)}, // what our links send is asked in from_wl
		{Name: chainRawOther, Rules: slices.Concat(
			adopted(o, match(goTo(chainSpoof), inSet(InLink, setAdopted))), gatewayGuards(o), []Rule{refuse(noGroup, Term{Field: InLink, Text: o.LinkPrefix + "*"})})},
		{Name: chainDenyIn, Rules: denyRules(inbound, logPrefix("D", inbound, defaultID, ""))},
		{Name: chainDenyOut, Rules: denyRules(outbound, logPrefix("D", outbound, defaultID, ""))},
		{Name: chainDropIn, Rules: []Rule{{Counter: true, Verdict: drop()}}},
		{Name: chainDropOut, Rules: []Rule{{Counter: true, Verdict: drop()}}},
	}
	if o.Adopts {
		chains = append(chains, &Chain{Name: chainSpoof, Rules: spoofRules()})
	}
	return chains
}

// encapRules let encapsulated packets on of who may send them, but to nodes, whose tunnels would
// take them for those of other nodes.
func encapRules() []Rule {
	ip4, ip6 := num(NFProto, nfIPv4), num(NFProto, nfIPv6)
	const toNode = "encapsulation guard, to a node"
	return []Rule{
		refuse("encapsulation guard", ip4, Term{Field: LinkSrcIP4, Set: setEncap4, Not: true}),
		refuse("encapsulation guard", ip6, Term{Field: LinkSrcIP6, Set: setEncap6, Not: true}),
		refuse(toNode, ip4, inSet(DstIP4, setNode4)), refuse(toNode, ip6, inSet(DstIP6, setNode6)),
	}
}

// adoptedLink is an endpoint's link, if others made it; "": we did.
func (x *Index) adoptedLink(e *datastore.Endpoint) string {
	if _, is := datastore.AdoptedLink(e.Metadata.Name); is && x.options.Adopts {
		return e.Spec.Link
	}
	return ""
}

// adopted are rules that are nothing where no link of others is an endpoint's.
func adopted(o Options, rules ...Rule) []Rule {
	if !o.Adopts {
		return nil
	}
	return rules
}

// Unseen is for how long, once the packet filter is whole again after a time in which
// connections were not tracked either, the first packet that is seen of a flow of a
// protocol may be its answer: a peer sends what is unacknowledged for some 15 minutes
// (net.ipv4.tcp_retries2), a server of datagrams answers sooner or never.
func Unseen() map[uint8]time.Duration {
	const datagrams = 10 * time.Second
	return map[uint8]time.Duration{protoTCP: 16 * time.Minute, protoUDP: datagrams, protoUDPLite: datagrams, protoSCTP: datagrams, protoDCCP: datagrams}
}

// unseenRules drop the answer in a flow that was cut, and for a time what may be one in a
// flow whose beginning nobody has seen. Taken for the first packet of a flow that its
// sender may begin, it would let the other end, which may not, through for as long as
// both go on. What begins with SYN is new; ICMP's answers never begin anything.
func unseenRules() []Rule {
	back := Verdict{Kind: Return}
	list := []Rule{match(back, num(L4Proto, protoTCP), num(TCPFlags, tcpSYN))}
	for _, f := range []struct {
		family       uint32
		flow, pair   Field
		flows, pairs string
	}{{nfIPv4, Flow4, Pair4, setCutFlows4, setCutPairs4}, {nfIPv6, Flow6, Pair6, setCutFlows6, setCutPairs6}} {
		const comment = "answer in a flow that was cut"
		kept := func(key Field, set string) Rule { // for as long as answers come
			r := refuse(comment, num(NFProto, f.family), inSet(key, set))
			r.Limit = Limit{Set: set, Key: key}
			return r
		}
		list = append(list,
			refuse(comment, num(NFProto, f.family), num(L4Proto, protoTCP), inSet(f.flow, f.flows)),
			kept(f.flow, f.flows), kept(f.pair, f.pairs))
	}
	// A guess: a client sends from an ephemeral port to one that is none.
	return append(list,
		match(back, Term{Field: L4Proto, Set: SetUnseen, Not: true}),
		match(back, inSet(SrcPort, setEphemeral), Term{Field: DstPort, Set: setEphemeral, Not: true}),
		refuse("answer in a flow that began unseen"))
}

// gatewayGuards keep what is sent to a gateway address from circling on lo until its TTL
// ends. A comparison costs a packet less than a set does, so that of several is asked
// only where one with the prefix around them holds.
func gatewayGuards(o Options) []Rule {
	list := gateways4(o)
	if len(list) == 0 {
		return nil
	}
	around := netip.PrefixFrom(list[0], 32)
	for _, a := range list {
		for !around.Contains(a) {
			around = netip.PrefixFrom(around.Addr(), around.Bits()-1).Masked()
		}
	}
	terms := []Term{num(NFProto, nfIPv4), {Field: DstIP4, Prefix: around}}
	if len(list) > 1 {
		terms = append(terms, inSet(DstIP4, setGateway4))
	}
	return []Rule{refuse("sent to a gateway address", terms...)}
}

func gateways4(o Options) (list []netip.Addr) {
	for _, a := range o.Gateways {
		if a = a.Unmap(); a.Is4() {
			list = append(list, a)
		}
	}
	return list
}

// spoofRules judge the source of what a workload sends, and let nothing go on.
func spoofRules() []Rule {
	ip6 := num(NFProto, nfIPv6)
	linkLocal := Term{Field: SrcIP6, Prefix: netip.MustParsePrefix("fe80::/10")}
	unspecified6 := Term{Field: SrcIP6, Prefix: netip.MustParsePrefix("::/128")}
	unspecified4 := Term{Field: SrcIP4, Prefix: netip.MustParsePrefix("0.0.0.0/32")}
	return []Rule{
		match(accept(), num(NFProto, nfIPv4), inSet(LinkSrcIP4, setSrc4)),
		match(accept(), ip6, inSet(LinkSrcIP6, setSrc6)),
		refuse(macGuard, inSet(InLink, setGuarded), num(InType, typeEther), Term{Field: LinkSrcMAC, Set: setMACs, Not: true}),
		match(accept(), num(NFProto, nfIPv4), inSet(LinkSrcIP4, setMACSrc4)),
		match(accept(), ip6, inSet(LinkSrcIP6, setMACSrc6)),
		match(accept(), ip6, inSet(LinkSrcIP6, setLL6), num(L4Proto, protoICMP6), inSet(ICMP6Type, setLink6)),
		{Match: []Term{ip6, linkLocal, num(L4Proto, protoICMP6), inSet(ICMP6Type, setLink6)},
			Limit: Limit{Set: meterND, Key: InLink, Rate: 1, Burst: 16}, Verdict: accept()},
		match(accept(), ip6, unspecified6, num(L4Proto, protoICMP6), inSet(ICMP6Type, setLink6)),
		match(accept(), num(NFProto, nfIPv4), unspecified4, num(L4Proto, protoUDP), num(SrcPort, 68), num(DstPort, 67)),
		match(accept(), num(NFProto, nfIPv4), inSet(LinkSrcIP4, setNets4)),
		match(accept(), ip6, inSet(LinkSrcIP6, setNets6)),
		refuse("spoofed source"),
	}
}

// arpRules judge what the ARP packets of a workload make the host learn; of is whose they
// are.
func arpRules(of Term) []Rule {
	guarded := inSet(InLink, setARPGuarded)
	return []Rule{
		match(accept(), of, inSet(LinkARPIP4, setARP4)),
		refuse(macGuard, of, guarded, num(InType, typeEther), Term{Field: LinkSrcMAC, Set: setARPMACs, Not: true}),
		refuse(macGuard, of, guarded, Term{Field: LinkARPMAC, Set: setARPMACs, Not: true}),
		match(accept(), of, inSet(LinkARPIP4, setARPMACSrc4)),
		match(accept(), of, inSet(LinkARPIP4, setARPNets4)),
		refuse("spoofed sender", of),
	}
}

const (
	noGroup  = "our prefix without our group"
	macGuard = "MAC guard"
)

// baseChains hook the static chains. Every packet that is forwarded passes three of them,
// and each rule on its way costs about as much as a look-up in a set: what ends the way
// of most comes first (docs/policy.md, "What it costs"). What comes back from a chain of
// forward or input without a verdict is dropped, so that an empty chain opens nothing to
// workloads; the sources of what they send are judged in raw_pre itself.
func baseChains(o Options) []*Chain {
	ours := o.LinkPrefix + "*"
	const noVerdict = "no verdict"
	jump := func(chain string, t Term) Rule { return match(Verdict{Kind: Jump, Chain: chain}, t) }
	foreign := Term{Field: InGroup, Number: o.Group, Not: true}
	in, out := num(InGroup, o.Group), num(OutGroup, o.Group)
	// Those of links that others made come behind: most packets are not theirs.
	also := func(chain string, t Term) []Rule { return adopted(o, jump(chain, t), refuse(noVerdict, t)) }
	unconfirmed := Term{Field: CTStatus, Number: statusConfirmed, Not: true}
	adoptedIn, adoptedOut, adoptedARP := inSet(InLink, setAdopted), inSet(OutLink, setAdopted), inSet(InLink, setAdoptedARP)
	return []*Chain{
		{Name: ChainRawPre, Hook: &Hook{"prerouting", -300}, Rules: append([]Rule{match(goTo(chainRawOther), foreign)}, spoofRules()...)},
		{Name: ChainFwdFrom, Hook: &Hook{"forward", -10}, Rules: slices.Concat(known(o), []Rule{jump(chainFromWL, in), refuse(noVerdict, in)}, also(chainFromWL, adoptedIn))},
		{Name: ChainFwdTo, Hook: &Hook{"forward", -9}, Rules: slices.Concat(known(o), []Rule{jump(chainToWL, out), refuse(noVerdict, out),
			refuse(noGroup, Term{Field: OutLink, Text: ours})}, also(chainToWL, adoptedOut))},
		{Name: ChainARP, Hook: &Hook{"input", 0}, Rules: slices.Concat(arpRules(in), []Rule{refuse(noGroup, Term{Field: InLink, Text: ours})},
			adopted(o, arpRules(adoptedARP)...))},
		{Name: ChainInHost, Hook: &Hook{"input", -10}, Rules: append([]Rule{jump(chainWLHost, in), refuse(noVerdict, in)}, also(chainWLHost, adoptedIn)...)},
		{Name: ChainOutHost, Hook: &Hook{"output", -10}, Rules: append([]Rule{match(Verdict{Kind: Jump, Chain: chainUnseen},
			out, unconfirmed)}, adopted(o, match(Verdict{Kind: Jump, Chain: chainUnseen}, adoptedOut, unconfirmed))...)},
	}
}

// DenyingChains are chains of few rules, of which only those that drop packets count them,
// and what they count. A rule of a profile that denies counts in its own chain.
func DenyingChains() map[string]string {
	return map[string]string{
		chainDenyIn: "inbound", chainDropIn: "inbound", chainDenyOut: "outbound", chainDropOut: "outbound", chainWLHost: "host",
		chainFromWL: "guard", chainToWL: "guard", chainRawOther: "guard",
		chainEncap: "guard", ChainReverse: ReversePathDrops,
	}
}
