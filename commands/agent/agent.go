// Package agent owns the role that makes this node's kernel what the datastore
// says: the links, routes and packet filter of the endpoints on this node.
//
// It never writes a route of another protocol, never speaks BGP, and never
// changes the kernel while it is detached from the datastore. The steps of
// attaching and detaching one endpoint are commands/workload's.
//
// Invariants: one goroutine (loop) owns the view, the desired state and every
// write of routes and ACLs; store round trips happen outside of it; ending the
// role, however, leaves the kernel as it is.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/acl/iptables"
	"netctl/commands/control"
	"netctl/commands/join"
	"netctl/commands/runtimes"
	"netctl/commands/serve"
	"netctl/commands/telemetry"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/identity"
	"netctl/datastore/ipam"
	"netctl/netdev/kernel"
	"netctl/netdev/tap"
	"netctl/routing/fib"
)

// Run is the role; it blocks until ctx ends (nil) or it cannot go on. It works
// in the network namespace of the process.
func Run(ctx context.Context, cfg Config, log *slog.Logger) (err error) {
	if err := cfg.finish(); err != nil {
		return err
	}
	if err := hurry(); err != nil {
		log.Debug("agent runs without priority", "error", err)
	}
	lock, err := control.Lock(cfg.StateDir, "agent")
	if err != nil {
		return err
	}
	defer lock.Close()
	shown := telemetry.New(cfg.telemetry(), log)
	log = shown.Logger()
	a := &agent{
		cfg: cfg, log: log, state: control.Keep(cfg.StateDir, datastore.FileOptions{}), manager: control.NewService(log),
		folders: append(shown.Folders(), lock.Folder()), shown: shown, closers: []func() error{shown.Close},
	}
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.open(ctx); err != nil {
		return err
	}
	return a.run(ctx)
}

// agent is the role's parts.
type agent struct {
	cfg       Config
	log       *slog.Logger
	host      string
	boot      string
	kernel    *kernel.Kernel
	fib       *fib.Table
	filter    backend
	left      []leftover      // back ends that are in force beside it
	unread    bool            // whether there is another is not known
	moves     atomic.Bool     // there are some
	tracked   *conntrack.Conn // of cut; nil: none is open
	forgetter conntrack.Forgetter
	store     *etcd.Store
	guard     *identity.File
	listener  *control.Listener
	state     *control.Kept    // files of the state folder
	folders   []control.Folder // what else of our files is watched
	closers   []func() error
	shown     *telemetry.Role // nil: in tests

	loop     *loop
	service  *workload.Service
	joiner   *joiner
	returner *returner
	tunnels  *tunneller
	settler  *settler
	adopter  *adopter
	copier   *copier
	runtimes *runtimes.Keeper
	reporter *control.Reporter
	manager  *control.Service
	api      *api
	meters   meters
	detaches *detaches
	rehost   chan struct{} // holds one: the host's addresses changed
	forward  chan struct{} // holds one: look after foreign FORWARD chains
	foreign  chan struct{} // holds one: look whether others refuse what we allow
}

// open gets hold of everything that can be missing or taken, and changes
// nothing but the two folders, and a packet filter that is gone.
func (a *agent) open(ctx context.Context) (err error) {
	if err := a.openFilter(ctx); err != nil {
		return err
	}
	if a.host, err = hostID(a.state); err != nil {
		return err
	}
	if a.boot, err = kernel.BootID(a.cfg.BootIDFile); err != nil {
		return err
	}
	if a.kernel, err = kernel.Open(a.log); err != nil {
		return err
	}
	a.closers = append(a.closers, a.kernel.Close)
	if a.fib, err = fib.Open(fib.Config{Protocol: a.cfg.RouteProtocol, Number: a.cfg.RouteTable}, a.log); err != nil {
		return err
	}
	a.closers = append(a.closers, a.fib.Close)
	if a.guard, err = identity.Open(a.cfg.StateDir, true, a.log); err != nil {
		return err
	}
	a.closers = append(a.closers, a.guard.Close)
	if err := workload.NewRecords(a.cfg.recordsDir()).Sweep(); err != nil {
		return err
	}
	opt := a.cfg.Store
	opt.Log = a.log
	if a.store, err = etcd.Open(ctx, opt); err != nil {
		return err
	}
	a.closers = append(a.closers, a.store.Close)
	if a.listener, err = control.Listen(a.cfg.Socket, a.log); err != nil {
		return err
	}
	a.closers = append(a.closers, func() error { _ = a.listener.Close(); return nil })
	a.folders = append(a.folders, a.listener.Folder(), a.state.Folder(),
		control.Folder{Dir: a.cfg.StateDir, Look: func(name string) error {
			if name != "" && name != identity.FileName {
				return nil
			}
			return a.guard.Restore()
		}})
	return nil
}

