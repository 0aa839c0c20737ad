package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

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
		if rate, burst := flowLimit(set, 4096); rate != want[0] || burst != want[1] {
			t.Errorf("flowLimit(%d) is %d, %d", set, rate, burst)
		}
	}
	for most, want := range map[int][2]uint32{0: {1024, 16384}, 1 << 16: {256, 4096}, 64: {10, 160}} {
		if rate, burst := flowLimit(0, most); rate != want[0] || burst != want[1] {
			t.Errorf("flowLimit(0, %d) is %d, %d", most, rate, burst)
		}
	}
}

// TestFlowsFollowTheTable: the kernel's table of connections comes after the agent, and
// changes; the rules in the kernel go by it.
func TestFlowsFollowTheTable(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.ready()
	w.until(func() string { // those of the time before the start
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.cuts) == 0 {
			return "not judged yet"
		}
		w.cuts = nil
		return ""
	})
	for _, most := range []int{1 << 22, 1 << 16} {
		r := &room{loop: w.a.loop, kernel: w.links, tracked: func() (int, int, error) { return 1, most, nil }, refused: map[string]uint64{}}
		w.until(func() string { // the agent looks too, and finds another size
			if err := r.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			return lacks(w.nft.String(), fmt.Sprintf("flows_%d_%d", most/256, most/16))
		})
	}
	w.settled()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.cuts) > 0 {
		t.Errorf("flows were judged %d times: the rules were right all the time", len(w.cuts))
	}
}

// TestReturnPath: that the kernel drops packets for the way back to their senders is said
// while a filter is strict that other nodes' packets come by, and no longer.
func TestReturnPath(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.ready()
	r := &room{loop: w.a.loop, kernel: w.links, tracked: func() (int, int, error) { return 0, 0, nil }, refused: map[string]uint64{}}
	for _, c := range []struct {
		dropped uint64
		strict  string
		want    string
	}{
		{7, "eth1", ""}, // before the agent
		{10, "eth9", ""},
		{11, "eth1", "dropped 1 packets since"},
		{13, "eth1", "dropped 3 packets since it would answer their senders by another interface (rp_filter is strict): if other nodes or endpoints sent them, `sysctl -w net.ipv4.conf.eth1.rp_filter=2`"},
		{13, "all", "net.ipv4.conf.all.rp_filter=2"},
		{13, "", ""},
	} {
		w.links.SetReturnPath(kernel.ReturnPath{Dropped: c.dropped, Strict: []string{c.strict}})
		if err := r.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := strings.Join(w.status().Problems, "; ")
		if (c.want == "") != (p == "") || !strings.Contains(p, c.want) {
			t.Errorf("with %+v: %q", c, p)
		}
	}
	var path returnPath
	now := time.Now()
	path.seen(kernel.ReturnPath{Dropped: 1}, now)
	strict := kernel.ReturnPath{Dropped: 2, Strict: []string{"eth1"}}
	if path.seen(strict, now) == "" || path.seen(strict, now.Add(pathRest-1)) == "" || path.seen(strict, now.Add(pathRest)) != "" {
		t.Error("it is not said for as long after the last packet")
	}
}
