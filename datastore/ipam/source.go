package ipam

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// Source is what an allocator reads; *datastore.View is one. Pools and blocks
// come sorted by address.
type Source interface {
	Node(name string) *datastore.Node // nil: absent
	Nodes() []*datastore.Node
	Pools() []*datastore.Pool
	Block(name string) *datastore.Block // nil: absent
	Blocks() []*datastore.Block
	BlocksOf(node string) []*datastore.Block
	Reservations() []*datastore.Reservation
	// Revision is the store's revision that the source is complete up to.
	Revision() int64
}

// view runs fn on what is known: the configured view, corrected by what this
// allocator knows to be newer, or else the store's content.
func (a *Allocator) view(ctx context.Context, fn func(Source)) error {
	if a.cfg.View == nil {
		src, err := load(ctx, a.cfg.Store)
		if err != nil {
			return err
		}
		fn(src)
		return nil
	}
	return a.cfg.View(ctx, func(src Source) {
		a.over.prune(src.Revision())
		if len(a.over) == 0 {
			fn(src)
			return
		}
		fn(merged{src, a.over})
	})
}

// overlay holds, by key, what is known of blocks and pools beyond a view that
// lags behind: own commits, and what a lost race showed.
type overlay map[string]known

// known is an object (nil: absent) as of a revision of the store.
type known struct {
	object   datastore.Object
	revision int64
}

func (o overlay) committed(blocks []*datastore.Block, revision int64) {
	for _, b := range blocks {
		if key, err := datastore.KeyOf(b); err == nil {
			b.Metadata.Revision = revision
			o[key] = known{b, revision}
		}
	}
}

func (o overlay) prune(revision int64) {
	maps.DeleteFunc(o, func(_ string, k known) bool { return k.revision <= revision })
}

// reread reads the keys of conds. It lists each of them, because only a list
// tells the revision of an absence.
func (o overlay) reread(ctx context.Context, s datastore.Store, conds []datastore.Condition) error {
	for _, c := range conds {
		snap, err := s.List(ctx, c.Key)
		if err != nil {
			return err
		}
		k := known{revision: snap.Revision}
		for _, e := range snap.Entries {
			if e.Key == c.Key {
				k.object = decode(e)
			}
		}
		o[c.Key] = k
	}
	return nil
}

// decode reads a block or pool. A block that cannot be read is one that is
// full, so that nothing is taken from it and nothing is put in its place; any
// other object that cannot be read is absent.
func decode(e datastore.Entry) datastore.Object {
	if o, err := datastore.Decode(e.Key, e.Value); err == nil {
		o.Meta().Revision = e.Revision
		return o
	}
	kind, name, err := datastore.ParseKey(e.Key)
	if err != nil || kind != datastore.KindBlock {
		return nil
	}
	cidr, err := netip.ParsePrefix(strings.Replace(name, "-", "/", 1))
	if err != nil || cidr.Addr().BitLen()-cidr.Bits() > maxBlockBits {
		return nil
	}
	b := &datastore.Block{Metadata: datastore.Metadata{Name: name, Revision: e.Revision}, Spec: datastore.BlockSpec{CIDR: cidr}}
	for i := range b.Size() {
		b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: i, Handle: "an entry of the datastore that cannot be read"})
	}
	return b
}

// merged is a Source with an overlay over it.
type merged struct {
	Source
	over overlay
}

func (m merged) Block(name string) *datastore.Block {
	if k, ok := m.over[datastore.KindPrefix(datastore.KindBlock)+name]; ok {
		b, _ := k.object.(*datastore.Block)
		return b
	}
	return m.Source.Block(name)
}

func (m merged) Blocks() []*datastore.Block {
	return overlaid(m.over, m.Source.Blocks(), func(b *datastore.Block) netip.Prefix { return b.Spec.CIDR })
}

func (m merged) BlocksOf(node string) []*datastore.Block {
	all := overlaid(m.over, m.Source.BlocksOf(node), func(b *datastore.Block) netip.Prefix { return b.Spec.CIDR })
	return slices.DeleteFunc(all, func(b *datastore.Block) bool { return b.Spec.Affinity != node })
}

func (m merged) Pools() []*datastore.Pool {
	return overlaid(m.over, m.Source.Pools(), func(p *datastore.Pool) netip.Prefix { return p.Spec.CIDR })
}

func overlaid[T datastore.Object](over overlay, objects []T, cidr func(T) netip.Prefix) []T {
	out := make([]T, 0, len(objects)+len(over))
	for _, o := range objects {
		if _, ok := over[datastore.KindPrefix(o.Kind())+o.Meta().Name]; !ok {
			out = append(out, o)
		}
	}
	for _, k := range over {
		if o, ok := k.object.(T); ok {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b T) int { return comparePrefix(cidr(a), cidr(b)) })
	return out
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// content is what the store held when it was listed.
type content struct {
	nodes        []*datastore.Node
	pools        []*datastore.Pool
	blocks       []*datastore.Block
	reservations []*datastore.Reservation
	revision     int64
}

func load(ctx context.Context, s datastore.Store) (*content, error) {
	c := &content{}
	for _, k := range []datastore.Kind{datastore.KindNode, datastore.KindPool, datastore.KindReservation, datastore.KindBlock} {
		snap, err := s.List(ctx, datastore.KindPrefix(k))
		if err != nil {
			return nil, err
		}
		if c.revision == 0 {
			c.revision = snap.Revision
		}
		for _, e := range snap.Entries {
			switch o := decode(e).(type) {
			case *datastore.Node:
				c.nodes = append(c.nodes, o)
			case *datastore.Pool:
				c.pools = append(c.pools, o)
			case *datastore.Reservation:
				c.reservations = append(c.reservations, o)
			case *datastore.Block:
				c.blocks = append(c.blocks, o)
			}
		}
	}
	slices.SortFunc(c.pools, func(a, b *datastore.Pool) int { return comparePrefix(a.Spec.CIDR, b.Spec.CIDR) })
	slices.SortFunc(c.blocks, func(a, b *datastore.Block) int { return comparePrefix(a.Spec.CIDR, b.Spec.CIDR) })
	return c, nil
}

func (c *content) Node(name string) *datastore.Node {
	return find(c.nodes, func(n *datastore.Node) bool { return n.Metadata.Name == name })
}

func (c *content) Block(name string) *datastore.Block {
	return find(c.blocks, func(b *datastore.Block) bool { return b.Metadata.Name == name })
}

func (c *content) BlocksOf(node string) (own []*datastore.Block) {
	for _, b := range c.blocks {
		if b.Spec.Affinity == node {
			own = append(own, b)
		}
	}
	return own
}

func (c *content) Nodes() []*datastore.Node               { return c.nodes }
func (c *content) Pools() []*datastore.Pool               { return c.pools }
func (c *content) Blocks() []*datastore.Block             { return c.blocks }
func (c *content) Reservations() []*datastore.Reservation { return c.reservations }
func (c *content) Revision() int64                        { return c.revision }

func find[T any](list []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i]
	}
	return nil
}

