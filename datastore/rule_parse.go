package datastore

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ParseRule parses
//
//	RULE = (allow|deny|reject|log|pass) [PROTO] [from SIDE] [to SIDE]
//	PROTO = tcp | udp | sctp | icmp [type T [code C]] | icmpv6 [type T [code C]] | NUMBER, each after an optional "not"
//	SIDE = [not] TERM {[and] [not] TERM}
//	TERM = tag TAG | [cidr] CIDR{,CIDR} | selector "EXPR" | set NAME | ports PORT{,PORT}; PORT = N | N:M | NAME
//
// Each kind of term stands at most once on a side, in any order, as the sides may be; ports
// need tcp, udp or sctp. Both sides have CIDRs of one family, that of an ICMP; lists may have
// those of the other besides. T is a number or a name of nft(8). The error is a *SyntaxError.
func ParseRule(s string) (Rule, error) {
	words, err := lexRule(languageRule, s)
	if err != nil {
		return Rule{}, err
	}
	p := &ruleParser{language: languageRule, words: words}
	return p.rule()
}

type ruleWord struct {
	text   string
	column int
	quoted bool
	end    bool
}

const languageRule = "rule"

// blanks are what parts words.
const blanks = " \t\r\n"

// lexRule splits at blanks; a word in double quotes may hold blanks and the
// escapes \" and \\.
func lexRule(language, s string) ([]ruleWord, error) {
	if err := checkText(language, s); err != nil {
		return nil, err
	}
	var words []ruleWord
	for pos := 0; ; {
		pos += len(s[pos:]) - len(strings.TrimLeft(s[pos:], blanks))
		w := ruleWord{column: utf8.RuneCountInString(s[:pos]) + 1}
		if pos == len(s) {
			w.end = true
			return append(words, w), nil
		}
		n := strings.IndexAny(s[pos:]+" ", blanks)
		if w.text = s[pos : pos+n]; s[pos] == '"' {
			w.quoted = true
			if w.text, n = unquoteWord(s[pos:]); n == 0 {
				return nil, &SyntaxError{Language: language, Word: s[pos:], Expected: "a closing quote and then a blank", Column: w.column}
			}
		}
		words = append(words, w)
		pos += n
	}
}

// unquoteWord returns the content of the quoted word s begins with and its
// length with the quotes; 0 if it does not end, or not at a blank.
func unquoteWord(s string) (string, int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			if i+1 < len(s) && !strings.ContainsRune(blanks, rune(s[i+1])) {
				return "", 0
			}
			return b.String(), i + 1
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", 0
}

type ruleParser struct {
	language string
	words    []ruleWord // ends with one that has end set
	pos      int
	r        Rule
	families int    // that it can match, of inIPv4 and inIPv6; 0: both
	bound    string // the word that left fewer
}

func (p *ruleParser) peek() ruleWord { return p.words[p.pos] }

// accept steps over the next word if it is that keyword.
func (p *ruleParser) accept(keyword string) bool {
	w := p.peek()
	if w.end || w.quoted || w.text != keyword {
		return false
	}
	p.pos++
	return true
}

func (p *ruleParser) expected(what string) error {
	w := p.peek()
	return &SyntaxError{Language: p.language, Word: w.text, Expected: what, After: p.before(), Column: w.column}
}

// before is the word before the next one.
func (p *ruleParser) before() string {
	if p.pos == 0 {
		return ""
	}
	return p.words[p.pos-1].text
}

func (p *ruleParser) rule() (Rule, error) {
	switch a := Action(p.peek().text); a {
	case Allow, Deny, Reject, Log, Pass:
		p.r.Action = a
		p.pos++
	default:
		return Rule{}, p.expected("allow, deny, reject, log or pass")
	}
	what := "a protocol, from or to"
	if w := p.peek(); !w.end && w.text != "from" && w.text != "to" {
		if err := p.protocol(); err != nil {
			return Rule{}, err
		}
		what = "from or to"
	}
	var from, to bool
	for {
		var s *Side
		switch {
		case !from && p.accept("from"):
			s, from = &p.r.From, true
		case !to && p.accept("to"):
			s, to = &p.r.To, true
		case p.peek().end:
			return p.r, nil
		default:
			return Rule{}, p.expected(what)
		}
		if err := p.side(s); err != nil {
			return Rule{}, err
		}
		switch what = "another term, "; {
		case !to:
			what += "to or "
		case !from:
			what += "from or "
		}
		what += "the end of the rule"
	}
}

