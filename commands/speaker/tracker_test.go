package speaker

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netctl/routing"
	"netctl/routing/fib"
)

// TestNextHopBehindEndpoint: what an endpoint's link reaches is no next hop, and
// that is found out again when the kernel's routes change.
func TestNextHopBehindEndpoint(t *testing.T) {
	kernel := fib.NewFake()
	kernel.Put(2, connected("192.168.99.0/24", "eth1"))
	endpoint := connected("172.30.0.5/32", "nc0123456789a")
	kernel.Put(87, endpoint)
	tracker := newTracker(t.Context(), kernel.Table(88), ours, quiet())
	l := &loop{speaker: &speaker{own: kernel.Table(88), nextHops: tracker}}
	l.plan.Pools = []routing.Pool{{CIDR: netip.MustParsePrefix("10.65.0.0/16"), BlockSize: 26}}
	l.believe()
	expect := func(hop, want string) {
		t.Helper()
		_, got := l.imports(netip.Addr{}, netip.MustParsePrefix("10.65.1.0/26"), netip.MustParseAddr(hop))
		if got != want {
			t.Errorf("next hop %s: %q, want %q", hop, got, want)
		}
	}
	expect("192.168.99.103", "")
	expect("172.16.0.1", "") // unreachable: the installer's to say
	expect("10.65.0.5", "its next hop 10.65.0.5 is inside pool 10.65.0.0/16")
	expect("172.30.0.5", "its next hop 172.30.0.5 is behind the endpoint interface nc0123456789a")
	if moved, behind := tracker.recheck(nil, true); moved || behind {
		t.Error("nothing changed")
	}
	kernel.Remove(endpoint)
	kernel.Put(87, connected("192.168.99.103/32", "nc0123456789b"))
	if moved, _ := tracker.recheck([]netip.Prefix{netip.MustParsePrefix("172.16.0.0/24"), netip.MustParsePrefix("10.0.0.0/8")}, false); moved {
		t.Error("next hops outside of the prefixes are asked for")
	}
	changed := []netip.Prefix{netip.MustParsePrefix("172.30.0.5/32"), netip.MustParsePrefix("192.168.99.103/32")}
	if moved, behind := tracker.recheck(changed, false); !moved || !behind {
		t.Error("the change is not seen")
	}
	expect("172.30.0.5", "")
	expect("192.168.99.103", "its next hop 192.168.99.103 is behind the endpoint interface nc0123456789b")

	for i := len(tracker.via); i < mostTracked; i++ {
		tracker.via[netip.AddrFrom4([4]byte{172, 31, byte(i >> 8), byte(i)})] = reach{}
	}
	expect("192.168.99.104", fmt.Sprintf("there are more than %d next hops", mostTracked))
	if moved, behind := tracker.recheck(nil, true); !moved || !behind {
		t.Error("a full memory is not emptied")
	}
	expect("192.168.99.104", "")
}

func ours(link string) bool { return strings.HasPrefix(link, "nc") }
