package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"netctl/commands/retry"
	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/routing"
	"netctl/routing/bgp"
)

// reconcile joins what the datastore, the kernel and the last run say. It owns the
// engine's life and every field of loop.
func (s *speaker) reconcile(ctx context.Context) error {
	boot, err := kernel.BootID(s.cfg.BootFile)
	if err != nil {
		return err
	}
	last := s.last
	l := &loop{
		speaker: s, boot: boot, ranBefore: last.Boot != "", sameBoot: last.Boot == boot, leaving: map[netip.Addr]routing.Peer{},
		passwords: passwords{credentials: s.cfg.Credentials},
	}
	l.announced = routing.NewAnnounced(s.cfg.endpointLink)
	due := make(chan struct{}, 1)
	l.again = retry.New(retryMin, retryMax, func() {
		select {
		case due <- struct{}{}:
		default:
		}
	})
	defer l.again.Stop()
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	defer func() { l.stop() }()
	l.read(ctx)
	l.ends = last.Ends
	s.finder.Recall(last.Ends)
	if last.Boot != "" {
		l.follow(ctx, last.Plan)
		l.manager.Synced()
	}
	for {
		var failed <-chan error
		if l.engine != nil {
			failed = l.engine.failed
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("bgp: %w", err)
		case plan := <-s.follower.plans:
			l.follow(ctx, plan)
			l.manager.Synced()
		case turn := <-s.looked:
			turn <- struct{}{}
		case <-s.finder.Changed():
			l.meet(ctx)
		case <-s.sessions:
			l.cross(ctx)
		case e := <-s.kernel:
			l.heard(ctx, e)
		case <-due:
			l.tryAgain(ctx)
		case <-compare.C:
			l.compare(ctx)
		}
	}
}

// The delays between two tries of what failed, and how often everything is compared
// with the kernel.
const (
	retryMin     = time.Second
	retryMax     = 30 * time.Second
	compareEvery = 10 * time.Minute
)

// What is tried again.
const (
	tryKernel = "kernel" // to read it
	tryEngine = "engine" // to start it
)

// tryAgain tries what is due.
func (l *loop) tryAgain(ctx context.Context) {
	if l.again.Again(tryKernel) {
		l.read(ctx)
		l.originate()
	}
	if l.again.Again(tryEngine) {
		l.follow(ctx, l.planned)
	}
}

// read reads the agent's routes and the connected subnets anew.
func (l *loop) read(ctx context.Context) {
	routes, err := l.agent.Routes(ctx)
	if err == nil {
		l.announced.Replace(routes)
		err = l.readSubnets(ctx)
	}
	if err != nil && ctx.Err() == nil {
		l.log.Warn("routes not read", "error", err)
		l.again.Failed(tryKernel)
		return
	}
	l.again.Solved(tryKernel)
}

// compare has everything compared with the kernel: the proof that watching was
// right.
func (l *loop) compare(ctx context.Context) {
	if changes, err := l.own.Compare(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("routes not compared", "error", firstOf(err))
	} else if !changes.Empty() {
		l.log.Warn("routes were not as heard, put right", "routes", len(changes.Put)+len(changes.Delete), datastore.EventDrift.Mark())
	}
	l.read(ctx)
	l.originate()
	l.recheck(nil, true)
	if len(l.unread) > 0 || l.passwords.changed() {
		l.follow(ctx, l.planned)
	}
}

// recheck has next hops resolved again, and what depends on them.
func (l *loop) recheck(prefixes []netip.Prefix, all bool) {
	moved, behind := l.nextHops.recheck(prefixes, all)
	if moved {
		l.installer.moved()
	}
	if behind && l.engine != nil {
		l.engine.Reimport()
	}
}

