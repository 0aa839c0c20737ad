package netavark

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netctl/datastore"
)

// network is the part of Podman's network that netctl looks at.
type network struct {
	Name      string            `json:"name"`
	Interface string            `json:"network_interface"`
	Subnets   []subnet          `json:"subnets"`
	Routes    []json.RawMessage `json:"routes"`
	IPv6      bool              `json:"ipv6_enabled"`
	Internal  bool              `json:"internal"`
	IPAM      map[string]string `json:"ipam_options"`
	Options   map[string]string `json:"options"`
}

type subnet struct {
	Subnet     netip.Prefix    `json:"subnet"`
	Gateway    string          `json:"gateway"`
	LeaseRange json.RawMessage `json:"lease_range"`
}

// ipamNone is the driver with which Podman leaves addresses to the plugin. With
// another one it would choose them by what this node alone knows.
const ipamNone = "none"

// driverKey is the key of the driver in ipam_options.
const driverKey = "driver"

// optPool is the option that create moves the subnets to: with ipamNone Podman takes
// no network that has subnets.
const optPool = "pool"

// create answers with the network as netctl wants it, every key that it does not know
// untouched. The cluster's network and profile come with the first container.
func create(raw []byte) ([]byte, error) {
	var (
		n    network
		keys map[string]json.RawMessage
	)
	if err := decode(raw, &n); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	if err := decode(raw, &keys); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	o, err := n.check()
	switch driver := n.IPAM[driverKey]; {
	case err != nil:
		return nil, fmt.Errorf("create: %w", err)
	case driver != "" && driver != ipamNone:
		return nil, fmt.Errorf("create: network %s: --ipam-driver %s: netctl assigns the addresses, on all nodes: leave it out", n.Name, driver)
	case len(n.Subnets) > 0 && len(o.pools) > 0:
		return nil, fmt.Errorf("create: network %s: both --subnet and -o pool say where the addresses are from: leave one out", n.Name)
	}
	for _, s := range n.Subnets {
		if s.Gateway != "" {
			return nil, fmt.Errorf("create: network %s: --gateway %s: each container's gateway is its own host: leave it out", n.Name, s.Gateway)
		}
	}
	if n.IPAM == nil {
		n.IPAM = map[string]string{}
	}
	n.IPAM[driverKey] = ipamNone
	cidrs := n.prefixes()
	if len(cidrs) > 0 {
		if n.Options == nil {
			n.Options = map[string]string{}
		}
		n.Options[optPool] = strings.Join(texts(cidrs), ",")
	}
	changed, err := json.Marshal(struct {
		IPAM    map[string]string `json:"ipam_options"`
		Options map[string]string `json:"options"`
		Subnets []subnet          `json:"subnets"`
		IPv6    bool              `json:"ipv6_enabled"`
		DNS     bool              `json:"dns_enabled"` // Podman's resolver listens on a bridge
	}{n.IPAM, n.Options, []subnet{}, n.IPv6 || anyIPv6(append(cidrs, o.pools...)), false})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	var ours map[string]json.RawMessage
	if err := json.Unmarshal(changed, &ours); err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	maps.Copy(keys, ours)
	return json.Marshal(keys)
}

// check returns the options, and refuses what netctl would not do.
func (n *network) check() (o options, err error) {
	lease := func(s subnet) bool { return len(s.LeaseRange) > 0 && string(s.LeaseRange) != "null" }
	switch {
	case n.Name == "":
		return o, errors.New("the network has no name")
	case n.Internal:
		return o, fmt.Errorf("network %s: --internal: what its containers reach is for its profile's rules to say (`netctl profile`): leave it out", n.Name)
	case n.Interface != "":
		return o, fmt.Errorf("network %s: --interface-name %s: there is no bridge and no parent interface: leave it out", n.Name, n.Interface)
	case len(n.Routes) > 0:
		return o, fmt.Errorf("network %s: --route: a container has its default route and no other: leave it out", n.Name)
	case slices.ContainsFunc(n.Subnets, lease):
		return o, fmt.Errorf("network %s: --ip-range: addresses come from whole pools: make one of that range, and leave --ip-range out", n.Name)
	case slices.ContainsFunc(n.Subnets, func(s subnet) bool { return !s.Subnet.IsValid() }):
		return o, fmt.Errorf("network %s: a subnet without CIDR", n.Name)
	}
	if err := o.parse(n.Options); err != nil {
		return o, fmt.Errorf("network %s: %w", n.Name, err)
	}
	return o, nil
}

// prefixes are the subnets' CIDRs, which are pools of netctl's.
func (n *network) prefixes() (all []netip.Prefix) {
	for _, s := range n.Subnets {
		all = append(all, s.Subnet.Masked())
	}
	return all
}

// chosen says that Podman chooses the addresses by itself: of a network that was made
// without create.
func (n *network) chosen() bool { return len(n.Subnets) > 0 && n.IPAM[driverKey] != ipamNone }

func anyIPv6(cidrs []netip.Prefix) bool {
	return slices.ContainsFunc(cidrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

func texts(cidrs []netip.Prefix) (all []string) {
	for _, c := range cidrs {
		all = append(all, c.String())
	}
	return all
}

// options are those of `podman network create -o`, or of one container in a network
// (`--network NAME:KEY=VALUE`).
type options struct {
	profiles         []string
	pools            []netip.Prefix
	mtu              int // bytes; 0: the agent decides
	publishedByOther bool
}

// minMTU is what IPv4 asks of every link (RFC 791, section 3.2).
const minMTU, maxMTU = 68, 65535

// parse takes over what is given; what is not stays.
func (o *options) parse(given map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(given)) {
		text := given[key]
		switch key {
		case "profile":
			o.profiles = list(text)
			for _, p := range o.profiles {
				if err := datastore.CheckName(p); err != nil {
					return fmt.Errorf("-o profile: %w", err)
				}
			}
		case optPool:
			o.pools = nil
			for _, one := range list(text) {
				p, err := netip.ParsePrefix(one)
				if err != nil {
					return fmt.Errorf("-o pool: %q is no CIDR of a pool, like 10.0.0.0/16", one)
				}
				o.pools = append(o.pools, p.Masked())
			}
		case "mtu", "com.docker.network.driver.mtu": // as compose files have it
			mtu, err := strconv.Atoi(text)
			if err != nil || mtu < minMTU || mtu > maxMTU {
				return fmt.Errorf("-o mtu: %q: must be from %d to %d", text, minMTU, maxMTU)
			}
			o.mtu = mtu
		case "publish":
			if text != "no" {
				return fmt.Errorf("-o publish: %q: must be no, which says that another network of the container publishes its ports", text)
			}
			o.publishedByOther = true
		default:
			return fmt.Errorf("-o %s: there is no such option; there are profile, pool, mtu and publish", key)
		}
	}
	return nil
}

// list is the parts of a list with commas or blanks.
func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}
