package kernel

import (
	"net"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func FuzzMessages(f *testing.F) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	w := Wire{Netns: 3, Interface: "eth0", Link: "nc0", MTU: 1500, Addresses: addrs("10.0.0.1", "fd80::1")}
	f.Add(newVeth(w, mac, mac, 7).Data)
	f.Add(newAddress(4, w.Addresses[0]).Data)
	f.Add(newAddress(4, w.Addresses[1]).Data)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if l, err := parseLink(netlink.Message{Data: data}); err == nil && len(data) < unix.SizeofIfInfomsg {
			t.Errorf("link %+v from %d bytes", l, len(data))
		}
		a, err := parseAddress(netlink.Message{Data: data})
		if err == nil && (!a.prefix.IsValid() || !a.subnet.IsValid() || a.subnet != a.subnet.Masked()) {
			t.Errorf("address %+v", a)
		}
		for _, kind := range []uint16{unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR} {
			event(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: data}, map[int]bool{})
		}
	})
}

func TestMessagesAreReadBack(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	w := Wire{Netns: 3, Interface: "eth0", Link: "nc0", MTU: 1400}
	l, err := parseLink(newVeth(w, mac, mac, 7))
	if err != nil || l.Name != "nc0" || l.group != 7 || l.MTU != 1400 || l.mac.String() != mac.String() || l.Up {
		t.Errorf("link = %+v, %v", l, err)
	}
	for _, addr := range addrs("10.0.0.1", "fd80::1") {
		a, err := parseAddress(newAddress(4, addr))
		if err != nil || a.prefix.Addr() != addr || !a.prefix.IsSingleIP() || a.index != 4 {
			t.Errorf("address = %+v, %v", a, err)
		}
	}
}
