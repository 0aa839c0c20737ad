package datastore

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ParseFilterRule parses
//
//	RULE   = (accept|reject) [TERM {and TERM}] [then CHANGE {and CHANGE}]
//	TERM   = [not] MATCH; CHANGE only of what is accepted, each kind once
//	MATCH  = prefix RANGE{, RANGE} | pool any | pool CIDR{, CIDR} | community PATTERN{, PATTERN}
//	       | as-path "REGEX" | next-hop CIDR{, CIDR} | source SOURCE{, SOURCE}
//	RANGE  = CIDR [ge LENGTH] [le LENGTH]
//	SOURCE = local | node | outside | internal | external | reflected | ADDRESS
//	CHANGE = local-pref N | med N | community C{, C} | add community C{, C} | remove community PATTERN{, PATTERN} | prepend N
//
// The error is a *SyntaxError.
func ParseFilterRule(s string) (FilterRule, error) {
	p, err := newFilterParser("filter rule", s)
	if err != nil {
		return FilterRule{}, err
	}
	return p.rule()
}

// filterParser is a ruleParser of another language, in which commas are words.
type filterParser struct{ ruleParser }

func newFilterParser(language, s string) (*filterParser, error) {
	words, err := lexRule(language, s)
	if err != nil {
		return nil, err
	}
	var out []ruleWord
	for _, w := range words {
		if w.quoted || w.end {
			out = append(out, w)
			continue
		}
		for column, rest := w.column, w.text; rest != ""; {
			n := strings.IndexByte(rest, ',')
			switch n {
			case -1:
				n = len(rest)
			case 0:
				n = 1
			}
			out = append(out, ruleWord{text: rest[:n], column: column})
			column += utf8.RuneCountInString(rest[:n])
			rest = rest[n:]
		}
	}
	return &filterParser{ruleParser{language: language, words: out}}, nil
}

// maxTerms bounds the terms of a rule.
const maxTerms = 32

func (p *filterParser) rule() (FilterRule, error) {
	var r FilterRule
	switch {
	case p.accept("accept"):
		r.Action = FilterAccept
	case p.accept("reject"):
		r.Action = FilterReject
	default:
		return r, p.expected("accept or reject")
	}
	what := "prefix, pool, community, as-path, next-hop, source, not or then"
	for w := p.peek(); !w.end && (w.quoted || w.text != "then"); w = p.peek() {
		if len(r.Terms) == maxTerms {
			return r, p.expected("no more than " + strconv.Itoa(maxTerms) + " terms")
		}
		if len(r.Terms) > 0 && !p.accept("and") {
			return r, p.expected("and, then or the end of the rule")
		}
		t, err := p.term(what)
		if err != nil {
			return r, err
		}
		r.Terms = append(r.Terms, t)
		what = "prefix, pool, community, as-path, next-hop, source or not"
	}
	if p.peek().end {
		return r, nil
	}
	if r.Action == FilterReject {
		return r, p.expected("and or the end of the rule: what is rejected is not changed,")
	}
	p.accept("then")
	return r, p.changes(&r.Set)
}

func (p *filterParser) term(what string) (t FilterTerm, err error) {
	t.Not = p.accept("not")
	switch word := TermKind(p.peek().text); {
	case p.peek().quoted:
		return t, p.expected(what)
	case word == TermPrefix, word == TermPool, word == TermCommunity, word == TermASPath, word == TermNextHop, word == TermSource:
		t.Kind = word
		p.pos++
	default:
		return t, p.expected(what)
	}
	switch t.Kind {
	case TermPrefix:
		t.Prefixes, err = oneOrMore(p, p.prefixRange)
	case TermPool:
		if !p.accept("any") {
			t.Nets, err = oneOrMore(p, func() (netip.Prefix, error) { return p.net("any or the CIDR of a pool") })
		}
	case TermCommunity:
		t.Communities, err = oneOrMore(p, p.pattern)
	case TermASPath:
		t.ASPath, err = p.asPath()
	case TermNextHop:
		t.Nets, err = oneOrMore(p, func() (netip.Prefix, error) { return p.net("an address or a CIDR") })
	case TermSource:
		t.Sources, err = oneOrMore(p, p.source)
	}
	return t, err
}

// oneOrMore reads one or more of what one reads, with commas between.
func oneOrMore[T comparable](p *filterParser, one func() (T, error)) (out []T, err error) {
	for {
		x, err := one()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
		if !p.accept(",") {
			return out, nil
		}
	}
}

func (p *filterParser) prefixRange() (r PrefixRange, err error) {
	if r.Prefix, err = p.net("a prefix"); err != nil {
		return r, err
	}
	bits, most := r.Prefix.Bits(), r.Prefix.Addr().BitLen()
	r.Min, r.Max = bits, bits
	if p.accept("ge") {
		if r.Min, err = p.number("a prefix length", bits, most); err != nil {
			return r, err
		}
		r.Max = most
	}
	if p.accept("le") {
		r.Max, err = p.number("a prefix length", r.Min, most)
	}
	return r, err
}

