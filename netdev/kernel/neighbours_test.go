package kernel

import (
	"fmt"
	"testing"
)

func TestNeighbours(t *testing.T) {
	h := newHost(t)
	run(t, h.ns, "ip", "link", "add", "nb0", "type", "veth", "peer", "name", "nb1")
	run(t, h.ns, "ip", "link", "set", "nb0", "up")
	for i, state := range []string{"stale", "stale", "permanent"} {
		run(t, h.ns, "ip", "neigh", "add", fmt.Sprint("192.0.2.", i+1), "lladdr", "02:00:00:00:00:01", "dev", "nb0", "nud", state)
	}
	list, err := h.Neighbours()
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if list[0].Name == "arp_cache" && list[0].Entries != 2 || list[1].Name == "arp_cache" && list[1].Entries != 2 {
		t.Errorf("%+v: permanent entries have no bound", list)
	}
	for _, n := range list {
		if n.Name != "arp_cache" && n.Name != "ndisc_cache" || n.Most < 100 || n.Entries < 0 {
			t.Errorf("%+v", n)
		}
	}
}
