package tap

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

func guest() Guest {
	return Guest{
		Link: "nc0", Index: 7, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.48"), netip.MustParseAddr("fd00::48")},
		Gateway: netdev.Gateway4(), MTU: 1400, Name: "vm1", DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")}, Search: []string{"example.org", "example.net"},
	}
}

// from is what the guest's program gets that sends a packet, from a MAC.
func from(g Guest, mac net.HardwareAddr, kind uint16, packet []byte) []byte {
	frame := append(binary.BigEndian.AppendUint16(slices.Concat(hostMAC(), mac), kind), packet...)
	return g.answer(frame)
}

// packet4 is a DHCP message as a client sends it: options of IPv4 before it, and a checksum
// that nobody computed.
func packet4(text []byte, destination uint16) []byte {
	p := make([]byte, 24+udpLen)
	p[0], p[9] = 0x46, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)+len(text)))
	binary.BigEndian.PutUint16(p[24:], client4)
	binary.BigEndian.PutUint16(p[26:], destination)
	binary.BigEndian.PutUint16(p[28:], uint16(udpLen+len(text)))
	return append(p, text...)
}

// ask4 sends a DHCP message and takes the answer apart; nil: there is none.
func ask4(t *testing.T, g Guest, mac net.HardwareAddr, m *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, net.HardwareAddr, netip.Addr) {
	t.Helper()
	frame := from(g, mac, unix.ETH_P_IP, packet4(m.ToBytes(), server4))
	if frame == nil {
		return nil, nil, netip.Addr{}
	}
	p := frame[ethernetLen:]
	if checksum(p[:ipv4Len]) != 0 || !slices.Equal(net.HardwareAddr(frame[6:12]), hostMAC()) || netip.AddrFrom4([4]byte(p[12:16])) != g.Gateway {
		t.Errorf("frame %x", frame)
	}
	u := p[ipv4Len:]
	if sum := checksum(slices.Concat(p[12:20], []byte{0, unix.IPPROTO_UDP}, u[4:6], u)); sum != 0 {
		t.Errorf("checksum of UDP is off by %x", sum)
	}
	res, err := dhcpv4.FromBytes(u[udpLen:])
	if err != nil {
		t.Fatal(err)
	}
	return res, net.HardwareAddr(frame[:6]), netip.AddrFrom4([4]byte(p[16:20]))
}

// TestDHCP: who is on the TAP gets its address and its settings, and nobody else.
func TestDHCP(t *testing.T) {
	g := guest()
	own := net.IP(g.Addresses[0].AsSlice())
	discover, err := dhcpv4.NewDiscovery(g.MAC, dhcpv4.WithBroadcast(false))
	if err != nil {
		t.Fatal(err)
	}
	offer, mac, to := ask4(t, g, g.MAC, discover)
	if offer == nil || offer.MessageType() != dhcpv4.MessageTypeOffer || !offer.YourIPAddr.Equal(own) || to != g.Addresses[0] || !slices.Equal(mac, g.MAC) {
		t.Fatalf("offer to %s %s: %v", mac, to, offer)
	}
	request, err := dhcpv4.NewRequestFromOffer(offer, dhcpv4.WithBroadcast(true))
	if err != nil {
		t.Fatal(err)
	}
	ack, mac, to := ask4(t, g, g.MAC, request)
	if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || !ack.YourIPAddr.Equal(own) || to.String() != "255.255.255.255" || mac.String() != "ff:ff:ff:ff:ff:ff" {
		t.Fatalf("ack to %s %s: %v", mac, to, ack)
	}
	for what, is := range map[string]bool{
		"mask":     net.IP(ack.SubnetMask()).String() == "255.255.255.255",
		"router":   ack.Router()[0].Equal(g.Gateway.AsSlice()),
		"routes":   fmt.Sprint(ack.ClasslessStaticRoute()) == "[route to 169.254.1.1/32 via 0.0.0.0 route to 0.0.0.0/0 via 169.254.1.1]",
		"windows":  slices.Equal(ack.Options.Get(dhcpv4.GenericOptionCode(microsoftRoutes)), ack.Options.Get(dhcpv4.OptionClasslessStaticRoute)),
		"mtu":      slices.Equal(ack.Options.Get(dhcpv4.OptionInterfaceMTU), []byte{1400 >> 8, 1400 & 255}),
		"dns":      len(ack.DNS()) == 1 && ack.DNS()[0].String() == "192.0.2.53",
		"search":   slices.Equal(ack.DomainSearch().Labels, g.Search) && ack.DomainName() == "example.org",
		"hostname": ack.HostName() == "vm1",
		"lease":    ack.IPAddressLeaseTime(0) == lease,
		"server":   ack.ServerIdentifier().Equal(g.Gateway.AsSlice()),
	} {
		if !is {
			t.Errorf("%s: %s", what, ack.Summary())
		}
	}
	other := net.HardwareAddr{2, 0, 0, 0, 0, 2}
	if res, _, _ := ask4(t, g, other, discover); res != nil {
		t.Errorf("frame of another MAC: %v", res)
	}
	stranger, _ := dhcpv4.NewDiscovery(other)
	if res, _, _ := ask4(t, g, g.MAC, stranger); res != nil {
		t.Errorf("client of another MAC: %v", res)
	}
	elsewhere, _ := dhcpv4.NewRequestFromOffer(offer)
	elsewhere.UpdateOption(dhcpv4.OptServerIdentifier(net.IPv4(192, 0, 2, 1)))
	if res, _, _ := ask4(t, g, g.MAC, elsewhere); res != nil {
		t.Errorf("of another server: %v", res)
	}
	wrong, _ := dhcpv4.NewRequestFromOffer(offer)
	wrong.UpdateOption(dhcpv4.OptRequestedIPAddress(net.IPv4(10, 0, 0, 49)))
	if res, _, to := ask4(t, g, g.MAC, wrong); res == nil || res.MessageType() != dhcpv4.MessageTypeNak || !res.YourIPAddr.IsUnspecified() || to.String() != "255.255.255.255" {
		t.Errorf("address of somebody else: %v", res)
	}
	renew, _ := dhcpv4.NewRenewFromAck(ack)
	if res, _, _ := ask4(t, g, g.MAC, renew); res == nil || res.MessageType() != dhcpv4.MessageTypeAck {
		t.Errorf("renewed: %v", res)
	}
	inform, _ := dhcpv4.NewInform(g.MAC, own)
	if res, _, _ := ask4(t, g, g.MAC, inform); res == nil || !res.YourIPAddr.IsUnspecified() || res.IPAddressLeaseTime(0) != 0 || len(res.Router()) != 1 {
		t.Errorf("informed: %v", res)
	}
	g.Addresses = g.Addresses[1:]
	if res, _, _ := ask4(t, g, g.MAC, discover); res != nil {
		t.Errorf("without IPv4: %v", res)
	}
}

