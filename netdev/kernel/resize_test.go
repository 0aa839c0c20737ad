package kernel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/datastore"
)

// placeOf is where a test's namespace is found.
func placeOf(t *testing.T, ns int) Place {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil {
		t.Fatal(err)
	}
	return Place{Path: fmt.Sprintf("/proc/self/fd/%d", ns), Dev: st.Dev, Ino: st.Ino}
}

// sizes waits for the MTU of both sides.
func sizes(t *testing.T, h *host, inside, outer, inner int) {
	t.Helper()
	contains(t, run(t, h.ns, "ip", "link", "show", "nc0"), fmt.Sprintf(" mtu %d ", outer))
	contains(t, run(t, inside, "ip", "link", "show", "eth0"), fmt.Sprintf(" mtu %d ", inner))
}

// TestResize: both sides of a running wire get another MTU and packets of the old size,
// with a route that says the new one, go on both ways meanwhile.
func TestResize(t *testing.T) {
	h, inside, w := wired(t)
	at := placeOf(t, inside)
	for _, mtu := range []int{1300, 1500, 1300} {
		if err := h.Resize(w, at, mtu); err != nil {
			t.Fatal(err)
		}
		sizes(t, h, inside, mtu, mtu)
		flows(t, h, inside)
		data := fmt.Sprint(mtu - 28)
		run(t, inside, "ping", "-n", "-c1", "-W5", "-M", "do", "-s", data, "192.0.2.1")
		run(t, h.ns, "ping", "-n", "-c1", "-W5", "-M", "do", "-s", data, "10.0.0.48")
		w.HostMTU = mtu
		if differed, err := h.Hold(w, false); err != nil || len(differed) > 0 {
			t.Errorf("held: %q, %v", differed, err)
		}
	}
	// What the workload chose stays where it fits.
	run(t, inside, "ip", "link", "set", "eth0", "mtu", "1290")
	if err := h.Resize(w, at, 1400); err != nil {
		t.Fatal(err)
	}
	sizes(t, h, inside, 1400, 1290)
	run(t, inside, "ip", "link", "set", "eth0", "name", "lan0", "mtu", "1400")
	if err := h.Resize(w, at, 1350); err != nil {
		t.Fatalf("by another name: %v", err)
	}
	contains(t, run(t, inside, "ip", "link", "show", "lan0"), " mtu 1350 ")
}

// TestResizeRefused: where the workload's side cannot be reached, or IPv6 would go with
// it, both sides stay.
func TestResizeRefused(t *testing.T) {
	h, inside, w := wired(t)
	other := placeOf(t, newNetns(t))
	same := placeOf(t, inside)
	for name, at := range map[string]Place{
		"no path": {}, "another namespace": other, "one that took its path": {same.Path, other.Dev, other.Ino}, "gone": {"/run/netns/none", same.Dev, same.Ino},
	} {
		if err := h.Resize(w, at, 1300); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "mtu of nc0: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.Resize(w, same, 1279); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("too small for IPv6: %v", err)
	}
	sizes(t, h, inside, 1400, 1400)
}
