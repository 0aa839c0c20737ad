package netdev

import (
	"encoding/binary"
	"testing"
)

// linkMessage is what the kernel says of a link that is up.
func linkMessage(index uint32, name string, mtu, group uint32) []byte {
	order := binary.NativeEndian
	b := make([]byte, 16)
	order.PutUint32(b[4:], index)
	order.PutUint32(b[8:], 1)
	add := func(kind uint16, value []byte) {
		b = order.AppendUint16(b, uint16(4+len(value)))
		b = append(order.AppendUint16(b, kind), value...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	add(3, append([]byte(name), 0))
	add(4, order.AppendUint32(nil, mtu))
	add(27, order.AppendUint32(nil, group))
	return b
}

func TestParseLink(t *testing.T) {
	l, err := ParseLink(linkMessage(3, "nc0", 1400, 7))
	if want := (LinkMessage{Index: 3, Name: "nc0", Flags: 1, MTU: 1400, Group: 7}); err != nil || l != want || !l.Up() {
		t.Errorf("link %+v, %v, want %+v", l, err, want)
	}
}

// TestAttributes: the flags are no part of an attribute's type, and a number of another
// length is refused.
func TestAttributes(t *testing.T) {
	order := binary.NativeEndian
	b := linkMessage(3, "nc0", 1400, 7)
	flagged := order.AppendUint16(nil, 8)
	flagged = order.AppendUint16(flagged, 27|0x8000)
	flagged = order.AppendUint32(flagged, 9)
	if l, err := ParseLink(append(b, flagged...)); err != nil || l.Group != 9 {
		t.Errorf("with a flag: %+v, %v", l, err)
	}
	for _, kind := range []uint16{4, 27} {
		short := order.AppendUint16(linkMessage(3, "nc0", 1400, 7), 6)
		short = append(order.AppendUint16(short, kind), 1, 2, 0, 0)
		if l, err := ParseLink(short); err == nil {
			t.Errorf("attribute %d of two bytes: %+v", kind, l)
		}
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add(linkMessage(3, "nc0", 1500, 7))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := ParseLink(b); err == nil && len(b) < 16 {
			t.Errorf("link %+v from %d bytes", l, len(b))
		}
		for {
			_, value, rest, ok := Attribute(b)
			if !ok {
				return
			}
			if len(value)+len(rest) >= len(b) {
				t.Fatalf("%d and %d bytes out of %d", len(value), len(rest), len(b))
			}
			b = rest
		}
	})
}
