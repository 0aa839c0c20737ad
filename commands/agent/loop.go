package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"netctl/acl"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// hostLinks is what the loop asks of netdev/kernel.
type hostLinks interface {
	Up(link string) error
	Detach(link string) error
	Links() ([]kernel.Link, error)
	Addresses() ([]kernel.Address, error)
	Forwarding4() error
	Forwarding6() error
}

// routes is what the loop asks of routing/fib.
type routes interface {
	Routes(ctx context.Context) ([]routing.Route, error)
	Adopt(routes []routing.Route)
	Apply(ctx context.Context, c routing.Changes) error
	Missing() []routing.Route
}

// filter is what the loop asks of a packet filter's back end.
type filter interface {
	// Sync makes the kernel hold exactly r, changing only what differs.
	Sync(ctx context.Context, r *acl.Ruleset) error
	// Apply makes one transaction of d.
	Apply(ctx context.Context, d acl.Delta) error
}

// stage is where the agent stands with the store.
type stage int

const (
	starting stage = iota // no word from the store yet
	joining               // the view is complete; what comes first is being written
	ready
	away     // the store does not answer
	detached // it answers, and is not the one this node belongs to
)

// The delays between two tries of what failed.
const (
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// errEnded is what callers of a loop that ended get.
var errEnded = fmt.Errorf("the agent is ending: %w", datastore.ErrUnavailable)

// local is one endpoint of this node.
type local struct {
	name, link string
	ep         *datastore.Endpoint // nil: not in the view
	busy       int                 // steps at work on it
	created    bool                // the step at work asked for Program
	raise      bool                // to be set up whatever was heard of it
	leaving    bool                // to be out of service
	filtered   bool                // its ACLs are in the kernel
	releasing  bool                // it is gone and being released
	lost       time.Time           // since when the link is missing; zero: it is not
}

// loop is the one reconcile loop. Run's goroutine owns every field below ended;
// others reach them by do.
type loop struct {
	cfg     Config
	log     *slog.Logger
	records *workload.Records
	boot    string
	spawn   func(func(ctx context.Context) error)
	// enter starts what a complete view asks for first; it ends with ctx and
	// reports by joined.
	enter func(ctx context.Context, restore []*workload.Record) error
	// release detaches an endpoint that is gone.
	release func(ctx context.Context, endpoint string) error
	// changedHost is told that addresses of the host changed.
	changedHost func()
	started     time.Time

	calls chan func()
	ended chan struct{}

	stage     stage
	reason    error // why away or detached
	outage    *datastore.Outage
	view      *datastore.View
	cluster   datastore.Cluster
	seen      int64 // revision of the last complete listing
	admitted  bool  // joined at least once
	restoring bool  // the view lacks live endpoints
	joinedAt  int64 // 0: the joining goes on; else ready once the view is there
	leave     context.CancelFunc
	lastBoot  string

	links     *links
	filtering *filtering
	table     *table
	problems  *problems

	locals map[string]*local
	count  int             // of locals that are in the view
	dirty  map[string]bool // locals whose link is to be looked at
	moved  map[string]bool // locals whose routes are to be looked at

	forward4, forward6 bool // are switched on

	waiters  []*waiter
	overlaps map[string]string // by block
	// returning are blocks that are being given back: they have no route.
	returning map[netip.Prefix]bool
	addresses *ipam.Index // fed with what the store tells
	report    func()      // something that is reported may have changed
	reads     int         // calls of this burst that changed nothing
	rule      string      // which rule chose the node's address
}

func newLoop(cfg Config, log *slog.Logger, k hostLinks, r routes, f filter) *loop {
	l := &loop{
		cfg: cfg, log: log, started: time.Now(), outage: datastore.NewOutage(log),
		calls: make(chan func(), 64), ended: make(chan struct{}),
		view:   datastore.NewView(),
		locals: map[string]*local{}, dirty: map[string]bool{}, moved: map[string]bool{},
		overlaps: map[string]string{}, returning: map[netip.Prefix]bool{},
		report: func() {}, changedHost: func() {},
	}
	l.links, l.table = newLinks(k), newTable(r)
	l.filtering = newFiltering(acl.NewIndex(cfg.Node, acl.Options{
		LinkPrefix: cfg.LinkPrefix, Group: netdev.Group, Gateways: []netip.Addr{cfg.Gateway}, WorkloadToHost: cfg.WorkloadToHost,
	}), f)
	l.problems = newProblems(log, func() { l.post(func() {}) })
	l.table.want("gateway", gatewayRoute(cfg.Gateway))
	l.recallUnderstood()
	return l
}

// run works off calls until ctx ends. After each burst of calls it brings the
// kernel up to date and tells who waits.
func (l *loop) run(ctx context.Context) error {
	defer close(l.ended)
	defer l.problems.again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case fn := <-l.calls:
			fn()
		}
		calls := 1
		for more := true; more; calls++ {
			select {
			case fn := <-l.calls:
				fn()
			default:
				more = false
				calls--
			}
		}
		l.settle()
		l.flush(ctx)
		l.wake()
		if calls > l.reads {
			l.tell()
		}
		l.reads = 0
	}
}

