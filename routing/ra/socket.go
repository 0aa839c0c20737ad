package ra

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// ICMPv6 types (RFC 4861, section 4).
const (
	solicitation  = 133
	advertisement = 134
)

// hopLimit is what a message of neighbour discovery must have left: no router forwarded
// it (RFC 4861, section 6.1).
const hopLimit = 255

// socket sends and receives on one link.
type socket struct {
	file  *os.File
	raw   syscall.RawConn
	index int
	local netip.Addr
}

// open opens a link's socket; local is its link-local address.
func open(index int, local netip.Addr) (*socket, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, fmt.Errorf("open an ICMPv6 socket: %w", err)
	}
	s := &socket{file: os.NewFile(uintptr(fd), "icmpv6"), index: index, local: local}
	if s.raw, err = s.file.SyscallConn(); err == nil {
		err = s.prepare(fd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up an ICMPv6 socket: %w", err), s.file.Close())
	}
	return s, nil
}

func (s *socket) prepare(fd int) error {
	var filter unix.ICMPv6Filter // a bit that is set blocks a type (RFC 3542, section 3.2)
	for i := range filter.Data {
		filter.Data[i] = 1<<32 - 1
	}
	for _, kind := range []int{solicitation, advertisement} {
		filter.Data[kind/32] &^= 1 << (kind % 32)
	}
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, s.index)
	for _, o := range []struct{ name, value int }{
		{unix.IPV6_MULTICAST_IF, s.index}, {unix.IPV6_MULTICAST_LOOP, 0}, {unix.IPV6_MULTICAST_HOPS, hopLimit}, {unix.IPV6_UNICAST_HOPS, hopLimit},
		{unix.IPV6_RECVHOPLIMIT, 1},
	} {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o.name, o.value)
		}
	}
	if err == nil {
		err = unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter)
	}
	if err == nil { // solicitations go to all routers (RFC 4861, section 4.1)
		err = unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: allRouters(), Interface: uint32(s.index)})
	}
	return err
}

func (s *socket) close() { _ = s.file.Close() }

func allNodes() [16]byte   { return netip.MustParseAddr("ff02::1").As16() }
func allRouters() [16]byte { return netip.MustParseAddr("ff02::2").As16() }

// advertise says that this host is here, and nobody's default router: the router lifetime
// is 0 (RFC 4861, section 4.2). The kernel fills in the checksum.
func (s *socket) advertise() error {
	return s.write(allNodes(), append([]byte{advertisement}, make([]byte, 15)...))
}

// solicit asks the neighbour for an advertisement.
func (s *socket) solicit() error {
	return s.write(allRouters(), append([]byte{solicitation}, make([]byte, 7)...))
}

func (s *socket) write(to [16]byte, b []byte) error {
	control := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: s.local.As16(), Ifindex: uint32(s.index)})
	var failed error
	err := s.raw.Write(func(fd uintptr) bool {
		failed = unix.Sendmsg(int(fd), b, control, &unix.SockaddrInet6{Addr: to, ZoneId: uint32(s.index)}, 0)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	return errors.Join(err, failed)
}

// run reads until ctx ends or the socket is closed.
func (s *socket) run(ctx context.Context, out chan<- heard) {
	b, control := make([]byte, 1<<11), make([]byte, 256)
	for {
		var n, controls int
		var from unix.Sockaddr
		var failed error
		if err := s.raw.Read(func(fd uintptr) bool {
			n, controls, _, from, failed = unix.Recvmsg(int(fd), b, control, 0)
			return failed != unix.EAGAIN && failed != unix.EINTR
		}); err != nil || ctx.Err() != nil {
			return
		}
		there, ok := from.(*unix.SockaddrInet6)
		if failed != nil || !ok {
			continue // the link went down, which others say
		}
		h := heard{socket: s, from: netip.AddrFrom16(there.Addr)}
		if h.asks, ok = read(b[:n], hops(control[:controls]), h.from); !ok || h.from == s.local {
			continue
		}
		select {
		case out <- h:
		case <-ctx.Done():
			return
		}
	}
}

// read checks a message (RFC 4861, sections 6.1.1 and 6.1.2) and says which of the two it
// is. Who asks may have no address yet.
func read(b []byte, hops int, from netip.Addr) (asks, ok bool) {
	switch {
	case len(b) < 8 || hops != hopLimit || b[1] != 0:
		return false, false
	case b[0] == solicitation:
		return true, from.IsLinkLocalUnicast() || from.IsUnspecified()
	}
	return false, b[0] == advertisement && len(b) >= 16 && from.IsLinkLocalUnicast()
}

// hops is the hop limit that a message came with; -1: it is not known.
func hops(control []byte) int {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return -1
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(m.Data)))
		}
	}
	return -1
}
