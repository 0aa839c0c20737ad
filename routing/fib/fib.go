// Package fib owns the kernel's routes of one protocol number in the main table
// of one network namespace, and what devices of tunnels have to know of the nodes
// that routes lead to: it reads, writes and watches them over rtnetlink.
//
// It never changes, replaces or deletes a route of another protocol, runs no
// program, and decides nothing: what should be is the caller's, as
// routing.Route.
//
// Invariants: a Table has one socket for requests and one for its Watch; a route
// that the kernel refuses never keeps the others of its batch back; what is wanted
// and not there, and what should have gone and is there, is kept and tried again
// as long as Watch runs.
package fib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// batch is how many changes are written at once.
const batch = 512

// ErrForeign means that another program's route has the prefix and metric.
var ErrForeign = errors.New("another program's route is in its place")

// ErrUnreachable means that no route leads to an address.
var ErrUnreachable = errors.New("no route")

// RouteError is what went wrong with one route of a batch.
type RouteError struct {
	Op    string // "add", "replace" or "delete"
	Route routing.Route
	Err   error
}

// Error implements error.
func (e *RouteError) Error() string {
	return fmt.Sprintf("%s route %s: %v", e.Op, e.Route, e.Err)
}

// Unwrap returns the cause: ErrForeign or the kernel's errno.
func (e *RouteError) Unwrap() error { return e.Err }

// kernel is the routes of a network namespace as far as a Table needs them: the
// real ones or a Fake's. All methods but hear and interrupt are called one at a
// time.
type kernel interface {
	// write makes the changes in order and reports those that are refused.
	// Deleting a route that is not there is none of them.
	write(changes []change, refused func(i int, err error))
	// dump reads a protocol's routes.
	dump(ctx context.Context, protocol uint8) ([]routing.Route, error)
	// resolve is how packets to addr go, and the source address that they get.
	resolve(ctx context.Context, addr netip.Addr) (hop routing.NextHop, source netip.Addr, err error)
	// elsewhere reads this protocol's routes in other tables, by table.
	elsewhere(ctx context.Context) (map[uint32][]routing.Route, error)
	// purge deletes routes of this protocol from another table.
	purge(table uint32, keys []key)
	// rules makes the rules marked with this protocol what is wanted.
	rules(ctx context.Context, wanted []rule) error
	// neighbours makes the permanent entries of a tunnel's device what is wanted.
	neighbours(ctx context.Context, link string, wanted []routing.Neighbour) error
	// objects reads this protocol's next-hop objects, putObject and deleteObject change
	// one: a new one is refused with EEXIST if its ID is taken, by whomever.
	objects(ctx context.Context) ([]object, error)
	putObject(o object, replace bool) error
	deleteObject(id uint32) error
	// resilient fails where groups cannot be.
	resilient(ctx context.Context) error
	// listen makes hear hear, from now on and anew after something was lost.
	listen(ctx context.Context, ignore Ignore) error
	// hear waits until something happened, until a time (zero: for ever), or for
	// interrupt.
	hear(until time.Time) (heard, error)
	interrupt()
	close() error
}

// change is one change of one route.
type change struct {
	op     op
	key    key
	action *action // nil: delete
}

type op uint8

const (
	opAdd     op = iota // refused with EEXIST if prefix and metric are taken, by whomever
	opReplace           // takes the place of whatever is there
	opDelete            // of this protocol only
)

func (o op) String() string { return [...]string{"add", "replace", "delete"}[o] }

// Table is the routes of one protocol number in one table of the kernel. It is safe for
// concurrent use.
type Table struct {
	protocol uint8
	log      *slog.Logger

	mu     sync.Mutex // guards what follows and orders writes
	kernel kernel
	wanted wanted
	// failed are the routes that are not in the kernel although they are wanted,
	// and those that are not wanted and could not be deleted.
	failed     map[key]retry
	objects    objects
	rules      rules
	neighbours neighbours
	// watching: what is wanted and has not failed is in the kernel, or about to
	// be put back.
	watching bool
}

// Config says which routes a Table has and how it writes them.
type Config struct {
	Protocol int
	// Number is the table that the routes are in; 0: the main one. Another one is led to
	// by rules, see Gather.
	Number int
	// Defaults has a default route in another table than the main one used where that has
	// none; else it is not used.
	Defaults bool
	// Anywhere reads the routes of every table: it is for a Table that only reads what
	// another program is moving.
	Anywhere bool
	// Groups has routes to several next hops, and those many of which have one next hop,
	// name an object of the kernel where it has these.
	Groups bool
	// Resilient has the flows over the next hops that stay not move when others come and
	// go; needs Groups.
	Resilient bool
}

