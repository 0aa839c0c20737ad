package fib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// Fake is a kernel for tests: it keeps the routes of every protocol and prints
// them as `ip route` does. Its Tables are real ones. Safe for concurrent use.
type Fake struct {
	mu      sync.Mutex
	routes  map[routing.Key]fakeRoute
	down    map[string]bool
	tables  []*fakeKernel
	refuse  func(op string, r routing.Route) error
	unheard bool
	// neighbours are of the tunnels' devices, by name.
	neighbours map[string][]routing.Neighbour
	objects    map[uint32]object
	messages   int
	addresses  map[netip.Addr]bool // of the machine; nil: whatever one asks for
}

type fakeRoute struct {
	protocol int
	route    routing.Route
}

// NewFake returns a kernel without routes in which every link is up.
func NewFake() *Fake {
	return &Fake{routes: map[routing.Key]fakeRoute{}, down: map[string]bool{}, neighbours: map[string][]routing.Neighbour{}, objects: map[uint32]object{}}
}

// Table returns the table of a protocol. Unlike the real kernel the Fake takes any
// name for a link.
func (f *Fake) Table(protocol int) *Table { return f.Open(Config{Protocol: protocol}) }

// Open is Table with more to say.
func (f *Fake) Open(c Config) *Table {
	k := &fakeKernel{fake: f, protocol: c.Protocol, poke: make(chan struct{}, 1)}
	f.mu.Lock()
	f.tables = append(f.tables, k)
	f.mu.Unlock()
	return newTable(c, k, slog.New(slog.DiscardHandler))
}

// Messages is how many changes of routes and objects were written since it was asked.
func (f *Fake) Messages() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.messages
	f.messages = 0
	return n
}

// Fail has every write of a Table asked about first: an error refuses it. The
// operations are those of RouteError. nil ends it.
func (f *Fake) Fail(refuse func(op string, r routing.Route) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = refuse
}

// Unheard runs fn; no Watch hears of what that changes in the Fake.
func (f *Fake) Unheard(fn func()) {
	set := func(on bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.unheard = on
	}
	set(true)
	defer set(false)
	fn()
}

// Put adds a route as another program or the kernel would.
func (f *Fake) Put(protocol int, r routing.Route) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routes[r.Key()] = fakeRoute{protocol, r}
	f.tell(nil, protocol, Change{Route: r})
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
	f.tell(nil, old.protocol, Change{old.route, true})
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
		delete(f.neighbours, name)
		for id, o := range f.objects {
			if o.hop.Link == name && len(o.members) == 0 {
				f.remove(id)
			}
		}
		for k, r := range f.routes {
			if r.route.Object == 0 && slices.ContainsFunc(r.route.NextHops, func(h routing.NextHop) bool { return h.Link == name }) {
				delete(f.routes, k)
			}
		}
	}
	for _, k := range f.tables {
		k.tell(func(h *heard) {
			switch {
			case k.ignore.link(name):
			case up:
				h.up = append(h.up, name)
			default:
				h.down = append(h.down, name)
			}
		})
	}
}

// Address gives the machine an address, or takes it away, with the IPv4 routes that have
// it as source and the source of the IPv6 ones. Before the first call it has all.
func (f *Fake) Address(a netip.Addr, there bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.addresses == nil {
		f.addresses = map[netip.Addr]bool{}
	}
	if f.addresses[a] = there; !there {
		for k, r := range f.routes {
			switch {
			case r.route.Source != a:
			case a.Is4():
				delete(f.routes, k)
			default:
				r.route.Source = netip.Addr{}
				f.routes[k] = r
			}
		}
	}
	for _, k := range f.tables {
		k.tell(func(h *heard) { h.addresses = append(h.addresses, a) })
	}
}

// Flush deletes every next-hop object, as another program would.
func (f *Fake) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(f.objects)) {
		f.remove(id)
	}
	for _, k := range f.tables {
		k.tell(func(h *heard) { h.objects = true })
	}
}

