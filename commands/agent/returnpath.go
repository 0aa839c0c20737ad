package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"netctl/netdev/kernel"
)

// pathRest is how long it is said that packets were dropped for the way back to their
// sender, after the last one: who was cut off may try again from time to time only.
const pathRest = 5 * time.Minute

// returnPath is what the kernel's own judgement of senders (rp_filter) costs. It is not
// changed but on tunnels: where it is strict on purpose, and packets go the way they came,
// it does no harm.
type returnPath struct {
	known   bool
	dropped uint64
	before  uint64    // what was dropped before that began
	last    time.Time // when a packet was dropped
}

// seen takes what was read, and returns what is wrong with it.
func (r *returnPath) seen(p kernel.ReturnPath, now time.Time) string {
	switch {
	case !r.known || p.Dropped < r.dropped:
		r.known, r.before = true, p.Dropped
	case p.Dropped > r.dropped:
		r.last = now
	}
	r.dropped = p.Dropped
	if len(p.Strict) == 0 || now.Sub(r.last) >= pathRest {
		r.before, r.last = p.Dropped, time.Time{}
		return ""
	}
	var settings []string
	for _, of := range p.Strict {
		settings = append(settings, "net.ipv4.conf."+of+".rp_filter=2")
	}
	return fmt.Sprintf("the kernel dropped %d packets since it would answer their senders by another interface (rp_filter is strict): if other nodes or endpoints sent them, `sysctl -w %s`",
		p.Dropped-r.before, strings.Join(settings, " "))
}

// incoming are the names of the interfaces that packets from other nodes come in by.
func (l *loop) incoming() (names []string) {
	for _, name := range l.forwarding.names {
		names = append(names, name)
	}
	for _, t := range l.tunnels.there {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
