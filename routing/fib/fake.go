package fib

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"netctl/routing"
)

// Fake is a kernel for tests: it keeps the routes of every protocol and prints
// them as `ip route` does. Its Table has the methods of the real one. Safe for
// concurrent use.
type Fake struct {
	mu     sync.Mutex
	routes map[routing.Key]fakeRoute
	down   map[string]bool
	tables []*FakeTable
}

type fakeRoute struct {
	protocol int
	route    routing.Route
}

// NewFake returns a kernel without routes in which every link is up.
func NewFake() *Fake {
	return &Fake{routes: map[routing.Key]fakeRoute{}, down: map[string]bool{}}
}

// FakeTable is the routes of one protocol in a Fake.
type FakeTable struct {
	fake     *Fake
	protocol int
	wanted   map[routing.Key]routing.Route
	watch    chan Event
	ignore   Ignore // of Watch
}

// Table returns the table of a protocol.
func (f *Fake) Table(protocol int) *FakeTable {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := &FakeTable{fake: f, protocol: protocol, wanted: map[routing.Key]routing.Route{}, watch: make(chan Event, 1024)}
	f.tables = append(f.tables, t)
	return t
}

// Put adds a route as another program or the kernel would.
func (f *Fake) Put(protocol int, r routing.Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes[r.Key()] = fakeRoute{protocol, r}
	f.tell(protocol, []Change{{Route: r}})
}

// Remove deletes a route as another program would.
func (f *Fake) Remove(r routing.Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, ok := f.routes[r.Key()]
	if !ok {
		return
	}
	delete(f.routes, r.Key())
	f.tell(old.protocol, []Change{{old.route, true}})
}

// Link takes a link down, with its routes, or up.
func (f *Fake) Link(name string, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down[name] == !up {
		return
	}
	f.down[name] = !up
	if !up {
		for k, r := range f.routes {
			if slices.ContainsFunc(r.route.NextHops, func(h routing.NextHop) bool { return h.Link == name }) {
				delete(f.routes, k)
			}
		}
	}
	for _, t := range f.tables {
		switch {
		case t.ignore.link(name):
		case up:
			t.notify(Event{Up: []string{name}})
		default:
			t.notify(Event{Down: []string{name}})
		}
	}
}

// tell notifies every table.
func (f *Fake) tell(protocol int, changes []Change) {
	for _, t := range f.tables {
		t.notify(eventFor(t, protocol, changes))
	}
}

func eventFor(t *FakeTable, protocol int, changes []Change) Event {
	if t.protocol == protocol {
		return Event{Changes: changes}
	}
	var e Event
	for _, c := range changes {
		if p := c.Route.Prefix; foreign(p) && !t.ignore.Foreign && !slices.Contains(t.ignore.Protocols, protocol) {
			e.Foreign = append(e.Foreign, p)
		}
	}
	return e
}

func (t *FakeTable) notify(e Event) {
	for _, r := range t.wanted {
		_ = t.put(r)
	}
	if !e.any() {
		return
	}
	select {
	case t.watch <- e:
	default: // nobody watches
	}
}

// Routes is Table.Routes.
func (t *FakeTable) Routes(context.Context) ([]routing.Route, error) {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	var out []routing.Route
	for _, r := range t.fake.routes {
		if r.protocol == t.protocol {
			out = append(out, r.route)
		}
	}
	slices.SortFunc(out, routing.Compare)
	return out, nil
}

// Connected is Table.Connected: the routes put under protocol 2.
func (t *FakeTable) Connected(ctx context.Context) ([]routing.Route, error) {
	return (&FakeTable{fake: t.fake, protocol: 2}).Routes(ctx)
}

// Apply is Table.Apply.
func (t *FakeTable) Apply(_ context.Context, c routing.Changes) error {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	var failed []*RouteError
	for _, r := range c.Delete {
		delete(t.wanted, r.Key())
		if t.fake.routes[r.Key()].protocol == t.protocol {
			delete(t.fake.routes, r.Key())
		}
	}
	for _, r := range c.Put {
		t.wanted[r.Key()] = r
		if err := t.put(r); err != nil {
			failed = append(failed, &RouteError{"add", r, err})
		}
	}
	var changes []Change
	for _, r := range c.Delete {
		changes = append(changes, Change{r, true})
	}
	for _, r := range c.Put {
		changes = append(changes, Change{Route: r})
	}
	for _, o := range t.fake.tables {
		if o != t {
			o.notify(eventFor(o, t.protocol, changes))
		}
	}
	return joined(failed)
}

