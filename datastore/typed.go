package datastore

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Get returns the object of that name, or an error that wraps ErrNotFound.
func Get[T Object](ctx context.Context, s Store, name string) (T, error) {
	var zero T
	key, err := Key(zero.Kind(), name)
	if err != nil {
		return zero, err
	}
	e, err := s.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return zero, fmt.Errorf("%s %s: %w", lower(zero), name, ErrNotFound)
	}
	if err != nil {
		return zero, err
	}
	return decodeAs[T](new(decoder), e)
}

// List returns every object of the kind, sorted by key. Entries that do not
// decode are reported in the joined error beside the good ones.
func List[T Object](ctx context.Context, s Store) ([]T, error) {
	var zero T
	snap, err := s.List(ctx, KindPrefix(zero.Kind()))
	if err != nil {
		return nil, err
	}
	var bad []error
	out := make([]T, 0, len(snap.Entries))
	d := decoder{names: names{}}
	for _, e := range snap.Entries {
		o, err := decodeAs[T](&d, e)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		out = append(out, o)
	}
	return out, errors.Join(bad...)
}

func decodeAs[T Object](d *decoder, e Entry) (T, error) {
	var zero T
	o, _, err := d.stored(e.Key, e.Value)
	if err != nil {
		return zero, err
	}
	t, ok := o.(T)
	if !ok {
		return zero, fmt.Errorf("%s: %w: holds another kind", e.Key, ErrInvalid)
	}
	t.Meta().Revision = e.Revision
	return t, nil
}

// Create writes an object that must not exist yet and sets Meta().Revision.
func Create(ctx context.Context, s Store, o Object) error {
	o.Meta().Revision = 0
	return write(ctx, s, o)
}

// Update writes an object if nobody changed it since Meta().Revision, which it
// sets. An object that does not exist is ErrConflict, one with Revision 0
// ErrNotFound.
func Update(ctx context.Context, s Store, o Object) error {
	if o.Meta().Revision == 0 {
		return fmt.Errorf("update %s %s: %w", lower(o), o.Meta().Name, ErrNotFound)
	}
	return write(ctx, s, o)
}

func write(ctx context.Context, s Store, o Object) error {
	cond, op, err := OpPut(o)
	if err != nil {
		return err
	}
	rev, err := s.Commit(ctx, Txn{If: []Condition{cond}, Then: []Op{op}})
	if err != nil {
		return fmt.Errorf("write %s %s: %w", lower(o), o.Meta().Name, err)
	}
	o.Meta().Revision = rev
	return nil
}

// Delete removes an object, if Meta().Revision is not 0 only in that revision.
// An object that is not there is ErrNotFound.
func Delete(ctx context.Context, s Store, o Object) error {
	if o.Meta().Revision == 0 {
		key, err := KeyOf(o)
		if err != nil {
			return err
		}
		e, err := s.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("delete %s %s: %w", lower(o), o.Meta().Name, err)
		}
		o.Meta().Revision = e.Revision
	}
	cond, op, err := OpDelete(o)
	if err != nil {
		return err
	}
	if _, err := s.Commit(ctx, Txn{If: []Condition{cond}, Then: []Op{op}}); err != nil {
		return fmt.Errorf("delete %s %s: %w", lower(o), o.Meta().Name, err)
	}
	return nil
}

// maxModify bounds how often Modify starts over. Each lost race means that
// somebody else's write succeeded.
const maxModify = 100

// Modify reads an object, lets change alter it, and writes it back, all again
// if it was changed meanwhile. An error of change ends it and is returned as
// it is.
func Modify[T Object](ctx context.Context, s Store, name string, change func(T) error) (T, error) {
	for range maxModify {
		o, err := Get[T](ctx, s, name)
		if err != nil {
			return o, err
		}
		if err := change(o); err != nil {
			return o, err
		}
		err = Update(ctx, s, o)
		if !errors.Is(err, ErrConflict) {
			return o, err
		}
	}
	var zero T
	return zero, fmt.Errorf("modify %s %s: %w", lower(zero), name, ErrConflict)
}

// OpPut is the condition and operation that write o: if Meta().Revision is 0
// the object must be absent, else unchanged. Defaults are filled in.
func OpPut(o Object) (Condition, Op, error) {
	o.SetDefaults()
	key, err := KeyOf(o)
	if err != nil {
		return Condition{}, Op{}, err
	}
	value, err := Encode(o)
	if err != nil {
		return Condition{}, Op{}, fmt.Errorf("%s %s: %w", lower(o), o.Meta().Name, err)
	}
	return Condition{Key: key, Revision: o.Meta().Revision}, Op{Key: key, Value: value}, nil
}

// lower is an object's kind as it stands in messages.
func lower(o Object) string { return strings.ToLower(string(o.Kind())) }

// OpDelete is the condition and operation that delete o in the revision it was
// read in.
func OpDelete(o Object) (Condition, Op, error) {
	key, err := KeyOf(o)
	return Condition{Key: key, Revision: o.Meta().Revision}, Op{Key: key}, err
}
