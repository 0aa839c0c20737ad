package conntrack

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// udpEntry is what makes an entry of a UDP flow; of is the key of what it came of, nil: nothing.
func udpEntry(t testing.TB, src, dst netip.AddrPort, master *[2]netip.AddrPort) netlink.Message {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	tuple := func(kind uint16, src, dst netip.AddrPort) {
		ae.Nested(kind, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(attrTupleIP, func(ae *netlink.AttributeEncoder) error {
				kinds := [2]uint16{attrV4Src, attrV4Dst}
				if src.Addr().Is6() {
					kinds = [2]uint16{attrV6Src, attrV6Dst}
				}
				ae.Bytes(kinds[0], src.Addr().AsSlice())
				ae.Bytes(kinds[1], dst.Addr().AsSlice())
				return nil
			})
			ae.Nested(attrTupleProto, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(protoNumber, udp)
				ae.Uint16(protoSrcPort, src.Port())
				ae.Uint16(protoDstPort, dst.Port())
				return nil
			})
			return nil
		})
	}
	tuple(attrTupleOrig, src, dst)
	tuple(attrTupleReply, dst, src)
	if master != nil {
		tuple(attrMaster, master[0], master[1])
	}
	const attrTimeout = 7
	ae.Uint32(attrTimeout, 600)
	ae.Uint32(attrStatus, 1<<1|1<<3) // IPS_SEEN_REPLY, IPS_CONFIRMED
	body, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	family := byte(unix.AF_INET)
	if src.Addr().Is6() {
		family = unix.AF_INET6
	}
	const msgNew = 0
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | msgNew),
			Flags: netlink.Request | netlink.Create | netlink.Excl,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	}
}

// fillMany makes count entries, half of each family: flows to web, of the ten thousandth
// other one from db, which may not begin it; all others are by web.
func fillMany(t testing.TB, n *netns, count int) {
	t.Helper()
	n.Do(func() {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetWriteBuffer(8 << 20)
		web := [2]netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")}
		other := [2]netip.Addr{netip.MustParseAddr("192.0.2.0"), netip.MustParseAddr("2001:db8::")}
		var batch []netlink.Message
		for i := range count {
			if i%2 == 0 && i%100 == 0 { // others, far away
				other[0], other[1] = other[0].Next(), other[1].Next()
			}
			src, dst := netip.AddrPortFrom(web[i%2], uint16(1000+i%60000)), netip.AddrPortFrom(other[i%2], uint16(1+i/60000))
			if i%10000 < 2 {
				src, dst = dst, src
			}
			if batch = append(batch, udpEntry(t, src, dst, nil)); len(batch) < 1000 && i < count-1 {
				continue
			}
			batch[len(batch)-1].Header.Flags |= netlink.Acknowledge
			if _, err := c.SendMessages(batch); err != nil {
				t.Error(err)
				return
			}
			if _, err := c.Receive(); err != nil {
				t.Errorf("entry %d: %v", i, err)
				return
			}
			batch = batch[:0]
		}
	})
}

func countOf(n *netns) (count int) {
	_, _ = fmt.Sscan(n.Run("conntrack", "-C"), &count)
	return count
}

// TestCutMany: of many flows those that are denied go, and of the others none, whether some
// or all are; the rules of now count, and what is looked at is no more than was asked for.
func TestCutMany(t *testing.T) {
	const count, few = 40000, 8 // 2 of each 10,000
	n := newNetns(t)
	fillMany(t, n, count)
	if got := countOf(n); got != count {
		t.Fatalf("%d entries, want %d", got, count)
	}
	c := Cutter{Rules: rules(t), Scope: acl.Scope{All: true}, Group: 77}
	cut := func(c Cutter, want int) {
		t.Helper()
		n.Do(func() {
			if got, err := cutOnce(c); got != want || err != nil {
				t.Errorf("%d were cut, want %d: %v", got, want, err)
			}
		})
	}
	scope := func(texts ...string) (s acl.Scope) {
		s.Addrs = map[netip.Addr]struct{}{}
		for _, text := range texts {
			s.Addrs[netip.MustParseAddr(text)] = struct{}{}
		}
		return s
	}
	allow := c
	asked := 0
	allow.Now = func() (*acl.Ruleset, []netip.Addr, error) {
		asked++
		return c.Rules, []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, nil
	}
	c.Scope = scope("10.0.0.6", "fd00::6", "fd00::7")
	cut(c, 0)
	c.Scope = scope("192.0.2.1")
	cut(c, 1)
	c.Scope = scope("192.0.2.101", "2001:db8::c9", "10.0.0.6", "10.0.0.7", "10.0.0.8")
	cut(c, 1+1)
	allow.Scope = scope("192.0.2.1", "2001:db8::1")
	cut(allow, 0)
	if asked != 1 {
		t.Errorf("the rules of now were asked for %d times", asked)
	}
	told := 0
	c.Answers = func(f []acl.Flow) error { told += len(f); return nil }
	c.Scope = acl.Scope{All: true}
	cut(c, few-3)
	if told != few-3 {
		t.Errorf("told of %d answers", told)
	}
	if got := countOf(n); got != count-few {
		t.Errorf("%d are left, want %d", got, count-few)
	}
	c.Rules = deny(t)
	cut(c, count-few)
	if got := countOf(n); got != 0 {
		t.Errorf("%d are left of those that are all denied", got)
	}
}

