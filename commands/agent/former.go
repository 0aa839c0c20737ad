package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

const (
	// formerRest is how long flows of an address may be remembered after its endpoint
	// went: by then it has not been given out again (ipam.Quarantine), and many go at once.
	formerRest = 30 * time.Second
	// formerReturn is how long nodes may take to write back what runs on them, where the
	// datastore is another one than before.
	formerReturn = 2 * time.Minute
	// formerPause is the least time between two writes of formerFile.
	formerPause = 200 * time.Millisecond
	// formerFile is in the run folder: flows go with the boot, too.
	formerFile = "flows-followed"
)

// former are addresses whose endpoints went. What the kernel remembers of their flows is
// forgotten before others get them, or as soon as others have them and the packet filter
// knows. The next agent goes on where this one ended, by formerFile, and finds what went
// while there was none. Flows of this node's endpoints are forgotten as they are detached.
// The loop tells it; it works by itself.
type former struct {
	log    *slog.Logger
	file   *control.Kept
	forget func(addrs ...netip.Addr) error
	// flowing are the addresses that the kernel remembers flows of.
	flowing func() ([]netip.Addr, error)
	// unheld are those that an endpoint might have, and none has.
	unheld func(ctx context.Context, addrs []netip.Addr) ([]netip.Addr, error)

	mu      sync.Mutex
	to      followed
	gone    map[netip.Addr]bool
	since   time.Time // the first of gone
	urgent  bool      // one of gone is another's already
	listed  bool      // the store was, by this agent
	sweep   bool      // what went before that is to be found
	from    time.Time // when: of another store's endpoints not all are known at once
	ahead   bool      // what was told last is not in the packet filter
	stale   bool      // the file is not what is here
	written time.Time // when the file was
	wake    chan struct{}
}

// followed is what formerFile holds: the revision of a cluster up to which flows are
// forgotten, but for those of some addresses.
type followed struct {
	UUID       string       `json:"uuid"`
	Generation int64        `json:"generation"`
	Revision   int64        `json:"revision"`
	Gone       []netip.Addr `json:"gone,omitempty"`
}

// newFormer reads what an agent before left in dir.
func newFormer(dir string, unheld func(context.Context, []netip.Addr) ([]netip.Addr, error), log *slog.Logger) *former {
	f := &former{
		log: log, file: control.Keep(dir, datastore.FileOptions{Volatile: true}), unheld: unheld,
		forget: func(...netip.Addr) error { return nil }, flowing: func() ([]netip.Addr, error) { return nil, nil },
		gone: map[netip.Addr]bool{}, wake: make(chan struct{}, 1),
	}
	text, err := f.file.Read(formerFile)
	if err == nil {
		err = json.Unmarshal(text, &f.to)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("how far flows were forgotten is not known, forgetting those of all endpoints of other nodes", "file", f.file.Path(formerFile), "error", err)
		f.to = followed{}
	}
	f.add(f.to.Gone)
	return f
}

// add has addresses forgotten.
func (f *former) add(addrs []netip.Addr) {
	if len(f.gone) == 0 {
		f.since = time.Now()
	}
	for _, a := range addrs {
		f.gone[a] = true
	}
}

// moved takes note of what addresses an endpoint had, and what it has.
func (f *former) moved(c datastore.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	has := addressesOf(c.New)
	for _, a := range has {
		f.urgent = f.urgent || f.gone[a]
	}
	f.add(slices.DeleteFunc(slices.Clone(addressesOf(c.Old)), func(a netip.Addr) bool { return slices.Contains(has, a) }))
	f.ahead, f.stale = true, true
}

func addressesOf(o datastore.Object) []netip.Addr {
	if e, ok := o.(*datastore.Endpoint); ok {
		return e.Spec.Addresses
	}
	return nil
}

// taken takes note of addresses of an endpoint that may have been another's before.
func (f *former) taken(addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add(addrs)
	f.urgent, f.ahead, f.stale = true, true, true
}

