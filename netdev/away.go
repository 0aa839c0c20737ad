package netdev

import (
	"path"
	"slices"
)

// LeadsAway says, of an interface of the host by its name, that it leads to no other
// node: those that container runtimes, hypervisors and tunnels make.
func LeadsAway(name string) bool {
	patterns := []string{"docker*", "br-*", "virbr*", "lxcbr*", "lxdbr*", "cni*", "podman*", "veth*", "tunl*", "tun*", "tap*", "wg*", "vxlan*", "flannel*",
		"cali*", "gre*", "gretap*", "erspan*", "sit*", "ip6tnl*", "ip6gre*", "ip6_vti*", "ip_vti*", "dummy*", "kube-*", "weave*"}
	return slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, name); return ok })
}
