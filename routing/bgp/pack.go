package bgp

import (
	"encoding/binary"
	"net/netip"
	"slices"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"netctl/routing"
)

// outlook is how a peer has to be spoken to; peers with the same one share
// the bytes of every UPDATE.
type outlook struct {
	external bool
	as4      bool
	localAS  uint32
	families [2]bool
	extended bool // messages (RFC 8654)
	// ids says by Family whether paths have IDs, and then paths how many of a prefix are
	// told: < 0, all (RFC 7911).
	ids   [2]bool
	paths int
	// client: what internal peers announce is reflected to it; clusterID is ours.
	client    bool
	clusterID netip.Addr
	longLived bool            // the peer knows what LLGR_STALE means (RFC 9494)
	ownOnly   bool            // as PeerConfig.OwnOnly
	draining  bool            // as PeerConfig.Draining
	mode      NextHopMode     // as PeerConfig.NextHop
	export    *routing.Policy // as PeerConfig.ExportFilter
	aggregate bool            // as PeerConfig.Aggregate
	// communities and large are added to all, as they are on the wire.
	communities, large string
	// nextHop is the one of own routes, by family, and of learnt ones where it is not
	// kept; not valid: such routes are not sent.
	nextHop [2]netip.Addr
	// crossing: IPv4 prefixes may have IPv6 next hops.
	crossing bool
}

// writing is what of an outlook shows in the bytes of a path; the rest says which paths a
// peer is told.
func (o outlook) writing() outlook {
	o.client, o.ownOnly, o.aggregate, o.export, o.paths = false, false, false, nil, 0
	return o
}

// blob is a row of UPDATEs, queued as one.
type blob struct {
	bytes    []byte
	messages int
}

// hop is the next hop that a is sent with; the one of a learnt path stays
// within the AS (RFC 4271, section 5.1.3), unless somebody wants it otherwise or it is of
// a link that nobody else has.
func (o *outlook) hop(a *attrs, family Family) netip.Addr {
	hop := o.nextHop[family]
	if a.nextHop.IsValid() && !a.nextHop.IsLinkLocalUnicast() && (o.mode == NextHopUnchanged || o.mode == NextHopUsual && !o.external) {
		hop = a.nextHop
	}
	if hop.Is6() && family == IPv4 && !o.crossing {
		return netip.Addr{} // only to who can take it (RFC 8950, section 4)
	}
	return hop
}

// attributes are those of a in ascending order, without a next hop of
// IPv6 (RFC 4760, section 3; RFC 8950, section 3).
func (o *outlook) attributes(a *attrs, family Family) []byte {
	b := appendAttr(nil, flagTransitive, attrOrigin, []byte{a.origin})
	path := a.path
	if o.external {
		path = prepend(path, o.localAS)
	}
	b = appendAttr(b, flagTransitive, attrPath, encodePath(path, o.as4))
	if hop := o.hop(a, family); hop.Is4() {
		b = appendAttr(b, flagTransitive, attrNextHop, hop.AsSlice())
	}
	// MED stays in the AS that it was given to (RFC 4271, section 5.1.4).
	if a.hasMED && (!o.external || a.tellMED) {
		b = appendAttr(b, flagOptional, attrMED, binary.BigEndian.AppendUint32(nil, a.med))
	}
	if !o.external {
		pref := a.localPref
		if o.draining {
			pref = 0
		}
		b = appendAttr(b, flagTransitive, attrLocalPref, binary.BigEndian.AppendUint32(nil, pref))
	}
	wide := false
	for _, s := range path {
		for _, as := range s.as {
			wide = wide || as > 0xffff
		}
	}
	for _, c := range withMore(withMore(o.reflected(a), attrCommunities, o.communities, 4), attrLarge, o.large, 12) {
		if c.kind > attrPath4 && wide && !o.as4 {
			b = appendAttr(b, flagOptional|flagTransitive, attrPath4, encodePath(path, true))
			wide = false
		}
		// The size of AS numbers inside AGGREGATOR is the session's (RFC
		// 6793, section 4.2.2); it is informational and dropped where
		// the sizes differ.
		if c.kind == attrAggregator && (len(c.value) == 8) != o.as4 {
			continue
		}
		value := c.value
		if c.kind == attrExtended && o.external {
			if value = acrossAS(value); len(value) == 0 {
				continue
			}
		}
		b = appendAttr(b, c.flags, c.kind, value)
	}
	if wide && !o.as4 {
		b = appendAttr(b, flagOptional|flagTransitive, attrPath4, encodePath(path, true))
	}
	return b
}

// reflected is a.rest, for a reflected path with what RFC 4456, section 8, adds: "An RR
// … MUST create ORIGINATOR_ID" if there is none (interning does), and "MUST prepend the
// local CLUSTER_ID to the CLUSTER_LIST".
func (o *outlook) reflected(a *attrs) []carried {
	if o.external || a.external || !a.nextHop.IsValid() {
		return a.rest
	}
	with := attrs{rest: slices.Clone(a.rest)}
	if a.originator.IsValid() {
		with.carry(carried{flagOptional, attrOriginator, a.originator.AsSlice()})
	}
	list := o.clusterID.AsSlice()
	for _, c := range a.clusters {
		list = append(list, c.AsSlice()...)
	}
	if len(list) > 0 {
		with.carry(carried{flagOptional, attrClusters, list})
	}
	return with.rest
}