// remove takes an object out of the groups that have it, and away with the routes that
// name it.
func (f *Fake) remove(id uint32) {
	delete(f.objects, id)
	for gid, g := range f.objects {
		if i := slices.Index(g.members, id); i >= 0 {
			if g.members = slices.Delete(slices.Clone(g.members), i, i+1); len(g.members) == 0 {
				f.remove(gid)
			} else {
				f.objects[gid] = g
			}
		}
	}
	for k, r := range f.routes {
		if r.route.Object == id {
			delete(f.routes, k)
		}
	}
}

// whole is a route with the next hops of the object that it names.
func (f *Fake) whole(r routing.Route) routing.Route {
	if r.Object != 0 {
		r.NextHops = nil
		for _, id := range f.objects[r.Object].members {
			r.NextHops = append(r.NextHops, f.objects[id].hop)
		}
		r.NextHops = order(r.NextHops)
	}
	return r
}

func (k *fakeKernel) objects(context.Context) ([]object, error) {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	var out []object
	for id, o := range k.fake.objects {
		if ours(id, uint8(k.protocol)) {
			out = append(out, o)
		}
	}
	return out, nil
}

func (k *fakeKernel) elsewhere(context.Context) (map[uint32][]routing.Route, error) { return nil, nil }
func (k *fakeKernel) purge(uint32, []key)                                           {}

func (k *fakeKernel) rules(context.Context, []rule) error { return nil }

func (k *fakeKernel) resilient(context.Context) error { return nil }

func (k *fakeKernel) putObject(o object, replace bool) error {
	f := k.fake
	f.mu.Lock()
	defer f.mu.Unlock()
	f.messages++
	_, exists := f.objects[o.id]
	switch {
	case exists && !replace:
		return unix.EEXIST
	case len(o.members) == 0 && f.down[o.hop.Link]:
		return unix.ENETDOWN
	}
	for _, id := range o.members {
		if _, ok := f.objects[id]; !ok {
			return unix.EINVAL
		}
	}
	f.objects[o.id] = o
	return nil
}

func (k *fakeKernel) deleteObject(id uint32) error {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	k.fake.messages++
	k.fake.remove(id)
	return nil
}

// tell notifies every table but the one that made the change.
func (f *Fake) tell(by *fakeKernel, protocol int, c Change) {
	p := c.Route.Prefix
	for _, k := range f.tables {
		if k == by {
			continue
		}
		k.tell(func(h *heard) {
			switch {
			case k.protocol == protocol:
				h.changes = append(h.changes, c)
			case k.ignore.Foreign || slices.Contains(k.ignore.Protocols, protocol):
				return
			case foreign(p):
				h.foreign = append(h.foreign, p)
			}
			h.touched = append(h.touched, keyOf(c.Route.Key()))
		})
	}
}

// fakeKernel is the Fake as one Table sees it; the Fake's lock guards it.
type fakeKernel struct {
	fake      *Fake
	protocol  int
	ignore    Ignore
	listening bool
	heard     heard
	poke      chan struct{}
}

func (k *fakeKernel) tell(add func(*heard)) {
	if k.listening && !k.fake.unheard {
		add(&k.heard)
		k.interrupt()
	}
}

func (k *fakeKernel) interrupt() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

func (k *fakeKernel) listen(_ context.Context, ignore Ignore) error {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	k.ignore, k.listening = ignore, true
	return nil
}

func (k *fakeKernel) hear(until time.Time) (heard, error) {
	var due <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-k.poke:
	case <-due:
	}
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	h := k.heard
	k.heard = heard{}
	return h, nil
}

func (k *fakeKernel) close() error { return nil }

func (k *fakeKernel) neighbours(_ context.Context, link string, wanted []routing.Neighbour) error {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	if k.fake.down[link] {
		return unix.ENODEV
	}
	k.fake.neighbours[link] = wanted
	return nil
}

// Neighbours are those of a tunnel's device.
func (f *Fake) Neighbours(link string) []routing.Neighbour {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.neighbours[link]
}

