package ipam

import (
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// PoolUse is how much of a pool is used. Counts of addresses and of the blocks a
// pool could have are big integers: an IPv6 pool holds more than 2^64.
type PoolUse struct {
	CIDR      netip.Prefix `json:"cidr"`
	BlockSize int          `json:"blockSize"`
	Disabled  bool         `json:"disabled,omitempty"`
	Size      *big.Int     `json:"size"`
	// MaxBlocks is how many blocks the pool has room for.
	MaxBlocks *big.Int `json:"maxBlocks"`
	Used      int      `json:"used"` // allocated
	// Excluded are addresses that nothing is given out of: reservations and the
	// subnets of nodes.
	Excluded *big.Int   `json:"excluded"`
	Free     *big.Int   `json:"free"`
	Blocks   []BlockUse `json:"blocks"` // by address
}

// BlockUse is how much of a block is used.
type BlockUse struct {
	CIDR     netip.Prefix `json:"cidr"`
	Affinity string       `json:"affinity"`
	Size     int          `json:"size"`
	Used     int          `json:"used"`
	Borrowed int          `json:"borrowed"` // of those, by other nodes
	Resting  int          `json:"resting"`  // released and not judged yet
	Free     int          `json:"free"`     // resting ones included
}

// Use is the use of every pool, by address; v holds the Kinds.
func Use(v *datastore.View) []PoolUse {
	excluded := exclusions(v)
	var all []PoolUse
	for _, p := range v.Pools() {
		u := PoolUse{CIDR: p.Spec.CIDR, BlockSize: p.Spec.BlockSize, Disabled: p.Spec.Disabled,
			Size: size(p.Spec.CIDR), Excluded: covered(p.Spec.CIDR, excluded)}
		u.MaxBlocks = new(big.Int).Lsh(big.NewInt(1), uint(p.Spec.BlockSize-p.Spec.CIDR.Bits()))
		for _, b := range v.Blocks() {
			if p.Spec.CIDR.Overlaps(b.Spec.CIDR) {
				u.Blocks = append(u.Blocks, useOf(b, excluded))
				u.Used += len(b.Spec.Allocations)
			}
		}
		u.Free = new(big.Int).Sub(u.Size, u.Excluded)
		u.Free.Sub(u.Free, big.NewInt(int64(u.Used)))
		if u.Free.Sign() < 0 {
			u.Free.SetInt64(0) // what was given out before it was excluded
		}
		all = append(all, u)
	}
	return all
}

func useOf(b *datastore.Block, excluded []taken) BlockUse {
	u := BlockUse{CIDR: b.Spec.CIDR, Affinity: b.Spec.Affinity, Size: b.Size(),
		Used: len(b.Spec.Allocations), Resting: len(b.Spec.Released)}
	for _, a := range b.Spec.Allocations {
		if a.Node != b.Spec.Affinity {
			u.Borrowed++
		}
	}
	m := (&space{block: b}).used()
	m.merge(within(b.Spec.CIDR, slices.Values(excluded)))
	u.Free = u.Size - m.count(u.Size)
	return u
}

// size is the number of addresses of p.
func size(p netip.Prefix) *big.Int {
	return new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits()))
}

// covered is how many addresses of p are excluded.
func covered(p netip.Prefix, excluded []taken) *big.Int {
	var in []netip.Prefix
	for _, t := range excluded {
		switch {
		case !t.cidr.Overlaps(p):
		case t.cidr.Bits() <= p.Bits():
			return size(p)
		default:
			in = append(in, t.cidr)
		}
	}
	sum := new(big.Int)
	for _, c := range outermost(in) {
		sum.Add(sum, size(c))
	}
	return sum
}

// AddressInfo is everything that is known of an address; what is not there is
// the zero value.
type AddressInfo struct {
	Address    netip.Addr            `json:"address"`
	Pool       netip.Prefix          `json:"pool,omitzero"`
	Block      netip.Prefix          `json:"block,omitzero"`
	Affinity   string                `json:"affinity,omitempty"`
	Allocation *datastore.Allocation `json:"allocation,omitempty"`
	Endpoint   *datastore.Endpoint   `json:"endpoint,omitempty"`
	// Excluded says why the address is not given out.
	Excluded string `json:"excluded,omitempty"`
	// Released: given back, and not given out again since.
	Released bool `json:"released,omitempty"`
}

// Info returns what is known of an address.
func Info(ctx context.Context, s datastore.Store, a netip.Addr) (AddressInfo, error) {
	v, err := load(ctx, s)
	if err != nil {
		return AddressInfo{}, fmt.Errorf("address %s: %w", a, err)
	}
	i := AddressInfo{Address: a}
	pool := poolAround(v, a)
	if pool != nil {
		i.Pool = pool.Spec.CIDR
	}
	for _, t := range exclusions(v) {
		if t.cidr.Contains(a) {
			i.Excluded = t.why()
			break
		}
	}
	b := blockOf(v, a, blockAround(a, pool))
	if b == nil {
		return i, nil
	}
	i.Block, i.Affinity = b.Spec.CIDR, b.Spec.Affinity
	ordinal := ordinalOf(b.Spec.CIDR, a)
	i.Released = slices.ContainsFunc(b.Spec.Released, func(r datastore.Released) bool { return r.Ordinal == ordinal })
	if i.Allocation = holderOf(b, a); i.Allocation == nil {
		return i, nil
	}
	if _, err := datastore.Key(datastore.KindEndpoint, i.Allocation.Handle); err != nil {
		return i, nil
	}
	i.Endpoint, err = datastore.Get[*datastore.Endpoint](ctx, s, i.Allocation.Handle)
	if err != nil {
		i.Endpoint = nil // leaked; Check says so
	}
	return i, nil
}

// ReleaseAddress releases one address, whoever holds it, and returns the handle.
// An address that is not allocated is ErrNotFound; one that an existing endpoint
// has is ErrInUse, unless force is set.
func ReleaseAddress(ctx context.Context, s datastore.Store, a netip.Addr, force bool) (handle string, err error) {
	i, err := Info(ctx, s, a)
	switch {
	case err != nil:
		return "", err
	case i.Allocation == nil:
		return "", fmt.Errorf("release %s: not allocated: %w", a, datastore.ErrNotFound)
	case i.Endpoint != nil && !force:
		return i.Allocation.Handle, fmt.Errorf("release %s: %w by endpoint %s; remove that, or use --force", a, datastore.ErrInUse, i.Allocation.Handle)
	}
	handle = i.Allocation.Handle
	err = edit(ctx, s, i.Block, func(sp *space) ([]datastore.Condition, error) {
		if sp.give(handle, ordinalOf(i.Block, a)) == nil {
			return nil, fmt.Errorf("not held by %s any more: %w", handle, datastore.ErrConflict)
		}
		return nil, nil
	})
	if err != nil {
		return handle, fmt.Errorf("release %s: %w", a, err)
	}
	return handle, nil
}
