package bgp

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// change is one part of an UPDATE as the RIB takes it.
type change struct {
	reachable
	attrs *attrs // nil: withdrawn
	// refresh and endOfRIB stand alone: a ROUTE-REFRESH, as one more than its subtype, and
	// an End-of-RIB marker (RFC 4724, section 2) of family.
	refresh  uint8
	endOfRIB bool
	family   Family
}

// interned is what a byte string of attributes means.
type interned struct {
	attrs *attrs
	// withdraw says why the routes are treated as withdrawn (RFC 7606).
	withdraw string
}

// maxInterned bounds the table of attribute sets of a session; past it the
// table starts anew, and equal sets are only packed less tightly.
const maxInterned = 8192

// decoder takes a peer's messages apart. It belongs to one reader.
type decoder struct {
	complaints        *complaints
	families          [2]bool // agreed
	ids               [2]bool // of these, whose paths come with IDs
	as4               bool
	localAS, peerAS   uint32
	ownAS             uint32 // Config.AS, whatever localAS is
	routerID, localIP netip.Addr
	// clusterID is ours, peerID the peer's router ID.
	clusterID, peerID netip.Addr
	// crossing: IPv4 prefixes may have IPv6 next hops. zone is the link of a session
	// between link-local addresses, and that of next hops which are; "": they cannot be used.
	crossing bool
	zone     string
	table    map[string]interned
	key      []byte
}

// external reports whether the peer is in another AS.
func (d *decoder) external() bool { return d.localAS != d.peerAS }

// found is what the walk along an attribute list came across.
type found struct {
	reach, unreach       []byte
	hasReach, hasUnreach bool
	list                 []carried // all but MP_REACH and MP_UNREACH, first of each kind
	withdraw             string
}

// update takes an UPDATE's body apart (RFC 4271, section 4.3). A fault ends the
// session; whatever RFC 7606 treats as a withdrawal becomes one.
func (d *decoder) update(body []byte) (changes []change, err *fault) {
	defer func() {
		if r := recover(); r != nil {
			d.complaints.say(slog.LevelError, "panic while reading an update", "message", body, "panic", r)
			changes, err = nil, &fault{codeUpdate, 0, nil, "update that cannot be read"}
		}
	}()
	malformed := func(subcode uint8, words string) ([]change, *fault) {
		d.complaints.say(slog.LevelWarn, "malformed update", "message", body, "cause", words)
		return nil, &fault{codeUpdate, subcode, nil, words}
	}
	gone, b, ok := cut(body)
	if !ok {
		return malformed(1, "withdrawn routes exceed the message")
	}
	list, nlri, ok := cut(b)
	if !ok {
		return malformed(1, "attributes exceed the message")
	}
	if len(body) == 4 {
		return []change{{endOfRIB: true, family: IPv4}}, nil
	}
	withdrawn, ok := parsePrefixes(gone, IPv4, d.ids[IPv4])
	if !ok {
		return malformed(10, "malformed withdrawn prefix")
	}
	announced, ok := parsePrefixes(nlri, IPv4, d.ids[IPv4])
	if !ok {
		return malformed(10, "malformed prefix")
	}
	w, f := d.walk(list)
	if f != nil {
		return malformed(f.subcode, f.words)
	}
	if words := d.doubtful(&w, len(announced.prefixes) > 0); words != "" {
		return malformed(1, words)
	}
	if len(withdrawn.prefixes) > 0 && d.families[IPv4] {
		changes = append(changes, change{reachable: withdrawn})
	}
	if w.hasUnreach {
		c, words := d.unreach(w.unreach)
		if words != "" {
			return malformed(9, words)
		}
		if c.endOfRIB && (len(announced.prefixes)+len(withdrawn.prefixes) > 0 || w.hasReach || len(w.list) > 0) {
			c = change{}
		}
		if c.endOfRIB || len(c.prefixes) > 0 {
			changes = append(changes, c)
		}
	}
	if len(announced.prefixes) > 0 && d.families[IPv4] {
		changes = append(changes, d.announce(announced, &w, netip.Addr{}, body))
	}
	if w.hasReach {
		list, hop, words := d.reach(w.reach)
		if words != "" {
			return malformed(9, words)
		}
		if len(list.prefixes) > 0 {
			if !usable(hop) {
				w.withdraw = "next hop " + hop.String() + " cannot be used"
			}
			changes = append(changes, d.announce(list, &w, hop, body))
		}
	}
	return changes, nil
}