// Open returns the table of the calling thread's network namespace.
func Open(c Config, log *slog.Logger) (*Table, error) {
	if c.Protocol < 5 || c.Protocol > 255 {
		return nil, fmt.Errorf("open routes of protocol %d: not between 5 and 255", c.Protocol)
	}
	k, err := openKernel(c)
	if err != nil {
		return nil, err
	}
	return newTable(c, k, log), nil
}

func newTable(c Config, k kernel, log *slog.Logger) *Table {
	t := &Table{protocol: uint8(c.Protocol), log: log, kernel: k, failed: map[key]retry{}, rules: rules{wanted: rulesOf(c)}}
	t.objects = objects{protocol: t.protocol, resilient: c.Resilient, hops: map[routing.NextHop]uint32{}}
	groups := c.Groups
	if groups {
		if _, err := t.readObjects(context.Background()); err != nil {
			log.Info("routes have their next hops themselves", "error", err)
			groups = false
		}
	}
	if c.Resilient && groups {
		if err := k.resilient(context.Background()); err != nil {
			log.Warn("groups of next hops are not resilient: this kernel has none that are", "error", err)
			t.objects.resilient = false
		}
	}
	t.wanted = newWanted(groups)
	return t
}

// Close releases the sockets and ends Watch; the routes stay.
func (t *Table) Close() error { return t.kernel.close() }

// Routes returns the kernel's routes of this protocol, sorted; the kernel
// filters, so other protocols' routes cost nothing. Next hops may be shared and
// must not be changed.
func (t *Table) Routes(ctx context.Context) ([]routing.Route, error) {
	return t.read(ctx, t.protocol)
}

// Connected returns the routes the kernel itself made for the addresses of
// links: the connected subnets of both families, without link-local ones.
func (t *Table) Connected(ctx context.Context) ([]routing.Route, error) {
	return t.read(ctx, unix.RTPROT_KERNEL)
}

func (t *Table) read(ctx context.Context, protocol uint8) ([]routing.Route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	routes, err := t.kernel.dump(ctx, protocol)
	slices.SortFunc(routes, routing.Compare)
	return routes, err
}

// Resolve returns how the kernel reaches addr now: directly (Addr is addr) or
// through a gateway. ErrUnreachable wraps every other answer, an address of
// this machine included.
func (t *Table) Resolve(ctx context.Context, addr netip.Addr) (routing.NextHop, error) {
	hop, _, err := t.Reach(ctx, addr)
	return hop, err
}

// Reach is Resolve with the source address that the kernel would send to addr with; it
// is invalid where the kernel does not say.
func (t *Table) Reach(ctx context.Context, addr netip.Addr) (hop routing.NextHop, source netip.Addr, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kernel.resolve(ctx, addr.Unmap())
}

// Apply makes the changes, deletions first, and remembers them as wanted (see
// Watch). Each failed route is a *RouteError in the joined error and tried again
// by Watch; the others are applied. Deleting a route that is not there is no
// error, and while Watch runs a route that is wanted already costs nothing.
func (t *Table) Apply(ctx context.Context, c routing.Changes) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.writer(ctx)
	for _, r := range c.Delete {
		k := keyOf(r.Key())
		t.wanted.remove(k)
		w.add(change{op: opDelete, key: k})
	}
	w.flush()
	t.wanted.routes = routing.Fit(t.wanted.routes, &t.wanted.most)
	carries := t.carries(c.Put)
	joining := t.put(w, c.Put, carries)
	if len(carries) > 0 {
		w.flush()
		w.carry(carries)
		t.put(w, joining, nil)
	}
	return w.end()
}

// put makes routes wanted and writes them, but those that are carried; those that are
// to do what these will are left for later.
func (t *Table) put(w *writer, routes []routing.Route, carries map[*action]*carry) (joining []routing.Route) {
	targets := map[string]bool{}
	for _, c := range carries {
		targets[c.name] = true
	}
	for _, r := range routes {
		k := keyOf(r.Key())
		old := t.wanted.routes[k]
		_, failed := t.failed[k]
		there := t.watching && old != nil && !failed
		if len(carries) > 0 && targets[string(t.wanted.name(r))] {
			if c := carries[old]; c == nil || !there || string(t.wanted.name(r)) != c.name {
				joining = append(joining, r)
			}
			continue
		}
		a := t.wanted.put(r)
		switch {
		case !there:
			w.add(change{opAdd, k, a})
		case old != a:
			w.add(change{opReplace, k, a})
		}
	}
	return joining
}

// Adopt makes routes, which the kernel has already, all that is wanted, without
// writing them.
func (t *Table) Adopt(routes []routing.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = newWanted(t.wanted.groups)
	clear(t.failed)
	known := map[uint32]*action{}
	for _, r := range routes {
		if !t.wanted.groups || !ours(r.Object, t.protocol) {
			r.Object = 0
		}
		t.wanted.use(keyOf(r.Key()), t.wanted.adopted(r, known))
	}
	t.objects.doubt, t.objects.adopted = true, true
}

