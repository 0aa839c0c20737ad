// Package acl compiles what the datastore says about endpoints and profiles
// into the packet filter of one node: sets, chains and verdict maps in a small
// intermediate form (Ruleset) that prints itself as nft text, that back ends
// write to the kernel, and that Eval judges packets with.
//
// It never touches the kernel. Index follows the datastore event by event and
// yields deltas; an event costs what it changes.
//
// Invariants: every negation is an inverted match inside the same rule; nothing
// that is not explicitly allowed passes; a name in the kernel derives from a
// hash, the readable name is in a comment; chains depend on profiles only, never
// on who is a member of a set.
package acl

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"
)

// The names of the static objects.
const (
	// TableName is the nft table of family inet that holds everything but what guards
	// ARP: those objects are in the table of family arp with the same name, and their
	// own names begin with ARPPrefix.
	TableName = "netctl"
	ARPPrefix = "arp_"

	ChainRawPre   = "raw_pre"      // prerouting, priority raw
	ChainFwdFrom  = "fwd_from"     // forward: what workloads send
	ChainFwdTo    = "fwd_to"       // forward: what workloads receive
	ChainInHost   = "in_host"      // input: what workloads send to their own host
	ChainOutHost  = "out_host"     // output: what the host sends to its workloads
	ChainARP      = "arp_in"       // input of family arp: what workloads make the host learn
	chainRawOther = "raw_other"    // prerouting: what does not come from workloads
	chainFromWL   = "from_wl"      // egress of workloads
	chainEncap    = "encap_wl"     // encapsulated packets of workloads
	chainToWL     = "to_wl"        // ingress of workloads
	chainWLHost   = "wl_host"      // workload to host
	ChainReverse  = "reverse_path" // log and drop: a pool's source that comes from elsewhere
	chainUnseen   = "unseen"       // flows that may have begun while the filter was not whole
	chainUnseenTo = "unseen_to"    // the same of what workloads receive, but from others here
	chainDenyIn   = "deny_in"      // log and drop, ingress: no rule allows it
	chainDenyOut  = "deny_out"     // log and drop, egress
	chainDropIn   = "drop_in"      // drop what was logged, ingress
	chainDropOut  = "drop_out"     // drop what was logged, egress
	setGateway4   = "gateway4"     // gateway addresses of workloads
	setSrc4       = "src4"         // link and IPv4 address
	setSrc6       = "src6"         // link and IPv6 address
	setARP4       = "arp_src4"     // as setSrc4, for the table of family arp
	setNets4      = "srcnet4"      // link and IPv4 network behind it
	setNets6      = "srcnet6"      //
	setEncap4     = "encap4"       // link and source that may send encapsulated packets
	setEncap6     = "encap6"       //
	setARPNets4   = "arp_srcnet4"  // as setNets4, for the table of family arp
	setLL6        = "ll6"          // link and the link-local address made of its workload's MAC
	chainSpoof    = "spoof"        // sources of what comes by adopted links
	setAdopted    = "adopted"      // links of endpoints that are not in our group
	setAdoptedARP = "arp_adopted"
	setGuarded    = "mac_links"     // links whose frames are judged by their MAC
	setMACs       = "mac"           // link and MAC of those
	setMACSrc4    = "mac_src4"      // as setSrc4, of those
	setMACSrc6    = "mac_src6"      //
	setARPGuarded = "arp_mac_links" // the same for the table of family arp
	setARPMACs    = "arp_mac"
	setARPMACSrc4 = "arp_mac_src4"
	setOnLink4    = "onlink4"   // subnets that the host is connected to
	setOnLink6    = "onlink6"   //
	setPool4      = "pool4"     // pools: whose sources the reverse path is judged of
	setPool6      = "pool6"     //
	setNode4      = "node4"     // addresses of nodes, whose sources it is not
	setNode6      = "node6"     //
	setDHCP       = "port_dhcp" // ports DHCP servers send from
	setLink6      = "icmp6_link"
	setRouter6    = "icmp6_router"
	setEphemeral  = "port_ephemeral"   // ports that clients send from
	SetUnseen     = "unseen_protocols" // see Unseen
	setCutFlows4  = "cut4"             // see Flow
	setCutFlows6  = "cut6"             //
	setCutPairs4  = "cut_pairs4"       // of protocols without ports
	setCutPairs6  = "cut_pairs6"       //
	setHostPrefix = "host_"            // host_udp, …: Options.WorkloadToHost
	mapFromEP     = "from_ep"
	mapToEP       = "to_ep"
	nextSuffix    = "_next"

	meterDenyIn  = "m_deny_in"  // log lines of what is denied, ingress
	meterDenyOut = "m_deny_out" // log lines of what is denied, egress
	meterReverse = "m_reverse"  // log lines of reverse_path
	meterHost    = "m_host"     // log lines of wl_host
	MeterLog     = "m_log"      // log lines of log rules
	meterEcho    = "m_echoes"   // echo requests to the host
	meterND      = "m_nd"       // neighbour discovery from other link-local addresses
	meterFlows   = "m_flows"    // flows that a workload begins; the rate follows
	meterReach   = "m_reach"    // neighbours that a workload makes the host look for
	meterSeen4   = "m_seen4"    // those that it has sent to lately
	meterSeen6   = "m_seen6"    //
)

// NextMap is the map that is asked after m has no verdict. A back end puts an
// element there for as long as it changes the one of the same key in m: between
// the end of the old and the start of the new a packet may find neither.
func NextMap(m string) string { return m + nextSuffix }

// NFLogGroup is the NFLOG group that refused packets and log rules are sent to.
const NFLogGroup = 1

// Options are a node's settings that shape the static part.
type Options struct {
	// LinkPrefix starts the name of every link of an endpoint, e.g. "nc".
	LinkPrefix string
	// Group is the device group of every link of an endpoint.
	Group uint32
	// Gateways are the gateway addresses of workloads. Packets sent to an IPv4
	// one are dropped (docs/design.md, "The path of a packet"); IPv6 ones are link-local and need no
	// guard.
	Gateways []netip.Addr
	// FlowRate and FlowBurst bound the flows that one workload begins, per second and
	// at once: each takes an entry of the kernel's connection tracking table, which is
	// one for all. 0: no bound.
	FlowRate, FlowBurst uint32
	// WorkloadToHost lists what a workload may open on its own host.
	WorkloadToHost []HostPort
	// Adopts says that endpoints may have links that others made, which are in no group.
	Adopts bool
	// Strict has each packet judged that goes as its flow began, not only the first.
	Strict bool
	// ReversePath is how the sources of pools are judged that come from other machines.
	ReversePath ReversePath
	// Tunnels are the names of the links of tunnels between nodes.
	Tunnels []string
	// BGPPort is the TCP port of BGP on every node; 0: 179.
	BGPPort uint16
	// FailsafeInbound and FailsafeOutbound are ports of the host, and of others that it speaks
	// to, that no policy closes to host endpoints.
	FailsafeInbound, FailsafeOutbound []HostPort
}

// HostPort is a port on the host: protocol number (IANA) and port.
type HostPort struct {
	Protocol uint8
	Port     uint16
}

// hashName is kind + "_" + 12 hex digits of the SHA-256 of the parts.
func hashName(kind string, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return kind + "_" + hex.EncodeToString(sum[:6])
}

// validLink tells whether name can be the name of a network interface
// (dev_valid_name in the kernel's net/core/dev.c).
func validLink(name string) bool {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`/:"*\`, r)
	})
}
