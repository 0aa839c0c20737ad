package ra

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// state is what is to be known of a link.
type state struct {
	name  string
	up    bool       // it, and its carrier
	local netip.Addr // link-local and usable; without zone
}

// watcher follows the links of the network namespace and their link-local addresses.
type watcher struct {
	file *os.File
	raw  syscall.RawConn

	mu        sync.Mutex
	byIndex   map[int]state
	addresses map[int]map[netip.Addr]bool // link-local; true: usable
}

// watchLinks opens a watcher that knows what is there.
func watchLinks() (*watcher, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "rtnetlink")}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)})
	if err == nil {
		w.raw, err = w.file.SyscallConn()
	}
	if err == nil {
		err = w.list()
	}
	if err != nil {
		return nil, errors.Join(err, w.file.Close())
	}
	return w, nil
}

func (w *watcher) close() { _ = w.file.Close() }

// links are those that are there, by index.
func (w *watcher) links() map[int]state {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := maps.Clone(w.byIndex)
	for i, s := range all {
		for a, usable := range w.addresses[i] {
			if usable && (!s.local.IsValid() || a.Less(s.local)) {
				s.local = a
			}
		}
		all[i] = s
	}
	return all
}

// list reads everything anew.
func (w *watcher) list() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.byIndex, w.addresses = map[int]state{}, map[int]map[netip.Addr]bool{}
	for _, kind := range []int{unix.RTM_GETLINK, unix.RTM_GETADDR} {
		family := unix.AF_UNSPEC
		if kind == unix.RTM_GETADDR {
			family = unix.AF_INET6
		}
		b, err := syscall.NetlinkRIB(kind, family)
		if err == nil {
			err = w.take(b)
		}
		if err != nil {
			return fmt.Errorf("read links: %w", err)
		}
	}
	return nil
}

// run says on news that something changed, until ctx ends, or what went wrong.
func (w *watcher) run(ctx context.Context, news chan<- error) {
	b := make([]byte, 64<<10)
	for {
		var n int
		var failed error
		err := w.raw.Read(func(fd uintptr) bool {
			n, failed = unix.Read(int(fd), b)
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		if ctx.Err() != nil {
			return
		}
		switch {
		case err != nil:
		case errors.Is(failed, unix.ENOBUFS): // some of it was lost
			err = w.list()
		case failed != nil:
			err = failed
		default:
			w.mu.Lock()
			err = w.take(b[:n])
			w.mu.Unlock()
		}
		select {
		case news <- err:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// take books messages about links and addresses.
func (w *watcher) take(b []byte) error {
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return err
	}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			l, err := netdev.ParseLink(m.Data)
			switch {
			case err != nil || l.Family != unix.AF_UNSPEC:
			case m.Header.Type == unix.RTM_DELLINK:
				delete(w.byIndex, l.Index)
				delete(w.addresses, l.Index)
			default:
				w.byIndex[l.Index] = state{name: l.Name, up: l.Up() && l.Flags&unix.IFF_LOWER_UP != 0}
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			i, a, flags, ok := parseAddress(m.Data)
			switch {
			case !ok || !a.IsLinkLocalUnicast():
			case m.Header.Type == unix.RTM_DELADDR:
				delete(w.addresses[i], a)
			default:
				if w.addresses[i] == nil {
					w.addresses[i] = map[netip.Addr]bool{}
				}
				w.addresses[i][a] = flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
			}
		}
	}
	return nil
}

// parseAddress reads the body of an RTM_NEWADDR or RTM_DELADDR message of IPv6 (struct
// ifaddrmsg and attributes, include/uapi/linux/if_addr.h).
func parseAddress(b []byte) (index int, a netip.Addr, flags uint32, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg || b[0] != unix.AF_INET6 {
		return 0, a, 0, false
	}
	index, flags = int(int32(binary.NativeEndian.Uint32(b[4:]))), uint32(b[2])
	for b = b[unix.SizeofIfAddrmsg:]; ; {
		kind, value, rest, more := netdev.Attribute(b)
		if !more {
			return index, a, flags, a.IsValid()
		}
		switch {
		case kind == unix.IFA_ADDRESS && len(value) == 16:
			a = netip.AddrFrom16([16]byte(value))
		case kind == unix.IFA_FLAGS && len(value) == 4:
			flags = binary.NativeEndian.Uint32(value)
		}
		b = rest
	}
}
