package datastore

import (
	"net/netip"
	"time"
)

// APIVersion is in every object. It changes only when nothing of the old model can
// be read any more.
const APIVersion = "netctl/v1"

// ModelVersion is the version of the model that this netctl knows. Additions that an
// older netctl may pass over do not change it; whoever uses one that it must not
// pass over sets the object's Metadata.Needs to the version that brought it.
const ModelVersion = 7

// Kind names a kind of object, as in a manifest's kind field.
type Kind string

// The kinds.
const (
	KindNode         Kind = "Node"
	KindPeer         Kind = "Peer"
	KindBGPFilter    Kind = "BGPFilter"
	KindPool         Kind = "Pool"
	KindBlock        Kind = "Block"
	KindReservation  Kind = "Reservation"
	KindNetwork      Kind = "Network"
	KindEndpoint     Kind = "Endpoint"
	KindHostEndpoint Kind = "HostEndpoint"
	KindProfile      Kind = "Profile"
	KindTier         Kind = "Tier"
	KindPolicy       Kind = "Policy"
	KindNetworkSet   Kind = "NetworkSet"
	KindBGPConfig    Kind = "BGPConfig"
	KindConfig       Kind = "Config"
	KindReport       Kind = "Report"
)

// Object is one object of the model. The pointer types *Node, *Pool, … are the
// only implementations.
type Object interface {
	Kind() Kind
	// Meta is the object's own metadata, to read and to change.
	Meta() *Metadata
	// SetDefaults fills what the user left out; idempotent.
	SetDefaults()
	// Validate checks the object after SetDefaults; the error wraps ErrInvalid
	// and names field and value.
	Validate() error
}

// Metadata is what every object has.
type Metadata struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	// Needs is the ModelVersion that a netctl must know to act on the object; 0:
	// every one may.
	Needs int `json:"needs,omitempty"`
	// Revision is the store's revision of the object's last change; 0: never stored.
	// Manifests have it, as metadata.revision; what is stored does not.
	Revision int64 `json:"-"`

	unknown *unknown // what the object was read with beyond the model; mostly nil
}

// Node is a machine that routes for its endpoints.
type Node struct {
	Metadata Metadata   `json:"metadata"`
	Spec     NodeSpec   `json:"spec"`
	Status   NodeStatus `json:"status,omitzero"`
}

// NodeSpec is what a node is to the others.
type NodeSpec struct {
	// Addresses are the node's BGP addresses with their prefix length, at most
	// one of each family.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// AS is the node's AS number; 0 inherits BGPConfig's default.
	AS uint32 `json:"as,omitempty"`
	// Reflector says whether the node is a route reflector, and whose; nil: one if the
	// topology chooses it.
	Reflector *Reflector `json:"reflector,omitempty"`
	// Drain takes the node out of use; nil: it is in use.
	Drain *Drain `json:"drain,omitempty"`
	// RetiredKey is a public key of WireGuard that the node is not to use any more: if it
	// is the one of Status.Tunnels, its agent makes another.
	RetiredKey string `json:"retiredKey,omitempty"`
}

// Drain is a node that is out of use: it takes no new endpoints, and its peers prefer
// every other path (RFC 8326).
type Drain struct {
	// Reason is told to people, and to its peers.
	Reason string `json:"reason,omitempty"`
	// Shutdown ends its BGP sessions.
	Shutdown bool `json:"shutdown,omitempty"`
}

// Reflector is a node as route reflector (RFC 4456).
type Reflector struct {
	Mode ReflectorMode `json:"mode,omitempty"`
	// ClusterID names the cluster that it reflects for (RFC 4456, section 7); default:
	// the node's router ID.
	ClusterID netip.Addr `json:"clusterID,omitzero"`
	// Clients selects by label the nodes that it reflects for; default: those with its
	// own label "zone".
	Clients string `json:"clients,omitempty"`
}

// ReflectorMode says when a node is a reflector.
type ReflectorMode string

// The modes of a reflector.
const (
	ReflectorAuto   ReflectorMode = "auto"   // when the topology chooses it
	ReflectorAlways ReflectorMode = "always" // whenever there are reflectors
	ReflectorNever  ReflectorMode = "never"
)

