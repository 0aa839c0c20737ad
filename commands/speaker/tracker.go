package speaker

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"netctl/routing"
)

// tracker knows how the kernel reaches the BGP next hops that peers announced. The
// kernel is asked once for each, and again when a route changed that may lead there.
// Safe for concurrent use.
type tracker struct {
	ctx       context.Context // of the role: the engine's hook has none
	table     table
	endpoints func(link string) bool // says which links are endpoints'
	log       *slog.Logger

	mu  sync.Mutex
	via map[netip.Addr]reach
}

// reach is how the kernel reaches a next hop, and the address that it sends there with,
// as far as it says. Link "": nothing leads there.
type reach struct {
	routing.NextHop
	source netip.Addr
}

func newTracker(ctx context.Context, t table, endpoints func(link string) bool, log *slog.Logger) *tracker {
	return &tracker{ctx: ctx, table: t, endpoints: endpoints, log: log, via: map[netip.Addr]reach{}}
}

// mostTracked is far more than the next hops of a mesh; it bounds what is
// remembered.
const mostTracked = 10_000

// check says whether a is used as a next hop, and if not, why: none is behind an
// endpoint of this host.
func (t *tracker) check(a netip.Addr) (ok bool, reason string) {
	via, ok := t.resolve(a)
	switch {
	case !ok:
		return false, fmt.Sprintf("there are more than %d next hops", mostTracked)
	case t.endpoints(via.Link):
		return false, fmt.Sprintf("its next hop %s is behind the endpoint interface %s", a, via.Link)
	}
	return true, ""
}

// resolve is how the kernel reaches a; Link is "" if it does not. One of a link needs no
// asking. false: too many next hops are known already.
func (t *tracker) resolve(a netip.Addr) (via reach, ok bool) {
	if link := a.Zone(); link != "" {
		return reach{NextHop: routing.NextHop{Addr: a.WithZone(""), Link: link}}, true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	via, ok = t.via[a]
	if ok {
		return via, true
	}
	if len(t.via) >= mostTracked {
		return via, false
	}
	via = t.ask(a)
	t.via[a] = via
	return via, true
}

// reached says whether something leads to a.
func (t *tracker) reached(a netip.Addr) bool {
	via, _ := t.resolve(a)
	return via.Link != ""
}

func (t *tracker) ask(a netip.Addr) reach {
	via, source, err := t.table.Reach(t.ctx, a)
	if err != nil {
		t.log.Debug("next hop unreachable", "nexthop", a, "error", err)
		return reach{}
	}
	return reach{via, source}
}

// recheck asks again for the next hops that lie in one of the prefixes, with all for
// every one, and says whether any is reached otherwise now, and whether one came to
// be, or is no longer, behind an endpoint.
func (t *tracker) recheck(prefixes []netip.Prefix, all bool) (moved, behind bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if all && len(t.via) >= mostTracked {
		clear(t.via) // who is used is asked for again
		return true, true
	}
	for a, was := range t.via {
		if !all && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			continue
		}
		now := t.ask(a)
		if now == was {
			continue
		}
		t.via[a], moved = now, true
		behind = behind || t.endpoints(now.Link) != t.endpoints(was.Link)
	}
	return moved, behind
}
