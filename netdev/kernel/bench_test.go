package kernel

import (
	"errors"
	"fmt"
	"testing"

	"netctl/netdev"
)

// BenchmarkWire is the whole of an attach's netlink work: Create and Up.
func BenchmarkWire(b *testing.B) {
	h := newHost(b)
	if _, err := h.Forwarding4(); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		inside := newNetns(b)
		link := netdev.LinkName("nc", fmt.Sprint(i))
		b.StartTimer()
		if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: link, Addresses: addrs("10.0.0.1")}); err != nil {
			b.Fatal(err)
		}
		if err := h.Up(link); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := errors.Join(h.Detach(link, 0), h.retire.flush()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkDetach is what a detach costs until the link is out of service.
func BenchmarkDetach(b *testing.B) {
	h, inside := newHost(b), newNetns(b)
	for b.Loop() {
		b.StopTimer()
		if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1")}); err != nil {
			b.Fatal(err)
		}
		if err := h.Up("nc0"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := h.Detach("nc0", 0); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := h.retire.flush(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