// TestCutExpected: what came of a flow, which the kernel's TFTP helper knows here, goes with
// it, and not without it.
func TestCutExpected(t *testing.T) {
	n := newNetns(t)
	n.Run("ip", "link", "set", "lo", "up")
	for _, a := range []string{"10.0.0.5", "10.0.0.6", "192.0.2.9"} {
		n.Run("ip", "address", "add", a+"/32", "dev", "lo")
	}
	n.Run("nft", `table ip t {
	ct helper tftp { type "tftp" protocol udp; }
	chain out { type filter hook output priority 0; udp dport 69 ct helper set "tftp"; }
}`)
	listen := func(at string) (c net.PacketConn) {
		t.Helper()
		n.Do(func() {
			var err error
			if c, err = net.ListenPacket("udp4", at); err != nil {
				t.Fatal(err)
			}
		})
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	send := func(from, to net.PacketConn, what string) {
		t.Helper()
		if _, err := from.WriteTo([]byte(what), to.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, _, err := to.ReadFrom(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	for client, server := range map[string]string{"10.0.0.6:1000": "10.0.0.5", "10.0.0.5:1001": "192.0.2.9"} {
		c := listen(client)
		send(c, listen(server+":69"), "\x00\x01file\x00octet\x00") // RFC 1350: a read request
		send(listen(server+":4000"), c, "\x00\x03\x00\x01data")
	}
	if got := countOf(n); got != 4 {
		t.Fatalf("%d entries, want 4:\n%s", got, n.Run("conntrack", "-L"))
	}
	n.Do(func() {
		if got, err := cutOnce(Cutter{Rules: rules(t), Scope: acl.Scope{All: true}, Group: 77}); got != 2 || err != nil {
			t.Errorf("%d were cut, want what db began and what came of it: %v", got, err)
		}
	})
	if left := n.Run("conntrack", "-L"); strings.Contains(left, "10.0.0.6") || strings.Count(left, "10.0.0.5") != 4 {
		t.Errorf("left are\n%s", left)
	}
}

// BenchmarkCut is what a change of the rules costs with as many entries as there is room
// for, and at most 300,000: where nothing is denied, where one address is asked about, and
// where everything is denied.
func BenchmarkCut(b *testing.B) {
	_, most, err := Use()
	if err != nil {
		b.Skip(err)
	}
	count := min(300_000, most*9/10)
	n := newNetns(b)
	fillMany(b, n, count)
	for _, c := range []struct {
		name  string
		rules *acl.Ruleset
		scope acl.Scope
		fill  bool
	}{
		{"few denied", rules(b), acl.Scope{All: true}, false},
		{"one address", rules(b), acl.Scope{Addrs: map[netip.Addr]struct{}{netip.MustParseAddr("192.0.2.9"): {}}}, false},
		{"one IPv6 address", rules(b), acl.Scope{Addrs: map[netip.Addr]struct{}{netip.MustParseAddr("2001:db8::9"): {}}}, false},
		{"all denied", deny(b), acl.Scope{All: true}, true},
	} {
		b.Run(fmt.Sprintf("%d entries, %s", count, c.name), func(b *testing.B) {
			n.Do(func() {
				spent := -processorTime(b)
				for b.Loop() {
					if _, err := cutOnce(Cutter{Rules: c.rules, Scope: c.scope, Group: 77}); err != nil {
						b.Error(err)
					}
					if c.fill {
						b.StopTimer()
						before := processorTime(b)
						fillMany(b, n, count)
						spent -= processorTime(b) - before
						b.StartTimer()
					}
				}
				b.ReportMetric(float64(spent+processorTime(b))/float64(b.N)/1e6, "cpu-ms/op")
			})
		})
	}
}

// processorTime is what the process has used, in nanoseconds: others may be busy as well.
func processorTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