// announce turns prefixes and attributes into an announcement, or into a
// withdrawal where the attributes do not stand. hop is the one of MP_REACH.
func (d *decoder) announce(list reachable, w *found, hop netip.Addr, body []byte) change {
	if w.withdraw != "" {
		d.complaints.say(slog.LevelWarn, "routes treated as withdrawn", "message", body, "cause", w.withdraw, "prefixes", len(list.prefixes))
		return change{reachable: list}
	}
	key := append(d.key[:0], byte(hop.BitLen()))
	key = append(key, hop.AsSlice()...)
	key = append(key, d.peerID.AsSlice()...)
	for _, c := range w.list {
		key = append(key, c.flags&^flagExtended, c.kind, byte(len(c.value)>>8), byte(len(c.value)))
		key = append(key, c.value...)
	}
	d.key = key
	in, ok := d.table[string(key)]
	if !ok {
		in = d.intern(string(key), w.list, hop)
		if d.table == nil || len(d.table) >= maxInterned {
			d.table = map[string]interned{}
		}
		d.table[string(key)] = in
	}
	if in.withdraw != "" {
		d.complaints.say(slog.LevelWarn, "routes treated as withdrawn", "message", body, "cause", in.withdraw, "prefixes", len(list.prefixes))
	}
	return change{reachable: list, attrs: in.attrs}
}

// intern reads a set of attributes for the first time.
func (d *decoder) intern(id string, list []carried, hop netip.Addr) interned {
	a := &attrs{id: id, nextHop: hop, localPref: defaultLocalPref, external: d.external(), origin: 0xff}
	seenPath, old, words := d.takeAll(a, list)
	if words != "" {
		return interned{withdraw: words}
	}
	// "If any of the well-known mandatory attributes are not present in an
	// UPDATE message, then treat-as-withdraw" (RFC 7606, section 3 d).
	switch {
	case a.origin == 0xff:
		return interned{withdraw: "ORIGIN is missing"}
	case !seenPath:
		return interned{withdraw: "AS_PATH is missing"}
	case !a.nextHop.IsValid():
		return interned{withdraw: "NEXT_HOP is missing"}
	// A path through ourselves is none: it replaces the peer's earlier one
	// by nothing (RFC 4271, section 9.1.2; RFC 4456, section 8).
	case a.originator.IsValid() && a.originator == d.routerID || slices.Contains(a.clusters, d.clusterID):
		return interned{}
	case a.nextHop == d.localIP:
		return interned{withdraw: "NEXT_HOP is this speaker"}
	}
	if old != nil && !d.as4 {
		a.path = mergePaths(a.path, old.value)
	}
	// "the AS number of the peer … leftmost" (RFC 4271, section 6.3).
	if a.external && a.neighbour() != d.peerAS {
		return interned{withdraw: "AS_PATH does not start with the peer's AS"}
	}
	if a.passes(d.localAS) || a.passes(d.ownAS) {
		return interned{}
	}
	// "This attribute is … created by an RR … and carries the BGP Identifier of the
	// originator of the route in the local AS" (RFC 4456, section 8).
	if !a.external && !a.originator.IsValid() {
		a.originator = d.peerID
	}
	a.only.list = []netip.Addr{a.nextHop}
	if a.blackhole {
		a.only.list = []netip.Addr{discard(a.nextHop)}
	}
	return interned{attrs: a}
}

// doubtful says why an UPDATE without a route must end the session: if it has an
// attribute beside MP_UNREACH that is wrong, its routes may have been missed (RFC
// 7606, section 5.2).
func (d *decoder) doubtful(w *found, announces bool) string {
	if announces || len(w.reach) > 4 && len(w.reach) > 4+int(w.reach[3])+1 || w.withdraw == "" && len(w.list) == 0 {
		return ""
	}
	words := w.withdraw
	if words == "" {
		_, _, words = d.takeAll(&attrs{external: d.external()}, w.list)
	}
	return words
}

// takeAll puts attributes into a: all but AS4_PATH, which is returned; words say why
// the routes cannot stand.
func (d *decoder) takeAll(a *attrs, list []carried) (seenPath bool, old *carried, words string) {
	besideReach := a.nextHop.IsValid()
	for i := range list {
		c := &list[i]
		switch {
		case c.kind == attrPath4:
			old = c
			continue
		case c.kind == attrAggregator4:
			continue // informational; AGGREGATOR stays as the peer wrote it
		case c.kind == attrNextHop && besideReach:
			continue // "MUST be ignored" beside MP_REACH (RFC 4760, section 3)
		}
		if words := d.take(a, c); words != "" {
			return seenPath, old, words
		}
		seenPath = seenPath || c.kind == attrPath
	}
	if a.shutdown {
		a.localPref = 0 // whichever came first in the message (RFC 8326, section 4.2)
	}
	return seenPath, old, ""
}

