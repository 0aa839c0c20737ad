package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// Sizes of RFC 4271, section 4.1, and of RFC 8654, section 4.
const (
	headerLen   = 19
	maxMessage  = 4096
	maxExtended = 65535
)

// roomFor is what the longest message may have.
func roomFor(extended bool) int {
	if extended {
		return maxExtended
	}
	return maxMessage
}

// frame checks a message's header (RFC 4271, section 6.1; the codec does not)
// and returns the message's length; 0 means that b does not hold it all. room is what
// the longest message may have: "all messages except for OPEN and KEEPALIVE" may be
// extended ones, where those are agreed (RFC 8654, section 4).
func frame(b []byte, room int) (length int, kind uint8, f *fault) {
	if len(b) < headerLen {
		return 0, 0, nil
	}
	for _, x := range b[:16] {
		if x != 0xff {
			return 0, 0, &fault{codeHeader, 1, nil, "message without marker"}
		}
	}
	length, kind = int(binary.BigEndian.Uint16(b[16:])), b[18]
	least, most := 0, room
	switch kind {
	case codec.BGP_MSG_OPEN:
		least, most = 29, maxMessage
	case codec.BGP_MSG_UPDATE:
		least = 23
	case codec.BGP_MSG_NOTIFICATION:
		least = 21
	case codec.BGP_MSG_KEEPALIVE:
		least, most = headerLen, headerLen
	case codec.BGP_MSG_ROUTE_REFRESH:
		least = 23
	default:
		return 0, 0, &fault{codeHeader, 3, []byte{kind}, fmt.Sprintf("unknown message type %d", kind)}
	}
	if length < least || length > most {
		return 0, 0, &fault{codeHeader, 2, b[16:18:18], fmt.Sprintf("message of type %d with length %d", kind, length)}
	}
	if len(b) < length {
		return 0, 0, nil
	}
	return length, kind, nil
}

// appendHeader starts a message; finish completes it.
func appendHeader(b []byte, kind uint8) []byte {
	for range 16 {
		b = append(b, 0xff)
	}
	return append(b, 0, 0, kind)
}

// finish writes the length of the message that starts at offset start.
func finish(b []byte, start int) []byte {
	binary.BigEndian.PutUint16(b[start+16:], uint16(len(b)-start))
	return b
}

