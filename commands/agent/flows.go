package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/datastore"
	"netctl/netdev"
)

const (
	// cutSettle is how long after a change flows are looked at at the earliest: packets that
	// were judged before it may be about to begin some.
	cutSettle = 10 * time.Millisecond
	// cutShare is how many times as long as flows were looked at they are not looked at again
	// for changes, and cutRest for how long at most: each time may be all that there are.
	cutShare = 4
	cutRest  = time.Second
)

// flows is what the kernel remembers of connections and should not, since policy denies
// it: after a time in which that was not enforced, or after a change. The loop tells it; it
// works by itself.
type flows struct {
	log  *slog.Logger
	debt *debt // that is paid by cut
	cut  func(c conntrack.Cutter) (int, error)
	cuts atomic.Uint64 // flows that were cut
	// verdicts are the loop's, of now.
	verdicts func(ctx context.Context) (verdicts, error)
	version  func() uint64

	mu    sync.Mutex
	due   due
	owed  int       // which debt that pays
	rest  time.Time // until when flows are not looked at for changes
	doubt func()    // ends what verdicts waits for
	said  string    // why it failed, in the log
	wake  chan struct{}
}

// errUnsettled says that nobody knows yet what holds.
var errUnsettled = errors.New("what policy says is being worked out")

// verdicts are rules by which flows are judged, with the host's own addresses.
type verdicts struct {
	rules   *acl.Ruleset
	host    []netip.Addr
	version uint64 // of the rules: another one may allow other flows
}

// due is whose flows are to be looked at.
type due struct {
	scope    acl.Scope
	repaired *verdicts // what held then; nil: what holds now
	done     []chan struct{}
}

func newFlows(log *slog.Logger, d *debt, cut func(conntrack.Cutter) (int, error)) *flows {
	return &flows{
		log: log, debt: d, cut: cut, wake: make(chan struct{}, 1), doubt: func() {},
		verdicts: func(context.Context) (verdicts, error) { return verdicts{}, errEnded }, version: func() uint64 { return 0 },
	}
}

// repaired has the flows cut that v denies, at once; done is closed then.
func (f *flows) repaired(v verdicts) (done <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan struct{})
	f.due.scope, f.due.repaired, f.due.done = acl.Scope{All: true}, &v, append(f.due.done, ch)
	f.owed = f.debt.hand()
	f.doubt()
	poke(f.wake)
	return ch
}

// tightened has flows cut that are denied since a change.
func (f *flows) tightened(s acl.Scope) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due.scope.Add(s)
	f.due.repaired = nil // it may be older than the change
	f.owed = f.debt.hand()
	poke(f.wake)
}

// take returns what is to be done now, or after what time there is something; 0: nothing.
func (f *flows) take() (d due, owed int, wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.due.scope.Empty() {
		return due{}, 0, 0
	}
	if len(f.due.done) == 0 { // nobody waits
		wait = time.Until(f.rest)
	}
	if wait > 0 {
		return due{}, 0, wait
	}
	d, f.due = f.due, due{}
	return d, f.owed, 0
}

// Run cuts until ctx ends.
func (f *flows) Run(ctx context.Context) error {
	later := time.NewTimer(0)
	defer later.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-later.C:
		}
		if wait := f.work(ctx); wait > 0 {
			later.Reset(wait)
		}
	}
}

// work cuts what is to be now, and returns after what time there is more; 0: nothing.
func (f *flows) work(ctx context.Context) (wait time.Duration) {
	d, owed, wait := f.take()
	if d.scope.Empty() {
		return wait
	}
	if len(d.done) == 0 && !pause(ctx, cutSettle) {
		return 0
	}
	began := time.Now()
	n, err := f.pass(ctx, d)
	for _, done := range d.done {
		close(done)
	}
	f.cuts.Add(uint64(n))
	switch {
	case n > 0 && len(d.done) > 0:
		f.log.Warn("flows cut that policy denies", "flows", n, datastore.EventDrift.Mark())
	case n > 0:
		f.log.Info("flows cut that policy denies since it changed", "flows", n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rest = time.Now().Add(min(cutShare*time.Since(began), cutRest))
	if err == nil {
		f.said = ""
		f.debt.settle(owed)
	} else {
		if text := err.Error(); text != f.said && !errors.Is(err, context.Canceled) && !errors.Is(err, errUnsettled) {
			f.said = text
			f.log.Error("flows that policy denies may go on", "error", err)
		}
		f.due.scope.Add(d.scope)
		f.rest = time.Now().Add(retryMin)
	}
	if f.due.scope.Empty() {
		return 0
	}
	return max(time.Until(f.rest), 1)
}

// pass looks at the flows once.
func (f *flows) pass(ctx context.Context, d due) (cut int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	f.doubt = cancel // the loop does not answer while it waits for flows that are to be cut
	if len(f.due.done) > 0 {
		cancel()
	}
	f.mu.Unlock()
	by := verdicts{}
	if d.repaired != nil {
		by = *d.repaired
	} else if by, err = f.verdicts(ctx); err != nil {
		return 0, err
	}
	return f.cut(conntrack.Cutter{
		Rules: by.rules, Host: by.host, Scope: d.scope, Group: netdev.Group,
		Now: func() (*acl.Ruleset, []netip.Addr, error) {
			if f.version() == by.version {
				return nil, nil, nil
			}
			var err error
			by, err = f.verdicts(ctx)
			return by.rules, by.host, err
		},
	})
}
