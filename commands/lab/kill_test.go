package lab

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestNodeKilled: no role outlives the `netctl node` that started it, however that
// ended; its successor finds nothing in the way.
func TestNodeKilled(t *testing.T) {
	l := forTest(t, Config{Nodes: 1})
	h := l.Hosts[0]
	for _, role := range []string{"datastore", "agent", "speaker"} {
		pid(t, h, role, 0)
	}
	top, err := h.Find("netctl")
	if err != nil || len(top) != 1 {
		t.Fatalf("netctl node: %v, %v", top, err)
	}
	if err := unix.Kill(top[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantNoRoles(t, h)
	if _, err := StartNode(h); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
}
