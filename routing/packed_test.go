package routing

import (
	"net/netip"
	"testing"
	"unsafe"
)

func TestPacked(t *testing.T) {
	for _, text := range []string{"0.0.0.0/0", "10.65.1.0/26", "10.65.1.0/24", "255.255.255.255/32", "::/0", "fd80::40/122", "::ffff:10.65.1.0/122", "ffff::1/128"} {
		p := netip.MustParsePrefix(text)
		k := Pack(p)
		if k.Prefix() != p || k.Is4() != p.Addr().Is4() || k != Pack(k.Prefix()) {
			t.Errorf("%s became %s", p, k.Prefix())
		}
	}
	if Pack(netip.MustParsePrefix("10.65.1.0/26")) == Pack(netip.MustParsePrefix("::ffff:10.65.1.0/122")) {
		t.Error("a prefix and its mapped form are one key")
	}
	if s := unsafe.Sizeof(Packed{}); s != 18 {
		t.Errorf("%d bytes", s)
	}
}

// TestFit: a bulk that goes is given back, and copying costs no more than the going.
func TestFit(t *testing.T) {
	m, most, copies := map[int]int{}, 0, 0
	for i := range 100_000 {
		m[i] = i
	}
	for i := range 100_000 {
		if i == 99_990 {
			break
		}
		delete(m, i)
		m[-1] = 0 // to see it copied
		fit := Fit(m, &most)
		if delete(fit, -1); len(m) > len(fit) {
			copies++
			delete(m, -1)
		}
		m = fit
	}
	if len(m) != 10 || m[99_995] != 99_995 {
		t.Errorf("left: %v", m)
	}
	if copies < 2 || copies > 4 || most >= 4096 {
		t.Errorf("%d copies, at most %d", copies, most)
	}
}
