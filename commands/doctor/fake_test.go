package doctor

import (
	"context"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// fake is a machine that keeps state: what is written is read again, and what is accepted
// is accepted.
type fake struct {
	mu         sync.Mutex
	files      map[string]string
	readOnly   map[string]error
	unreadable map[string]error
	lacks      map[Feature]error
	interfaces []kernel.Interface
	routes     []kernel.Route
	neighbours []kernel.NeighbourTable
	chains     []nft.BaseChain
	flavours   []iptables.Flavour
	iptErr     error
	processes  []Process
	sockets    []Socket
	programs   map[string]string // what they print, by their command line
	docker     string
	disk       Disk
	diskErr    error
	timing     Timing
	watch      error
	now        time.Time
	machines   map[netip.Addr]*farEnd
	claimed    map[netip.Addr]string
	shaken     bool // WireGuard shakes hands
	ran        []string
	pathErr    error
}

// farEnd is another machine, and the way to it.
type farEnd struct {
	mtu      int  // of the way
	tells    bool // somebody on the way says that a packet is too large
	mute     bool // it answers no echo requests
	ahead    time.Duration
	dated    bool // it is a member of the datastore, which tells its date
	tcp, udp map[uint16]Reply
	tunnel   map[datastore.TunnelKind]Reply
}

func (f *fake) Read(name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.unreadable[name]; err != nil {
		return "", err
	}
	text, ok := f.files[name]
	if !ok {
		return "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return text, nil
}

func (f *fake) Names(pattern string) (list []string, err error) {
	for name := range f.files {
		if ok, err := path.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list, nil
}

func (f *fake) Write(name, text string) error {
	if err := f.readOnly[name]; err != nil {
		return err
	}
	f.files[name] = text
	if name == "/proc/sys/net/netfilter/nf_conntrack_max" || strings.HasSuffix(name, "gc_thresh3") {
		for i := range f.neighbours {
			f.neighbours[i].Most *= 4
		}
	}
	if name == "/proc/sys/fs/file-max" {
		f.files["/proc/sys/fs/file-nr"] = "990000\t0\t" + text
	}
	if strings.HasSuffix(name, "max_user_instances") {
		f.watch = nil
	}
	return nil
}

func (f *fake) Writable(name string) error { return f.readOnly[name] }
func (f *fake) Lacks(context.Context, Features) (map[Feature]error, error) {
	return f.lacks, nil
}
func (f *fake) Interfaces() ([]kernel.Interface, error)      { return f.interfaces, nil }
func (f *fake) Routes() ([]kernel.Route, error)              { return f.routes, nil }
func (f *fake) Neighbours() ([]kernel.NeighbourTable, error) { return f.neighbours, nil }
func (f *fake) BaseChains(string) ([]nft.BaseChain, error)   { return f.chains, nil }
func (f *fake) Processes() ([]Process, error)                { return f.processes, nil }
func (f *fake) Sockets() ([]Socket, error)                   { return f.sockets, nil }
func (f *fake) Disk(string) (Disk, error)                    { return f.disk, f.diskErr }
func (f *fake) Sync(context.Context, string) (Timing, error) { return f.timing, nil }
func (f *fake) Watches() error                               { return f.watch }
func (f *fake) Now() time.Time                               { return f.now }
func (f *fake) Iptables(context.Context, string) ([]iptables.Flavour, error) {
	return slices.Clone(f.flavours), f.iptErr
}

func (f *fake) Accept(string) (added int, err error) {
	for i := range f.flavours {
		if x := &f.flavours[i]; x.ForwardDrop && !x.Accepts {
			x.Accepts = true
			added += 2
		}
	}
	return added, nil
}

func (f *fake) Run(_ context.Context, program string, args ...string) (string, error) {
	line := strings.Join(append([]string{program}, args...), " ")
	f.ran = append(f.ran, line)
	out, ok := f.programs[line]
	if !ok {
		return "", fs.ErrNotExist
	}
	return out, nil
}

func (f *fake) Docker(context.Context) (string, error) {
	if f.docker == "" {
		return "", fs.ErrNotExist
	}
	return f.docker, nil
}

// at is the far end of a path; one that nobody is at answers nothing.
func (f *fake) at(to netip.Addr) *farEnd {
	if m := f.machines[to]; m != nil {
		return m
	}
	return &farEnd{mute: true}
}

func (f *fake) Echo(_ context.Context, _, to netip.Addr, bytes int) (Answer, error) {
	m := f.at(to)
	switch {
	case f.pathErr != nil:
		return Answer{}, f.pathErr
	case m.mute:
		return Answer{}, nil
	case bytes > m.mtu && m.tells:
		return Answer{Reply: TooLarge, MTU: m.mtu, From: to}, nil
	case bytes > m.mtu:
		return Answer{}, nil
	}
	return Answer{Reply: Answered, From: to}, nil
}

func (f *fake) Clock(_ context.Context, _, to netip.Addr) (time.Duration, Answer, error) {
	if f.at(to).mute {
		return 0, Answer{}, nil
	}
	const day = 24 * time.Hour // it tells the time of day alone
	return (f.at(to).ahead+day/2).Abs()%day - day/2, Answer{Reply: Answered, From: to}, nil
}

func (f *fake) Date(_ context.Context, of netip.AddrPort) time.Time {
	m := f.machines[of.Addr()]
	if m == nil || !m.dated || of.Port() != joinPort {
		return time.Time{}
	}
	return f.now.Add(m.ahead).Truncate(time.Second)
}

func (f *fake) Connect(_ context.Context, _, to netip.AddrPort) (Answer, error) {
	return Answer{Reply: f.at(to.Addr()).tcp[to.Port()], From: to.Addr()}, f.pathErr
}

func (f *fake) Datagram(_ context.Context, _, to netip.AddrPort) (Answer, error) {
	return Answer{Reply: f.at(to.Addr()).udp[to.Port()], From: to.Addr()}, f.pathErr
}

func (f *fake) Tunnelled(_ context.Context, kind datastore.TunnelKind, _, to netip.Addr, _ string) (Answer, error) {
	return Answer{Reply: f.at(to).tunnel[kind], From: to}, f.pathErr
}

func (f *fake) Handshake(context.Context, string, string) (Answer, error) {
	if f.shaken {
		return Answer{Reply: Answered}, nil
	}
	return Answer{}, nil
}

func (f *fake) Claimed(_ context.Context, _ string, addr netip.Addr) (string, error) {
	return f.claimed[addr], nil
}

// The addresses of the two nodes, as in labs.
func addr1() netip.Addr { return netip.MustParseAddr("192.168.99.102") }
func addr2() netip.Addr { return netip.MustParseAddr("192.168.99.103") }

// now is when everything happens.
func now() time.Time { return time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC) }

// clean is a machine that runs a node of a cluster of two, with every kind of tunnels.
func clean() (*fake, Config) {
	f := &fake{
		files: map[string]string{
			"/proc/sys/net/ipv4/ip_forward": "1\n", "/proc/sys/net/ipv4/conf/eth0/forwarding": "1\n", "/proc/sys/net/ipv4/conf/eth1/forwarding": "1\n",
			"/proc/sys/net/ipv4/conf/all/rp_filter": "0\n", "/proc/sys/net/ipv4/conf/eth0/rp_filter": "2\n", "/proc/sys/net/ipv4/conf/eth1/rp_filter": "2\n",
			"/proc/sys/net/ipv6/conf/all/forwarding": "1\n", "/proc/sys/net/ipv6/conf/all/disable_ipv6": "0\n", "/proc/sys/net/ipv6/conf/default/disable_ipv6": "0\n",
			"/proc/sys/net/ipv6/conf/eth0/accept_ra": "2\n", "/proc/sys/net/bridge/bridge-nf-call-iptables": "1\n", "/proc/sys/net/bridge/bridge-nf-call-ip6tables": "1\n",
			"/proc/sys/net/netfilter/nf_conntrack_max": "65536\n", "/proc/sys/net/netfilter/nf_conntrack_count": "100\n",
			"/proc/sys/fs/file-nr": "1000\t0\t1000000\n", "/proc/sys/fs/file-max": "1000000\n", "/proc/sys/fs/inotify/max_user_instances": "128\n",
			"/proc/sys/net/ipv4/neigh/default/gc_thresh3": "1024\n",
			"/proc/self/limits":                           "Limit  Soft Hard Units\nMax open files            1024                 1048576              files\n",
			"/var/lib/netctl-node/host":                   "0011223344556677\n", "/var/lib/netctl-node/agent.lock": "100\n", "/var/lib/netctl-node/speaker.lock": "101\n",
			"/run/netctl-node/endpoints/nc0.json":              "{}",
			"/etc/cni/net.d/10-web.conflist":                   `{"cniVersion":"1.0.0","name":"web","plugins":[{"type":"netctl"}]}`,
			"/etc/cni/net.d/87-podman.conflist":                `{"name":"podman","plugins":[{"type":"bridge"}]}`,
			"/etc/sysctl.conf":                                 "#net.ipv4.ip_forward=0\n",
			"/usr/lib/sysctl.d/50-default.conf":                "-net.ipv4.conf.all.promote_secondaries = 1\n",
			"/etc/NetworkManager/conf.d/netctl.conf":           "[keyfile]\nunmanaged-devices=interface-name:nc*;interface-name:tunl0;interface-name:*.netctl\n",
			"/etc/systemd/networkd.conf.d/k.conf":              "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n",
			"/usr/lib/systemd/network/80-container-ve.network": "[Match]\nName=ve-*\nDriver=veth\n[Network]\nDHCP=yes\n",
			"/etc/iproute2/rt_protos":                          "0 unspec\n12 bird\n",
			"/etc/iproute2/rt_protos.d/netctl.conf":            "87 netctl\n88 netctl-bgp\n",
		},
		readOnly: map[string]error{}, unreadable: map[string]error{}, lacks: map[Feature]error{},
		interfaces: []kernel.Interface{
			{Name: "lo", Index: 1, MTU: 65536, Up: true, Loopback: true},
			{Name: "eth0", Index: 2, MTU: 1500, Up: true, Addresses: prefixes("192.168.1.102/24")},
			{Name: "eth1", Index: 3, MTU: 1500, Up: true, Addresses: prefixes("192.168.99.102/24", "fd00:99::102/64")},
			{Name: "docker0", Index: 4, Kind: "bridge", MTU: 1500, Up: true, Addresses: prefixes("172.17.0.1/16")},
			{Name: "veth1", Index: 5, Kind: "veth", Master: "docker0", MTU: 1500, Up: true},
			{Name: "nc0123456789a", Index: 6, Kind: "veth", MTU: 1500, Up: true, Ours: true},
			{Name: "wg.netctl", Index: 7, Kind: "wireguard", MTU: 1420, Up: true, Ours: true},
		},
		routes: []kernel.Route{
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Protocol: 3, Link: "eth0"},
			{Prefix: netip.MustParsePrefix("192.168.99.0/24"), Protocol: 2, Link: "eth1"},
			{Prefix: netip.MustParsePrefix("10.65.0.7/32"), Protocol: 87, Link: "nc0123456789a"},
			{Prefix: netip.MustParsePrefix("fd65::7/128"), Protocol: 87, Link: "nc0123456789a"},
			{Prefix: netip.MustParsePrefix("10.65.1.0/26"), Protocol: 88, Link: "eth1"},
		},
		neighbours: []kernel.NeighbourTable{{Name: "arp_cache", Entries: 10, Most: 1024}, {Name: "ndisc_cache", Entries: 5, Most: 1024}},
		chains:     []nft.BaseChain{{Family: "inet", Table: "filter", Name: "forward", Hook: "forward"}, {Family: "inet", Table: "filter", Name: "input", Hook: "input", Drop: true}},
		flavours:   []iptables.Flavour{{Binary: "iptables-nft", Rules: 10, InUse: true, ForwardDrop: true, Docker: true, Accepts: true}, {Binary: "iptables-legacy", Legacy: true}},
		processes:  []Process{{PID: 1, Name: "systemd"}, {PID: 100, Name: "netctl-agent", Files: 20, MostFiles: 65536}, {PID: 101, Name: "netctl-speaker", Files: 20, MostFiles: 65536}, {PID: 200, Name: "dockerd"}},
		sockets:    []Socket{{Addr: netip.MustParseAddrPort("192.168.99.102:179"), PID: 101, Name: "netctl-speaker"}, {UDP: true, Addr: netip.MustParseAddrPort("0.0.0.0:4789")}},
		programs:   map[string]string{"podman --version": "podman version 4.3.1\n", "nmcli general reload": "", "networkctl reload": "", "systemctl try-restart systemd-networkd": ""},
		docker:     "26.1.5",
		disk:       Disk{Free: 50 << 30, Size: 100 << 30, Files: 1 << 20, FreeFiles: 1 << 19},
		timing:     Timing{Median: time.Millisecond, Worst: 20 * time.Millisecond}, now: now(), shaken: true, claimed: map[netip.Addr]string{},
	}
	two := &farEnd{mtu: 1500, tcp: map[uint16]Reply{179: Answered}, udp: map[uint16]Reply{4789: Refused, 51820: Refused},
		tunnel: map[datastore.TunnelKind]Reply{datastore.TunnelIPIP: Answered, datastore.TunnelVXLAN: Answered, datastore.TunnelVXLAN6: Answered}}
	f.machines = map[netip.Addr]*farEnd{addr2(): two, netip.MustParseAddr("fd00:99::103"): two}
	c := Config{Node: "node1", Roles: []string{"datastore", "agent", "speaker"}, EtcdListen: []netip.AddrPort{netip.MustParseAddrPort("192.168.99.102:2379")}, Cluster: twoNodes(now())}
	return f, c
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// twoNodes is a cluster of two that both reported a minute before.
func twoNodes(at time.Time) *Cluster {
	node := func(name, host string, tunnels []datastore.Tunnel, addrs ...string) *datastore.Node {
		return &datastore.Node{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{Addresses: prefixes(addrs...)}, Status: datastore.NodeStatus{Host: host, Tunnels: tunnels}}
	}
	report := func(node, role string, peer netip.Addr) *datastore.Report {
		r := &datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName(node, role)}, Status: datastore.ReportStatus{Seen: at.Add(-time.Minute)}}
		if role == datastore.ReportSpeaker {
			r.Status.Sessions = []datastore.SessionStatus{{Peer: peer, State: "Active"}}
		}
		return r
	}
	pool := func(cidr string, encap datastore.Encap) *datastore.Pool {
		p := netip.MustParsePrefix(cidr)
		return &datastore.Pool{Metadata: datastore.Metadata{Name: datastore.PoolName(p)}, Spec: datastore.PoolSpec{CIDR: p, Encap: encap}}
	}
	tunnels := []datastore.Tunnel{{Kind: datastore.TunnelIPIP}, {Kind: datastore.TunnelVXLAN, MAC: netdev.TunnelMAC("two")}, {Kind: datastore.TunnelVXLAN6, MAC: netdev.TunnelMAC("two")}, {Kind: datastore.TunnelWireGuard, Key: "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}}
	return &Cluster{
		Nodes:   []*datastore.Node{node("node1", "0011223344556677", nil, "192.168.99.102/24", "fd00:99::102/64"), node("node2", "8899aabbccddeeff", tunnels, "192.168.99.103/24", "fd00:99::103/64")},
		Pools:   []*datastore.Pool{pool("10.65.0.0/16", datastore.EncapVXLAN), pool("10.66.0.0/16", datastore.EncapIPIP), pool("10.67.0.0/16", datastore.EncapWireGuard), pool("fd65::/64", datastore.EncapNone)},
		Reports: []*datastore.Report{report("node1", datastore.ReportAgent, addr2()), report("node1", datastore.ReportSpeaker, addr2()), report("node2", datastore.ReportAgent, addr1()), report("node2", datastore.ReportSpeaker, addr1())},
	}
}
