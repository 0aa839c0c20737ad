package datastore

import "net/netip"

// Action is what a rule does with a packet that it matches.
type Action string

// The actions. Log goes on to the next rule; Pass ends the tier.
const (
	Allow Action = "allow"
	Deny  Action = "deny"
	Log   Action = "log"
	Pass  Action = "pass"
)

// Rule is one rule of a profile or policy. Its JSON form is its text, e.g.
// "allow tcp from tag WEB to ports 80,443" (spec/cli.md has the grammar).
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
	CIDR     netip.Prefix
	NotCIDR  bool
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
