package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
)

// The address spaces of our IPAM driver: networks say by them whose addresses theirs
// are.
const (
	localSpace  = "netctl-local"
	globalSpace = "netctl-global"
)

// poolID is what a pool's ID says: Docker keeps it, and nothing else is remembered of
// a pool.
type poolID struct {
	v6             bool
	subnet, within netip.Prefix // what was asked for; within is where addresses come from unless one is wished
	// token is of a pool that nobody asked for: by it the network that it was made for
	// is found, which Docker tells an IPAM driver nothing of.
	token string
}

func (id poolID) String() string {
	digit := "4"
	if id.v6 {
		digit = "6"
	}
	text := []string{"netctl", digit, "", "", id.token}
	if id.subnet.IsValid() {
		text[2], text[3] = id.subnet.String(), id.within.String()
	}
	return strings.Join(text, "|")
}

func parsePoolID(text string) (id poolID, err error) {
	part := strings.Split(text, "|")
	bad := fmt.Errorf("pool %q: is none of netctl's", text)
	if len(part) != 5 || part[0] != "netctl" || part[1] != "4" && part[1] != "6" {
		return id, bad
	}
	id.v6, id.token = part[1] == "6", part[4]
	if part[2] == "" {
		return id, nil
	}
	if id.subnet, err = netip.ParsePrefix(part[2]); err == nil {
		id.within, err = netip.ParsePrefix(part[3])
	}
	if err != nil {
		return id, bad
	}
	return id, nil
}

// gateway is the "gateway" of the pool. It is on no interface; Docker wants one, and
// hands it on to the network's driver, which is how a network finds its pool's token.
func (id poolID) gateway() netip.Prefix {
	raw, err := hex.DecodeString(id.token)
	if err != nil || len(raw) != 3 {
		raw = []byte{0, 0, 0}
	}
	a := netip.AddrFrom4([4]byte{0, raw[0], raw[1], raw[2]})
	if id.v6 {
		a = netip.AddrFrom16([16]byte{13: raw[0], 14: raw[1], 15: raw[2]})
	}
	return netip.PrefixFrom(a, 0)
}

// tokenOf is gateway's inverse; "": it has none.
func tokenOf(gateway string) string {
	p, err := netip.ParsePrefix(gateway)
	if err != nil {
		return ""
	}
	raw := p.Addr().AsSlice()
	last := raw[len(raw)-3:]
	if slices.ContainsFunc(raw[:len(raw)-3], func(b byte) bool { return b != 0 }) || slices.Equal(last, []byte{0, 0, 0}) {
		return ""
	}
	return hex.EncodeToString(last)
}

func newToken() string {
	raw := make([]byte, 3)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	raw[0] |= 1           // not all zero
	return hex.EncodeToString(raw)
}

func (p *plugin) requestPool(ctx context.Context, r requestPool) (any, error) {
	ctx, cancel := short(ctx)
	defer cancel()
	id := poolID{v6: r.V6}
	if r.Pool == "" && p.cfg.Scope == ScopeGlobal { // managers and workers share nothing but what a network was asked with
		return nil, errors.New("network: one of a swarm needs a --subnet in a pool")
	}
	if r.Pool == "" {
		if r.SubPool != "" {
			return nil, fmt.Errorf("--ip-range %s: needs a --subnet", r.SubPool)
		}
		id.token = newToken()
		all := "0.0.0.0/0"
		if r.V6 {
			all = "::/0"
		}
		return requestedPool{PoolID: id.String(), Pool: all, Data: map[string]string{optGateway: id.gateway().String()}}, nil
	}
	var err error
	if id.subnet, err = subnet("--subnet", r.Pool, r.V6); err != nil {
		return nil, err
	}
	id.within = id.subnet
	if r.SubPool != "" {
		if id.within, err = subnet("--ip-range", r.SubPool, r.V6); err != nil {
			return nil, err
		}
		if id.within.Bits() < id.subnet.Bits() || !id.subnet.Contains(id.within.Addr()) {
			return nil, fmt.Errorf("--ip-range %s: is not in --subnet %s", id.within, id.subnet)
		}
	}
	if _, err := p.poolsOf(ctx, id.subnet); err != nil {
		return nil, err
	}
	return requestedPool{PoolID: id.String(), Pool: id.subnet.String(), Data: map[string]string{optGateway: id.gateway().String()}}, nil
}

