package ipam

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"netctl/datastore"
)

// Reclaim is what is to be done for endpoints that a backup brought back.
type Reclaim struct {
	// Blocks are those that change, with the revision they were read in; 0: new.
	Blocks []*datastore.Block
	// Held are the endpoints whose addresses are all theirs, once Blocks are written.
	Held []*datastore.Endpoint
	// Refused are the endpoints of which another has an address, with the reason.
	Refused map[string]string
}

// PlanReclaim has endpoints of v, which a backup brought back, hold their addresses as
// far as nobody else does. from are the backup's blocks, which tell since when, and
// what a block that is not there was; pools of v tell where such a one may be.
func PlanReclaim(v *datastore.View, from []*datastore.Block, endpoints []*datastore.Endpoint, now time.Time) Reclaim {
	r := reclaimer{view: v, spaces: map[netip.Prefix]*space{}, backup: map[netip.Prefix]*datastore.Block{}}
	for _, b := range v.Blocks() {
		r.spaces[b.Spec.CIDR] = open(b, "", clock{})
	}
	for _, b := range from {
		r.backup[b.Spec.CIDR] = b
	}
	out := Reclaim{Refused: map[string]string{}}
	for _, ep := range endpoints {
		if why := r.endpoint(ep, now); why != "" {
			out.Refused[ep.Metadata.Name] = why
		} else {
			out.Held = append(out.Held, ep)
		}
	}
	for _, s := range r.spaces {
		if s.dirty {
			out.Blocks = append(out.Blocks, s.block)
		}
	}
	slices.SortFunc(out.Blocks, func(a, b *datastore.Block) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
	return out
}

type reclaimer struct {
	view   *datastore.View
	spaces map[netip.Prefix]*space
	backup map[netip.Prefix]*datastore.Block
}

// endpoint takes all addresses of an endpoint or none; why it cannot.
func (r *reclaimer) endpoint(ep *datastore.Endpoint, now time.Time) (why string) {
	name := ep.Metadata.Name
	var in []*space
	for _, a := range ep.Spec.Addresses {
		s, err := r.around(a, ep.Spec.Node)
		if err != "" {
			return err
		}
		if h := s.holder(ordinalOf(s.block.Spec.CIDR, a)); h != nil && h.Handle != name {
			return fmt.Sprintf("its address %s is held by %s", a, h.Handle)
		}
		in = append(in, s)
	}
	for i, a := range ep.Spec.Addresses {
		s := in[i]
		r.spaces[s.block.Spec.CIDR] = s
		ordinal := ordinalOf(s.block.Spec.CIDR, a)
		if s.holder(ordinal) != nil {
			continue
		}
		s.take(r.allocation(s.block.Spec.CIDR, ordinal, ep, now))
	}
	return ""
}

// around is the block of an address: the store's or, if there is room for it, the
// backup's or a new one.
func (r *reclaimer) around(a netip.Addr, node string) (s *space, why string) {
	for bits := a.BitLen() - maxBlockBits; bits <= a.BitLen(); bits++ {
		if s := r.spaces[netip.PrefixFrom(a, bits).Masked()]; s != nil {
			return s, ""
		}
	}
	cidr := blockAround(a, poolAround(r.view, a))
	b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: cidr, Affinity: node}}
	for bits := a.BitLen() - maxBlockBits; bits <= a.BitLen(); bits++ {
		if was := r.backup[netip.PrefixFrom(a, bits).Masked()]; was != nil {
			b = Emptied(was)
		}
	}
	b.SetDefaults()
	if r.view.Node(b.Spec.Affinity) == nil {
		b.Spec.Affinity = ""
	}
	for other := range r.spaces {
		if other.Overlaps(b.Spec.CIDR) {
			return nil, fmt.Sprintf("the block %s of its address %s overlaps block %s", b.Spec.CIDR, a, other)
		}
	}
	s = open(b, "", clock{})
	s.dirty = true
	return s, ""
}

// Emptied is a block as of a backup, without addresses that endpoints hold.
func Emptied(b *datastore.Block) *datastore.Block {
	out := *b
	out.Metadata.Revision = 0
	out.Spec.Allocations = slices.DeleteFunc(slices.Clone(b.Spec.Allocations), func(a datastore.Allocation) bool {
		return a.Handle != datastore.TunnelHandle(a.Node)
	})
	return &out
}

// allocation is the one of the backup, or one from now on.
func (r *reclaimer) allocation(cidr netip.Prefix, ordinal int, ep *datastore.Endpoint, now time.Time) datastore.Allocation {
	if b := r.backup[cidr]; b != nil {
		i, found := slices.BinarySearchFunc(b.Spec.Allocations, ordinal, byOrdinal)
		if found && b.Spec.Allocations[i].Handle == ep.Metadata.Name {
			return b.Spec.Allocations[i]
		}
	}
	return datastore.Allocation{Ordinal: ordinal, Handle: ep.Metadata.Name, Node: ep.Spec.Node, Workload: ep.Spec.Workload, Time: now.UTC().Truncate(time.Second)}
}
