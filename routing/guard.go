package routing

import (
	"fmt"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// Pool is what routing needs to know of a pool.
type Pool struct {
	CIDR netip.Prefix `json:"cidr"`
	// BlockSize is the length of its blocks, in bits; of a disabled pool its own.
	BlockSize int `json:"blockSize"`
	// Communities are what nodes announce its blocks and addresses with.
	Communities []string `json:"communities,omitempty"`
	// Encap is how packets to its addresses travel between nodes.
	Encap datastore.Encap `json:"encap,omitempty"`
}

// Guard decides which prefixes a node believes another node. The zero Guard
// believes none. It is not changed after it is made.
type Guard struct {
	Pools []Pool
	// Subnets are the connected subnets of this node.
	Subnets []netip.Prefix
	// Addresses are those of nodes and peers; a route that holds one of them
	// could take the session away that it came by.
	Addresses []netip.Addr
	// Own are the addresses of this node.
	Own []netip.Addr
	// Apart: routes are in a table that is looked into before those of connected subnets.
	Apart bool
}

// Check says whether a prefix announced by a node is installed, and if not, why.
func (g *Guard) Check(p netip.Prefix) (ok bool, reason string) {
	if p.Bits() == 0 {
		return false, "a default route"
	}
	pool, found := g.pool(p)
	if !found {
		return false, "outside every pool"
	}
	if p.Bits() < pool.BlockSize {
		return false, fmt.Sprintf("shorter than the /%d blocks of pool %s", pool.BlockSize, pool.CIDR)
	}
	for _, s := range g.Subnets {
		if s.Overlaps(p) {
			return false, fmt.Sprintf("overlaps the connected subnet %s", s)
		}
	}
	for _, a := range g.Addresses {
		if p.Contains(a) {
			return false, fmt.Sprintf("holds the address %s of a node", a)
		}
	}
	return true, ""
}

// Accept is what a peer is believed.
type Accept struct {
	// Default is the default route, Foreign what is more specific of nothing of ours,
	// Blocks what Check lets through.
	Default, Foreign, Blocks bool
}

// CheckAs says whether a prefix announced by a peer that is believed so much is
// installed, and if not, why.
func (g *Guard) CheckAs(a Accept, p netip.Prefix) (ok bool, reason string) {
	pool, ours := g.pool(p)
	switch {
	case p.Bits() == 0 && a.Default:
		return true, ""
	case p.Bits() == 0:
		return false, "a default route"
	case ours && !a.Blocks:
		return false, fmt.Sprintf("inside pool %s", pool.CIDR)
	case ours || !a.Foreign:
		return g.Check(p)
	}
	return g.checkForeign(p)
}

// checkForeign is for what lies in no pool. What covers ours may come: ours is the
// longer match.
func (g *Guard) checkForeign(p netip.Prefix) (ok bool, reason string) {
	for _, s := range g.Subnets {
		if inside(p, []netip.Prefix{s}) {
			return false, fmt.Sprintf("inside the connected subnet %s", s)
		}
		if g.Apart && inside(s, []netip.Prefix{p}) {
			return false, fmt.Sprintf("holds the connected subnet %s, which a route in a table of its own would go before", s)
		}
	}
	for _, a := range g.Own {
		if p.IsSingleIP() && p.Addr() == a {
			return false, "this node's own address"
		}
	}
	if i := slices.IndexFunc(unroutable(), p.Overlaps); i >= 0 && p.Bits() >= unroutable()[i].Bits() {
		return false, fmt.Sprintf("inside %s, which is not routed", unroutable()[i])
	}
	return true, ""
}

// unroutable are the ranges that no router speaks of (RFC 6890).
func unroutable() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
		netip.MustParsePrefix("::/128"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
	}
}

// CheckNextHop says whether a next hop announced by a node is used, and if not,
// why. What lies in a pool is an endpoint's: the address of a node, and of a
// machine in a connected subnet, never is.
func (g *Guard) CheckNextHop(a netip.Addr) (ok bool, reason string) {
	pool, found := g.pool(netip.PrefixFrom(a, a.BitLen()))
	if !found || slices.Contains(g.Addresses, a) || slices.ContainsFunc(g.Subnets, func(s netip.Prefix) bool { return s.Contains(a) }) {
		return true, ""
	}
	return false, fmt.Sprintf("its next hop %s is inside pool %s", a, pool.CIDR)
}

// Pool is the pool that p lies in.
func (g *Guard) Pool(p netip.Prefix) (pool Pool, ok bool) { return g.pool(p) }

// InPool says whether p lies inside a pool.
func (g *Guard) InPool(p netip.Prefix) bool {
	_, ok := g.pool(p)
	return ok
}

func (g *Guard) pool(p netip.Prefix) (Pool, bool) {
	for _, pool := range g.Pools {
		if inside(p, []netip.Prefix{pool.CIDR}) {
			return pool, true
		}
	}
	return Pool{}, false
}
