package nft

import (
	"context"
	"reflect"
	"sync"

	"netctl/acl"
)

// Fake keeps a ruleset as the kernel would, for the tests of who uses a Table.
// The zero Fake is an empty kernel.
type Fake struct {
	// Fail, if set, is asked before each write; its error is returned and
	// nothing changes.
	Fail func() error
	// Refuse, if set, says which chains the kernel does not take.
	Refuse func(chain string) error

	mu     sync.Mutex
	rules  *acl.Ruleset
	writes int
}

// Sync makes the ruleset what want says.
func (f *Fake) Sync(_ context.Context, want *acl.Ruleset) error {
	return f.write(func() bool {
		if f.rules != nil && f.rules.String() == want.String() {
			return false
		}
		f.rules = want.Clone()
		return true
	})
}

// Apply changes the ruleset as d says.
func (f *Fake) Apply(_ context.Context, d acl.Delta) error {
	return f.write(func() bool {
		if f.rules == nil {
			f.rules = &acl.Ruleset{Sets: map[string]*acl.Set{}, Chains: map[string]*acl.Chain{}}
		}
		f.rules.Apply(d)
		return !d.Empty()
	})
}

func (f *Fake) write(change func() bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.Fail != nil {
		if err := f.Fail(); err != nil {
			return err
		}
	}
	had := map[string]*acl.Chain{}
	if f.rules != nil {
		had = f.rules.Clone().Chains
	}
	if change() {
		f.writes++
	}
	return f.refused(had)
}

// refused takes back what is refused.
func (f *Fake) refused(had map[string]*acl.Chain) error {
	if f.Refuse == nil {
		return nil
	}
	e := &acl.RefusedError{}
	for name, c := range f.rules.Chains {
		if had[name] != nil && reflect.DeepEqual(had[name], c) {
			continue // was not written
		}
		if err := f.Refuse(name); err != nil {
			e.Refusals = append(e.Refusals, acl.Refusal{Kind: "chain", Name: name, Err: err})
			if delete(f.rules.Chains, name); had[name] != nil {
				f.rules.Chains[name] = had[name]
			}
		}
	}
	if len(e.Refusals) == 0 {
		return nil
	}
	return e
}

// Watch calls fn once and blocks until ctx ends: nobody else changes a fake.
func (f *Fake) Watch(ctx context.Context, fn func()) error {
	fn()
	<-ctx.Done()
	return ctx.Err()
}

// WatchOthers blocks until ctx ends.
func (f *Fake) WatchOthers(ctx context.Context, fn func()) error { return f.Watch(ctx, fn) }

// Close does nothing.
func (f *Fake) Close() error { return nil }

// Writes counts the calls that changed something.
func (f *Fake) Writes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes
}

// Rules is a copy of the ruleset; nil if there is none.
func (f *Fake) Rules() *acl.Ruleset {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rules == nil {
		return nil
	}
	return f.rules.Clone()
}

// String is the ruleset as nft text.
func (f *Fake) String() string {
	if r := f.Rules(); r != nil {
		return r.String()
	}
	return ""
}
