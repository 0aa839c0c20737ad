package commands

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
)

// traffic is packets of a protocol, or of each: those to a range of ports, or of ICMP a
// range of types and codes.
type traffic struct {
	Protocol string `json:"protocol,omitempty"` // none: all
	Ports    string `json:"ports,omitempty"`    // N or N-M; none: all
	Types    string `json:"types,omitempty"`    // of ICMP, in words; none: all

	number      uint8  // of Protocol
	first, last uint16 // ports, or of ICMP type<<8 + code
	name        string // of the port, until it is known
}

// otherProtocol is one that no rule names (RFC 3692).
const otherProtocol = 253

func protocolOf(name string) (uint8, bool) {
	switch name {
	case "tcp":
		return datastore.ProtocolTCP, true
	case "udp":
		return datastore.ProtocolUDP, true
	case "sctp":
		return datastore.ProtocolSCTP, true
	case "icmp":
		return datastore.ProtocolICMP, true
	case "icmpv6":
		return datastore.ProtocolICMPv6, true
	}
	n, err := strconv.ParseUint(name, 10, 8)
	return uint8(n), err == nil
}

func nameOfProtocol(n uint8) string {
	return datastore.ProtocolMatch{Set: true, Number: n}.String()
}

func (t traffic) icmp() bool {
	return t.number == datastore.ProtocolICMP || t.number == datastore.ProtocolICMPv6
}

// parted says whether packets of the protocol differ by what First and Last bound.
func (t traffic) parted() bool {
	return t.icmp() || t.number == datastore.ProtocolTCP || t.number == datastore.ProtocolUDP || t.number == datastore.ProtocolSCTP
}

// parseTraffic reads [PROTO [PORT]].
func parseTraffic(args []string) (t traffic, err error) {
	if len(args) == 0 {
		return t, nil
	}
	var ok bool
	if t.number, ok = protocolOf(args[0]); !ok {
		return t, usage("%q is not a protocol: tcp, udp, sctp, icmp, icmpv6 or a number up to 255", args[0])
	}
	t.Protocol = nameOfProtocol(t.number)
	switch {
	case t.icmp() && len(args) == 1:
		echo := uint16(8) // RFC 792
		if t.number == datastore.ProtocolICMPv6 {
			echo = 128 // RFC 4443, section 4.1
		}
		t.first = echo << 8
	case t.icmp():
		n, err := strconv.ParseUint(args[1], 10, 8)
		if err != nil {
			return t, usage("%q is not an ICMP type from 0 to 255", args[1])
		}
		t.first = uint16(n) << 8
	case len(args) == 1:
		t.first, t.last = 0, 65535
		return t, nil
	case !t.parted():
		return t, usage("%s has no ports", t.Protocol)
	default:
		if t.first, ok = portNumber(args[1]); !ok {
			t.name = args[1]
		}
	}
	t.last = t.first
	return t, nil
}

// named finds the named port of the destination, if one is meant.
func (t *traffic) named(dst party, args []string) error {
	if t.name == "" {
		return nil
	}
	for _, p := range dst.ports() {
		if p.Name == t.name && p.Protocol == t.Protocol {
			t.first, t.last, t.name = p.Port, p.Port, ""
			return nil
		}
	}
	return usage("%q is neither a port from 1 to 65535 nor a named %s port of %s", t.name, t.Protocol, args[1])
}

// request asks about the first packet of the traffic.
func (t traffic) request(endpoint string, src, dst netip.Addr, sourcePort uint16) control.ExplainRequest {
	r := control.ExplainRequest{Endpoint: endpoint, Src: src, Dst: dst, Protocol: t.number}
	switch {
	case t.icmp():
		r.Type, r.Code = uint8(t.first>>8), uint8(t.first)
	case t.parted():
		r.SrcPort, r.DstPort = sourcePort, t.first
	}
	return r
}

// survey is what becomes of the traffic, in as few flows as fare alike. It asks about one
// packet on each side of every bound that a rule which was asked names.
// ports are the named ones of the destination.
func (t traffic) survey(ports []datastore.Port, ask func(traffic) (explainedFlow, error)) ([]explainedFlow, error) {
	if t.Protocol != "" && t.first == t.last {
		f, err := ask(t.done())
		return []explainedFlow{f}, err
	}
	s := surveyed{ask: ask, ports: ports, protocols: map[uint8]map[uint16]explainedFlow{}}
	if t.Protocol != "" {
		s.only = &t.number
		s.todo = []traffic{{number: t.number}}
	} else {
		for _, n := range []uint8{datastore.ProtocolTCP, datastore.ProtocolUDP, otherProtocol} {
			s.todo = append(s.todo, traffic{number: n})
		}
	}
	for len(s.todo) > 0 {
		next := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		if err := s.look(next); err != nil {
			return nil, err
		}
	}
	return s.flows(), nil
}

