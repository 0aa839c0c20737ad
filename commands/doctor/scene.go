package doctor

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// Config is what is known of the node. The zero value of each field is its default.
type Config struct {
	// Node is its name.
	Node string
	// Roles are those that run here, or are to; none: agent and speaker.
	Roles            []string
	StateDir, RunDir string
	LinkPrefix       string
	Gateway          netip.Addr
	// Addresses and Interface are the settings of these names; see agent.Config.
	Addresses []netip.Addr
	Interface string
	// MTU of workloads in bytes; 0: the cluster's, or that of the node's interface.
	MTU                            int
	Tunnels                        map[datastore.TunnelKind]string
	WireGuardPort, BGPPort         uint16
	AgentProtocol, SpeakerProtocol int
	// EtcdListen is where the datastore role listens with TCP.
	EtcdListen []netip.AddrPort
	// Members are where members of the datastore let nodes in, and tell the date.
	Members []netip.AddrPort
	// Certificates are the files of those that are used here.
	Certificates []string
	// Cluster is what the datastore holds; nil with a nil ClusterErr: there is none yet.
	Cluster    *Cluster
	ClusterErr error
	// MayFound says that nothing chose the roles yet: the machine may become the first node,
	// or another member of the datastore, with etcd at its standard ports.
	MayFound bool
	// To are machines that are no nodes yet, to which all paths are tried.
	To []netip.Addr
}

// Cluster is what the checks look at of the datastore.
type Cluster struct {
	Nodes   []*datastore.Node
	Pools   []*datastore.Pool
	Reports []*datastore.Report
	Peers   []*datastore.Peer
	Config  *datastore.Config // nil: there is none
}

func (c *Config) finish() {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&c.StateDir, "/var/lib/netctl-node")
	set(&c.RunDir, "/run/netctl-node")
	set(&c.LinkPrefix, netdev.DefaultPrefix)
	if !c.Gateway.IsValid() {
		c.Gateway = netdev.Gateway4()
	}
	if c.Tunnels == nil {
		c.Tunnels = netdev.DefaultTunnels()
	}
	if c.WireGuardPort == 0 {
		c.WireGuardPort = netdev.WireGuardPort
	}
	if c.BGPPort == 0 {
		c.BGPPort = bgpPort
	}
	if c.AgentProtocol == 0 {
		c.AgentProtocol = routing.ProtocolAgent
	}
	if c.SpeakerProtocol == 0 {
		c.SpeakerProtocol = routing.ProtocolSpeaker
	}
	if len(c.Roles) == 0 {
		c.Roles = []string{roleAgent, roleSpeaker}
	}
}

const (
	bgpPort       = 179
	roleAgent     = "agent"
	roleSpeaker   = "speaker"
	roleReflector = "reflector"
	roleDatastore = "datastore"
)

// scene is one look at a host: what several checks ask for is read once.
type scene struct {
	Host
	cfg        Config
	processes  func() ([]Process, error)
	sockets    func() ([]Socket, error)
	interfaces func() ([]kernel.Interface, error)
	routes     func() ([]kernel.Route, error)
}

func newScene(h Host, c Config) *scene {
	return &scene{
		Host: h, cfg: c, processes: sync.OnceValues(h.Processes), sockets: sync.OnceValues(h.Sockets),
		interfaces: sync.OnceValues(h.Interfaces), routes: sync.OnceValues(h.Routes),
	}
}

// has says whether one of the roles runs here, or is to.
func (s *scene) has(roles ...string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(s.cfg.Roles, r) })
}

// cluster is what the datastore holds.
func (s *scene) cluster() (*Cluster, error) {
	switch {
	case s.cfg.ClusterErr != nil:
		return nil, s.cfg.ClusterErr
	case s.cfg.Cluster == nil:
		return nil, skip("there is no datastore yet")
	}
	return s.cfg.Cluster, nil
}

