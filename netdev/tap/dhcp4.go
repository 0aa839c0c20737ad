package tap

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"
)

// microsoftRoutes is the option of classless routes as older Windows knows it ([MS-DHCPE],
// section 2.2.8).
const microsoftRoutes = 249

// answer4 is what a DHCP message is answered with, and to which address; nil: nothing.
func (g Guest) answer4(req *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, netip.Addr) {
	own := g.address(true)
	if req.OpCode != dhcpv4.OpcodeBootRequest || !own.IsValid() || !slices.Equal(req.ClientHWAddr, g.MAC) {
		return nil, netip.Addr{}
	}
	if id := req.ServerIdentifier(); id != nil && !id.Equal(g.Gateway.AsSlice()) {
		return nil, netip.Addr{} // it took the offer of somebody else
	}
	var kind dhcpv4.MessageType
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		kind = dhcpv4.MessageTypeNak
		wanted := req.RequestedIPAddress()
		if wanted == nil || wanted.IsUnspecified() {
			wanted = req.ClientIPAddr
		}
		if wanted.Equal(own.AsSlice()) {
			kind = dhcpv4.MessageTypeAck
		}
	case dhcpv4.MessageTypeInform:
		kind = dhcpv4.MessageTypeAck
	default: // of a release or a decline there is nothing to keep
		return nil, netip.Addr{}
	}
	res, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(g.Gateway.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(g.Gateway.AsSlice())))
	if err != nil {
		return nil, netip.Addr{}
	}
	everybody := netip.AddrFrom4([4]byte{255, 255, 255, 255})
	if kind == dhcpv4.MessageTypeNak {
		res.SetBroadcast()
		return res, everybody
	}
	for _, o := range g.options4() {
		res.UpdateOption(o)
	}
	if req.MessageType() == dhcpv4.MessageTypeInform {
		res.ClientIPAddr = req.ClientIPAddr
	} else {
		res.YourIPAddr = own.AsSlice()
		res.UpdateOption(dhcpv4.OptIPAddressLeaseTime(lease))
		res.UpdateOption(dhcpv4.OptRenewTimeValue(lease / 2))
		res.UpdateOption(dhcpv4.OptRebindingTimeValue(lease / 8 * 7))
	}
	if req.IsBroadcast() {
		return res, everybody
	}
	return res, own
}

// options4 are the machine's settings. The gateway lies outside of the address's prefix,
// which has that address alone: a route says first that it is on the link. Who knows
// classless routes does not look at the router (RFC 3442), who does not has that.
func (g Guest) options4() []dhcpv4.Option {
	all := net.CIDRMask(32, 32)
	routes := dhcpv4.Routes{
		{Dest: &net.IPNet{IP: g.Gateway.AsSlice(), Mask: all}, Router: net.IPv4zero.To4()},
		{Dest: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Router: g.Gateway.AsSlice()},
	}
	list := []dhcpv4.Option{
		dhcpv4.OptSubnetMask(all), dhcpv4.OptRouter(g.Gateway.AsSlice()), dhcpv4.OptClasslessStaticRoute(routes...),
		dhcpv4.OptGeneric(dhcpv4.GenericOptionCode(microsoftRoutes), routes.ToBytes()),
	}
	if g.MTU != 0 {
		list = append(list, dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(g.MTU))))
	}
	if servers := g.servers(true); len(servers) > 0 {
		list = append(list, dhcpv4.OptDNS(servers...))
	}
	if len(g.Search) > 0 {
		list = append(list, dhcpv4.OptDomainName(g.Search[0]), dhcpv4.OptDomainSearch(&rfc1035label.Labels{Labels: slices.Clone(g.Search)}))
	}
	if g.Name != "" {
		list = append(list, dhcpv4.OptHostName(g.Name))
	}
	return list
}
