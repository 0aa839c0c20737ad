package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/routing"
	"netctl/routing/fib"
)

// Explain says what the packet filter that the index makes says of a packet that the
// endpoint behind the link sends or gets, or without a link the host.
func Explain(x *acl.Index, link string, r control.ExplainRequest) control.Explanation {
	via := cmp.Or(r.Via, acl.Uplink)
	p := acl.Packet{
		InLink: link, InGroup: netdev.Group, OutLink: via, Src: r.Src, Dst: r.Dst, Protocol: r.Protocol,
		SrcPort: r.SrcPort, DstPort: r.DstPort, Type: r.Type, Code: r.Code, State: acl.New, Route: r.Route, Unrouted: r.Unrouted,
	}
	switch {
	case r.Endpoint == "" && r.Inbound:
		p.InLink, p.InGroup, p.OutLink = via, 0, ""
	case r.Endpoint == "":
		p.InGroup = 0
	case r.Inbound:
		p.InLink, p.InGroup, p.OutLink, p.OutGroup = via, 0, link, netdev.Group
	case r.ToHost:
		p.OutLink = ""
	}
	e := x.Explain(p)
	out := control.Explanation{Allowed: e.Allowed, By: e.By, Reason: e.Reason}
	if r.Endpoint == "" {
		out.HostEndpoint = x.HostEndpointAt(via)
	}
	for _, a := range e.Passed() {
		out.Passed = append(out.Passed, control.AskedRule(a))
	}
	return out
}

func (a *api) explain(ctx context.Context, r control.ExplainRequest) (e control.Explanation, err error) {
	if r.Inbound && len(a.filter.lacks) == 0 { // else nobody asks for the way to the source
		m, err := fib.Lookup(ctx, r.Src)
		reach(&r, m, err)
	}
	asked := a.loop.do(ctx, func() { e, err = a.loop.explain(r) })
	return e, errors.Join(asked, err)
}

// reach takes what a lookup of the route to the source found.
func reach(r *control.ExplainRequest, m fib.Match, err error) {
	switch {
	case errors.Is(err, fib.ErrDiscarded) || errors.Is(err, fib.ErrUnreachable) || errors.Is(err, fib.ErrRejected):
		r.Unrouted = true
	case err != nil || r.In == "" || m.Local || len(m.Route.NextHops) == 0:
	case !slices.ContainsFunc(m.Route.NextHops, func(h routing.NextHop) bool { return h.Link == r.In }):
		r.Route = m.Route.NextHops[0].Link
	}
}

// comesBy refuses what is no interface that packets of other machines come by.
func (l *loop) comesBy(link string) error {
	if strings.HasPrefix(link, l.cfg.LinkPrefix) {
		return fmt.Errorf("interface %s: %w: it is an endpoint's: what comes by it is from nowhere else", link, datastore.ErrInvalid)
	}
	if _, err := net.InterfaceByName(link); err != nil {
		return fmt.Errorf("interface %s of this node: %w", link, datastore.ErrNotFound)
	}
	return nil
}

// explain is Explain of what is kept for this node's kernel.
func (l *loop) explain(r control.ExplainRequest) (control.Explanation, error) {
	other := r.Dst
	if r.Inbound {
		other = r.Src
	}
	here := func(e *datastore.Endpoint) bool { return e.Owns(other) }
	if r.In != "" && r.Inbound {
		if err := l.comesBy(r.In); err != nil {
			return control.Explanation{}, err
		}
		r.Via = r.In
	} else if !r.ToHost && !slices.ContainsFunc(l.view.EndpointsOf(l.cfg.Node), here) { // else it is by no host endpoint
		r.Via = l.links.linkTo(other, l.uplink().Link)
	}
	if r.Endpoint == "" {
		out := Explain(l.filtering.index, "", r)
		if err := l.filtering.err; err != nil {
			out.Problem = oneLine(err.Error())
		}
		return out, nil
	}
	lo := l.locals.named[r.Endpoint]
	if lo == nil || lo.ep == nil {
		return control.Explanation{}, fmt.Errorf("endpoint %s of this node: %w", r.Endpoint, datastore.ErrNotFound)
	}
	out := Explain(l.filtering.index, lo.link, r)
	if err := l.programmed(lo); err != nil {
		out.Problem = oneLine(err.Error())
	}
	return out, nil
}
