package ipam

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// planner works out one request on an index. It changes nothing but itself.
type planner struct {
	index *Index
	node  string
	req   Request
	clock clock
	held  []netip.Addr // for others

	spaces  []*space // opened so far, at most one for a block
	pools   []*datastore.Pool
	addrs   []netip.Addr
	claimed []*datastore.Block
}

func (p *planner) run() error {
	n := p.index.nodes[p.node]
	if n == nil && !p.req.Restore {
		return fmt.Errorf("node %s: %w", p.node, datastore.ErrNotFound)
	}
	due := p.due(n)
	for i, v6 := range []bool{false, true} {
		wish, err := p.wish(v6)
		if err != nil {
			return err
		}
		if !wish.IsValid() && !due[i] {
			continue
		}
		if v6 && !p.req.Restore && !n.Address(true).IsValid() {
			return fmt.Errorf("%w: an IPv6 address is asked for, but node %s has none itself; give it one or leave ipv6 out", datastore.ErrInvalid, p.node)
		}
		a, err := p.one(v6, wish, n)
		if err != nil {
			return err
		}
		p.addrs = append(p.addrs, a)
	}
	if p.req.Restore {
		p.giveUp()
	}
	return nil
}

// taken yields what is excluded for this request and overlaps c. What a live
// endpoint has is its own, whatever it lies in.
func (p *planner) taken(c netip.Prefix) iter.Seq[taken] {
	if p.req.Restore {
		return func(func(taken) bool) {}
	}
	known := p.index.taken(c, p.req.Workload, p.req.Name)
	if len(p.held) == 0 && len(p.req.Within) == 0 {
		return known
	}
	return func(yield func(taken) bool) {
		for t := range known {
			if !yield(t) {
				return
			}
		}
		for _, a := range p.held {
			if c.Contains(a) && !yield(taken{cidr: netip.PrefixFrom(a, a.BitLen()), what: "held for a container that", name: "is about to start", part: true}) {
				return
			}
		}
		if len(p.req.Within) > 0 {
			for _, o := range outside(c.Masked(), p.req.Within) {
				if !yield(taken{cidr: o, what: "outside of", name: joined(p.req.Within), part: true}) {
					return
				}
			}
		}
	}
}

// outside is what of c lies in none of the prefixes.
func outside(c netip.Prefix, within []netip.Prefix) []netip.Prefix {
	overlaps := false
	for _, w := range within {
		if w.Bits() <= c.Bits() && w.Contains(c.Addr()) {
			return nil
		}
		overlaps = overlaps || c.Overlaps(w)
	}
	if !overlaps {
		return []netip.Prefix{c}
	}
	low := netip.PrefixFrom(c.Addr(), c.Bits()+1)
	high := netip.PrefixFrom(datastore.LastAddr(low).Next(), c.Bits()+1)
	return append(outside(low, within), outside(high, within)...)
}

func joined(list []netip.Prefix) string {
	var names []string
	for _, p := range list {
		names = append(names, p.String())
	}
	return strings.Join(names, ", ")
}

// wish is the wanted address of a family, if there is one.
func (p *planner) wish(v6 bool) (wish netip.Addr, err error) {
	for _, a := range p.req.Wants {
		if a.Is6() != v6 || !a.IsValid() {
			continue
		}
		if a.Is4In6() || a.Zone() != "" {
			return wish, fmt.Errorf("%w: address %s: must be a plain IPv4 or IPv6 address", datastore.ErrInvalid, a)
		}
		if wish.IsValid() && wish != a {
			return wish, fmt.Errorf("%w: addresses %s and %s: only one of a family can be had", datastore.ErrInvalid, wish, a)
		}
		wish = a
	}
	return wish, nil
}

// due are the families, IPv4 first, that an address is due of without a wish: IPv6
// alone where there are pools of no other.
func (p *planner) due(n *datastore.Node) (due [2]bool) {
	switch {
	case p.req.Restore || p.req.Held:
		return due
	case p.req.Family != 0:
		return [2]bool{p.req.Family == 4, p.req.Family == 6}
	}
	pools := p.req.Pools
	if len(pools) == 0 {
		for _, pool := range p.index.sortedPools() {
			// One of other nodes alone is none, for who asked for IPv6; else it is worth an error.
			if !p.req.V6 || n == nil || selects(pool, n) {
				pools = append(pools, pool.Spec.CIDR)
			}
		}
	}
	v4 := slices.ContainsFunc(pools, func(c netip.Prefix) bool { return c.Addr().Is4() })
	v6 := len(pools) > 0 && !v4 && n.Address(true).IsValid()
	return [2]bool{!v6 && (v4 || len(p.req.Pools) == 0), v6 || p.req.V6}
}

func (p *planner) one(v6 bool, wish netip.Addr, n *datastore.Node) (netip.Addr, error) {
	if wish.IsValid() && p.req.Restore {
		return p.explicit(wish, p.index.poolAround(wish))
	}
	pools, refused, err := p.eligible(v6, n)
	if err != nil {
		return netip.Addr{}, err
	}
	if wish.IsValid() {
		i := slices.IndexFunc(pools, func(pool *datastore.Pool) bool { return pool.Spec.CIDR.Contains(wish) })
		if i < 0 {
			return netip.Addr{}, datastore.As(datastore.ErrInvalid, "address %s is in none of the pools %s: ask for one of theirs, or add a pool that has it", wish, p.describe(v6, pools, refused))
		}
		return p.explicit(wish, pools[i])
	}
	if a, ok := p.again(v6); ok {
		return a, nil
	}
	if a, ok := p.kept(v6, pools); ok {
		return a, nil
	}
	if a, ok := p.search(pools); ok {
		return a, nil
	}
	if p.req.Away {
		if len(p.index.blocksOf[p.node]) == 0 {
			return netip.Addr{}, fmt.Errorf("%w: node %s has no block yet to give one out of, and none can be had while the datastore is away", datastore.ErrExhausted, p.node)
		}
		return netip.Addr{}, fmt.Errorf("%w in the blocks of node %s of pools %s, and no other can be had while the datastore is away", datastore.ErrExhausted, p.node, p.describe(v6, pools, refused))
	}
	return netip.Addr{}, fmt.Errorf("%w in pools %s: add one with `netctl pool add CIDR`", datastore.ErrExhausted, p.describe(v6, pools, refused))
}
