package fib

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/routing"
)

// defaultMetric6 is IP6_RT_PRIO_USER (include/uapi/linux/ipv6_route.h): what
// the kernel makes of metric 0.
const defaultMetric6 = 1024

func (t *Table) encode(r request) (netlink.Message, error) {
	m := rtnetlink.RouteMessage{
		Family: family(r.route.Prefix.Addr()), DstLength: uint8(r.route.Prefix.Bits()),
		Table: unix.RT_TABLE_MAIN, Protocol: t.protocol,
		Attributes: rtnetlink.RouteAttributes{
			Dst: r.route.Prefix.Addr().AsSlice(), Priority: uint32(r.route.Metric),
		},
	}
	if m.Family == unix.AF_INET6 && r.route.Metric == 0 {
		m.Attributes.Priority = defaultMetric6
	}
	head := netlink.Header{Type: unix.RTM_NEWROUTE, Flags: netlink.Request | netlink.Acknowledge | netlink.Create}
	switch r.op {
	case "delete":
		head = netlink.Header{Type: unix.RTM_DELROUTE, Flags: netlink.Request | netlink.Acknowledge}
		m.Scope = unix.RT_SCOPE_NOWHERE
	case "add":
		head.Flags |= netlink.Excl
	case "replace":
		head.Flags |= netlink.Replace
	}
	if r.op != "delete" {
		if err := t.encodeAction(r.route, &m); err != nil {
			return netlink.Message{}, err
		}
	}
	data, err := m.MarshalBinary()
	return netlink.Message{Header: head, Data: data}, err
}

// encodeAction fills what the route does: its type, scope and next hops.
func (t *Table) encodeAction(r routing.Route, m *rtnetlink.RouteMessage) error {
	if r.Type == routing.Blackhole {
		m.Type = unix.RTN_BLACKHOLE
		return nil
	}
	if len(r.NextHops) == 0 {
		return errors.New("no next hop")
	}
	m.Type = unix.RTN_UNICAST
	if m.Family == unix.AF_INET && !r.NextHops[0].Addr.IsValid() {
		m.Scope = unix.RT_SCOPE_LINK
	}
	for _, h := range r.NextHops {
		index, err := t.names.index(h.Link)
		if err != nil {
			return err
		}
		var flags uint8
		if h.Onlink {
			flags = unix.RTNH_F_ONLINK
		}
		if len(r.NextHops) == 1 {
			m.Flags, m.Attributes.Gateway, m.Attributes.OutIface = uint32(flags), slice(h.Addr), index
			return nil
		}
		m.Attributes.Multipath = append(m.Attributes.Multipath, rtnetlink.NextHop{
			Hop: rtnetlink.RTNextHop{Flags: flags, IfIndex: index}, Gateway: slice(h.Addr),
		})
	}
	return nil
}

// parse reads a route message; false: not IPv4 or IPv6, or a cloned (cached) route.
func parse(b []byte) (*rtnetlink.RouteMessage, bool) {
	var m rtnetlink.RouteMessage
	if err := m.UnmarshalBinary(b); err != nil || m.Flags&unix.RTM_F_CLONED != 0 {
		return nil, false
	}
	return &m, m.Family == unix.AF_INET || m.Family == unix.AF_INET6
}

func inMain(m *rtnetlink.RouteMessage) bool {
	if m.Attributes.Table != 0 {
		return m.Attributes.Table == unix.RT_TABLE_MAIN
	}
	return m.Table == unix.RT_TABLE_MAIN
}

func (t *Table) route(m *rtnetlink.RouteMessage) (routing.Route, bool) {
	addr := netip.IPv4Unspecified()
	if m.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	if m.Attributes.Dst != nil {
		var ok bool
		if addr, ok = netip.AddrFromSlice(m.Attributes.Dst); !ok {
			return routing.Route{}, false
		}
		if m.Family == unix.AF_INET {
			addr = addr.Unmap()
		}
	}
	r := routing.Route{Prefix: netip.PrefixFrom(addr, int(m.DstLength)), Metric: int(m.Attributes.Priority)}
	if m.Family == unix.AF_INET6 && r.Metric == defaultMetric6 {
		r.Metric = 0
	}
	if m.Type == unix.RTN_BLACKHOLE {
		r.Type = routing.Blackhole
		return r, true
	}
	for _, h := range m.Attributes.Multipath {
		r.NextHops = append(r.NextHops, t.hop(m.Family, h.Gateway, h.Hop.IfIndex, uint32(h.Hop.Flags)))
	}
	if len(m.Attributes.Multipath) == 0 {
		r.NextHops = []routing.NextHop{t.hop(m.Family, m.Attributes.Gateway, m.Attributes.OutIface, m.Flags)}
	}
	return r, true
}

func (t *Table) hop(family uint8, gateway net.IP, index uint32, flags uint32) routing.NextHop {
	h := routing.NextHop{Link: t.names.name(index), Onlink: flags&unix.RTNH_F_ONLINK != 0}
	if a, ok := netip.AddrFromSlice(gateway); ok {
		if family == unix.AF_INET {
			a = a.Unmap()
		}
		h.Addr = a
	}
	return h
}

func (t *Table) resolve(addr netip.Addr) (routing.NextHop, error) {
	addr = addr.Unmap()
	req := rtnetlink.RouteMessage{
		Family: family(addr), DstLength: uint8(addr.BitLen()),
		Attributes: rtnetlink.RouteAttributes{Dst: addr.AsSlice()},
	}
	data, err := req.MarshalBinary()
	if err != nil {
		return routing.NextHop{}, err
	}
	msgs, err := t.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request}, Data: data,
	})
	if err != nil {
		return routing.NextHop{}, fmt.Errorf("resolve %s: %w (%w)", addr, ErrUnreachable, errno(err))
	}
	if len(msgs) == 0 {
		return routing.NextHop{}, fmt.Errorf("resolve %s: %w", addr, ErrUnreachable)
	}
	var m rtnetlink.RouteMessage
	if err := m.UnmarshalBinary(msgs[0].Data); err != nil {
		return routing.NextHop{}, fmt.Errorf("resolve %s: %w", addr, err)
	}
	if m.Type != unix.RTN_UNICAST {
		return routing.NextHop{}, fmt.Errorf("resolve %s: %w (an address of this machine)", addr, ErrUnreachable)
	}
	h := t.hop(m.Family, m.Attributes.Gateway, m.Attributes.OutIface, 0)
	if !h.Addr.IsValid() {
		h.Addr = addr
	}
	return h, nil
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func slice(a netip.Addr) net.IP {
	if !a.IsValid() {
		return nil
	}
	return a.AsSlice()
}