// packet6 is a packet of IPv6 from the guest's link-local address.
func packet6(next, hops byte, payload []byte) []byte {
	p := make([]byte, ipv6Len, ipv6Len+len(payload))
	p[0], p[6], p[7] = 6<<4, next, hops
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], netip.MustParseAddr("fe80::2").AsSlice())
	return append(p, payload...)
}

func ask6(t *testing.T, g Guest, m *dhcpv6.Message) *dhcpv6.Message {
	t.Helper()
	frame := from(g, g.MAC, unix.ETH_P_IPV6, packet6(unix.IPPROTO_UDP, 1, udp(netip.MustParseAddr("fe80::2"), netip.MustParseAddr("ff02::1:2"), client6, server6, m.ToBytes())))
	if frame == nil {
		return nil
	}
	p := frame[ethernetLen:]
	if sum := checksum(slices.Concat(p[8:40], []byte{0, unix.IPPROTO_UDP}, p[44:46], p[40:])); sum != 0 {
		t.Errorf("checksum of UDP is off by %x", sum)
	}
	res, err := dhcpv6.MessageFromBytes(p[ipv6Len+udpLen:])
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestDHCPv6: the machine gets its one address, and is told that it has no other.
func TestDHCPv6(t *testing.T) {
	g := guest()
	own := net.IP(g.Addresses[1].AsSlice())
	solicit, err := dhcpv6.NewSolicit(g.MAC)
	if err != nil {
		t.Fatal(err)
	}
	adv := ask6(t, g, solicit)
	if adv == nil || adv.MessageType != dhcpv6.MessageTypeAdvertise || !adv.Options.OneIANA().Options.OneAddress().IPv6Addr.Equal(own) {
		t.Fatalf("advertise: %v", adv)
	}
	if dns := adv.Options.DNS(); len(dns) != 1 || dns[0].String() != "2001:db8::53" || !slices.Equal(adv.Options.DomainSearchList().Labels, g.Search) {
		t.Errorf("told %s", adv.Summary())
	}
	request, err := dhcpv6.NewRequestFromAdvertise(adv)
	if err != nil {
		t.Fatal(err)
	}
	reply := ask6(t, g, request)
	if reply == nil || reply.MessageType != dhcpv6.MessageTypeReply || reply.Options.OneIANA().Options.OneAddress().ValidLifetime != lease || reply.Options.OneIANA().IaId != solicit.Options.OneIANA().IaId {
		t.Fatalf("reply: %v", reply)
	}
	dhcpv6.WithRapidCommit(solicit)
	if res := ask6(t, g, solicit); res == nil || res.MessageType != dhcpv6.MessageTypeReply || res.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
		t.Errorf("rapid commit: %v", res)
	}
	// What it had elsewhere ends at once; a second association and a prefix get nothing.
	request.MessageType = dhcpv6.MessageTypeRenew
	old := net.ParseIP("2001:db8::1")
	request.Options.OneIANA().Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: old, ValidLifetime: time.Hour})
	request.AddOption(&dhcpv6.OptIANA{IaId: [4]byte{9}})
	dhcpv6.WithIAPD([4]byte{8})(request)
	res := ask6(t, g, request)
	list := res.Options.IANA()
	if len(list) != 2 || len(list[0].Options.Addresses()) != 2 || !list[0].Options.Addresses()[1].IPv6Addr.Equal(old) || list[0].Options.Addresses()[1].ValidLifetime != 0 {
		t.Errorf("moved here: %s", res.Summary())
	}
	if list[1].Options.Status().StatusCode != iana.StatusNoAddrsAvail || res.Options.OneIAPD().Options.Status().StatusCode != iana.StatusNoPrefixAvail {
		t.Errorf("asked for more: %s", res.Summary())
	}
	confirm := *request
	confirm.MessageType = dhcpv6.MessageTypeConfirm
	if res := ask6(t, g, &confirm); res.Options.Status().StatusCode != iana.StatusNotOnLink {
		t.Errorf("confirm of another address: %s", res.Summary())
	}
	request.Options.Update(dhcpv6.OptServerID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: g.MAC}))
	if res := ask6(t, g, request); res != nil {
		t.Errorf("of another server: %v", res)
	}
	g.Addresses = g.Addresses[:1]
	if res := ask6(t, g, solicit); res != nil {
		t.Errorf("without IPv6: %v", res)
	}
}

