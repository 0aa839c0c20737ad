package routing

import (
	"bytes"
	"cmp"
	"maps"
	"net/netip"
)

// Packed is a valid netip.Prefix in 18 bytes without a pointer: what is kept for each
// of hundreds of thousands of routes is keyed by it.
type Packed struct {
	addr [16]byte
	bits uint8
	four bool
}

// Pack packs p.
func Pack(p netip.Prefix) Packed {
	return Packed{addr: p.Addr().As16(), bits: uint8(p.Bits()), four: p.Addr().Is4()}
}

// Prefix is what was packed.
func (p Packed) Prefix() netip.Prefix {
	a := netip.AddrFrom16(p.addr)
	if p.four {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, int(p.bits))
}

// Is4 says whether it is a prefix of IPv4.
func (p Packed) Is4() bool { return p.four }

// Append appends the prefix as BGP has it (RFC 4271, section 4.3): its length in bits, and
// as many bytes as that needs.
func (p Packed) Append(b []byte) []byte {
	from := 0
	if p.four {
		from = 12
	}
	return append(append(b, p.bits), p.addr[from:from+(int(p.bits)+7)/8]...)
}

// ComparePacked orders by address, then by length.
func ComparePacked(a, b Packed) int {
	return cmp.Or(bytes.Compare(a.addr[:], b.addr[:]), cmp.Compare(a.bits, b.bits))
}

// Fit is m or, once most of a bulk is gone from it, a smaller copy: a map keeps the
// memory of the most it ever held, which is counted in most.
func Fit[M ~map[K]V, K comparable, V any](m M, most *int) M {
	const bulk = 4096
	if *most = max(*most, len(m)); *most < bulk || len(m) > *most/4 {
		return m
	}
	*most = len(m)
	fit := make(M, len(m))
	maps.Copy(fit, m)
	return fit
}
