package bgp

import (
	"net/netip"
	"slices"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"netctl/routing"
)

// Attribute types (RFC 4271, section 5; 1997, 4456, 4760, 4360, 6793, 8092).
const (
	attrOrigin      = uint8(codec.BGP_ATTR_TYPE_ORIGIN)
	attrPath        = uint8(codec.BGP_ATTR_TYPE_AS_PATH)
	attrNextHop     = uint8(codec.BGP_ATTR_TYPE_NEXT_HOP)
	attrMED         = uint8(codec.BGP_ATTR_TYPE_MULTI_EXIT_DISC)
	attrLocalPref   = uint8(codec.BGP_ATTR_TYPE_LOCAL_PREF)
	attrAtomic      = uint8(codec.BGP_ATTR_TYPE_ATOMIC_AGGREGATE)
	attrAggregator  = uint8(codec.BGP_ATTR_TYPE_AGGREGATOR)
	attrCommunities = uint8(codec.BGP_ATTR_TYPE_COMMUNITIES)
	attrOriginator  = uint8(codec.BGP_ATTR_TYPE_ORIGINATOR_ID)
	attrClusters    = uint8(codec.BGP_ATTR_TYPE_CLUSTER_LIST)
	attrReach       = uint8(codec.BGP_ATTR_TYPE_MP_REACH_NLRI)
	attrUnreach     = uint8(codec.BGP_ATTR_TYPE_MP_UNREACH_NLRI)
	attrExtended    = uint8(codec.BGP_ATTR_TYPE_EXTENDED_COMMUNITIES)
	attrPath4       = uint8(codec.BGP_ATTR_TYPE_AS4_PATH)
	attrAggregator4 = uint8(codec.BGP_ATTR_TYPE_AS4_AGGREGATOR)
	attrLarge       = uint8(codec.BGP_ATTR_TYPE_LARGE_COMMUNITY)
)

// Attribute flags (RFC 4271, section 4.3).
const (
	flagOptional   = 0x80
	flagTransitive = 0x40
	flagPartial    = 0x20
	flagExtended   = 0x10
)

// defaultLocalPref is the degree of preference of what carries none.
const defaultLocalPref = 100

// segment is a part of an AS_PATH.
type segment struct {
	kind uint8 // AS_SET 1, AS_SEQUENCE 2; 3 and 4, of confederations, are never kept
	as   []uint32
}

// carried is an attribute that is passed on as it came.
type carried struct {
	flags, kind uint8
	value       []byte
}

// attrs are the attributes of a path: immutable but for what filters keep with them, and
// interned per session, so that one pointer is one set to be packed together.
type attrs struct {
	// id is equal for equal attributes of equal sessions; empty for
	// attributes that are never compared (own and adopted ones).
	id         string
	origin     uint8
	path       []segment
	nextHop    netip.Addr // not valid: own route
	med        uint32
	hasMED     bool
	localPref  uint32
	originator netip.Addr   // of an internal path: the peer's router ID if it named none
	clusters   []netip.Addr // CLUSTER_LIST
	// rest is sorted by type and holds neither of the above nor NLRI.
	rest []carried
	// external is set for what an eBGP peer sent.
	external bool
	// What communities say: not to other AS, to nobody, to be discarded.
	noExport, noAdvertise, blackhole bool
	// shutdown: about to go (RFC 8326).
	shutdown bool
	// Kept for long by somebody, or not to be (RFC 9494).
	longStale, noLong bool
	// aggregate is set of the own path of an aggregate, see its constants.
	aggregate uint8
	// adopted marks a route that was found in the kernel, of which only the
	// next hop is known.
	adopted bool
	// only is nextHop as a list, which all routes of these attributes share.
	only hops
	// tellMED has the MED leave the AS, since a filter set it towards the peer.
	tellMED bool
	// raw is what a filter made these of; nil: nobody changed them. seen and variants are
	// the RIB's: what filters read here, and what they made of it.
	raw      *attrs
	seen     *routing.Attributes
	variants map[variant]*attrs
}

// hops is the next hop as a list that must not be changed.
func (a *attrs) hops() *hops { return &a.only }

// same reports whether two sets need not be told apart to a peer.
func (a *attrs) same(b *attrs) bool {
	return a == b || a != nil && b != nil && a.id != "" && a.id == b.id
}

// pathLen counts an AS_SET once (RFC 4271, section 9.1.2.2 a).
func (a *attrs) pathLen() int {
	n := 0
	for _, s := range a.path {
		switch s.kind {
		case codec.BGP_ASPATH_ATTR_TYPE_SET:
			n++
		case codec.BGP_ASPATH_ATTR_TYPE_SEQ:
			n += len(s.as)
		}
	}
	return n
}

// neighbour is the AS that the path was learnt from, 0 for one of our own.
func (a *attrs) neighbour() uint32 {
	for _, s := range a.path {
		if s.kind == codec.BGP_ASPATH_ATTR_TYPE_SEQ && len(s.as) > 0 {
			return s.as[0]
		}
		if s.kind == codec.BGP_ASPATH_ATTR_TYPE_SET {
			return 0
		}
	}
	return 0
}

// passes reports whether as is in the path.
func (a *attrs) passes(as uint32) bool {
	for _, s := range a.path {
		if slices.Contains(s.as, as) {
			return true
		}
	}
	return false
}

// knownFlags returns Optional and Transitive as the attribute's definition
// wants them.
func knownFlags(kind uint8) (flags uint8, known bool) {
	switch kind {
	case attrOrigin, attrPath, attrNextHop, attrLocalPref, attrAtomic:
		return flagTransitive, true
	case attrMED, attrOriginator, attrClusters, attrReach, attrUnreach:
		return flagOptional, true
	case attrAggregator, attrCommunities, attrExtended, attrPath4, attrAggregator4, attrLarge:
		return flagOptional | flagTransitive, true
	}
	return 0, false
}

// fits checks an attribute's length (RFC 7606, section 7; RFC 8092, section 5).
func fits(kind uint8, n int, as4 bool) bool {
	switch kind {
	case attrOrigin:
		return n == 1
	case attrNextHop, attrMED, attrLocalPref, attrOriginator:
		return n == 4
	case attrAtomic:
		return n == 0
	case attrAggregator:
		return n == 8 && as4 || n == 6 && !as4
	case attrAggregator4:
		return n == 8
	case attrCommunities, attrClusters:
		return n > 0 && n%4 == 0
	case attrExtended:
		return n > 0 && n%8 == 0
	case attrLarge:
		return n > 0 && n%12 == 0
	}
	return true
}
