package fib

import (
	"encoding/binary"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Ignore is what a Watch does not want to hear of. Routes are left out by the
// kernel itself, before they cost anything here.
type Ignore struct {
	// Foreign leaves out the routes of every other protocol. It is for a Table
	// that only reads: a route of its own that another program replaces is not
	// noticed.
	Foreign bool
	// Protocols are single protocols whose routes are left out.
	Protocols []int
	// Links begins the names of the links that are left out; "" is none.
	Links string
}

func (i Ignore) link(name string) bool { return i.Links != "" && strings.HasPrefix(name, i.Links) }

// foreign says whether a route of another protocol is news. Link-local and
// multicast prefixes are not: every link has them, and no next hop is looked up
// in them.
func foreign(p netip.Prefix) bool {
	return !p.Addr().IsLinkLocalUnicast() && !p.Addr().IsMulticast()
}

// Where the filter finds what it reads: struct nlmsghdr, then struct rtmsg
// (include/uapi/linux/netlink.h and rtnetlink.h).
const (
	offsetType     = 4 // nlmsg_type, 16 bits
	offsetPort     = 12
	offsetProtocol = unix.NLMSG_HDRLEN + 5 // rtm_protocol, 8 bits
)

// filter is a classic BPF program that drops notifications of routes which the
// socket with address port changed, and of those that are ignored. It sees the
// first message of a datagram; the kernel sends one for each route.
func filter(protocol uint8, port uint32, ignore Ignore) []unix.SockFilter {
	load := func(size uint16, at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | size | unix.BPF_ABS, K: at}
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	keep := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1}
	// unless skips the next instruction if what was loaded is k.
	unless := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: 1}
	}
	// when skips the next instruction if what was loaded is not k.
	when := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: 1}
	}
	program := []unix.SockFilter{
		load(unix.BPF_H, offsetType),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: loaded16(unix.RTM_NEWROUTE), Jt: 2},
		unless(loaded16(unix.RTM_DELROUTE)),
		keep, // no route
		load(unix.BPF_W, offsetPort),
		when(loaded32(port)), drop,
		load(unix.BPF_B, offsetProtocol),
	}
	if ignore.Foreign {
		return append(program, unless(uint32(protocol)), drop, keep)
	}
	for _, p := range ignore.Protocols {
		program = append(program, when(uint32(p)), drop)
	}
	return append(program, keep)
}

// loaded16 and loaded32 are what BPF, which loads in network order, makes of a
// field that the kernel wrote in the machine's order.
func loaded16(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}

func loaded32(v uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v))
}
