package ui

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/datastore"
)

// kind is traffic that no rule between two endpoints tells apart, and a packet of it.
type kind struct {
	protocol, ports string
	is4, is6        bool // of one family alone
	packet          acl.Packet
}

// anyProtocol stands for those that no rule names (RFC 3692).
const anyProtocol = 253

// traffic parts what one endpoint may send to another by what their rules ask for.
func (c *cluster) traffic(from, to *datastore.Endpoint) []kind {
	return kindsOf(c.between(from, to), to)
}

// between are the rules that may be asked of what one endpoint sends to another.
func (c *cluster) between(from, to *datastore.Endpoint) (rules []datastore.Rule) {
	for _, name := range from.Spec.Profiles {
		if p := c.profiles[name]; p != nil {
			rules = append(rules, p.Spec.Outbound...)
		}
	}
	for _, name := range to.Spec.Profiles {
		if p := c.profiles[name]; p != nil {
			rules = append(rules, p.Spec.Inbound...)
		}
	}
	for _, p := range c.policies { // whether it picks them or not: too many parts are no fault
		rules = slices.Concat(rules, p.Spec.Egress, p.Spec.Ingress)
	}
	return rules
}

// kindsOf parts what an endpoint may be sent by what rules ask for.
func kindsOf(rules []datastore.Rule, to *datastore.Endpoint) (list []kind) {
	named := map[uint8]bool{}
	for _, r := range rules {
		named[r.Protocol.Number] = r.Protocol.Set || named[r.Protocol.Number]
	}
	for _, number := range []uint8{datastore.ProtocolTCP, datastore.ProtocolUDP, datastore.ProtocolSCTP} {
		if number != datastore.ProtocolSCTP || named[number] {
			list = append(list, ported(number, rules, to)...)
		}
		delete(named, number)
	}
	list = append(list, echoes(rules)...)
	delete(named, datastore.ProtocolICMP)
	delete(named, datastore.ProtocolICMPv6)
	for _, number := range slices.Sorted(maps.Keys(named)) {
		if named[number] && number != anyProtocol {
			list = append(list, kind{protocol: fmt.Sprint("protocol ", number), packet: acl.Packet{Protocol: number}})
		}
	}
	return append(list, kind{protocol: "other protocols", packet: acl.Packet{Protocol: anyProtocol}})
}

// ported is a protocol with ports, parted where a rule's ports begin or end.
func ported(number uint8, rules []datastore.Rule, to *datastore.Endpoint) (list []kind) {
	name := datastore.ProtocolMatch{Number: number, Set: true}.String()
	cuts := map[int]bool{1: true}
	cut := func(first, last uint16) {
		cuts[int(first)] = true
		cuts[int(max(first, last))+1] = true
	}
	for _, r := range rules {
		for _, p := range r.To.Ports {
			if p.Name == "" {
				cut(p.First, p.Last)
			}
			for _, q := range to.Spec.Ports {
				if p.Name != "" && q.Name == p.Name && q.Protocol == name {
					cut(q.Port, q.Port)
				}
			}
		}
	}
	delete(cuts, 0)
	delete(cuts, 1<<16)
	starts := slices.Sorted(maps.Keys(cuts))
	for i, first := range starts {
		last := 1<<16 - 1
		if i+1 < len(starts) {
			last = starts[i+1] - 1
		}
		list = append(list, kind{protocol: name, ports: portRange(first, last),
			packet: acl.Packet{Protocol: number, SrcPort: clientPort, DstPort: uint16(first)}})
	}
	return list
}

// echoes are ICMP's echo requests, and the types that rules name.
func echoes(rules []datastore.Rule) []kind {
	list := []kind{
		{protocol: "icmp echo", is4: true, packet: acl.Packet{Protocol: datastore.ProtocolICMP, Type: 8}},
		{protocol: "icmpv6 echo", is6: true, packet: acl.Packet{Protocol: datastore.ProtocolICMPv6, Type: 128}},
	}
	seen := map[acl.Packet]bool{list[0].packet: true, list[1].packet: true}
	for _, r := range rules {
		m := r.Protocol
		p := acl.Packet{Protocol: m.Number, Type: m.Type, Code: m.Code}
		if !m.HasType || seen[p] {
			continue
		}
		seen[p] = true
		m.Not, m.Set = false, true
		list = append(list, kind{protocol: m.String(), is4: m.Number == datastore.ProtocolICMP, is6: m.Number == datastore.ProtocolICMPv6, packet: p})
	}
	return list
}

// asked is what the rules of a cluster ask of an endpoint beside its profiles.
type asked struct {
	selectors map[string]*datastore.Selector
	cidrs     map[string]netip.Prefix
	ports     map[string]bool // names
}

func (c *cluster) asked() asked {
	a := asked{map[string]*datastore.Selector{}, map[string]netip.Prefix{}, map[string]bool{}}
	for _, p := range c.profiles {
		a.of(slices.Concat(p.Spec.Inbound, p.Spec.Outbound))
	}
	for _, o := range c.others {
		switch o := o.(type) {
		case *datastore.Policy:
			a.selector(o.Spec.Selector)
			a.of(slices.Concat(o.Spec.Ingress, o.Spec.Egress))
		case *datastore.NetworkSet:
			for _, p := range o.Spec.CIDRs {
				a.cidrs[p.String()] = p
			}
		}
	}
	return a
}

// of adds what rules ask for.
func (a asked) of(rules []datastore.Rule) {
	for _, r := range rules {
		for _, s := range []datastore.Side{r.From, r.To} {
			a.selector(s.Selector.Value)
			for _, c := range s.CIDRs {
				a.cidrs[c.String()] = c
			}
			for _, q := range s.Ports {
				a.ports[q.Name] = q.Name != ""
			}
		}
	}
}

func (a asked) selector(text string) {
	if s, err := datastore.ParseSelector(text); err == nil && text != "" {
		a.selectors[text] = s
	}
}

// traits are those that an endpoint has, in words, sorted.
func (a asked) traits(e *datastore.Endpoint, profiles map[string]*datastore.Profile) (list []string) {
	labels := map[string]string{}
	for _, name := range slices.Backward(e.Spec.Profiles) {
		if p := profiles[name]; p != nil {
			maps.Copy(labels, p.Spec.Labels)
		}
	}
	maps.Copy(labels, e.Metadata.Labels)
	for text, s := range a.selectors {
		if s.Matches(labels) {
			list = append(list, text)
		}
	}
	for text, p := range a.cidrs {
		for _, addr := range e.Spec.Addresses {
			if p.Contains(addr) {
				list = append(list, "in "+text)
				break
			}
		}
	}
	for _, p := range e.Spec.Ports {
		if a.ports[p.Name] {
			list = append(list, fmt.Sprintf("port %s is %s %d", p.Name, strings.ToLower(p.Protocol), p.Port))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
