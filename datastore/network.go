package datastore

import "net/netip"

// Kind returns KindNetwork.
func (*Network) Kind() Kind { return KindNetwork }

// Meta implements Object.
func (n *Network) Meta() *Metadata { return &n.Metadata }

// SetDefaults implements Object.
func (n *Network) SetDefaults() {
	if n.Spec.Profile == "" {
		n.Spec.Profile = n.Metadata.Name
	}
}

// Validate implements Object.
func (n *Network) Validate() error {
	if err := checkMeta(n); err != nil {
		return err
	}
	if err := CheckName(n.Spec.Profile); err != nil {
		return at("spec.profile", err)
	}
	return firstError(
		each("spec.pools", n.Spec.Pools, func(p netip.Prefix) error { return checkCIDR("", p) }),
		checkLabels("spec.options", n.Spec.Options))
}
