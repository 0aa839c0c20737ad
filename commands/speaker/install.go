package speaker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"netctl/routing"
	"netctl/routing/bgp"
)

// installer puts best paths into the kernel. Install and recheck only take
// notes; run, in a goroutine of its own, resolves next hops and writes.
type installer struct {
	table table
	wake  func() // something that is reported changed
	log   *slog.Logger
	work  chan struct{}

	mu      sync.Mutex
	pending map[netip.Prefix]*bgp.Route // nil: gone
	stale   bool                        // next hops may resolve otherwise now
	fresh   bool                        // pending is all there is
	lost    map[netip.Prefix]bool       // best paths without a usable next hop

	// Owned by run.
	best map[netip.Prefix]bgp.Route
	hops map[netip.Addr]*nextHop
}

// nextHop is how the kernel reaches a BGP next hop.
type nextHop struct {
	via   routing.NextHop // Link "" if unreachable
	users int             // best paths that use it
}

func newInstaller(t table, wake func(), log *slog.Logger) *installer {
	return &installer{
		table: t, wake: wake, log: log, work: make(chan struct{}, 1),
		pending: map[netip.Prefix]*bgp.Route{}, lost: map[netip.Prefix]bool{},
		best: map[netip.Prefix]bgp.Route{}, hops: map[netip.Addr]*nextHop{},
	}
}

// Install implements bgp.Installer.
func (i *installer) Install(changed []bgp.Route, gone []netip.Prefix) {
	i.mu.Lock()
	for _, r := range changed {
		i.pending[r.Prefix] = &r
	}
	for _, p := range gone {
		i.pending[p] = nil
	}
	i.mu.Unlock()
	i.signal()
}

// begin makes held, the kernel's routes at the engine's start, the best paths:
// they are followed as those that Install brings, and what was known before is
// forgotten.
func (i *installer) begin(held []bgp.Route) {
	i.mu.Lock()
	i.pending, i.fresh = make(map[netip.Prefix]*bgp.Route, len(held)), true
	for _, r := range held {
		i.pending[r.Prefix] = &r
	}
	i.mu.Unlock()
	i.signal()
}

// recheck has every next hop resolved again: the kernel's routes changed.
func (i *installer) recheck() {
	i.mu.Lock()
	i.stale = true
	i.mu.Unlock()
	i.signal()
}

func (i *installer) signal() {
	select {
	case i.work <- struct{}{}:
	default:
	}
}

// unresolved are the best paths that no next hop can be found for, sorted.
func (i *installer) unresolved() []netip.Prefix {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.SortedFunc(maps.Keys(i.lost), routing.ComparePrefixes)
}

func (i *installer) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-i.work:
		}
		i.mu.Lock()
		pending, stale, fresh := i.pending, i.stale, i.fresh
		i.pending, i.stale, i.fresh = map[netip.Prefix]*bgp.Route{}, false, false
		i.mu.Unlock()
		if fresh {
			for prefix := range i.best {
				if _, known := pending[prefix]; !known {
					pending[prefix] = nil
				}
			}
		}
		i.apply(ctx, pending, stale)
	}
}

func (i *installer) apply(ctx context.Context, pending map[netip.Prefix]*bgp.Route, stale bool) {
	var c routing.Changes
	moved := map[netip.Addr]bool{}
	if stale {
		for addr, hop := range i.hops {
			if via := i.resolve(ctx, addr); via != hop.via {
				hop.via, moved[addr] = via, true
			}
		}
	}
	for prefix, r := range pending {
		i.choose(ctx, prefix, r, &c)
	}
	if len(moved) > 0 {
		for prefix, r := range i.best {
			if _, done := pending[prefix]; !done && slices.ContainsFunc(r.NextHops, func(a netip.Addr) bool { return moved[a] }) {
				i.build(r, &c)
			}
		}
	}
	if c.Empty() {
		return
	}
	if err := i.table.Apply(ctx, c); err != nil && ctx.Err() == nil {
		i.log.Warn("routes not installed", "error", firstOf(err))
	}
	i.wake()
}

// choose makes r the best path of prefix; nil: there is none any more.
func (i *installer) choose(ctx context.Context, prefix netip.Prefix, r *bgp.Route, c *routing.Changes) {
	old := i.best[prefix]
	if r == nil {
		delete(i.best, prefix)
		i.note(prefix, false)
		c.Delete = append(c.Delete, routing.Route{Prefix: prefix, Metric: routing.SpeakerMetric(prefix)})
	} else {
		i.best[prefix] = *r
		for _, addr := range r.NextHops {
			if i.hops[addr] == nil {
				i.hops[addr] = &nextHop{via: i.resolve(ctx, addr)}
			}
			i.hops[addr].users++
		}
		i.build(*r, c)
	}
	for _, addr := range old.NextHops {
		if i.hops[addr].users--; i.hops[addr].users == 0 {
			delete(i.hops, addr)
		}
	}
}

// build adds what the best path becomes in the kernel: next hops resolved, those
// that cannot be left out; without any, no route.
func (i *installer) build(r bgp.Route, c *routing.Changes) {
	out := routing.Route{Prefix: r.Prefix, Metric: routing.SpeakerMetric(r.Prefix)}
	for _, addr := range r.NextHops {
		via := i.hops[addr].via
		if via.Link != "" && !slices.Contains(out.NextHops, via) {
			out.NextHops = append(out.NextHops, via)
		}
	}
	i.note(r.Prefix, len(out.NextHops) == 0)
	if len(out.NextHops) == 0 {
		c.Delete = append(c.Delete, out)
		return
	}
	c.Put = append(c.Put, out)
}

func (i *installer) resolve(ctx context.Context, addr netip.Addr) routing.NextHop {
	via, err := i.table.Resolve(ctx, addr)
	if err != nil {
		i.log.Debug("next hop unreachable", "nexthop", addr, "error", err)
		return routing.NextHop{}
	}
	return via
}

func (i *installer) note(prefix netip.Prefix, lost bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if lost {
		i.lost[prefix] = true
	} else {
		delete(i.lost, prefix)
	}
}

// firstOf is the first of a joined error's causes; a batch may hold thousands.
func firstOf(err error) error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		return joined.Unwrap()[0]
	}
	return err
}