func (t *FakeTable) put(r routing.Route) error {
	old, exists := t.fake.routes[r.Key()]
	if exists && old.protocol != t.protocol {
		return ErrForeign
	}
	for _, h := range r.NextHops {
		if t.fake.down[h.Link] {
			return fmt.Errorf("network is down")
		}
	}
	t.fake.routes[r.Key()] = fakeRoute{t.protocol, r}
	return nil
}

// Adopt is Table.Adopt.
func (t *FakeTable) Adopt(routes []routing.Route) {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	for _, r := range routes {
		t.wanted[r.Key()] = r
	}
}

// Watch is Table.Watch.
func (t *FakeTable) Watch(ctx context.Context, ignore Ignore, fn func(Event)) error {
	t.fake.mu.Lock()
	t.ignore = ignore
	t.fake.mu.Unlock()
	fn(Event{Lost: true})
	for {
		select {
		case <-ctx.Done(): // as its process ended: nothing is put back any more
			t.fake.mu.Lock()
			defer t.fake.mu.Unlock()
			clear(t.wanted)
			return nil
		case e := <-t.watch:
			fn(e)
		}
	}
}

// Resolve is Table.Resolve: the longest prefix of any protocol decides.
func (t *FakeTable) Resolve(_ context.Context, addr netip.Addr) (routing.NextHop, error) {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	best := -1
	var hop routing.NextHop
	for _, r := range t.fake.routes {
		if r.route.Prefix.Contains(addr) && r.route.Prefix.Bits() > best && len(r.route.NextHops) > 0 {
			best, hop = r.route.Prefix.Bits(), r.route.NextHops[0]
		}
	}
	if best < 0 {
		return routing.NextHop{}, fmt.Errorf("resolve %s: %w", addr, ErrUnreachable)
	}
	if !hop.Addr.IsValid() {
		hop.Addr = addr
	}
	return hop, nil
}

// String prints every route as `ip route` and `ip -6 route` do, IPv4 first.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var routes []fakeRoute
	for _, r := range f.routes {
		routes = append(routes, r)
	}
	slices.SortFunc(routes, func(a, b fakeRoute) int { return routing.Compare(a.route, b.route) })
	var b strings.Builder
	for _, r := range routes {
		b.WriteString(Line(r.route, r.protocol) + "\n")
	}
	return b.String()
}

// Line prints a route as `ip route` does when it knows netctl's protocol names;
// each next hop of a multipath route is a line of its own.
func Line(r routing.Route, protocol int) string {
	single := r.NextHops
	if len(single) != 1 {
		single = []routing.NextHop{{}}
	}
	hop := single[0]
	var b strings.Builder
	head := routing.Route{Prefix: r.Prefix, Type: r.Type, NextHops: []routing.NextHop{{Addr: hop.Addr, Link: hop.Link}}}
	v6, metric := r.Prefix.Addr().Is6(), r.Metric
	if v6 && r.Type == routing.Blackhole {
		head.NextHops[0].Link = "lo"
	}
	if v6 && metric == 0 {
		metric = defaultMetric6
	}
	b.WriteString(strings.TrimRight(head.String(), " ") + " proto " + routing.ProtocolName(protocol))
	if !v6 && hop.Link != "" && !hop.Addr.IsValid() {
		b.WriteString(" scope link")
	}
	if metric != 0 {
		fmt.Fprintf(&b, " metric %d", metric)
	}
	if hop.Onlink {
		b.WriteString(" onlink")
	}
	if v6 {
		b.WriteString(" pref medium")
	}
	if len(r.NextHops) > 1 {
		for _, h := range slices.SortedFunc(slices.Values(r.NextHops), routing.CompareNextHops) {
			fmt.Fprintf(&b, "\n\tnexthop via %s dev %s weight 1", h.Addr, h.Link)
		}
	}
	return b.String()
}

// Missing is Table.Missing.
func (t *FakeTable) Missing() []routing.Route {
	t.fake.mu.Lock()
	defer t.fake.mu.Unlock()
	var out []routing.Route
	for k, r := range t.wanted {
		if have, ok := t.fake.routes[k]; !ok || have.protocol != t.protocol {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, routing.Compare)
	return out
}