func (k *fakeKernel) dump(_ context.Context, protocol uint8) ([]routing.Route, error) {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	var out []routing.Route
	for _, r := range k.fake.routes {
		if r.protocol == int(protocol) {
			out = append(out, k.fake.whole(r.route))
		}
	}
	return out, nil
}

func (k *fakeKernel) write(changes []change, refused func(int, error)) {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	for i, c := range changes {
		k.fake.messages++
		r := c.key.route(c.action)
		r.Object = c.action.id()
		if err := k.apply(c.op, r); err != nil {
			refused(i, err)
		}
	}
}

func (k *fakeKernel) apply(op op, r routing.Route) error {
	f := k.fake
	if f.refuse != nil {
		if err := f.refuse(op.String(), r); err != nil {
			return err
		}
	}
	old, exists := f.routes[r.Key()]
	if op == opDelete {
		if exists && old.protocol == k.protocol {
			delete(f.routes, r.Key())
			f.tell(k, k.protocol, Change{old.route, true})
		}
		return nil
	}
	if r.Source.IsValid() && f.addresses != nil && !f.addresses[r.Source] {
		return unix.EINVAL
	}
	if op == opAdd && exists {
		return unix.EEXIST
	}
	if r.Type == routing.Unicast && len(r.NextHops) == 0 {
		return errors.New("no next hop")
	}
	if r.Object != 0 {
		if _, ok := f.objects[r.Object]; !ok {
			return unix.EINVAL
		}
		r.NextHops = nil
	}
	for _, h := range r.NextHops {
		if f.down[h.Link] {
			return unix.ENETDOWN
		}
	}
	f.routes[r.Key()] = fakeRoute{k.protocol, r}
	f.tell(k, k.protocol, Change{Route: r})
	return nil
}

// resolve has the longest prefix of any protocol decide.
func (k *fakeKernel) resolve(_ context.Context, addr netip.Addr) (hop routing.NextHop, source netip.Addr, err error) {
	k.fake.mu.Lock()
	defer k.fake.mu.Unlock()
	best := -1
	for _, r := range k.fake.routes {
		r.route = k.fake.whole(r.route)
		if r.route.Prefix.Contains(addr) && r.route.Prefix.Bits() > best && len(r.route.NextHops) > 0 {
			best, hop, source = r.route.Prefix.Bits(), r.route.NextHops[0], r.route.Source
		}
	}
	if best < 0 {
		return hop, source, fmt.Errorf("resolve %s: %w", addr, ErrUnreachable)
	}
	if !hop.Addr.IsValid() {
		hop.Addr = addr
	}
	return hop, source, nil
}

// String prints every route as `ip route` and `ip -6 route` do, IPv4 first.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var routes []fakeRoute
	for _, r := range f.routes {
		routes = append(routes, fakeRoute{r.protocol, f.whole(r.route)})
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
	text := strings.TrimRight(head.String(), " ")
	if r.Object != 0 {
		text = strings.Replace(text, destination(r.Prefix), fmt.Sprintf("%s nhid %d", destination(r.Prefix), r.Object), 1)
	}
	b.WriteString(text + " proto " + routing.ProtocolName(protocol))
	if !v6 && hop.Link != "" && !hop.Addr.IsValid() {
		b.WriteString(" scope link")
	}
	if r.Source.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Source)
	}
	if metric != 0 {
		fmt.Fprintf(&b, " metric %d", metric)
	}
	if hop.Onlink {
		b.WriteString(" onlink")
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	if v6 {
		b.WriteString(" pref medium")
	}
	if len(r.NextHops) > 1 {
		for _, h := range slices.SortedFunc(slices.Values(r.NextHops), routing.CompareNextHops) {
			fmt.Fprintf(&b, "\n\tnexthop %s weight 1", h.Of(r.Prefix))
		}
	}
	return b.String()
}

// destination is what `ip route` prints of a prefix.
func destination(p netip.Prefix) string {
	return strings.TrimSpace(routing.Route{Prefix: p}.String())
}
