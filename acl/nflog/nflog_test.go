package nflog

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/netdev/netlab"
)

// TestListen logs packets of every kind on lo of a namespace, and has a second reader
// refused.
func TestListen(t *testing.T) {
	ns := netlab.NetnsForTest(t)
	ns.Run("nft", "table inet t { chain c { type filter hook output priority 0; udp dport 9 log group 1 prefix \"DPI|default\" drop; "+
		"ip protocol icmp log group 1 prefix \"LPE|web\"; ip6 daddr ::1 tcp dport 7 log group 1 prefix \"x\"; }; }")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	entries, ended := make(chan Entry, 10), make(chan error, 1)
	go ns.Do(func() {
		ended <- Listen(ctx, 1, func(e Entry) error { entries <- e; return nil })
	})
	send := func(network, to string) {
		ns.Do(func() {
			c, err := (&net.Dialer{Timeout: time.Second}).Dial(network, to)
			if err != nil {
				return // refused
			}
			defer c.Close()
			_, _ = c.Write([]byte("x"))
		})
	}
	expect := func(send func(), prefix string, want acl.Packet) {
		t.Helper()
		for tries := 0; ; tries++ {
			send() // the reader may not be there yet
			select {
			case e := <-entries:
				e.SrcPort, want.OutLink = 0, "lo"
				if e.Prefix != prefix || e.Packet != want || time.Since(e.Time) > time.Minute {
					t.Errorf("got %+v, want %s %+v", e, prefix, want)
				}
				for len(entries) > 0 {
					<-entries
				}
				return
			case err := <-ended:
				t.Fatal(err)
			case <-time.After(100 * time.Millisecond):
				if tries > 200 {
					t.Fatal("nothing is read")
				}
			}
		}
	}
	local, local6 := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	expect(func() { send("udp", "127.0.0.1:9") }, "DPI|default", acl.Packet{Src: local, Dst: local, Protocol: 17, DstPort: 9})
	expect(func() { send("udp", "[::1]:9") }, "DPI|default", acl.Packet{Src: local6, Dst: local6, Protocol: 17, DstPort: 9})
	expect(func() { send("tcp", "[::1]:7") }, "x", acl.Packet{Src: local6, Dst: local6, Protocol: 6, DstPort: 7})
	expect(func() { ns.Run("ping", "-c1", "127.0.0.1") }, "LPE|web", acl.Packet{Src: local, Dst: local, Protocol: 1, Type: 8})
	ns.Do(func() {
		if err := Listen(ctx, 1, func(Entry) error { return nil }); !errors.Is(err, ErrTaken) {
			t.Errorf("a second reader: %v", err)
		}
	})
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDatagrams has long ones read whole, each as it comes, from the link that they leave by.
func TestDatagrams(t *testing.T) {
	ns := netlab.NetnsForTest(t)
	ns.Run("nft", "table inet t { chain c { type filter hook output priority 0; udp dport 9 log group 2; tcp dport 9 log group 2; }; }")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	bound, got, ended := make(chan struct{}), make(chan Datagram, 10), make(chan error, 1)
	go ns.Do(func() {
		ended <- Datagrams(ctx, 2, func() { close(bound) }, func(d Datagram) error {
			d.Payload = bytes.Clone(d.Payload)
			got <- d
			return nil
		})
	})
	<-bound
	for _, to := range []string{"127.0.0.1:9", "[::1]:9"} {
		for _, size := range []int{0, 3000, 5000} {
			ns.Do(func() {
				if c, err := net.Dial("tcp", to); err == nil {
					c.Close()
				}
				c, err := net.Dial("udp", to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, _ = c.Write(bytes.Repeat([]byte("x"), size))
			})
			if size > copiedDatagram {
				continue // it is not looked at
			}
			select {
			case d := <-got:
				if len(d.Payload) != size || d.OutIndex != 1 || d.DstPort != 9 || d.Dst != netip.MustParseAddrPort(to).Addr() {
					t.Errorf("%d bytes to %s: got %d, %+v", size, to, len(d.Payload), d.Packet)
				}
			case err := <-ended:
				t.Fatal(err)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil || len(got) > 0 {
		t.Errorf("%v, %d more", err, len(got))
	}
}

// TestHeaders reads packets that are cut short, fragments and extension headers.
func TestHeaders(t *testing.T) {
	const four, six = "450000200000000040110000 0a000001 0a000002", "60000000 0010 11 40 fd000000000000000000000000000001 fd000000000000000000000000000002"
	for text, want := range map[string]string{
		four + "00350036": "udp 53 54",
		four + "0035":     "udp 0 0",
		strings.Replace(four, "0000000040", "0000200540", 1) + "00350036": "udp 0 0",
		six + "00350036": "udp 53 54",
		strings.Replace(six, "0010 11", "0010 00", 1) + "1100000000000000 00350036": "udp 53 54",
		strings.Replace(six, "0010 11", "0010 2c", 1) + "1100000100000000 00350036": "udp 53 54",
		strings.Replace(six, "0010 11", "0010 2c", 1) + "1100000900000000 00350036": "udp 0 0",
		strings.Replace(six, "0010 11", "0010 3c", 1) + "00":                        "dstopts 0 0",
		"41" + four[2:]: "none", four[:30]: "none", "": "none", "50": "none", six[:50]: "none",
	} {
		raw, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		if err != nil {
			raw, _ = hex.DecodeString(strings.ReplaceAll(text, " ", "") + "0")
		}
		var p acl.Packet
		got := "none"
		if headers(raw, &p) {
			got = fmt.Sprint(map[uint8]string{17: "udp", 60: "dstopts"}[p.Protocol], " ", p.SrcPort, " ", p.DstPort)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func FuzzHeaders(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 20})
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 8, 44, 1}, make([]byte, 60)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p acl.Packet
		headers(b, &p)
		parse(b, links{})
		if payload, ok := datagram(b, &p); ok && len(payload) > len(b)-28 {
			t.Errorf("%x of %x", payload, b)
		}
		parseDatagram(b)
	})
}
