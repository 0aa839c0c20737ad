package gate

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// anyTTL are peers of which nothing else is demanded.
func anyTTL(peers ...netip.Addr) map[netip.Addr]uint8 {
	m := map[netip.Addr]uint8{}
	for _, a := range peers {
		m[a] = 0
	}
	return m
}

// judge is what a filter says of a packet with an IP header.
func judge(p []unix.SockFilter, header []byte) uint32 {
	var a uint32
	for pc := 0; ; pc++ {
		switch i := p[pc]; i.Code {
		case loadByte:
			a = uint32(header[i.K-ipHeader])
		case loadWord:
			at := i.K - ipHeader
			a = uint32(header[at])<<24 | uint32(header[at+1])<<16 | uint32(header[at+2])<<8 | uint32(header[at+3])
		case shift:
			a >>= i.K
		case ifEqual:
			if a == i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case ifLeast:
			if a >= i.K {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		case jump:
			pc += int(i.K)
		case verdict:
			return i.K
		}
	}
}

// TestProgram holds programs for random peers, few and many, against the list.
func TestProgram(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	some := func() netip.Addr {
		if rnd.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(4)), byte(rnd.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(rnd.IntN(2)), 11: byte(rnd.IntN(2)), 15: byte(rnd.IntN(256))})
	}
	for _, n := range []int{0, 1, 2, 10, 300, 1500} {
		peers := map[netip.Addr]uint8{}
		for i := range n {
			peers[some()] = []uint8{0, 0, 0, 255, 250}[i%5]
		}
		p, err := Program(peers)
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			a := some()
			header := make([]byte, 40)
			if header[0] = 0x60; a.Is4() {
				header[0] = 0x45
				copy(header[12:], a.AsSlice())
			} else {
				copy(header[8:], a.AsSlice())
			}
			for _, ttl := range []uint8{1, 249, 250, 254, 255} {
				header[8] = ttl
				if a.Is6() {
					copy(header[8:], a.AsSlice())
					header[7] = ttl
				}
				least, is := peers[a]
				if got := judge(p, header) != 0; got != (is && ttl >= least) {
					t.Fatalf("%d peers: %v with TTL %d of %d passes %v", n, a, ttl, least, got)
				}
			}
		}
		if judge(p, make([]byte, 40)) != 0 {
			t.Errorf("%d peers: neither IPv4 nor IPv6 passes", n)
		}
	}
	var many []netip.Addr
	for i := range 3900 {
		many = append(many, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))
	}
	if _, err := Program(anyTTL(many...)); err != nil {
		t.Error(err)
	}
	if _, err := Program(anyTTL(append(many, many[0].Next().Next().Next(), netip.MustParseAddr("fd00::1"))...)); err != nil {
		t.Error(err)
	}
	for i := range 300 {
		many = append(many, netip.MustParseAddr(fmt.Sprintf("10.2.%d.1", i%256)), netip.MustParseAddr(fmt.Sprintf("10.3.%d.1", i%256)))
	}
	if _, err := Program(anyTTL(many...)); err == nil {
		t.Error("a program that the kernel refuses")
	}
}
