package control

import (
	"context"
	"net/netip"

	"netctl/datastore"
)

// HoldRequest asks for an address that nobody else is given for a while
// (POST /v1/hold): runtimes whose drivers choose addresses before there is an
// endpoint attach with it then. Nothing is written; a hold ends when its address is
// attached or let go, with the agent, or after HoldTime.
type HoldRequest struct {
	// Network, if there is one of that name, says which pools to draw from, unless
	// Pools does.
	Network string         `json:"network,omitempty"`
	Pools   []netip.Prefix `json:"pools,omitempty"`
	// Within restricts the addresses to these prefixes; empty: any.
	Within []netip.Prefix `json:"within,omitempty"`
	// IPv6 asks for an IPv6 address instead of an IPv4 one.
	IPv6 bool `json:"ipv6,omitempty"`
	// Address is a wish; zero: any.
	Address netip.Addr `json:"address,omitzero"`
	// Name is another name that reservations may be kept for.
	Name string `json:"name,omitempty"`
}

// HeldAddress is the answer to a HoldRequest; as a request (POST /v1/letgo) it ends
// the hold.
type HeldAddress struct {
	Address netip.Addr `json:"address"`
	// Pool is the CIDR of the pool that it is of.
	Pool netip.Prefix `json:"pool,omitzero"`
}

// NetworkRequest wants a network to be there (POST /v1/network), with its profile: what
// exists stays as it is, whatever the request says.
type NetworkRequest struct {
	Name   string                `json:"name"`
	Labels map[string]string     `json:"labels,omitempty"`
	Spec   datastore.NetworkSpec `json:"spec"`
	// Outbound are the profile's outbound rules if it is made; empty: the default.
	Outbound []string `json:"outbound,omitempty"`
}

// NetworkAnswer says what the network is.
type NetworkAnswer struct {
	Spec datastore.NetworkSpec `json:"spec"`
	// Created says that it was not there.
	Created bool `json:"created"`
}

// PoolAnswer are the pools of the cluster (GET /v1/pools).
type PoolAnswer struct {
	Pools []PoolEntry `json:"pools"`
}

// PoolEntry is one pool.
type PoolEntry struct {
	CIDR netip.Prefix `json:"cidr"`
	// Closed says why nothing is given out of it here; "": something is.
	Closed string `json:"closed,omitempty"`
}

// LabelRequest gives an endpoint labels (POST /v1/labels), learned after it was
// attached. They are added; one that is there already is replaced.
type LabelRequest struct {
	Target
	Labels map[string]string `json:"labels"`
}

// PortRequest makes these the ports of the node that lead to an endpoint
// (POST /v1/ports); none: there are none any more. A port that another endpoint has is
// CodeConflict.
type PortRequest struct {
	Target
	Ports []datastore.HostPort `json:"ports,omitempty"`
}

// Hold chooses an address and holds it; see HoldRequest.
func (c *AgentClient) Hold(ctx context.Context, r HoldRequest) (HeldAddress, error) {
	var a HeldAddress
	return a, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/hold", r, &a) })
}

// LetGo ends a hold; that there is none is no error.
func (c *AgentClient) LetGo(ctx context.Context, a netip.Addr) error {
	return c.call(ctx, methodPost, "/v1/letgo", HeldAddress{Address: a}, nil)
}

// Network has a network made if it is not there; see NetworkRequest.
func (c *AgentClient) Network(ctx context.Context, r NetworkRequest) (NetworkAnswer, error) {
	var a NetworkAnswer
	return a, c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/network", r, &a) })
}

// Pools returns the cluster's pools, by address.
func (c *AgentClient) Pools(ctx context.Context) ([]PoolEntry, error) {
	var a PoolAnswer
	err := c.insist(ctx, func() error { return c.call(ctx, methodGet, "/v1/pools", nil, &a) })
	return a.Pools, err
}

// Label gives an endpoint labels; see LabelRequest.
func (c *AgentClient) Label(ctx context.Context, r LabelRequest) error {
	return c.call(ctx, methodPost, "/v1/labels", r, nil)
}

// Publish gives an endpoint ports of the node; see PortRequest.
func (c *AgentClient) Publish(ctx context.Context, r PortRequest) error {
	return c.insist(ctx, func() error { return c.call(ctx, methodPost, "/v1/ports", r, nil) })
}
