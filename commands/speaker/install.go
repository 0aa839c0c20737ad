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
	"time"

	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bgp"
)

// installer puts best paths into the kernel. Install and moved only take notes; run,
// in a goroutine of its own, resolves next hops and writes. It does not keep the best
// paths: the engine does, and tells them again where next hops have moved.
type installer struct {
	table    table
	nextHops *tracker
	wake     func() // something that is reported changed
	log      *slog.Logger
	work     chan struct{}

	mu      sync.Mutex
	fabric  *routing.Fabric
	pending map[netip.Prefix]*bgp.Change // from what is written to what is to be
	stale   bool                         // a next hop is reached otherwise now
	again   func(nextHops map[netip.Addr]bool)
	// lost are best paths without a usable next hop; who writes changes it.
	lost map[netip.Prefix]bool
	// lacking are the next hops that a pool asks a tunnel to and that have none.
	lacking []netip.Addr

	writing sync.Mutex      // is held while routes are written; it guards what follows
	by      *routing.Fabric // that the routes were made by
	ways    map[string]*way
	last    *way        // the one asked for before, which is mostly the next one too
	others  bool        // there are other ways than lacking is of
	made    int         // changes since memory was given back
	rested  *time.Timer // gives it back
}

// way is a list of BGP next hops and what the kernel and the fabric make of them. Best
// paths with equal next hops share one.
type way struct {
	name  string
	hops  []netip.Addr
	via   map[netip.Prefix]passage // by pool
	drop  bool                     // packets are discarded (RFC 7999)
	users int                      // best paths
}

// passage is what next hops resolve to: those that do, each once, and the source address
// that a route over them needs.
type passage struct {
	hops   []routing.NextHop
	source netip.Addr
}

func (p passage) equal(o passage) bool { return p.source == o.source && slices.Equal(p.hops, o.hops) }

// mostChanges is how many changes are collected before they are written.
const mostChanges = 4096

func newInstaller(t table, n *tracker, wake func(), log *slog.Logger) *installer {
	return &installer{
		table: t, nextHops: n, wake: wake, log: log, work: make(chan struct{}, 1),
		pending: map[netip.Prefix]*bgp.Change{}, lost: map[netip.Prefix]bool{}, ways: map[string]*way{},
	}
}

// Install implements bgp.Installer.
func (i *installer) Install(changes []bgp.Change) {
	i.mu.Lock()
	for n, c := range changes {
		if p := i.pending[c.Prefix]; p != nil {
			p.Now = c.Now
		} else {
			i.pending[c.Prefix] = &changes[n]
		}
	}
	i.mu.Unlock()
	i.signal()
}

// end forgets what an engine that has ended told, once what is being written is.
func (i *installer) end() {
	i.mu.Lock()
	i.again, i.stale = nil, false
	i.pending = map[netip.Prefix]*bgp.Change{}
	i.mu.Unlock()
	i.writing.Lock()
	defer i.writing.Unlock()
	i.ways, i.last = map[string]*way{}, nil
	i.mu.Lock()
	defer i.mu.Unlock()
	clear(i.lost)
}

// begin makes held, the kernel's routes at the start of an engine, the best paths:
// they are followed as those that Install brings. again has the engine tell best paths
// over next hops once more.
func (i *installer) begin(held []bgp.Route, again func(nextHops map[netip.Addr]bool)) {
	changes := make([]bgp.Change, len(held))
	for n, r := range held {
		changes[n] = bgp.Change{Prefix: r.Prefix, Now: slices.SortedFunc(slices.Values(r.NextHops), netip.Addr.Compare)}
	}
	i.mu.Lock()
	i.again = again
	i.mu.Unlock()
	i.Install(changes)
}

// moved has the routes made anew whose next hops are reached otherwise now.
func (i *installer) moved() {
	i.mu.Lock()
	i.stale = true
	i.mu.Unlock()
	i.signal()
}

// travel has packets travel by f, and the routes made anew that this changes.
func (i *installer) travel(f *routing.Fabric) {
	i.mu.Lock()
	i.fabric, i.stale = f, true
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
		i.write(ctx)
	}
}

// write brings the kernel to what Install and moved noted.
func (i *installer) write(ctx context.Context) {
	i.writing.Lock()
	defer i.writing.Unlock()
	i.mu.Lock()
	pending, stale, again, fabric := i.pending, i.stale, i.again, i.fabric
	i.pending, i.stale = map[netip.Prefix]*bgp.Change{}, false
	i.mu.Unlock()
	if stale {
		otherPools := !fabric.SamePools(i.by) // a prefix may be in another one now
		i.by = fabric
		if moved := i.moving(otherPools); len(moved) > 0 && again != nil {
			again(moved)
		}
	}
	w := writes{installer: i, ctx: ctx}
	for _, c := range pending {
		w.add(c)
	}
	w.flush()
	w.apply(routing.Changes{Put: w.moves})
	if stale || i.others {
		i.noteLacking()
	}
	if w.made > 0 {
		i.wake()
	}
	if i.made += w.made; i.made > bulk && len(i.work) == 0 {
		i.made = 0
		if i.rested == nil {
			i.rested = time.AfterFunc(restAfter, debug.FreeOSMemory)
		}
		i.rested.Reset(restAfter)
	}
}

