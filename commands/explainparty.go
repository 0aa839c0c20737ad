package commands

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// party is one end of a packet's way.
type party struct {
	Said    string     `json:"said"` // on the command line
	Address netip.Addr `json:"address"`
	// Node is the endpoint's, or the one whose address it is; "": neither.
	Node      string `json:"node,omitempty"`
	Endpoint  string `json:"endpoint,omitempty"`
	Interface string `json:"interface,omitempty"` // of the workload
	Link      string `json:"link,omitempty"`      // of the host

	endpoint  *datastore.Endpoint
	named     []datastore.Port // of the host endpoints of a node
	addresses []netip.Addr     // that it may be reached at, Address is to be one of them
}

// worldName is what stands for an address that is nobody's.
const worldName = "world"

// worldAddresses are for documentation (RFC 5737, RFC 3849): nobody has them.
func worldAddresses() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}
}

// workload is the hop within the workload.
func (p party) workload() string {
	return fmt.Sprintf("%s: %s of %s/%s, to interface %s of %s", p.Endpoint, p.Interface, p.endpoint.Spec.Orchestrator, p.endpoint.Spec.Workload, p.Link, p.Node)
}

func endpointParty(said string, e *datastore.Endpoint, addresses ...netip.Addr) party {
	return party{Said: said, Address: addresses[0], Node: e.Spec.Node, Endpoint: e.Metadata.Name, Interface: e.Spec.Interface, Link: e.Spec.Link, endpoint: e, addresses: addresses}
}

// ports are its named ones.
func (p party) ports() []datastore.Port {
	if p.endpoint == nil {
		return p.named
	}
	return p.endpoint.Spec.Ports
}

// between finds both parties and the addresses of one family that they use.
func (x *explainer) between(src, dst string, t traffic) (err error) {
	if x.src, err = x.party(src); err != nil {
		return err
	}
	if x.dst, err = x.party(dst); err != nil {
		return err
	}
	families := []bool{true, false} // Is4
	switch t.Protocol {
	case "icmp":
		families = families[:1]
	case "icmpv6":
		families = families[1:]
	}
	for _, four := range families {
		is := func(a netip.Addr) bool { return a.Is4() == four }
		i, j := slices.IndexFunc(x.src.addresses, is), slices.IndexFunc(x.dst.addresses, is)
		if i >= 0 && j >= 0 {
			x.src.Address, x.dst.Address = x.src.addresses[i], x.dst.addresses[j]
			return nil
		}
	}
	what := "IPv4 or IPv6 addresses"
	if t.Protocol == "icmp" {
		what = "IPv4 addresses"
	} else if t.Protocol == "icmpv6" {
		what = "IPv6 addresses"
	}
	return fmt.Errorf("%s (%s) and %s (%s) do not both have %s", src, joined(x.src.addresses), dst, joined(x.dst.addresses), what)
}

// comesIn takes the source for a stranger that only has its address, if somebody says by which
// interface the packet comes.
func (x *explainer) comesIn(dst string) error {
	switch {
	case x.in == "":
		return nil
	case !x.live:
		return usage("--in takes --live: only the agent knows which interface leads to whom")
	case x.dst.Node != x.settings.Node:
		return usage("--in: %s is not of this node (%s)", dst, x.settings.Node)
	}
	x.src = party{Said: x.src.Said, Address: x.src.Address, addresses: x.src.addresses}
	return nil
}

// party is who is called so.
func (x *explainer) party(said string) (party, error) {
	if said == worldName {
		return party{Said: said, addresses: worldAddresses()}, nil
	}
	if a, err := netip.ParseAddr(said); err == nil {
		if a = a.Unmap(); a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return party{}, usage("%q is not the address of a machine, like 10.65.1.5", said)
		}
		return x.partyAt(said, a), nil
	}
	found := x.endpoints(said)
	switch {
	case len(found) == 1 && len(found[0].Spec.Addresses) == 0:
		return party{}, fmt.Errorf("endpoint %s has no address", found[0].Metadata.Name)
	case len(found) == 1:
		return endpointParty(said, found[0], found[0].Spec.Addresses...), nil
	case len(found) > 1:
		var names []string
		for _, e := range found {
			names = append(names, e.Metadata.Name)
		}
		return party{}, usage("%q can be %s", said, strings.Join(names, " or "))
	}
	if n := x.view.Node(said); n != nil && len(n.Spec.Addresses) > 0 {
		p := party{Said: said, Node: said, named: x.hostPorts(said)}
		for _, a := range n.Spec.Addresses {
			p.addresses = append(p.addresses, a.Addr())
		}
		return p, nil
	}
	return party{}, datastore.As(datastore.ErrNotFound, "there is no endpoint or node %q; an address, or %s, will do too", said, worldName)
}

// partyAt is who has an address: an endpoint, a node, or nobody that is known.
func (x *explainer) partyAt(said string, a netip.Addr) party {
	t := tracer{settings: x.settings, view: x.view, addr: a}
	if e := t.endpoint(); e != nil {
		return endpointParty(said, e, a)
	}
	node := t.nodeAt(a)
	return party{Said: said, Node: node, named: x.hostPorts(node), addresses: []netip.Addr{a}}
}

// minPrefix is how many characters of a workload's ID say which one it is.
const minPrefix = 4

// endpoints are those that somebody may mean: by the first of the ways to name one that
// finds any.
func (x *explainer) endpoints(said string) []*datastore.Endpoint {
	for _, is := range []func(e *datastore.Endpoint) bool{
		func(e *datastore.Endpoint) bool { return e.Metadata.Name == said },
		func(e *datastore.Endpoint) bool { return strings.HasSuffix(e.Metadata.Name, "/"+said) },
		func(e *datastore.Endpoint) bool { return e.Spec.Workload == said },
		func(e *datastore.Endpoint) bool { return e.Metadata.Labels[datastore.LabelContainer] == said },
		func(e *datastore.Endpoint) bool { return e.Spec.Link == said },
		func(e *datastore.Endpoint) bool {
			return len(said) >= minPrefix && strings.HasPrefix(e.Spec.Workload, said)
		},
	} {
		if found := slices.DeleteFunc(x.view.Endpoints(), func(e *datastore.Endpoint) bool { return !is(e) }); len(found) > 0 {
			return found
		}
	}
	return nil
}
