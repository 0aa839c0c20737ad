package fib

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/routing"
)

// eventBuffer is the receive buffer asked for notifications, in bytes; a burst
// beyond it is an overrun, which costs a full comparison but no correctness.
const eventBuffer = 4 << 20

// Event is what a burst of notifications amounts to. What this Table wrote
// itself is not in it.
type Event struct {
	// Lost says that anything may have happened: Watch began, or the kernel
	// dropped notifications. The other fields are then not complete.
	Lost bool
	// Changes are what happened to routes of this protocol, in order. Routes
	// that a link takes with it are not all announced: see Down.
	Changes []Change
	// Up and Down are links that came up, or went down or away.
	Up, Down []string
	// Foreign are the prefixes of routes of other protocols that came, changed
	// or went, in any table of the kernel: those of other programs, connected
	// subnets, and addresses of this machine. Link-local and multicast prefixes
	// are left out. A prefix may be there twice.
	Foreign []netip.Prefix
}

// Change is a route that came or changed, or went.
type Change struct {
	Route routing.Route
	Gone  bool
}

// Watch follows routes and links until ctx ends (then it returns nil) or the
// socket breaks. After each burst it first puts back wanted routes that were
// lost (a link that was down, another program), then calls fn; the first call
// has Lost set. A Table can be watched once.
func (t *Table) Watch(ctx context.Context, ignore Ignore, fn func(Event)) error {
	if err := attach(t.events, filter(t.protocol, t.port, ignore)); err != nil {
		return fmt.Errorf("watch routes: %w", err)
	}
	// A smaller buffer only makes overruns likelier, and those are handled.
	_ = t.events.SetReadBuffer(eventBuffer)
	for _, g := range []uint32{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE} {
		if err := t.events.JoinGroup(g); err != nil {
			return fmt.Errorf("watch routes: %w", errno(err))
		}
	}
	heard, end := t.listen()
	defer end()
	w := &watcher{table: t, ignore: ignore, links: map[uint32]linkState{}}
	defer w.done()
	if err := w.resync(ctx); err != nil {
		return err
	}
	fn(Event{Lost: true})
	for {
		var e Event
		var keys []routing.Key
		select {
		case <-ctx.Done():
			return nil
		case n := <-heard:
			for more := true; more; {
				if errors.Is(n.err, unix.ENOBUFS) {
					e.Lost = true
				} else if n.err != nil {
					return fmt.Errorf("watch routes: %w", errno(n.err))
				}
				keys = append(keys, w.read(n.msgs, &e)...)
				select {
				case n, more = <-heard:
				default:
					more = false
				}
			}
		}
		if e.Lost {
			if err := w.resync(ctx); err != nil {
				return err
			}
		} else {
			w.mend(ctx, e, keys)
		}
		if e.any() {
			fn(e)
		}
	}
}

// notice is what one read of the socket gave.
type notice struct {
	msgs []netlink.Message
	err  error
}

// listen reads notifications in a goroutine, so that Watch can take all there
// are at once. end closes the socket and waits for the goroutine.
func (t *Table) listen() (heard <-chan notice, end func()) {
	ch := make(chan notice, 256)
	done := make(chan struct{})
	go func() {
		defer close(ch)
		for {
			msgs, err := t.events.Receive()
			select {
			case ch <- notice{msgs, err}:
			case <-done:
				return
			}
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
		}
	}()
	return ch, func() {
		close(done)
		_ = t.events.Close() // ends Receive
		for range ch {       // until the reader is gone
		}
	}
}

func (e Event) any() bool {
	return e.Lost || len(e.Changes)+len(e.Foreign)+len(e.Up)+len(e.Down) > 0
}

// watcher is one Watch: the links' states as last heard.
type watcher struct {
	table  *Table
	ignore Ignore
	links  map[uint32]linkState
}

// done ends the watch: from now on Apply trusts the kernel only.
func (w *watcher) done() {
	w.table.mu.Lock()
	defer w.table.mu.Unlock()
	w.table.watching = false
}

