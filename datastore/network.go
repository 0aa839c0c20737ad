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
	n.Spec.IPv6 = n.Spec.IPv6 || n.Spec.IPv6Only()
}

// IPv6Only says that the network's endpoints have no IPv4 address.
func (s *NetworkSpec) IPv6Only() bool { return s.IPv4 != nil && !*s.IPv4 }

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

// ProfilesOf are the profiles of an endpoint of a network: those that are asked for,
// or else the network's. n is nil where the network does not exist yet, whose profile
// will have its name. Without a network (network is "") only what is asked for counts.
func ProfilesOf(network string, n *Network, asked []string) []string {
	switch {
	case len(asked) > 0 || network == "":
		return asked
	case n != nil:
		return []string{n.Spec.Profile}
	}
	return []string{network}
}