// running is the process of a role of this node, by the file that it locks.
func (s *scene) running(role string) (Process, bool) {
	text, err := s.Read(filepath.Join(s.cfg.StateDir, role+".lock"))
	if err != nil {
		return Process{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return Process{}, false
	}
	all, _ := s.processes()
	for _, p := range all {
		if p.PID == pid && strings.HasPrefix(p.Name, "netctl") {
			return p, true
		}
	}
	return Process{}, false
}

// named finds the processes with one of the names.
func (s *scene) named(names ...string) (found []Process, err error) {
	all, err := s.processes()
	for _, p := range all {
		if slices.Contains(names, p.Name) {
			found = append(found, p)
		}
	}
	return found, err
}

// foreign are the interfaces that are not ours, without lo and tunnels of the kernel's.
func (s *scene) foreign() (list []kernel.Interface, err error) {
	all, err := s.interfaces()
	for _, l := range all {
		if !l.Ours && !l.Loopback && l.Name != "tunl0" {
			list = append(list, l)
		}
	}
	return list, err
}

// registered is this node as the datastore knows it, nil if it does not.
func (s *scene) registered() *datastore.Node {
	if s.cfg.Cluster == nil {
		return nil
	}
	for _, n := range s.cfg.Cluster.Nodes {
		if n.Metadata.Name == s.cfg.Node && (n.Status.Host == "" || n.Status.Host == s.hostID()) {
			return n
		}
	}
	return nil
}

// hostID is the random ID of this machine; "": it has none yet.
func (s *scene) hostID() string {
	text, _ := s.Read(filepath.Join(s.cfg.StateDir, "host"))
	return strings.TrimSpace(text)
}

// own is an address of this host by which other nodes reach it, and its interface; of one on
// lo that with the least MTU of those that may lead to them.
type own struct {
	addr netip.Addr
	link kernel.Interface
	onLo bool
}

// address is this node's of a family: the one it is registered with, else the configured
// one, else the one that the agent would likely take. ok is false without any.
func (s *scene) address(v6 bool) (o own, ok bool, err error) {
	links, err := s.foreign()
	if err != nil {
		return o, false, err
	}
	on := func(want func(kernel.Interface, netip.Prefix) bool) bool {
		for _, l := range links {
			for _, p := range l.Addresses {
				if a := p.Addr(); a.Is6() == v6 && !a.IsLinkLocalUnicast() && want(l, p) {
					o = own{addr: a, link: l}
					return true
				}
			}
		}
		return false
	}
	named := func(is func(netip.Addr) bool) bool {
		return on(func(_ kernel.Interface, p netip.Prefix) bool { return is(p.Addr()) }) || s.onLo(v6, is, &o)
	}
	if n := s.registered(); n != nil {
		if a := n.Address(v6); a.IsValid() && named(func(is netip.Addr) bool { return is == a }) {
			return o, true, nil
		}
	}
	if len(s.cfg.Addresses) > 0 {
		return o, named(func(is netip.Addr) bool { return slices.Contains(s.cfg.Addresses, is) }), nil
	}
	if s.cfg.Interface != "" {
		return o, on(func(l kernel.Interface, _ netip.Prefix) bool {
			is, _ := path.Match(s.cfg.Interface, l.Name)
			return is
		}), nil
	}
	routes, err := s.routes()
	if err != nil {
		return o, false, err
	}
	for _, r := range routes {
		if r.Prefix.Bits() == 0 && r.Prefix.Addr().Is6() == v6 && on(func(l kernel.Interface, _ netip.Prefix) bool { return l.Name == r.Link && !netdev.LeadsAway(l.Name) }) {
			return o, true, nil
		}
	}
	return o, on(func(l kernel.Interface, _ netip.Prefix) bool { return !netdev.LeadsAway(l.Name) }), nil
}

// onLo finds an address on lo.
func (s *scene) onLo(v6 bool, is func(netip.Addr) bool, o *own) bool {
	all, err := s.interfaces()
	if err != nil {
		return false
	}
	for _, l := range all {
		for _, p := range l.Addresses {
			if !l.Loopback || p.Addr().Is6() != v6 || !is(p.Addr()) {
				continue
			}
			*o = own{addr: p.Addr(), link: l, onLo: true}
			up, _ := s.uplinks()
			for i, u := range up {
				if i == 0 || u.MTU < o.link.MTU {
					o.link = u
				}
			}
			return true
		}
	}
	return false
}

// uplinks are the interfaces that may lead to other machines: up, with an address.
func (s *scene) uplinks() (list []kernel.Interface, err error) {
	all, err := s.foreign()
	for _, l := range all {
		if l.Up && !netdev.LeadsAway(l.Name) && slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return !p.Addr().IsLinkLocalUnicast() }) {
			list = append(list, l)
		}
	}
	return list, err
}

// report is what a role of a node last said.
func (c *Cluster) report(node, role string) *datastore.Report {
	for _, r := range c.Reports {
		if r.Metadata.Name == datastore.ReportName(node, role) {
			return r
		}
	}
	return nil
}

// alive says whether a role of a node reported lately.
func (c *Cluster) alive(node, role string, now time.Time) bool {
	r := c.report(node, role)
	return r != nil && now.Sub(r.Status.Seen) < control.Silence
}

// tunnelled are the pools whose packets may go by a kind of tunnels.
func (c *Cluster) tunnelled(kind datastore.TunnelKind) (pools []string) {
	for _, p := range c.Pools {
		if kinds, _ := p.Spec.Encap.Tunnels(); slices.Contains(kinds, kind) {
			pools = append(pools, p.Spec.CIDR.String())
		}
	}
	return pools
}

// sysctl is a setting of the kernel; "": this kernel, or this interface, has none of that name.
func (s *scene) sysctl(key string) string {
	text, err := s.Read(procFile(key))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(text)
}

// number is a setting that is a number; ok is false where there is none.
func (s *scene) number(key string) (n int, ok bool) {
	n, err := strconv.Atoi(s.sysctl(key))
	return n, err == nil
}

// who names processes for a person.
func who(list []Process) string {
	var names []string
	for _, p := range list {
		names = append(names, fmt.Sprintf("%s (PID %d)", p.Name, p.PID))
	}
	return strings.Join(names, ", ")
}