// Held counts the routes of this protocol that are wanted, by family, and those of them
// that are Missing.
func (t *Table) Held() (v4, v6, missing int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.wanted.routes {
		if k.prefix.Prefix().Addr().Is6() {
			v6++
		} else {
			v4++
		}
	}
	for k := range t.failed {
		if t.wanted.routes[k] != nil {
			missing++
		}
	}
	return v4, v6, missing
}

// Missing returns the wanted routes that are not in the kernel: refused by it,
// or lost with a link that is down. Sorted.
func (t *Table) Missing() []routing.Route {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []routing.Route
	for k := range t.failed {
		if a := t.wanted.routes[k]; a != nil {
			out = append(out, k.route(a))
		}
	}
	slices.SortFunc(out, routing.Compare)
	return out
}

// writer brings changes to the kernel in batches and books what became of them.
type writer struct {
	table  *Table
	ctx    context.Context
	now    time.Time
	timed  bool // these are attempts that were due
	batch  []change
	errors []error
	exist  []change // additions that found their place taken
	done   int
	// unready are actions whose object could not be made, and why.
	unready map[*action]error
}

func (t *Table) writer(ctx context.Context) *writer {
	return &writer{table: t, ctx: ctx, now: time.Now()}
}

func (w *writer) add(c change) {
	if err := w.ready(c.action); err != nil {
		w.refused(c, err)
		return
	}
	if w.batch = append(w.batch, c); len(w.batch) == batch {
		w.flush()
	}
}

// flush writes what was added.
func (w *writer) flush() {
	if len(w.batch) == 0 {
		return
	}
	t := w.table
	refused := map[int]error{}
	if err := w.ctx.Err(); err != nil {
		for i := range w.batch {
			refused[i] = err
		}
	} else {
		t.kernel.write(w.batch, func(i int, err error) { refused[i] = err })
	}
	var sourceless []change
	for i, c := range w.batch {
		err := refused[i]
		switch {
		case errors.Is(err, unix.EINVAL) && c.action != nil && c.action.from().IsValid():
			sourceless = append(sourceless, c)
		case err == nil:
			w.done++
			delete(t.failed, c.key)
		case c.op == opAdd && errors.Is(err, unix.EEXIST):
			w.exist = append(w.exist, c)
		default:
			w.refused(c, err)
		}
	}
	w.batch = w.batch[:0]
	w.unsourced(sourceless)
}

// end writes the rest and returns the *RouteErrors, joined.
func (w *writer) end() error {
	w.flush()
	if len(w.exist) > 0 {
		w.replace()
	}
	if len(w.errors) > 0 {
		w.table.kernel.interrupt() // Watch waits for their due times
	}
	w.table.collect()
	return errors.Join(w.errors...)
}

// replace has the routes that are in the way of additions replaced if they are of
// this protocol. Additions are exclusive because the kernel's replace takes
// whatever route of that prefix and metric comes first, whoever wrote it.
func (w *writer) replace() {
	t := w.table
	have, err := t.kernel.dump(w.ctx, t.protocol)
	if err != nil {
		for _, c := range w.exist {
			w.refused(c, err)
		}
		return
	}
	ours := make(map[key]routing.Route, len(have))
	for _, r := range have {
		ours[keyOf(r.Key())] = r
	}
	for _, c := range w.exist {
		old, ok := ours[c.key]
		switch {
		case !ok:
			w.refused(c, ErrForeign)
		case old.Equal(c.key.route(c.action)) && c.action.names(old):
			w.done++
			delete(t.failed, c.key)
		default:
			w.add(change{opReplace, c.key, c.action})
		}
	}
	w.flush()
}

// refused books a change that was not made.
func (w *writer) refused(c change, err error) {
	t := w.table
	w.errors = append(w.errors, &RouteError{c.op.String(), c.key.route(c.action), err})
	r := t.failed[c.key]
	if w.timed || r.due.IsZero() {
		r = r.next(w.now)
	}
	if c.action != nil && c.action.group != nil {
		t.objects.doubt = true
	}
	t.failed[c.key] = r
}

// retry is when a failed change is tried again, and how long that was waited for.
type retry struct {
	due  time.Time // zero: when what it depends on changes
	wait time.Duration
}

// A change is tried again after retryFirst, then after twice as long each time,
// up to retryLast.
const (
	retryFirst = time.Second
	retryLast  = 30 * time.Second
)

func (r retry) next(now time.Time) retry {
	wait := min(max(2*r.wait, retryFirst), retryLast)
	return retry{now.Add(wait), wait}
}
