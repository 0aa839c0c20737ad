// Package control owns what the roles of one node say to each other and to the
// CLI over unix sockets: the request and answer types, the clients, and the
// listener that checks the caller's uid. HTTP with JSON bodies.
//
// It never touches the datastore or the kernel's networking and imports the
// standard library and datastore's types only, because the thin plugins (CNI,
// netavark) run nothing else.
package control

import (
	"net/netip"
	"strings"
	"time"

	"netctl/datastore"
)

// AgentSocket is where the agent listens unless told otherwise.
const AgentSocket = "/run/netctl-node/agent.sock"

// PendingDir holds one file for each detach that the agent was not there for.
const PendingDir = "/run/netctl-node/pending"

// Target names one interface of one workload.
type Target struct {
	Orchestrator string `json:"orchestrator"`
	Workload     string `json:"workload"`
	// Interface is the name inside the namespace; "" is every one, for a detach.
	Interface string `json:"interface,omitempty"`
}

// Endpoint is the name of the target's endpoint on a node.
func (t Target) Endpoint(node string) string {
	return datastore.EndpointName(node, t.Orchestrator, t.Workload, t.Interface)
}

// AttachRequest asks the agent to wire one interface of one workload
// (POST /v1/attach). The call returns when address, link, routes and ACLs are
// in the kernel. Attaching the same key with the same namespace again returns
// the existing endpoint.
type AttachRequest struct {
	Target
	// Network names the network; it and its profile are created if absent. A name that
	// is foreign to the model comes as datastore.ForeignName makes it, with the original
	// in the label datastore.LabelNetwork.
	Network string `json:"network,omitempty"`
	// NetnsFD is the number of a descriptor of the target namespace in the
	// calling process; the agent opens /proc/<peer pid>/fd/<n>. Not looked at if Loose
	// or of a Tap.
	NetnsFD int `json:"netnsFD"`
	// Loose leaves the workload's side on the host, as Attachment.Peer, for the runtime
	// to take it into the namespace that NetnsPath will name, and to address and route
	// it there: Docker has it so. Attaching again by the same NetnsPath returns the
	// existing endpoint.
	Loose bool `json:"loose,omitempty"`
	// Gateway is the IPv4 next hop that the workload of a Loose attach is told: the
	// agent's, or one of the netdev.MaxGateways-1 after it; zero: the agent's. Two
	// interfaces of one namespace cannot have the same in one table of routes.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Tap has a TAP made for a virtual machine, and no namespace looked at.
	Tap datastore.Tap `json:"tap,omitzero"`
	// Destinations are what the workload of a Loose attach is to reach by this interface,
	// whichever has its default route; the agent sees to that once the interface is there.
	Destinations []netip.Prefix `json:"destinations,omitempty"`
	// Held says that Addresses were chosen by Hold, or by somebody else's IPAM, and are
	// all that the interface has.
	Held bool `json:"held,omitempty"`
	// NetnsPath is where the caller found the namespace: told in errors, and looked at by
	// a detach, if that namespace is still there.
	NetnsPath string `json:"netnsPath,omitempty"`
	// Addresses are wishes, at most one of each family.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// AllowedPrefixes are networks behind it, which the caller has looked at.
	AllowedPrefixes []netip.Prefix `json:"allowedPrefixes,omitempty"`
	// AllowEncapsulation is that of the endpoint.
	AllowEncapsulation bool `json:"allowEncapsulation,omitempty"`
	// GuardMAC is that of the endpoint.
	GuardMAC bool `json:"guardMAC,omitempty"`
	// Pools restricts the pools to draw from; empty: the network's.
	Pools []netip.Prefix `json:"pools,omitempty"`
	// Within restricts the addresses to these prefixes, which lie in pools; empty: any.
	Within []netip.Prefix `json:"within,omitempty"`
	IPv6   bool           `json:"ipv6,omitempty"`
	// IPv6Only is an IPv6 address and no IPv4 one.
	IPv6Only bool   `json:"ipv6Only,omitempty"`
	MAC      string `json:"mac,omitempty"`
	// Bandwidth limits the interface; zero: nothing does.
	Bandwidth datastore.Bandwidth `json:"bandwidth,omitzero"`
	// Runtime is who asks, as far as the caller can tell: a collection of the same one
	// may release what it attached (CollectRequest). "": nobody's may.
	Runtime  string            `json:"runtime,omitempty"`
	MTU      int               `json:"mtu,omitempty"` // bytes; 0: the agent decides
	Profiles []string          `json:"profiles,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Ports    []datastore.Port  `json:"ports,omitempty"`
}

// Attachment is what was wired.
type Attachment struct {
	Endpoint  string       `json:"endpoint"` // node/orchestrator/workload/interface
	Link      string       `json:"link"`     // host side
	LinkMAC   string       `json:"linkMAC"`
	Interface string       `json:"interface"`
	Peer      string       `json:"peer,omitempty"` // the workload's side as long as it is loose
	MAC       string       `json:"mac"`
	MTU       int          `json:"mtu"` // bytes
	Addresses []netip.Addr `json:"addresses"`
	// Gateways are the next hops of the default routes, one per family.
	Gateways []netip.Addr `json:"gateways"`
	// Warning is one line on what was wired and will not do; "": nothing.
	Warning string `json:"warning,omitempty"`
}

// DetachRequest releases an endpoint (POST /v1/detach). An endpoint that is not
// there is no error.
type DetachRequest struct {
	Target
	Network string `json:"network,omitempty"`
}

// CollectRequest releases what is dead (POST /v1/collect): endpoints of this node,
// orchestrator and network that the same Runtime attached and does not list as valid, and
// whose link is gone. What lives is never touched, nor what another runtime attached to a
// network of that name.
type CollectRequest struct {
	Orchestrator string   `json:"orchestrator"`
	Network      string   `json:"network"`
	Runtime      string   `json:"runtime"`
	Valid        []Target `json:"valid,omitempty"`
}

// Collected is what a CollectRequest released: names of endpoints.
type Collected struct {
	Released []string `json:"released,omitempty"`
}

// CheckRequest asks whether the endpoint is wired as attached (POST /v1/check):
// link, addresses, routes, ACL, and that NetnsFD is the recorded namespace.
type CheckRequest struct {
	Target
	NetnsFD   int          `json:"netnsFD"`
	Addresses []netip.Addr `json:"addresses,omitempty"` // must all be there
}

// AgentStatus is the agent's own view (GET /v1/status).
type AgentStatus struct {
	Version   string    `json:"version"`
	Node      string    `json:"node"`
	PID       int       `json:"pid"`
	Started   time.Time `json:"started"`
	InSync    bool      `json:"inSync"`
	Detached  string    `json:"detached,omitempty"` // why, empty: attached
	Store     string    `json:"store,omitempty"`    // why the store does not answer
	Endpoints int       `json:"endpoints"`
	// Waiting is how many of them the store, which was away, has yet to hear of.
	Waiting int      `json:"waiting,omitempty"`
	Lost    []string `json:"lost,omitempty"` // endpoints whose link is gone
	// Taps is how many of them have a TAP, and Closed are those whose TAP no virtual
	// machine has open.
	Taps   int      `json:"taps,omitempty"`
	Closed []string `json:"closed,omitempty"`
	// Limited is what limits dropped of packets of its endpoints, since they were set.
	Limited []Limited `json:"limited,omitempty"`
	// Filter is what filters packets, and Lacks what that does less than nftables, one line each.
	Filter string   `json:"filter,omitempty"`
	Lacks  []string `json:"lacks,omitempty"`
	// Problems are one line each: what is wrong and what to do.
	Problems []string `json:"problems,omitempty"`
	// Notes are one line each that nothing is wrong by itself with: rules that name what
	// does not exist.
	Notes []string `json:"notes,omitempty"`
	// Unread is what others have in the datastore that cannot be read, one line each.
	Unread []string `json:"unread,omitempty"`
	// Refusing are other programs' chains that may refuse what netctl allows.
	Refusing []string     `json:"refusing,omitempty"`
	Address  []netip.Addr `json:"address"`
	// AddressRule says which rule chose the node's address.
	AddressRule string `json:"addressRule,omitempty"`
}

// What a problem begins with that is about the node's own address.
const (
	OwnAddress4 = "IPv4 address"
	OwnAddress6 = "IPv6 address"
)

// CausesFirst puts first what is wrong with the node's own address: without it the datastore
// and the peers may be out of reach. It returns a list of its own, never nil.
func CausesFirst(problems []string) []string {
	causes, others := []string{}, []string(nil)
	for _, p := range problems {
		if strings.HasPrefix(p, OwnAddress4+": ") || strings.HasPrefix(p, OwnAddress6+": ") {
			causes = append(causes, p)
		} else {
			others = append(others, p)
		}
	}
	return append(causes, others...)
}

// Limited is what one limit of an endpoint dropped.
type Limited struct {
	Endpoint string `json:"endpoint"`
	Limit    string `json:"limit"` // as in a manifest, e.g. ingressPacketRate
	Value    uint64 `json:"value"`
	Packets  uint64 `json:"packets"`
}

// Error is the body of every answer that is not 2xx.
type Error struct {
	// Code is one of the Code… constants.
	Code string `json:"code"`
	// Message is one line for a person: what is wrong, where, what to do.
	Message string `json:"message"`
}

// The error codes, as the sentinels of datastore plus what only a socket knows.
const (
	CodeInvalid     = "invalid"
	CodeNotFound    = "not-found"
	CodeExists      = "exists"
	CodeConflict    = "conflict"
	CodeExhausted   = "exhausted"
	CodeUnavailable = "unavailable" // datastore away, agent starting
	CodeDetached    = "detached"
	CodeNamespace   = "namespace" // the network namespace is not usable
	CodeDenied      = "denied"    // the caller, or the node, may not do that
	CodeInternal    = "internal"
)

// Error implements error.
func (e *Error) Error() string { return e.Message }

// ExplainRequest asks what the packet filter that the agent keeps says of the first
// packet of a flow (POST /v1/explain), as an endpoint of its node sends or gets it.
type ExplainRequest struct {
	// Endpoint is the endpoint's name, "" the host itself; Inbound says that it is the one that
	// gets the packet.
	Endpoint string `json:"endpoint"`
	Inbound  bool   `json:"inbound,omitempty"`
	// ToHost says that the packet is for the endpoint's own host.
	ToHost bool `json:"toHost,omitempty"`
	// Via is the host's interface that it comes or goes by; the agent knows by itself.
	Via string `json:"-"`
	// In is that interface where somebody says that it comes by it, which may be another one than
	// leads to its source; "": nobody does.
	In string `json:"in,omitempty"`
	// Route is the interface that the host's route to the source leads to, "": Via; Unrouted says
	// that there is none. The agent knows by itself.
	Route    string     `json:"-"`
	Unrouted bool       `json:"-"`
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Protocol uint8      `json:"protocol"`
	SrcPort  uint16     `json:"srcPort,omitempty"`
	DstPort  uint16     `json:"dstPort,omitempty"`
	Type     uint8      `json:"type,omitempty"` // of ICMP
	Code     uint8      `json:"code,omitempty"`
}

// Explanation is one side's verdict.
type Explanation struct {
	// HostEndpoint is what was asked where no endpoint was.
	HostEndpoint string `json:"hostEndpoint,omitempty"`
	Allowed      bool   `json:"allowed"`
	// By is the rule that decided; nil: Reason says what did.
	By     *datastore.RulePlace `json:"by,omitempty"`
	Reason string               `json:"reason,omitempty"`
	// Passed are the rules that were asked before, in their order.
	Passed []AskedRule `json:"passed,omitempty"`
	// Problem says why the kernel may not hold what this is about; "": it does.
	Problem string `json:"problem,omitempty"`
}

// AskedRule is a rule that a packet met, and whether it matched.
type AskedRule struct {
	datastore.RulePlace
	Matched bool `json:"matched"`
}

// CountersRequest asks what the rules of the agent's node have counted (POST /v1/counters):
// those of the policies and profiles of that name, or of all.
type CountersRequest struct {
	Name string `json:"name,omitempty"`
}

// Counters are the rules that endpoints of a node are judged by, policies in the order in
// which they are asked and profiles behind them.
type Counters struct {
	Node  string        `json:"node"`
	Rules []RuleCounter `json:"rules"`
}

// RuleCounter is what a rule has counted since it is on the node.
type RuleCounter struct {
	datastore.RulePlace
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// LearnedRequest asks what the agent's node knows of the domains of a network set, or with ""
// of all (POST /v1/learned).
type LearnedRequest struct {
	Set string `json:"set,omitempty"`
}

// Learned is what a node has learned from the answers that its endpoints got.
type Learned struct {
	Node      string           `json:"node"`
	Addresses []LearnedAddress `json:"addresses"`
}

// LearnedAddress is an address of a name that is in a network set, for so many more seconds.
type LearnedAddress struct {
	Set     string     `json:"set"`
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Seconds float64    `json:"seconds"`
}
