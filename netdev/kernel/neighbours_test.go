package kernel

import (
	"testing"
)

func TestNeighbours(t *testing.T) {
	h := newHost(t)
	list, err := h.Neighbours()
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, n := range list {
		if n.Name != "arp_cache" && n.Name != "ndisc_cache" || n.Most < 100 || n.Entries < 0 {
			t.Errorf("%+v", n)
		}
	}
}
