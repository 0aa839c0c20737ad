package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Interface is any interface of the host, whoever made it.
type Interface struct {
	Name   string
	Index  int
	Kind   string // such as "veth" and "bridge"; "": hardware, or lo
	Master string // the name of the bridge or bond that it is a port of
	MTU    int    // bytes
	Up     bool   // administratively
	// Ours says that netctl made it: an endpoint's, or a tunnel's.
	Ours     bool
	Loopback bool
	// Addresses have their prefix lengths; Duplicates are those of them that another
	// machine was found to have (RFC 4862, section 5.4).
	Addresses  []netip.Prefix
	Duplicates []netip.Addr
}

// Route is a route of the main table, whoever made it.
type Route struct {
	Prefix   netip.Prefix
	Protocol int    // rtnetlink(7), rtm_protocol
	Link     string // of its first next hop; "": it has none
	// Direct says that it leads to what is at the other side of Link: it is unicast and has
	// no gateway.
	Direct bool
}

// Interfaces lists every interface of the host, by its index.
func (k *Kernel) Interfaces() ([]Interface, error) {
	links, err := k.links()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	res, err := k.conn.dump(message(unix.RTM_GETADDR, 0, make([]byte, unix.SizeofIfAddrmsg), nil))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	list, at := make([]Interface, 0, len(links)), map[int]int{}
	for _, l := range links {
		at[l.Index] = len(list)
		list = append(list, Interface{
			Name: l.Name, Index: l.Index, Kind: l.kind, MTU: l.MTU, Up: l.Up, Loopback: l.flags&unix.IFF_LOOPBACK != 0,
			Ours: l.group == netdev.Group || l.group == netdev.GroupRetired || l.group == netdev.GroupTunnel || l.group == netdev.GroupShaper,
		})
	}
	for i, l := range links {
		if m, ok := at[l.master]; ok && l.master != 0 {
			list[i].Master = links[m].Name
		}
	}
	for _, m := range res {
		a, err := parseAddress(m)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		i, ok := at[a.index]
		if !ok {
			continue // it came meanwhile
		}
		list[i].Addresses = append(list[i].Addresses, a.prefix)
		if a.flags&unix.IFA_F_DADFAILED != 0 {
			list[i].Duplicates = append(list[i].Duplicates, a.prefix.Addr())
		}
	}
	return list, nil
}

// MainRoutes lists the routes of the main table, whoever made them.
func (k *Kernel) MainRoutes() (list []Route, err error) {
	links, err := k.links()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		head := make([]byte, unix.SizeofRtMsg)
		head[0] = family
		res, err := k.conn.dump(message(unix.RTM_GETROUTE, 0, head, nil))
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, m := range res {
			r, index, ok, err := parseMainRoute(m)
			if err != nil {
				return nil, fmt.Errorf("list routes: %w", err)
			}
			if ok {
				r.Link = names[index]
				list = append(list, r)
			}
		}
	}
	return list, nil
}

// parseMainRoute reads a route's message (rtnetlink(7)); ok is false of one of another
// table, and of one that the kernel only remembers.
func parseMainRoute(m netlink.Message) (r Route, index int, ok bool, err error) {
	if len(m.Data) < unix.SizeofRtMsg {
		return r, 0, false, fmt.Errorf("route message: %d bytes", len(m.Data))
	}
	family, bits, table := m.Data[0], int(m.Data[1]), uint32(m.Data[4])
	r.Protocol = int(m.Data[5])
	r.Direct = m.Data[7] == unix.RTN_UNICAST
	flags := binary.NativeEndian.Uint32(m.Data[8:])
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofRtMsg:])
	if err != nil {
		return r, 0, false, fmt.Errorf("route message: %w", err)
	}
	to := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		to = netip.IPv6Unspecified()
	}
	for ad.Next() {
		switch b := ad.Bytes(); ad.Type() {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(b)
		case unix.RTA_TABLE:
			table = ad.Uint32()
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			r.Direct = false
		case unix.RTA_OIF:
			index = int(ad.Uint32())
		case unix.RTA_MULTIPATH: // struct rtnexthop, of which ifindex is the last word
			r.Direct = false
			if len(b) >= unix.SizeofRtNexthop {
				index = int(int32(binary.NativeEndian.Uint32(b[4:])))
			}
		}
	}
	if err := ad.Err(); err != nil {
		return r, 0, false, fmt.Errorf("route message: %w", err)
	}
	r.Prefix = netip.PrefixFrom(to, bits)
	return r, index, table == unix.RT_TABLE_MAIN && flags&unix.RTM_F_CLONED == 0 && r.Prefix.IsValid(), nil
}
