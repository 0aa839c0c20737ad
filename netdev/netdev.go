// Package netdev owns the words for network interfaces: what the interfaces of
// netctl are called, how they are marked, and the addresses that every endpoint
// sees as its gateway.
//
// It is pure: it never opens a socket or a file. netdev/kernel makes interfaces,
// netdev/netlab makes test hosts.
//
// Invariants: the name of a link is a function of the prefix and the endpoint's
// name alone; a link of netctl is known by its group, never by its name.
package netdev

import (
	"crypto/rand"
	"net"
	"net/netip"
)

// DefaultPrefix starts the name of the host side of every endpoint unless the
// configuration says otherwise.
const DefaultPrefix = "nc"

// The device groups (ip-link(8), group) that mark links of netctl: Group those of
// endpoints in service, GroupRetired those that are down and wait for their deletion,
// GroupTunnel devices of tunnels to other nodes, GroupShaper those that hold the rate of
// what workloads send.
const (
	Group        uint32 = 0x6e63
	GroupRetired uint32 = 0x6e64
	GroupTunnel  uint32 = 0x6e65
	GroupShaper  uint32 = 0x6e66
)

// HostMAC is the hardware address of the host side of every endpoint.
const HostMAC = "ee:ee:ee:ee:ee:ee"

// MinMTU and MaxMTU bound the MTU of a link in bytes; IPv6 needs 1280 (RFC 8200,
// section 5), veth takes up to 65535.
const (
	MinMTU  = 68
	MinMTU6 = 1280
	MaxMTU  = 65535
)

// Gateway4 is the next hop that endpoints use for IPv4. It is on no interface:
// proxy ARP answers for it.
func Gateway4() netip.Addr { return netip.AddrFrom4([4]byte{169, 254, 1, 1}) }

// MaxGateways is how many gateways the workloads of a host have at most: the one that
// is set and those after it, for further interfaces of a namespace whose routes are
// in one table.
const MaxGateways = 16

// Gateways are all that there may be on a host whose first is that.
func Gateways(first netip.Addr) (list []netip.Addr) {
	for a := first; a.IsValid() && len(list) < MaxGateways; a = a.Next() {
		list = append(list, a)
	}
	return list
}

// HostLinkLocal is the IPv6 link-local address of the host side of every
// endpoint, which follows from HostMAC (RFC 4291, appendix A); endpoints use it
// as next hop.
func HostLinkLocal() netip.Addr { return netip.MustParseAddr("fe80::ecee:eeff:feee:eeee") }

// NewMAC is a random hardware address for a workload's interface: locally administered,
// not multicast (IEEE 802, section 8.4).
func NewMAC() string {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails (crypto/rand)
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}