// loop is what reconcile works on.
type loop struct {
	*speaker
	boot                string
	ranBefore, sameBoot bool

	// planned is what the datastore says, and plan the same with the peers of interfaces
	// where they are: at the ends of links.
	planned, plan routing.Plan
	ends          []routing.End
	saved         lastRun
	subnets       []netip.Prefix
	announced     *routing.Announced     // what the kernel has of the agent's routes
	belief        atomic.Pointer[belief] // read by the engine's goroutine
	engine        *engine
	again         *retry.Schedule
	// leaving are peers that are to go, by address; the engine knows which are gone.
	leaving   map[netip.Addr]routing.Peer
	passwords passwords
	policies  routing.Policies
	unread    []string            // what is wrong with them
	watched   map[netip.Addr]bool // by BFD
	crossed   map[netip.Addr]bool // see cross
	told      events
	// neighbours are those of the tunnels' devices, once met: once they were written.
	neighbours []routing.Neighbour
	met        bool
}

// engine is one life of the BGP engine: what is fixed for it, and how it ends.
type engine struct {
	*bgp.Speaker
	fixed  fixed
	end    context.CancelFunc
	ended  sync.WaitGroup
	failed chan error
}

// fixed is what the engine cannot change while it runs.
type fixed struct {
	routerID    netip.Addr
	as          uint32
	listen      string
	restartTime int
	clusterID   netip.Addr
}

// follow makes the engine run by plan, in place where that is possible. What the
// engine refuses is reported and changes nothing.
func (l *loop) follow(ctx context.Context, planned routing.Plan) {
	l.part(planned.AtLinks(l.ends))
	if planned.AS == 0 || !planned.RouterID.IsValid() {
		// This node is not in the datastore, or has no address: it has no peers.
		planned.RouterID, planned.AS, planned.Addresses, planned.ClusterID = l.plan.RouterID, l.plan.AS, l.plan.Addresses, l.plan.ClusterID
	}
	l.planned = planned
	l.seek()
	plan := planned.AtLinks(l.ends)
	if cidrs := plan.CIDRs(); !slices.Equal(cidrs, l.plan.CIDRs()) {
		l.announced.SetPools(cidrs)
	}
	l.plan = plan
	l.tell(plan)
	l.save()
	l.believe()
	l.travel(ctx)
	err := l.run(ctx)
	if err != nil && ctx.Err() == nil {
		l.log.Error("configuration not followed", "error", err)
		plan.Problems = append(slices.Clone(plan.Problems), err.Error())
		l.again.Failed(tryEngine)
	} else {
		l.again.Solved(tryEngine)
		l.log.Info("configuration followed", "peers", len(plan.Peers))
	}
	plan.Problems = slices.Concat(plan.Problems, l.unread)
	l.state.setPlan(plan)
	l.detect()
	l.originate()
	l.sessionChanged()
}

// sessionChanged wakes those that look at the sessions.
func (s *speaker) sessionChanged() {
	s.reporter.Wake()
	s.warden.wake()
	select {
	case s.sessions <- struct{}{}:
	default:
	}
}

// part notes the peers that another topology has no sessions with, although they are
// nodes still, perhaps by another address: theirs go when the others carry the routes.
func (l *loop) part(plan routing.Plan) {
	for _, p := range l.plan.Peers {
		l.leaving[p.Address] = p
	}
	nodes := map[string]bool{}
	for _, p := range plan.Peers {
		delete(l.leaving, p.Address)
		nodes[p.Name] = p.Configured == nil
	}
	for a, p := range l.leaving {
		moved := p.Configured == nil && nodes[p.Name]
		if plan.NoMesh || plan.AS == 0 || !slices.Contains(plan.Nodes, a) && !moved {
			delete(l.leaving, a)
		}
	}
}

// run brings the engine, started if need be, to the plan.
func (l *loop) run(ctx context.Context) error {
	p := l.plan
	want := fixed{p.RouterID, p.AS, fmt.Sprint(p.Addresses), p.RestartTime, p.ClusterID}
	if l.engine != nil && l.engine.fixed != want {
		l.log.Info("engine starts again", "routerid", want.routerID, "as", want.as, "addresses", want.listen)
		l.stop()
	}
	switch {
	case l.engine != nil:
		l.engine.Aggregate(l.aggregates())
		return l.engine.Configure(l.peers())
	case p.RouterID.IsValid():
		return l.start(ctx, want)
	}
	return nil
}

