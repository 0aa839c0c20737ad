package acl

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// State is a packet's connection tracking state, a bit as in the kernel's
// NF_CT_STATE_BIT.
type State uint16

// The states.
const (
	Invalid     State = 1
	Established State = 2
	Related     State = 4
	New         State = 8
	Untracked   State = 64
)

// String is the state, or several, as nft names them.
func (s State) String() string {
	var words []string
	for i, word := range []string{"invalid", "established", "related", "new", 6: "untracked"} {
		if word != "" && s&(1<<i) != 0 {
			words = append(words, word)
		}
	}
	return strings.Join(words, ",")
}

// Packet is what a ruleset can know of a packet. OutLink "" means that it is for
// the host itself, InLink "" that it is from it.
type Packet struct {
	InLink, OutLink   string
	InGroup, OutGroup uint32
	Src, Dst          netip.Addr
	Protocol          uint8
	SrcPort, DstPort  uint16 // of tcp, udp, sctp
	Type, Code        uint8  // of icmp, icmpv6
	State             State
	Reply             bool // it is an answer
	// Route is the link that the host's route to the source leads to; "": that of InLink, or none
	// if Unrouted.
	Route    string
	Unrouted bool
}

// Decision says whether a packet passes, and what decided.
type Decision struct {
	Allowed bool
	// Chain and Rule (from 0) of the verdict; Rule is -1 where a base chain's
	// policy accepted.
	Chain string
	Rule  int
	// Reason is the comment of the last rule on the way that has one.
	Reason string
	// Logged are the NFLOG prefixes written on the way.
	Logged []string
}

// String is the verdict and its reason in one line.
func (d Decision) String() string {
	verdict := "denied"
	if d.Allowed {
		verdict = "allowed"
	}
	return fmt.Sprintf("%s by %s rule %d (%s)", verdict, d.Chain, d.Rule, d.Reason)
}

// Eval runs p through the base chains in the kernel's order: prerouting, then
// input or both forward chains. The first drop decides, else the last accept.
// Limits are taken as not reached, and
// meters as empty. It is the reference for what a ruleset means.
func (r *Ruleset) Eval(p Packet) Decision { return r.Judge().Eval(p) }

// Judge evaluates many packets against a ruleset that does not change meanwhile.
type Judge struct {
	rules    *Ruleset
	verdicts map[string]map[Element]Verdict // of maps, by key
}

// Judge is a judge by r.
func (r *Ruleset) Judge() *Judge { return &Judge{r, map[string]map[Element]Verdict{}} }

// Eval is Ruleset.Eval.
func (j *Judge) Eval(p Packet) Decision {
	return (&walk{Judge: j, packet: p}).run()
}

// hooks are the base chains that a packet passes, in the kernel's order.
func (p Packet) hooks() []string {
	switch {
	case p.InLink == "":
		return []string{ChainHostRawOut, ChainHostOut}
	case p.OutLink == "":
		return []string{ChainRawPre, ChainHostRawIn, ChainHostPreNAT, ChainHostIn, ChainWireGuardIn, ChainInHost}
	}
	return []string{ChainRawPre, ChainHostRawIn, ChainHostPreNAT, ChainHostFwdIn, ChainHostFwdOut, ChainWireGuardFwd, ChainFwdFrom, ChainFwdTo}
}

// run is Eval of the walk's packet.
func (w *walk) run() Decision {
	w.decision.Allowed, w.decision.Rule = true, -1 // if nothing is in its way
	for _, h := range w.packet.hooks() {
		if w.rules.Chains[h] == nil || ofHosts(h) && w.packet.unnamed(h) { // there are no such tunnels or host endpoints
			continue
		}
		before := w.decision.Reason
		w.decision.Allowed, w.decision.Chain, w.decision.Rule, w.decision.Reason = true, h, -1, ""
		if w.chain(h, 0) == Drop {
			w.decision.Allowed = false
			break
		}
		if w.decision.Reason == "" {
			w.decision.Reason = before
		}
	}
	return w.decision
}

type walk struct {
	*Judge
	packet   Packet
	decision Decision
	// met, if set, is told of each rule that is asked, and whether it matches.
	met func(chain string, rule int, matched bool)
}

// maxDepth is the kernel's NFT_JUMP_STACK_SIZE.
const maxDepth = 16

// chain returns Accept, Drop, or Continue if the chain ends without a verdict.
func (w *walk) chain(name string, depth int) VerdictKind {
	c := w.rules.Chains[name]
	if c == nil || depth > maxDepth {
		return Drop
	}
	for i := range c.Rules {
		rule := &c.Rules[i]
		matches := w.matches(rule)
		if w.met != nil {
			w.met(name, i, matches)
		}
		if !matches {
			continue
		}
		if rule.Log != "" {
			w.decision.Logged = append(w.decision.Logged, rule.Log)
		}
		v := rule.Verdict
		if v.Kind == Lookup {
			v = w.lookup(v)
		}
		if rule.Comment != "" && v.Kind != Continue && v.Kind != Return && v.Kind != Jump {
			w.decision.Reason = rule.Comment
		}
		switch v.Kind {
		case Accept, Drop, Reject, Reset, Untrack:
			w.decision.Chain, w.decision.Rule = name, i
			switch v.Kind {
			case Untrack:
				w.packet.State = Untracked
			case Accept:
			default:
				return Drop
			}
			return Accept
		case Return:
			return Continue
		case Goto:
			return w.chain(v.Chain, depth+1)
		case Jump:
			if k := w.chain(v.Chain, depth+1); k != Continue {
				return k
			}
		}
	}
	return Continue
}