// take puts one attribute into a; words say why the routes cannot stand.
func (d *decoder) take(a *attrs, c *carried) (words string) {
	if a.external && (c.kind == attrLocalPref || c.kind == attrOriginator || c.kind == attrClusters) {
		return "" // ignored from eBGP (RFC 7606, sections 7.5, 7.9, 7.10)
	}
	if c.kind == attrPath {
		// The codec guesses whether AS numbers have two or four bytes.
		path, ok := parsePath(c.value, d.as4)
		if !ok {
			return "malformed AS_PATH"
		}
		a.path = path
		return improper(path)
	}
	if _, known := knownFlags(c.kind); !known {
		a.carry(carried{c.flags | flagPartial, c.kind, c.value})
		return ""
	}
	value, err := d.decode(c)
	if err != nil {
		if c.kind == attrAtomic || c.kind == attrAggregator {
			return "" // attribute discard (RFC 7606, sections 7.6, 7.7)
		}
		return fmt.Sprintf("malformed attribute %d: %v", c.kind, err)
	}
	switch v := value.(type) {
	case *codec.PathAttributeAggregator:
		if v.Value.AS == 0 {
			return "" // attribute discard (RFC 7607; RFC 7606, section 7.7)
		}
		a.carry(*c)
	case *codec.PathAttributeOrigin:
		if v.Value > 2 {
			return fmt.Sprintf("undefined ORIGIN %d", v.Value)
		}
		a.origin = v.Value
	case *codec.PathAttributeNextHop:
		a.nextHop, _ = netip.AddrFromSlice(c.value)
		if !usable(a.nextHop) {
			return "next hop " + a.nextHop.String() + " cannot be used"
		}
	case *codec.PathAttributeMultiExitDisc:
		a.med, a.hasMED = v.Value, true
	case *codec.PathAttributeLocalPref:
		a.localPref = v.Value
	case *codec.PathAttributeOriginatorId:
		a.originator, _ = netip.AddrFromSlice(c.value)
	case *codec.PathAttributeClusterList:
		for i := 0; i < len(c.value); i += 4 {
			a.clusters = append(a.clusters, netip.AddrFrom4([4]byte(c.value[i:])))
		}
	case *codec.PathAttributeExtendedCommunities:
		in := *c
		if a.external {
			in.value = acrossAS(in.value)
		}
		if len(in.value) > 0 {
			a.carry(in)
		}
	default:
		a.carry(*c)
		if v, ok := value.(*codec.PathAttributeCommunities); ok {
			a.heed(v.Value)
		}
	}
	return ""
}

// carry keeps an attribute to be passed on, sorted by type. The value is
// copied: the reader uses its buffer again.
func (a *attrs) carry(c carried) {
	c.value = append([]byte(nil), c.value...)
	i := len(a.rest)
	for i > 0 && a.rest[i-1].kind > c.kind {
		i--
	}
	a.rest = append(a.rest, carried{})
	copy(a.rest[i+1:], a.rest[i:])
	a.rest[i] = c
}

// decode is the codec behind a wall: a panic inside an attribute is that
// attribute malformed, since the prefixes are ours to read.
func (d *decoder) decode(c *carried) (value codec.PathAttributeInterface, err error) {
	wire := appendAttr(nil, c.flags, c.kind, c.value)
	defer func() {
		if r := recover(); r != nil {
			d.complaints.say(slog.LevelError, "panic while reading an attribute", "attribute", wire, "panic", r)
			value, err = nil, fmt.Errorf("cannot be read")
		}
	}()
	if !fits(c.kind, len(c.value), d.as4) {
		return nil, fmt.Errorf("length %d", len(c.value))
	}
	value, err = codec.GetPathAttribute(wire)
	if err != nil {
		return nil, err
	}
	return value, value.DecodeFromBytes(wire)
}