// number reads a number that is within bounds.
func (p *filterParser) number(what string, least, most int) (int, error) {
	w := p.peek()
	n, err := strconv.ParseUint(w.text, 10, 32)
	if err != nil || w.quoted || strconv.FormatUint(n, 10) != w.text || n < uint64(least) || n > uint64(most) {
		return 0, p.expected(what + " from " + strconv.Itoa(least) + " to " + strconv.Itoa(most))
	}
	p.pos++
	return int(n), nil
}

// net reads a CIDR without host bits, or an address.
func (p *filterParser) net(what string) (c netip.Prefix, err error) {
	w := p.peek()
	c, err = netip.ParsePrefix(w.text)
	if a, aerr := netip.ParseAddr(w.text); aerr == nil && a.Zone() == "" {
		c, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil || w.quoted || c.Addr().Is4In6():
		return c, p.expected(what)
	case c != c.Masked():
		return c, p.expected(c.Masked().String() + " (no bits behind the prefix length)")
	}
	p.pos++
	return c, nil
}

func (p *filterParser) pattern() (CommunityPattern, error) {
	w := p.peek()
	c, ok := parsePattern(w.text)
	if !ok || w.quoted {
		return c, p.expected("a community: 64512:1, the large 64512:1:2, with * in place of any number, or a name such as no-export,")
	}
	p.pos++
	return c, nil
}

// parsePattern reads a community, parts of which may be *.
func parsePattern(s string) (c CommunityPattern, ok bool) {
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return c, false
	}
	for i := range parts {
		if parts[i] == "*" && len(parts) > 1 {
			parts[i], c.Any[i] = "0", true
		}
	}
	var err error
	c.Community, err = ParseCommunity(strings.Join(parts, ":"))
	return c, err == nil
}

func (p *filterParser) community() (Community, error) {
	w := p.peek()
	c, err := ParseCommunity(w.text)
	if err != nil || w.quoted {
		return c, p.expected("a community: 64512:1, the large 64512:1:2, or a name such as no-export,")
	}
	p.pos++
	return c, nil
}

func (p *filterParser) asPath() (string, error) {
	w := p.peek()
	if !w.quoted {
		return "", p.expected("a regular expression in double quotes")
	}
	if _, err := CompileASPath(w.text); err != nil {
		return "", p.expected("a regular expression, and this is none: " + err.Error() + ",")
	}
	p.pos++
	return w.text, nil
}

func (p *filterParser) source() (s FilterSource, err error) {
	w := p.peek()
	if a, err := netip.ParseAddr(w.text); err == nil && a.Zone() == "" && !a.Is4In6() && !w.quoted {
		s.Peer = a
	} else if s.Word = w.text; w.quoted || !slices.Contains(FilterSources(), w.text) {
		return s, p.expected(strings.Join(FilterSources(), ", ") + " or the address of a peer")
	}
	p.pos++
	return s, nil
}

func (p *filterParser) changes(s *FilterSet) error {
	for {
		if err := p.change(s); err != nil {
			return err
		}
		if p.peek().end {
			return nil
		}
		if !p.accept("and") {
			return p.expected("and or the end of the rule")
		}
	}
}

// change reads one change, of a kind that was not there.
func (p *filterParser) change(s *FilterSet) (err error) {
	again := func(is bool) error {
		if !is {
			return nil
		}
		p.pos--
		return p.expected("each kind of change once; it stands there twice, or against another")
	}
	whole := func(n *uint32, has *bool) error {
		if err := again(*has); err != nil {
			return err
		}
		v, err := p.number("a number", 0, 1<<32-1)
		*n, *has = uint32(v), true
		return err
	}
	switch {
	case p.accept("local-pref"):
		return whole(&s.LocalPref, &s.HasLocalPref)
	case p.accept("med"):
		return whole(&s.MED, &s.HasMED)
	case p.accept("prepend"):
		if err := again(s.Prepend > 0); err != nil {
			return err
		}
		s.Prepend, err = p.number("how many times, as a number", 1, maxPrepend)
		return err
	case p.accept("community"):
		if err := again(s.Replace || len(s.Add)+len(s.Remove) > 0); err != nil {
			return err
		}
		s.Replace = true
		return p.communities(&s.Add)
	case p.accept("add"), p.accept("remove"):
		removes := p.words[p.pos-1].text == "remove"
		if err := again(s.Replace || removes && len(s.Remove) > 0 || !removes && len(s.Add) > 0); err != nil {
			return err
		}
		if !p.accept("community") {
			return p.expected("community")
		}
		if removes {
			s.Remove, err = oneOrMore(p, p.pattern)
			return err
		}
		return p.communities(&s.Add)
	}
	return p.expected("local-pref, med, community, add community, remove community or prepend")
}

// communities reads those that a rule adds.
func (p *filterParser) communities(to *[]Community) (err error) {
	if *to, err = oneOrMore(p, p.community); err == nil && len(*to) > maxCommunities {
		err = p.expected("no more than " + strconv.Itoa(maxCommunities) + " communities")
	}
	return err
}