// bulk is how many changes leave so much garbage behind that it is given back to
// the system once they are written, and peers have been told: after restAfter.
const (
	bulk      = 20_000
	restAfter = 300 * time.Millisecond
)

// moving are the next hops of the ways that the tracker's answers or the fabric make
// others; all: those of every way.
func (i *installer) moving(all bool) map[netip.Addr]bool {
	moved := map[netip.Addr]bool{}
	for _, w := range i.ways {
		other := all
		for pool, was := range w.via {
			if all {
				delete(w.via, pool)
			} else if via := i.via(pool, w.hops); !via.equal(was) {
				w.via[pool], other = via, true
			}
		}
		if other {
			for _, a := range w.hops {
				moved[a] = true
			}
		}
	}
	return moved
}

// take makes the way over a best path's next hops, which a route uses from now on.
// nil: it has none any more.
func (i *installer) take(hops []netip.Addr) *way {
	if len(hops) == 0 {
		return nil
	}
	w := i.way(hops)
	w.users++
	return w
}

// leave ends a route's use of a way, which is forgotten with the last.
func (i *installer) leave(hops []netip.Addr) {
	if len(hops) == 0 {
		return
	}
	w := i.way(hops)
	if w.users--; w.users > 0 {
		return
	}
	delete(i.ways, w.name)
	i.last, i.others = nil, true
}

// way finds the way over next hops.
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
		w = &way{name: string(name), hops: hops, drop: slices.ContainsFunc(hops, netip.Addr.IsUnspecified), via: map[netip.Prefix]passage{}}
		i.ways[w.name] = w
	}
	i.last = w
	return w
}

// through is what the way's next hops resolve to for a prefix.
func (i *installer) through(w *way, p netip.Prefix) passage {
	pool := i.by.Pool(p)
	via, ok := w.via[pool]
	if !ok {
		via = i.via(pool, w.hops)
		w.via[pool], i.others = via, true
	}
	return via
}

// via is what next hops resolve to for the addresses of a pool, those that do not left
// out. A tunnel needs a way to its other end too, and is no way for another source than
// that of its device.
func (i *installer) via(pool netip.Prefix, hops []netip.Addr) (out passage) {
	tunnelled := false
	for _, addr := range hops {
		if addr.IsUnspecified() {
			return passage{}
		}
		plain, _ := i.nextHops.resolve(addr)
		via, _ := i.by.Via(pool, addr, plain.NextHop)
		if plain.Link == "" && !slices.ContainsFunc(i.by.Spares(addr, via), i.nextHops.reached) {
			continue
		}
		tunnelled = tunnelled || via != plain.NextHop
		if source := i.by.Source(pool, addr, plain.source); source.IsValid() {
			out.source = source
		}
		if !slices.Contains(out.hops, via) {
			out.hops = append(out.hops, via)
		}
	}
	if tunnelled {
		out.source = netip.Addr{}
	}
	return out
}

// noteLacking books which next hops lack a tunnel.
func (i *installer) noteLacking() {
	i.others = false
	var list []netip.Addr
	for _, w := range i.ways {
		for pool := range w.via {
			for _, addr := range w.hops {
				if _, lacking := i.by.Via(pool, addr, routing.NextHop{}); lacking {
					list = append(list, addr)
				}
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lacking = slices.Compact(list)
}

// tunnelless are the next hops that a pool asks a tunnel to and that have none, sorted.
func (i *installer) tunnelless() []netip.Addr {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.lacking
}

// writes collects changes and brings them to the kernel.
type writes struct {
	*installer
	ctx     context.Context
	changes routing.Changes
	// moves are routes that go elsewhere. They are written together: many of them may
	// be moved at once by what they have in common.
	moves []routing.Route
	made  int
}

// add makes the kernel's route to a prefix what its best path says; none without a
// next hop that resolves.
func (w *writes) add(c *bgp.Change) {
	r := routing.Route{Prefix: c.Prefix, Metric: routing.SpeakerMetric(c.Prefix)}
	way := w.take(c.Now)
	w.leave(c.Was)
	if way != nil {
		passage := w.through(way, c.Prefix)
		r.NextHops, r.Source = passage.hops, passage.source
	}
	if way != nil && way.drop {
		r.Type = routing.Blackhole
	}
	w.note(c.Prefix, way != nil && len(r.NextHops) == 0 && !way.drop)
	switch put := len(r.NextHops) > 0 || r.Type == routing.Blackhole; {
	case put && len(c.Was) > 0:
		w.moves = append(w.moves, r)
	case put:
		w.changes.Put = append(w.changes.Put, r)
	default:
		w.changes.Delete = append(w.changes.Delete, r)
	}
	if w.made++; w.made%mostChanges == 0 {
		w.flush()
	}
}

func (w *writes) flush() {
	w.apply(w.changes)
	w.changes.Put, w.changes.Delete = w.changes.Put[:0], w.changes.Delete[:0]
}

func (w *writes) apply(c routing.Changes) {
	if c.Empty() {
		return
	}
	if err := w.table.Apply(w.ctx, c); err != nil && w.ctx.Err() == nil {
		w.log.Warn("routes not installed", "error", firstOf(err), datastore.EventProblem.Mark())
	}
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
