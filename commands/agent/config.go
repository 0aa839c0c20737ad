package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/commands/join"
	"netctl/commands/runtimes"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// Config is an agent's settings. Only Node is required; the zero value of a
// field is its default.
type Config struct {
	// Node is the name this machine is registered under.
	Node   string
	Labels map[string]string
	// pathless: the kernel cannot say by which way a source is reached, as reversePath asks.
	pathless bool
	// Version of the binary, only told.
	Version string
	Store   etcd.Options
	// StateDir survives a reboot (default /var/lib/netctl-node), RunDir does not
	// (default /run/netctl-node).
	StateDir, RunDir string
	// BGPPort is the speakers' TCP port; 0 is 179.
	BGPPort uint16
	// Socket is the control socket (default RunDir/agent.sock).
	Socket string
	// Metrics is where metrics are shown; zero: on the machine alone.
	Metrics netip.AddrPort
	// Addresses are the node's own, at most one of each family; empty: found.
	Addresses []netip.Addr
	// Interface is a pattern (path.Match) of the interface whose address is the
	// node's; "" means any.
	Interface string
	// LinkPrefix starts the name of every link of an endpoint.
	LinkPrefix string
	// Adopt says which interfaces that others made are endpoints.
	Adopt []netdev.Adoption
	// Tunnels are the names of the tunnels' devices.
	Tunnels map[datastore.TunnelKind]string
	// WireGuardPort is the UDP port of WireGuard tunnels.
	WireGuardPort uint16
	// MTU of workload interfaces in bytes; 0: the cluster's setting, else that of
	// the interface with the node's address.
	MTU int
	// Gateway is the workloads' IPv4 next hop.
	Gateway netip.Addr
	// LostAfter is how long an endpoint is kept whose link is gone (default 5 min).
	LostAfter time.Duration
	// NewFlows is how many flows a workload may begin per second (0: a 256th of the
	// kernel's connection tracking table); sixteen times as many at once.
	NewFlows int
	// Backend is what filters packets: see Backends.
	Backend string
	// Established is what becomes of flows that a change of policy denies; "": as in Config.
	Established datastore.Established
	// ReversePath is how sources of pools are judged that come from other machines: strict,
	// loose or off; "" or auto: strict where one interface leads to them, else loose.
	ReversePath string
	// WorkloadToHost is what workloads may open on their own host.
	WorkloadToHost []acl.HostPort
	// FailsafeInbound and FailsafeOutbound are ports that no policy closes to host endpoints,
	// beside those that the cluster itself needs.
	FailsafeInbound, FailsafeOutbound []acl.HostPort
	// DatastorePorts are TCP ports of the datastore, of this node or others.
	DatastorePorts []uint16
	// RouteProtocol marks the agent's routes in the kernel.
	RouteProtocol int
	// RouteTable is the kernel's table that they are in; 0 is the main one.
	RouteTable int
	// Runtimes says in which container runtimes this node makes networks; none: in none.
	Runtimes runtimes.Config
	// BootIDFile is kernel.BootIDFile but in tests.
	BootIDFile string

	quarantine time.Duration // of released addresses; 0: ipam.Quarantine, but in tests
	tunnelRest time.Duration // of tunnels' devices; 0: the constant of that name, but in tests
	pathEvery  time.Duration // how often WireGuard's ways are looked at; 0: as tunnelRest
}

// finish fills in the defaults and checks the rest; errors name the setting.
func (c *Config) finish() error {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&c.StateDir, "/var/lib/netctl-node")
	set(&c.RunDir, "/run/netctl-node")
	set(&c.Socket, filepath.Join(c.RunDir, "agent.sock"))
	set(&c.LinkPrefix, netdev.DefaultPrefix)
	set(&c.BootIDFile, kernel.BootIDFile)
	if c.LostAfter == 0 {
		c.LostAfter = 5 * time.Minute
	}
	if c.RouteProtocol == 0 {
		c.RouteProtocol = routing.ProtocolAgent
	}
	if c.Tunnels == nil {
		c.Tunnels = netdev.DefaultTunnels()
	}
	if c.WireGuardPort == 0 {
		c.WireGuardPort = netdev.WireGuardPort
	}
	c.pathEvery = cmp.Or(c.pathEvery, pathEvery)
	if !c.Gateway.IsValid() {
		c.Gateway = netdev.Gateway4()
	}
	if len(c.Store.Endpoints) == 0 {
		c.Store.Endpoints = []string{"unix://" + filepath.Join(c.RunDir, "etcd.sock")}
	}
	if err := datastore.CheckName(c.Node); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if err := netdev.ValidPrefix(c.LinkPrefix); err != nil {
		return fmt.Errorf("agent.linkPrefix: %w", err)
	}
	for _, a := range c.Adopt {
		if err := a.Apart(c.LinkPrefix, slices.Collect(maps.Values(c.Tunnels))...); err != nil {
			return fmt.Errorf("agent.adopt: %w", err)
		}
	}
	if _, err := path.Match(c.Interface, ""); err != nil {
		return fmt.Errorf("agent.interface %q: %w", c.Interface, err)
	}
	if _, err := c.reversePath(false); err != nil {
		return fmt.Errorf("agent.reversePath %w", err)
	}
	switch {
	case !c.Gateway.Is4():
		return fmt.Errorf("agent.gateway %s: must be an IPv4 address", c.Gateway)
	case c.MTU != 0 && (c.MTU < netdev.MinMTU || c.MTU > netdev.MaxMTU):
		return fmt.Errorf("agent.mtu %d: must be %d to %d bytes", c.MTU, netdev.MinMTU, netdev.MaxMTU)
	case c.LostAfter < 0:
		return fmt.Errorf("agent.lostAfter %s: must not be negative", c.LostAfter)
	case c.RouteProtocol < 5 || c.RouteProtocol > 255:
		return fmt.Errorf("routes.agentProtocol %d: must be 5 to 255", c.RouteProtocol)
	case len(c.Addresses) > 2 || len(c.Addresses) == 2 && c.Addresses[0].Is4() == c.Addresses[1].Is4():
		return errors.New("agent.addresses: at most one address of each family")
	}
	return nil
}

