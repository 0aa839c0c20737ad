package iptables

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lookEvery is how often the sets, and the tables of the legacy flavour, are looked at: neither
// tells anybody of changes.
const lookEvery = 250 * time.Millisecond

// verifyAfter is how long after the last change all is read once.
const verifyAfter = 500 * time.Millisecond

// fingerprint is what can be known cheaply of the tables of the legacy flavour, and of the sets.
type fingerprint struct {
	tables map[place][sha256.Size]byte
	sets   map[string]uint32
	at     bool // it is known
}

// look reads it in the current network namespace.
func look(mode Mode) (f fingerprint, err error) {
	if f.sets, err = countMembers(); err != nil {
		return f, err
	}
	f.at, f.tables = true, map[place][sha256.Size]byte{}
	if mode != Legacy {
		return f, nil
	}
	for _, ipv6 := range []bool{false, true} {
		for _, name := range legacyTables(ipv6) {
			sum, err := sumOfTable(ipv6, name)
			if err != nil && !errors.Is(err, unix.EAGAIN) { // it is being changed
				return f, fmt.Errorf("read table %s: %w", name, err)
			}
			f.tables[place{ipv6, name}] = sum
		}
	}
	return f, nil
}

func (f *fingerprint) note(mode Mode) {
	if now, err := look(mode); err == nil {
		*f = now
	} else {
		*f = fingerprint{}
	}
}

func (f *fingerprint) same(o fingerprint) bool {
	return f.at && o.at && maps.Equal(f.tables, o.tables) && maps.Equal(f.sets, o.sets)
}

// sumOfTable is the hash of a table's rules without what they have counted (ip_tables(4),
// linux/netfilter_ipv4/ip_tables.h).
func sumOfTable(ipv6 bool, name string) (sum [sha256.Size]byte, err error) {
	family, level, head, counters := unix.AF_INET, unix.SOL_IP, 84, 96
	if ipv6 {
		family, level, head, counters = unix.AF_INET6, unix.SOL_IPV6, 136, 152
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return sum, err
	}
	defer unix.Close(fd)
	const getInfo, getEntries = 64, 65 // IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES
	info := make([]byte, 84)           // struct ipt_getinfo
	copy(info[:31], name)
	if err := getsockopt(fd, level, getInfo, info); err != nil {
		return sum, err
	}
	size := binary.NativeEndian.Uint32(info[80:])
	const before = 40 // struct ipt_get_entries: name, size, alignment
	all := make([]byte, before+size)
	copy(all[:31], name)
	binary.NativeEndian.PutUint32(all[32:], size)
	if err := getsockopt(fd, level, getEntries, all); err != nil {
		return sum, err
	}
	h := sha256.New()
	_, _ = h.Write(info)
	// struct ipt_entry: the packet's header, flags, offsets of the target and of the next entry,
	// where it came from, and at the end of all that the counters.
	for entries := all[before:]; len(entries) > head+8; {
		next := int(binary.NativeEndian.Uint16(entries[head+6:]))
		if next < counters+16 || next > len(entries) {
			break
		}
		_, _ = h.Write(entries[:head+8])
		_, _ = h.Write(entries[counters+16 : next])
		entries = entries[next:]
	}
	h.Sum(sum[:0])
	return sum, nil
}

func getsockopt(fd, level, option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option), uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// pids are the processes that wrote for us lately: nftables tells of their changes too.
type pids struct {
	mu   sync.Mutex
	last [64]uint32
	n    int
}

func (p *pids) add(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last[p.n%len(p.last)] = uint32(pid)
	p.n++
}

func (p *pids) has(pid uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.last {
		if n == pid && n != 0 {
			return true
		}
	}
	return false
}

// Watch calls fn once when no change can be missed any more, and then after each change that
// somebody else made in a table or set of ours, or may have made. It blocks until ctx ends and
// returns its error, or why it cannot go on. fn is called from one goroutine at a time.
func (t *Table) Watch(ctx context.Context, fn func()) error {
	var one sync.Mutex
	tell := func() {
		one.Lock()
		defer one.Unlock()
		fn()
	}
	done := make(chan error, 1)
	go func() {
		done <- t.watchTables(ctx, func(family uint8) bool { return family == unix.AF_INET || family == unix.AF_INET6 }, tell)
	}()
	timer := time.NewTicker(lookEvery)
	defer timer.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-timer.C:
			if t.differs() {
				tell()
			}
		}
	}
}

// differs says that somebody changed what is only looked at, and takes note of how it is now.
func (t *Table) differs() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	differs := false
	err := t.inside(func() error {
		now, err := look(t.mode)
		if err != nil || !t.unverified.IsZero() && time.Since(t.unverified) <= verifyAfter && t.mark.same(now) {
			return err
		}
		differs = t.mark.at && !t.mark.same(now) || !t.unverified.IsZero() && time.Since(t.unverified) > verifyAfter
		t.mark, t.unverified = now, time.Time{}
		return nil
	})
	return differs || err != nil
}

// WatchOthers is Watch for every table of nftables, whoever's.
func (t *Table) WatchOthers(ctx context.Context, fn func()) error {
	return t.watchTables(ctx, func(uint8) bool { return true }, fn)
}

// watchTables follows what nftables tells of changes in tables of families. Where the kernel
// has no nftables nothing comes.
func (t *Table) watchTables(ctx context.Context, of func(family uint8) bool, fn func()) error {
	fd := -1
	err := t.inside(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
		}
		return err
	})
	if fd >= 0 {
		defer unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200000})
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	fn()
	buffer, touched := make([]byte, 64<<10), false // by the commit whose messages come
	for ctx.Err() == nil {
		n, _, err := unix.Recvfrom(fd, buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			fn()
			continue
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		}
		for m := buffer[:n]; len(m) >= unix.SizeofNlMsghdr+4; {
			length := int(binary.NativeEndian.Uint32(m))
			if length < unix.SizeofNlMsghdr+4 || length > len(m) {
				break
			}
			typ, pid, family := m[4], binary.NativeEndian.Uint32(m[12:]), m[unix.SizeofNlMsghdr]
			switch {
			case typ == unix.NFT_MSG_NEWGEN: // a commit's messages end with it
				touched = false
			case !touched && of(family) && !t.pids.has(pid):
				touched = true
				fn()
			}
			m = m[min(len(m), (length+3)&^3):]
		}
	}
	return ctx.Err()
}
