package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Change says what an Event is about.
type Change int

// What Watch reports.
const (
	// Resync: events were lost; everything is to be read again.
	Resync Change = iota
	// LinkChanged and LinkGone are about a link in netctl's group, Link its name.
	LinkChanged
	LinkGone
	// HostChanged: an interface or an address that is not netctl's changed. It may be
	// a link that somebody took out of netctl's group: Index tells.
	HostChanged
	// SideChanged: something that an attach set on the link with that Index may be
	// something else now.
	SideChanged
	// PeerChanged: what is on the other side of the link with that Index has MAC.
	PeerChanged
	// ForwardingOff: the host does not forward IPv4 (V4) or IPv6 any more.
	ForwardingOff
	// SettingChanged: the interface with that Index, which is no endpoint's, forwards
	// IPv4 now, or does not, or drops other packets by the way back to their sender
	// (rp_filter).
	SettingChanged
)

// Event is one change of links, addresses or settings.
type Event struct {
	Change Change
	Link   string
	Index  int
	Up     bool // administratively; for LinkChanged
	// Carrier, Altered and MTU are Link's, for LinkChanged and HostChanged.
	Carrier bool
	Altered bool
	MTU     int
	Gone    bool   // for HostChanged of an interface
	MAC     string // for PeerChanged
	V4      bool   // for ForwardingOff
}

// Watch calls fn for every change until ctx ends (its error is returned) or the
// kernel's socket fails. The first event, a Resync, comes when nothing can be
// missed any more.
func (k *Kernel) Watch(ctx context.Context, fn func(Event)) error {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: k.own.FD()})
	if err != nil {
		return fmt.Errorf("watch links: %w", cause(err))
	}
	if err := dropNeighbors(nl); err != nil {
		_ = nl.Close()
		return fmt.Errorf("watch links: %w", cause(err))
	}
	ours := map[int]bool{} // links of netctl, true for those in service
	begin := func() error {
		links, err := k.links()
		for _, l := range links {
			if l.group == netdev.Group || l.group == netdev.GroupShaper {
				ours[l.Index] = l.group == netdev.Group
			}
		}
		return err
	}
	return listen(ctx, nl, begin, fn, func(m netlink.Message) (Event, bool) { return event(m, ours, k.port) },
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_NEIGH)
}

// WatchPeers calls fn for every change of what is on the other side of a link, in
// the workload's namespace, until ctx ends or the kernel's socket fails.
func (k *Kernel) WatchPeers(ctx context.Context, fn func(Event)) error {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: k.own.FD()})
	if err == nil {
		if err = nl.SetOption(netlink.ListenAllNSID, true); err != nil {
			_ = nl.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("watch workload sides: %w", cause(err))
	}
	return listen(ctx, nl, func() error { return nil }, fn, peerEvent, unix.RTNLGRP_LINK)
}

// listen hands on what read makes of the notifications of groups. begin is called
// when nothing can be missed any more.
func listen(ctx context.Context, nl *netlink.Conn, begin func() error, fn func(Event), read func(netlink.Message) (Event, bool), groups ...uint32) error {
	stop := context.AfterFunc(ctx, func() { _ = nl.Close() })
	defer func() {
		if stop() {
			_ = nl.Close()
		}
	}()
	for _, group := range groups {
		if err := nl.JoinGroup(group); err != nil {
			return fmt.Errorf("watch links: %w", cause(err))
		}
	}
	if err := begin(); err != nil {
		return fmt.Errorf("watch links: %w", err)
	}
	fn(Event{Change: Resync})
	for {
		msgs, err := nl.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			fn(Event{Change: Resync})
			continue
		case err != nil:
			return fmt.Errorf("watch links: %w", cause(err))
		}
		for _, m := range msgs {
			if ev, ok := read(m); ok {
				fn(ev)
			}
		}
	}
}