func (p *ruleParser) protocol() error {
	m := &p.r.Protocol
	m.Set, m.Not = true, p.accept("not")
	word := p.peek().text
	switch word {
	case "tcp":
		m.Number = ProtocolTCP
	case "udp":
		m.Number = ProtocolUDP
	case "sctp":
		m.Number = ProtocolSCTP
	case "icmp":
		m.Number = ProtocolICMP
	case "icmpv6":
		m.Number = ProtocolICMPv6
	default:
		n, err := strconv.ParseUint(word, 10, 8)
		if err != nil {
			return p.expected("tcp, udp, sctp, icmp, icmpv6, a protocol number, from or to")
		}
		m.Number = uint8(n)
	}
	p.pos++
	if m.Number != ProtocolICMP && m.Number != ProtocolICMPv6 {
		return nil
	}
	if !m.Not {
		p.families, p.bound = inIPv4, word
		if m.Number == ProtocolICMPv6 {
			p.families = inIPv6
		}
	}
	var err error
	if m.HasType = p.accept("type"); m.HasType {
		if m.Type, err = p.icmpType(m.Number); err != nil {
			return err
		}
		if m.HasCode = p.accept("code"); m.HasCode {
			m.Code, err = p.octet("an ICMP code from 0 to 255")
		}
	}
	return err
}

func (p *ruleParser) octet(what string) (uint8, error) {
	n, err := strconv.ParseUint(p.peek().text, 10, 8)
	if err != nil {
		return 0, p.expected(what)
	}
	p.pos++
	return uint8(n), nil
}

// icmpType is a number, or a name.
func (p *ruleParser) icmpType(protocol uint8) (uint8, error) {
	if n, ok := icmpTypes(protocol)[p.peek().text]; ok && !p.peek().quoted {
		p.pos++
		return n, nil
	}
	return p.octet("an ICMP type, a name such as echo-request or a number from 0 to 255")
}

func (p *ruleParser) side(s *Side) error {
	for first := true; ; first = false {
		and := p.accept("and")
		if !first && !and && !p.atTerm() {
			return nil
		}
		if first && and {
			p.pos--
			return p.expected(someTerm)
		}
		if err := p.term(s, p.accept("not")); err != nil {
			return err
		}
	}
}

const someTerm = "tag, cidr, selector, set or ports"

// atTerm says whether the next word begins a term.
func (p *ruleParser) atTerm() bool {
	w := p.peek()
	switch w.text {
	case "not", "tag", "cidr", "selector", "set", "ports":
		return !w.quoted && !w.end
	}
	return w.bareCIDR()
}

// bareCIDR says whether the word can only be meant as CIDRs, which need no keyword.
func (w ruleWord) bareCIDR() bool {
	return !w.quoted && strings.ContainsAny(w.text, ".:/") && strings.Trim(w.text, "0123456789abcdefABCDEF.:/,") == ""
}

func (p *ruleParser) term(s *Side, not bool) error {
	taken := func(t Term) bool { return t.Value != "" }
	again := func() error { p.pos--; return p.expected("each kind of term once; it stands there twice") }
	switch {
	case p.accept("tag"):
		if taken(s.Tag) {
			return again()
		}
		return p.name(&s.Tag, not, "a tag")
	case p.accept("set"):
		if taken(s.Set) {
			return again()
		}
		return p.name(&s.Set, not, "the name of a network set")
	case p.accept("selector"):
		if taken(s.Selector) {
			return again()
		}
		return p.selector(&s.Selector, not)
	case p.accept("cidr"):
		if len(s.CIDRs) > 0 {
			return again()
		}
		return p.cidrs(s, not)
	}
	if p.accept("ports") {
		if len(s.Ports) > 0 {
			return again()
		}
		return p.ports(s, not)
	}
	if p.peek().bareCIDR() {
		if len(s.CIDRs) > 0 {
			p.pos++
			return again()
		}
		return p.cidrs(s, not)
	}
	return p.expected(someTerm)
}

