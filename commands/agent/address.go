package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// resolveTimeout bounds the look-up of a datastore endpoint's name.
const resolveTimeout = 2 * time.Second

// chooser decides which addresses are the node's (docs/routing.md, "The mesh").
type chooser struct {
	configured []netip.Addr
	pattern    string           // of the interface
	have       []kernel.Address // without our own links, loopback and link-local IPv6
	// known are the addresses that other nodes know this one by, best first: one of
	// them stays the node's as long as it is on an interface that may have it.
	known []netip.Addr
	// targets are what the node talks to, best first; the address is the one
	// towards the first of them that is neither loopback nor the host's own.
	targets []target
	resolve func(netip.Addr) (routing.NextHop, error)
}

type target struct {
	addr netip.Addr
	what string
}

// choose returns the node's addresses with their prefix lengths, IPv4 first, and
// which rule decided. No address at all is no error.
func (c chooser) choose() (chosen []netip.Prefix, rule string, err error) {
	if len(c.configured) > 0 {
		for _, want := range c.configured {
			i := slices.IndexFunc(c.have, func(a kernel.Address) bool { return a.Prefix.Addr() == want })
			if i < 0 {
				return nil, "", fmt.Errorf("address %s: on no interface of this host: correct agent.addresses or add the address", want)
			}
			chosen = append(chosen, c.have[i].Prefix)
		}
		slices.SortFunc(chosen, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
		return chosen, "configured", nil
	}
	for _, v6 := range []bool{false, true} {
		p, why := c.one(v6)
		if !p.IsValid() {
			continue
		}
		chosen = append(chosen, p)
		if rule == "" {
			rule = why
		}
	}
	switch {
	case len(chosen) == 0 && c.pattern != "":
		return nil, "", fmt.Errorf("interface %q: no interface of that name has an address: correct agent.interface", c.pattern)
	case len(chosen) == 0:
		rule = "none found"
	}
	return chosen, rule, nil
}

// one is the address of a family, not valid if there is none.
func (c chooser) one(v6 bool) (p netip.Prefix, rule string) {
	usable := c.usable(v6)
	for _, known := range c.known {
		if i := slices.IndexFunc(usable, func(a kernel.Address) bool { return a.Prefix.Addr() == known }); i >= 0 {
			return usable[i].Prefix, "as registered before, on " + usable[i].Link
		}
	}
	if len(usable) == 0 {
		return netip.Prefix{}, ""
	}
	if c.pattern != "" {
		return usable[0].Prefix, fmt.Sprintf("interface %s matches %q", usable[0].Link, c.pattern)
	}
	for _, t := range c.targets {
		if t.addr.Is6() != v6 || t.addr.IsLoopback() || c.own(t.addr) {
			continue
		}
		hop, err := c.resolve(t.addr)
		if err != nil {
			continue
		}
		if a, ok := towards(hop, usable); ok {
			return a.Prefix, fmt.Sprintf("route to %s %s", t.what, t.addr)
		}
	}
	return usable[0].Prefix, "first address, on " + usable[0].Link
}

// usable are the addresses of a family that may be the node's; those that will not
// stay come last.
func (c chooser) usable(v6 bool) (list []kernel.Address) {
	for _, a := range c.have {
		ip := a.Prefix.Addr()
		if ip.Is6() != v6 || ip.IsLinkLocalUnicast() || a.Loopback || netdev.LeadsAway(a.Link) && c.pattern == "" {
			continue
		}
		if ok, _ := path.Match(c.pattern, a.Link); c.pattern != "" && !ok {
			continue
		}
		list = append(list, a)
	}
	slices.SortStableFunc(list, func(a, b kernel.Address) int {
		switch {
		case a.Passing == b.Passing:
			return 0
		case b.Passing:
			return -1
		}
		return 1
	})
	return list
}

func (c chooser) own(ip netip.Addr) bool {
	return slices.ContainsFunc(c.have, func(a kernel.Address) bool { return a.Prefix.Addr() == ip })
}

// towards is the address of the outgoing interface, of its several the one in
// the next hop's subnet.
func towards(hop routing.NextHop, usable []kernel.Address) (found kernel.Address, ok bool) {
	for _, a := range usable {
		if a.Link != hop.Link {
			continue
		}
		if a.Subnet.Contains(hop.Addr) {
			return a, true
		}
		if !ok {
			found, ok = a, true
		}
	}
	return found, ok
}

// storeTargets are the addresses of the datastore's endpoints. A unix socket has
// none.
func storeTargets(ctx context.Context, endpoints []string) (targets []target) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme == "unix" || u.Hostname() == "" {
			continue
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		if err != nil {
			continue
		}
		for _, ip := range ips {
			targets = append(targets, target{ip.Unmap(), "datastore"})
		}
	}
	return targets
}

// nodeTargets are the addresses of the other nodes.
func nodeTargets(self string, nodes []*datastore.Node) (targets []target) {
	for _, n := range nodes {
		if n.Metadata.Name == self {
			continue
		}
		for _, p := range n.Spec.Addresses {
			targets = append(targets, target{p.Addr(), "node " + n.Metadata.Name})
		}
	}
	return targets
}