// walk goes along the attribute list: flags, type and length only.
func (d *decoder) walk(b []byte) (w found, f *fault) {
	var seen [256]bool
	for len(b) > 0 {
		head := 3
		if b[0]&flagExtended != 0 {
			head = 4
		}
		// "a Total Attribute Length that conflicts with the enclosed
		// attributes: treat-as-withdraw" (RFC 7606, section 4).
		if len(b) < head {
			w.withdraw = "attribute list is cut"
			return w, nil
		}
		n := int(b[2])
		if head == 4 {
			n = int(binary.BigEndian.Uint16(b[2:]))
		}
		if len(b) < head+n {
			w.withdraw = fmt.Sprintf("attribute %d exceeds the list", b[1])
			return w, nil
		}
		c := carried{b[0], b[1], b[head : head+n]}
		b = b[head+n:]
		want, known := knownFlags(c.kind)
		switch {
		case seen[c.kind] && (c.kind == attrReach || c.kind == attrUnreach):
			// RFC 7606, section 3 g.
			return w, &fault{codeUpdate, 1, nil, fmt.Sprintf("attribute %d twice", c.kind)}
		case seen[c.kind]:
			continue // "all the occurrences … other than the first SHALL be discarded"
		case !known && c.flags&flagOptional == 0:
			return w, &fault{codeUpdate, 2, nil, fmt.Sprintf("unknown well-known attribute %d", c.kind)}
		case !known && c.flags&flagTransitive == 0:
			continue // quietly ignored (RFC 4271, section 5)
		case known && c.flags&(flagOptional|flagTransitive) != want && (c.kind == attrReach || c.kind == attrUnreach):
			// RFC 7606, section 5.3.
			return w, &fault{codeUpdate, 4, nil, fmt.Sprintf("attribute %d has flags %#02x", c.kind, c.flags)}
		case known && c.flags&(flagOptional|flagTransitive) != want:
			w.withdraw = fmt.Sprintf("attribute %d has flags %#02x", c.kind, c.flags) // RFC 7606, section 3 c
		}
		seen[c.kind] = true
		switch {
		case c.kind == attrReach:
			w.reach, w.hasReach = c.value, true
		case c.kind == attrUnreach:
			w.unreach, w.hasUnreach = c.value, true
		case d.as4 && (c.kind == attrPath4 || c.kind == attrAggregator4):
			// "MUST discard these two attributes" (RFC 6793, section 6).
		default:
			w.list = append(w.list, c)
		}
	}
	return w, nil
}

// reach reads MP_REACH_NLRI (RFC 4760, section 3). Families that were not agreed give
// no prefixes. Of those that we know the prefixes must be well-formed all the same:
// else the session ends, as where an agreed one's are not (RFC 7606, section 5.3). Others
// are not looked into.
func (d *decoder) reach(b []byte) (list reachable, hop netip.Addr, words string) {
	if len(b) < 5 {
		return reachable{}, hop, "MP_REACH is too short"
	}
	family, ok := familyFrom(binary.BigEndian.Uint16(b), b[2])
	if !ok {
		return reachable{}, hop, ""
	}
	n := int(b[3])
	if len(b) < 4+n+1 {
		return reachable{}, hop, "next hop exceeds MP_REACH"
	}
	list, ok = parsePrefixes(b[4+n+1:], family, d.ids[family])
	if !ok {
		return reachable{}, hop, "malformed prefix in MP_REACH"
	}
	switch {
	case !d.families[family]:
		return reachable{}, hop, ""
	case family == IPv4 && n == 4:
	case (family == IPv6 || d.crossing) && (n == 16 || n == 32):
	default:
		return reachable{}, hop, fmt.Sprintf("MP_REACH has a next hop of %d bytes", n)
	}
	return list, d.nextHop(b[4 : 4+n]), ""
}

// nextHop reads the one of MP_REACH. Of IPv6 it may be two: the global address, and a
// link-local one of the link that both sides share (RFC 2545, section 3; RFC 8950,
// section 3). Where the session is of that link, the latter is what can be reached: some
// write it alone, some behind nothing, some twice.
func (d *decoder) nextHop(b []byte) netip.Addr {
	hop, _ := netip.AddrFromSlice(b[:min(len(b), 16)])
	if d.zone == "" {
		return hop
	}
	if len(b) == 32 && netip.AddrFrom16([16]byte(b[16:])).IsLinkLocalUnicast() {
		hop = netip.AddrFrom16([16]byte(b[16:]))
	}
	if hop.IsLinkLocalUnicast() {
		hop = hop.WithZone(d.zone)
	}
	return hop
}

// unreach reads MP_UNREACH_NLRI (RFC 4760, section 4), as reach does.
func (d *decoder) unreach(b []byte) (c change, words string) {
	if len(b) < 3 {
		return c, "MP_UNREACH is too short"
	}
	family, ok := familyFrom(binary.BigEndian.Uint16(b), b[2])
	if !ok {
		return c, ""
	}
	c.reachable, ok = parsePrefixes(b[3:], family, d.ids[family])
	switch {
	case !ok:
		return change{}, "malformed prefix in MP_UNREACH"
	case !d.families[family]:
		return change{}, ""
	case len(b) == 3:
		return change{endOfRIB: true, family: family}, ""
	}
	return c, ""
}

// discard is the next hop of what is to be discarded.
func discard(hop netip.Addr) netip.Addr {
	if hop.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// usable reports whether a next hop can be one (RFC 4271, section 6.3; an IPv4-mapped
// one cannot be routed to, and a link-local one only where its link is known).
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() &&
		!a.Is4In6() && (!a.IsLinkLocalUnicast() || a.Zone() != "") && !(a.Is4() && a.As4()[0] >= 240)
}
