package agent

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev/kernel"
	"netctl/netdev/tap"
	"netctl/routing"
)

// hostLinks is what the loop asks of netdev/kernel.
type hostLinks interface {
	Up(link string) error
	Detach(link string, index int) error
	Hold(w kernel.Wire, raise bool) (differed []string, err error)
	Links(also ...int) ([]kernel.Link, error)
	Addresses() ([]kernel.Address, error)
	IPv6Off(link string) (setting string)
	Loopback() (was bool, err error)
	Forwarding4() (was bool, err error)
	Forwarding6() (was bool, err error)
	Forwarding4By(index int) (was bool, err error)
	Resize(w kernel.Wire, at kernel.Place, mtu int) error
	Settle(w kernel.Wire, at kernel.Place, to []netip.Prefix) (bool, error)
	MendAt(w kernel.Wire, at kernel.Place) (differed []string, err error)
	tunnelLinks
	wireguardLinks
}

// routes is what the loop asks of routing/fib.
type routes interface {
	Routes(ctx context.Context) ([]routing.Route, error)
	Adopt(routes []routing.Route)
	Gather(ctx context.Context) error
	Apply(ctx context.Context, c routing.Changes) error
	Missing() []routing.Route
}

// filter is what the loop asks of a packet filter's back end.
type filter interface {
	// Sync makes the kernel hold exactly r, changing only what differs; wrote says
	// whether anything did.
	Sync(ctx context.Context, r *acl.Ruleset) (wrote bool, err error)
	// Adjust is Sync of what was right for its time.
	Adjust(ctx context.Context, r *acl.Ruleset) (wrote bool, err error)
	// Shut makes the kernel hold r if it holds nothing.
	Shut(ctx context.Context, r *acl.Ruleset) (wrote bool, err error)
	// Apply makes one transaction of d.
	Apply(ctx context.Context, d acl.Delta) error
}

// The delays between two tries of what failed.
const (
	retryMin = time.Second
	retryMax = 30 * time.Second
)

// loop is the one reconcile loop. Run's goroutine owns the values that it is
// composed of; others reach them by the queue.
type loop struct {
	*queue

	cfg     Config
	log     *slog.Logger
	host    string // this machine's ID
	records *workload.Records
	boots   *boots
	state   *control.Kept // files of the state folder
	started time.Time

	view       *datastore.View
	addresses  *ipam.Index // fed with what the store tells
	standing   *standing
	links      *links
	locals     *locals
	blocks     *blocks
	filtering  *filtering
	table      *table
	forwarding *forwarding
	tunnels    *tunnels
	wireguard  *wireguard
	sizes      *sizes
	flows      *flows
	former     *former
	domains    *domains
	problems   *problems
	shown      telemetry.Shown // of what is wrong beside problems
	networks   runtimeNetworks
	mixed      mixed
	tables     tablesSeen
	stored     []control.Target            // whose detach could not be worked off
	unsettled  map[string]*workload.Record // endpoints that the store has yet to hear of, by name
	rule       string                      // which rule chose the node's address
	own        addresses                   // the node's
	refusing   []string                    // other programs' chains, see lookForRefusals

	spawn func(func(ctx context.Context) error)
	// enter starts what a complete view asks for first; it ends with ctx and
	// reports by standing.joined.
	enter func(ctx context.Context, restore []*workload.Record) error
	// release detaches an endpoint that is gone.
	release func(ctx context.Context, endpoint string) error
	// remade makes the TAP of an endpoint again.
	remade func(ctx context.Context, endpoint string) error
	// tellMachines is told what virtual machines are attached as.
	tellMachines func(guests map[string]tap.Guest)
	// changedHost is told that addresses of the host changed.
	changedHost func()
	// changedTunnels is told that addresses in tunnels may be needed, or not any more.
	changedTunnels func()
	// changedAdopted is told that other interfaces may be to be adopted.
	changedAdopted func()
	// changedNetworks is told that the runtimes may have to have others.
	changedNetworks func()
	// report is told that something that is reported may have changed.
	report func()
	// reportAnew is told that the datastore is another one.
	reportAnew func()
	// changedModel is told that the view changed, lostModel that it will not for a while.
	changedModel, lostModel func()
	copyLog                 *datastore.CopyLog
	// settleSoon is told that endpoints may be settled.
	settleSoon func()
	// synced is told that the agent is in sync, after each burst in which it is.
	synced func()
	// retryDetaches is told that pending detaches may be tried again.
	retryDetaches func()
}

