package agent

import (
	"net/netip"

	"netctl/commands/control"
	"netctl/netdev/kernel"
)

// addresses is one of each family, IPv4 first: those by which other nodes know this
// one. One that is gone from its interface stays here until it is back, another one
// is on that interface, or the agent starts anew. Its owner is the loop.
type addresses [2]kernel.Address

func (a *addresses) of(ip netip.Addr) *kernel.Address {
	if ip.Is4() {
		return &a[0]
	}
	return &a[1]
}

// knownBy is what this node is known by, best first: an address that was gone may be
// back.
func (l *loop) knownBy() (list []netip.Addr) {
	for _, a := range l.own {
		if a.Prefix.IsValid() {
			list = append(list, a.Prefix.Addr())
		}
	}
	for _, p := range l.registered() {
		list = append(list, p.Addr())
	}
	return list
}

// registered are the addresses that this host registered the node with.
func (l *loop) registered() []netip.Prefix {
	if n := l.view.Node(l.cfg.Node); n != nil && n.Status.Host == l.host {
		return n.Spec.Addresses
	}
	return nil
}

// goBy takes the addresses that were chosen; none: other nodes go on with what they
// know.
func (l *loop) goBy(chosen []netip.Prefix) {
	if len(chosen) == 0 {
		chosen = l.registered()
	}
	text := ""
	if len(chosen) == 0 {
		text = "this host has no address that other nodes could reach: give it one, or set agent.addresses"
	}
	l.problems.note("address", text)
	for _, p := range chosen {
		now := kernel.Address{Prefix: p}
		if a := l.links.address(p.Addr()); a != nil {
			now = *a
		}
		was := l.own.of(p.Addr())
		if !was.Prefix.IsValid() || was.Link == now.Link || l.links.address(was.Prefix.Addr()) != nil {
			*was = now
		}
	}
	l.noteOwn()
}

// noteOwn tells which of the node's addresses are on no interface any more, or on one that
// is down: those by which other nodes know it, until they know it by another one.
func (l *loop) noteOwn() {
	for i, a := range l.own {
		text, ip := "", a.Prefix.Addr()
		known := l.registeredAs(i == 1)
		is := l.links.address(known)
		off := ""
		if i == 1 && ip.IsValid() && l.links.address(ip) == nil {
			off = l.links.kernel.IPv6Off(a.Link)
		}
		switch nowhere := known.IsValid() && is == nil; {
		case is != nil && is.Down:
			text = known.String() + " is on " + is.Link + ", which is down: `ip link set " + is.Link + " up`"
		case off != "":
			text = ip.String() + " is gone, as " + off + " is 1: `sysctl -w " + off + "=0`, and add the address again"
		case nowhere && known != ip:
			text = known.String() + " is on no interface any more, and other nodes know this one by it until it is registered with another one"
			if ip.IsValid() {
				text += ": " + ip.String()
			}
		case !ip.IsValid() || l.links.address(ip) != nil:
		case len(l.cfg.Addresses) > 0:
			text = ip.String() + " is on no interface any more, and other nodes know this one by it: add it again, or correct agent.addresses"
		case nowhere:
			text = ip.String() + " is on no interface any more, and other nodes know this one by it: add it again"
		case known.IsValid():
			text = ip.String() + " is gone from " + a.Link + ", other nodes know this one by " + known.String() + " now: add it again, or restart the agent to leave it at that"
		default:
			text = ip.String() + " is gone from " + a.Link + ", other nodes reach this one by the other family alone: add it again, or restart the agent to leave it at that"
		}
		l.problems.note([]string{control.OwnAddress4, control.OwnAddress6}[i], text)
	}
}

// registeredAs is the address of a family that this host registered the node with; not
// valid: none.
func (l *loop) registeredAs(v6 bool) netip.Addr {
	for _, p := range l.registered() {
		if p.Addr().Is6() == v6 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}
