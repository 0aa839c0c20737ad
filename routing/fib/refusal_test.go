package fib

import (
	"net/netip"
	"testing"
	"time"

	"netctl/routing"
)

// Every route of a full batch is refused, with answers as long as they get: none
// is lost.
func TestRefusals(t *testing.T) {
	namespace(t)
	table := open(t, 88)
	var c routing.Changes
	for i := range batch {
		r := routing.Route{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x80, byte(i >> 8), byte(i)}), 64)}
		for h := range 16 {
			r.NextHops = append(r.NextHops, routing.NextHop{Addr: netip.AddrFrom16([16]byte{0xfd, 0x55, 15: byte(h + 1)}), Link: "va"})
		}
		c.Put = append(c.Put, r)
	}
	done := make(chan error, 1)
	go func() { done <- table.Apply(t.Context(), c) }()
	select {
	case <-done:
		if missing := table.Missing(); len(missing) != batch {
			t.Errorf("%d routes are missing", len(missing))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("answers were lost")
	}
}