func newLoop(cfg Config, log *slog.Logger, k hostLinks, r routes, f filter) *loop {
	l := &loop{
		queue: newQueue(), cfg: cfg, log: log, started: time.Now(), boots: &boots{},
		view: datastore.NewView(), standing: &standing{outage: datastore.NewOutage(log)},
		links: newLinks(k), table: newTable(r),
		report: func() {}, reportAnew: func() {}, changedHost: func() {}, changedTunnels: func() {}, changedNetworks: func() {}, changedAdopted: func() {}, synced: func() {}, tellMachines: func(map[string]tap.Guest) {}, retryDetaches: func() {},
		unsettled: map[string]*workload.Record{}, settleSoon: func() {}, changedModel: func() {}, lostModel: func() {},
	}
	l.copyLog = datastore.NewCopyLog(cfg.copyFile())
	l.networks.status = map[string][]datastore.RuntimeStatus{}
	l.problems = newProblems(log, func() { l.post(func() {}) })
	l.shown = telemetry.Shown{Log: log}
	l.locals = newLocals(cfg.LinkPrefix, l.links)
	l.blocks = &blocks{node: cfg.Node, view: l.view, table: l.table, links: l.links, returning: map[netip.Prefix]bool{}}
	l.forwarding = newForwarding(k, l.problems, log)
	l.tunnels = newTunnels(k, cfg)
	l.wireguard = newWireguard(k)
	l.sizes = &sizes{stuck: map[string]bool{}, said: map[string]string{}}
	options := cfg.FilterOptions()
	options.FlowRate, options.FlowBurst = flowLimit(cfg.NewFlows, tracked(conntrack.Use))
	// An error is told of by who reads them again.
	if addrs, err := k.Addresses(); err == nil {
		options.ReversePath = cfg.sources(addrs)
	}
	l.filtering = newFiltering(cfg.Node, options, f, cfg.filterFile(), log)
	l.filtering.repaired = func(r *acl.Ruleset) { _ = l.repaired(r) }
	if cfg.Established != "" {
		l.filtering.establish(cfg.Established)
	}
	l.filtering.debt = newDebt(cfg.debtFile(), log)
	l.flows = newFlows(log, l.filtering.debt, func(conntrack.Cutter) (int, error) { return 0, nil })
	l.flows.verdicts, l.flows.version = l.verdicts, l.filtering.version.Load
	l.domains = newDomains(cfg.RunDir, l.filtering.index, log, l.post)
	l.former = newFormer(cfg.RunDir, l.unheld, log)
	l.wantGateways()
	return l
}

// repaired has the flows cut that r denies, which holds now; done is closed then.
func (l *loop) repaired(r *acl.Ruleset) (done <-chan struct{}) {
	return l.flows.repaired(verdicts{r, l.links.own(), l.filtering.version.Load()})
}

// run works off calls until ctx ends. After each burst of calls it brings the
// kernel up to date and tells who waits.
func (l *loop) run(ctx context.Context) error {
	defer close(l.ended)
	defer l.problems.again.Stop()
	defer l.domains.end()
	for {
		changes, ok := l.burst(ctx)
		if !ok {
			return nil
		}
		l.settle()
		if l.standing.stage == ready && l.problems.again.Again(pending) {
			l.retryDetaches()
		}
		if l.flush(ctx); l.inSync() {
			l.synced()
		}
		l.problems.settle()
		l.wake()
		if changes > 0 {
			l.tell()
		}
	}
}

// compare has everything compared with the kernel: the proof that watching was
// right.
func (l *loop) compare() {
	l.links.resync, l.links.resyncHost, l.filtering.resync, l.table.resync = true, true, true, true
	l.forwarding.doubt()
	for link, w := range l.links.wires {
		if w.Peer == "" && !w.Tap.Is() {
			l.links.mend[link] = true
		}
	}
	l.tunnels.resync, l.links.guests = true, true
	l.changedAdopted()
	l.sizes.again(l.locals)
	l.compareRoutes()
}

// gateways are those that workloads here were told of.
func (l *loop) gateways() []netip.Addr {
	used := map[netip.Addr]bool{l.cfg.Gateway: true}
	for _, w := range l.links.wires {
		if w.Gateway4.IsValid() {
			used[w.Gateway4] = true
		}
	}
	return slices.SortedFunc(maps.Keys(used), netip.Addr.Compare)
}

// wantGateways has the host answer for the gateways.
func (l *loop) wantGateways() {
	l.table.want("gateway", gatewayRoutes(l.gateways())...)
	l.links.gateways = false
}

// compareRoutes works out anew which routes are wanted.
func (l *loop) compareRoutes() {
	want := desiredRoutes(l.gateways(), l.blocks.own(), l.view.EndpointsOf(l.cfg.Node), l.usable, l.narrow)
	slices.SortFunc(want, routing.Compare)
	want = slices.CompactFunc(want, func(a, b routing.Route) bool { return a.Key() == b.Key() })
	if slices.EqualFunc(want, l.table.all(), routing.Route.Equal) || len(l.locals.moved) > 0 {
		return
	}
	l.log.Error("wanted routes were not kept up, worked out anew", "routes", len(want))
	for owner := range maps.Clone(l.table.wants) {
		l.table.want(owner)
	}
	l.wantGateways()
	for _, b := range l.blocks.own() {
		l.blocks.route(b.Metadata.Name, b)
	}
	l.locals.markAll()
}
