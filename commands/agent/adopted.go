package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// everything is what the adopter asks the kernel, whoever made it.
type everything interface {
	Interfaces() ([]kernel.Interface, error)
	MainRoutes() ([]kernel.Route, error)
}

// adopter makes endpoints of interfaces that others made (agent.adopt), for as long as each
// is up and has routes to single addresses, which are the endpoint's. It changes nothing of
// them. Run's goroutine owns it.
type adopter struct {
	loop    *loop
	kernel  everything
	service *workload.Service
	changed chan struct{} // holds one: interfaces, routes or what they may be adopted for

	seen map[string]found // what was adopted, by its interface
	said map[string]bool  // interfaces that are a problem
}

// found is an interface that may be adopted.
type found struct {
	index     int
	mtu       int // bytes
	network   string
	addresses []netip.Addr // one of each family at most, sorted
	strange   []netip.Addr // that are in no pool
	further   []netip.Addr // of a family that has one
}

func (f found) equal(o found) bool {
	return f.index == o.index && f.network == o.network && slices.Equal(f.addresses, o.addresses)
}

// adoptPause keeps bursts of changes cheap, adoptAgain is when what was refused is tried again.
const (
	adoptPause = 50 * time.Millisecond
	adoptAgain = time.Second
)

// Run adopts and gives up until ctx ends.
func (a *adopter) Run(ctx context.Context) error {
	for wait := adoptPause; ; wait = adoptPause {
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed:
		}
		err := a.loop.gate(ctx) // meanwhile what is adopted stays
		if err == nil {
			err = a.look(ctx)
		}
		if err != nil {
			wait = adoptAgain
			poke(a.changed)
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// look compares the interfaces with the endpoints. What an error says was noted.
func (a *adopter) look(ctx context.Context) error {
	want, problems, err := a.find(ctx)
	if err != nil {
		a.loop.log.Warn("interfaces to adopt not read", "error", err)
		return err
	}
	var have []*datastore.Endpoint
	if err := a.loop.do(ctx, func() {
		for _, ep := range a.loop.view.EndpointsOf(a.loop.cfg.Node) {
			if ep.Spec.Orchestrator == datastore.OrchestratorAdopted {
				have = append(have, ep)
			}
		}
	}); err != nil {
		return err
	}
	a.stillThere(have)
	var errs []error
	for _, ep := range have {
		link := ep.Spec.Link
		seen, was := a.seen[link]
		if now, is := want[link]; is && (!was || now.equal(seen)) {
			continue // Adopt compares what was adopted by an earlier agent
		}
		errs = append(errs, a.giveUp(ctx, link, ep.Metadata.Name))
	}
	for link, f := range want {
		if _, done := a.seen[link]; done {
			continue
		}
		if err := a.adopt(ctx, link, f); err != nil {
			problems[link], errs = err.Error(), append(errs, err)
		}
	}
	return errors.Join(append(errs, a.note(ctx, want, problems))...)
}

// stillThere forgets what was adopted and is no endpoint any more: somebody removed it, or
// the datastore is another one.
func (a *adopter) stillThere(have []*datastore.Endpoint) {
	there := map[string]bool{}
	for _, ep := range have {
		there[ep.Spec.Link] = true
	}
	maps.DeleteFunc(a.seen, func(link string, _ found) bool { return !there[link] })
}

// giveUp releases what was adopted.
func (a *adopter) giveUp(ctx context.Context, link, endpoint string) error {
	delete(a.seen, link)
	if err := a.loop.do(ctx, func() { a.loop.unadopt(link) }); err != nil {
		return err
	}
	err := a.service.Release(ctx, endpoint)
	if err != nil && ctx.Err() == nil {
		a.loop.log.Warn("endpoint not released", "endpoint", endpoint, "error", err, datastore.EventLeak.Mark())
	}
	return err
}

func (a *adopter) adopt(ctx context.Context, link string, f found) error {
	t := control.Target{Orchestrator: datastore.OrchestratorAdopted, Workload: datastore.ForeignName(link), Interface: link}
	if err := a.loop.takes(ctx, t); err != nil {
		return err
	}
	if err := a.loop.do(ctx, func() {
		a.loop.links.adopted[link] = true
		a.loop.links.present[link] = kernel.Link{Name: link, Index: f.index, Up: true, Carrier: true, MTU: f.mtu}
		a.loop.links.resyncHost, a.loop.links.readopted = true, true
	}); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := a.service.Adopt(bounded, control.AttachRequest{Target: t, Network: f.network, Addresses: f.addresses, Labels: map[string]string{"name": link}})
	if err != nil {
		return errors.Join(err, a.loop.do(ctx, func() { a.loop.unadopt(link) }))
	}
	a.seen[link] = f
	return nil
}

// unadopt forgets an interface; routes by it go, and its endpoint is not looked for.
func (l *loop) unadopt(link string) {
	delete(l.links.adopted, link)
	delete(l.links.present, link)
	l.links.resyncHost, l.links.readopted = true, true
	if name := l.links.owners[link]; name != "" {
		l.locals.mark(name)
	}
}

// note says what cannot be adopted, and of what is adopted what does not pass.
func (a *adopter) note(ctx context.Context, want map[string]found, problems map[string]string) error {
	for link, f := range want {
		switch _, is := a.seen[link]; {
		case is && len(f.strange) > 0:
			problems[link] = fmt.Sprintf("has a route to %s, which is in no pool: nothing from there passes; add a pool, or take the route away", f.strange[0])
		case is && len(f.further) > 0:
			problems[link] = fmt.Sprintf("has a route to %s too, and an endpoint has one address of a family: nothing from there passes; take the route away", f.further[0])
		}
	}
	return a.loop.do(ctx, func() {
		for link := range a.said {
			if problems[link] == "" {
				a.loop.problems.drop(adoptProblem(link))
				delete(a.said, link)
			}
		}
		for link, text := range problems {
			a.said[link] = true
			a.loop.problems.note(adoptProblem(link), text)
		}
	})
}

// adoptProblem names that an interface is not adopted, or not whole.
func adoptProblem(link string) string { return "interface " + link + " (agent.adopt)" }

// find looks for the interfaces to adopt. problems says of others that the patterns mean why
// they are not.
func (a *adopter) find(ctx context.Context) (want map[string]found, problems map[string]string, err error) {
	want, problems = map[string]found{}, map[string]string{}
	list := a.loop.cfg.Adopt
	if len(list) == 0 {
		return want, problems, nil
	}
	links, err := a.kernel.Interfaces()
	if err != nil {
		return nil, nil, err
	}
	links = slices.DeleteFunc(links, func(l kernel.Interface) bool { return l.Loopback || !netdev.Adopts(list, l.Name) })
	if len(links) == 0 {
		return want, problems, nil
	}
	routes, err := a.kernel.MainRoutes()
	if err != nil {
		return nil, nil, err
	}
	var pools []netip.Prefix
	var uplink string
	if err := a.loop.do(ctx, func() {
		uplink = a.loop.uplink().Link
		for _, p := range a.loop.view.Pools() {
			pools = append(pools, p.Spec.CIDR)
		}
	}); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(links, a.older)
	taken := map[netip.Addr]string{}
	for _, l := range links {
		f, problem := a.judge(l, routes, pools, uplink)
		for _, addr := range f.addresses {
			if other := taken[addr]; other != "" && problem == "" {
				problem = fmt.Sprintf("%s is behind %s too: one of the two routes must go", addr, other)
			}
		}
		if problem != "" {
			problems[l.Name] = problem
		}
		if problem != "" || len(f.addresses) == 0 {
			continue
		}
		for _, addr := range f.addresses {
			taken[addr] = l.Name
		}
		want[l.Name] = f
	}
	return want, problems, nil
}

// older puts what is adopted first: another that has its address does not take it.
func (a *adopter) older(x, y kernel.Interface) int {
	_, first := a.seen[x.Name]
	_, second := a.seen[y.Name]
	switch {
	case first && !second:
		return -1
	case second && !first:
		return 1
	}
	return x.Index - y.Index
}

// judge says as what an interface that a pattern means is adopted; without addresses it is
// not, with or without a problem.
func (a *adopter) judge(l kernel.Interface, routes []kernel.Route, pools []netip.Prefix, uplink string) (f found, problem string) {
	if l.Master != "" || !l.Up {
		return f, "" // a port of a bridge routes nothing; one that is down has no routes
	}
	f = found{index: l.Index, mtu: l.MTU, network: networkOf(a.loop.cfg.Adopt, l.Name)}
	leads := l.Name == uplink
	for _, r := range routes {
		switch {
		case r.Link != l.Name || r.Protocol == a.loop.cfg.RouteProtocol:
		case r.Prefix.Bits() == 0:
			leads = true
		case r.Direct && r.Prefix.IsSingleIP() && !r.Prefix.Addr().IsLinkLocalUnicast() && !r.Prefix.Addr().IsMulticast():
			addr, inside := r.Prefix.Addr(), func(p netip.Prefix) bool { return p.Contains(r.Prefix.Addr()) }
			if slices.ContainsFunc(pools, inside) {
				f.addresses = append(f.addresses, addr)
			} else {
				f.strange = append(f.strange, addr)
			}
		}
	}
	slices.SortFunc(f.addresses, netip.Addr.Compare)
	f.addresses = slices.Compact(f.addresses)
	for i := len(f.addresses) - 1; i > 0; i-- {
		if f.addresses[i].Is4() == f.addresses[i-1].Is4() {
			f.further = append(f.further, f.addresses[i])
			f.addresses = slices.Delete(f.addresses, i, i+1)
		}
	}
	switch {
	case l.Ours:
		problem = "is netctl's own: make the pattern more exact"
	case leads:
		problem = "leads to other hosts (it has this node's address or a default route), and is no workload's: make the pattern more exact"
	case l.Kind != "veth" && l.Kind != "tun":
		problem = "is neither a veth nor a TAP, but " + kindOf(l) + ": make the pattern more exact"
	case datastore.CheckInterface(l.Name) != nil:
		problem = "cannot be an endpoint's: its name must be of letters, digits, _ . -"
	case len(f.addresses) == 0 && len(f.strange) > 0:
		problem = fmt.Sprintf("is not adopted: no pool has %s, to which it has a route", f.strange[0])
	case len(f.addresses) == 0:
		problem = "is not adopted: no route leads to a single address by it (`ip route add ADDRESS dev " + l.Name + "`)"
	}
	if problem != "" {
		f.addresses = nil
	}
	return f, problem
}

func kindOf(l kernel.Interface) string {
	if l.Kind == "" {
		return "a device"
	}
	return "a " + l.Kind
}

// networkOf is the network of the first pattern that means an interface.
func networkOf(list []netdev.Adoption, link string) string {
	i := slices.IndexFunc(list, func(a netdev.Adoption) bool { return a.Match(link) })
	return list[i].Network
}

// refuseAdopted refuses that others attach or detach what is adopted.
func refuseAdopted(t control.Target) error {
	if t.Orchestrator != datastore.OrchestratorAdopted {
		return nil
	}
	return fmt.Errorf("endpoint %s: %w: it comes and goes with its interface, which somebody else made; who is no endpoint any more is left out of agent.adopt",
		strings.Join([]string{t.Orchestrator, t.Workload, t.Interface}, "/"), datastore.ErrInvalid)
}
