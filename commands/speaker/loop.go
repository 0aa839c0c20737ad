package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"netctl/commands/retry"
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
	j := &loop{speaker: s, boot: boot, ranBefore: last.Boot != "", sameBoot: last.Boot == boot}
	j.announced = routing.NewAnnounced(s.cfg.LinkPrefix)
	due := make(chan struct{}, 1)
	j.again = retry.New(retryMin, retryMax, func() {
		select {
		case due <- struct{}{}:
		default:
		}
	})
	defer j.again.Stop()
	compare := time.NewTicker(compareEvery)
	defer compare.Stop()
	defer func() { j.stop() }()
	j.read(ctx)
	if last.Boot != "" {
		j.follow(ctx, last.Plan)
	}
	for {
		var failed <-chan error
		if j.engine != nil {
			failed = j.engine.failed
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("bgp: %w", err)
		case plan := <-s.follower.plans:
			j.follow(ctx, plan)
		case e := <-s.kernel:
			j.heard(ctx, e)
		case <-due:
			j.tryAgain(ctx)
		case <-compare.C:
			j.compare(ctx)
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
func (j *loop) tryAgain(ctx context.Context) {
	if j.again.Again(tryKernel) {
		j.read(ctx)
		j.originate()
	}
	if j.again.Again(tryEngine) {
		j.follow(ctx, j.plan)
	}
}

// read reads the agent's routes and the connected subnets anew.
func (j *loop) read(ctx context.Context) {
	routes, err := j.agent.Routes(ctx)
	if err == nil {
		j.announced.Replace(routes)
		err = j.readSubnets(ctx)
	}
	if err != nil && ctx.Err() == nil {
		j.log.Warn("routes not read", "error", err)
		j.again.Failed(tryKernel)
		return
	}
	j.again.Solved(tryKernel)
}

// compare has everything compared with the kernel: the proof that watching was
// right.
func (j *loop) compare(ctx context.Context) {
	if changes, err := j.own.Compare(ctx); err != nil && ctx.Err() == nil {
		j.log.Warn("routes not compared", "error", firstOf(err))
	} else if !changes.Empty() {
		j.log.Warn("routes were not as heard, put right", "routes", len(changes.Put)+len(changes.Delete))
	}
	j.read(ctx)
	j.originate()
	j.recheck(nil, true)
}

// recheck has next hops resolved again, and what depends on them.
func (j *loop) recheck(prefixes []netip.Prefix, all bool) {
	moved, behind := j.nextHops.recheck(prefixes, all)
	if moved {
		j.installer.moved()
	}
	if behind && j.engine != nil {
		j.engine.Reimport()
	}
}

// loop is what reconcile works on.
type loop struct {
	*speaker
	boot                string
	ranBefore, sameBoot bool

	plan      routing.Plan
	saved     lastRun
	subnets   []netip.Prefix
	announced *routing.Announced            // what the kernel has of the agent's routes
	belief    atomic.Pointer[routing.Guard] // read by the engine's goroutine
	engine    *engine
	again     *retry.Schedule
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
}

// follow makes the engine run by plan, in place where that is possible. What the
// engine refuses is reported and changes nothing.
func (j *loop) follow(ctx context.Context, plan routing.Plan) {
	if plan.AS == 0 || !plan.RouterID.IsValid() {
		// This node is not in the datastore, or has no address: it has no peers.
		plan.RouterID, plan.AS, plan.Addresses = j.plan.RouterID, j.plan.AS, j.plan.Addresses
	}
	if cidrs := plan.CIDRs(); !slices.Equal(cidrs, j.plan.CIDRs()) {
		j.announced.SetPools(cidrs)
	}
	j.plan = plan
	j.save()
	j.believe()
	err := j.run(ctx)
	if err != nil && ctx.Err() == nil {
		j.log.Error("configuration not followed", "error", err)
		plan.Problems = append(slices.Clone(plan.Problems), err.Error())
		j.again.Failed(tryEngine)
	} else {
		j.again.Solved(tryEngine)
		j.log.Info("configuration followed", "peers", len(plan.Peers))
	}
	j.state.setPlan(plan)
	j.originate()
	j.reporter.Wake()
}

// run brings the engine, started if need be, to the plan.
func (j *loop) run(ctx context.Context) error {
	p := j.plan
	want := fixed{p.RouterID, p.AS, fmt.Sprint(p.Addresses), p.RestartTime}
	if j.engine != nil && j.engine.fixed != want {
		j.log.Info("engine starts again", "routerid", want.routerID, "as", want.as, "addresses", want.listen)
		j.stop()
	}
	switch {
	case j.engine != nil:
		return j.engine.Configure(j.peers())
	case p.RouterID.IsValid():
		return j.start(ctx, want)
	}
	return nil
}

// save writes the plan to speaker.json if it is not what that holds. At once: a
// speaker that is killed in the next moment keeps the routes of the peers it finds
// there, and no others.
func (j *loop) save() {
	m := lastRun{Boot: j.boot, Plan: j.plan}
	if reflect.DeepEqual(m, j.saved) {
		return
	}
	if err := remember(j.file(), m); err != nil {
		j.log.Error("state not saved", "error", err)
		return
	}
	j.saved = m
}

// start begins a life of the engine with the routes the kernel holds.
func (j *loop) start(ctx context.Context, want fixed) error {
	held, err := j.own.Routes(ctx)
	if err != nil {
		return err
	}
	stale, foreign := j.adopt(ctx, held)
	preserved := map[bgp.Family]bool{}
	if j.sameBoot {
		for _, r := range held {
			preserved[bgp.FamilyOf(r.Prefix.Addr())] = true
		}
		for p := range j.announced.Prefixes() {
			preserved[bgp.FamilyOf(p.Addr())] = true
		}
	}
	var listen []netip.AddrPort
	for _, a := range j.plan.Addresses {
		listen = append(listen, netip.AddrPortFrom(a, uint16(j.cfg.Port)))
	}
	b, err := bgp.New(bgp.Config{
		RouterID: want.routerID, AS: want.as, Listen: listen,
		RestartTime: time.Duration(want.restartTime) * time.Second,
		Restarting:  j.ranBefore, ForwardingPreserved: preserved, Stale: stale,
		Import: j.imports, SinglePath: func(p netip.Prefix) bool { return j.belief.Load().InPool(p) },
		Installer: j.installer, OnSessionChange: j.reporter.Wake, Log: j.log,
	})
	if err != nil {
		return err
	}
	if err := b.Configure(j.peers()); err != nil {
		return err
	}
	ctx, end := context.WithCancel(ctx)
	e := &engine{Speaker: b, fixed: want, end: end, failed: make(chan error, 1)}
	j.engine = e
	b.Originate(j.announced.All(), nil)
	j.installer.begin(stale, b.Reinstall)
	j.state.setEngine(b)
	if len(foreign) > 0 {
		if err := j.own.Apply(ctx, routing.Changes{Delete: foreign}); err != nil {
			j.log.Warn("routes not removed", "error", firstOf(err))
		}
	}
	j.log.Info("engine starts", "routerid", want.routerID, "as", want.as, "peers", len(j.plan.Peers), "adopted", len(stale), "restarting", j.ranBefore, "kept", len(preserved) > 0)
	e.ended.Go(func() {
		if err := b.Run(ctx); err != nil && ctx.Err() == nil {
			e.failed <- err
		}
	})
	j.ranBefore, j.sameBoot = true, true
	return nil
}

// stop ends the engine without a word to its peers; the routes stay.
func (j *loop) stop() {
	if j.engine == nil {
		return
	}
	j.engine.end()
	j.engine.ended.Wait()
	j.engine = nil
	j.installer.end()
	j.state.setEngine(nil)
}

// adopt turns the kernel's routes of our protocol into paths of peers. Several
// peers may be behind one gateway; then each of them may be the owner. Routes
// that no peer can have announced are returned as foreign.
func (j *loop) adopt(ctx context.Context, held []routing.Route) (stale []bgp.Route, foreign []routing.Route) {
	peers := map[netip.Addr]bool{}
	behind := map[routing.NextHop][]netip.Addr{}
	for _, p := range j.plan.Peers {
		for _, a := range append([]netip.Addr{p.Address}, p.Aliases...) {
			peers[a] = true
			if via, err := j.own.Resolve(ctx, a); err == nil && via.Addr != a {
				behind[via] = append(behind[via], a)
			}
		}
	}
	var kept []routing.Route
	for _, r := range held {
		path := bgp.Route{Prefix: r.Prefix, Stale: true}
		for _, h := range r.NextHops {
			switch owners := behind[h]; {
			case peers[h.Addr] || len(owners) == 0 && h.Addr.IsValid():
				path.NextHops = append(path.NextHops, h.Addr)
			default:
				path.NextHops = append(path.NextHops, owners...)
			}
		}
		if len(path.NextHops) == 0 || r.Metric != routing.SpeakerMetric(r.Prefix) {
			foreign = append(foreign, r)
			continue
		}
		stale, kept = append(stale, path), append(kept, r)
	}
	j.own.Adopt(kept)
	return stale, foreign
}

// prefixLimit is far more than the blocks and borrowed addresses of one node; it
// bounds what a peer that has gone wrong can cost.
const prefixLimit = 100_000

func (j *loop) peers() []bgp.PeerConfig {
	out := make([]bgp.PeerConfig, 0, len(j.plan.Peers))
	for _, p := range j.plan.Peers {
		c := bgp.PeerConfig{
			Address: p.Address, Port: uint16(j.cfg.Port), AS: p.AS, Description: p.Name, LocalAddress: p.Local,
			NextHopSelf: p.NextHops, Aliases: p.Aliases, HoldTime: time.Duration(j.plan.HoldTime) * time.Second,
			PrefixLimit: prefixLimit,
		}
		for _, a := range p.NextHops {
			c.Families = append(c.Families, bgp.FamilyOf(a))
		}
		out = append(out, c)
	}
	return out
}

// imports is the engine's import policy; every peer is a node.
func (j *loop) imports(_ netip.Addr, prefix netip.Prefix, nextHop netip.Addr) (bool, string) {
	g := j.belief.Load()
	if ok, reason := g.Check(prefix); !ok {
		return false, reason
	}
	if ok, reason := g.CheckNextHop(nextHop); !ok {
		return false, reason
	}
	return j.nextHops.check(nextHop)
}

// believe renews the guard and has everything that peers said judged again if
// it changed.
func (j *loop) believe() {
	g := &routing.Guard{Pools: j.plan.Pools, Subnets: j.subnets, Addresses: j.plan.Nodes}
	old := j.belief.Swap(g)
	if j.engine != nil && !reflect.DeepEqual(old, g) {
		j.engine.Reimport()
	}
}

// originate tells the engine what changed in what this node announces.
func (j *loop) originate() {
	if j.engine == nil {
		return
	}
	if add, withdraw := j.announced.Take(); len(add)+len(withdraw) > 0 {
		j.engine.Originate(add, withdraw)
		j.log.Info("announcement changed", "added", len(add), "withdrawn", len(withdraw))
		j.reporter.Wake()
	}
}

// heard takes what the kernel says. What endpoints come and go with costs a look-up
// each and is no news for next hops and subnets.
func (j *loop) heard(ctx context.Context, k kernelEvent) {
	e := k.event
	switch {
	case k.agent && e.Lost:
		j.read(ctx)
	case k.agent:
		for _, link := range e.Down { // the kernel drops its routes without a word
			j.announced.Down(link)
		}
		for _, c := range e.Changes {
			if c.Gone {
				j.announced.Remove(c.Route.Key())
			} else {
				j.announced.Put(c.Route)
			}
		}
	default:
		if all := e.Lost || len(e.Up)+len(e.Down) > 0; all || len(e.Foreign) > 0 {
			j.recheck(e.Foreign, all)
			if err := j.readSubnets(ctx); err != nil && ctx.Err() == nil {
				j.log.Warn("connected subnets not read", "error", err)
				j.again.Failed(tryKernel)
			}
		}
		return
	}
	j.originate()
}

// readSubnets asks the kernel for the connected subnets of interfaces that are
// not ours.
func (j *loop) readSubnets(ctx context.Context) error {
	routes, err := j.own.Connected(ctx)
	if err != nil {
		return err
	}
	var subnets []netip.Prefix
	for _, r := range routes {
		ours := slices.ContainsFunc(r.NextHops, func(h routing.NextHop) bool { return strings.HasPrefix(h.Link, j.cfg.LinkPrefix) })
		if !ours && !r.Prefix.Addr().IsLinkLocalUnicast() {
			subnets = append(subnets, r.Prefix)
		}
	}
	if !slices.Equal(subnets, j.subnets) {
		j.subnets = subnets
		j.believe()
	}
	return nil
}
