package cni

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// bandwidth is the capability of that name (CNI conventions): bits per second, and bits at
// once. A rate of 0 is none, whatever its burst says.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

// rates are those of the interface: ingress is what the container is sent.
func (b bandwidth) rates() (datastore.Bandwidth, error) {
	rate := func(bits, burst uint64) datastore.Rate {
		if bits == 0 {
			return datastore.Rate{}
		}
		if burst == math.MaxUint32 { // containerd's word for: none was said
			burst = 0
		}
		return datastore.Rate{Bits: bits, Burst: burst}
	}
	r := datastore.Bandwidth{Ingress: rate(b.IngressRate, b.IngressBurst), Egress: rate(b.EgressRate, b.EgressBurst)}
	if err := r.Validate(); err != nil {
		return r, errorf(codeConfig, "runtimeConfig.bandwidth%v", err)
	}
	return r, nil
}

// ipRange is an element of the capability "ipRanges" (CNI conventions). Its gateway is of
// networks that have one in the subnet.
type ipRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
}

// prefixes are those that cover exactly the range.
func (r ipRange) prefixes() ([]netip.Prefix, error) {
	subnet, err := netip.ParsePrefix(r.Subnet)
	if err != nil {
		return nil, errorf(codeConfig, "runtimeConfig.ipRanges: subnet %q is no CIDR, like 10.0.0.0/26", r.Subnet)
	}
	subnet = subnet.Masked()
	bounds := []netip.Addr{subnet.Addr(), datastore.LastAddr(subnet)}
	for i, text := range []string{r.RangeStart, r.RangeEnd} {
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || !subnet.Contains(a) {
			return nil, errorf(codeConfig, "runtimeConfig.ipRanges: %q is no address in %s", text, subnet)
		}
		bounds[i] = a
	}
	if bounds[1].Less(bounds[0]) {
		return nil, errorf(codeConfig, "runtimeConfig.ipRanges: %s is after %s", bounds[0], bounds[1])
	}
	return span(bounds[0], bounds[1]), nil
}

// span are the fewest prefixes that hold exactly the addresses from first to last.
func span(first, last netip.Addr) (list []netip.Prefix) {
	for first.IsValid() && !last.Less(first) {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || last.Less(datastore.LastAddr(wider)) {
				break
			}
			p = wider
		}
		list = append(list, p)
		first = datastore.LastAddr(p).Next()
	}
	return list
}

// ranges are where the addresses may lie: one set of ranges for each family. Without one
// of IPv6 that is not restricted; without one of IPv4 there is to be no such address.
func (c *netConf) ranges() (within []netip.Prefix, v6, only6 bool, err error) {
	var families []bool
	for _, set := range c.RuntimeConfig.IPRanges {
		for i, r := range set {
			p, err := r.prefixes()
			if err != nil {
				return nil, false, false, err
			}
			is6 := p[0].Addr().Is6()
			switch {
			case i == 0 && slices.Contains(families, is6):
				return nil, false, false, errorf(codeConfig, "runtimeConfig.ipRanges: only one set of a family can be had")
			case i == 0:
				families = append(families, is6)
			case is6 != families[len(families)-1]:
				return nil, false, false, errorf(codeConfig, "runtimeConfig.ipRanges: %s is of another family than the rest of its set", r.Subnet)
			}
			within = append(within, p...)
		}
	}
	v6 = slices.Contains(families, true)
	if len(within) > 0 && !v6 {
		within = append(within, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	return within, v6, v6 && !slices.Contains(families, false), nil
}

// aliases is the capability of that name: a list of names, or, as Podman has it, one for
// each of the container's networks.
func (c *netConf) aliases() ([]string, error) {
	raw := c.RuntimeConfig.Aliases
	var list []string
	var by map[string][]string
	if len(raw) == 0 || json.Unmarshal(raw, &list) == nil {
		return list, nil
	}
	if json.Unmarshal(raw, &by) != nil {
		return nil, errorf(codeDecode, "network configuration: runtimeConfig.aliases: must be a list of names, or such a list for each network")
	}
	return by[c.Name], nil
}

// aliasLabel is what is kept of aliases: as many as a label has room for.
func aliasLabel(aliases []string) (text string) {
	for _, a := range aliases {
		longer := strings.TrimPrefix(fmt.Sprintf("%s,%s", text, a), ",")
		if a != "" && datastore.CheckLabel(datastore.LabelAliases, longer) == nil {
			text = longer
		}
	}
	return text
}