// arrived takes note of an endpoint of another node that the listing did not have. Until the
// sweep its addresses may have been another's.
func (f *former) arrived(addrs []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sweep && !f.from.IsZero() && len(addrs) > 0 {
		f.add(addrs)
		f.urgent = true
	}
}

// relisted takes note of a complete listing. Of an endpoint that was written after the
// revision that it returns nobody knows who had its addresses before.
func (f *former) relisted(c datastore.Cluster) (since int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	first := !f.listed
	f.listed, f.sweep = true, f.sweep || first
	switch {
	case f.to.UUID == c.UUID && f.to.Generation == c.Generation:
		return f.to.Revision
	case first && f.to.UUID != "":
		f.from = time.Now().Add(formerReturn)
		return 0
	case first:
		return 0
	}
	return math.MaxInt64 // what another store's endpoints had is in the changes
}

// told says that everything up to a revision was told.
func (f *former) told(c datastore.Cluster, revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to.UUID, f.to.Generation, f.to.Revision = c.UUID, c.Generation, revision
}

// filtered says that the packet filter is as was told.
func (f *former) filtered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ahead || f.sweep {
		f.ahead = false
		poke(f.wake)
	}
}

// take returns what is to be forgotten now, and after what time there is more; 0: nothing.
// Before the packet filter is as was told, a flow would only be remembered again.
func (f *former) take() (gone []netip.Addr, sweep bool, more time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ahead {
		return nil, false, 0
	}
	if f.sweep {
		if more = max(0, time.Until(f.from)); more == 0 {
			sweep, f.sweep = true, false
		}
	}
	if rest := formerRest - time.Since(f.since); !f.urgent && len(f.gone) > 0 && rest > 0 {
		if more == 0 || rest < more {
			more = rest
		}
		return nil, sweep, more
	}
	gone = slices.Collect(maps.Keys(f.gone))
	clear(f.gone)
	f.urgent, f.stale = false, f.stale || len(gone) > 0
	return gone, sweep, more
}

// Run forgets until ctx ends.
func (f *former) Run(ctx context.Context) error {
	later := time.NewTimer(0)
	defer later.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-later.C:
		}
		more := f.work(ctx)
		if wait := f.write(); wait > 0 && (more == 0 || wait < more) {
			more = wait
		}
		if more > 0 {
			later.Reset(more)
		}
	}
}

// work forgets what is to be now, and returns after what time there is more; 0: nothing.
func (f *former) work(ctx context.Context) (more time.Duration) {
	gone, sweep, more := f.take()
	var unswept error
	if sweep {
		var addrs []netip.Addr
		if addrs, unswept = f.flowing(); unswept == nil {
			addrs, unswept = f.unheld(ctx, addrs)
		}
		gone = append(gone, addrs...)
	}
	err := unswept
	if len(gone) > 0 {
		err = errors.Join(err, f.forget(gone...))
	}
	if err == nil || ctx.Err() != nil {
		return more
	}
	f.log.Error("flows of endpoints that are gone not forgotten", "addresses", len(gone), "error", err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add(gone)
	f.urgent, f.sweep = f.urgent || len(gone) > 0, f.sweep || unswept != nil
	return retryMin
}

// write brings the file up to date, and returns after what time it is to be tried again;
// 0: it is. Until the sweep of the start is done it stays what the agent before left.
func (f *former) write() time.Duration {
	f.mu.Lock()
	if !f.stale || f.sweep {
		f.mu.Unlock()
		return 0
	}
	if wait := formerPause - time.Since(f.written); wait > 0 {
		f.mu.Unlock()
		return wait
	}
	to := f.to
	to.Gone = slices.SortedFunc(maps.Keys(f.gone), netip.Addr.Compare)
	f.stale, f.written = false, time.Now()
	f.mu.Unlock()
	text, err := json.Marshal(to)
	if err == nil {
		err = f.file.Write(formerFile, append(text, '\n'))
	}
	if err == nil {
		return 0
	}
	f.log.Warn("the next agent may forget flows that go on", "error", err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale, f.written = true, f.written.Add(retryMax)
	return retryMax
}
