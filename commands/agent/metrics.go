package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/netdev/kernel"
)

// meters count what the agent is asked and asks.
type meters struct {
	attaches, detaches callMeter
	requests           telemetry.Requests
}

// callMeter counts calls of one sort.
type callMeter struct {
	done   telemetry.Histogram
	failed telemetry.Counter // by control's code
}

func (m *callMeter) took(began time.Time, err error) {
	if e := control.ErrorOf(err); e != nil {
		m.failed.Add(e.Code, 1)
		return
	}
	m.done.Observe(time.Since(began))
}

// tablesSeen is what room saw last.
type tablesSeen struct {
	neighbours    []kernel.NeighbourTable
	tracked, most int
}

func (c *Config) telemetry() telemetry.Config {
	return telemetry.Config{
		Role: "agent", Node: c.Node, Version: c.Version, StateDir: c.StateDir, RunDir: c.RunDir, Listen: c.Metrics,
		Certificates: map[string]string{"client": c.Store.Cert},
	}
}

// alive waits for a turn of the loop.
func (a *agent) alive(ctx context.Context) error { return a.loop.do(ctx, func() { a.loop.idle++ }) }

// ready says why endpoints cannot be attached, or the kernel is not what it should be.
func (a *agent) ready(ctx context.Context) (why error) {
	err := a.loop.do(ctx, func() {
		l := a.loop
		l.idle++
		switch {
		case l.standing.stage != ready:
			if why = l.standing.why(); why == nil {
				why = errors.New("the agent starts and has not heard all of the datastore yet")
			}
		case !l.inSync():
			why = fmt.Errorf("the kernel is not what it should be: %w", errors.Join(l.filtering.err, l.table.err))
		}
	})
	return errors.Join(err, why)
}

// collect puts the agent's metrics on a page.
func (a *agent) collect(ctx context.Context, o outside, p *telemetry.Page) error {
	p.Durations("netctl_attach_seconds", &a.meters.attaches.done)
	p.Counts("netctl_attach_errors_total", &a.meters.attaches.failed)
	p.Durations("netctl_detach_seconds", &a.meters.detaches.done)
	p.Counts("netctl_detach_errors_total", &a.meters.detaches.failed)
	a.meters.requests.Put(p)
	var denied error
	if o.denied != nil {
		var packets map[string]uint64
		packets, denied = o.denied(ctx)
		for rule, n := range packets {
			p.Put("netctl_packets_denied_total", float64(n), rule)
		}
	}
	return errors.Join(denied, a.loop.do(ctx, func() {
		a.loop.idle++
		a.loop.measure(p)
	}))
}

// measure puts what the loop owns on a page.
func (l *loop) measure(p *telemetry.Page) {
	there := l.standing.stage == joining || l.standing.stage == ready
	p.Flag("netctl_datastore_up", there)
	gone := 0.0
	if s := l.standing; s.stage == away || s.stage == detached {
		gone = time.Since(s.since).Seconds()
	}
	p.Put("netctl_datastore_away_seconds", gone)
	p.Put("netctl_datastore_revision", float64(l.view.Revision()))
	l.measureEndpoints(p)
	l.measureAddresses(p)
	p.Put("netctl_flows_cut_total", float64(l.flows.cuts.Load()))
	refused := 0
	if l.filtering.refused != nil {
		refused = len(l.filtering.refused.Refusals)
	}
	p.Put("netctl_packet_filter_refused", float64(refused))
	v6 := 0
	for k := range l.table.present {
		if k.Prefix.Addr().Is6() {
			v6++
		}
	}
	p.Put("netctl_routes", float64(len(l.table.present)-v6), "ipv4")
	p.Put("netctl_routes", float64(v6), "ipv6")
	p.Put("netctl_routes_missing", float64(len(l.table.missing)))
	unread, _ := l.view.ProblemsOf(l.cfg.Node)
	kinds := map[string]int{"datastore": len(unread)}
	for what := range l.problems.text {
		kinds[problemKind(what)]++
	}
	known := 0
	for _, n := range kinds {
		known += n
	}
	kinds["other"] += len(l.problemList()) - known
	for kind, n := range kinds {
		p.Put("netctl_problems", float64(n), kind)
	}
	for _, t := range l.tables.neighbours {
		p.Put("netctl_neighbours", float64(t.Entries), t.Name)
		p.Put("netctl_neighbours_limit", float64(t.Most), t.Name)
		p.Put("netctl_neighbours_refused_total", float64(t.Refused), t.Name)
	}
	if l.tables.most > 0 {
		p.Put("netctl_conntrack_entries", float64(l.tables.tracked))
		p.Put("netctl_conntrack_limit", float64(l.tables.most))
	}
}

func (l *loop) measureEndpoints(p *telemetry.Page) {
	states := map[string]int{"programmed": 0, "pending": 0, "lost": 0}
	for _, lo := range l.locals.named {
		switch {
		case lo.ep == nil:
		case !lo.lost.IsZero():
			states["lost"]++
		case l.programmed(lo) != nil:
			states["pending"]++
		default:
			states["programmed"]++
		}
	}
	for state, n := range states {
		p.Put("netctl_endpoints", float64(n), state)
	}
}

// measureAddresses puts how full this node's blocks are, by pool.
func (l *loop) measureAddresses(p *telemetry.Page) {
	type use struct{ blocks, size, used int }
	uses := map[netip.Prefix]*use{}
	var pools []netip.Prefix
	for _, pool := range l.view.Pools() {
		cidr := pool.Spec.CIDR
		pools, uses[cidr] = append(pools, cidr), &use{}
		p.Put("netctl_pool_addresses", math.Exp2(float64(cidr.Addr().BitLen()-cidr.Bits())), cidr.String())
	}
	for _, b := range l.view.BlocksOf(l.cfg.Node) {
		for _, cidr := range pools {
			if cidr.Contains(b.Spec.CIDR.Addr()) {
				u := uses[cidr]
				u.blocks, u.size, u.used = u.blocks+1, u.size+b.Size(), u.used+len(b.Spec.Allocations)
			}
		}
	}
	for _, cidr := range pools {
		u := uses[cidr]
		p.Put("netctl_blocks", float64(u.blocks), cidr.String())
		p.Put("netctl_block_addresses", float64(u.size), cidr.String())
		p.Put("netctl_block_addresses_used", float64(u.used), cidr.String())
	}
}

// problemKind is one of few for what is wrong.
func problemKind(what string) string {
	word, _, _ := strings.Cut(what, " ")
	switch strings.ToLower(word) {
	case "acl", "packet":
		return "packet filter"
	case "iptables":
		return "iptables"
	case "routes":
		return "routes"
	case "link", "links", "endpoint", "restore":
		return "endpoint"
	case "tunnel", "tunnels", "wireguard":
		return "tunnel"
	case "address", "addresses", "gateway", "ipv4", "ipv6":
		if strings.Contains(what, "forwarding") {
			return "setting"
		}
		return "address"
	case "pool", "block":
		return "pool"
	case "connection", "arp_cache", "ndisc_cache":
		return "table full"
	case "return":
		return "return path"
	case "pending":
		return "detach"
	}
	return "other"
}
