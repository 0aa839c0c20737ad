package fib

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// linkNames turns names into indexes and back, asking the kernel once for each
// between two resets: links are renamed and made anew at any time.
type linkNames struct {
	socket  *socket
	byName  map[string]uint32
	byIndex map[uint32]string
}

func (l *linkNames) reset() { l.byName, l.byIndex = nil, nil }

func (l *linkNames) index(name string) (uint32, error) {
	if i, ok := l.byName[name]; ok {
		return i, nil
	}
	if name == "" {
		return 0, errors.New("no interface")
	}
	link, err := l.ask(0, name)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	if l.byName == nil {
		l.byName = map[string]uint32{}
	}
	l.byName[name] = uint32(link.Index)
	return uint32(link.Index), nil
}

// name asks for the name of a link; it must not be called while a list is read.
func (l *linkNames) name(index uint32) string {
	if index == 0 {
		return ""
	}
	if n, ok := l.byIndex[index]; ok {
		return n
	}
	link, err := l.ask(index, "")
	if err != nil {
		return unknownLink(index)
	}
	if l.byIndex == nil {
		l.byIndex = map[uint32]string{}
	}
	l.byIndex[index] = link.Name
	return link.Name
}

// unknownLink is what `ip` prints for an interface that just went.
func unknownLink(index uint32) string { return fmt.Sprintf("if%d", index) }

func (l *linkNames) ask(index uint32, name string) (link netdev.LinkMessage, err error) {
	parsed := errors.New("no answer")
	err = l.socket.ask(context.Background(), unix.RTM_GETLINK, 0, linkRequest(index, name), func() {}, func(b []byte) {
		link, parsed = netdev.ParseLink(b)
	})
	if err == nil {
		err = parsed
	}
	return link, err
}

// linkRequest asks for one link, by index or by name, or for all of them.
func linkRequest(index uint32, name string) []byte {
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	if name != "" {
		at := len(b)
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(name)+1))
		b = binary.NativeEndian.AppendUint16(b, unix.IFLA_IFNAME)
		b = append(append(b, name...), 0)
		for (len(b)-at)%4 != 0 {
			b = append(b, 0)
		}
	}
	return appendNumber(b, unix.IFLA_EXT_MASK, skipStats)
}
