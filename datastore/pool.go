package datastore

import (
	"fmt"
	"slices"
)

// Encaps are the encapsulations a pool may have.
func Encaps() []Encap {
	return []Encap{EncapNone, EncapIPIP, EncapIPIPCrossSubnet, EncapVXLAN, EncapVXLANCrossSubnet, EncapWireGuard, EncapWireGuardCrossSubnet}
}

// Tunnels are the kinds of tunnels that packets to another node may take, best
// first; near says whether they are for nodes in a connected subnet too.
func (e Encap) Tunnels() (kinds []TunnelKind, near bool) {
	switch e {
	case EncapIPIP, EncapIPIPCrossSubnet:
		return []TunnelKind{TunnelIPIP}, e == EncapIPIP
	case EncapVXLAN, EncapVXLANCrossSubnet:
		return []TunnelKind{TunnelVXLAN, TunnelVXLAN6}, e == EncapVXLAN
	case EncapWireGuard, EncapWireGuardCrossSubnet:
		return []TunnelKind{TunnelWireGuard}, e == EncapWireGuard
	}
	return nil, false
}

// Kind returns KindPool.
func (*Pool) Kind() Kind { return KindPool }

// Meta implements Object.
func (p *Pool) Meta() *Metadata { return &p.Metadata }

// SetDefaults implements Object.
func (p *Pool) SetDefaults() {
	s := &p.Spec
	if p.Metadata.Name == "" && s.CIDR.IsValid() {
		p.Metadata.Name = PoolName(s.CIDR)
	}
	if s.BlockSize == 0 && s.CIDR.IsValid() {
		s.BlockSize = 26
		if s.CIDR.Addr().Is6() {
			s.BlockSize = 122
		}
		s.BlockSize = max(s.BlockSize, s.CIDR.Bits())
	}
	if s.Encap == "" {
		s.Encap = EncapNone
	}
	s.Disabled = s.Disabled || s.Removed
	if s.NodeSelector == "" {
		s.NodeSelector = "all()"
	}
}

// Validate implements Object.
func (p *Pool) Validate() error {
	s := p.Spec
	if err := checkRoutable("spec.cidr", s.CIDR); err != nil {
		return err
	}
	if err := checkMeta(p); err != nil {
		return err
	}
	if want := PoolName(s.CIDR); p.Metadata.Name != want {
		return &FieldError{Field: "metadata.name", Value: p.Metadata.Name, Reason: "must be " + want + ", or be left out"}
	}
	if err := checkBlockSize(s); err != nil {
		return err
	}
	if !slices.Contains(Encaps(), s.Encap) {
		return &FieldError{Field: "spec.encap", Value: string(s.Encap), Reason: fmt.Sprintf("must be one of %v", Encaps())}
	}
	if s.CIDR.Addr().Is6() && (s.Encap == EncapIPIP || s.Encap == EncapIPIPCrossSubnet) {
		return &FieldError{Field: "spec.encap", Value: string(s.Encap), Reason: "carries IPv4 only"}
	}
	_, err := ParseSelector(s.NodeSelector)
	return firstError(at("spec.nodeSelector", err), checkCommunities("spec.communities", s.Communities))
}

// checkBlockSize bounds the blocks: one holds at most 1024 addresses, because
// its allocations are one value of the store (MaxSize, up to 750 bytes each) that
// every attach writes.
func checkBlockSize(s PoolSpec) error {
	low, high := max(22, s.CIDR.Bits()), 32
	if s.CIDR.Addr().Is6() {
		low, high = max(118, s.CIDR.Bits()), 128
	}
	if s.BlockSize < low || s.BlockSize > high {
		return &FieldError{Field: "spec.blockSize", Value: decimal(s.BlockSize),
			Reason: fmt.Sprintf("must be from %d to %d for %s", low, high, s.CIDR)}
	}
	return nil
}
