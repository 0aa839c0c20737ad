package fib

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"netctl/netdev"
	"netctl/routing"
)

// Match is the route that the kernel takes for an address.
type Match struct {
	Route    routing.Route
	Protocol int
	Table    int
	// Local: the address is one of this machine.
	Local bool
	// MTUs are those of the next hops' links, in bytes.
	MTUs []int
}

// What a lookup finds in place of a route to go on by.
var (
	// ErrDiscarded is a blackhole.
	ErrDiscarded = errors.New("discarded by a blackhole route")
	// ErrRejected is an unreachable or prohibit route.
	ErrRejected = errors.New("rejected by a route")
)

// Lookup asks the kernel of the calling thread's network namespace which route packets
// to addr from this machine take, whichever program wrote it. ErrUnreachable,
// ErrDiscarded and ErrRejected say why there is none.
func Lookup(ctx context.Context, addr netip.Addr) (Match, error) {
	s, err := dial(answerBuffer)
	if err != nil {
		return Match{}, err
	}
	defer s.close()
	names := linkNames{socket: s}
	addr = addr.Unmap()
	flags := uint32(unix.RTM_F_FIB_MATCH)
	if addr.Is4() {
		flags |= unix.RTM_F_LOOKUP_TABLE // IPv6 tells its table anyway, and takes no such flag
	}
	request := appendRtMsg(nil, netip.PrefixFrom(addr, addr.BitLen()), 0, 0, 0, 0, flags)
	request = appendAddress(request, unix.RTA_DST, addr)
	var m routeMessage
	parsed := errRoute
	err = s.ask(ctx, unix.RTM_GETROUTE, 0, request, func() {}, func(b []byte) { parsed = m.parse(b) })
	switch {
	case errors.Is(err, unix.EINVAL):
		return Match{}, fmt.Errorf("look up %s: %w", addr, ErrDiscarded)
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES):
		return Match{}, fmt.Errorf("look up %s: %w", addr, ErrRejected)
	case errors.Is(err, unix.ENETUNREACH):
		return Match{}, fmt.Errorf("look up %s: %w", addr, ErrUnreachable)
	case err != nil:
		return Match{}, fmt.Errorf("look up %s: %w", addr, err)
	case parsed != nil:
		return Match{}, fmt.Errorf("look up %s: %w", addr, parsed)
	}
	out := Match{Route: m.route(), Protocol: int(m.protocol), Table: int(m.table), Local: m.kind == unix.RTN_LOCAL}
	out.Route.Object, out.Route.NextHops = m.object, m.nextHops()
	for i, h := range m.hops {
		var mtu int
		out.Route.NextHops[i].Link = names.name(h.link)
		err := s.ask(ctx, unix.RTM_GETLINK, 0, linkRequest(h.link, ""), func() {}, func(b []byte) {
			if l, err := netdev.ParseLink(b); err == nil {
				mtu = l.MTU
			}
		})
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return Match{}, fmt.Errorf("read link %s: %w", out.Route.NextHops[i].Link, err)
		}
		out.MTUs = append(out.MTUs, mtu)
	}
	return out, nil
}
