package datastore

import (
	"net/netip"
	"slices"
	"strings"
)

// Kind returns KindNetwork.
func (*Network) Kind() Kind { return KindNetwork }

// Meta implements Object.
func (n *Network) Meta() *Metadata { return &n.Metadata }

// SetDefaults implements Object.
func (n *Network) SetDefaults() {
	if n.Spec.Profile == "" {
		n.Spec.Profile = n.Metadata.Name
	}
	if n.Spec.IPv6Only() {
		n.Spec.IPv6 = true
		n.Metadata.Needs = max(n.Metadata.Needs, needsIPv6Only)
	}
}

// needsIPv6Only is the version of the model that knows networks without IPv4: an older agent
// would give their endpoints an IPv4 address.
const needsIPv6Only = 3

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
		checkLabels("spec.options", n.Spec.Options),
		n.checkRuntimes())
}

// The container runtimes that networks can be made in on every node.
const (
	RuntimeDocker = "docker"
	RuntimePodman = "podman"
	RuntimeCNI    = "cni"
)

// Runtimes are all of them.
func Runtimes() []string { return []string{RuntimeDocker, RuntimePodman, RuntimeCNI} }

// taken are names that a runtime has a meaning of its own for and makes no network of:
// Docker's predefined ones, and Podman's modes.
func taken(runtime string) []string {
	switch runtime {
	case RuntimeDocker:
		return []string{"bridge", "default", "host", "none", "container", "ingress", "docker_gwbridge"}
	case RuntimePodman:
		return []string{"bridge", "default", "host", "none", "container", "ns", "pasta", "podman", "private", "slirp4netns"}
	}
	return nil
}

func (n *Network) checkRuntimes() error {
	for i, r := range n.Spec.Runtimes {
		field := indexed("spec.runtimes", i)
		switch {
		case !slices.Contains(Runtimes(), r):
			return &FieldError{Field: field, Value: r, Reason: "must be one of " + strings.Join(Runtimes(), ", ")}
		case slices.Contains(n.Spec.Runtimes[:i], r):
			return &FieldError{Field: field, Value: r, Reason: "stands there twice"}
		case r == RuntimeDocker && n.Spec.IPv6Only():
			return &FieldError{Field: field, Value: r, Reason: "has no networks without IPv4: leave this runtime out"}
		case slices.Contains(taken(r), n.Metadata.Name):
			return &FieldError{Field: field, Value: r, Reason: "keeps the name " + n.Metadata.Name + " for itself: choose another, or leave this runtime out"}
		}
	}
	return nil
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
