package kernel

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/datastore"
)

func tapWire() Wire {
	return Wire{Interface: "eth0", Link: "nc0", MAC: "02:00:00:00:00:01", MTU: 1400, Addresses: addrs("10.0.0.48", "fd00::48"), Tap: datastore.Tap{Name: "vm1", Owner: 64055}}
}

// openTap opens the TAP as the program of a virtual machine does, by a name that it has.
func openTap(t *testing.T, ns int, name string, flags uint16) int {
	t.Helper()
	fd := -1
	err := inNetns(ns, func() (err error) {
		if fd, err = unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | flags)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	})
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// TestTap: a TAP is what an attach makes of a link, down until Up, stays when nobody has it
// open, is opened by its name, and is held as other links are.
func TestTap(t *testing.T) {
	h := newHost(t)
	w := tapWire()
	made, err := h.Create(w)
	if err != nil {
		t.Fatal(err)
	}
	if made.MAC != w.MAC {
		t.Errorf("mac %s", made.MAC)
	}
	shown := run(t, h.ns, "ip", "-d", "link", "show", "dev", "nc0")
	for _, want := range []string{"altname vm1", "ee:ee:ee:ee:ee:ee", "mtu 1400", "group 28259", "tun type tap", "user 64055", "persist on", "state DOWN"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	if err := h.Up("nc0"); err != nil {
		t.Fatal(err)
	}
	w.Index, w.HostMTU = made.Index, w.MTU
	carrier := func() bool {
		list, err := h.Links()
		if err != nil || len(list) != 1 || list[0].Altered || !list[0].Up {
			t.Fatalf("links %+v, %v", list, err)
		}
		return list[0].Carrier
	}
	if differed, err := h.Hold(w, true); err != nil || len(differed) > 0 || carrier() {
		t.Errorf("before anybody opens it: %q, %v, carrier %t", differed, err, carrier())
	}
	fd := openTap(t, h.ns, "vm1", unix.IFF_VNET_HDR)
	if differed, err := h.Hold(w, true); err != nil || len(differed) > 0 || !carrier() {
		t.Errorf("open: %q, %v, carrier %t", differed, err, carrier())
	}
	_ = unix.Close(fd)
	if differed, err := h.Hold(w, true); err != nil || len(differed) > 0 || carrier() {
		t.Errorf("closed again: %q, %v, carrier %t", differed, err, carrier())
	}
	run(t, h.ns, "sh", "-ec", "ip link property del dev nc0 altname vm1; ip neigh del 10.0.0.48 dev nc0; ip link set nc0 mtu 1300 group 0")
	differed, err := h.Hold(w, true)
	if text := strings.Join(differed, "; "); err != nil || !strings.Contains(text, "the name vm1 is missing") || !strings.Contains(text, "neighbour") || !strings.Contains(text, "mtu") || !strings.Contains(text, "group") {
		t.Errorf("spoilt: %q, %v", differed, err)
	}
	if err := h.Resize(w, Place{}, 1280); err != nil {
		t.Error(err)
	}
	if err := h.Detach("nc0", made.Index); err != nil {
		t.Fatal(err)
	}
	w = tapWire()
	if _, err := h.Create(w); err != nil {
		t.Errorf("the same again right after its detach: %v", err)
	}
}

// TestTapRefused: of a TAP that cannot be made nothing is left, and what was there stays.
func TestTapRefused(t *testing.T) {
	h := newHost(t)
	run(t, h.ns, "ip", "tuntap", "add", "vm1", "mode", "tap")
	if _, err := h.Create(tapWire()); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("name of another interface: %v", err)
	}
	if out := run(t, h.ns, "ip", "-o", "link"); strings.Contains(out, "nc0") || !strings.Contains(out, "vm1") {
		t.Errorf("left:\n%s", out)
	}
	run(t, h.ns, "sh", "-ec", "ip link del vm1; ip tuntap add nc0 mode tap")
	if _, err := h.Create(tapWire()); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("link of another: %v", err)
	}
	run(t, h.ns, "ip", "link", "show", "dev", "nc0")
	for _, tap := range []datastore.Tap{{Name: "a/b"}, {Name: "nc0"}, {Name: strings.Repeat("x", 16)}} {
		w := tapWire()
		w.Tap = tap
		if _, err := h.Create(w); !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("%+v: %v", tap, err)
		}
	}
}

// TestTapQueues: a program that opens several queues gets them, and who is neither owner
// nor of the group gets nothing.
func TestTapQueues(t *testing.T) {
	h := newHost(t)
	w := tapWire()
	w.Tap = datastore.Tap{Name: "vm1", Group: 1234, MultiQueue: true}
	if _, err := h.Create(w); err != nil {
		t.Fatal(err)
	}
	openTap(t, h.ns, "vm1", unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE)
	openTap(t, h.ns, "nc0", unix.IFF_VNET_HDR|unix.IFF_MULTI_QUEUE)
	shown := run(t, h.ns, "ip", "-d", "link", "show", "dev", "vm1")
	if strings.Contains(shown, "user ") || !strings.Contains(shown, "group 1234") || !strings.Contains(shown, "multi_queue numqueues 2") {
		t.Errorf("%s", shown)
	}
}
