package kernel

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev"
)

// seconds is how long it takes to send so many bytes from one namespace to an address in
// another, there and received.
func seconds(t *testing.T, from, to int, at netip.Addr, bytes int) float64 {
	t.Helper()
	var l net.Listener
	var c net.Conn
	if err := inNetns(to, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(at, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			received <- 0
			return
		}
		n, _ := io.Copy(io.Discard, c)
		received <- n
	}()
	if err := inNetns(from, func() (err error) {
		c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial("tcp", l.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := c.Write(make([]byte, bytes)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if n := <-received; n != int64(bytes) {
		t.Fatalf("%d bytes arrived, not %d", n, bytes)
	}
	return time.Since(began).Seconds()
}

// TestBandwidth: a rate is held in its direction and, where it is zero, nothing is there;
// it is found missing, put back, changed in place, and goes with the link.
func TestBandwidth(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	rate := datastore.Rate{Bits: 8e6, Burst: 8 * 32 << 10} // a megabyte a second
	w := Wire{
		Netns: inside, Interface: "eth0", Link: "nc0123456789a", Addresses: addrs("10.0.0.1"),
		Bandwidth: datastore.Bandwidth{Egress: rate},
	}
	made, err := h.Create(w)
	if err != nil {
		t.Fatal(err)
	}
	w.Index = made.Index
	if err := h.Up(w.Link); err != nil {
		t.Fatal(err)
	}
	run(t, h.ns, "ip", "link", "set", "lo", "up")
	run(t, h.ns, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	run(t, h.ns, "ip", "route", "add", "10.0.0.1", "dev", w.Link, "src", "192.0.2.1")
	host, workload := netip.MustParseAddr("192.0.2.1"), w.Addresses[0]
	shaper := netdev.ShaperName(w.Link)
	const size, least = 400_000, 0.3 // 0.4 s at the rate, less the burst
	if s := seconds(t, inside, h.ns, host, size); s < least {
		t.Errorf("what the workload sends is not held: %.3f s", s)
	}
	if out := run(t, h.ns, "tc", "qdisc", "show", "dev", w.Link); strings.Contains(out, "tbf") {
		t.Errorf("what it is sent is held too: %s", out)
	}
	if err := h.Check(w); err != nil {
		t.Error(err)
	}

	// The other direction too, and another rate in this one.
	w.Bandwidth.Ingress, w.Bandwidth.Egress.Bits = rate, 16e6
	for i, want := range []int{2, 0} {
		if differed, err := h.Hold(w, false); err != nil || len(differed) != want {
			t.Errorf("hold %d: %q, %v", i, differed, err)
		}
	}
	contains(t, run(t, h.ns, "tc", "qdisc", "show"), "dev "+w.Link+" root refcnt", "rate 8Mbit", "rate 16Mbit", "ingress ffff:")
	if s := seconds(t, h.ns, inside, workload, size); s < least {
		t.Errorf("what the workload is sent is not held: %.3f s", s)
	}

	// What somebody takes away is told and put back.
	for _, args := range [][]string{
		{"tc", "qdisc", "del", "dev", w.Link, "root"}, {"tc", "qdisc", "del", "dev", w.Link, "ingress"},
		{"tc", "qdisc", "del", "dev", shaper, "root"}, {"ip", "link", "set", shaper, "down"}, {"ip", "link", "del", shaper},
	} {
		run(t, h.ns, args...)
		if err := h.Check(w); err == nil {
			t.Errorf("%v: not told", args)
		}
		if differed, err := h.Hold(w, false); err != nil || len(differed) == 0 {
			t.Errorf("%v: hold: %q, %v", args, differed, err)
		}
		if err := h.Check(w); err != nil {
			t.Errorf("%v: after hold: %v", args, err)
		}
	}

	// Taken away while it runs, nothing is left; what another put there stays.
	none := w
	none.Bandwidth = datastore.Bandwidth{}
	if differed, err := h.Hold(none, false); err != nil || len(differed) != 2 {
		t.Errorf("hold without: %q, %v", differed, err)
	}
	if err := h.retire.flush(); err != nil {
		t.Error(err)
	}
	if out := run(t, h.ns, "tc", "qdisc", "show"); strings.Contains(out, "tbf") || strings.Contains(out, "ingress") {
		t.Errorf("left: %s", out)
	}
	run(t, h.ns, "tc", "qdisc", "add", "dev", w.Link, "root", "handle", "1:", "tbf", "rate", "1mbit", "burst", "10kb", "latency", "1s")
	if err := h.Check(none); err != nil {
		t.Error(err)
	}
	if differed, err := h.Hold(w, false); err != nil || len(differed) == 0 {
		t.Errorf("hold: %q, %v", differed, err)
	}

	// It goes with the link, also where that went by itself.
	if err := h.Detach(w.Link, w.Index); err != nil {
		t.Error(err)
	}
	if err := h.retire.flush(); err != nil {
		t.Error(err)
	}
	if names := h.names(t); len(names) != 1 {
		t.Errorf("left: %v", names)
	}
	again := w
	again.Index = 0
	if _, err := h.Create(again); err != nil {
		t.Fatal(err)
	}
	run(t, h.ns, "ip", "link", "del", w.Link)
	if len(h.names(t)) != 2 {
		t.Fatal("the device went with the link: the test tests nothing")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	until(t, "device of a link that is gone goes", func() bool { return len(h.names(t)) == 1 })
	cancel()
	<-ended
}

// names are the names of the host's links.
func (h *host) names(t *testing.T) (names []string) {
	t.Helper()
	all, err := h.links()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		names = append(names, l.Name)
	}
	return names
}

// TestBandwidthUndone: an attach that fails leaves no device.
func TestBandwidthUndone(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	run(t, h.ns, "ip", "link", "add", netdev.ShaperName("nc0123456789a"), "type", "veth", "peer", "name", "other")
	w := Wire{
		Netns: inside, Interface: "eth0", Link: "nc0123456789a", Addresses: addrs("10.0.0.1"),
		Bandwidth: datastore.Bandwidth{Egress: datastore.Rate{Bits: 1e6}},
	}
	if _, err := h.Create(w); err == nil || !strings.Contains(err.Error(), netdev.ShaperName(w.Link)) {
		t.Errorf("error %v", err)
	}
	if out := run(t, h.ns, "ip", "-o", "link"); strings.Contains(out, w.Link) {
		t.Errorf("left: %s", out)
	}
}
