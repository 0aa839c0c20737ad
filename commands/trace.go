package commands

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/fib"
)

// traced is the way of a packet, as it is printed.
type traced struct {
	Address netip.Addr   `json:"address"`
	Hops    []tracedHost `json:"hops"`
	// Arrives says whether a packet gets to somebody as far as is known; Node, Endpoint
	// and Workload are who has the address, and End says how it ends.
	Arrives  bool   `json:"arrives"`
	Node     string `json:"node,omitempty"`
	Endpoint string `json:"endpoint,omitempty"`
	Workload string `json:"workload,omitempty"`
	End      string `json:"end"`
}

// tracedHost is what one host does with the packet.
type tracedHost struct {
	Host string `json:"host"`
	// Router: it is no node.
	Router bool `json:"router,omitempty"`
	// Source is where this is known from: the kernel, or the datastore.
	Source      string        `json:"source"`
	Prefix      netip.Prefix  `json:"prefix,omitzero"`
	Table       string        `json:"table,omitempty"`
	Protocol    string        `json:"protocol,omitempty"`
	Metric      int           `json:"metric,omitempty"`
	AnnouncedBy []string      `json:"announcedBy,omitempty"`
	NextHops    []tracedGoing `json:"nextHops,omitempty"`
}

// tracedGoing is a next hop.
type tracedGoing struct {
	Via  string `json:"via,omitempty"`
	Link string `json:"link,omitempty"`
	MTU  int    `json:"mtu,omitempty"`
	// Encapsulation is the kind of the tunnel, and Remote the address that it leads to.
	Encapsulation string `json:"encapsulation,omitempty"`
	Remote        string `json:"remote,omitempty"`
	Node          string `json:"node,omitempty"`
}

const (
	fromKernel = "kernel"
	fromStore  = "datastore"
)

func newRouteTraceCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace ADDRESS",
		Short: "Show the way of a packet from this node to an address",
		Long: "Show each hop of a packet from this node to an address: host, route, who announced it, next hop, interface, tunnel and MTU, and how it\n" +
			"ends. This node's part is asked of its kernel, what other nodes do follows from the datastore. Exit code 3: it does not arrive.",
		Example:           "  netctl route trace 10.65.1.5\n  netctl route trace fd80:24e2:f998:72d6::5 -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		addr, err := netip.ParseAddr(args[0])
		if err != nil || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			return usage("%q is not the address of a machine, like 10.65.1.5", args[0])
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		t := tracer{settings: s, addr: addr.Unmap()}
		if t.view, err = a.view(cmd.Context(), datastore.KindNode, datastore.KindBlock, datastore.KindEndpoint, datastore.KindPeer, datastore.KindPool); err != nil {
			a.warn("what other nodes do is not known: %v", err)
			t.view = datastore.NewView()
			t.blind = true
		}
		out, err := t.run(cmd.Context())
		if err != nil {
			return err
		}
		if f.manifests() {
			err = a.showPlain(*f, out)
		} else {
			err = a.print(out.text())
		}
		if err == nil && !out.Arrives {
			return errNo
		}
		return err
	}
	return cmd
}

// tracer finds the way of packets to an address.
type tracer struct {
	settings *settings
	view     *datastore.View
	blind    bool // the datastore does not answer
	addr     netip.Addr
}

func (t *tracer) run(ctx context.Context) (traced, error) {
	match, err := fib.Lookup(ctx, t.addr)
	switch {
	case errors.Is(err, fib.ErrDiscarded), errors.Is(err, fib.ErrRejected), errors.Is(err, fib.ErrUnreachable):
		own, readErr := ownRoutes(ctx, t.settings)
		if readErr != nil {
			return traced{}, readErr
		}
		return t.refused(err, own), nil
	case err != nil:
		return traced{}, err
	}
	var peers []netip.Addr
	if match.Protocol == t.settings.Routes.SpeakerProtocol {
		if answer, err := control.NewSpeakerClient(t.settings.Speaker.Socket).BGPRoutes(ctx, control.BGPQuery{Prefix: match.Route.Prefix}); err == nil {
			for _, p := range answer.Paths {
				if p.Used && p.Peer.IsValid() {
					peers = append(peers, p.Peer)
				}
			}
		}
	}
	return t.follow(match, peers), nil
}