func (p *ruleParser) name(t *Term, not bool, what string) error {
	w := p.peek()
	if w.quoted || checkWord(w.text) != nil {
		return p.expected(what)
	}
	*t = Term{Not: not, Value: w.text}
	p.pos++
	return nil
}

func (p *ruleParser) selector(t *Term, not bool) error {
	w := p.peek()
	if !w.quoted {
		return p.expected(`an expression in double quotes`)
	}
	sel, err := ParseSelector(w.text)
	if err != nil {
		if e := (*SyntaxError)(nil); errors.As(err, &e) {
			e.Column += w.column
		}
		return err
	}
	*t = Term{Not: not, Value: sel.String()}
	p.pos++
	return nil
}

// Families of addresses.
const (
	inIPv4 = 1 << iota
	inIPv6
)

func (p *ruleParser) cidrs(s *Side, not bool) error {
	w := p.peek()
	has, column := 0, w.column
	for item := range strings.SplitSeq(w.text, ",") {
		c, err := netip.ParsePrefix(item)
		if a, aerr := netip.ParseAddr(item); aerr == nil && a.Zone() == "" {
			c, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		wrong := ""
		switch {
		case err != nil || w.quoted || c.Addr().Is4In6():
			wrong = "a CIDR"
		case c != c.Masked():
			wrong = c.Masked().String() + " (no bits behind the prefix length)"
		case c.Addr().Is4():
			has |= inIPv4
		default:
			has |= inIPv6
		}
		if wrong != "" {
			return &SyntaxError{Language: p.language, Word: item, Expected: wrong, After: p.before(), Column: column}
		}
		s.CIDRs = append(s.CIDRs, c)
		column += len(item) + 1
	}
	if p.families == 0 {
		p.families = inIPv4 | inIPv6
	}
	switch has &= p.families; has {
	case 0:
		return p.expected("the same address family as " + p.bound)
	case p.families:
	default:
		p.families, p.bound = has, w.text
	}
	s.NotCIDRs = not
	slices.SortFunc(s.CIDRs, ComparePrefix)
	s.CIDRs = slices.Compact(s.CIDRs)
	p.pos++
	return nil
}

func (p *ruleParser) ports(s *Side, not bool) error {
	m := p.r.Protocol
	if m.Not || m.Number != ProtocolTCP && m.Number != ProtocolUDP && m.Number != ProtocolSCTP {
		p.pos--
		return p.expected("ports only in a rule for tcp, udp or sctp")
	}
	w := p.peek()
	s.NotPorts = not
	for item := range strings.SplitSeq(w.text, ",") {
		r, ok := parsePort(item)
		if !ok || w.quoted {
			return p.expected("port numbers, ranges N:M or names, with commas and no blanks between,")
		}
		s.Ports = append(s.Ports, r)
	}
	slices.SortFunc(s.Ports, comparePorts) // whichever order they are written in, it is the same rule
	s.Ports = slices.Compact(s.Ports)
	p.pos++
	return nil
}

// comparePorts orders numbers before names.
func comparePorts(x, y PortRange) int {
	return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.First, y.First), cmp.Compare(x.Last, y.Last))
}

func parsePort(s string) (PortRange, bool) {
	if checkPortName(s) == nil {
		return PortRange{Name: s}, true
	}
	first, last, isRange := strings.Cut(s, ":")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	return PortRange{First: uint16(a), Last: uint16(b)}, err1 == nil && err2 == nil && a > 0 && a <= b
}
