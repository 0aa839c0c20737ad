package nft

import (
	"context"
	"reflect"
	"sync"

	"golang.org/x/sys/unix"

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

	mu       sync.Mutex
	rules    *acl.Ruleset
	writes   int
	watchers []chan struct{}
}

// Sync makes the ruleset what want says.
func (f *Fake) Sync(_ context.Context, want *acl.Ruleset) (wrote bool, err error) {
	err = f.write(func() bool {
		if f.rules != nil && f.rules.String() == want.String() {
			return false
		}
		f.rules, wrote = want.Clone(), true
		return true
	})
	return wrote, err
}

// Shut is Sync where there is nothing.
func (f *Fake) Shut(ctx context.Context, want *acl.Ruleset) (bool, error) {
	if f.Rules() != nil {
		return false, nil
	}
	return f.Sync(ctx, want)
}

// Adjust is Sync; a Fake has no packets.
func (f *Fake) Adjust(ctx context.Context, want *acl.Ruleset) (bool, error) { return f.Sync(ctx, want) }

// Apply changes the ruleset as d says.
func (f *Fake) Apply(_ context.Context, d acl.Delta) error {
	if f.Rules() == nil && !d.Empty() {
		return &acl.RefusedError{Refusals: []acl.Refusal{{Kind: "table", Name: acl.TableName, Err: unix.ENOENT}}}
	}
	return f.write(func() bool {
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

// Watch calls fn once, and then after each Flush, until ctx ends.
func (f *Fake) Watch(ctx context.Context, fn func()) error {
	f.mu.Lock()
	flushed := make(chan struct{}, 1)
	f.watchers = append(f.watchers, flushed)
	f.mu.Unlock()
	for {
		fn()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-flushed:
		}
	}
}

// WatchOthers calls fn once and blocks until ctx ends.
func (f *Fake) WatchOthers(ctx context.Context, fn func()) error {
	fn()
	<-ctx.Done()
	return ctx.Err()
}

// Flush is somebody else's `nft flush ruleset`.
func (f *Fake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
	for _, w := range f.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

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
