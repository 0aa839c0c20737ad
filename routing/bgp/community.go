package bgp

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Well-known communities.
const (
	GracefulShutdown  uint32 = 0xffff0000 // RFC 8326: about to go, prefer anything else
	LLGRStale         uint32 = 0xffff0006 // RFC 9494: kept for long; anything else is better
	NoLLGR            uint32 = 0xffff0007 // RFC 9494: not to be kept so
	Blackhole         uint32 = 0xffff029a // RFC 7999: discard packets to it
	NoExport          uint32 = 0xffffff01 // RFC 1997: not outside the AS
	NoAdvertise       uint32 = 0xffffff02 // RFC 1997: to nobody
	NoExportSubconfed uint32 = 0xffffff03 // RFC 1997: not outside the AS, who has no confederation
)

// Communities are what announcements carry: those of RFC 1997 and large ones (RFC 8092).
type Communities struct {
	Standard []uint32
	Large    [][3]uint32
}

// wire is the value of both attributes, each community once and in order: "" for none.
func (c Communities) wire() (standard, large string) {
	var b []byte
	for _, n := range slices.Compact(slices.Sorted(slices.Values(c.Standard))) {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	list := slices.Clone(c.Large)
	slices.SortFunc(list, func(a, b [3]uint32) int { return slices.Compare(a[:], b[:]) })
	var l []byte
	for _, n := range slices.Compact(list) {
		for _, part := range n {
			l = binary.BigEndian.AppendUint32(l, part)
		}
	}
	return string(b), string(l)
}

// attached are the attributes that carry communities.
func attached(standard, large string) (list []carried) {
	return withMore(withMore(nil, attrCommunities, standard, 4), attrLarge, large, 12)
}

// withMore is rest with more communities, of size bytes each, in the attribute of a kind.
// rest stays as it is, and so do the communities that it has.
func withMore(rest []carried, kind uint8, more string, size int) []carried {
	if more == "" {
		return rest
	}
	i, found := slices.BinarySearchFunc(rest, kind, func(c carried, kind uint8) int { return int(c.kind) - int(kind) })
	if !found {
		return slices.Insert(slices.Clone(rest), i, carried{flagOptional | flagTransitive, kind, []byte(more)})
	}
	value := slices.Clone(rest[i].value)
	had := len(value)
	for one := range slices.Chunk([]byte(more), size) {
		known := false
		for at := 0; at < had && !known; at += size {
			known = slices.Equal(value[at:at+size], one)
		}
		if !known {
			value = append(value, one...)
		}
	}
	rest = slices.Clone(rest)
	rest[i].value = value
	return rest
}

// acrossAS is the value of extended communities without those that stay in their AS (RFC
// 4360, section 6).
func acrossAS(value []byte) (out []byte) {
	const stays = 0x40
	for one := range slices.Chunk(value, 8) {
		if one[0]&stays == 0 {
			out = append(out, one...)
		}
	}
	return out
}

// heed reads the communities that mean something here.
func (a *attrs) heed(list []uint32) {
	for _, c := range list {
		switch c {
		case GracefulShutdown:
			a.shutdown = true
		case LLGRStale:
			a.longStale = true
		case NoLLGR:
			a.noLong = true
		case Blackhole:
			a.blackhole = true
		case NoExport, NoExportSubconfed:
			a.noExport = true
		case NoAdvertise:
			a.noAdvertise = true
		}
	}
}

// ownKey is what own prefixes of one set of attributes share; the communities are as they
// are on the wire.
type ownKey struct {
	ownKind
	standard, large string
}

// ownAttrs are the attributes of an own prefix; those of equal communities are one set.
func (r *rib) ownAttrs(kind ownKind, tags Communities) *attrs {
	standard, large := tags.wire()
	key := ownKey{kind, standard, large}
	a := r.own[key]
	if a == nil {
		a = &attrs{localPref: defaultLocalPref, rest: attached(standard, large)}
		kind.shape(a)
		if a.heed(tags.Standard); a.shutdown {
			a.localPref = 0
		}
		r.own[key] = a
	}
	return a
}

// tags are the communities of an own prefix.
func (r *rib) tags(prefix netip.Prefix) (c Communities) {
	if r.config.Tags != nil {
		c = r.config.Tags(prefix)
	}
	return c
}

// retag asks Tags again about every own prefix.
func (r *rib) retag() {
	for _, d := range r.dests {
		own := d.from(nil, 0)
		if own == nil {
			continue
		}
		kind := ownKind{aggregate: own.attrs.aggregate}
		if kind.aggregate > 0 {
			kind.family = d.family()
		}
		if a := r.ownAttrs(kind, r.tags(d.key.Prefix())); a != own.attrs {
			own.attrs = a
			r.mark(d)
		}
	}
}
