// Package tap tells virtual machines their addresses, each on a TAP of its own: by DHCP
// (RFC 2131), router advertisements (RFC 4861) and DHCPv6 (RFC 8415). What is read and
// written there is github.com/insomniacslk/dhcp's and github.com/mdlayher/ndp's.
//
// It keeps no leases: an address is the endpoint's for as long as that is. It makes no
// interface, changes none and asks nobody: who has which address it is told.
//
// Invariants: on a TAP nobody but its own machine's MAC is answered, and with its own
// addresses alone; nothing but the three protocols is ever read, and that before the
// packet filter, which therefore needs no hole.
package tap

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/datastore"
	"netctl/netdev"
)

const (
	// lease is how long a machine may use its addresses before it asks again, which it
	// does after half of that: so long the agent may be away.
	lease = 24 * time.Hour
	// routerLifetime is how long a machine believes that its host is its router: the most
	// that there is (RFC 4861, section 6.2.1).
	routerLifetime = 9000 * time.Second
	// advertiseEvery is between two advertisements that nobody asked for.
	advertiseEvery = 10 * time.Minute
)

// Guest is a virtual machine and what it is told.
type Guest struct {
	// Link and Index are its TAP's name and index.
	Link  string
	Index int
	MAC   net.HardwareAddr
	// Addresses are those of its endpoint, at most one a family.
	Addresses []netip.Addr
	// Gateway is its next hop for IPv4; for IPv6 that is netdev.HostLinkLocal.
	Gateway netip.Addr
	// MTU in bytes; 0: not told.
	MTU int
	// Name is its host name; "": not told.
	Name string
	// DNS are its name servers, Search the domains that it looks names up in.
	DNS    []netip.Addr
	Search []string
}

func (g Guest) equal(o Guest) bool {
	return g.Link == o.Link && g.Index == o.Index && slices.Equal(g.MAC, o.MAC) && slices.Equal(g.Addresses, o.Addresses) &&
		g.Gateway == o.Gateway && g.MTU == o.MTU && g.Name == o.Name && slices.Equal(g.DNS, o.DNS) && slices.Equal(g.Search, o.Search)
}

// address is the one of IPv4 (true) or IPv6; not valid: it has none.
func (g Guest) address(v4 bool) (a netip.Addr) {
	if i := slices.IndexFunc(g.Addresses, func(a netip.Addr) bool { return a.Is4() == v4 }); i >= 0 {
		a = g.Addresses[i]
	}
	return a
}

// servers are its name servers of one family.
func (g Guest) servers(v4 bool) (list []net.IP) {
	for _, a := range g.DNS {
		if a.Is4() == v4 {
			list = append(list, a.AsSlice())
		}
	}
	return list
}

// HostName is what of a workload's name may be a host's name; "": nothing.
func HostName(workload string) string {
	name := strings.ToLower(strings.NewReplacer("_", "-", ".", "-").Replace(workload))
	if !datastore.IsHostLabel(name) {
		return ""
	}
	return name
}

func hostMAC() net.HardwareAddr {
	mac, _ := net.ParseMAC(netdev.HostMAC)
	return mac
}
