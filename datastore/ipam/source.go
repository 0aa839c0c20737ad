package ipam

import (
	"context"
	"errors"
	"slices"

	"netctl/datastore"
)

// source is what the next plan is made from: the index that is fed, or else one of
// what the store holds now, which with anew may be another than before.
func (a *Allocator) source(ctx context.Context, anew bool) (*Index, error) {
	if a.cfg.Index != nil {
		return a.cfg.Index, nil
	}
	v, err := load(ctx, a.cfg.Store)
	if err != nil {
		return nil, err
	}
	if anew {
		a.listed.Forget()
	}
	a.listed.Reset(v)
	return a.listed, nil
}

// committed takes blocks that were just written, or deleted.
func (x *Index) committed(written, deleted []*datastore.Block, revision int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range written {
		if key, err := datastore.KeyOf(b); err == nil {
			b.Metadata.Revision = revision
			x.learn(key, ahead{object: b, revision: revision})
		}
	}
	for _, b := range deleted {
		if key, err := datastore.KeyOf(b); err == nil {
			x.learn(key, ahead{revision: revision})
		}
	}
}

// reread reads the keys of conds. It lists each of them, because only a list
// tells the revision of an absence.
func (x *Index) reread(ctx context.Context, s datastore.Store, conds []datastore.Condition) error {
	for _, c := range conds {
		snap, err := s.List(ctx, c.Key)
		if err != nil {
			return err
		}
		a := ahead{revision: snap.Revision}
		for _, e := range snap.Entries {
			a.object, a.unreadable = decode(e)
		}
		x.mu.Lock()
		x.learn(c.Key, a)
		x.mu.Unlock()
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
	cidr, err := prefixOf(name)
	if err != nil || cidr.Addr().BitLen()-cidr.Bits() > maxBlockBits {
		return nil, false
	}
	b := &datastore.Block{Metadata: datastore.Metadata{Name: name, Revision: e.Revision}, Spec: datastore.BlockSpec{CIDR: cidr}}
	for i := range b.Size() {
		b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: i, Handle: "an entry of the datastore that cannot be read"})
	}
	return b, true
}

// Kinds are the kinds that plans are made from.
func Kinds() []datastore.Kind {
	return []datastore.Kind{datastore.KindNode, datastore.KindPool, datastore.KindReservation, datastore.KindBlock}
}

// load is what the store holds of the kinds that plans are made from, and of more.
// An entry that cannot be read is missing; who then tries to create it learns of it.
func load(ctx context.Context, s datastore.Store, more ...datastore.Kind) (*datastore.View, error) {
	all, err := s.List(ctx, datastore.Prefixes(append(Kinds(), more...)...)...)
	if err != nil {
		return nil, err
	}
	v := datastore.NewView()
	if _, err = v.Replace(all); err != nil && !errors.Is(err, datastore.ErrInvalid) {
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