// do runs fn in the loop's goroutine and waits for it.
func (l *loop) do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	if err := l.send(ctx, func() { fn(); close(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-l.ended:
		return errEnded
	}
}

func (l *loop) send(ctx context.Context, fn func()) error {
	select {
	case l.calls <- fn:
		return nil
	case <-l.ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// post runs fn in the loop's goroutine some time later.
func (l *loop) post(fn func()) { _ = l.send(context.Background(), fn) }

// again has the loop go round once more, behind the calls that wait.
func (l *loop) again() { go l.post(func() { l.reads++ }) }

// waiter is a caller of await.
type waiter struct {
	check func() (bool, error)
	done  chan error // holds one
}

// await runs check in the loop's goroutine after each burst until it is done or
// fails.
func (l *loop) await(ctx context.Context, check func() (bool, error)) error {
	w := &waiter{check: check, done: make(chan error, 1)}
	if err := l.send(ctx, func() { l.waiters = append(l.waiters, w) }); err != nil {
		return err
	}
	select {
	case err := <-w.done:
		return err
	case <-l.ended:
		return errEnded
	case <-ctx.Done():
	}
	if err := l.do(context.Background(), func() {
		l.waiters = slices.DeleteFunc(l.waiters, func(o *waiter) bool { return o == w })
	}); err != nil {
		return err
	}
	select {
	case err := <-w.done: // what check did counts
		return err
	default:
		return ctx.Err()
	}
}

func (l *loop) wake() {
	left := l.waiters[:0]
	for _, w := range l.waiters {
		if done, err := w.check(); done || err != nil {
			w.done <- err
			continue
		}
		left = append(left, w)
	}
	clear(l.waiters[len(left):])
	l.waiters = left
}

// local is the endpoint of that name, made if it is new.
func (l *loop) local(name string) *local {
	lo := l.locals[name]
	if lo == nil {
		lo = &local{name: name, link: netdev.LinkName(l.cfg.LinkPrefix, name)}
		l.locals[name] = lo
		l.links.owners[lo.link] = name
	}
	return lo
}

// drop forgets an endpoint that is neither in the view nor being changed.
func (l *loop) drop(lo *local) {
	if lo.ep == nil && lo.busy == 0 {
		delete(l.locals, lo.name)
		l.links.disown(lo.link, lo.name)
	}
}

// compare has everything compared with the kernel: the proof that watching was
// right.
func (l *loop) compare() {
	l.links.resync, l.links.resyncHost, l.filtering.resync, l.table.resync = true, true, true, true
	l.forward4, l.forward6 = false, false
	l.compareRoutes()
}

// compareRoutes works out anew which routes are wanted.
func (l *loop) compareRoutes() {
	blocks := slices.DeleteFunc(l.view.BlocksOf(l.cfg.Node), func(b *datastore.Block) bool { return l.returning[b.Spec.CIDR] })
	want := desiredRoutes(l.cfg.Gateway, blocks, l.view.EndpointsOf(l.cfg.Node), l.usable)
	slices.SortFunc(want, routing.Compare)
	want = slices.CompactFunc(want, func(a, b routing.Route) bool { return a.Key() == b.Key() })
	if slices.EqualFunc(want, l.table.all(), routing.Route.Equal) || len(l.moved) > 0 {
		return
	}
	l.log.Error("wanted routes were not kept up, worked out anew", "routes", len(want))
	for owner := range maps.Clone(l.table.wants) {
		l.table.want(owner)
	}
	l.table.want("gateway", gatewayRoute(l.cfg.Gateway))
	for _, b := range l.view.BlocksOf(l.cfg.Node) {
		l.routeBlock(b.Metadata.Name, b)
	}
	for name := range l.locals {
		l.mark(name)
	}
}
