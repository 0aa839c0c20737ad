// Package gate makes filters that have the kernel drop what comes to a socket from
// addresses that are no peers', before anybody of ours is woken. They are the sockets' own
// (SO_ATTACH_FILTER, socket(7)), so they concern no other program's port and end with the
// process.
package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Attach makes program the filter of a listener or connection; nil: it has none.
func Attach(c syscall.Conn, program []unix.SockFilter) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		if program == nil {
			if setErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); errors.Is(setErr, unix.ENOENT) {
				setErr = nil
			}
			return
		}
		setErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	return errors.Join(err, setErr)
}

// The instructions of a filter, linux/filter.h and bpf_common.h; those with an offset
// load from the IP header.
const (
	loadWord  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	loadByte  = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
	ifEqual   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ifLeast   = unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K
	jump      = unix.BPF_JMP | unix.BPF_JA
	shift     = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	verdict   = unix.BPF_RET | unix.BPF_K
	ipHeader  = 0xfff00000 // SKF_NET_OFF
	let       = 0xffffffff // bytes of the packet that are kept
	source4   = 12
	source6   = 8
	ttl4      = 8
	ttl6      = 7
	farthest  = 255 // of a conditional jump
	maxFilter = 4096
)

// Program lets packets from these addresses pass, each with at least so many hops left,
// and drops all others. It fails if they are too many for a filter.
func Program(peers map[netip.Addr]uint8) ([]unix.SockFilter, error) {
	match4, match6 := near(peers, true, ttl4, source4), near(peers, false, ttl6, source6)
	p := []unix.SockFilter{
		{Code: loadByte, K: ipHeader}, {Code: shift, K: 4},
		{Code: ifEqual, K: 4, Jf: 1}, {Code: jump, K: 3},
		{Code: ifEqual, K: 6, Jf: 1}, {Code: jump, K: uint32(1 + len(match4))},
		{Code: verdict},
	}
	p = append(append(p, match4...), match6...)
	if len(p) > maxFilter {
		return nil, fmt.Errorf("%d peers are too many for a filter of the port: it is open to all", len(peers))
	}
	return p, nil
}

// near ends with the verdict on a packet of one family: of the peers that demand no more
// hops than it has left, its source must be one.
func near(peers map[netip.Addr]uint8, four bool, ttl, source uint32) (p []unix.SockFilter) {
	demands := map[uint8]bool{0: true}
	for a, least := range peers {
		if a.Unmap().Is4() == four {
			demands[least] = true
		}
	}
	if len(demands) > 1 {
		p = append(p, unix.SockFilter{Code: loadByte, K: ipHeader + ttl})
	}
	for _, least := range slices.Backward(slices.Sorted(maps.Keys(demands))) {
		var keys [][]uint32
		for a, demand := range peers {
			if a = a.Unmap(); a.Is4() == four && demand <= least {
				keys = append(keys, words(a))
			}
		}
		m := match(keys, source)
		if least > 0 {
			p = append(p, unix.SockFilter{Code: ifLeast, K: uint32(least), Jt: 1}, unix.SockFilter{Code: jump, K: uint32(len(m))})
		}
		p = append(p, m...)
	}
	return p
}

// words are an address in the units in which a filter compares.
func words(a netip.Addr) (list []uint32) {
	for b := a.AsSlice(); len(b) > 0; b = b[4:] {
		list = append(list, binary.BigEndian.Uint32(b))
	}
	return list
}

// match ends with the verdict whether the words from offset on are one of keys.
func match(keys [][]uint32, offset uint32) []unix.SockFilter {
	drop := unix.SockFilter{Code: verdict}
	if len(keys) == 0 {
		return []unix.SockFilter{drop}
	}
	next := map[uint32][][]uint32{}
	for _, k := range keys {
		next[k[0]] = append(next[k[0]], k[1:])
	}
	p := []unix.SockFilter{{Code: loadWord, K: ipHeader + offset}}
	first := slices.Sorted(maps.Keys(next))
	if len(keys[0]) == 1 {
		for chunk := range slices.Chunk(first, farthest-1) {
			for i, word := range chunk {
				p = append(p, unix.SockFilter{Code: ifEqual, K: word, Jt: uint8(len(chunk) - i)})
			}
			p = append(p, unix.SockFilter{Code: jump, K: 1}, unix.SockFilter{Code: verdict, K: let})
		}
		return append(p, drop)
	}
	for _, word := range first {
		rest := match(next[word], offset+4)
		p = append(p, unix.SockFilter{Code: ifEqual, K: word, Jt: 1}, unix.SockFilter{Code: jump, K: uint32(len(rest))})
		p = append(p, rest...)
	}
	return append(p, drop)
}
