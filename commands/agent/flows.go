package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/datastore"
	"netctl/netdev"
)

// flows is what the kernel remembers of connections and should not, since policy denies
// it, after a time in which that was not enforced. The loop tells it; it works by itself.
type flows struct {
	log  *slog.Logger
	debt *debt // that is paid by cut
	cut  func(c conntrack.Cutter) (int, error)
	cuts atomic.Uint64 // flows that were cut

	mu    sync.Mutex
	judge *conntrack.Cutter // nil: nothing is to be cut
	done  chan struct{}     // closed when what judge denies is cut
	owed  int               // which debt that pays
	wake  chan struct{}
}

func newFlows(log *slog.Logger, d *debt, cut func(conntrack.Cutter) (int, error)) *flows {
	return &flows{log: log, debt: d, cut: cut, wake: make(chan struct{}, 1)}
}

// repaired has the flows cut that r denies; done is closed then.
func (f *flows) repaired(r *acl.Ruleset, host []netip.Addr) (done <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.judge == nil {
		f.done = make(chan struct{})
	}
	f.judge, f.owed = &conntrack.Cutter{Rules: r, Group: netdev.Group, Host: host}, f.debt.hand()
	poke(f.wake)
	return f.done
}

// take returns what is to be done now; nil: nothing.
func (f *flows) take() (judge *conntrack.Cutter, owed int, done chan<- struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	judge, owed, f.judge = f.judge, f.owed, nil
	return judge, owed, f.done
}

// Run cuts until ctx ends.
func (f *flows) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
			f.work()
		}
	}
}

// work cuts what is to be now.
func (f *flows) work() {
	judge, owed, done := f.take()
	if judge == nil {
		return
	}
	n, err := f.cut(*judge)
	close(done)
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

// cut deletes the flows that policy denies, and keeps what is under way of them from
// beginning others: where they are too many, by their ports for a time.
func (a *agent) cut(c conntrack.Cutter) (int, error) {
	c.IsCut = a.nft.IsCut
	c.Answers = func(flows []acl.Flow) error {
		err := a.nft.Cut(context.Background(), flows)
		if err == nil {
			return nil
		}
		a.log.Warn("answers in flows that are cut are known by their ports alone", "flows", len(flows), "error", err)
		return a.nft.Doubt(context.Background())
	}
	return c.Cut()
}
