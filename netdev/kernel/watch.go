package kernel

import (
	"context"
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
	// HostChanged: an interface or an address that is not netctl's changed.
	HostChanged
)

// Event is one change of links or addresses.
type Event struct {
	Change Change
	Link   string
	Index  int
	Up     bool // administratively; for LinkChanged
	MTU    int  // bytes; for LinkChanged
}

// Watch calls fn for every change until ctx ends (its error is returned) or the
// kernel's socket fails. The first event, a Resync, comes when nothing can be
// missed any more.
func (k *Kernel) Watch(ctx context.Context, fn func(Event)) error {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: k.own.FD()})
	if err != nil {
		return fmt.Errorf("watch links: %w", cause(err))
	}
	stop := context.AfterFunc(ctx, func() { _ = nl.Close() })
	defer func() {
		if stop() {
			_ = nl.Close()
		}
	}()
	for _, group := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR} {
		if err := nl.JoinGroup(group); err != nil {
			return fmt.Errorf("watch links: %w", cause(err))
		}
	}
	fn(Event{Change: Resync})
	ours := map[int]bool{} // links of netctl, whose addresses are no news
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
			if ev, ok := event(m, ours); ok {
				fn(ev)
			}
		}
	}
}

// event turns a message into an Event; false: it is no news. ours is kept up to
// date with the links of netctl that were seen.
func event(m netlink.Message, ours map[int]bool) (Event, bool) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, err := parseLink(m)
		if err != nil {
			return Event{Change: Resync}, true
		}
		gone := m.Header.Type == unix.RTM_DELLINK
		ev := Event{Link: l.Name, Index: l.Index, Up: l.Up, MTU: l.MTU}
		switch {
		case l.group == netdev.GroupRetired:
			if gone {
				delete(ours, l.Index)
				return Event{}, false
			}
			ours[l.Index] = true
			return Event{}, false
		case l.group != netdev.Group:
			ev.Change = HostChanged
		case gone:
			delete(ours, l.Index)
			ev.Change = LinkGone
		default:
			ours[l.Index] = true
			ev.Change = LinkChanged
		}
		return ev, true
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, err := parseAddress(m)
		if err != nil {
			return Event{Change: Resync}, true
		}
		return Event{Change: HostChanged, Index: a.index}, !ours[a.index]
	}
	return Event{}, false
}