func (c *Config) pendingDir() string {
	return filepath.Join(c.RunDir, filepath.Base(control.PendingDir))
}
func (c *Config) recordsDir() string  { return filepath.Join(c.RunDir, "endpoints") }
func (c *Config) hostIDFile() string  { return filepath.Join(c.StateDir, hostIDFile) }
func (c *Config) backendFile() string { return filepath.Join(c.RunDir, "packet-filter") }
func (c *Config) debtFile() string    { return filepath.Join(c.RunDir, "flows-to-cut") }
func (c *Config) copyFile() string    { return filepath.Join(c.StateDir, datastore.CopyFile) }
func (c *Config) filterFile() string  { return filepath.Join(c.StateDir, "filter") }

// FilterOptions are those of the packet filter that the host does not decide.
func (c *Config) FilterOptions() acl.Options {
	o := acl.Options{Tunnels: slices.Sorted(maps.Values(c.Tunnels)), LinkPrefix: c.LinkPrefix, Group: netdev.Group, Gateways: netdev.Gateways(c.Gateway), WorkloadToHost: c.WorkloadToHost, BGPPort: c.BGPPort, Adopts: len(c.Adopt) > 0}
	o.FailsafeInbound, o.FailsafeOutbound = c.failsafes(etcd.ReadMembers(c.Store.Members, c.Store.Endpoints))
	return o
}

// failsafes are the ports that no policy closes to host endpoints, in and out, where the
// datastore's members are known so. Of those a node needs where they let nodes in, too, which
// is where its certificate is renewed.
func (c *Config) failsafes(m datastore.Members) (in, out []acl.HostPort) {
	const tcp = 6 // IANA protocol number
	needed := c.clusterPorts()
	for _, port := range PortsOf(m.Endpoints...) {
		needed = append(needed, acl.HostPort{Protocol: tcp, Port: port})
	}
	out = append(slices.Concat(c.FailsafeOutbound, needed), acl.HostPort{Protocol: tcp, Port: uint16(cmp.Or(m.JoinPort, join.DefaultPort))})
	return slices.Concat(c.FailsafeInbound, needed), out
}

// clusterPorts are those that nodes need of each other: BGP, BFD of one hop, of several and its
// echoes (RFC 5881, RFC 5883), and the datastore's.
func (c *Config) clusterPorts() []acl.HostPort {
	const tcp, udp = 6, 17 // IANA protocol numbers
	list := []acl.HostPort{{Protocol: tcp, Port: cmp.Or(c.BGPPort, 179)}, {Protocol: udp, Port: 3784}, {Protocol: udp, Port: 3785}, {Protocol: udp, Port: 4784}}
	for _, port := range c.DatastorePorts {
		list = append(list, acl.HostPort{Protocol: tcp, Port: port})
	}
	return list
}

// PortsOf are the ports in URLs; that of a unix socket has none.
func PortsOf(urls ...string) (list []uint16) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		if port, err := strconv.ParseUint(u.Port(), 10, 16); err == nil && port > 0 {
			list = append(list, uint16(port))
		}
	}
	return list
}

// ParseHostPort reads an entry of the settings agent.workloadToHost, agent.failsafeInbound and
// agent.failsafeOutbound: tcp, udp or sctp, "/", port.
func ParseHostPort(s string) (acl.HostPort, error) {
	protocol, text, ok := strings.Cut(s, "/")
	number := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132}[protocol] // IANA protocol numbers
	port, err := strconv.ParseUint(text, 10, 16)
	if !ok || number == 0 || err != nil || port == 0 {
		return acl.HostPort{}, fmt.Errorf("%q: want tcp, udp or sctp and a port, such as udp/53: %w", s, datastore.ErrInvalid)
	}
	return acl.HostPort{Protocol: number, Port: uint16(port)}, nil
}
