package ipam

import (
	"cmp"
	"context"
	"errors"
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

// view runs fn on what is known: the configured view or else the store's
// content, corrected by what this allocator knows to be newer.
func (a *Allocator) view(ctx context.Context, fn func(Source)) error {
	known := func(src Source) {
		if src.Revision() < a.seen {
			clear(a.over) // another store, or the same one restored
		}
		a.seen = src.Revision()
		a.over.prune(src)
		if len(a.over) > 0 {
			src = merged{src, a.over}
		}
		fn(src)
	}
	if a.cfg.View != nil {
		return a.cfg.View(ctx, known)
	}
	src, err := load(ctx, a.cfg.Store)
	if err == nil {
		known(src)
	}
	return err
}

// overlay holds, by key, what is known of blocks and pools beyond a view that
// lags behind: own commits, and what a lost race showed.
type overlay map[string]known

// known is an object (nil: absent) as of a revision of the store.
type known struct {
	object   datastore.Object
	revision int64
	// unreadable: no view will ever show what is there.
	unreadable bool
}

func (o overlay) committed(blocks []*datastore.Block, revision int64) {
	for _, b := range blocks {
		if key, err := datastore.KeyOf(b); err == nil {
			b.Metadata.Revision = revision
			o[key] = known{object: b, revision: revision}
		}
	}
}

// prune drops what src shows by now.
func (o overlay) prune(src Source) {
	maps.DeleteFunc(o, func(_ string, k known) bool {
		return k.revision <= src.Revision() && (!k.unreadable || src.Block(k.object.Meta().Name) != nil)
	})
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
				k.object, k.unreadable = decode(e)
			}
		}
		o[c.Key] = k
	}
	return nil
}

// decode reads a block or pool. Of a block that cannot be read it makes one that
// is full, so that nothing is taken from it and nothing is put in its place; any
// other object that cannot be read is absent.
func decode(e datastore.Entry) (o datastore.Object, unreadable bool) {
	if o, err := datastore.Decode(e.Key, e.Value); err == nil {
		o.Meta().Revision = e.Revision
		return o, false
	}
	kind, name, err := datastore.ParseKey(e.Key)
	if err != nil || kind != datastore.KindBlock {
		return nil, false
	}
	cidr, err := netip.ParsePrefix(strings.Replace(name, "-", "/", 1))
	if err != nil || cidr.Addr().BitLen()-cidr.Bits() > maxBlockBits {
		return nil, false
	}
	b := &datastore.Block{Metadata: datastore.Metadata{Name: name, Revision: e.Revision}, Spec: datastore.BlockSpec{CIDR: cidr}}
	for i := range b.Size() {
		b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: i, Handle: "an entry of the datastore that cannot be read"})
	}
	return b, true
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

// load is what the store holds of the kinds that plans are made from. An entry
// that cannot be read is missing; who then tries to create it learns of it.
func load(ctx context.Context, s datastore.Store) (*datastore.View, error) {
	var all datastore.Snapshot
	for _, k := range []datastore.Kind{datastore.KindNode, datastore.KindPool, datastore.KindReservation, datastore.KindBlock} {
		snap, err := s.List(ctx, datastore.KindPrefix(k))
		if err != nil {
			return nil, err
		}
		all.Entries = append(all.Entries, snap.Entries...)
		if all.Revision == 0 {
			all.Revision = snap.Revision // what is complete up to here
		}
	}
	v := datastore.NewView()
	_, err := v.Replace(all)
	if err != nil && !errors.Is(err, datastore.ErrInvalid) {
		return nil, err
	}
	return v, nil
}

func find[T any](list []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i]
	}
	return nil
}