// resync reads links and routes anew and puts back what is wanted and not there.
func (w *watcher) resync(ctx context.Context) error {
	t := w.table
	t.mu.Lock()
	defer t.mu.Unlock()
	links, err := queryLinks(t.conn, netlink.Request|netlink.Dump, 0, netlink.NewAttributeEncoder())
	if err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	t.watching = true
	clear(w.links)
	for _, l := range links {
		w.links[l.index] = l
	}
	if len(t.wanted) == 0 {
		return nil
	}
	have, err := t.dump(ctx, t.protocol)
	if err != nil {
		return err
	}
	t.putBack(ctx, routing.Diff(slices.Collect(maps.Values(t.wanted)), have).Put)
	return nil
}

// read adds what the messages say to e and returns the keys of routes that may
// have been taken from this Table.
func (w *watcher) read(msgs []netlink.Message, e *Event) []routing.Key {
	t := w.table
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names.reset()
	var keys []routing.Key
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			w.link(m, e)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			rm, ok := parse(m.Data)
			if !ok {
				continue
			}
			if r, wanted := w.heard(rm, m.Header.Type == unix.RTM_DELROUTE, e); wanted {
				keys = append(keys, r)
			}
		}
	}
	return keys
}

// heard books one route notification; wanted says that the key is one of ours.
func (w *watcher) heard(m *rtnetlink.RouteMessage, gone bool, e *Event) (key routing.Key, wanted bool) {
	t := w.table
	own := m.Protocol == t.protocol
	if own && !inMain(m) {
		return key, false
	}
	r, ok := t.route(m)
	if !ok {
		return key, false
	}
	switch {
	case own:
		e.Changes = append(e.Changes, Change{r, gone})
	case foreign(r.Prefix):
		e.Foreign = append(e.Foreign, r.Prefix)
	}
	if !inMain(m) {
		return key, false
	}
	_, wanted = t.wanted[r.Key()]
	return r.Key(), wanted
}

func (w *watcher) link(m netlink.Message, e *Event) {
	l, ok := parseLink(m.Data)
	if !ok || w.ignore.link(l.name) {
		return
	}
	old, known := w.links[l.index]
	if m.Header.Type == unix.RTM_DELLINK {
		delete(w.links, l.index)
		l.up = false
	} else {
		w.links[l.index] = l
	}
	switch {
	case known && old.up && old.name != l.name:
		e.Down, e.Up = append(e.Down, old.name), append(e.Up, l.name)
	case l.up && !(known && old.up):
		e.Up = append(e.Up, l.name)
	case !l.up && known && old.up:
		e.Down = append(e.Down, l.name)
	}
}

// mend puts back the wanted routes that the event may have cost, and tries
// those again that the kernel refused when what it routes by has changed.
func (w *watcher) mend(ctx context.Context, e Event, keys []routing.Key) {
	t := w.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(e.Down) > 0 {
		for k, r := range t.wanted {
			if slices.ContainsFunc(r.NextHops, func(h routing.NextHop) bool { return slices.Contains(e.Down, h.Link) }) {
				t.missing[k] = true
			}
		}
	}
	if len(e.Foreign)+len(e.Up) > 0 {
		keys = slices.AppendSeq(keys, maps.Keys(t.missing))
	}
	var back []routing.Route
	seen := map[routing.Key]bool{}
	for _, k := range keys {
		if r, ok := t.wanted[k]; ok && !seen[k] {
			seen[k] = true
			back = append(back, r)
		}
	}
	t.putBack(ctx, back)
}

// putBack writes wanted routes again; those that fail stay missing.
func (t *Table) putBack(ctx context.Context, routes []routing.Route) {
	if len(routes) == 0 {
		return
	}
	slices.SortFunc(routes, routing.Compare)
	failed := t.put(ctx, routes)
	if done := len(routes) - len(failed); done > 0 {
		t.log.Info("routes put back", "routes", done)
	}
	for _, e := range failed {
		t.log.Debug("route not put back yet", "route", e.Route.String(), "error", e.Err)
	}
}

// Missing returns the wanted routes that are not in the kernel: refused by it,
// or lost with a link that is down. Sorted.
func (t *Table) Missing() []routing.Route {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []routing.Route
	for k := range t.missing {
		out = append(out, t.wanted[k])
	}
	slices.SortFunc(out, routing.Compare)
	return out
}
