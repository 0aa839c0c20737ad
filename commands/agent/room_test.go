package agent

import (
	"strings"
	"testing"

	"netctl/netdev/kernel"
)

func TestNearlyFull(t *testing.T) {
	table := func(entries int) kernel.NeighbourTable {
		return kernel.NeighbourTable{Name: "ndisc_cache", Entries: entries, Most: 1000}
	}
	for _, c := range []struct{ got, want string }{
		{neighbourProblem(table(799), false), ""},
		{neighbourProblem(table(800), false), "nearly full (800 of 1000): raise net.ipv6.neigh.default.gc_thresh3"},
		{neighbourProblem(table(10), true), "is full, and the node may reach nobody new: raise net.ipv6.neigh.default.gc_thresh3, which is 1000"},
		{trackingProblem(0, 0), ""},
		{trackingProblem(799, 1000), ""},
		{trackingProblem(800, 1000), "nearly full (800 of 1000): raise net.netfilter.nf_conntrack_max"},
	} {
		if (c.want == "") != (c.got == "") || !strings.Contains(c.got, c.want) {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
	for set, want := range map[int][2]uint32{100: {100, 1600}} {
		if rate, burst := flowLimit(set); rate != want[0] || burst != want[1] {
			t.Errorf("flowLimit(%d) is %d, %d", set, rate, burst)
		}
	}
	if rate, burst := flowLimit(0); rate == 0 || burst < rate {
		t.Errorf("flowLimit(0) is %d, %d", rate, burst)
	}
}