// ZoneLabel is the label of nodes that says where they stand: each zone has reflectors.
const ZoneLabel = "zone"

// NodeStatus is what a node's agent says of it and others act on. It is written
// when it changes; what changes by itself is in the Report.
type NodeStatus struct {
	// Host is the random ID of the machine that registered the name.
	Host string `json:"host,omitempty"`
	// Version is the netctl version of the agent.
	Version string `json:"version,omitempty"`
	// Model is the ModelVersion that the node's netctl knows; 0: one of before that was
	// told.
	Model int `json:"model,omitempty"`
	// Subnets are the connected subnets of every interface that is not ours.
	Subnets []netip.Prefix `json:"subnets,omitempty"`
	// Away is since when the reflectors have had no session with the node: it is not
	// chosen as one. They write it, and take it back.
	Away time.Time `json:"away,omitzero"`
	// Tunnels are those that the node takes packets from, at most one of each kind.
	Tunnels []Tunnel `json:"tunnels,omitempty"`
}

// Peer is a BGP neighbour that is configured: of every node, of one, or of those that a
// selector picks. Its name is where it is unless somebody gives it one.
type Peer struct {
	Metadata Metadata `json:"metadata"`
	Spec     PeerSpec `json:"spec"`
}

// PeerSpec says who the neighbour is, which nodes have it, and how they speak to it.
type PeerSpec struct {
	// Address or Interface is where the neighbour is: at an address, or at the other end
	// of the node's interfaces of that name or pattern (path.Match), whoever that is.
	Address   netip.Addr `json:"address,omitzero"`
	Interface string     `json:"interface,omitempty"`
	// AS is the neighbour's, or RemoteAS what it must be: "external", any but the node's;
	// "internal", the node's.
	AS       uint32 `json:"as,omitempty"`
	RemoteAS string `json:"remoteAS,omitempty"`
	// Node and NodeSelector say which nodes have the peer; without either all do.
	Node         string `json:"node,omitempty"`
	NodeSelector string `json:"nodeSelector,omitempty"`
	Description  string `json:"description,omitempty"`
	// Port is where the peer listens; default 179.
	Port uint16 `json:"port,omitempty"`
	// LocalAS is the AS number that the node has towards the peer; default: its own.
	LocalAS uint32 `json:"localAS,omitempty"`
	// Multihop is how many hops a peer of another AS may be away; default 1.
	Multihop int `json:"multihop,omitempty"`
	// TTLSecurity is how many hops the peer may be away, which the TTL of its packets has
	// to prove (RFC 5082); 0: it does not.
	TTLSecurity int `json:"ttlSecurity,omitempty"`
	// Password signs every segment of the session (TCP MD5, RFC 2385).
	Password *PeerPassword `json:"password,omitempty"`
	// SourceAddress is the node's end; default: its address of the peer's family.
	SourceAddress netip.Addr `json:"sourceAddress,omitzero"`
	// Families are offered to the peer; default: those that the node has an address of.
	Families []string `json:"families,omitempty"`
	// Passive waits for the peer to connect.
	Passive bool `json:"passive,omitempty"`
	// HoldTime in seconds; default: BGPConfig's.
	HoldTime *int `json:"holdTime,omitempty"`
	// KeepaliveTime in seconds; default: a third of the hold time.
	KeepaliveTime int `json:"keepaliveTime,omitempty"`
	// LongLivedTime is for how many seconds behind its restart time the peer's routes are
	// kept (RFC 9494), 0: they are not; default: BGPConfig's.
	LongLivedTime *int `json:"longLivedTime,omitempty"`
	// ConnectRetry is the longest wait between two dials, in seconds; default 5.
	ConnectRetry int `json:"connectRetry,omitempty"`
	// BFD ends the session as soon as the path to the peer is found dead; nil: only its
	// hold time does.
	BFD *BFD `json:"bfd,omitempty"`
	// NextHop is what becomes of the next hop of learnt routes: "self", "unchanged";
	// default: unchanged within the AS.
	NextHop string `json:"nextHop,omitempty"`
	// Announce is what a peer of another AS is told: "own" (default), this node's blocks
	// and borrowed addresses; "all", those of other nodes too.
	Announce string `json:"announce,omitempty"`
	// AddPath has several paths to a prefix exchanged with the peer (RFC 7911): "send",
	// "receive" or "both"; AddPathLimit is how many are sent at most, the best; default: all.
	AddPath      string `json:"addPath,omitempty"`
	AddPathLimit int    `json:"addPathLimit,omitempty"`
	// Communities are added to all that the peer is told; see ParseCommunity.
	Communities []string `json:"communities,omitempty"`
	// Accept is what is believed: "default", the default route; "foreign", what is more
	// specific of nothing of ours; "blocks", what a node may announce; "blackhole", those of
	// the above that have that community, too: packets to them are dropped. Default:
	// blocks, and of another AS's router that is no node, default and foreign.
	Accept []string `json:"accept,omitempty"`
	// PrefixLimit is how many prefixes the peer may send, default 10000; PrefixWarning at
	// how many percent of it is warned, default 75; PrefixAction what becomes of the
	// session of one that sends more: "stop" (default), "warn", or "end", which stops it
	// until the Peer is changed.
	PrefixLimit   int    `json:"prefixLimit,omitempty"`
	PrefixWarning int    `json:"prefixWarning,omitempty"`
	PrefixAction  string `json:"prefixAction,omitempty"`
	// PrefixRestart is how many seconds a session rests that the limit ended; default: 1,
	// doubling to 60.
	PrefixRestart int `json:"prefixRestart,omitempty"`
	// Filters are the names of BGPFilters, in the order in which they are asked, before
	// those of BGPConfig.
	Filters []string `json:"filters,omitempty"`
	// Aggregate has the peer told of pools as a whole, in place of what lies in them.
	Aggregate bool `json:"aggregate,omitempty"`
	// RouteBudget is how many of the cluster's routes the peer has room for; 0: nobody counts.
	RouteBudget int `json:"routeBudget,omitempty"`
	// Shutdown, if not empty, keeps the session down; the peer is told the text.
	Shutdown string `json:"shutdown,omitempty"`
}