// TestAdvertisement: who asks for a router is told of one, and to ask for the rest.
func TestAdvertisement(t *testing.T) {
	g := guest()
	ask := []byte{routerSolicitation, 0, 0, 0, 0, 0, 0, 0}
	frame := from(g, g.MAC, unix.ETH_P_IPV6, packet6(unix.IPPROTO_ICMPV6, hopLimit, ask))
	if frame == nil {
		t.Fatal("no answer")
	}
	if mac := net.HardwareAddr(frame[:6]).String(); mac != "33:33:00:00:00:01" || frame[ethernetLen+7] != hopLimit {
		t.Errorf("to %s with %d hops left", mac, frame[ethernetLen+7])
	}
	p := frame[ethernetLen:]
	m, err := ndp.ParseMessage(p[ipv6Len:])
	if err != nil {
		t.Fatal(err)
	}
	ra := m.(*ndp.RouterAdvertisement)
	if !ra.ManagedConfiguration || !ra.OtherConfiguration || ra.RouterLifetime != routerLifetime || len(ra.Options) != 4 {
		t.Errorf("%+v", ra)
	}
	if sum := checksum(slices.Concat(p[8:40], []byte{0, 0, p[4], p[5], 0, 0, 0, unix.IPPROTO_ICMPV6}, p[40:])); sum != 0 {
		t.Errorf("checksum is off by %x", sum)
	}
	for _, o := range ra.Options {
		if _, is := o.(*ndp.PrefixInformation); is {
			t.Errorf("it makes itself an address of %+v", o)
		}
	}
	if from(g, g.MAC, unix.ETH_P_IPV6, packet6(unix.IPPROTO_ICMPV6, 64, ask)) != nil {
		t.Error("a solicitation from elsewhere is answered")
	}
}

// TestHostName: what cannot be a host's name is not told.
func TestHostName(t *testing.T) {
	for in, want := range map[string]string{"vm1": "vm1", "Web_1.prod": "web-1-prod", "": "", "-x": "", strings.Repeat("x", 64): "", "ü": ""} {
		if have := HostName(in); have != want {
			t.Errorf("%q: %q, not %q", in, have, want)
		}
	}
}

// FuzzAnswer: whatever a machine sends, nothing panics, and what answers it says is whole
// and for that machine.
func FuzzAnswer(f *testing.F) {
	g := guest()
	discover, _ := dhcpv4.NewDiscovery(g.MAC)
	solicit, _ := dhcpv6.NewSolicit(g.MAC)
	f.Add(uint16(unix.ETH_P_IP), packet4(discover.ToBytes(), server4))
	f.Add(uint16(unix.ETH_P_IPV6), packet6(unix.IPPROTO_UDP, 1, udp(netip.MustParseAddr("fe80::2"), netip.MustParseAddr("ff02::1:2"), client6, server6, solicit.ToBytes())))
	f.Add(uint16(unix.ETH_P_IPV6), packet6(unix.IPPROTO_ICMPV6, hopLimit, []byte{routerSolicitation, 0, 0, 0, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, kind uint16, packet []byte) {
		if res := from(g, g.MAC, kind, packet); res != nil && (len(res) < ethernetLen+ipv4Len || !slices.Equal(net.HardwareAddr(res[6:12]), hostMAC())) {
			t.Errorf("answer %x", res)
		}
	})
}
