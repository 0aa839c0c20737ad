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

	"netctl/routing"
	"netctl/routing/bgp"
)

// loop joins what the datastore, the kernel and the last run say. It owns the
// engine's life and every field of joined.
func (s *speaker) loop(ctx context.Context) error {
	boot, err := bootID(s.cfg.BootFile)
	if err != nil {
		return err
	}
	last := s.last
	j := &joined{speaker: s, boot: boot, ranBefore: last.Boot != "", sameBoot: last.Boot == boot, hops: newHops(ctx, s.own, s.cfg.LinkPrefix)}
	defer func() { j.stop() }()
	if err := j.readAgent(ctx); err != nil {
		return err
	}
	if err := j.readSubnets(ctx); err != nil {
		return err
	}
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
			err = j.heard(ctx, e)
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// joined is the state of loop.
type joined struct {
	*speaker
	boot                string
	ranBefore, sameBoot bool

	plan    routing.Plan
	saved   memory
	subnets []netip.Prefix
	routes  map[routing.Key]routing.Route // of the agent, as the kernel has them
	exports map[netip.Prefix]bool
	belief  atomic.Pointer[routing.Guard] // read by the engine's goroutine
	hops    *hops
	engine  *engine
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
func (j *joined) follow(ctx context.Context, plan routing.Plan) {
	if plan.AS == 0 || !plan.RouterID.IsValid() {
		// This node is not in the datastore, or has no address: it has no peers.
		plan.RouterID, plan.AS, plan.Addresses = j.plan.RouterID, j.plan.AS, j.plan.Addresses
	}
	j.plan = plan
	j.save()
	j.believe()
	err := j.run(ctx)
	if err != nil && ctx.Err() == nil {
		j.log.Error("configuration not followed", "error", err)
		plan.Problems = append(slices.Clone(plan.Problems), err.Error())
	} else {
		j.log.Info("configuration followed", "peers", len(plan.Peers))
	}
	j.state.setPlan(plan)
	j.originate()
	j.reporter.Wake()
}

// run brings the engine, started if need be, to the plan.
func (j *joined) run(ctx context.Context) error {
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

// save writes the plan to speaker.json if it is not what that holds.
func (j *joined) save() {
	m := memory{Boot: j.boot, Plan: j.plan}
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
func (j *joined) start(ctx context.Context, want fixed) error {
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
		for _, r := range j.routes {
			preserved[bgp.FamilyOf(r.Prefix.Addr())] = true
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
	j.engine, j.exports = e, nil
	j.originate()
	j.installer.begin(stale)
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
func (j *joined) stop() {
	if j.engine == nil {
		return
	}
	j.engine.end()
	j.engine.ended.Wait()
	j.engine = nil
	j.state.setEngine(nil)
}

// adopt turns the kernel's routes of our protocol into paths of peers. Several
// peers may be behind one gateway; then each of them may be the owner. Routes
// that no peer can have announced are returned as foreign.
func (j *joined) adopt(ctx context.Context, held []routing.Route) (stale []bgp.Route, foreign []routing.Route) {
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

func (j *joined) peers() []bgp.PeerConfig {
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
func (j *joined) imports(_ netip.Addr, prefix netip.Prefix, nextHop netip.Addr) (bool, string) {
	g := j.belief.Load()
	if ok, reason := g.Check(prefix); !ok {
		return false, reason
	}
	if ok, reason := g.CheckNextHop(nextHop); !ok {
		return false, reason
	}
	return j.hops.check(nextHop)
}

// believe renews the guard and has everything that peers said judged again if
// it changed.
func (j *joined) believe() {
	g := &routing.Guard{Pools: j.plan.Pools, Subnets: j.subnets, Addresses: j.plan.Nodes}
	old := j.belief.Swap(g)
	if j.engine != nil && !reflect.DeepEqual(old, g) {
		j.engine.Reimport()
	}
}

// originate tells the engine what changed in what this node announces.
func (j *joined) originate() {
	if j.engine == nil {
		return
	}
	kernel := make([]routing.Route, 0, len(j.routes))
	for _, r := range j.routes {
		kernel = append(kernel, r)
	}
	next := map[netip.Prefix]bool{}
	var add, withdraw []netip.Prefix
	for _, p := range routing.Exports(kernel, j.plan.CIDRs(), j.cfg.LinkPrefix) {
		next[p] = true
		if !j.exports[p] {
			add = append(add, p)
		}
	}
	for p := range j.exports {
		if !next[p] {
			withdraw = append(withdraw, p)
		}
	}
	j.exports = next
	if len(add)+len(withdraw) > 0 {
		slices.SortFunc(withdraw, routing.ComparePrefixes)
		j.engine.Originate(add, withdraw)
		j.log.Info("announcement changed", "added", len(add), "withdrawn", len(withdraw))
		j.reporter.Wake()
	}
}

func (j *joined) heard(ctx context.Context, k kernelEvent) error {
	e := k.event
	if !k.agent {
		if e.Lost || len(e.Foreign)+len(e.Up)+len(e.Down) > 0 {
			j.installer.recheck()
			if j.hops.recheck() && j.engine != nil {
				j.engine.Reimport()
			}
			return j.readSubnets(ctx)
		}
		return nil
	}
	switch {
	case e.Lost || j.took(e.Down):
		if err := j.readAgent(ctx); err != nil {
			return err
		}
	case len(e.Changes) == 0:
		return nil
	default:
		for _, c := range e.Changes {
			if c.Gone {
				delete(j.routes, c.Route.Key())
			} else {
				j.routes[c.Route.Key()] = c.Route
			}
		}
	}
	j.originate()
	return nil
}

// took says whether links that went down may have taken agent's routes along.
func (j *joined) took(down []string) bool {
	if len(down) == 0 {
		return false
	}
	for _, r := range j.routes {
		if slices.ContainsFunc(r.NextHops, func(h routing.NextHop) bool { return slices.Contains(down, h.Link) }) {
			return true
		}
	}
	return false
}

func (j *joined) readAgent(ctx context.Context) error {
	routes, err := j.agent.Routes(ctx)
	if err != nil {
		return err
	}
	j.routes = make(map[routing.Key]routing.Route, len(routes))
	for _, r := range routes {
		j.routes[r.Key()] = r
	}
	return nil
}

// readSubnets asks the kernel for the connected subnets of interfaces that are
// not ours.
func (j *joined) readSubnets(ctx context.Context) error {
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