// event turns a message into an Event; false: it is no news. ours is kept up to
// date with the links of netctl that were seen, true for those in service; port is
// the socket that this process writes neighbour entries with.
func event(m netlink.Message, ours map[int]bool, port uint32) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := parseLink(m)
		switch {
		case err != nil:
			return Event{Change: Resync}, true
		case l.family != unix.AF_UNSPEC:
			return Event{}, false // a bridge on its port
		}
		return linkEvent(l, m.Header.Type == unix.RTM_DELLINK, ours)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, err := parseAddress(m)
		if err != nil {
			return Event{Change: Resync}, true
		}
		if serving, is := ours[a.index]; is {
			return Event{Change: SideChanged, Index: a.index}, serving && (m.Header.Type == unix.RTM_NEWADDR) == (a.prefix != ownAddress())
		}
		return Event{Change: HostChanged, Index: a.index}, true
	case unix.RTM_NEWNETCONF:
		s, err := parseSetting(m)
		if err != nil {
			return Event{Change: Resync}, true
		}
		return settingEvent(s, ours)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, err := parseNeighbor(m)
		if err != nil {
			return Event{Change: Resync}, true
		}
		return Event{Change: SideChanged, Index: n.index}, ours[n.index] && m.Header.PID != port
	}
	return Event{}, false
}

func linkEvent(l rawLink, gone bool, ours map[int]bool) (Event, bool) {
	ev := Event{Link: l.Name, Index: l.Index, Up: l.Up, Carrier: l.Carrier, MTU: l.MTU, Altered: altered(l)}
	switch {
	case l.group == netdev.GroupRetired || l.group == netdev.GroupShaper:
		ours[l.Index] = false
		if gone {
			delete(ours, l.Index)
		}
		return Event{}, false
	case l.group != netdev.Group:
		ev.Change, ev.Gone = HostChanged, gone
	case gone:
		delete(ours, l.Index)
		ev.Change = LinkGone
	default:
		ours[l.Index] = true
		ev.Change = LinkChanged
	}
	return ev, true
}

// settingEvent makes news of settings that are not what an attach or an agent sets.
// All of them in one message are those that an interface is born with.
func settingEvent(s rawSetting, ours map[int]bool) (Event, bool) {
	is := func(v *bool, want bool) bool { return v != nil && *v == want }
	_, known := ours[s.index]
	switch {
	case s.index == netconfAll:
		return Event{Change: ForwardingOff, V4: s.v4}, is(s.forwarding, false)
	case s.index < 0 || !s.v4 || s.forwarding != nil && s.proxy != nil:
		return Event{}, false
	case known:
		return Event{Change: SideChanged, Index: s.index}, ours[s.index] && (is(s.forwarding, false) || is(s.proxy, false))
	}
	return Event{Change: SettingChanged, Index: s.index}, s.forwarding != nil || s.path
}

// peerEvent makes news of a veth's side in another namespace.
func peerEvent(m netlink.Message) (Event, bool) {
	if m.Header.Type != unix.RTM_NEWLINK {
		return Event{}, false
	}
	l, err := parseLink(m)
	if err != nil || l.family != unix.AF_UNSPEC || !l.apart || l.kind != "veth" || l.mac.String() == netdev.HostMAC {
		return Event{}, false
	}
	return Event{Change: PeerChanged, Index: l.peer, MAC: l.mac.String()}, true
}

// dropNeighbors has the kernel drop the notifications of neighbours but for those
// of entries that are permanent or, which is how a permanent one goes, failed: what
// hosts ask each other in passing is no news.
func dropNeighbors(nl *netlink.Conn) error {
	const offsetType, offsetState = 4, unix.NLMSG_HDRLEN + 8 // nlmsg_type; ndm_state of struct ndmsg
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: at}
	}
	// is skips the next yes or no instructions.
	is := func(v uint16, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v))), Jt: yes, Jf: no}
	}
	program := []unix.SockFilter{
		load(offsetType),
		is(unix.RTM_NEWNEIGH, 1, 0),
		is(unix.RTM_DELNEIGH, 0, 3),
		load(offsetState),
		is(unix.NUD_PERMANENT, 1, 0),
		is(unix.NUD_FAILED, 0, 1),
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	raw, err := nl.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	return errors.Join(err, set)
}