// cut takes a field of b that starts with its length in two bytes.
func cut(b []byte) (field, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// reachable are the prefixes of a message, and where paths have IDs (RFC 7911) the ID of
// each.
type reachable struct {
	prefixes []netip.Prefix
	ids      []uint32
}

// id is that of a prefix's path, 0 where there are none.
func (r *reachable) id(i int) uint32 {
	if r.ids == nil {
		return 0
	}
	return r.ids[i]
}

// parsePrefixes reads prefixes of RFC 4271, section 4.3 (RFC 4760, section 5), with an ID
// before each where withIDs says so (RFC 7911, section 3); bits behind the length are
// irrelevant and cleared.
func parsePrefixes(b []byte, family Family, withIDs bool) (to reachable, ok bool) {
	if len(b) > 0 {
		to.prefixes = make([]netip.Prefix, 0, len(b)/4+1)
	}
	for len(b) > 0 {
		if withIDs {
			if len(b) < 5 {
				return reachable{}, false
			}
			to.ids = append(to.ids, binary.BigEndian.Uint32(b))
			b = b[4:]
		}
		bits := int(b[0])
		n := (bits + 7) / 8
		if len(b) < 1+n {
			return reachable{}, false
		}
		var addr netip.Addr
		if family == IPv4 {
			if bits > 32 {
				return reachable{}, false
			}
			var a [4]byte
			copy(a[:], b[1:1+n])
			addr = netip.AddrFrom4(a)
		} else {
			if bits > 128 {
				return reachable{}, false
			}
			var a [16]byte
			copy(a[:], b[1:1+n])
			addr = netip.AddrFrom16(a)
		}
		to.prefixes = append(to.prefixes, netip.PrefixFrom(addr, bits).Masked())
		b = b[1+n:]
	}
	return to, true
}

// appendAttr writes an attribute; the length's size follows its value.
func appendAttr(b []byte, flags, kind uint8, value []byte) []byte {
	if len(value) > 255 {
		b = append(b, flags|flagExtended, kind, byte(len(value)>>8), byte(len(value)))
	} else {
		b = append(b, flags&^flagExtended, kind, byte(len(value)))
	}
	return append(b, value...)
}

// parsePath reads an AS_PATH whose AS numbers have two or four bytes. A
// segment of an unknown kind, without AS numbers or that exceeds the attribute
// is malformed (RFC 7606, section 7.2).
func parsePath(b []byte, as4 bool) ([]segment, bool) {
	size := 2
	if as4 {
		size = 4
	}
	var path []segment
	for len(b) > 0 {
		if len(b) < 2 || b[0] < 1 || b[0] > 4 || b[1] == 0 || len(b) < 2+int(b[1])*size {
			return nil, false
		}
		s := segment{kind: b[0], as: make([]uint32, b[1])}
		b = b[2:]
		for i := range s.as {
			if as4 {
				s.as[i] = binary.BigEndian.Uint32(b)
			} else {
				s.as[i] = uint32(binary.BigEndian.Uint16(b))
			}
			b = b[size:]
		}
		path = append(path, s)
	}
	return path, true
}

// improper says why a well-formed AS_PATH is malformed all the same: nobody is AS 0
// (RFC 7607), and segments of a confederation are not for us, who are in none (RFC 5065,
// section 5).
func improper(path []segment) string {
	for _, s := range path {
		switch {
		case s.kind > codec.BGP_ASPATH_ATTR_TYPE_SEQ:
			return "AS_PATH has a segment of a confederation"
		case slices.Contains(s.as, 0):
			return "AS_PATH has AS 0"
		}
	}
	return ""
}

// encodePath is the inverse of parsePath.
func encodePath(path []segment, as4 bool) []byte {
	var b []byte
	for _, s := range path {
		b = append(b, s.kind, byte(len(s.as)))
		for _, as := range s.as {
			switch {
			case as4:
				b = binary.BigEndian.AppendUint32(b, as)
			case as > 0xffff:
				b = binary.BigEndian.AppendUint16(b, asTrans)
			default:
				b = binary.BigEndian.AppendUint16(b, uint16(as))
			}
		}
	}
	return b
}

// mergePaths puts the end of path, as far as AS4_PATH goes, back into four
// bytes (RFC 6793, section 4.2.3). A malformed or longer AS4_PATH is ignored, segments
// of a confederation in it are left out (section 6).
func mergePaths(path []segment, as4Path []byte) []segment {
	tail, ok := parsePath(as4Path, true)
	tail = slices.DeleteFunc(tail, func(s segment) bool { return s.kind > codec.BGP_ASPATH_ATTR_TYPE_SEQ })
	if !ok || improper(tail) != "" {
		return path
	}
	count := func(path []segment) int { return (&attrs{path: path}).pathLen() }
	keep := count(path) - count(tail)
	if keep < 0 {
		return path
	}
	var merged []segment
	for _, s := range path {
		if keep == 0 {
			break
		}
		switch n := count([]segment{s}); {
		case n <= keep:
			merged, keep = append(merged, s), keep-n
		default:
			merged, keep = append(merged, segment{s.kind, s.as[:keep]}), 0
		}
	}
	for _, s := range tail {
		if last := len(merged) - 1; last >= 0 && merged[last].kind == s.kind && s.kind == codec.BGP_ASPATH_ATTR_TYPE_SEQ &&
			len(merged[last].as)+len(s.as) <= 255 {
			merged[last].as = append(merged[last].as[:len(merged[last].as):len(merged[last].as)], s.as...)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}
