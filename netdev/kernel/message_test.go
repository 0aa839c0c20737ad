package kernel

import (
	"encoding/binary"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// linkMessage and addressMessage are what the kernel says of a link that is up and
// of an address.
func linkMessage(index int, name string, mtu, group uint32) netlink.Message {
	head := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	binary.NativeEndian.PutUint32(head[8:], unix.IFF_UP)
	return message(unix.RTM_NEWLINK, 0, head, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
		ae.Uint32(unix.IFLA_MTU, mtu)
		ae.Uint32(unix.IFLA_GROUP, group)
	})
}

func addressMessage(index int, addr string) netlink.Message {
	a := addrs(addr)[0]
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[1] = uint8(a.BitLen())
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	return message(unix.RTM_NEWADDR, 0, head, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.IFA_ADDRESS, a.AsSlice())
		if a.Is4() {
			ae.Bytes(unix.IFA_LOCAL, a.AsSlice())
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(linkMessage(3, "nc0", 1500, 7).Data)
	f.Add(addressMessage(4, "10.0.0.1").Data)
	f.Add(addressMessage(4, "fd80::1").Data)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := parseLink(netlink.Message{Data: data}); err == nil && len(data) < unix.SizeofIfInfomsg {
			t.Errorf("link %+v from %d bytes", l, len(data))
		}
		a, err := parseAddress(netlink.Message{Data: data})
		if err == nil && (!a.prefix.IsValid() || !a.subnet.IsValid() || a.subnet != a.subnet.Masked()) {
			t.Errorf("address %+v", a)
		}
		for _, kind := range []uint16{unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_NEWNETCONF, unix.RTM_NEWNEIGH} {
			m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: data}
			event(m, map[int]bool{}, 0)
			peerEvent(m)
		}
	})
}

func TestMessagesAreReadBack(t *testing.T) {
	l, err := parseLink(linkMessage(3, "nc0", 1400, 7))
	if err != nil || l.Name != "nc0" || l.Index != 3 || l.group != 7 || l.MTU != 1400 || !l.Up {
		t.Errorf("link = %+v, %v", l, err)
	}
	for _, s := range []string{"10.0.0.1", "fd80::1"} {
		a, err := parseAddress(addressMessage(4, s))
		if err != nil || a.prefix.Addr() != addrs(s)[0] || !a.prefix.IsSingleIP() || a.index != 4 {
			t.Errorf("address = %+v, %v", a, err)
		}
	}
}