// Encap is how packets to another node travel.
type Encap string

// The encapsulations; the cross-subnet forms encapsulate only where the next
// hop is not on a connected subnet.
const (
	EncapNone             Encap = "none"
	EncapIPIP             Encap = "ipip"
	EncapIPIPCrossSubnet  Encap = "ipip-cross-subnet"
	EncapVXLAN            Encap = "vxlan"
	EncapVXLANCrossSubnet Encap = "vxlan-cross-subnet"

	EncapWireGuard            Encap = "wireguard"
	EncapWireGuardCrossSubnet Encap = "wireguard-cross-subnet"
)

// Pool is a CIDR that endpoints draw addresses from. Its name is PoolName(CIDR).
type Pool struct {
	Metadata Metadata `json:"metadata"`
	Spec     PoolSpec `json:"spec"`
}

// PoolSpec says how addresses of a pool are given out and reached.
type PoolSpec struct {
	CIDR netip.Prefix `json:"cidr"`
	// BlockSize is the prefix length of the pool's blocks; default 26 or 122,
	// or the pool's own length if that is longer.
	BlockSize   int   `json:"blockSize,omitempty"`
	Encap       Encap `json:"encap,omitempty"` // default EncapNone
	NATOutgoing bool  `json:"natOutgoing,omitempty"`
	Disabled    bool  `json:"disabled,omitempty"`
	// Removed: it was removed while addresses of it were in use. It is disabled, those
	// stay announced, and it goes with the last of them.
	Removed      bool   `json:"removed,omitempty"`
	NodeSelector string `json:"nodeSelector,omitempty"` // default all()
	// Communities are what its blocks and addresses are announced with over BGP; see
	// ParseCommunity.
	Communities []string `json:"communities,omitempty"`
}

// Block is a part of a pool that a node has affinity to. Its name is
// PoolName(CIDR).
type Block struct {
	Metadata Metadata  `json:"metadata"`
	Spec     BlockSpec `json:"spec"`
}

