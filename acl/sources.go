package acl

import (
	"net"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// linkSources are the sources the endpoint's link may use.
func linkSources(e *datastore.Endpoint) []Element {
	var out []Element
	for _, a := range addresses(e) {
		s := addrElement(a)
		s.Link = e.Spec.Link
		out = append(out, s)
	}
	return out
}

// guards calls fn for each element of the static sets that says which sources the
// link may use, and that it is an endpoint's though it is not in our group.
func (w wiring) guards(fn func(set string, e Element)) {
	src4, src6, arp4 := setSrc4, setSrc6, setARP4
	if w.mac { // what passes first is not theirs
		src4, src6, arp4 = setMACSrc4, setMACSrc6, setARPMACSrc4
		for _, set := range []string{setMACs, setARPMACs} {
			fn(set, w.linkLocal)
		}
		for _, set := range []string{setGuarded, setARPGuarded} {
			fn(set, Element{Link: w.linkLocal.Link})
		}
	}
	for _, e := range w.sources {
		if e.Prefix.Addr().Is4() {
			fn(src4, e)
			fn(arp4, e)
		} else {
			fn(src6, e)
		}
	}
	if w.encap {
		for _, e := range slices.Concat(w.sources, w.nets) {
			fn([...]string{setEncap4, setEncap6}[index4or6(e)], e)
		}
	}
	for _, e := range w.nets {
		if e.Prefix.Addr().Is4() {
			fn(setNets4, e)
			fn(setARPNets4, e)
		} else {
			fn(setNets6, e)
		}
	}
	if w.linkLocal.Prefix.IsValid() {
		fn(setLL6, w.linkLocal)
	}
	if w.adopted != "" {
		fn(setAdopted, Element{Link: w.adopted})
		fn(setAdoptedARP, Element{Link: w.adopted})
	}
}

// MAC is that of an element of a LinkMAC.
func (e Element) MAC() net.HardwareAddr {
	a := e.Prefix.Addr().As16()
	return net.HardwareAddr{a[8] ^ 2, a[9], a[10], a[13], a[14], a[15]}
}

// linkLocal is the link-local address that the workload's kernel makes of its MAC
// (RFC 4291, appendix A).
func linkLocal(e *datastore.Endpoint) Element {
	mac, err := net.ParseMAC(e.Spec.MAC)
	if err != nil || len(mac) != 6 {
		return Element{}
	}
	out := addrElement(netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}))
	out.Link = e.Spec.Link
	return out
}
