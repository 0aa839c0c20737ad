package datastore

import (
	"net"
	"net/netip"
	"slices"
)

// needsGuardMAC is the ModelVersion that brought the guard of MACs.
const needsGuardMAC = 7

// Kind returns KindEndpoint.
func (*Endpoint) Kind() Kind { return KindEndpoint }

// Meta implements Object.
func (e *Endpoint) Meta() *Metadata { return &e.Metadata }

// SetDefaults implements Object.
func (e *Endpoint) SetDefaults() {
	if e.Metadata.Name == "" {
		e.Metadata.Name = EndpointName(e.Spec.Node, e.Spec.Orchestrator, e.Spec.Workload, e.Spec.Interface)
	}
}

// Validate implements Object.
func (e *Endpoint) Validate() error {
	s := e.Spec
	if err := checkMeta(e); err != nil {
		return err
	}
	if !isEndpointName(e.Metadata.Name, s.Node, s.Orchestrator, s.Workload, s.Interface) {
		return &FieldError{Field: "metadata.name", Value: e.Metadata.Name,
			Reason: "must be " + EndpointName(s.Node, s.Orchestrator, s.Workload, s.Interface) + " as the spec says"}
	}
	if s.Network != "" {
		if err := CheckName(s.Network); err != nil {
			return at("spec.network", err)
		}
	}
	if s.MAC != "" {
		if mac, err := net.ParseMAC(s.MAC); err != nil || len(mac) != 6 {
			return &FieldError{Field: "spec.mac", Value: s.MAC, Reason: "is no MAC address"}
		}
	} else if s.GuardMAC {
		return &FieldError{Field: "spec.guardMAC", Reason: "needs spec.mac"}
	}
	return firstError(
		at("spec.link", checkInterface(s.Link)),
		each("spec.addresses", s.Addresses, func(a netip.Addr) error { return checkAddr("", a) }),
		checkAllowedPrefixes(s),
		each("spec.profiles", s.Profiles, CheckName),
		each("spec.ports", s.Ports, checkPort),
		each("spec.hostPorts", s.HostPorts, HostPort.Validate),
		at("spec.bandwidth", s.Bandwidth.Validate()),
		at("spec.tap", s.Tap.Validate()),
		at("spec.qosControls", s.QoSControls.Validate()))
}

// Validate checks one port by itself.
func (p HostPort) Validate() error {
	switch {
	case p.Port == 0 || p.HostPort == 0:
		return &FieldError{Field: ".port", Value: "0", Reason: "must be from 1 to 65535"}
	case !slices.Contains(transports(), p.Protocol):
		return &FieldError{Field: ".protocol", Value: p.Protocol, Reason: "must be tcp, udp or sctp"}
	case p.HostIP.IsValid() && (p.HostIP.IsUnspecified() || p.HostIP.IsLoopback()):
		return &FieldError{Field: ".hostIP", Value: p.HostIP.String(), Reason: "must be an address that others reach this host by; leave it out for all of them"}
	}
	return nil
}

// Overlaps says that something sent to the node could be meant for either.
func (p HostPort) Overlaps(o HostPort) bool {
	return p.HostPort == o.HostPort && p.Protocol == o.Protocol && (!p.HostIP.IsValid() || !o.HostIP.IsValid() || p.HostIP == o.HostIP)
}

func transports() []string { return []string{"tcp", "udp", "sctp"} }

func checkPort(p Port) error {
	if !slices.Contains(transports(), p.Protocol) {
		return &FieldError{Field: ".protocol", Value: p.Protocol, Reason: "must be tcp, udp or sctp"}
	}
	if p.Port == 0 {
		return &FieldError{Field: ".port", Value: "0", Reason: "must be from 1 to 65535"}
	}
	if err := checkPortName(p.Name); err != nil {
		return at(".name", err)
	}
	return nil
}

// checkPortName wants a letter first, else the name could be a port number.
func checkPortName(s string) error {
	if err := checkWord(s); err != nil {
		return err
	}
	if s[0] >= '0' && s[0] <= '9' {
		return &FieldError{Value: s, Reason: "must begin with a letter"}
	}
	return nil
}
