package tap

import (
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"

	"netctl/netdev"
)

// serverID is the same on every host: a machine that moves to another one finds it there.
func serverID() dhcpv6.DUID {
	return &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: hostMAC()}
}

// answer6 is what a DHCPv6 message is answered with (RFC 8415, section 18.3); nil: nothing.
func (g Guest) answer6(req *dhcpv6.Message) *dhcpv6.Message {
	own := g.address(false)
	if !own.IsValid() || req.Options.ClientID() == nil && req.MessageType != dhcpv6.MessageTypeInformationRequest {
		return nil
	}
	if id := req.Options.ServerID(); id != nil && !id.Equal(serverID()) {
		return nil // it took the offer of somebody else
	}
	res := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: req.TransactionID}
	for _, o := range req.Options.Get(dhcpv6.OptionClientID) {
		res.AddOption(o)
	}
	res.AddOption(dhcpv6.OptServerID(serverID()))
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if req.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
			dhcpv6.WithRapidCommit(res)
		} else {
			res.MessageType = dhcpv6.MessageTypeAdvertise
		}
		g.lease6(req, res, own)
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		g.lease6(req, res, own)
	case dhcpv6.MessageTypeConfirm:
		res.AddOption(confirm6(req, own))
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		res.AddOption(&dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess})
		return res
	case dhcpv6.MessageTypeInformationRequest:
	default:
		return nil
	}
	if servers := g.servers(false); len(servers) > 0 {
		dhcpv6.WithDNS(servers...)(res)
	}
	if len(g.Search) > 0 {
		dhcpv6.WithDomainSearchList(slices.Clone(g.Search)...)(res)
	}
	return res
}

// lease6 gives the first association that is asked for the address, others and prefixes
// nothing, and takes back what else the machine believes to have.
func (g Guest) lease6(req, res *dhcpv6.Message, own netip.Addr) {
	for i, asked := range req.Options.IANA() {
		given := &dhcpv6.OptIANA{IaId: asked.IaId}
		if i == 0 {
			given.T1, given.T2 = lease/2, lease/8*7
			given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: own.AsSlice(), PreferredLifetime: lease, ValidLifetime: lease})
		} else {
			given.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "this endpoint has one address"})
		}
		for _, a := range asked.Options.Addresses() {
			if i > 0 || !a.IPv6Addr.Equal(own.AsSlice()) {
				given.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.IPv6Addr})
			}
		}
		res.AddOption(given)
	}
	for _, asked := range req.Options.IAPD() {
		refused := &dhcpv6.OptIAPD{IaId: asked.IaId}
		refused.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoPrefixAvail, StatusMessage: "no prefixes are delegated"})
		res.AddOption(refused)
	}
}

// confirm6 says whether the machine's addresses are its own here.
func confirm6(req *dhcpv6.Message, own netip.Addr) dhcpv6.Option {
	for _, asked := range req.Options.IANA() {
		for _, a := range asked.Options.Addresses() {
			if !a.IPv6Addr.Equal(own.AsSlice()) {
				return &dhcpv6.OptStatusCode{StatusCode: iana.StatusNotOnLink}
			}
		}
	}
	return &dhcpv6.OptStatusCode{StatusCode: iana.StatusSuccess}
}

// advertisement tells the machine of its router, and to ask by DHCPv6 for the rest. No
// prefix is in it: none is on the link, and the machine has one address and makes none.
func (g Guest) advertisement() *ndp.RouterAdvertisement {
	m := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, OtherConfiguration: true, RouterLifetime: routerLifetime,
		Options: []ndp.Option{&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: hostMAC()}},
	}
	if g.MTU >= netdev.MinMTU6 {
		m.Options = append(m.Options, ndp.NewMTU(uint32(g.MTU)))
	}
	dns := slices.DeleteFunc(slices.Clone(g.DNS), netip.Addr.Is4)
	if len(dns) > 0 {
		m.Options = append(m.Options, &ndp.RecursiveDNSServer{Lifetime: routerLifetime, Servers: dns})
	}
	if len(g.Search) > 0 {
		m.Options = append(m.Options, &ndp.DNSSearchList{Lifetime: routerLifetime, DomainNames: slices.Clone(g.Search)})
	}
	return m
}
