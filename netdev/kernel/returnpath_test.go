package kernel

import (
	"slices"
	"testing"
)

// TestReturnPath: a strict rp_filter costs the links of endpoints nothing, whose sender is
// behind them; packets that come by another way than they would be answered by are counted,
// and the settings found that are strict.
func TestReturnPath(t *testing.T) {
	h, inside, _ := wired(t)
	read := func(strict ...string) uint64 {
		t.Helper()
		p, err := h.ReturnPath("gone", "lo", "nc0")
		if err != nil || !slices.Equal(p.Strict, strict) {
			t.Fatalf("ReturnPath: %+v, %v; want strict %v", p, err, strict)
		}
		return p.Dropped
	}
	set := func(of, to string) {
		run(t, h.ns, "sh", "-ec", "echo "+to+" > /proc/sys/net/ipv4/conf/"+of+"/rp_filter")
	}
	for _, of := range []string{"all", "lo", "nc0"} { // a namespace inherits them
		set(of, "0")
	}
	set("nc0", "1")
	flows(t, h, inside)
	before := read("nc0")
	run(t, h.ns, "sh", "-ec", "ip link add d0 type bridge; ip link set d0 up; ip route replace 10.0.0.48 dev d0")
	if _, err := try(inside, "ping", "-n", "-c1", "-W1", "192.0.2.1"); err == nil {
		t.Error("the packet passed")
	}
	if now := read("nc0"); now <= before {
		t.Errorf("dropped %d packets, before %d", now, before)
	}
	set("all", "1")
	read("all")
	set("all", "2")
	read()
	route(t, h)
	flows(t, h, inside)
}
