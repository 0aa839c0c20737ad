package doctor

import (
	"context"
	"net/netip"
	"time"

	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// Host is a machine as the checks see it. Open returns the one that this process runs on.
type Host interface {
	Files
	Kernel
	Machine
	Paths
}

// Files are the machine's files, those below /proc among them.
type Files interface {
	// Read returns a file's text, at most a megabyte of it.
	Read(name string) (string, error)
	// Names lists the files that match a pattern (path/filepath.Match), sorted.
	Names(pattern string) ([]string, error)
	// Write writes a file as a whole, and makes its folder; below /proc/sys it sets.
	Write(name, text string) error
	// Writable returns why nothing can be written to a file that exists; nil: it can.
	Writable(name string) error
}

// Kernel is what the kernel has in this network namespace.
type Kernel interface {
	// Lacks says what netctl needs and the kernel lacks, and why, by trying it in a
	// namespace that is gone afterwards.
	Lacks(ctx context.Context, o Features) (map[Feature]error, error)
	Interfaces() ([]kernel.Interface, error)
	Routes() ([]kernel.Route, error)
	Neighbours() ([]kernel.NeighbourTable, error)
	// BaseChains are other programs' chains; see nft.BaseChains.
	BaseChains(prefix string) ([]nft.BaseChain, error)
	Iptables(ctx context.Context, prefix string) ([]iptables.Flavour, error)
	// Accept has iptables let forwarded packets of links of ours pass; see
	// iptables.EnsureForward.
	Accept(prefix string) (added int, err error)
}

// Machine is what runs on it, and on what.
type Machine interface {
	// Processes are those in this network namespace.
	Processes() ([]Process, error)
	// Sockets are the listening TCP and the bound UDP sockets of this network namespace.
	Sockets() ([]Socket, error)
	// Run runs a program of the machine; fs.ErrNotExist: there is none of that name.
	Run(ctx context.Context, program string, args ...string) (stdout string, err error)
	// Docker asks its daemon for its version; fs.ErrNotExist: there is none.
	Docker(ctx context.Context) (version string, err error)
	Disk(dir string) (Disk, error)
	// Sync writes as etcd does in dir, and says how long that took.
	Sync(ctx context.Context, dir string) (Timing, error)
	// Watches returns why no more files can be watched (inotify(7)).
	Watches() error
	Now() time.Time
}

// Paths is the way to other machines. Each call waits a second or three at most.
type Paths interface {
	// Echo sends an echo request of so many bytes, the IP header included, that nobody may
	// cut up (RFC 1191).
	Echo(ctx context.Context, from, to netip.Addr, bytes int) (Answer, error)
	// Clock asks for the other's time of day (RFC 792, timestamp).
	Clock(ctx context.Context, from, to netip.Addr) (ahead time.Duration, a Answer, err error)
	// Date asks who answers with HTTPS for its date (RFC 9110, section 6.6.1) to the second,
	// whoever that is: it is to be compared with, and not to be trusted. Zero: it tells none.
	Date(ctx context.Context, of netip.AddrPort) time.Time
	// Connect opens a TCP connection and closes it.
	Connect(ctx context.Context, from, to netip.AddrPort) (Answer, error)
	// Datagram sends one UDP packet to a port where nobody is expected to listen.
	Datagram(ctx context.Context, from, to netip.AddrPort) (Answer, error)
	// Tunnelled sends an echo request inside of a tunnel's packet, to a device with that
	// hardware address; its answer comes without a tunnel.
	Tunnelled(ctx context.Context, kind datastore.TunnelKind, from, to netip.Addr, mac string) (Answer, error)
	// Handshake has WireGuard's device shake hands with the peer of that public key, unless
	// it has in the last three minutes.
	Handshake(ctx context.Context, device, key string) (Answer, error)
	// Claimed asks the link who has the address; "": nobody else.
	Claimed(ctx context.Context, link string, addr netip.Addr) (mac string, err error)
}

// Feature is something of the kernel that netctl needs.
type Feature string

// The features. Those of tunnels are needed by the pools that have them.
const (
	FeatureLinks     Feature = "links of endpoints (veth)"
	FeatureRoutes    Feature = "routes"
	FeatureFilter    Feature = "the packet filter (nftables)"
	FeatureConntrack Feature = "connection tracking"
	FeatureIPIP      Feature = "IPIP tunnels"
	FeatureVXLAN     Feature = "VXLAN tunnels"
	FeatureWireGuard Feature = "WireGuard tunnels"
)

// Features says how they are tried.
type Features struct {
	LinkPrefix string
	Protocol   int // of routes
	// Tunnels are those that are needed: to try one loads its module, and that of IPIP puts
	// a device into every namespace.
	Tunnels []datastore.TunnelKind
}

// Process is a process in the host's network namespace.
type Process struct {
	PID int
	// Name is the first argument without its folder, or what the kernel calls it.
	Name string
	// Files is how many it has open, MostFiles how many it may; 0: not known.
	Files, MostFiles int
}

// Socket is a port that somebody holds.
type Socket struct {
	UDP  bool
	Addr netip.AddrPort
	// PID and Name are of the process that has it; 0: the kernel itself, or nobody of this
	// namespace.
	PID  int
	Name string
}

// Disk is the file system of a folder.
type Disk struct {
	Free, Size uint64 // bytes, for root
	FreeFiles  uint64
	Files      uint64 // 0: it does not count them
	ReadOnly   bool
}

// Timing is how long it took to write to the disk and be sure.
type Timing struct{ Median, Worst time.Duration }

// Reply is what came of a packet to another machine.
type Reply int

// The replies.
const (
	Silent     Reply = iota // nothing came back
	Answered                // as it should be
	Refused                 // the machine says that nobody takes it: it went through
	Prohibited              // somebody on the way, or this host, says that it may not go
	TooLarge                // somebody on the way says that it is too large
	NoRoute                 // somebody on the way does not know the way, or the machine
)

// Answer is what came back from another machine.
type Answer struct {
	Reply Reply
	From  netip.Addr // who says so; zero: this host
	MTU   int        // of TooLarge, bytes; 0: not told
}