// surveyed is one answer for each bound of each protocol.
type surveyed struct {
	ask       func(traffic) (explainedFlow, error)
	ports     []datastore.Port // named ones of the destination
	only      *uint8
	protocols map[uint8]map[uint16]explainedFlow
	todo      []traffic
}

func (s *surveyed) look(t traffic) error {
	if s.protocols[t.number] == nil {
		s.protocols[t.number] = map[uint16]explainedFlow{}
	} else if _, done := s.protocols[t.number][t.first]; done {
		return nil
	}
	t.Protocol = nameOfProtocol(t.number)
	f, err := s.ask(t)
	if err != nil {
		return err
	}
	s.protocols[t.number][t.first] = f
	for _, side := range f.Sides {
		for _, p := range side.places() {
			r, err := datastore.ParseRule(p.Rule)
			if err != nil {
				return err
			}
			s.bounds(r)
		}
	}
	return nil
}

// bounds has those looked at that a rule names.
func (s *surveyed) bounds(r datastore.Rule) {
	m := r.Protocol
	if !m.Set || s.only != nil && *s.only != m.Number {
		return
	}
	at := func(n int) {
		if n <= 65535 {
			s.todo = append(s.todo, traffic{number: m.Number, first: uint16(n)})
		}
	}
	at(0)
	switch {
	case m.HasCode:
		at(int(m.Type)<<8 + int(m.Code))
		at(int(m.Type)<<8 + int(m.Code) + 1)
	case m.HasType:
		at(int(m.Type) << 8)
		at(int(m.Type+1) << 8)
	}
	for _, p := range r.To.Ports {
		if p.Name == "" {
			at(int(p.First))
			at(int(p.Last) + 1)
			continue
		}
		for _, named := range s.ports {
			if named.Name == p.Name && named.Protocol == nameOfProtocol(m.Number) {
				at(int(named.Port))
				at(int(named.Port) + 1)
			}
		}
	}
}

// flows joins what fares alike: neighbouring ranges, and if they all do everything.
func (s *surveyed) flows() (out []explainedFlow) {
	for _, number := range slices.Sorted(maps.Keys(s.protocols)) {
		answers := s.protocols[number]
		firsts := slices.Sorted(maps.Keys(answers))
		for i, first := range firsts {
			f := answers[first]
			f.last = 65535
			if i+1 < len(firsts) {
				f.last = firsts[i+1] - 1
			}
			if n := len(out); n > 0 && out[n-1].number == number && sameAnswer(out[n-1], f) {
				out[n-1].last = f.last
			} else {
				out = append(out, f)
			}
		}
	}
	for i := range out {
		out[i].traffic = out[i].done()
	}
	if len(out) > 0 && s.only == nil && !slices.ContainsFunc(out, func(f explainedFlow) bool { return !sameAnswer(out[0], f) }) {
		out = out[:1]
		out[0].traffic = traffic{}
	}
	return out
}

// sameAnswer says whether the same rules decide.
func sameAnswer(a, b explainedFlow) bool {
	return a.Allowed == b.Allowed && slices.EqualFunc(a.Sides, b.Sides, func(x, y explainedSide) bool {
		return sameExplanation(x.Explanation, y.Explanation) && (x.Staged == nil) == (y.Staged == nil) && (x.Staged == nil || sameExplanation(*x.Staged, *y.Staged))
	})
}

// done is the traffic as it is told.
func (t traffic) done() traffic {
	switch {
	case !t.parted() || t.first <= 1 && t.last == 65535:
	case t.icmp():
		t.Types = icmpRange(t.first, t.last)
	case t.first == t.last:
		t.Ports = strconv.Itoa(int(t.first))
	default:
		t.Ports = fmt.Sprintf("%d-%d", max(1, t.first), t.last)
	}
	return t
}

// String is the traffic in words.
func (t traffic) String() string {
	name := t.Protocol
	if t.number == otherProtocol {
		name = "other protocols"
	}
	switch {
	case t.Protocol == "":
		return "everything"
	case t.Types != "":
		return name + " type " + t.Types
	case t.Ports != "":
		return name + " port " + t.Ports
	}
	return name
}

func icmpRange(first, last uint16) string {
	side := func(n uint16, whole uint8) string {
		if uint8(n) == whole {
			return strconv.Itoa(int(n >> 8))
		}
		return fmt.Sprintf("%d code %d", n>>8, uint8(n))
	}
	from, to := side(first, 0), side(last, 255)
	if first == last {
		to = from
	}
	if from == to {
		return from
	}
	return from + " to " + to
}

// between is the traffic with its ends.
func (t traffic) between(src, dst netip.Addr) string {
	words := []string{"from", src.String(), "to", dst.String()}
	if t.Protocol != "" {
		text := strings.SplitN(t.String(), " ", 2)
		words = append([]string{text[0]}, words...)
		words = append(words, text[1:]...)
	} else {
		words = append([]string{"everything"}, words...)
	}
	return strings.Join(words, " ")
}