func (w *walk) lookup(v Verdict) Verdict {
	if s := w.rules.Sets[v.Chain]; s != nil && s.Type.Run() {
		return w.inRun(s, v.Key)
	}
	m := w.verdicts[v.Chain]
	if m == nil {
		m = map[Element]Verdict{}
		for e := range w.rules.Sets[v.Chain].Elements {
			verdict := e.Verdict
			e.Verdict = Verdict{}
			m[e] = verdict
		}
		w.verdicts[v.Chain] = m
	}
	return m[w.key(v.Key)]
}

// inRun is the verdict of a map of a run.
func (w *walk) inRun(s *Set, f Field) Verdict {
	if key := w.key(f); w.exists(f) {
		for e := range s.Elements {
			if e.holds(key) {
				return e.Verdict
			}
		}
	}
	return Verdict{}
}

func (w *walk) matches(r *Rule) bool {
	if r.Limit.Over {
		return false
	}
	for _, t := range r.Match {
		if !w.exists(t.Field) || w.equal(t) == t.Not {
			return false
		}
	}
	return true
}

// exists tells whether the packet has the field at all: loading a field that is
// not there ends the rule in the kernel, also under a negation.
func (w *walk) exists(f Field) bool {
	fam := f.family()
	if fam != 0 && fam != family(w.packet.Src) {
		return false
	}
	proto := uint32(w.packet.Protocol)
	switch f {
	case SrcPort, DstPort, SrcNamedPort4, DstNamedPort4, SrcNamedPort6, DstNamedPort6:
		return transportName(proto) != ""
	case ICMPType, ICMPCode:
		return proto == protoICMP
	case ICMP6Type, ICMP6Code:
		return proto == protoICMP6
	}
	return true
}

func (w *walk) equal(t Term) bool {
	if t.Set != "" {
		return w.member(w.rules.Sets[t.Set], t.Field)
	}
	p := w.packet
	switch t.Field {
	case InLink:
		return linkMatches(t.Text, p.InLink)
	case OutLink:
		return linkMatches(t.Text, p.OutLink)
	case SrcIP4, SrcIP6:
		return t.Prefix.Contains(p.Src)
	case DstIP4, DstIP6:
		return t.Prefix.Contains(p.Dst)
	case NFProto:
		return t.Number == family(p.Src)
	case L4Proto:
		return t.Number == uint32(p.Protocol)
	case InGroup:
		return t.Number == p.InGroup
	case OutGroup:
		return t.Number == p.OutGroup
	case InType:
		return t.Number == typeEther
	case CTState:
		return t.Number&uint32(p.State) != 0
	case SrcRoute:
		return p.Unrouted == (t.Number == 0)
	case SrcReturn:
		return (p.Unrouted || p.Route != "" && p.Route != p.InLink) == (t.Number == 0)
	case SrcLink:
		return !p.Unrouted && linkMatches(t.Text, cmp.Or(p.Route, p.InLink))
	case DstType:
		return p.OutLink == "" == (t.Number == typeLocal)
	}
	return t.Number == uint32(w.key(t.Field).First)
}

func linkMatches(pattern, link string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(link, prefix)
	}
	return pattern == link
}

// key is the packet's value of the field as an element without a verdict.
func (w *walk) key(f Field) Element {
	p := w.packet
	switch f {
	case InLink:
		return Element{Link: p.InLink}
	case OutLink:
		return Element{Link: p.OutLink}
	case CTDirection:
		if p.Reply {
			return numberElement(directionReply)
		}
	case L4Proto:
		return numberElement(uint16(p.Protocol))
	case SrcPort:
		return numberElement(p.SrcPort)
	case DstPort:
		return numberElement(p.DstPort)
	case ICMPType, ICMP6Type:
		return numberElement(uint16(p.Type))
	case ICMPCode, ICMP6Code:
		return numberElement(uint16(p.Code))
	case SrcIP4, SrcIP6:
		return addrElement(p.Src)
	case DstIP4, DstIP6:
		return addrElement(p.Dst)
	case LinkSrcIP4, LinkSrcIP6:
		e := addrElement(p.Src)
		e.Link = p.InLink
		return e
	case SrcNamedPort4, SrcNamedPort6:
		e := addrElement(p.Src)
		e.Proto, e.First, e.Last = p.Protocol, p.SrcPort, p.SrcPort
		return e
	case DstNamedPort4, DstNamedPort6:
		e := addrElement(p.Dst)
		e.Proto, e.First, e.Last = p.Protocol, p.DstPort, p.DstPort
		return e
	}
	return Element{}
}

func (w *walk) member(s *Set, f Field) bool {
	if s == nil {
		return false
	}
	if s.Type == LinkMAC { // a packet has its sender's
		return true
	}
	key := w.key(f)
	if s.Type == Net4 || s.Type == Net6 {
		return s.contains(key.Prefix.Addr())
	}
	if s.Type.Ranges() {
		return s.containsBehind(key)
	}
	if !s.Type.Interval() {
		_, ok := s.Elements[key]
		return ok
	}
	for e := range s.Elements {
		if e.First <= key.First && key.First <= e.Last {
			return true
		}
	}
	return false
}

// contains says whether one of a set's networks holds the address.
func (s *Set) contains(a netip.Addr) bool {
	if len(s.Elements) == 0 {
		return false
	}
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, err := a.Prefix(bits)
		if err != nil {
			return false
		}
		if _, ok := s.Elements[Element{Prefix: p}]; ok {
			return true
		}
	}
	return false
}