// save writes the plan to speaker.json if it is not what that holds. At once: a
// speaker that is killed in the next moment keeps the routes of the peers it finds
// there, and no others.
func (l *loop) save() {
	m := lastRun{Boot: l.boot, Plan: l.planned}
	for _, e := range l.ends {
		if e.Remote.IsValid() {
			m.Ends = append(m.Ends, routing.End{Link: e.Link, Local: e.Local, Remote: e.Remote})
		}
	}
	if reflect.DeepEqual(m, l.saved) {
		return
	}
	if err := remember(l.kept, m); err != nil {
		l.log.Error("state not saved", "error", err)
		return
	}
	l.saved = m
}

// start begins a life of the engine with the routes the kernel holds.
func (l *loop) start(ctx context.Context, want fixed) error {
	if err := l.own.Gather(ctx); err != nil {
		return err
	}
	held, err := l.own.Routes(ctx)
	if err != nil {
		return err
	}
	stale, foreign := l.adopt(ctx, held)
	if len(l.crossed) > 0 {
		l.travel(ctx) // as they do
	}
	preserved := map[bgp.Family]bool{}
	if l.bare && l.ranBefore {
		// Packets do not come this way: what clients were told holds on, also while this
		// machine starts.
		preserved[bgp.IPv4], preserved[bgp.IPv6] = true, true
	} else if l.sameBoot {
		for _, r := range held {
			preserved[bgp.FamilyOf(r.Prefix.Addr())] = true
		}
		for p := range l.announced.Prefixes() {
			preserved[bgp.FamilyOf(p.Addr())] = true
		}
	}
	var listen []netip.AddrPort
	for _, a := range l.plan.Addresses {
		listen = append(listen, netip.AddrPortFrom(a, uint16(l.cfg.Port)))
	}
	b, err := bgp.New(bgp.Config{
		RouterID: want.routerID, AS: want.as, ClusterID: want.clusterID, Listen: listen,
		RestartTime: time.Duration(want.restartTime) * time.Second,
		Restarting:  l.ranBefore, ForwardingPreserved: preserved, Stale: stale,
		Import: l.imports, SinglePath: func(p netip.Prefix) bool { return l.belief.Load().InPool(p) },
		MaxPaths: l.cfg.MaxPaths, Tags: l.tags, Installer: l.installer, OnSessionChange: l.sessionChanged, Log: l.log,
	})
	if err != nil {
		return err
	}
	b.Aggregate(l.aggregates())
	if err := b.Configure(l.peers()); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	e := &engine{Speaker: b, fixed: want, end: end, failed: make(chan error, 1)}
	l.engine = e
	b.Originate(l.announced.All(), nil)
	l.installer.begin(stale, b.Reinstall)
	l.state.setEngine(b)
	if len(foreign) > 0 {
		if err := l.own.Apply(ctx, routing.Changes{Delete: foreign}); err != nil {
			l.log.Warn("routes not removed", "error", firstOf(err))
		}
	}
	l.log.Info("engine starts", "routerid", want.routerID, "as", want.as, "peers", len(l.plan.Peers), "adopted", len(stale), "restarting", l.ranBefore, "kept", len(preserved) > 0)
	e.ended.Go(func() {
		if err := b.Run(ctx); err != nil && ctx.Err() == nil {
			e.failed <- err
		}
	})
	l.ranBefore, l.sameBoot = true, true
	return nil
}

// stop ends the engine without a word to its peers; the routes stay.
func (l *loop) stop() {
	if l.engine == nil {
		return
	}
	l.engine.end()
	l.engine.ended.Wait()
	l.engine = nil
	l.installer.end()
	l.state.setEngine(nil)
}

