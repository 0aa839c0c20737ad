package doctor

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// unreachable is an ICMP error that quotes a packet.
func unreachable(kind, code byte, rest [4]byte, quoted []byte) []byte {
	return append(append([]byte{kind, code, 0, 0}, rest[:]...), quoted...)
}

// TestHeard: what ICMP says of one's own packet, by who says it; all else is passed over.
func TestHeard(t *testing.T) {
	here, there, router := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9"), netip.MustParseAddr("192.0.2.254")
	here6, there6 := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::9")
	const id, port = 7, 4789
	request := echoMessage(id, 64, netip.Addr{}, netip.Addr{}, false)
	reply := append([]byte{icmpEchoReply}, request[1:]...)
	other := echoMessage(id+1, 64, netip.Addr{}, netip.Addr{}, false)
	echo := ipPacket(protoICMP, here, there, request)
	udp := ipPacket(protoUDP, here, there, []byte{0, 1, port >> 8, port & 0xff, 0, 8, 0, 0})
	ipip := ipPacket(protoIPIP, here, there, echo)
	udp6 := ipPacket(protoUDP, here6, there6, []byte{0, 1, port >> 8, port & 0xff, 0, 8, 0, 0})
	for what, x := range map[string]struct {
		b        []byte
		v6       bool
		from     netip.Addr
		protocol byte
		want     Answer
		ok       bool
	}{
		"a reply":                 {reply, false, there, protoICMP, Answer{Answered, there, 0}, true},
		"of another machine":      {reply, false, router, protoICMP, Answer{}, false},
		"of another request":      {append([]byte{icmpEchoReply}, other[1:]...), false, there, protoICMP, Answer{}, false},
		"too large":               {unreachable(3, 4, [4]byte{2: 5, 3: 0xdc}, echo), false, router, protoICMP, Answer{TooLarge, router, 1500}, true},
		"no port":                 {unreachable(3, 3, [4]byte{}, udp), false, there, protoUDP, Answer{Refused, there, 0}, true},
		"a firewall's no port":    {unreachable(3, 3, [4]byte{}, udp), false, router, protoUDP, Answer{Prohibited, router, 0}, true},
		"no protocol":             {unreachable(3, 2, [4]byte{}, ipip), false, there, protoIPIP, Answer{Refused, there, 0}, true},
		"prohibited":              {unreachable(3, 13, [4]byte{}, udp), false, there, protoUDP, Answer{Prohibited, there, 0}, true},
		"no way":                  {unreachable(3, 1, [4]byte{}, udp), false, router, protoUDP, Answer{NoRoute, router, 0}, true},
		"of another packet":       {unreachable(3, 3, [4]byte{}, udp), false, there, protoIPIP, Answer{}, false},
		"cut off":                 {unreachable(3, 3, [4]byte{}, udp[:20]), false, there, protoUDP, Answer{}, false},
		"no port, IPv6":           {unreachable(1, 4, [4]byte{}, udp6), true, there6, protoUDP, Answer{Refused, there6, 0}, true},
		"prohibited, IPv6":        {unreachable(1, 1, [4]byte{}, udp6), true, there6, protoUDP, Answer{Prohibited, there6, 0}, true},
		"too large, IPv6":         {unreachable(2, 0, [4]byte{2: 5, 3: 0}, udp6), true, there6, protoUDP, Answer{TooLarge, there6, 1280}, true},
		"nothing":                 {nil, false, there, protoUDP, Answer{}, false},
		"an echo request of ours": {request, false, there, protoICMP, Answer{}, false},
	} {
		to := there
		if x.v6 {
			to = there6
		}
		if a, ok := heard(x.b, x.v6, x.from, to, id, x.protocol, port); ok != x.ok || ok && a != x.want {
			t.Errorf("%s: %+v, %v", what, a, ok)
		}
	}
}

// FuzzHeard: whatever comes in by ICMP is judged or passed over.
func FuzzHeard(f *testing.F) {
	to := netip.MustParseAddr("192.0.2.9")
	f.Add(unreachable(3, 3, [4]byte{}, ipPacket(protoUDP, to, to, make([]byte, 8))), false)
	f.Add(unreachable(2, 0, [4]byte{}, make([]byte, 48)), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		at := to
		if v6 {
			at = netip.MustParseAddr("2001:db8::9")
		}
		for _, protocol := range []byte{protoICMP, protoUDP, protoIPIP, protoICMP6} {
			if a, ok := heard(b, v6, at, at, 7, protocol, 9); ok && a.Reply == Silent {
				t.Errorf("%x is silence", b)
			}
		}
		arpOwner(b, to)
		_, _ = procAddr(string(b))
		parseINI(string(b))
		_, _ = pluginTypes(string(b))
	})
}

// TestSkew: clocks are compared across midnight too.
func TestSkew(t *testing.T) {
	const day = 24 * 60 * 60 * 1000
	for _, x := range []struct {
		sent, received, back, now int64
		want                      time.Duration
	}{
		{1000, 1005, 1005, 1010, 0},
		{1000, 91005, 91005, 1010, 90 * time.Second},
		{day - 5, 2, 2, 10, 0}, // midnight came on the way
		{10, day - 4990, day - 4990, 10, -5 * time.Second},
	} {
		if got := skew(x.sent, x.received, x.back, x.now); (got - x.want).Abs() > 5*time.Millisecond {
			t.Errorf("%+v: %s", x, got)
		}
	}
}

// TestARP: who has an address, and nobody else's answers.
func TestARP(t *testing.T) {
	mac, addr := net.HardwareAddr{2, 0, 0, 0, 0, 1}, netip.MustParseAddr("192.0.2.1")
	request := arpRequest(mac, addr)
	if arpOwner(request, addr) != nil {
		t.Error("a question is no answer")
	}
	answer := append([]byte{}, request...)
	answer[21] = 2
	copy(answer[28:], addr.AsSlice())
	if got := arpOwner(answer, addr); got.String() != mac.String() {
		t.Errorf("%s", got)
	}
	if arpOwner(answer, addr.Next()) != nil || arpOwner(answer[:41], addr) != nil {
		t.Error("an answer about another address, and half of one")
	}
}

// TestProcAddr reads addresses as proc_pid_net(5) has them.
func TestProcAddr(t *testing.T) {
	for text, want := range map[string]string{"0100007F:00B3": "127.0.0.1:179", "00000000000000000000000000000000:12B5": "[::]:4789", "0000000000000000FFFF00000100007F:0050": "127.0.0.1:80"} {
		if got, err := procAddr(text); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"local_address", "", "7F:1", "0100007F", "0100007F:10000"} {
		if got, err := procAddr(text); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}