// prepend puts an AS in front of a path (RFC 4271, section 5.1.2).
func prepend(path []segment, as uint32) []segment {
	if len(path) > 0 && path[0].kind == codec.BGP_ASPATH_ATTR_TYPE_SEQ && len(path[0].as) < 255 {
		first := segment{path[0].kind, append([]uint32{as}, path[0].as...)}
		return append([]segment{first}, path[1:]...)
	}
	return append([]segment{{codec.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{as}}}, path...)
}

// nlri is a prefix as a peer is told it, with the ID of its path if it has one.
type nlri struct {
	prefix routing.Packed
	id     uint32
}

// announce packs prefixes of one family that share attributes into as few
// UPDATEs as they need; false if the attributes leave no room for a prefix.
func (o *outlook) announce(a *attrs, prefixes []nlri, family Family) (blob, bool) {
	list := o.attributes(a, family)
	var fixed []byte // in front of the prefixes, behind the withdrawn length
	hop := o.hop(a, family)
	if hop.Is4() {
		fixed = binary.BigEndian.AppendUint16(nil, uint16(len(list)))
		fixed = append(fixed, list...)
	} else {
		// MP_REACH comes first (RFC 7606, section 5.1), so the others
		// follow the prefixes.
		sixteen := hop.As16()
		fixed = append(fixed, 0, 0, flagOptional|flagExtended, attrReach, 0, 0, 0, family.afi(), codec.SAFI_UNICAST, 16)
		fixed = append(fixed, sixteen[:]...)
		fixed = append(fixed, 0)
	}
	room := roomFor(o.extended) - headerLen - 2 - len(fixed)
	if hop.Is6() {
		room -= len(list)
	}
	least := 17 // for a prefix
	if o.ids[family] {
		least += 4
	}
	if room < least {
		return blob{}, false
	}
	var out blob
	for len(prefixes) > 0 {
		start := len(out.bytes)
		b := append(appendHeader(out.bytes, codec.BGP_MSG_UPDATE), 0, 0)
		attrsAt := len(b)
		b = append(b, fixed...)
		b, prefixes = fill(b, prefixes, room, o.ids[family])
		if hop.Is6() {
			binary.BigEndian.PutUint16(b[attrsAt+4:], uint16(len(b)-attrsAt-6))
			b = append(b, list...)
			binary.BigEndian.PutUint16(b[attrsAt:], uint16(len(b)-attrsAt-2))
		}
		out.bytes = finish(b, start)
		out.messages++
	}
	return out, true
}

// withdraw packs withdrawals of one family.
func (o *outlook) withdraw(prefixes []nlri, family Family) blob {
	var out blob
	for len(prefixes) > 0 {
		start := len(out.bytes)
		b := appendHeader(out.bytes, codec.BGP_MSG_UPDATE)
		at := len(b)
		if family == IPv4 {
			b = append(b, 0, 0)
			b, prefixes = fill(b, prefixes, roomFor(o.extended)-headerLen-4, o.ids[family])
			binary.BigEndian.PutUint16(b[at:], uint16(len(b)-at-2))
			b = append(b, 0, 0)
		} else {
			b = append(b, 0, 0, 0, 0, flagOptional|flagExtended, attrUnreach, 0, 0, 0, codec.AFI_IP6, codec.SAFI_UNICAST)
			b, prefixes = fill(b, prefixes, roomFor(o.extended)-headerLen-11, o.ids[family])
			binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at-4))
			binary.BigEndian.PutUint16(b[at+6:], uint16(len(b)-at-8))
		}
		out.bytes = finish(b, start)
		out.messages++
	}
	return out
}

// fill appends prefixes until room bytes are used and returns the rest.
func fill(b []byte, prefixes []nlri, room int, withIDs bool) (_ []byte, rest []nlri) {
	end := len(b) + room
	for i, p := range prefixes {
		had := len(b)
		if withIDs {
			b = binary.BigEndian.AppendUint32(b, p.id)
		}
		if b = p.prefix.Append(b); len(b) > end {
			return b[:had], prefixes[i:]
		}
	}
	return b, nil
}

// endOfRIB is the marker of RFC 4724, section 2.
func endOfRIB(family Family) blob {
	b := append(appendHeader(nil, codec.BGP_MSG_UPDATE), 0, 0)
	if family == IPv4 {
		b = append(b, 0, 0)
	} else {
		b = append(b, 0, 6, flagOptional, attrUnreach, 3, 0, codec.AFI_IP6, codec.SAFI_UNICAST)
	}
	return blob{finish(b, 0), 1}
}

// keepalive is a KEEPALIVE (RFC 4271, section 4.4).
func keepalive() []byte {
	return finish(appendHeader(nil, codec.BGP_MSG_KEEPALIVE), 0)
}