// BlockSpec holds a block's allocations.
type BlockSpec struct {
	CIDR netip.Prefix `json:"cidr"`
	// Affinity is the node that announces the block and draws from it.
	Affinity string `json:"affinity"`
	// Wished: it was claimed for an address that was asked for by name, and nobody
	// drew from it since. Requests without a wish draw from the node's other blocks
	// first.
	Wished bool `json:"wished,omitempty"`
	// Next is the ordinal at which the next search starts (next-fit).
	Next int `json:"next,omitempty"`
	// Allocations are sorted by ordinal, at most one for each.
	Allocations []Allocation `json:"allocations,omitempty"`
	// Released are the ordinals in quarantine, sorted by ordinal.
	Released []Released `json:"released,omitempty"`
}

// Allocation says who holds one address of a block.
type Allocation struct {
	Ordinal  int       `json:"ordinal"`
	Handle   string    `json:"handle"`
	Node     string    `json:"node"`
	Workload string    `json:"workload,omitempty"`
	Time     time.Time `json:"time"`
}

// Released is an address that was given back. Unless nothing else is left it is not
// handed out for 60 s of the owning node's clock; after a reboot of that node it is
// free at once.
type Released struct {
	Ordinal int `json:"ordinal"`
	// Boot is the boot ID of the node whose clock At is of.
	Boot string `json:"boot"`
	// At is that node's CLOCK_BOOTTIME in milliseconds.
	At int64 `json:"at"`
}

// Reservation keeps addresses from being handed out.
type Reservation struct {
	Metadata Metadata        `json:"metadata"`
	Spec     ReservationSpec `json:"spec"`
}

// ReservationSpec lists what is reserved.
type ReservationSpec struct {
	CIDRs []netip.Prefix `json:"cidrs"`
	// For, if set, is the workload the addresses are kept for.
	For string `json:"for,omitempty"`
}

// Network is a named group of endpoints.
type Network struct {
	Metadata Metadata    `json:"metadata"`
	Spec     NetworkSpec `json:"spec"`
}

// NetworkSpec says where a network's endpoints get addresses and profile from.
type NetworkSpec struct {
	// Pools are CIDRs of pools; empty: every pool that selects the node.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Profile is the profile of its endpoints; default: the network's name.
	Profile string `json:"profile,omitempty"`
	// IPv4 says, if it is false, that its endpoints have IPv6 alone; IPv6 is true then.
	IPv4    *bool             `json:"ipv4,omitempty"`
	IPv6    bool              `json:"ipv6,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	// Runtimes are those that get a network of this name on every node that has them.
	Runtimes []string `json:"runtimes,omitempty"`
}

// Endpoint is one interface of one workload. Its name is
// node/orchestrator/workload/interface.
type Endpoint struct {
	Metadata Metadata     `json:"metadata"`
	Spec     EndpointSpec `json:"spec"`
}

// EndpointSpec is everything a node needs to wire and protect the endpoint.
type EndpointSpec struct {
	Node         string `json:"node"`
	Orchestrator string `json:"orchestrator"`
	Workload     string `json:"workload"`
	Interface    string `json:"interface"`
	// Network is the network it belongs to; may be empty.
	Network string `json:"network,omitempty"`
	// Link is the host-side interface.
	Link string `json:"link"`
	// MAC is the workload side's hardware address.
	MAC       string       `json:"mac,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	// AllowedPrefixes are networks behind the workload, a router or a VPN: they are routed
	// to it, it may send from them, and rules take them for its own.
	AllowedPrefixes []netip.Prefix `json:"allowedPrefixes,omitempty"`
	// Profiles apply in order; the first rule that matches decides.
	Profiles []string `json:"profiles,omitempty"`
	Ports    []Port   `json:"ports,omitempty"`
	// HostPorts are ports of the node that lead to ports of the endpoint. Its rules
	// decide who gets through.
	HostPorts []HostPort `json:"hostPorts,omitempty"`
	// Bandwidth limits what goes over the interface; zero: nothing does.
	Bandwidth Bandwidth `json:"bandwidth,omitzero"`
	// Tap is the link, if a virtual machine has it open.
	Tap Tap `json:"tap,omitzero"`
	// QoSControls limit it further, as those of its profiles do; what is least applies.
	QoSControls QoSControls `json:"qosControls,omitzero"`
	// AllowEncapsulation ends the guard that drops VXLAN and IPIP of the workload, for overlays
	// among endpoints; to nodes they are dropped all the same.
	AllowEncapsulation bool `json:"allowEncapsulation,omitempty"`
	// GuardMAC drops frames of the workload with another source than MAC.
	GuardMAC bool `json:"guardMAC,omitempty"`
}

