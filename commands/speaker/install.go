package speaker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"

	"netctl/routing"
	"netctl/routing/bgp"
)

// installer puts best paths into the kernel. Install and recheck only take
// notes; run, in a goroutine of its own, resolves next hops and writes.
type installer struct {
	table    table
	nextHops *tracker
	wake     func() // something that is reported changed
	log      *slog.Logger
	work     chan struct{}

	mu      sync.Mutex
	pending map[netip.Prefix][]netip.Addr // next hops of best paths; nil: gone
	stale   bool                          // a next hop is reached otherwise now
	fresh   bool                          // pending is all there is
	// lost are best paths without a usable next hop; run alone changes it.
	lost map[netip.Prefix]bool

	// Owned by run.
	best map[netip.Prefix]*way
	ways map[string]*way
	last *way // the one asked for before, which is mostly the next one too
	made int  // changes since memory was given back
}

// way is a list of BGP next hops and what the kernel makes of them. Best paths
// with equal next hops share one.
type way struct {
	name  string
	hops  []netip.Addr
	via   []routing.NextHop // those that resolve, each once
	users int               // best paths
}

// mostChanges is how many changes are collected before they are written.
const mostChanges = 4096

func newInstaller(t table, n *tracker, wake func(), log *slog.Logger) *installer {
	return &installer{
		table: t, nextHops: n, wake: wake, log: log, work: make(chan struct{}, 1),
		pending: map[netip.Prefix][]netip.Addr{}, lost: map[netip.Prefix]bool{},
		best: map[netip.Prefix]*way{}, ways: map[string]*way{},
	}
}

// Install implements bgp.Installer.
func (i *installer) Install(changed []bgp.Route, gone []netip.Prefix) {
	i.mu.Lock()
	for _, r := range changed {
		i.pending[r.Prefix] = r.NextHops
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
	i.pending, i.fresh = make(map[netip.Prefix][]netip.Addr, len(held)), true
	for _, r := range held {
		i.pending[r.Prefix] = r.NextHops
	}
	i.mu.Unlock()
	i.signal()
}

// moved has the routes made anew whose next hops are reached otherwise now.
func (i *installer) moved() {
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
		i.pending, i.stale, i.fresh = map[netip.Prefix][]netip.Addr{}, false, false
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

func (i *installer) apply(ctx context.Context, pending map[netip.Prefix][]netip.Addr, stale bool) {
	w := writes{installer: i, ctx: ctx}
	moved := map[*way]bool{}
	if stale {
		moved = i.movedWays()
	}
	for prefix, hops := range pending {
		i.choose(prefix, hops)
		w.add(prefix)
	}
	if len(moved) > 0 {
		for prefix, way := range i.best {
			if _, done := pending[prefix]; !done && moved[way] {
				w.add(prefix)
			}
		}
	}
	w.flush()
	if w.made > 0 {
		i.wake()
	}
	if i.made += w.made; i.made > bulk && len(i.work) == 0 {
		i.made = 0
		debug.FreeOSMemory()
	}
}

// bulk is how many changes leave so much garbage behind that it is given back to
// the system once they are written.
const bulk = 20_000

// movedWays are the ways that the tracker's answers make others.
func (i *installer) movedWays() map[*way]bool {
	moved := map[*way]bool{}
	for _, w := range i.ways {
		if via := i.via(w.hops); !slices.Equal(via, w.via) {
			w.via, moved[w] = via, true
		}
	}
	return moved
}

// choose makes hops the next hops of prefix's best path; nil: there is none any more.
func (i *installer) choose(prefix netip.Prefix, hops []netip.Addr) {
	old := i.best[prefix]
	if hops == nil {
		delete(i.best, prefix)
	} else {
		w := i.way(hops)
		w.users++
		i.best[prefix] = w
	}
	if old == nil {
		return
	}
	if old.users--; old.users > 0 {
		return
	}
	delete(i.ways, old.name)
	if i.last == old {
		i.last = nil
	}
}

// way finds the way over next hops, or resolves them.
func (i *installer) way(hops []netip.Addr) *way {
	if i.last != nil && slices.Equal(i.last.hops, hops) {
		return i.last
	}
	var name []byte
	for _, addr := range hops {
		name = append(addr.AppendTo(name), ' ')
	}
	w := i.ways[string(name)]
	if w == nil {
		w = &way{name: string(name), hops: hops}
		w.via = i.via(hops)
		i.ways[w.name] = w
	}
	i.last = w
	return w
}

// via is what next hops resolve to, those that do not left out.
func (i *installer) via(hops []netip.Addr) []routing.NextHop {
	var out []routing.NextHop
	for _, addr := range hops {
		if via, _ := i.nextHops.resolve(addr); via.Link != "" && !slices.Contains(out, via) {
			out = append(out, via)
		}
	}
	return out
}

// writes collects changes and brings them to the kernel.
type writes struct {
	*installer
	ctx     context.Context
	changes routing.Changes
	made    int
}

// add makes the kernel's route to prefix what its best path says; none without a
// next hop that resolves.
func (w *writes) add(prefix netip.Prefix) {
	r := routing.Route{Prefix: prefix, Metric: routing.SpeakerMetric(prefix)}
	way := w.best[prefix]
	if way != nil {
		r.NextHops = way.via
	}
	w.note(prefix, way != nil && len(way.via) == 0)
	if len(r.NextHops) > 0 {
		w.changes.Put = append(w.changes.Put, r)
	} else {
		w.changes.Delete = append(w.changes.Delete, r)
	}
	if w.made++; w.made%mostChanges == 0 {
		w.flush()
	}
}

func (w *writes) flush() {
	if w.changes.Empty() {
		return
	}
	if err := w.table.Apply(w.ctx, w.changes); err != nil && w.ctx.Err() == nil {
		w.log.Warn("routes not installed", "error", firstOf(err))
	}
	w.changes.Put, w.changes.Delete = w.changes.Put[:0], w.changes.Delete[:0]
}

// note books whether a best path has no usable next hop.
func (i *installer) note(prefix netip.Prefix, lost bool) {
	if i.lost[prefix] == lost {
		return
	}
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
