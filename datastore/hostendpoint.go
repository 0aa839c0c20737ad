package datastore

import (
	"net/netip"
	"slices"
)

// needsHostEndpoints is the ModelVersion that brought host endpoints, and what policies have
// for them alone.
const needsHostEndpoints = 5

// AllInterfaces is the interface name of a host endpoint that is every one of the node's own
// which no other host endpoint is.
const AllInterfaces = "*"

// HostEndpoint is an interface of a node itself, or all of them: policies that pick it by its
// labels, and behind them its profiles, decide what the node sends and gets there.
type HostEndpoint struct {
	Metadata Metadata         `json:"metadata"`
	Spec     HostEndpointSpec `json:"spec"`
}

// HostEndpointSpec says which interface it is, and what rules know of it.
type HostEndpointSpec struct {
	Node string `json:"node"`
	// InterfaceName is the interface's, or AllInterfaces; without it the endpoint is each
	// interface that has one of ExpectedIPs.
	InterfaceName string `json:"interfaceName,omitempty"`
	// ExpectedIPs are what tags, selectors and named ports in rules take for its addresses.
	ExpectedIPs []netip.Addr `json:"expectedIPs,omitempty"`
	// Profiles apply in order behind policies; the first rule that matches decides.
	Profiles []string `json:"profiles,omitempty"`
	Ports    []Port   `json:"ports,omitempty"`
}

// Kind returns KindHostEndpoint.
func (*HostEndpoint) Kind() Kind { return KindHostEndpoint }

// Meta implements Object.
func (h *HostEndpoint) Meta() *Metadata { return &h.Metadata }

// SetDefaults implements Object.
func (*HostEndpoint) SetDefaults() {}

// Validate implements Object.
func (h *HostEndpoint) Validate() error {
	s := h.Spec
	if err := checkMeta(h); err != nil {
		return err
	}
	switch {
	case s.InterfaceName == "" && len(s.ExpectedIPs) == 0:
		return &FieldError{Field: "spec.interfaceName", Reason: "is missing: a name, " + AllInterfaces + " for every interface, or expectedIPs that the interface has"}
	case s.InterfaceName == "lo":
		return &FieldError{Field: "spec.interfaceName", Value: s.InterfaceName, Reason: "is the node's way to itself, which no policy decides about"}
	case s.InterfaceName != "" && s.InterfaceName != AllInterfaces:
		if err := checkInterface(s.InterfaceName); err != nil {
			return at("spec.interfaceName", err)
		}
	}
	return firstError(
		at("spec.node", CheckName(s.Node)),
		each("spec.expectedIPs", s.ExpectedIPs, func(a netip.Addr) error { return checkAddr("", a) }),
		each("spec.profiles", s.Profiles, CheckName),
		each("spec.ports", s.Ports, checkPort))
}

// checkHostEndpoint refuses two host endpoints of one interface, and profiles that are not there.
func (v *View) checkHostEndpoint(h *HostEndpoint) error {
	for i, p := range h.Spec.Profiles {
		if v.Profile(p) == nil {
			return &FieldError{Field: indexed("spec.profiles", i), Value: p, Reason: "there is no such profile"}
		}
	}
	for _, o := range v.HostEndpoints() {
		if o.Metadata.Name == h.Metadata.Name || o.Spec.Node != h.Spec.Node {
			continue
		}
		if h.Spec.InterfaceName != "" && o.Spec.InterfaceName == h.Spec.InterfaceName {
			return &FieldError{Field: "spec.interfaceName", Value: h.Spec.InterfaceName, Reason: "of node " + h.Spec.Node + " is host endpoint " + o.Metadata.Name + " already"}
		}
		for i, a := range h.Spec.ExpectedIPs {
			if h.Spec.InterfaceName == "" && o.Spec.InterfaceName == "" && slices.Contains(o.Spec.ExpectedIPs, a) {
				return &FieldError{Field: indexed("spec.expectedIPs", i), Value: a.String(), Reason: "of node " + h.Spec.Node + " is that of host endpoint " + o.Metadata.Name + " already"}
			}
		}
	}
	return nil
}

// HostEndpoint returns the host endpoint of that name or nil.
func (v *View) HostEndpoint(name string) *HostEndpoint { return one[*HostEndpoint](v, name) }

// HostEndpoints returns the host endpoints by name.
func (v *View) HostEndpoints() []*HostEndpoint { return all[*HostEndpoint](v) }

// onlyForHosts says that the policy is asked about host endpoints alone.
func (p *Policy) onlyForHosts() bool { return p.Spec.PreDNAT || p.Spec.DoNotTrack }

// validateHosts checks what a policy says of host endpoints.
func (p *Policy) validateHosts() error {
	s := p.Spec
	switch {
	case s.PreDNAT && s.DoNotTrack:
		return &FieldError{Field: "spec.preDNAT", Reason: "and doNotTrack exclude each other: what is not tracked is not translated"}
	case s.PreDNAT && (len(s.Types) != 1 || s.Types[0] != Ingress):
		return &FieldError{Field: "spec.preDNAT", Reason: "goes with type ingress alone: what the node sends was translated before"}
	case p.onlyForHosts() && !s.ApplyOnForward:
		return &FieldError{Field: "spec.applyOnForward", Reason: "must be true with preDNAT or doNotTrack: whether a packet is forwarded is not known yet where they are asked"}
	case !s.DoNotTrack:
		return nil
	}
	for _, list := range []struct {
		field string
		rules []Rule
	}{{"spec.ingress", s.Ingress}, {"spec.egress", s.Egress}} {
		for i, r := range list.rules {
			if r.Action == Reject {
				return &FieldError{Field: indexed(list.field, i), Value: r.String(), Reason: "cannot stand in a policy with doNotTrack: nothing knows whom to tell; deny does"}
			}
		}
	}
	return nil
}