// openFilter comes before all that takes time: where the packet filter is gone, what has an
// endpoint here may be open now.
func (a *agent) openFilter(ctx context.Context) (err error) {
	if err := a.openBackends(ctx); err != nil {
		return err
	}
	if !workload.NewRecords(a.cfg.recordsDir()).Any() || a.moves.Load() {
		return a.filter.track()
	}
	blocked, err := a.filter.Block(ctx, a.cfg.static())
	if blocked {
		a.log.Warn("packet filter is gone, closed first", "table", a.filter.name)
	}
	return cmp.Or(err, a.filter.track())
}

func (a *agent) close() error {
	if a.tracked != nil {
		a.tracked.Close()
	}
	errs := []error{a.forgetter.Close()}
	for i := len(a.closers) - 1; i >= 0; i-- {
		errs = append(errs, a.closers[i]())
	}
	return errors.Join(errs...)
}

// build joins the parts; it starts nothing.
func (a *agent) build(o outside, spawn func(func(context.Context) error)) {
	l := newLoop(a.cfg, a.log, o.links, o.routes, o.filter)
	l.wireguard.routed, l.wireguard.echoes = o.routed, o.echoes
	l.flows.cut = o.cut
	l.former.forget, l.former.flowing = o.forget, o.flowing
	a.detaches = newDetaches(a.cfg.pendingDir(), l)
	o.store = &datastore.Recorder{
		Store: a.detaches.watching(a.meters.requests.Store(o.store)), Except: []datastore.Kind{datastore.KindNode},
		Who: datastore.HistoryRecord{User: "agent", Host: a.cfg.Node, Node: a.cfg.Node, Command: "netctl agent"},
	}
	l.host = a.host
	l.records = workload.NewRecords(a.cfg.recordsDir())
	l.filtering.wired = l.records.Any
	l.state, l.boots = a.state, readBoots(a.state, a.boot)
	l.domains.recall(a.boot)
	l.recallUnderstood()
	l.recall()
	l.spawn = spawn
	a.rehost, a.forward, a.foreign = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	l.changedHost = func() { poke(a.rehost); poke(a.forward) }
	a.loop = l
	a.tunnels = &tunneller{loop: l, changed: make(chan struct{}, 1)}
	a.runtimes = runtimes.New(a.cfg.Runtimes, networkCluster{l}, a.log)
	l.changedNetworks = a.runtimes.Wake
	l.changedTunnels = func() { poke(a.tunnels.changed) }
	a.returner = &returner{loop: l, changed: make(chan struct{}, 1)}
	l.addresses = ipam.NewIndex(func(node string) {
		if node == a.cfg.Node || node == "" {
			poke(a.returner.changed)
		}
	})
	a.returner.addresses = ipam.New(ipam.Config{Node: a.cfg.Node, Store: o.store, Boot: a.boot, Index: l.addresses, Quarantine: a.cfg.quarantine})
	a.tunnels.addresses = a.returner.addresses
	a.returner.addresses.Keep(l.lent()...)
	a.service = workload.New(workload.Config{
		Node: a.cfg.Node, LinkPrefix: a.cfg.LinkPrefix, Gateway: a.cfg.Gateway, Boot: a.boot,
		Links: o.links, Reconciler: l, Forget: o.forget, Store: o.store, Records: l.records, Log: a.log,
		Addresses: a.returner.addresses, GivenUp: a.detaches.asked.since,
	})
	a.joiner = &joiner{cfg: a.cfg, loop: l, store: o.store, service: a.service, host: a.host, resolve: o.routes.Resolve, workOff: a.detaches.workOff}
	a.detaches.detach = a.service.Detach
	a.copier = newCopier(l)
	l.changedModel = func() { poke(a.copier.due) }
	l.lostModel = func() { poke(a.copier.hurry) }
	a.settler = &settler{loop: l, service: a.service, due: make(chan struct{}, 1)}
	l.settleSoon = func() { poke(a.settler.due) }
	a.adopter = &adopter{loop: l, kernel: o.links, service: a.service, changed: make(chan struct{}, 1), seen: map[string]found{}, said: map[string]bool{}}
	l.changedAdopted = func() { poke(a.adopter.changed) }
	l.enter, l.release, l.remade, l.tellMachines = a.joiner.enter, a.service.ReleaseGone, a.service.Remake, o.machines.Serve
	a.reporter = control.NewReporter(a.cfg.Node, datastore.ReportAgent, o.store, l.reportStatus, a.log)
	l.report, l.reportAnew = a.reporter.Wake, a.reporter.Anew
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// run starts the tasks and waits for them. When ctx ends, calls in progress are
// finished first, which needs all the other tasks.
func (a *agent) run(ctx context.Context) error {
	group, inner := errgroup.WithContext(context.WithoutCancel(ctx))
	o := outside{
		links: a.kernel, routes: a.fib, filter: a.filter, followed: a.meters.requests.Store(a.store), store: a.guard.Fence(a.store), denied: a.filter.Denied, counts: a.filter.Counts, counted: a.filter.Dropped, astray: func(ctx context.Context) (uint64, error) { return a.filter.Dropped(ctx, acl.ChainReverse) }, guard: a.guard, forget: a.forgetter.Forget, flowing: conntrack.Addresses, cut: a.cut, machines: tap.New(a.log), undirect: conntrack.DeleteDirect, answers: readDatagrams, forward: iptables.Run, routed: routed, echoes: echoes,
		beside: append(append(join.Tasks(a.store, a.cfg.Store, a.cfg.StateDir, a.log), control.Task{Name: "keep ways to the datastore's members open", Do: func(ctx context.Context) error {
			return a.store.FollowRecord(ctx, datastore.MembersKey, a.loop.heardMembers)
		}}), a.askedTasks()...),
		serve: func(ctx context.Context, h http.Handler) error {
			return cmp.Or(serve.Serve(ctx, a.listener, h), errEnded)
		},
	}
	a.build(o, func(fn func(context.Context) error) { group.Go(func() error { return fn(inner) }) })
	a.loop.synced = a.manager.Synced
	serving, stop := context.WithCancel(inner)
	defer context.AfterFunc(ctx, stop)()
	for _, t := range a.tasks(o, serving) {
		group.Go(func() error { return t.Run(inner) })
	}
	a.log.Info("agent started", "node", a.cfg.Node, "host", a.host, "socket", a.cfg.Socket, datastore.EventRole.Mark())
	err := group.Wait()
	stop()
	if err != nil && !errors.Is(err, errEnded) {
		return fmt.Errorf("agent: %w", err)
	}
	a.log.Info("agent ended, the kernel's state stays", datastore.EventRole.Mark())
	return nil
}

// tasks are what runs until the role ends; serving the control socket, which ends
// with serving, ends all.
func (a *agent) tasks(o outside, serving context.Context) []control.Task {
	l := a.loop
	a.api = &api{loop: l, filter: &a.filter, service: a.service, detaches: a.detaches, namespace: o.links.OpenNetns, addresses: a.returner.addresses, store: o.store, undirect: o.undirect, counts: o.counts, counted: o.counted, meters: &a.meters}
	if a.shown != nil {
		a.shown.Alive, a.shown.Ready, a.shown.Collect = a.alive, a.ready, func(ctx context.Context, p *telemetry.Page) error { return a.collect(ctx, o, p) }
		o.beside = slices.Concat(o.beside, a.shown.Tasks(), []control.Task{a.sharing(o.store)})
	}
	return slices.Concat([]control.Task{
		{Name: "reconcile", Do: l.run},
		{Name: "remove links", Do: o.links.Run},
		{Name: "watch links", Do: func(ctx context.Context) error {
			return o.links.Watch(ctx, func(e kernel.Event) { l.post(func() { l.event(e) }) })
		}},
		{Name: "watch workload sides", Do: func(ctx context.Context) error {
			return o.links.WatchPeers(ctx, func(e kernel.Event) { l.post(func() { l.peerEvent(e) }) })
		}},
		{Name: "watch routes", Do: func(ctx context.Context) error { return o.routes.Watch(ctx, fib.Ignore{}, a.routeEvent) }},
		{Name: "watch the packet filter", Do: func(ctx context.Context) error {
			return o.filter.Watch(ctx, func() { l.post(func() { l.filtering.resync = true }) })
		}},
		{Name: "take away another packet filter", Do: a.move},
		{Name: "watch other packet filters", Do: func(ctx context.Context) error {
			return o.filter.WatchOthers(ctx, func() { poke(a.forward); poke(a.foreign) })
		}},
		{Name: "watch files", Do: func(ctx context.Context) error {
			folders := append(slices.Clone(a.folders), a.detaches.folder(), l.records.Folder(), a.keyFolder(), l.filtering.folder(l.filterLost), l.filtering.debt.folder(), l.former.file.Folder(), l.domains.file.Folder())
			return control.WatchFolders(ctx, a.log, folders...)
		}},
		{Name: "work off pending detaches", Do: a.detaches.run},
		{Name: "follow the datastore", Do: func(ctx context.Context) error { return a.follow(ctx, o) }},
		{Name: a.reporter.String(), Do: a.reporter.Run},
		{Name: a.returner.String(), Do: a.returner.Run},
		{Name: a.tunnels.String(), Do: a.tunnels.Run},
		{Name: "settle endpoints", Do: a.settler.Run},
		{Name: "adopt interfaces", Do: a.adopter.Run},
		{Name: "keep a copy of the datastore", Do: a.copier.Run},
		{Name: "keep the registration", Do: a.watchHost},
		{Name: "let forwarding through", Do: func(ctx context.Context) error { return a.keepForward(ctx, o.forward) }},
		{Name: "compare", Do: a.compare},
		{Name: "cut flows", Do: l.flows.Run},
		{Name: "forget flows", Do: l.former.Run},
		{Name: "learn domains", Do: (&learner{loop: l, datagrams: o.answers}).Run},
		{Name: "tell virtual machines", Do: o.machines.Run},
		{Name: "look for room", Do: (&room{loop: l, kernel: o.links, tracked: conntrack.Use, refused: map[string]uint64{}, astray: o.astray}).Run},
		{Name: "tell the service manager", Do: func(ctx context.Context) error {
			return a.manager.Run(ctx, a.alive)
		}},
		{Name: "serve", Do: func(context.Context) error { return o.serve(serving, a.api.routes()) }},
	}, a.runtimes.Tasks(), o.beside)
}

// follow follows the store; first the host is read, so that a listing finds it.
func (a *agent) follow(ctx context.Context, o outside) error {
	if err := a.loop.do(ctx, a.loop.readHost); err != nil {
		return err
	}
	return datastore.Follow(ctx, o.followed, nil, o.guard, &follower{loop: a.loop, ctx: ctx})
}

// routeEvent is a change of the kernel's routes. Those that were taken are back
// already; those of our protocol that nobody wants are removed.
func (a *agent) routeEvent(e fib.Event) {
	if e.Lost || len(e.Up)+len(e.Down) > 0 || slices.ContainsFunc(e.Foreign, netip.Prefix.IsSingleIP) {
		a.loop.changedAdopted()
	}
	if e.Lost || slices.ContainsFunc(e.Changes, func(c fib.Change) bool { return !c.Gone }) {
		a.loop.post(func() { a.loop.table.resync = true })
	}
}

// hostPause lets a burst of address changes pass.
const hostPause = time.Second

// watchHost keeps the node's registration what the host's addresses say. What fails is
// tried again: the connection may have been by the address that is gone.
func (a *agent) watchHost(ctx context.Context) error {
	var again <-chan time.Time
	for wait := retryMin; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-a.rehost:
			wait = retryMin
			if !pause(ctx, hostPause) {
				return nil
			}
		}
		again = nil
		err := a.loop.gate(ctx) // where it fails, joining registers
		if err == nil {
			if _, err = a.joiner.register(ctx); err != nil {
				again, wait = time.After(wait), min(2*wait, retryMax)
			}
		}
		switch {
		case errors.Is(err, errTaken):
			return err
		case err != nil && ctx.Err() == nil && !errors.Is(err, datastore.ErrDetached):
			a.log.Warn("node not registered again", "error", err)
		}
	}
}

// keepForward lets forwarded packets of endpoints through where another
// program's FORWARD chain would drop them.
func (a *agent) keepForward(ctx context.Context, forward func(context.Context, string, <-chan struct{}, func(int, error)) error) error {
	if err := a.loop.await(ctx, func() (bool, error) { return a.loop.standing.admitted, nil }); err != nil {
		return err
	}
	last := ""
	return forward(ctx, a.cfg.LinkPrefix, a.forward, func(added int, err error) {
		text := ""
		if err != nil {
			text = oneLine(err.Error())
		}
		if text != last {
			last = text
			a.loop.post(func() { a.loop.problems.note("iptables", text) })
		}
		if added > 0 {
			a.log.Info("forwarding let through the host's iptables", "rules", added)
		}
	})
}

// compare has everything compared from time to time.
func (a *agent) compare(ctx context.Context) error {
	for pause(ctx, compareEvery) {
		a.loop.post(a.loop.compare)
		poke(a.forward)
	}
	return nil
}

// pause waits; false: ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
