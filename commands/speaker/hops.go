package speaker

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
)

// hops judges the next hops that peers announce: none is behind an endpoint of
// this host. The kernel is asked once for each; recheck asks again. Safe for
// concurrent use.
type hops struct {
	ctx    context.Context // of the role: the engine's hook has none
	table  table
	prefix string // of endpoints' links

	mu    sync.Mutex
	known map[netip.Addr]string // to the endpoint's link; "": not behind one
}

func newHops(ctx context.Context, t table, prefix string) *hops {
	return &hops{ctx: ctx, table: t, prefix: prefix, known: map[netip.Addr]string{}}
}

// mostHops is far more than the next hops of a mesh; it bounds what is remembered.
const mostHops = 10_000

// check says whether a is used as a next hop, and if not, why.
func (h *hops) check(a netip.Addr) (ok bool, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	link, known := h.known[a]
	if !known {
		if len(h.known) >= mostHops {
			return false, fmt.Sprintf("there are more than %d next hops", mostHops)
		}
		link = h.behind(a)
		h.known[a] = link
	}
	if link != "" {
		return false, fmt.Sprintf("its next hop %s is behind the endpoint interface %s", a, link)
	}
	return true, ""
}

// recheck asks the kernel again and says whether an answer may have changed.
func (h *hops) recheck() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= mostHops {
		clear(h.known)
		return true
	}
	changed := false
	for a, was := range h.known {
		if link := h.behind(a); link != was {
			h.known[a], changed = link, true
		}
	}
	return changed
}

// behind returns the endpoint's link that the kernel reaches a through.
func (h *hops) behind(a netip.Addr) string {
	via, err := h.table.Resolve(h.ctx, a)
	if err != nil || !strings.HasPrefix(via.Link, h.prefix) {
		return ""
	}
	return via.Link
}
