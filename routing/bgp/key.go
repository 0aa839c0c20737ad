package bgp

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxKey is the longest key that the kernel takes (TCP_MD5SIG_MAXKEYLEN, linux/tcp.h).
const maxKey = 80

// keyring gives the listeners the peers' keys (TCP MD5, RFC 2385). With a key in place the
// kernel itself drops what comes from that peer and is not signed with it.
type keyring struct {
	mu        sync.Mutex
	keys      map[netip.Addr]string
	listeners map[syscall.Conn]netip.Addr // what they listen on
	wrong     map[netip.Addr]string       // why a peer's key is not in place
}

func newKeyring() *keyring {
	return &keyring{listeners: map[syscall.Conn]netip.Addr{}, wrong: map[netip.Addr]string{}}
}

// add gives a listener all keys.
func (k *keyring) add(l any, on netip.Addr) {
	c, ok := l.(syscall.Conn)
	if !ok {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.listeners[c] = on
	for a, key := range k.keys {
		k.place(c, on, a, key)
	}
}

func (k *keyring) remove(l any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c, ok := l.(syscall.Conn); ok {
		delete(k.listeners, c)
	}
}

// set makes keys those of the peers; who is not in it has none.
func (k *keyring) set(keys map[netip.Addr]string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.keys
	k.keys = keys
	for a := range was {
		if _, stays := keys[a]; stays {
			continue
		}
		delete(k.wrong, a)
		for c, on := range k.listeners {
			k.place(c, on, a, "")
		}
	}
	for a, key := range keys {
		if key == was[a] && k.wrong[a] == "" {
			continue
		}
		delete(k.wrong, a)
		for c, on := range k.listeners {
			k.place(c, on, a, key)
		}
	}
}

// place gives one listener the key of a peer, or with "" takes it away; not that of
// another family or link.
func (k *keyring) place(l syscall.Conn, on, a netip.Addr, key string) {
	if a.Is4() != on.Is4() || a.Zone() != on.Zone() {
		return
	}
	raw, err := l.SyscallConn()
	if err == nil {
		err = control(raw, func(fd int) error { return setKey(fd, a, key) })
	}
	if err != nil && key != "" {
		k.wrong[a] = plain(err)
	}
}

// refuses says why nobody is let in as a peer.
func (k *keyring) refuses(a netip.Addr) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.wrong[a]
}

// problems are one line for each key that is not in place.
func (k *keyring) problems() (lines []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range slices.SortedFunc(maps.Keys(k.wrong), netip.Addr.Compare) {
		lines = append(lines, fmt.Sprintf("peer %v may not connect: its password cannot be set: %s", a, k.wrong[a]))
	}
	return lines
}

// setKey makes key that of the segments between a socket and a peer; "": none.
func setKey(fd int, peer netip.Addr, key string) error {
	s := unix.TCPMD5Sig{Keylen: uint16(len(key))}
	copy(s.Key[:], key)
	if peer.Is4() {
		s.Addr.Family = unix.AF_INET
		copy(s.Addr.Data[2:], peer.AsSlice()) // behind the port, netinet/in.h
	} else {
		s.Addr.Family = unix.AF_INET6
		copy(s.Addr.Data[6:], peer.AsSlice()) // behind port and flow label
	}
	err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &s)
	switch {
	case key == "" && errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &setupError{"password cannot be set", err}
	}
	return nil
}

// setupError is a socket that cannot be made as its peer's must be.
type setupError struct {
	what string
	err  error
}

func (e *setupError) Error() string { return e.what + ": " + e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }
