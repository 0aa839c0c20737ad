package kernel

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTheFirstPacketArrives: what a workload sends in the moment in which its link is
// up is not lost: nobody asks for a MAC before it, and the kernel's queue that
// switches a side on once the other is up has been waited for.
func TestTheFirstPacketArrives(t *testing.T) {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil || major < 6 || major == 6 && minor < 8 {
		t.Skip("kernels before 6.8 cannot be asked to work that queue off")
	}
	h := newHost(t)
	run(t, h.ns, "sh", "-ec", "ip link set lo up; ip addr add 192.0.2.1/32 dev lo")
	server, err := socketIn(h.ns)
	if err == nil {
		err = unix.Bind(server, &unix.SockaddrInet4{Port: 999, Addr: [4]byte{192, 0, 2, 1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(server)
	const times = 100
	lost := 0
	for range times {
		inside := newNetns(t)
		if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.48")}); err != nil {
			t.Fatal(err)
		}
		client, err := socketIn(inside)
		if err == nil {
			err = h.Up("nc0")
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendto(client, []byte("first"), 0, &unix.SockaddrInet4{Port: 999, Addr: [4]byte{192, 0, 2, 1}}); err != nil {
			t.Error(err)
		}
		if _, _, err := unix.Recvfrom(server, make([]byte, 16), 0); err != nil {
			lost++
		}
		_ = unix.Close(client)
		if err := h.Detach("nc0", 0); err != nil {
			t.Fatal(err)
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d first packets did not arrive", lost, times)
	}
}

// socketIn is a UDP socket in a namespace whose reads wait for a second.
func socketIn(ns int) (fd int, err error) {
	err = inNetns(ns, func() error {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(time.Second.Nanoseconds())
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait)
	})
	return fd, err
}
