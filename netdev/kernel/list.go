package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
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
	// Carrier says that it is up and somebody is at the other side: has a TAP open.
	Carrier bool
	MTU     int // bytes
	// Altered says that it is not what an attach makes, as far as a link's message
	// tells: its group, master, MAC and flags.
	Altered bool
}

// Address is an address of an interface that is not netctl's.
type Address struct {
	// Prefix is the address with its prefix length.
	Prefix netip.Prefix
	// Subnet is what it is connected to; of a point-to-point address the peer.
	Subnet netip.Prefix
	Link   string
	Index  int
	MTU    int // of the interface, bytes
	// Passing is not to be known by: deprecated, tentative (duplicates too), temporary
	// (RFC 8981), or IPv4's secondary ones of a subnet.
	Passing bool
	// Loopback is on lo, which leads nowhere.
	Loopback bool
	// Down is that the interface is set down.
	Down bool
}

// passing are the flags that make an Address so; that of temporary addresses is that of
// secondary ones.
const passing = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_SECONDARY

// Links lists the links in service and those of the given indexes, by name.
func (k *Kernel) Links(also ...int) ([]Link, error) {
	all, err := k.links()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ours []Link
	for _, l := range all {
		if l.group == netdev.Group || l.wired() && slices.Contains(also, l.Index) {
			l.Altered = altered(l)
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

// Addresses lists the addresses of interfaces that are not netctl's, without loopback
// and link-local IPv6 ones, in the kernel's order.
func (k *Kernel) Addresses() ([]Address, error) {
	res, err := k.conn.dump(message(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg), nil))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	// Links are asked for one by one: few have such an address, and in a list of all
	// the kernel looks for the namespace of each peer among all namespaces.
	links := map[int]rawLink{}
	var list []Address
	for _, m := range res {
		a, err := parseAddress(m)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if ip := a.prefix.Addr(); ip.IsLoopback() || ip.Is6() && ip.IsLinkLocalUnicast() {
			continue
		}
		l, ok := links[a.index]
		if !ok {
			if l, err = k.link(a.index, ""); errors.Is(err, os.ErrNotExist) {
				continue // it went meanwhile
			} else if err != nil {
				return nil, fmt.Errorf("read link %d: %w", a.index, err)
			}
			links[a.index] = l
		}
		if l.group != netdev.Group && l.group != netdev.GroupRetired && l.group != netdev.GroupTunnel && l.group != netdev.GroupShaper {
			list = append(list, Address{
				Prefix: a.prefix, Subnet: a.subnet, Link: l.Name, Index: l.Index, MTU: l.MTU,
				Passing: a.flags&passing != 0, Loopback: l.flags&unix.IFF_LOOPBACK != 0, Down: !l.Up,
			})
		}
	}
	return list, nil
}

// Subnets lists the subnets that interfaces of the host are connected to, apart
// from netctl's own, loopback and IPv6 link-local: sorted, each once.
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
