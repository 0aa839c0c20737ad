package acl

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// SetType is the type of a set's elements. Types whose name ends in Verdict are
// maps from the key to a verdict.
type SetType uint8

// The types of sets.
const (
	Addr4           SetType = iota + 1 // exact addresses
	Addr6                              //
	Net4                               // prefixes that do not overlap
	Net6                               //
	Port                               // single ports
	PortRanges                         // ranges that do not overlap or touch
	LinkAddr4                          // link name and address
	LinkAddr6                          //
	LinkNet4                           // link name and prefix; those of one link do not overlap
	LinkNet6                           //
	NamedPort4                         // address, protocol and port
	NamedPort6                         //
	ICMP6Types                         // ICMPv6 types
	Links                              // link names
	LinkMAC                            // link name and MAC, as the link-local address that is made of it
	LinkVerdict                        // link name to verdict
	AddrVerdict4                       // ranges of addresses that do not overlap, to verdict
	AddrVerdict6                       //
	PortVerdict                        // ranges of ports that do not overlap, to verdict
	LinkMeter                          // meter: link name
	PairMeter                          // meter: names of two links
	LinkAddrMeter4                     // meter: link name and address
	LinkAddrMeter6                     //
	UnseenProtocols                    // meter that its keeper fills: Unseen
	CutFlows4                          // meters that their keeper fills: Flow, of protocols with ports
	CutFlows6                          //
	CutPairs4                          // of others
	CutPairs6                          //
)

// Interval tells whether elements are ranges, kept in a tree in the kernel
// instead of a hash table.
func (t SetType) Interval() bool { return t == Net4 || t == Net6 || t == PortRanges || t.Run() }

// Ranges tells whether elements are of several values, of which an element of Interval has
// one key and those of other types two: the first and the last.
func (t SetType) Ranges() bool { return t == LinkNet4 || t == LinkNet6 }

// Map tells whether elements carry a verdict.
func (t SetType) Map() bool { return t == LinkVerdict || t.Run() }

// Run tells whether it is of the maps by which the rules of a run are found (Pack).
func (t SetType) Run() bool { return t == AddrVerdict4 || t == AddrVerdict6 || t == PortVerdict }

// Meter tells whether elements come and go by themselves: the kernel adds them as packets
// come, and forgets them MeterTimeout after the last.
func (t SetType) Meter() bool { return t >= LinkMeter }

// MeterTimeout is how long an element of a meter is kept.
func (t SetType) MeterTimeout() time.Duration {
	if t >= CutFlows4 {
		return CutRest
	}
	return time.Minute
}

// MeterSize is the most elements of a meter. The kernel makes room for all at once,
// which takes time while a table is put back.
func (t SetType) MeterSize() uint32 {
	switch t {
	case LinkMeter:
		return 4096
	case PairMeter:
		return 4096
	case UnseenProtocols:
		return 16
	case CutFlows4, CutFlows6, CutPairs4, CutPairs6:
		return MaxCut
	}
	return 65536
}

// OfEndpoints tells whether elements name links or subnets of this host; without
// them fewer packets pass.
func (t SetType) OfEndpoints() bool {
	return t == Links || t == LinkVerdict || t == LinkAddr4 || t == LinkAddr6 || t == LinkNet4 || t == LinkNet6 || t == LinkMAC || t == Net4 || t == Net6
}

// Element is a member of a set. Which fields are used depends on the SetType.
type Element struct {
	Link        string
	Prefix      netip.Prefix // a single address is a /32 or /128
	Until       netip.Addr   // of a range of addresses the last; Prefix is the first
	Proto       uint8
	First, Last uint16 // ports or ICMPv6 type; Last = First for one
	Verdict     Verdict
}

// Compare orders elements by key, then verdict.
func (e Element) Compare(o Element) int {
	return cmp.Or(
		cmp.Compare(e.Link, o.Link),
		e.Prefix.Addr().Compare(o.Prefix.Addr()),
		cmp.Compare(e.Prefix.Bits(), o.Prefix.Bits()),
		e.Until.Compare(o.Until),
		cmp.Compare(e.Proto, o.Proto),
		cmp.Compare(e.First, o.First),
		cmp.Compare(e.Last, o.Last),
		cmp.Compare(e.Verdict.Kind, o.Verdict.Kind),
		cmp.Compare(e.Verdict.Chain, o.Verdict.Chain),
	)
}

// Set is a named set or map.
type Set struct {
	Name     string
	Type     SetType
	Comment  string
	Elements map[Element]struct{}
}

// Sorted are the set's elements in order.
func (s *Set) Sorted() []Element { return sortedElements(s.Elements) }

func (s *Set) add(e ...Element) {
	for _, e := range e {
		s.Elements[e] = struct{}{}
	}
}

func newSet(name string, t SetType, comment string, e ...Element) *Set {
	s := &Set{Name: name, Type: t, Comment: clip(comment), Elements: map[Element]struct{}{}}
	s.add(e...)
	return s
}

func sortedElements(m map[Element]struct{}) []Element {
	out := make([]Element, 0, len(m))
	for e := range m {
		out = append(out, e)
	}
	slices.SortFunc(out, Element.Compare)
	return out
}

func addrElement(a netip.Addr) Element {
	return Element{Prefix: netip.PrefixFrom(a, a.BitLen())}
}

func numberElement(n uint16) Element { return Element{First: n, Last: n} }

// staticType is the type of the static sets that endpoints have elements in.
func staticType(name string) (SetType, bool) {
	switch name {
	case mapFromEP, mapToEP:
		return LinkVerdict, true
	case setAdopted, setAdoptedARP, setGuarded, setARPGuarded:
		return Links, true
	case setMACs, setARPMACs:
		return LinkMAC, true
	case setSrc4, setARP4, setMACSrc4, setARPMACSrc4:
		return LinkAddr4, true
	case setSrc6, setLL6, setMACSrc6:
		return LinkAddr6, true
	case setNets4, setARPNets4, setEncap4:
		return LinkNet4, true
	case setNets6, setEncap6:
		return LinkNet6, true
	case setOnLink4, setPool4, setNode4:
		return Net4, true
	case setOnLink6, setPool6, setNode6:
		return Net6, true
	}
	return 0, false
}
