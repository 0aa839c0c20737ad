package agent

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// pace is how many frames are sent within a millisecond. Each CPU's queue of received
// packets (net.core.netdev_max_backlog, 1000) is one for all virtual interfaces, those
// to the lab's other hosts too: a flood that outruns the CPU would have it overflow.
const pace = 100

// frames sends n frames from a container's interface, as a process with CAP_NET_RAW
// can. payload appends one frame's, behind the Ethernet header.
func frames(c *netlab.Container, n int, eth uint16, payload func(b []byte, mac net.HardwareAddr, rnd *rand.Rand) []byte) error {
	var link *net.Interface
	fd := -1
	err := c.Do(func() (err error) { // opens only: a host has one thread
		if link, err = net.InterfaceByName("eth0"); err == nil {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		}
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to, rnd := &unix.SockaddrLinklayer{Ifindex: link.Index}, rand.New(rand.NewPCG(1, 2))
	head := append([]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, link.HardwareAddr...)
	head = binary.BigEndian.AppendUint16(head, eth)
	buffer := make([]byte, 0, 256)
	for i := range n {
		if i%pace == 0 {
			<-time.After(time.Millisecond)
		}
		frame := payload(append(buffer, head...), link.HardwareAddr, rnd)
		err := unix.Sendto(fd, frame, 0, to)
		for errors.Is(err, unix.ENOBUFS) {
			err = unix.Sendto(fd, frame, 0, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ip4 appends an IPv4 packet; checksums of what is above are left out.
func ip4(b []byte, src, dst netip.Addr, protocol byte, fragment uint16, body ...byte) []byte {
	at := len(b)
	b = append(b, 0x45, 0, 0, byte(20+len(body)), 0, 7, byte(fragment>>8), byte(fragment), 64, protocol, 0, 0)
	b = append(append(b, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(b[at+10:], netlab.Checksum(b[at:]))
	return append(b, body...)
}

// flooded has one container send (NETCTL_FLOOD frames; `make test-all` sets 600,000) floods of every kind while the node, another
// container and their neighbours, which are forgotten all the time, are pinged and
// new connections are made: none is lost to the floods.
func flooded(t *testing.T, s *site, bad, good *netlab.Container, own, allowed, denied netip.Addr) {
	n := 60_000
	if text := os.Getenv("NETCTL_FLOOD"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	neighbour := s.lab.Hosts[1]
	far := neighbour.Addr.Addr()
	netlab.Must(t, neighbour, "ip", "route", "replace", "10.0.0.0/24", "via", s.node.Addr.Addr().String())
	udp := func(b []byte, rnd *rand.Rand, dst netip.Addr) []byte {
		port := rnd.Uint32()
		return ip4(b, own, dst, unix.IPPROTO_UDP, 0, byte(port>>8), byte(port), byte(port>>16), byte(port>>24), 0, 8, 0, 0)
	}
	for _, f := range []struct {
		what    string
		n       int
		eth     uint16
		payload func(b []byte, mac net.HardwareAddr, rnd *rand.Rand) []byte
	}{
		{"ARP", n, unix.ETH_P_ARP, func(b []byte, mac net.HardwareAddr, rnd *rand.Rand) []byte {
			b = append(append(b, 0, 1, 8, 0, 6, 4, 0, 1), mac...)
			return append(binary.BigEndian.AppendUint32(b, rnd.Uint32()), 0, 0, 0, 0, 0, 0, 169, 254, 1, 1)
		}},
		{"neighbour solicitations", n, unix.ETH_P_IPV6, func(b []byte, mac net.HardwareAddr, rnd *rand.Rand) []byte {
			target := netip.MustParseAddr("fe80::ecee:eeff:feee:eeee").AsSlice()
			src := binary.BigEndian.AppendUint64([]byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0}, rnd.Uint64())
			body := append(append(append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target...), 1, 1), mac...)
			pseudo := append(append(append([]byte{}, src...), target...), 0, 0, 0, byte(len(body)), 0, 0, 0, 58)
			binary.BigEndian.PutUint16(body[2:], netlab.Checksum(append(pseudo, body...)))
			b = append(append(append(b, 0x60, 0, 0, 0, 0, byte(len(body)), 58, 255), src...), target...)
			return append(b, body...)
		}},
		{"new flows", n, unix.ETH_P_IP, func(b []byte, _ net.HardwareAddr, rnd *rand.Rand) []byte { return udp(b, rnd, allowed) }},
		{"denied packets", n / 3, unix.ETH_P_IP, func(b []byte, _ net.HardwareAddr, rnd *rand.Rand) []byte { return udp(b, rnd, denied) }},
		{"packets to strangers", n / 3, unix.ETH_P_IP, func(b []byte, _ net.HardwareAddr, rnd *rand.Rand) []byte {
			a := far.As4()
			return udp(b, rnd, netip.AddrFrom4([4]byte{a[0], a[1], a[2], byte(110 + rnd.IntN(140))}))
		}},
		{"echoes to the host", n / 3, unix.ETH_P_IP, func(b []byte, _ net.HardwareAddr, rnd *rand.Rand) []byte {
			id := byte(rnd.Uint32())
			sum := netlab.Checksum([]byte{8, 0, 0, 0, 1, id, 0, 1})
			return ip4(b, own, s.node.Addr.Addr(), unix.IPPROTO_ICMP, 0, 8, 0, byte(sum>>8), byte(sum), 1, id, 0, 1)
		}},
		{"IGMP", n / 3, unix.ETH_P_IP, func(b []byte, _ net.HardwareAddr, rnd *rand.Rand) []byte {
			return ip4(b, own, netip.MustParseAddr("224.0.0.22"), unix.IPPROTO_IGMP, 0, 0x16, 0, 0, 0, 239, 1, byte(rnd.Uint32()), byte(rnd.Uint32()))
		}},
		{"fragments", n / 3, unix.ETH_P_IP, func(b []byte, _ net.HardwareAddr, rnd *rand.Rand) []byte {
			at := len(b)
			b = ip4(b, own, allowed, unix.IPPROTO_UDP, 0x2000, make([]byte, 64)...)
			binary.BigEndian.PutUint16(b[at+4:], uint16(rnd.Uint32()))
			b[at+10], b[at+11] = 0, 0
			binary.BigEndian.PutUint16(b[at+10:], netlab.Checksum(b[at:at+20]))
			return b
		}},
	} {
		node, err := netlab.StartFlood(s.node, far, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		other, err := netlab.StartFlood(good, far, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		began := time.Now()
		go func() { done <- frames(bad, f.n, f.eth, f.payload) }()
		connections := 0
		for ended := false; !ended; {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				ended = true
			default:
			}
			netlab.Must(t, s.node, "ip", "neigh", "flush", "dev", "eth1", "nud", "reachable") // of others packets wait
			if out, err := netlab.Try(t, good, "ping", "-n", "-c", "2", "-i", "0.01", "-W", "5", far.String()); err != nil {
				t.Errorf("%s: a new flow of another container: %v\n%s", f.what, err, out)
			}
			connections++
		}
		t.Logf("%s: %d frames in %v, %d new flows of another container", f.what, f.n, time.Since(began).Round(time.Millisecond), connections)
		for from, r := range map[string]netlab.FloodResult{"node": node.Stop(), "other container": other.Stop()} {
			// The kernel drops a packet that holds a neighbour entry as somebody deletes
			// it (__neigh_event_send: dead), and this test deletes them all the time.
			if len(r.Lost) > r.Sent/100 || r.Sent == 0 {
				t.Errorf("%s: pings of the %s: %s", f.what, from, r)
			}
		}
		if st := s.status(); len(st.Problems) > 0 {
			t.Errorf("%s: %s", f.what, strings.Join(st.Problems, "; "))
		}
	}
}