// adopt turns the kernel's routes of our protocol into paths of peers. Several
// peers may be behind one gateway; then each of them may be the owner. Routes
// that no peer can have announced are returned as foreign.
func (l *loop) adopt(ctx context.Context, held []routing.Route) (stale []bgp.Route, foreign []routing.Route) {
	peers := map[netip.Addr]bool{}
	behind := l.plan.Behind(l.cfg.Tunnels)
	for _, p := range l.plan.Peers {
		for _, a := range append([]netip.Addr{p.Address}, p.Aliases...) {
			peers[a] = true
			if via, _, err := l.own.Reach(ctx, a); err == nil && via.Addr != a {
				behind[via] = append(behind[via], a)
			}
		}
	}
	var kept []routing.Route
	for _, r := range held {
		path := bgp.Route{Prefix: r.Prefix, Stale: true}
		for _, h := range r.NextHops {
			hop := h.Addr
			if hop.IsLinkLocalUnicast() {
				hop = hop.WithZone(h.Link)
			}
			switch owners := behind[h]; {
			case peers[hop] || len(owners) == 0 && hop.IsValid():
				path.NextHops = append(path.NextHops, hop)
			default:
				path.NextHops = append(path.NextHops, owners...)
				l.adoptCrossed(h, owners)
			}
		}
		if len(path.NextHops) == 0 || r.Metric != routing.SpeakerMetric(r.Prefix) {
			foreign = append(foreign, r)
			continue
		}
		stale, kept = append(stale, path), append(kept, r)
	}
	l.own.Adopt(kept)
	return stale, foreign
}

// travel has packets to other nodes travel as the plan says: first the devices of
// tunnels know the nodes, then routes lead there.
func (l *loop) travel(ctx context.Context) {
	var links []string
	for _, kind := range []datastore.TunnelKind{datastore.TunnelVXLAN, datastore.TunnelVXLAN6} {
		links = append(links, l.cfg.Tunnels[kind])
	}
	if now := l.plan.Neighbours(l.cfg.Tunnels); !l.met || !slices.Equal(now, l.neighbours) {
		l.neighbours, l.met = now, true
		if err := l.own.SetNeighbours(ctx, links, now); err != nil && ctx.Err() == nil {
			l.log.Warn("neighbours of a tunnel not written", "error", firstOf(err))
		}
	}
	l.installer.travel(routing.NewFabric(l.plan, l.subnets, l.cfg.Tunnels, l.crossed))
}

// originate tells the engine what changed in what this node announces.
func (l *loop) originate() {
	if l.engine == nil {
		return
	}
	if add, withdraw := l.announced.Take(); len(add)+len(withdraw) > 0 {
		l.engine.Originate(add, withdraw)
		l.log.Info("announcement changed", "added", len(add), "withdrawn", len(withdraw))
		l.reporter.Wake()
	}
}

// heard takes what the kernel says. What endpoints come and go with costs a look-up
// each and is no news for next hops and subnets.
func (l *loop) heard(ctx context.Context, k kernelEvent) {
	e := k.event
	switch {
	case k.agent && e.Lost:
		l.read(ctx)
	case k.agent:
		for _, link := range e.Down { // the kernel drops its routes without a word
			l.announced.Down(link)
		}
		for _, c := range e.Changes {
			if c.Gone {
				l.announced.Remove(c.Route.Key())
			} else {
				l.announced.Put(c.Route)
			}
		}
	default:
		if all := e.Lost || len(e.Up)+len(e.Down) > 0; all || len(e.Foreign) > 0 {
			l.recheck(e.Foreign, all)
			if err := l.readSubnets(ctx); err != nil && ctx.Err() == nil {
				l.log.Warn("connected subnets not read", "error", err)
				l.again.Failed(tryKernel)
			}
		}
		return
	}
	l.originate()
}

// readSubnets asks the kernel for the connected subnets of interfaces that are
// not ours.
func (l *loop) readSubnets(ctx context.Context) error {
	routes, err := l.own.Connected(ctx)
	if err != nil {
		return err
	}
	var subnets []netip.Prefix
	for _, r := range routes {
		ours := slices.ContainsFunc(r.NextHops, func(h routing.NextHop) bool { return l.cfg.endpointLink(h.Link) })
		if !ours {
			subnets = append(subnets, r.Prefix)
		}
	}
	if !slices.Equal(subnets, l.subnets) {
		l.subnets = subnets
		l.believe()
		l.travel(ctx)
		l.detect()
	}
	return nil
}
