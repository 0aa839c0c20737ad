package routing

import (
	"fmt"
	"net/netip"
	"slices"
)

// Pool is what routing needs to know of a pool.
type Pool struct {
	CIDR netip.Prefix `json:"cidr"`
	// BlockSize is the length of its blocks, in bits.
	BlockSize int `json:"blockSize"`
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
