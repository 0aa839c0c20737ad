package datastore

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
)

// Action is what a rule does with a packet that it matches.
type Action string

// The actions. Log goes on to the next rule; Pass ends the tier; Reject is Deny, and tells
// the sender.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
	Log   Action = "log"
	Pass  Action = "pass"

	Reject Action = "reject"
)

// Rule is one rule of a profile or policy. Its JSON form is its text, e.g.
// "allow tcp from tag WEB to ports 80,443" (docs/model.md has the grammar).
type Rule struct {
	Action   Action
	Protocol ProtocolMatch
	From, To Side
}

// ProtocolMatch matches an IP protocol; the zero value matches every one.
type ProtocolMatch struct {
	Not bool
	// Number is the IP protocol (IANA); valid if Set. tcp 6, udp 17, sctp 132,
	// icmp 1, icmpv6 58.
	Number uint8
	Set    bool
	// Type and Code are those of ICMP, for
	// icmp and icmpv6 and if HasType, HasCode.
	Type, Code       uint8
	HasType, HasCode bool
}

// Term is one possibly negated name; the zero value matches everything.
type Term struct {
	Not   bool
	Value string
}

// Side is what a rule asks of a packet's source or destination. All that is set
// must hold.
type Side struct {
	Tag      Term
	CIDRs    []netip.Prefix
	NotCIDRs bool
	Selector Term
	Set      Term
	Ports    []PortRange
	NotPorts bool
}

// PortRange is First..Last inclusive, or a named port.
type PortRange struct {
	First, Last uint16
	Name        string
}

// IP protocols that have names in rules (IANA).
const (
	ProtocolICMP   = 1
	ProtocolTCP    = 6
	ProtocolUDP    = 17
	ProtocolICMPv6 = 58
	ProtocolSCTP   = 132
)

func protocolName(n uint8) string {
	switch n {
	case ProtocolICMP:
		return "icmp"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolICMPv6:
		return "icmpv6"
	case ProtocolSCTP:
		return "sctp"
	}
	return ""
}

// String is the rule's canonical text, which ParseRule reads back to the same
// rule.
func (r Rule) String() string {
	words := []string{string(r.Action)}
	if r.Protocol.Set {
		words = append(words, r.Protocol.String())
	}
	if s := r.From.String(); s != "" {
		words = append(words, "from", s)
	}
	if s := r.To.String(); s != "" {
		words = append(words, "to", s)
	}
	return strings.Join(words, " ")
}

// String is the canonical text of the match; empty if it matches everything.
func (p ProtocolMatch) String() string {
	if !p.Set {
		return ""
	}
	s := protocolName(p.Number)
	if s == "" {
		s = strconv.Itoa(int(p.Number))
	}
	if p.Not {
		s = "not " + s
	}
	if p.HasType {
		s += " type " + strconv.Itoa(int(p.Type))
	}
	if p.HasCode {
		s += " code " + strconv.Itoa(int(p.Code))
	}
	return s
}

// String is the canonical text of the side; empty if it matches everything.
func (s Side) String() string {
	var terms []string
	add := func(not bool, text string) {
		if not {
			text = "not " + text
		}
		terms = append(terms, text)
	}
	if s.Tag.Value != "" {
		add(s.Tag.Not, "tag "+s.Tag.Value)
	}
	if len(s.CIDRs) > 0 {
		add(s.NotCIDRs, "cidr "+joined(s.CIDRs))
	}
	if s.Selector.Value != "" {
		add(s.Selector.Not, "selector "+quoteSelector(s.Selector.Value))
	}
	if s.Set.Value != "" {
		add(s.Set.Not, "set "+s.Set.Value)
	}
	text := strings.Join(terms, " and ")
	if len(s.Ports) == 0 {
		return text
	}
	list := "ports " + joined(s.Ports)
	if s.NotPorts {
		list = "not " + list
	}
	return strings.TrimPrefix(text+" "+list, " ")
}

// joined is the text of a list.
func joined[T fmt.Stringer](list []T) string {
	words := make([]string, len(list))
	for i, w := range list {
		words[i] = w.String()
	}
	return strings.Join(words, ",")
}

// String is N, N:M or the name.
func (p PortRange) String() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d:%d", p.First, p.Last)
}

func quoteSelector(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// MarshalText is String.
func (r Rule) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRule.
func (r *Rule) UnmarshalText(text []byte) error {
	parsed, err := ParseRule(string(text))
	if err == nil {
		*r = parsed
	}
	return err
}

// Validate checks a rule that was not parsed: its text must be a rule and mean
// the same.
func (r Rule) Validate() error {
	parsed, err := ParseRule(r.String())
	if err == nil && !reflect.DeepEqual(parsed, r) {
		err = &FieldError{Value: r.String(), Reason: "the rule holds more than its text says, or is not in canonical form"}
	}
	return err
}
