package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/fib"
)

// shownRoute is one route as it is printed.
type shownRoute struct {
	Prefix   string    `json:"prefix"`
	Type     string    `json:"type"`
	Protocol string    `json:"protocol"`
	Metric   int       `json:"metric,omitempty"`
	NextHops []nextHop `json:"nextHops,omitempty"`

	route routing.Route
}

type nextHop struct {
	Via  string `json:"via,omitempty"`
	Link string `json:"link,omitempty"`
}

func newRouteCommand(a *app) *cobra.Command {
	return group("route", "Show the routes of a node, and the way of packets", "  netctl route show\n  netctl route show --node slave2\n  netctl route trace 10.65.1.5", newRouteShowCommand(a), newRouteTraceCommand(a))
}

func newRouteShowCommand(a *app) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show netctl's routes and the connected subnets of a node",
		Long: "Show netctl's routes and the connected subnets: of this node as its kernel has them, of another node as they follow\n" +
			"from the datastore (blocks, endpoints and where the others' are; no interface of other nodes is known here).",
		Example: "  netctl route show\n  netctl route show --node slave2",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.Flags().StringVar(&node, "node", "", "`name` of the node (default: this one)")
	_ = cmd.RegisterFlagCompletionFunc("node", a.complete(datastore.KindNode, nodeNames))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		var routes []shownRoute
		if node == "" || node == s.Node {
			routes, err = kernelRoutes(cmd.Context(), s)
		} else {
			routes, err = a.routesOf(cmd.Context(), node)
		}
		if err != nil {
			return err
		}
		return a.showRoutes(*f, routes)
	}
	return cmd
}

func kernelRoutes(ctx context.Context, s *settings) ([]shownRoute, error) {
	var out []shownRoute
	for _, protocol := range []int{s.Routes.AgentProtocol, s.Routes.SpeakerProtocol} {
		t, err := fib.Open(fib.Config{Protocol: protocol, Anywhere: true}, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		defer t.Close()
		own, err := t.Routes(ctx)
		if err != nil {
			return nil, err
		}
		name := routing.ProtocolName(protocol)
		for _, r := range own {
			out = append(out, shown(r, name))
		}
		if protocol == s.Routes.AgentProtocol {
			continue
		}
		connected, err := t.Connected(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range connected {
			if !r.Prefix.Addr().IsMulticast() && !r.Prefix.Addr().IsLoopback() {
				out = append(out, shown(r, "kernel"))
			}
		}
	}
	return out, nil
}

func shown(r routing.Route, protocol string) shownRoute {
	s := shownRoute{Prefix: r.Prefix.String(), Type: "unicast", Protocol: protocol, Metric: r.Metric, route: r}
	if r.Type == routing.Blackhole {
		s.Type = "blackhole"
	}
	for _, h := range r.NextHops {
		n := nextHop{Link: h.Link}
		if h.Addr.IsValid() {
			n.Via = h.Addr.String()
		}
		s.NextHops = append(s.NextHops, n)
	}
	return s
}

// routesOf is what another node's routes must be, from the datastore: its own
// blocks and endpoints, and the others' by way of their nodes.
func (a *app) routesOf(ctx context.Context, node string) ([]shownRoute, error) {
	view, err := a.view(ctx, datastore.KindNode, datastore.KindBlock, datastore.KindEndpoint)
	if err != nil {
		return nil, err
	}
	if view.Node(node) == nil {
		return nil, fmt.Errorf("node %s: %w", node, datastore.ErrNotFound)
	}
	agent, speaker := routing.ProtocolName(routing.ProtocolAgent), routing.ProtocolName(routing.ProtocolSpeaker)
	var out []shownRoute
	via := func(owner string, p netip.Prefix) {
		n := view.Node(owner)
		if n == nil {
			return
		}
		if addr := n.Address(p.Addr().Is6()); addr.IsValid() {
			out = append(out, shown(routing.Route{Prefix: p, NextHops: []routing.NextHop{{Addr: addr}}}, speaker))
		}
	}
	for _, b := range view.Blocks() {
		if b.Spec.Affinity == node {
			out = append(out, shown(routing.Route{Prefix: b.Spec.CIDR, Type: routing.Blackhole}, agent))
		} else {
			via(b.Spec.Affinity, b.Spec.CIDR)
		}
	}
	for _, e := range view.Endpoints() {
		for _, addr := range e.Spec.Addresses {
			p := netip.PrefixFrom(addr, addr.BitLen())
			switch {
			case e.Spec.Node == node:
				out = append(out, shown(routing.Route{Prefix: p, NextHops: []routing.NextHop{{Link: e.Spec.Link}}}, agent))
			case borrowed(view, e, addr):
				via(e.Spec.Node, p)
			}
		}
		for _, r := range routing.Behind(e) {
			if e.Spec.Node == node {
				out = append(out, shown(r, agent))
			} else {
				via(e.Spec.Node, r.Prefix)
			}
		}
	}
	return out, nil
}

// borrowed says whether an endpoint's address is outside the blocks of its node.
func borrowed(view *datastore.View, e *datastore.Endpoint, addr netip.Addr) bool {
	return !slices.ContainsFunc(view.BlocksOf(e.Spec.Node), func(b *datastore.Block) bool { return b.Spec.CIDR.Contains(addr) })
}

func (a *app) showRoutes(f format, routes []shownRoute) error {
	slices.SortStableFunc(routes, func(x, y shownRoute) int { return routing.Compare(x.route, y.route) })
	switch f {
	case formatJSON, formatYAML:
		return a.showPlain(f, routes)
	}
	var b strings.Builder
	for _, r := range routes {
		fmt.Fprintln(&b, r.text())
	}
	return a.print(b.String())
}

// text is the route as `ip route` prints it.
func (s shownRoute) text() string {
	r := s.route
	r.Metric, r.MTU = 0, 0
	if len(r.NextHops) > 1 {
		hops := r.NextHops
		r.NextHops = nil
		text := r.String() + " proto " + s.Protocol
		for _, h := range hops {
			text += " nexthop " + h.Of(r.Prefix)
		}
		return text
	}
	text := r.String() + " proto " + s.Protocol
	if r.Type == routing.Unicast && r.Prefix.Addr().Is4() && !r.NextHops[0].Addr.IsValid() {
		text += " scope link"
	}
	if s.Metric != 0 {
		text += fmt.Sprintf(" metric %d", s.Metric)
	}
	if s.route.MTU != 0 {
		text += fmt.Sprintf(" mtu %d", s.route.MTU)
	}
	return text
}

// showPlain prints what is no object of the model as JSON or YAML.
func (a *app) showPlain(f format, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if f == formatJSON {
		if b, err = indented(b); err != nil {
			return err
		}
		return a.print(string(b))
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return err
	}
	plain(&doc)
	var out strings.Builder
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return err
	}
	return a.print(out.String())
}
