package kernel

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestSettle: a side that waits on the host is taken into a namespace by somebody else,
// and keeps to its own gateway there; what is left of it goes with DropRules.
func TestSettle(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	at := placeOf(t, inside)
	at.Dev, at.Ino = 0, 0
	w := Wire{Interface: "eth", Link: "nc0", Peer: "np0", Addresses: addrs("10.0.0.48", "fd80::48"), Gateway4: addrs("169.254.1.2")[0]}
	made, err := h.Create(w)
	if err != nil {
		t.Fatal(err)
	}
	w.Index, w.MAC = made.Index, made.MAC
	if err := h.Up("nc0"); err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, h.ns, "ip", "link", "show", "np0"), made.MAC)
	to := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("fd07::/64")}
	settle := func(want bool) {
		t.Helper()
		if settled, err := h.Settle(w, at, to); err != nil || settled != want {
			t.Fatalf("settled: %v, %v", settled, err)
		}
	}
	settle(false)
	before := run(t, inside, "ip", "rule") + run(t, inside, "ip", "-6", "rule")
	take(t, h, "np0", inside)
	settle(false) // it is down
	run(t, inside, "ip", "link", "set", "np0", "name", "eth3")
	run(t, inside, "ip", "addr", "add", "10.0.0.48/32", "dev", "eth3")
	run(t, inside, "ip", "link", "set", "eth3", "up")
	for range 2 {
		settle(true)
	}
	contains(t, run(t, inside, "ip", "rule"), "30000:	from 10.0.0.48 lookup", "30017:	from all to 10.7.0.0/16 lookup")
	contains(t, run(t, inside, "ip", "-6", "rule"), "30000:	from fd80::48 lookup", "30065:	from all to fd07::/64 lookup")
	contains(t, run(t, inside, "ip", "route", "get", "10.7.1.1"), "via 169.254.1.2 dev eth3")
	contains(t, run(t, inside, "ip", "neigh"), "169.254.1.2 dev eth3 lladdr ee:ee:ee:ee:ee:ee PERMANENT")
	if out := run(t, inside, "ip", "route"); strings.Contains(out, "default") {
		t.Errorf("the main table is not ours:\n%s", out)
	}
	if err := h.DropRules(at.Path, 0, 0, w.Addresses, to); err != nil {
		t.Fatal(err)
	}
	if now := run(t, inside, "ip", "rule") + run(t, inside, "ip", "-6", "rule"); now != before {
		t.Errorf("rules:\n%s\nbefore:\n%s", now, before)
	}
	if err := h.Detach("nc0", made.Index); err != nil {
		t.Fatal(err)
	}
	settled, err := h.Settle(w, at, to)
	if settled || err == nil {
		t.Errorf("of a link that is gone: %v, %v", settled, err)
	}
}

// take moves an interface of the host into a namespace, as Docker does.
func take(t *testing.T, h *host, link string, inside int) {
	t.Helper()
	l, err := linkByName(h.host, link)
	if err == nil {
		err = h.host.LinkSetNsFd(&netlink.Device{LinkAttrs: *l}, inside)
	}
	if err != nil {
		t.Fatal(err)
	}
}
