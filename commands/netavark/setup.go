package netavark

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
)

// setup is the part of the input of setup that netctl looks at (netavark,
// plugin-API.md, "Setup subcommand"): one container in one network. Aliases are names
// for Podman's own resolver, which these networks do not have; the API wants them
// passed over. Unknown keys belong to later versions.
type setup struct {
	ContainerID   string        `json:"container_id"`
	ContainerName string        `json:"container_name"`
	PortMappings  []portMapping `json:"port_mappings"`
	Network       network       `json:"network"`
	Options       struct {
		Interface string            `json:"interface_name"`
		StaticIPs []string          `json:"static_ips"`
		StaticMAC string            `json:"static_mac"`
		Options   map[string]string `json:"options"`
	} `json:"network_options"`
}

// teardown is the part of the input of teardown that says whose it is.
type teardown struct {
	ContainerID string `json:"container_id"`
	Network     struct {
		Name string `json:"name"`
	} `json:"network"`
	Options struct {
		Interface string `json:"interface_name"`
	} `json:"network_options"`
}

// portMapping is a port that is published, or several in a row (Podman,
// libnetwork/types, PortMapping).
type portMapping struct {
	ContainerPort uint16 `json:"container_port"`
	HostIP        string `json:"host_ip"`
	HostPort      uint16 `json:"host_port"`
	Protocol      string `json:"protocol"` // several with commas; "": tcp
	Range         uint16 `json:"range"`    // how many; 0: one
}

func decode(raw []byte, into any) error { return decodeError(json.Unmarshal(raw, into)) }

// decodeError is an error of encoding/json in words of the input.
func decodeError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("stdin: %s", control.Unread(err))
}

// named checks what makes the endpoint's name.
func named(containerID, interfaceName string) error {
	switch {
	case containerID == "":
		return errors.New("container_id is not set")
	case interfaceName == "":
		return errors.New("network_options.interface_name is not set")
	case len(interfaceName) > 15 || interfaceName == "." || interfaceName == ".." || strings.ContainsAny(interfaceName, "/: \t\n\v\f\r"): // dev_valid_name
		return fmt.Errorf("network_options.interface_name %q: is no interface name (1 to 15 bytes without blanks, / and :)", interfaceName)
	}
	return nil
}

// request makes the attach request of a setup, and the ports to publish; path is of the
// namespace.
func (s *setup) request(path string) (req control.AttachRequest, ports []datastore.HostPort, err error) {
	req = control.AttachRequest{
		Target:    target(s.ContainerID, s.Options.Interface),
		Network:   datastore.ForeignName(s.Network.Name),
		NetnsPath: path,
		Labels:    s.labels(),
	}
	if err := named(s.ContainerID, s.Options.Interface); err != nil {
		return req, nil, err
	}
	o, err := s.Network.check()
	if err != nil {
		return req, nil, err
	}
	if err := o.parse(s.Options.Options); err != nil {
		return req, nil, fmt.Errorf("network %s: of this container: %w", s.Network.Name, err)
	}
	if ports, err = s.published(o); err != nil {
		return req, nil, err
	}
	if len(o.pools) == 0 {
		o.pools = s.Network.prefixes()
	}
	req.Profiles, req.Pools, req.MTU = o.profiles, o.pools, o.mtu
	req.IPv6 = s.Network.IPv6 || anyIPv6(o.pools)
	if req.Addresses, err = addresses(s.Options.StaticIPs); err != nil {
		return req, nil, err
	}
	if text := s.Options.StaticMAC; text != "" {
		mac, err := net.ParseMAC(text)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return req, nil, fmt.Errorf("network_options.static_mac: %q is no unicast MAC address", text)
		}
		req.MAC = mac.String()
	}
	return req, ports, nil
}

// labels are the endpoint's: the names by which Podman knows the container.
func (s *setup) labels() map[string]string {
	all := map[string]string{}
	for label, name := range map[string]string{datastore.LabelContainer: s.ContainerID, datastore.LabelNetwork: s.Network.Name} {
		if datastore.ForeignName(name) != name {
			all[label] = name
		}
	}
	if s.ContainerName != "" {
		maps.Copy(all, map[string]string{"name": s.ContainerName, "podman.name": s.ContainerName})
	}
	return all
}

// published are the ports of the host that lead to the container. Whether a process has
// one of them Podman finds out by itself: it holds them all while a container runs.
func (s *setup) published(o options) (ports []datastore.HostPort, err error) {
	if o.publishedByOther {
		return nil, nil
	}
	for _, m := range s.PortMappings {
		for protocol := range strings.SplitSeq(cmp.Or(m.Protocol, "tcp"), ",") {
			for i := range int(max(m.Range, 1)) {
				if ports, err = control.AddHostPort(ports, protocol, m.HostIP, int(m.HostPort)+i, int(m.ContainerPort)+i); err != nil {
					return nil, fmt.Errorf("network %s: %w", s.Network.Name, err)
				}
			}
		}
	}
	return ports, nil
}

func addresses(texts []string) (addrs []netip.Addr, err error) {
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("network_options.static_ips: %q is no IP address", text)
		}
		a = a.Unmap()
		if slices.ContainsFunc(addrs, func(b netip.Addr) bool { return b.Is4() == a.Is4() && b != a }) {
			return nil, fmt.Errorf("network_options.static_ips: %s: only one address of a family can be had", a)
		}
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs, nil
}

// status is the answer to setup. The keys are there also when they have nothing to
// say; `podman inspect` shows them.
type status struct {
	DNSSearchDomains []string             `json:"dns_search_domains"`
	DNSServerIPs     []netip.Addr         `json:"dns_server_ips"`
	Interfaces       map[string]statusNIC `json:"interfaces"`
}

type statusNIC struct {
	MAC     string          `json:"mac_address"`
	Subnets []statusAddress `json:"subnets"`
}

type statusAddress struct {
	IPNet   netip.Prefix `json:"ipnet"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

func statusOf(a control.Attachment) status {
	nic := statusNIC{MAC: a.MAC, Subnets: []statusAddress{}}
	for _, addr := range a.Addresses {
		s := statusAddress{IPNet: netip.PrefixFrom(addr, addr.BitLen())}
		for _, gw := range a.Gateways {
			if gw.Is4() == addr.Is4() {
				s.Gateway = gw.WithZone("")
			}
		}
		nic.Subnets = append(nic.Subnets, s)
	}
	return status{DNSSearchDomains: []string{}, DNSServerIPs: []netip.Addr{}, Interfaces: map[string]statusNIC{a.Interface: nic}}
}