// ownRoutes are netctl's routes of this node, by protocol.
func ownRoutes(ctx context.Context, s *settings) (map[int][]routing.Route, error) {
	out := map[int][]routing.Route{}
	for _, protocol := range []int{s.Routes.AgentProtocol, s.Routes.SpeakerProtocol} {
		table, err := fib.Open(fib.Config{Protocol: protocol, Anywhere: true}, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		out[protocol], err = table.Routes(ctx)
		if err := errors.Join(err, table.Close()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// refused is the way of a packet that this node's kernel has no way for.
func (t *tracer) refused(err error, own map[int][]routing.Route) traced {
	out := traced{Address: t.addr}
	host := tracedHost{Host: t.settings.Node, Source: fromKernel}
	switch {
	case errors.Is(err, fib.ErrUnreachable):
		out.End = "no route on " + host.Host + t.owned()
	case errors.Is(err, fib.ErrRejected):
		out.End = "rejected by an unreachable or prohibit route on " + host.Host + t.owned()
	default:
		best := routing.Route{}
		protocol := 0
		for p, routes := range own {
			for _, r := range routes {
				if r.Prefix.Contains(t.addr) && (protocol == 0 || r.Prefix.Bits() > best.Prefix.Bits()) {
					best, protocol = r, p
				}
			}
		}
		switch {
		case protocol == t.settings.Routes.AgentProtocol && best.Type == routing.Blackhole:
			host.Prefix, host.Protocol = best.Prefix, t.protocol(protocol)
			out.End = fmt.Sprintf("dropped on %s: %s is nobody's in its block %s", host.Host, t.addr, best.Prefix) + t.owned()
		case protocol != 0 && best.Type == routing.Blackhole:
			host.Prefix, host.Protocol = best.Prefix, t.protocol(protocol)
			out.End = fmt.Sprintf("dropped on %s by a blackhole that a peer announced for %s (RFC 7999)", host.Host, best.Prefix)
		default:
			out.End = "dropped on " + host.Host + " by a blackhole route of another program" + t.owned()
		}
	}
	out.Hops = append(out.Hops, host)
	return out
}

// owned says who should have the address, as the datastore has it; "": nobody.
func (t *tracer) owned() string {
	if e := t.endpoint(); e != nil {
		return fmt.Sprintf("; it is that of endpoint %s on %s", e.Metadata.Name, e.Spec.Node)
	}
	if b := t.block(); b != nil && b.Spec.Affinity != t.settings.Node {
		return fmt.Sprintf("; its block %s is that of %s", b.Spec.CIDR, b.Spec.Affinity)
	}
	return ""
}

// follow is the way of a packet that this node's kernel has a route for; peers
// announced it.
func (t *tracer) follow(m fib.Match, peers []netip.Addr) traced {
	out := traced{Address: t.addr}
	host := tracedHost{
		Host: t.settings.Node, Source: fromKernel, Prefix: m.Route.Prefix, Table: tableName(m.Table), Protocol: t.protocol(m.Protocol), Metric: m.Route.Metric,
	}
	for _, p := range peers {
		host.AnnouncedBy = append(host.AnnouncedBy, t.name(p))
	}
	var nodes []string
	for i, h := range m.Route.NextHops {
		going := tracedGoing{Link: h.Link, MTU: m.MTUs[i]}
		if h.Addr.IsValid() {
			going.Via = h.Addr.String()
			going.Node = t.nodeAt(h.Addr)
		}
		for kind, link := range t.settings.tunnels() {
			if link != h.Link {
				continue
			}
			going.Encapsulation = string(kind)
			if n := t.view.Node(going.Node); n != nil {
				remote := n.Address(kind == datastore.TunnelVXLAN6)
				if self := t.view.Node(t.settings.Node); kind == datastore.TunnelWireGuard && self != nil {
					remote = routing.Between(self, n)
				}
				if remote.IsValid() {
					going.Remote = remote.String()
				}
			}
		}
		host.NextHops = append(host.NextHops, going)
		if !slices.Contains(nodes, going.Node) {
			nodes = append(nodes, going.Node)
		}
	}
	out.Hops = append(out.Hops, host)
	direct := len(m.Route.NextHops) > 0 && !m.Route.NextHops[0].Addr.IsValid()
	switch {
	case m.Local:
		out.Arrives, out.Node, out.End = true, host.Host, "an address of "+host.Host+" itself"
	case (direct || t.behind()) && len(m.Route.NextHops) > 0 && m.Protocol == t.settings.Routes.AgentProtocol:
		t.arrive(&out, host.Host, m.Route.NextHops[0].Link)
	case direct:
		out.Arrives, out.End = true, "a machine on the subnet of "+m.Route.NextHops[0].Link
		if node := t.nodeAt(t.addr); node != "" {
			out.Node, out.End = node, "an address of node "+node
		}
	case len(nodes) == 1 && nodes[0] != "":
		t.goOn(&out, nodes[0], []string{host.Host})
	default:
		t.leave(&out, host)
	}
	return out
}

// leave is how a packet goes on that routers take which are no nodes: to whom the
// datastore says has the address, else who knows where.
func (t *tracer) leave(out *traced, host tracedHost) {
	var routers []string
	for _, h := range host.NextHops {
		routers = append(routers, h.Via)
	}
	router := strings.Join(routers, " or ")
	owner := ""
	if e := t.endpoint(); e != nil {
		owner = e.Spec.Node
	} else if b := t.block(); b != nil {
		owner = b.Spec.Affinity
	}
	switch {
	case owner == "" || owner == host.Host:
		out.Arrives, out.End = owner == "" && t.pool() == "", "handed to "+router+", which netctl knows nothing of"
		if pool := t.pool(); pool != "" {
			out.End += fmt.Sprintf("; pool %s has nobody with this address", pool)
		} else if owner != "" {
			out.End += "; the address is in a block of " + owner + " itself"
		}
	default:
		out.Hops = append(out.Hops, tracedHost{Host: router, Router: true, Source: fromStore})
		t.goOn(out, owner, []string{host.Host})
	}
}

// goOn is what another node does, as the datastore has it; been are those that the
// packet was at.
func (t *tracer) goOn(out *traced, node string, been []string) {
	host := tracedHost{Host: node, Source: fromStore}
	n := t.view.Node(node)
	e, b := t.endpoint(), t.block()
	switch {
	case n == nil:
		out.End = "node " + node + " is not known"
	case t.blind:
		out.End = "what " + node + " does is not known: the datastore does not answer"
	case slices.Contains(been, node):
		out.End = "in a circle: back at " + node
		return
	case e != nil && e.Spec.Node == node:
		host.Prefix, host.Protocol = t.routed(), t.protocol(t.settings.Routes.AgentProtocol)
		host.NextHops = []tracedGoing{{Link: e.Spec.Link}}
		out.Hops = append(out.Hops, host)
		t.arrive(out, node, e.Spec.Link)
		return
	case t.nodeAt(t.addr) == node:
		host.Prefix, host.Protocol = netip.PrefixFrom(t.addr, t.addr.BitLen()), "its own address"
		out.Arrives, out.Node, out.End = true, node, "an address of node "+node
	case e != nil || b != nil && b.Spec.Affinity != node:
		var next string
		if e != nil {
			next, host.Prefix = e.Spec.Node, t.routed()
		} else {
			next, host.Prefix = b.Spec.Affinity, b.Spec.CIDR
		}
		host.Protocol = t.protocol(t.settings.Routes.SpeakerProtocol)
		going := tracedGoing{Node: next}
		if o := t.view.Node(next); o != nil && o.Address(t.addr.Is6()).IsValid() {
			going.Via = o.Address(t.addr.Is6()).String()
			t.encapsulate(&going, n, host.Prefix, o.Address(t.addr.Is6()))
		}
		host.NextHops = []tracedGoing{going}
		out.Hops = append(out.Hops, host)
		t.goOn(out, next, append(been, node))
		return
	case b != nil:
		host.Prefix, host.Protocol = b.Spec.CIDR, t.protocol(t.settings.Routes.AgentProtocol)
		if holder := t.view.Holder(t.addr); holder != "" {
			out.Arrives, out.Node, out.End = true, node, fmt.Sprintf("the address of %s on %s", holder, node)
		} else {
			out.End = fmt.Sprintf("dropped on %s: %s is nobody's in its block %s", node, t.addr, b.Spec.CIDR)
		}
	default:
		out.End = fmt.Sprintf("%s has no route to %s that the datastore knows of: the address is nobody's", node, t.addr)
	}
	out.Hops = append(out.Hops, host)
}

// encapsulate is how another node sends to a BGP next hop what is for a prefix: through a
// tunnel where the pool asks for one.
func (t *tracer) encapsulate(going *tracedGoing, from *datastore.Node, p netip.Prefix, hop netip.Addr) {
	links := t.settings.tunnels()
	plan := routing.Mesh(from.Metadata.Name, t.view.Nodes(), t.view.Pools(), t.view.BGP())
	fabric := routing.NewFabric(plan, from.Status.Subnets, links, nil)
	via, _ := fabric.Via(fabric.Pool(p), hop, routing.NextHop{Addr: hop})
	for kind, link := range links {
		if link == via.Link && link != "" {
			going.Via, going.Link, going.Encapsulation, going.Remote = via.Addr.String(), link, string(kind), hop.String()
		}
	}
}

// arrive ends at the endpoint behind an interface of a node.
func (t *tracer) arrive(out *traced, node, link string) {
	out.Arrives, out.Node = true, node
	e := t.endpoint()
	if e == nil {
		out.End = fmt.Sprintf("interface %s of %s; which endpoint that is, the datastore does not say", link, node)
		return
	}
	out.Endpoint, out.Workload = e.Metadata.Name, e.Spec.Orchestrator+"/"+e.Spec.Workload
	out.End = fmt.Sprintf("endpoint %s (%s) on %s", out.Endpoint, out.Workload, node)
	if e.Spec.Node != node {
		out.End += ", but the datastore has it on " + e.Spec.Node
	}
}

func (t *tracer) endpoint() *datastore.Endpoint {
	for _, e := range t.view.Endpoints() {
		if e.Owns(t.addr) {
			return e
		}
	}
	return nil
}

// routed is what the route to the address is of: itself, or the network behind an endpoint.
func (t *tracer) routed() netip.Prefix {
	if e := t.endpoint(); e != nil {
		for _, p := range e.Spec.AllowedPrefixes {
			if p.Contains(t.addr) {
				return p
			}
		}
	}
	return netip.PrefixFrom(t.addr, t.addr.BitLen())
}

// behind says whether the address is of a network behind an endpoint.
func (t *tracer) behind() bool { return t.endpoint() != nil && !t.routed().IsSingleIP() }

func (t *tracer) block() *datastore.Block {
	for _, b := range t.view.Blocks() {
		if b.Spec.CIDR.Contains(t.addr) {
			return b
		}
	}
	return nil
}

func (t *tracer) pool() string {
	for _, p := range t.view.Pools() {
		if p.Spec.CIDR.Contains(t.addr) {
			return p.Spec.CIDR.String()
		}
	}
	return ""
}

// nodeAt is the node that has an address, or that a tunnel leads to by it; "": none.
func (t *tracer) nodeAt(a netip.Addr) string {
	for _, n := range t.view.Nodes() {
		if slices.ContainsFunc(n.Spec.Addresses, func(p netip.Prefix) bool { return p.Addr() == a }) || routing.Ends(n, a) {
			return n.Metadata.Name
		}
	}
	return ""
}

// name is what a BGP peer is called.
func (t *tracer) name(peer netip.Addr) string {
	if node := t.nodeAt(peer); node != "" {
		return node
	}
	for _, p := range t.view.Peers() {
		if p.Spec.Address == peer {
			return fmt.Sprintf("%s (%s)", p.Metadata.Name, peer)
		}
	}
	return peer.String()
}

// protocol is who writes routes of a protocol number, as ip-route(8) and
// /etc/iproute2/rt_protos have them.
func (t *tracer) protocol(number int) string {
	switch number {
	case t.settings.Routes.AgentProtocol:
		return "netctl's agent"
	case t.settings.Routes.SpeakerProtocol:
		return "netctl's speaker"
	}
	names := map[int]string{
		1: "an ICMP redirect", 2: "the kernel (a connected subnet)", 3: "set at boot", 4: "static", 9: "router advertisement", 11: "zebra", 12: "BIRD", 16: "DHCP",
		186: "BGP of another program", 188: "OSPF", 187: "IS-IS", 189: "RIP", 192: "EIGRP",
	}
	if name := names[number]; name != "" {
		return name
	}
	return "protocol " + strconv.Itoa(number)
}

func tableName(number int) string {
	if name := map[int]string{253: "default", 254: "main", 255: "local"}[number]; name != "" {
		return name
	}
	return strconv.Itoa(number)
}
