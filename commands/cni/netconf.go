package cni

import (
	"cmp"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// netConf is the part of a network configuration that netctl looks at. Field
// names match in any case, because go-cni writes Go's. Unknown keys belong to
// others.
type netConf struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	IPAM       struct {
		Type string `json:"type"`
	} `json:"ipam"`
	DNS        dns             `json:"dns"`
	PrevResult json.RawMessage `json:"prevResult"`
	Valid      json.RawMessage `json:"cni.dev/valid-attachments"`

	// netctl's own.
	Profiles    []string          `json:"profiles"` // default: the network's
	Labels      map[string]string `json:"labels"`
	IPv4        *bool             `json:"ipv4"` // false: no such address
	IPv6        bool              `json:"ipv6"`
	MTU         int               `json:"mtu"` // bytes
	AgentSocket string            `json:"agentSocket"`
	AgentWait   string            `json:"agentWait"` // a duration; default callTimeout
	Pools       []string          `json:"pools"`     // CIDRs

	RuntimeConfig struct {
		IPs          []string        `json:"ips"`
		MAC          string          `json:"mac"`
		DNS          runtimeDNS      `json:"dns"`
		PortMappings []portMapping   `json:"portMappings"`
		Bandwidth    bandwidth       `json:"bandwidth"`
		IPRanges     [][]ipRange     `json:"ipRanges"`
		Aliases      json.RawMessage `json:"aliases"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs    []string `json:"ips"`
			MAC    string   `json:"mac"`
			Labels []struct {
				Key   string `json:"key"`
				Value string `json:"value"`
			} `json:"labels"`
		} `json:"cni"`
	} `json:"args"`
}

// runtimeDNS is the capability "dns" (CNI conventions).
type runtimeDNS struct {
	Servers  []string `json:"servers"`
	Searches []string `json:"searches"`
	Options  []string `json:"options"`
}

// portMapping is an entry of the capability "portMappings" (CNI conventions), hostIP as
// the reference's portmap has it.
type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// minMTU is what IPv4 asks of every link (RFC 791, section 3.2).
const minMTU, maxMTU = 68, 65535

// parseConf reads a network configuration. Beside an error the configuration has what
// a DEL needs, if that is there: the network's name.
func parseConf(raw []byte) (netConf, error) {
	var c netConf
	err := json.Unmarshal(raw, &c)
	if err == nil {
		err = c.check()
	} else {
		err = decodeError(err)
	}
	if err != nil {
		return least(raw), err
	}
	return c, nil
}

func decodeError(err error) error {
	return errorf(codeDecode, "network configuration: %s", control.Unread(err))
}

func (c *netConf) check() error {
	switch {
	case !slices.Contains(versions(), c.CNIVersion):
		return errorf(codeVersion, "cniVersion %q is not supported; %s are", c.CNIVersion, strings.Join(versions(), ", "))
	case !identifier(c.Name):
		return errorf(codeConfig, "network name %q: must begin with a letter or digit, then letters, digits, _ . -", c.Name)
	case c.IPAM.Type != "" && !identifier(c.IPAM.Type):
		return errorf(codeConfig, "ipam type %q: is no name of a plugin; leave ipam out and netctl assigns addresses itself", c.IPAM.Type)
	case c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU):
		return errorf(codeConfig, "mtu %d: must be from %d to %d", c.MTU, minMTU, maxMTU)
	}
	if d, err := time.ParseDuration(cmp.Or(c.AgentWait, "0s")); err != nil || d < 0 {
		return errorf(codeConfig, "agentWait %q: is no duration such as 10s", c.AgentWait)
	}
	return nil
}

// agentWait is how long an agent is waited for that was there.
func (c *netConf) agentWait() time.Duration {
	if d, err := time.ParseDuration(c.AgentWait); err == nil {
		return d
	}
	return callTimeout
}

// least is so much of a configuration that is wrong as can be read: its version, its
// name, if that is one, the socket, and who assigned addresses.
func least(raw []byte) (c netConf) {
	var keys map[string]json.RawMessage
	if json.Unmarshal(raw, &keys) != nil {
		return c
	}
	for key, value := range keys {
		for name, into := range map[string]*string{"cniVersion": &c.CNIVersion, "name": &c.Name, "agentSocket": &c.AgentSocket} {
			var text string
			if strings.EqualFold(key, name) && json.Unmarshal(value, &text) == nil {
				*into = text
			}
		}
		if strings.EqualFold(key, "ipam") {
			_ = json.Unmarshal(value, &c.IPAM) // that it is wrong is being told
		}
	}
	if !identifier(c.IPAM.Type) {
		c.IPAM.Type = ""
	}
	if !identifier(c.Name) {
		c.Name = ""
	}
	return c
}

// dns is what the result says: the runtime's word, or the network's.
func (c *netConf) dns() dns {
	if r := c.RuntimeConfig.DNS; len(r.Servers)+len(r.Searches)+len(r.Options) > 0 {
		return dns{Nameservers: r.Servers, Search: r.Searches, Options: r.Options}
	}
	return c.DNS
}

// request makes the attach request of an ADD. Of what is said several times
// runtimeConfig counts most, then args.cni, then CNI_ARGS.
func (c *call) request() (control.AttachRequest, error) {
	conf := &c.conf
	args, err := parseArgs(c.env["CNI_ARGS"], byPodman(c.env["CNI_NETNS"]))
	if err != nil {
		return control.AttachRequest{}, err
	}
	req := control.AttachRequest{
		Target:    c.target(),
		Network:   datastore.ForeignName(conf.Name),
		NetnsPath: c.env["CNI_NETNS"],
		IPv6:      conf.IPv6,
		IPv6Only:  conf.IPv4 != nil && !*conf.IPv4,
		Runtime:   c.runtime(),
		MTU:       conf.MTU,
		Profiles:  conf.Profiles,
		Labels:    labels(c.env["CNI_CONTAINERID"], conf, args),
	}
	aliases, err := conf.aliases()
	if err != nil {
		return req, err
	}
	if text := aliasLabel(aliases); text != "" {
		req.Labels[datastore.LabelAliases] = text
	}
	if req.Bandwidth, err = conf.RuntimeConfig.Bandwidth.rates(); err != nil {
		return req, err
	}
	within, v6, only6, err := conf.ranges()
	if err != nil {
		return req, err
	}
	req.Within, req.IPv6, req.IPv6Only = within, req.IPv6 || v6, req.IPv6Only || only6
	for _, text := range conf.Pools {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return req, errorf(codeConfig, "pools: %q is no CIDR, like 10.0.0.0/26", text)
		}
		req.Pools = append(req.Pools, p)
	}
	req.Addresses, err = firstAddresses(
		said{"runtimeConfig.ips", conf.RuntimeConfig.IPs}, said{"args.cni.ips", conf.Args.CNI.IPs}, said{"CNI_ARGS IP", args.ips})
	if err != nil {
		return req, err
	}
	req.MAC, err = firstMAC(
		said{"runtimeConfig.mac", []string{conf.RuntimeConfig.MAC}}, said{"args.cni.mac", []string{conf.Args.CNI.MAC}}, said{"CNI_ARGS MAC", []string{args.mac}})
	return req, err
}

// ports are what an ADD publishes. They come if the runtime finds the capability in
// this plugin's configuration; if it is in that of a plugin after this one, they are
// that one's.
func (c *netConf) ports() (list []datastore.HostPort, err error) {
	for _, m := range c.RuntimeConfig.PortMappings {
		if list, err = control.AddHostPort(list, m.Protocol, m.HostIP, m.HostPort, m.ContainerPort); err != nil {
			return nil, errorf(codeConfig, "runtimeConfig.portMappings: %v", err)
		}
	}
	return list, nil
}

// said is what one source says.
type said struct {
	where  string
	values []string
}

// firstAddresses parses what the first source with something to say says.
func firstAddresses(sources ...said) (addrs []netip.Addr, err error) {
	for _, s := range sources {
		for _, text := range s.values {
			if text == "" {
				continue
			}
			a, err := netip.ParseAddr(text)
			if p, e := netip.ParsePrefix(text); e == nil {
				a, err = p.Addr(), nil
			}
			if err != nil || a.Zone() != "" {
				return nil, errorf(codeConfig, "%s: %q is no IP address", s.where, text)
			}
			a = a.Unmap()
			if slices.ContainsFunc(addrs, func(b netip.Addr) bool { return b.Is4() == a.Is4() && b != a }) {
				return nil, errorf(codeConfig, "%s: %s: only one address of a family can be had", s.where, a)
			}
			if !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
		if len(addrs) > 0 {
			return addrs, nil
		}
	}
	return nil, nil
}

func firstMAC(sources ...said) (string, error) {
	for _, s := range sources {
		for _, text := range s.values {
			if text == "" {
				continue
			}
			mac, err := net.ParseMAC(text)
			if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
				return "", errorf(codeConfig, "%s: %q is no unicast MAC address", s.where, text)
			}
			return mac.String(), nil
		}
	}
	return "", nil
}
