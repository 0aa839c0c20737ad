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
