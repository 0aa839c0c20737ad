package acl

import (
	"fmt"
	"net/netip"

	"netctl/datastore"
)

// The chains of published ports: what is sent to a port of the host goes to an endpoint,
// from elsewhere and from the host itself, and what an endpoint sends itself in this way
// looks as if it came from the host. Whether it arrives the endpoint's rules decide, as
// of all else: they see its own port. The chains are there while a port is published.
const (
	ChainPortsIn   = "ports_in"
	ChainPortsOut  = "ports_out"
	ChainPortsBack = "ports_back"
)

// setPorts takes what an endpoint of this node publishes; nil: nothing.
func (x *Index) setPorts(name string, e *datastore.Endpoint) {
	_, had := x.published[name]
	switch {
	case e != nil && e.Spec.Node == x.node && len(e.Spec.HostPorts) > 0:
		x.published[name] = e
	case had:
		delete(x.published, name)
	default:
		return
	}
	for _, c := range []struct {
		name  string
		hook  Hook
		rules func(*datastore.Endpoint) []Rule
	}{
		{ChainPortsIn, Hook{"prerouting", priorityDNAT}, func(e *datastore.Endpoint) []Rule { return redirects(e, false) }},
		{ChainPortsOut, Hook{"output", priorityDNAT}, func(e *datastore.Endpoint) []Rule { return redirects(e, true) }},
		{ChainPortsBack, Hook{"postrouting", 90}, hairpins},
	} {
		chain := x.chains[c.name]
		if len(x.published) == 0 {
			if chain != nil && chain.refs > 0 {
				x.release(c.name)
			}
			continue
		}
		if chain == nil {
			chain = x.newChain(c.name)
			chain.hook = &c.hook
		}
		chain.refs = 1
		var p program
		for _, name := range sortedKeys(x.published) {
			p.rules = append(p.rules, c.rules(x.published[name])...)
		}
		x.recompile(chain, p)
	}
}

// redirects lead from the ports of the host to those of the endpoint. What the host
// sends to 127.0.0.0/8 or ::1 stays with it: it could not be answered.
func redirects(e *datastore.Endpoint, own bool) (list []Rule) {
	for _, p := range e.Spec.HostPorts {
		for _, a := range e.Spec.Addresses {
			if p.HostIP.IsValid() && p.HostIP.Is4() != a.Is4() {
				continue
			}
			r := Rule{Counter: true, Verdict: Verdict{Kind: Redirect, To: netip.AddrPortFrom(a, p.Port)}, Comment: clip("published by " + e.Metadata.Name)}
			nf, dst, loopback := uint32(nfIPv4), DstIP4, netip.MustParsePrefix("127.0.0.0/8")
			if a.Is6() {
				nf, dst, loopback = nfIPv6, DstIP6, netip.MustParsePrefix("::1/128")
			}
			r.Match = []Term{num(NFProto, nf), num(L4Proto, protocolNumber(p.Protocol)), num(DstPort, uint32(p.HostPort))}
			if p.HostIP.IsValid() {
				r.Match = append(r.Match, num(NFProto, nf), Term{Field: dst, Prefix: netip.PrefixFrom(p.HostIP, p.HostIP.BitLen())})
			} else {
				r.Match = append(r.Match, num(DstType, typeLocal))
			}
			if own {
				r.Match = append(r.Match, num(NFProto, nf), Term{Field: dst, Prefix: loopback, Not: true})
			}
			list = append(list, r)
		}
	}
	return list
}

// hairpins let an endpoint reach itself by a port of the host: it takes no packet with
// its own address as source.
func hairpins(e *datastore.Endpoint) (list []Rule) {
	for _, a := range e.Spec.Addresses {
		nf, src, dst := uint32(nfIPv4), SrcIP4, DstIP4
		if a.Is6() {
			nf, src, dst = nfIPv6, SrcIP6, DstIP6
		}
		own := netip.PrefixFrom(a, a.BitLen())
		list = append(list, Rule{
			Match:   []Term{num(NFProto, nf), {Field: src, Prefix: own}, num(NFProto, nf), {Field: dst, Prefix: own}},
			Counter: true, Verdict: Verdict{Kind: Masquerade}, Comment: clip(fmt.Sprintf("to itself by a port of the host: %s", e.Metadata.Name)),
		})
	}
	return list
}

func protocolNumber(name string) uint32 {
	for _, p := range []uint32{protoTCP, protoUDP, protoSCTP} {
		if transportName(p) == name {
			return p
		}
	}
	return 0
}
