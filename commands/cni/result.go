package cni

import (
	"encoding/json"
	"net/netip"

	"netctl/commands/control"
)

// result is a result of 0.3.1 to 1.1.0: the versions differ in fields that are
// left out.
type result struct {
	CNIVersion string        `json:"cniVersion"`
	Interfaces []resultLink  `json:"interfaces,omitempty"`
	IPs        []resultIP    `json:"ips,omitempty"`
	Routes     []resultRoute `json:"routes,omitempty"`
	DNS        dns           `json:"dns"`
}

type resultLink struct {
	Name    string `json:"name"`
	MAC     string `json:"mac,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
	// Since 1.1.0.
	MTU        int    `json:"mtu,omitempty"` // bytes
	SocketPath string `json:"socketPath,omitempty"`
	PCIID      string `json:"pciID,omitempty"`
}

type resultIP struct {
	Version   string     `json:"version,omitempty"` // "4" or "6", until 0.4.0
	Interface *int       `json:"interface,omitempty"`
	Address   string     `json:"address"`
	Gateway   netip.Addr `json:"gateway,omitzero"`
}

type resultRoute struct {
	Dst string     `json:"dst"`
	GW  netip.Addr `json:"gw,omitzero"`
	// Since 1.1.0.
	MTU      int  `json:"mtu,omitempty"`
	AdvMSS   int  `json:"advmss,omitempty"`
	Priority int  `json:"priority,omitempty"`
	Table    *int `json:"table,omitempty"`
	Scope    *int `json:"scope,omitempty"`
}

type dns struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

func (d dns) empty() bool {
	return len(d.Nameservers)+len(d.Search)+len(d.Options) == 0 && d.Domain == ""
}

// parseResult reads prevResult; nil if there is none.
func parseResult(raw json.RawMessage) (*result, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	r := new(result)
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, errorf(codeDecode, "prevResult: %v", err)
	}
	for _, ip := range r.IPs {
		if _, err := netip.ParsePrefix(ip.Address); err != nil {
			return nil, errorf(codeDecode, "prevResult: address %q is no address with prefix length", ip.Address)
		}
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(r.Interfaces)) {
			return nil, errorf(codeDecode, "prevResult: address %s: there is no interface %d", ip.Address, *i)
		}
	}
	return r, nil
}

// addresses are those of the interface of that name inside a container; false:
// there is no such interface. Where several plugins of a chain name it, the last
// counts.
func (r *result) addresses(name string) (addrs []netip.Addr, ok bool) {
	for _, ip := range r.IPs {
		if ip.Interface == nil {
			continue
		}
		if l := r.Interfaces[*ip.Interface]; l.Name != name || l.Sandbox == "" {
			continue
		}
		if p, err := netip.ParsePrefix(ip.Address); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	for _, l := range r.Interfaces {
		ok = ok || l.Name == name && l.Sandbox != ""
	}
	return addrs, ok
}

// attached appends an attachment to the result of the plugin before (nil:
// none). The addresses are the container's, with the gateway each of them uses.
func attached(prev *result, a control.Attachment, sandbox string, d dns) *result {
	r := new(result)
	if prev != nil {
		*r = *prev
	}
	if r.DNS.empty() {
		r.DNS = d
	}
	inside := len(r.Interfaces) + 1
	r.Interfaces = append(r.Interfaces,
		resultLink{Name: a.Link, MAC: a.LinkMAC, MTU: a.MTU},
		resultLink{Name: a.Interface, MAC: a.MAC, Sandbox: sandbox, MTU: a.MTU})
	for _, addr := range a.Addresses {
		ip := resultIP{Interface: &inside, Address: netip.PrefixFrom(addr, addr.BitLen()).String()}
		for _, gw := range a.Gateways {
			if gw.Is4() == addr.Is4() {
				ip.Gateway = gw.WithZone("")
			}
		}
		r.IPs = append(r.IPs, ip)
		if ip.Gateway.IsValid() {
			dst := "0.0.0.0/0"
			if addr.Is6() {
				dst = "::/0"
			}
			r.Routes = append(r.Routes, resultRoute{Dst: dst, GW: ip.Gateway})
		}
	}
	return r
}

// encode prints a result in the version of the request.
func (c *call) encode(r *result) ([]byte, error) {
	r.CNIVersion = c.conf.CNIVersion
	for i := range r.IPs {
		r.IPs[i].Version = ""
		if c.older("1.0.0") {
			r.IPs[i].Version = "4"
			if p, err := netip.ParsePrefix(r.IPs[i].Address); err == nil && p.Addr().Is6() {
				r.IPs[i].Version = "6"
			}
		}
	}
	if c.older("1.1.0") {
		for i, l := range r.Interfaces {
			r.Interfaces[i] = resultLink{Name: l.Name, MAC: l.MAC, Sandbox: l.Sandbox}
		}
		for i, rt := range r.Routes {
			r.Routes[i] = resultRoute{Dst: rt.Dst, GW: rt.GW}
		}
	}
	return json.Marshal(r)
}
