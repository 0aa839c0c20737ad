package commands

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/user"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/datastore"
	"netctl/netdev"
)

// tapOptions are what a TAP is to be.
type tapOptions struct {
	name, owner, group string
	multiQueue         bool
	dns, search        []string
}

// tapFlags are what is nothing without --tap.
func tapFlags() []string {
	return []string{"tap-owner", "tap-group", "tap-multi-queue", "dns", "dns-search"}
}

func (o *tapOptions) flags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&o.name, "tap", "", "`name` by which a virtual machine's program opens its TAP")
	fs.StringVar(&o.owner, "tap-owner", "", "`user` who may open the TAP (default: root alone)")
	fs.StringVar(&o.group, "tap-group", "", "`group` whose members may open the TAP")
	fs.BoolVar(&o.multiQueue, "tap-multi-queue", false, "for programs that open several queues of the TAP, and for those alone")
	fs.StringSliceVar(&o.dns, "dns", nil, "`addresses` of name servers for the virtual machine (default: the node's)")
	fs.StringSliceVar(&o.search, "dns-search", nil, "`domains` in which the virtual machine looks names up")
}

// none refuses what is nothing without a TAP.
func (o *tapOptions) none(cmd *cobra.Command) error {
	for _, name := range tapFlags() {
		if cmd.Flags().Changed(name) {
			return usage("--%s is nothing without --tap", name)
		}
	}
	return nil
}

// tap is what the options say.
func (o *tapOptions) tap(mtu int) (t datastore.Tap, err error) {
	t = datastore.Tap{Name: o.name, MultiQueue: o.multiQueue, MTU: mtu, Search: o.search}
	if err := netdev.ValidInterface(o.name); err != nil {
		return t, usage("--tap %s", strings.TrimPrefix(err.Error(), "interface "))
	}
	if o.owner != "" {
		if t.Owner, err = numberOf(o.owner, func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		}); err != nil {
			return t, usage("--tap-owner %q: there is no such user", o.owner)
		}
	}
	if o.group != "" {
		if t.Group, err = numberOf(o.group, func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		}); err != nil {
			return t, usage("--tap-group %q: there is no such group", o.group)
		}
	}
	for _, text := range o.dns {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return t, usage("--dns %q is no IP address", text)
		}
		t.DNS = append(t.DNS, addr)
	}
	if err := t.Validate(); err != nil {
		return t, argument(err)
	}
	return t, nil
}

// numberOf is the number that text is, or that look finds by it.
func numberOf(text string, look func(string) (string, error)) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err == nil {
		return uint32(n), nil
	}
	found, err := look(text)
	if err == nil {
		n, err = strconv.ParseUint(found, 10, 32)
	}
	return uint32(n), err
}

func (a *app) addTap(ctx context.Context, o *endpointAddOptions) (err error) {
	r := &o.request
	if r.Tap, err = o.tap.tap(r.MTU); err != nil {
		return err
	}
	if r.Workload == "" {
		r.Workload = o.tap.name
	}
	at, err := a.attach(ctx, &o.attachOptions, "")
	if err != nil {
		return err
	}
	return a.print(fmt.Sprintf("%s %s %s\n", at.Endpoint, joined(at.Addresses), at.MAC))
}

// formatCloudInit is cloud-init's network-config, version 2.
const formatCloudInit format = "cloud-init"

// The parts of cloud-init's network-config that are written
// (https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html).
type (
	cloudConfig struct {
		Version   int                      `yaml:"version"`
		Ethernets map[string]cloudEthernet `yaml:"ethernets"`
	}
	cloudEthernet struct {
		Match struct {
			MAC string `yaml:"macaddress"`
		} `yaml:"match"`
		Name        string       `yaml:"set-name"`
		DHCP4       bool         `yaml:"dhcp4"`
		DHCP6       bool         `yaml:"dhcp6"`
		RA          bool         `yaml:"accept-ra"`
		MTU         int          `yaml:"mtu,omitempty"`
		Addresses   []string     `yaml:"addresses"`
		Nameservers *cloudDNS    `yaml:"nameservers,omitempty"`
		Routes      []cloudRoute `yaml:"routes"`
	}
	cloudDNS struct {
		Addresses []string `yaml:"addresses,omitempty"`
		Search    []string `yaml:"search,omitempty"`
	}
	cloudRoute struct {
		To     string `yaml:"to"`
		Via    string `yaml:"via"`
		OnLink bool   `yaml:"on-link"`
	}
)

// cloudInit is the network-config of the virtual machine whose endpoints these are.
func (a *app) cloudInit(name string, list []datastore.Object) (string, error) {
	s, err := a.settings()
	if err != nil {
		return "", err
	}
	if name == "" {
		return "", usage("-o %s is of one virtual machine: give its name or the ID of its endpoint", formatCloudInit)
	}
	c := cloudConfig{Version: 2, Ethernets: map[string]cloudEthernet{}}
	for _, o := range list {
		e := o.(*datastore.Endpoint)
		if !e.Spec.Tap.Is() {
			return "", fmt.Errorf("endpoint %s: has no TAP: -o %s is of virtual machines", e.Metadata.Name, formatCloudInit)
		}
		if _, twice := c.Ethernets[e.Spec.Interface]; twice {
			return "", usage("%s is the name of several virtual machines: give the ID of an endpoint", name)
		}
		c.Ethernets[e.Spec.Interface] = cloudEthernetOf(e, s)
	}
	if len(c.Ethernets) == 0 {
		return "", fmt.Errorf("endpoint %s: %w", name, datastore.ErrNotFound)
	}
	text, err := yaml.Marshal(c)
	return string(text), err
}

func cloudEthernetOf(e *datastore.Endpoint, s *settings) cloudEthernet {
	c := cloudEthernet{Name: e.Spec.Interface, MTU: e.Spec.Tap.MTU}
	c.Match.MAC = e.Spec.MAC
	if l, err := net.InterfaceByName(e.Spec.Link); err == nil && e.Spec.Node == s.Node {
		c.MTU = l.MTU
	}
	for _, addr := range e.Spec.Addresses {
		c.Addresses = append(c.Addresses, netip.PrefixFrom(addr, addr.BitLen()).String())
		r := cloudRoute{To: "0.0.0.0/0", Via: s.Agent.Gateway, OnLink: true}
		if addr.Is6() {
			r.To, r.Via = "::/0", netdev.HostLinkLocal().String()
		}
		c.Routes = append(c.Routes, r)
	}
	if t := e.Spec.Tap; len(t.DNS)+len(t.Search) > 0 {
		c.Nameservers = &cloudDNS{Search: t.Search}
		for _, d := range t.DNS {
			c.Nameservers.Addresses = append(c.Nameservers.Addresses, d.String())
		}
	}
	return c
}
