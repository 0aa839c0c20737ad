package agent

import (
	"context"
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

// flowsRest is how long flows of an address may be remembered after its endpoint went:
// by then it has not been given out again (ipam.Quarantine), and many go at once.
const flowsRest = 30 * time.Second

// flows is what the kernel remembers of connections and should not: those that policy
// denies, after a time in which it was not enforced; and those of endpoints of other
// nodes that went, whose addresses others get. This node's own are forgotten as they
// are detached. The loop tells it; it works by itself.
type flows struct {
	log    *slog.Logger
	debt   *debt // that is paid by cut
	forget func(addrs ...netip.Addr) error
	cut    func(c conntrack.Cutter) (int, error)
	cuts   atomic.Uint64 // flows that were cut

	mu     sync.Mutex
	judge  *conntrack.Cutter // nil: nothing is to be cut
	owed   int               // which debt that pays
	gone   map[netip.Addr]bool
	since  time.Time // the first of gone
	urgent bool      // one of gone is another's already
	wake   chan struct{}
}

func newFlows(log *slog.Logger, d *debt, forget func(...netip.Addr) error, cut func(conntrack.Cutter) (int, error)) *flows {
	return &flows{log: log, debt: d, forget: forget, cut: cut, gone: map[netip.Addr]bool{}, wake: make(chan struct{}, 1)}
}

// repaired has the flows cut that r denies.
func (f *flows) repaired(r *acl.Ruleset, host []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.judge, f.owed = &conntrack.Cutter{Rules: r, Group: netdev.Group, Host: host}, f.debt.hand()
	poke(f.wake)
}

// moved takes note of what addresses an endpoint of another node had, and what any has.
func (f *flows) moved(c datastore.Change) {
	addresses := func(o datastore.Object) []netip.Addr {
		if e, ok := o.(*datastore.Endpoint); ok {
			return e.Spec.Addresses
		}
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	has := map[netip.Addr]bool{}
	for _, a := range addresses(c.New) {
		has[a] = true
		f.urgent = f.urgent || f.gone[a]
	}
	for _, a := range addresses(c.Old) {
		if has[a] {
			continue
		}
		if len(f.gone) == 0 {
			f.since = time.Now()
		}
		f.gone[a] = true
	}
	if len(f.gone) > 0 {
		poke(f.wake)
	}
}

// take returns what is to be done now, and after what time there is more to do; 0:
// nothing.
func (f *flows) take() (judge *conntrack.Cutter, owed int, gone []netip.Addr, more time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	judge, owed, f.judge = f.judge, f.owed, nil
	if len(f.gone) == 0 {
		return judge, owed, nil, 0
	}
	if rest := flowsRest - time.Since(f.since); !f.urgent && rest > 0 {
		return judge, owed, nil, rest
	}
	for a := range f.gone {
		gone = append(gone, a)
	}
	f.gone, f.urgent = map[netip.Addr]bool{}, false
	return judge, owed, gone, 0
}

// Run cuts and forgets until ctx ends.
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
		more := f.work()
		if more > 0 {
			later.Reset(more)
		}
	}
}

// work cuts and forgets what is to be now, and returns as take does after what time there
// is more to do.
func (f *flows) work() (more time.Duration) {
	judge, owed, gone, more := f.take()
	if judge != nil {
		n, err := f.cut(*judge)
		f.cuts.Add(uint64(n))
		if n > 0 {
			f.log.Warn("flows cut that policy denies", "flows", n, datastore.EventDrift.Mark())
		}
		if err != nil {
			f.log.Error("flows that policy denies may go on", "error", err)
		} else {
			f.debt.settle(owed)
		}
	}
	if len(gone) > 0 {
		if err := f.forget(gone...); err != nil {
			f.log.Error("flows of endpoints that are gone not forgotten", "addresses", len(gone), "error", err)
		}
	}
	return more
}
