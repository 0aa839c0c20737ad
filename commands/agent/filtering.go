package agent

import (
	"context"
	"errors"
	"slices"

	"netctl/acl"
	"netctl/datastore"
)

// filtering is what the packet filter should hold, and what of it the kernel has
// refused. Its owner is the loop.
type filtering struct {
	index  *acl.Index
	filter filter

	resync  bool              // what the kernel holds is not known
	refused *acl.RefusedError // nil: it has everything
	err     error             // why it has not
}

func newFiltering(x *acl.Index, f filter) *filtering {
	return &filtering{index: x, filter: f, resync: true}
}

// flush brings the packet filter up to date. whole says that it was compared as a
// whole. After an error that is no RefusedError nothing is known of it.
func (f *filtering) flush(ctx context.Context) (whole bool, err error) {
	delta := f.index.Flush()
	switch {
	case f.resync:
		whole, f.refused = true, nil
		err = f.filter.Sync(ctx, f.index.Ruleset())
	case !delta.Empty():
		f.refused = f.refused.Without(delta)
		err = f.filter.Apply(ctx, delta)
	}
	var refused *acl.RefusedError
	switch {
	case errors.As(err, &refused):
		f.refuse(refused)
		f.resync, f.err = false, f.refused
		return whole, f.refused
	case err != nil:
		f.resync, f.err = true, err
		return whole, err
	}
	f.resync = false
	if f.refused == nil {
		f.err = nil
	}
	return whole, nil
}

// refuse books what the kernel refused, beside what it refused before.
func (f *filtering) refuse(e *acl.RefusedError) {
	all := &acl.RefusedError{}
	if f.refused != nil {
		all.Refusals = slices.Clone(f.refused.Refusals)
	}
	for _, r := range e.Refusals {
		all.Refusals = append(all.Refusals, f.index.Name(r))
	}
	f.refused = all
}

// why says why the ACLs of a link are not in the kernel; nil: they are.
func (f *filtering) why(link string) error {
	if err := f.index.Concerning(link, f.refused); err != nil {
		return err
	}
	return f.err
}

// covers says whether nothing that a link needs was refused.
func (f *filtering) covers(link string) bool { return f.index.Concerning(link, f.refused) == nil }

// apply takes a change of the store.
func (f *filtering) apply(c datastore.Change) { f.index.Apply(c) }