// HostPort is a port of a node that leads to one of an endpoint there.
type HostPort struct {
	Protocol string     `json:"protocol"`        // tcp, udp or sctp
	HostIP   netip.Addr `json:"hostIP,omitzero"` // zero: every address of the node
	HostPort uint16     `json:"hostPort"`
	Port     uint16     `json:"port"`
}

// Port is a named port of an endpoint.
type Port struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port"`
}

// Profile is tags and rules that endpoints take by name.
type Profile struct {
	Metadata Metadata    `json:"metadata"`
	Spec     ProfileSpec `json:"spec"`
}

// ProfileSpec is a profile's content. A new profile has its own name as tag,
// inbound "allow from tag NAME" and outbound "allow" (SetDefaults does this only
// for fields that are nil, not for empty ones).
type ProfileSpec struct {
	Tags []string `json:"tags"`
	// Labels are given to every endpoint that has the profile.
	Labels   map[string]string `json:"labels,omitempty"`
	Inbound  []Rule            `json:"inbound"`
	Outbound []Rule            `json:"outbound"`
	// QoSControls limit each endpoint that has the profile, by itself.
	QoSControls QoSControls `json:"qosControls,omitzero"`
}

// BGPConfig is the cluster's BGP configuration; its only name is "default".
type BGPConfig struct {
	Metadata Metadata      `json:"metadata"`
	Spec     BGPConfigSpec `json:"spec"`
}

// BGPConfigSpec holds the topology and its timers.
type BGPConfigSpec struct {
	// DefaultAS is the AS of nodes without their own; default 64511.
	DefaultAS uint32 `json:"defaultAS,omitempty"`
	// Mesh has nodes connected with each other by themselves; default true.
	Mesh *bool `json:"mesh,omitempty"`
	// Topology says which nodes are.
	Topology Topology `json:"topology,omitzero"`
	// HoldTime in seconds (0 or at least 3; default 90), RFC 4271 section 4.2.
	HoldTime *int `json:"holdTime,omitempty"`
	// RestartTime in seconds (default 120), RFC 4724.
	RestartTime int `json:"restartTime,omitempty"`
	// LongLivedTime is for how many seconds behind that routes are kept, as the last
	// resort (RFC 9494); default 0: they are not.
	LongLivedTime int `json:"longLivedTime,omitempty"`
	// Filters gives filters to peers of kind Peer, behind those that they name themselves.
	Filters []PeerFilters `json:"filters,omitempty"`
	// BFD between nodes that share a subnet; nil: none.
	BFD *BFD `json:"bfd,omitempty"`
}

// PeerFilters gives filters to the Peers that a selector picks by their labels.
type PeerFilters struct {
	Peers   string   `json:"peers"`
	Filters []string `json:"filters"`
}

// Topology is the shape of the sessions between nodes.
type Topology struct {
	Mode TopologyMode `json:"mode,omitempty"`
	// MeshLimit is up to how many nodes TopologyAuto is a mesh; default 50.
	MeshLimit int `json:"meshLimit,omitempty"`
}

// TopologyMode is a kind of topology.
type TopologyMode string

// The topologies.
const (
	TopologyAuto       TopologyMode = "auto"       // a mesh, of many nodes reflectors
	TopologyMesh       TopologyMode = "mesh"       // every node with every other
	TopologyReflectors TopologyMode = "reflectors" // every node with the reflectors of its zone
)

// Config is cluster-wide settings; its only name is "default".
type Config struct {
	Metadata Metadata   `json:"metadata"`
	Spec     ConfigSpec `json:"spec"`
}

// ConfigSpec holds cluster-wide settings.
type ConfigSpec struct {
	// MTU of workload interfaces in bytes; 0: that of the node's own interface.
	MTU int `json:"mtu,omitempty"`
	// Established says what becomes of flows that a change of policy denies; "": EstablishedCut.
	Established Established `json:"established,omitempty"`
}

// Cluster is the identity of the cluster the store holds, under ClusterKey. It
// is not an Object: it has no manifest.
type Cluster struct {
	UUID       string    `json:"uuid"`
	Created    time.Time `json:"created"`
	Generation int64     `json:"generation"`
}
