package fib

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// skipStats is RTEXT_FILTER_SKIP_STATS (include/uapi/linux/rtnetlink.h).
const skipStats = 1 << 3

// linkNames turns names into indexes and back, asking the kernel once for each
// between two resets: links are renamed and made anew at any time.
type linkNames struct {
	conn    *netlink.Conn
	byName  map[string]uint32
	byIndex map[uint32]string
}

func (l *linkNames) reset() { l.byName, l.byIndex = map[string]uint32{}, map[uint32]string{} }

func (l *linkNames) index(name string) (uint32, error) {
	if i, ok := l.byName[name]; ok {
		return i, nil
	}
	if name == "" {
		return 0, fmt.Errorf("no interface")
	}
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	state, err := l.ask(0, ae)
	if err != nil {
		return 0, fmt.Errorf("interface %s: %w", name, err)
	}
	l.byName[name] = state.index
	return state.index, nil
}

func (l *linkNames) name(index uint32) string {
	if index == 0 {
		return ""
	}
	if n, ok := l.byIndex[index]; ok {
		return n
	}
	state, err := l.ask(index, netlink.NewAttributeEncoder())
	if err != nil {
		return fmt.Sprintf("if%d", index) // as `ip` prints an interface that just went
	}
	l.byIndex[index] = state.name
	return state.name
}

func (l *linkNames) ask(index uint32, ae *netlink.AttributeEncoder) (linkState, error) {
	links, err := queryLinks(l.conn, netlink.Request, index, ae)
	if err != nil {
		return linkState{}, err
	}
	if len(links) == 0 {
		return linkState{}, unix.ENODEV
	}
	return links[0], nil
}

// queryLinks asks for one link, or with netlink.Dump among the flags for all.
func queryLinks(conn *netlink.Conn, flags netlink.HeaderFlags, index uint32, ae *netlink.AttributeEncoder) ([]linkState, error) {
	ae.Uint32(unix.IFLA_EXT_MASK, skipStats)
	attrs, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	info := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(info[4:], index)
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: flags}, Data: append(info, attrs...),
	})
	if err != nil {
		return nil, errno(err)
	}
	var out []linkState
	for _, m := range msgs {
		if s, ok := parseLink(m.Data); ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// linkState is what fib needs to know of a link.
type linkState struct {
	index uint32
	name  string
	up    bool
}

func parseLink(b []byte) (linkState, bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return linkState{}, false // a bridge port's message is about the port, not the link
	}
	s := linkState{
		index: binary.NativeEndian.Uint32(b[4:]),
		up:    binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0,
	}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return linkState{}, false
	}
	for ad.Next() {
		if ad.Type() == unix.IFLA_IFNAME {
			s.name = ad.String()
		}
	}
	return s, ad.Err() == nil && s.name != ""
}
