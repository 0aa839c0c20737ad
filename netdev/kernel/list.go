package kernel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Link is the host side of an endpoint.
type Link struct {
	Name  string
	Index int
	Up    bool // administratively
	MTU   int  // bytes
}

// Address is an address of an interface that is not netctl's.
type Address struct {
	// Prefix is the address with its prefix length.
	Prefix netip.Prefix
	// Subnet is what it is connected to; of a point-to-point address the peer.
	Subnet netip.Prefix
	Link   string
	Index  int
}

// Links lists the links in service, by name.
func (k *Kernel) Links() ([]Link, error) {
	all, err := k.links()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ours []Link
	for _, l := range all {
		if l.group == netdev.Group {
			ours = append(ours, l.Link)
		}
	}
	slices.SortFunc(ours, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return ours, nil
}

func (k *Kernel) links() ([]rawLink, error) {
	res, err := k.conn.dump(message(unix.RTM_GETLINK, 0, make([]byte, unix.SizeofIfInfomsg), nil))
	if err != nil {
		return nil, err
	}
	links := make([]rawLink, 0, len(res))
	for _, m := range res {
		l, err := parseLink(m)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// Addresses lists the addresses of interfaces that are neither netctl's nor lo,
// without link-local IPv6 ones, in the kernel's order.
func (k *Kernel) Addresses() ([]Address, error) {
	links, err := k.links()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	foreign := map[int]string{}
	for _, l := range links {
		if l.group != netdev.Group && l.group != netdev.GroupRetired && l.flags&unix.IFF_LOOPBACK == 0 {
			foreign[l.Index] = l.Name
		}
	}
	res, err := k.conn.dump(message(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg), nil))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var list []Address
	for _, m := range res {
		a, err := parseAddress(m)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if name, ok := foreign[a.index]; ok && !(a.prefix.Addr().Is6() && a.prefix.Addr().IsLinkLocalUnicast()) {
			list = append(list, Address{Prefix: a.prefix, Subnet: a.subnet, Link: name, Index: a.index})
		}
	}
	return list, nil
}

// Subnets lists the subnets that interfaces of the host are connected to, apart
// from netctl's own, lo and IPv6 link-local: sorted, each once.
func (k *Kernel) Subnets() ([]netip.Prefix, error) {
	addresses, err := k.Addresses()
	if err != nil {
		return nil, err
	}
	return subnets(addresses), nil
}

func subnets(addresses []Address) []netip.Prefix {
	var list []netip.Prefix
	for _, a := range addresses {
		list = append(list, a.Subnet)
	}
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	return slices.Compact(list)
}