func subnet(flag, text string, v6 bool) (netip.Prefix, error) {
	s, err := netip.ParsePrefix(text)
	if err != nil {
		return s, fmt.Errorf("%s %q: is no CIDR, like 10.77.0.0/16", flag, text)
	}
	if s.Addr().Is6() != v6 {
		return s, fmt.Errorf("%s %s: is of the other family", flag, text)
	}
	return s.Masked(), nil
}

// poolsOf are the CIDRs of the cluster's pools that a subnet draws from.
func (p *plugin) poolsOf(ctx context.Context, subnet netip.Prefix) ([]netip.Prefix, error) {
	pools, err := p.agent.Waiting(callTimeout / 2).Pools(ctx)
	if err != nil {
		return nil, err
	}
	for _, pool := range pools {
		if pool.CIDR.Bits() <= subnet.Bits() && pool.CIDR.Contains(subnet.Addr()) {
			if pool.Closed != "" {
				return nil, fmt.Errorf("--subnet %s: pool %s gives out no addresses: %s", subnet, pool.CIDR, pool.Closed)
			}
			return []netip.Prefix{pool.CIDR}, nil
		}
	}
	return nil, fmt.Errorf("--subnet %s: is in no pool: make one with `netctl pool add %s`, or leave --subnet out", subnet, subnet)
}

func (p *plugin) requestAddress(ctx context.Context, r addressCall) (any, error) {
	id, err := parsePoolID(r.PoolID)
	if err != nil {
		return nil, err
	}
	if r.Options[optType] == optGateway {
		// Whatever it is, it is on no interface.
		a, err := netip.ParseAddr(r.Address)
		if err != nil {
			a = id.gateway().Addr()
		}
		return requestedAddress{Address: host(a)}, nil
	}
	req := control.HoldRequest{IPv6: id.v6, Name: r.Options[optName]}
	if id.subnet.IsValid() {
		req.Within = []netip.Prefix{id.within}
	}
	if r.Address != "" {
		if req.Address, err = netip.ParseAddr(r.Address); err != nil {
			return nil, fmt.Errorf("address %q: is none", r.Address)
		}
		if id.subnet.IsValid() {
			req.Within = []netip.Prefix{id.subnet}
		}
	}
	if n, ok := p.state.networkOf(id.token); ok {
		req.Pools = n.Pools
		if n.Name != "" {
			req.Network = datastore.ForeignName(n.Name)
		}
	}
	ctx, cancel := short(ctx)
	defer cancel()
	if p.cfg.Scope == ScopeGlobal && req.Address.IsValid() {
		// A manager chose it and its node may hold it, or have it in a container if the manager
		// has started since: whether anybody else has it is found out when the container joins.
		if !id.subnet.Contains(req.Address) {
			return nil, fmt.Errorf("address %s: is not in --subnet %s", req.Address, id.subnet)
		}
		if _, err := p.poolsOf(ctx, id.subnet); err != nil {
			return nil, err
		}
		return requestedAddress{Address: host(req.Address)}, nil
	}
	held, err := p.agent.Waiting(callTimeout/2).Hold(ctx, req)
	if err != nil && id.subnet.IsValid() { // its pool may have been removed since
		if _, why := p.poolsOf(ctx, id.subnet); why != nil {
			return nil, why
		}
	}
	if err != nil {
		return nil, err
	}
	return requestedAddress{Address: host(held.Address)}, nil
}

func (p *plugin) releaseAddress(ctx context.Context, r addressCall) (any, error) {
	if _, err := parsePoolID(r.PoolID); err != nil {
		return nil, err
	}
	// The address of an endpoint is released with the endpoint. A hold that cannot be
	// let go ends by itself.
	ctx, cancel := short(ctx)
	defer cancel()
	if a, err := netip.ParseAddr(r.Address); err == nil && !a.IsUnspecified() {
		if err := p.agent.LetGo(ctx, a); err != nil {
			p.log.Debug("hold not let go", "address", a, "error", err)
		}
	}
	return nothing{}, nil
}
