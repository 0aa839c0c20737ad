package commands

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"netctl/acl"
	"netctl/commands/agent"
	"netctl/commands/control"
	"netctl/datastore"
)

// explained is what becomes of packets from one party to another, as it is printed.
type explained struct {
	Verdict     verdict         `json:"verdict"`
	Source      party           `json:"source"`
	Destination party           `json:"destination"`
	Flows       []explainedFlow `json:"flows"`
	Notes       []string        `json:"notes,omitempty"`
	// Way is the packet's, between the interfaces of the two.
	Way traced `json:"way"`
}

// verdict is the answer as a whole.
type verdict string

const (
	verdictAllowed verdict = "allowed"
	verdictDenied  verdict = "denied"
	verdictDepends verdict = "depends" // on protocol and port, which nobody named
	verdictNoWay   verdict = "no way"  // policy allows it, and it does not arrive
)

// explainedFlow is one kind of packets that all fare alike.
type explainedFlow struct {
	traffic
	Allowed bool            `json:"allowed"`
	Sides   []explainedSide `json:"sides"`
}

// explainedSide is what one end says of it.
type explainedSide struct {
	Direction string `json:"direction"`
	Node      string `json:"node"`
	Endpoint  string `json:"endpoint"`
	// From is where it is known from: the datastore, or the node's agent.
	From string `json:"from"`
	control.Explanation
	// Staged is what it would say if the staged policies were in force; nil: the same.
	Staged *control.Explanation `json:"staged,omitempty"`
}

const fromAgent = "agent"

// defaultSourcePort is an ephemeral one, which no rule is likely to name.
const defaultSourcePort = 40000

func newExplainCommand(a *app) *cobra.Command {
	var verbose, live bool
	var in string
	var sourcePort uint16
	cmd := &cobra.Command{
		Use:   "explain SRC DST [PROTO [PORT]]",
		Short: "Say whether a packet gets from one to another, which rule decides, and its way",
		Long: "Say whether the first packet of a connection gets from SRC to DST, which rules of both sides decide, and the way that it takes. SRC and DST\n" +
			"are endpoints (ID, workload, start of the workload's ID, name of the container, interface of the host, address), nodes, addresses, or `world`,\n" +
			"an address that is nobody's. PROTO is tcp, udp, sctp, icmp, icmpv6 or a number; PORT a number, a named port of DST, or ICMP's type (default:\n" +
			"echo request). Without them the answer is for everything, if it is the same for all, else what is allowed is listed, with exit code 1.\n\n" +
			"Rules are evaluated as the datastore has them; --live asks this node's agent for what it keeps in the kernel, as far as SRC or DST is here.\n" +
			"Answers to what is allowed pass by themselves. -v adds the rules that were asked before the one that decides.",
		Example:           "  netctl explain web-1 db-1 tcp 5432\n  netctl explain world node1/cni/web-1/eth0 tcp 443 -v\n  netctl explain 10.65.0.5 10.65.1.7 icmp -o json",
		Args:              cobra.RangeArgs(2, 4),
		ValidArgsFunction: a.completeExplain,
		Annotations:       map[string]string{exitCodes: "0 allowed, 1 failed or could not tell, 2 usage, 3 denied, or it does not arrive"},
	}
	f := addFormat(cmd)
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the rules that were passed, too")
	cmd.Flags().BoolVar(&live, "live", false, "ask this node's agent for the side that is here")
	cmd.Flags().StringVar(&in, "in", "", "`interface` of this node that a packet for DST comes in by, whoever may send it; with --live")
	cmd.Flags().Uint16Var(&sourcePort, "source-port", defaultSourcePort, "`port` that the packet is sent from")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		view, err := a.view(cmd.Context(), explainKinds()...)
		if err != nil {
			return err
		}
		x := explainer{settings: s, view: view, live: live, in: in, sourcePort: sourcePort}
		out, err := x.explain(cmd.Context(), args)
		if err != nil {
			return err
		}
		out.Notes = append(out.Notes, a.refusalsOn(cmd.Context(), out.Source.Node, out.Destination.Node)...)
		if f.manifests() {
			err = a.showPlain(*f, out)
		} else {
			err = a.print(out.text(verbose))
		}
		switch {
		case err != nil || out.Verdict == verdictAllowed:
			return err
		case out.Verdict == verdictDepends:
			return errors.New("it depends on the protocol and port: name them")
		}
		return errNo
	}
	return cmd
}

func explainKinds() []datastore.Kind {
	return []datastore.Kind{datastore.KindNode, datastore.KindBlock, datastore.KindEndpoint, datastore.KindPeer, datastore.KindPool, datastore.KindProfile, datastore.KindHostEndpoint,
		datastore.KindPolicy, datastore.KindTier, datastore.KindNetworkSet, datastore.KindBGPConfig}
}

func (a *app) completeExplain(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0, 1:
		return a.complete(datastore.KindEndpoint, func(v *datastore.View) []string { return append(endpointNames(v), worldName) })(cmd, args, word)
	case 2:
		return []string{"tcp", "udp", "sctp", "icmp", "icmpv6"}, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// explainer says what becomes of packets between two parties.
type explainer struct {
	settings   *settings
	view       *datastore.View
	live       bool
	in         string // interface that it comes in by; "": by the way to its source
	sourcePort uint16

	// learned is what this node knows of domains, or why it cannot be told; nil: nobody asked.
	learned   *control.Learned
	unlearned error

	src, dst party
	notes    []string
	indexes  map[string]*acl.Index // by node, and whether staged policies are in force
}

func (x *explainer) explain(ctx context.Context, args []string) (explained, error) {
	out, err := x.answer(ctx, args)
	if err != nil {
		return explained{}, err
	}
	if out.Way, err = x.way(ctx); err != nil {
		return explained{}, err
	}
	if out.Verdict == verdictAllowed && !out.Way.Arrives {
		out.Verdict = verdictNoWay
	}
	return out, nil
}

// answer is what the rules say, of SRC DST [PROTO [PORT]].
func (x *explainer) answer(ctx context.Context, args []string) (explained, error) {
	wanted, err := parseTraffic(args[2:])
	if err != nil {
		return explained{}, err
	}
	if err := x.between(args[0], args[1], wanted); err != nil {
		return explained{}, err
	}
	x.published(&wanted)
	if !x.judges(x.src, x.dst) && !x.judges(x.dst, x.src) {
		return explained{}, fmt.Errorf("neither %s nor %s is an endpoint, or a node with a host endpoint: no rule is asked of what passes between them", args[0], args[1])
	}
	if x.live && !slices.ContainsFunc([]party{x.src, x.dst}, func(p party) bool {
		return (p.endpoint != nil || x.hasHosts(p.Node)) && p.Node == x.settings.Node
	}) {
		return explained{}, fmt.Errorf("--live: neither %s nor %s is an endpoint of this node (%s), or the node itself with a host endpoint", args[0], args[1], x.settings.Node)
	}
	if err := x.comesIn(args[1]); err != nil {
		return explained{}, err
	}
	if err := wanted.named(x.dst, args); err != nil {
		return explained{}, err
	}
	x.readLearned(ctx)
	out := explained{Source: x.src, Destination: x.dst}
	out.Flows, err = wanted.survey(x.dst.ports(), func(t traffic) (explainedFlow, error) { return x.flow(ctx, t) })
	if err != nil {
		return explained{}, err
	}
	x.noteMissing(out.Flows)
	out.Notes = x.notes
	out.judge()
	return out, nil
}

// judge sums the flows up.
func (e *explained) judge() {
	allowed := func(f explainedFlow) bool { return f.Allowed }
	denied := func(f explainedFlow) bool { return !f.Allowed }
	switch {
	case !slices.ContainsFunc(e.Flows, allowed):
		e.Verdict = verdictDenied
	case slices.ContainsFunc(e.Flows, denied):
		e.Verdict = verdictDepends
	default:
		e.Verdict = verdictAllowed
	}
}

// flow is what both sides say of one kind of packets; what the first denies the second
// never sees.
func (x *explainer) flow(ctx context.Context, t traffic) (explainedFlow, error) {
	out := explainedFlow{traffic: t, Allowed: true}
	if x.src.endpoint != nil && x.src.endpoint == x.dst.endpoint {
		out.Sides = append(out.Sides, explainedSide{Direction: outbound, Node: x.src.Node, Endpoint: x.src.Endpoint, From: fromStore,
			Explanation: control.Explanation{Allowed: true, Reason: "the packet does not leave the workload"}})
		return out, nil
	}
	for _, inward := range []bool{false, true} {
		own, other := x.src, x.dst
		if inward {
			own, other = x.dst, x.src
		}
		if !x.judges(own, other) {
			continue
		}
		side, err := x.side(ctx, own, other, inward, t)
		if err != nil {
			return out, err
		}
		out.Allowed = out.Allowed && side.Allowed
		out.Sides = append(out.Sides, side)
	}
	return out, nil
}

// side is what the node of one end says of a packet.
func (x *explainer) side(ctx context.Context, own, other party, inward bool, t traffic) (explainedSide, error) {
	side := explainedSide{Direction: outbound, Node: own.Node, Endpoint: own.Endpoint, From: fromStore}
	r := t.request(own.Endpoint, x.src.Address, x.dst.Address, x.sourcePort)
	r.In = x.in
	ownHost := own.endpoint != nil && other.endpoint == nil && other.Node == own.Node && own.Node != ""
	if inward {
		side.Direction, r.Inbound = inbound, true
		if ownHost {
			side.Allowed, side.Reason = true, "a node reaches its own endpoints"
			return side, nil
		}
	}
	r.ToHost = ownHost
	if r.ToHost && own.Node != x.settings.Node {
		x.note("agent.workloadToHost of %s is taken to be what it is here", own.Node)
	}
	var err error
	if x.live && own.Node == x.settings.Node {
		side.From = fromAgent
		side.Explanation, err = control.NewAgentClient(x.settings.Agent.Socket).Waiting(rolePatience).Explain(ctx, r)
	} else {
		side.Explanation, err = x.judged(own, other, r, false)
	}
	if own.endpoint == nil {
		side.Endpoint = hostWords(side.HostEndpoint)
	}
	if err == nil && hasStaged(x.view) {
		var then control.Explanation
		if then, err = x.judged(own, other, r, true); !sameExplanation(then, side.Explanation) {
			side.Staged = &then
		}
	}
	return side, err
}

// judged is what the rules of the datastore say of a packet; promoted says that staged
// policies are in force.
func (x *explainer) judged(own, other party, r control.ExplainRequest, promoted bool) (control.Explanation, error) {
	index, err := x.index(own.Node, promoted)
	if err != nil {
		return control.Explanation{}, err
	}
	link := ""
	if own.endpoint != nil {
		link = own.endpoint.Spec.Link
	}
	if !r.ToHost && !(other.endpoint != nil && other.Node == own.Node) {
		r.Via = x.via(own.Node)
	}
	if r.Inbound && other.endpoint == nil && other.Node == "" {
		t := tracer{view: x.view, addr: other.Address}
		b := t.block() // what nobody has of a node's own blocks it has no route to
		r.Unrouted = b != nil && b.Spec.Affinity == own.Node
	}
	e := agent.Explain(index, link, r)
	for i := range e.Passed {
		x.markStaged(&e.Passed[i].RulePlace)
	}
	if e.By != nil {
		x.markStaged(e.By)
	}
	return e, nil
}

func hasStaged(view *datastore.View) bool {
	return slices.ContainsFunc(view.Policies(), func(p *datastore.Policy) bool { return p.Spec.Staged })
}

func (x *explainer) markStaged(p *datastore.RulePlace) {
	if q := x.view.Policy(p.Name); q != nil && p.Kind == datastore.KindPolicy {
		p.Staged = q.Spec.Staged
	}
}

// sameExplanation says whether the same rule decides the same.
func sameExplanation(a, b control.Explanation) bool {
	same := func(x, y *datastore.RulePlace) bool { return (x == nil) == (y == nil) && (x == nil || *x == *y) }
	return a.Allowed == b.Allowed && a.Reason == b.Reason && same(a.By, b.By)
}

// index is the packet filter of a node, as far as it concerns the two parties: who else is
// there changes nothing for them.
func (x *explainer) index(node string, promoted bool) (*acl.Index, error) {
	key := fmt.Sprint(promoted, " ", node)
	if i := x.indexes[key]; i != nil {
		return i, nil
	}
	cfg, err := x.settings.agentConfig()
	if err != nil {
		return nil, err
	}
	index := acl.NewIndex(node, cfg.FilterOptions())
	index.SetReversePath(cfg.Sources())
	if x.hasHosts(node) {
		index.SetHostLinks(x.nodeLinks(node))
		if node != x.settings.Node {
			x.note("agent.failsafeInbound and failsafeOutbound of %s are taken to be what they are here", node)
		}
	}
	put := func(object datastore.Object) {
		index.Apply(datastore.Change{Kind: object.Kind(), Name: object.Meta().Name, New: object})
	}
	for _, kind := range []datastore.Kind{datastore.KindNetworkSet, datastore.KindTier, datastore.KindPolicy, datastore.KindProfile} {
		for _, o := range x.view.Objects(kind) {
			if p, ok := o.(*datastore.Policy); ok && promoted {
				o = inForce(p)
			}
			put(o)
		}
	}
	for _, kind := range []datastore.Kind{datastore.KindHostEndpoint, datastore.KindNode, datastore.KindPool} {
		for _, o := range x.view.Objects(kind) {
			put(o)
		}
	}
	for _, e := range x.view.Endpoints() {
		if e == x.src.endpoint || e == x.dst.endpoint || e.Owns(x.src.Address) || e.Owns(x.dst.Address) {
			put(e)
		}
	}
	for index.Work() {
	}
	x.learn(index, node)
	if x.indexes == nil {
		x.indexes = map[string]*acl.Index{}
	}
	x.indexes[key] = index
	return index, nil
}

// inForce is the policy as it would be if it was promoted.
func inForce(p *datastore.Policy) *datastore.Policy {
	q := *p
	q.Spec.Staged = false
	q.SetDefaults()
	return &q
}

// published leads on what is sent to a port of a node that is published for an endpoint.
func (x *explainer) published(t *traffic) {
	if x.dst.endpoint != nil || x.dst.Node == "" || t.last != t.first {
		return
	}
	for _, e := range x.view.EndpointsOf(x.dst.Node) {
		for _, p := range e.Spec.HostPorts {
			if p.Protocol != t.Protocol || p.HostPort != t.first || p.HostIP.IsValid() && p.HostIP != x.dst.Address {
				continue
			}
			for _, a := range e.Spec.Addresses {
				if a.Is4() == x.dst.Address.Is4() {
					x.note("%s port %d of %s is published for %s: it leads to %s port %d", t.Protocol, p.HostPort, x.dst.Node, e.Metadata.Name, a, p.Port)
					x.dst = endpointParty(x.dst.Said, e, a)
					t.first, t.last = p.Port, p.Port
					return
				}
			}
		}
	}
}

func (x *explainer) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(x.notes, text) {
		x.notes = append(x.notes, text)
	}
}

// noteMissing notes what the two, or rules that were asked, name and is not there.
func (x *explainer) noteMissing(flows []explainedFlow) {
	for _, f := range flows {
		for _, s := range f.Sides {
			for _, p := range s.places() {
				x.noteMissingOf(s.Node, p)
			}
		}
	}
	for _, p := range []party{x.src, x.dst} {
		if p.endpoint == nil {
			continue
		}
		if len(p.endpoint.Spec.Profiles) == 0 {
			x.note("endpoint %s has no profile", p.Endpoint)
		}
		for _, name := range p.endpoint.Spec.Profiles {
			if x.view.Profile(name) == nil {
				x.note("endpoint %s names profile %s, which does not exist", p.Endpoint, name)
			}
		}
	}
}

// noteMissingOf notes what a rule names and is not there.
func (x *explainer) noteMissingOf(node string, p datastore.RulePlace) {
	r, err := datastore.ParseRule(p.Rule)
	if err != nil {
		return
	}
	for _, s := range []datastore.Side{r.From, r.To} {
		if set := s.Set.Value; set != "" && x.view.NetworkSet(set) == nil {
			x.note("%s names network set %s, which does not exist: it is taken for empty", p, set)
		} else if set != "" {
			x.noteDomains(node, p, x.view.NetworkSet(set))
		}
		if tag := s.Tag.Value; tag != "" && !slices.Contains(tagNames(x.view), tag) {
			x.note("%s names tag %s, which no profile has", p, tag)
		}
		if text := s.Selector.Value; text != "" && !x.picksSomebody(text) {
			x.note("%s names selector %q, which picks nobody", p, text)
		}
	}
}

// picksSomebody says whether an endpoint or a network set has labels that a selector wants.
func (x *explainer) picksSomebody(text string) bool {
	sel, err := datastore.ParseSelector(text)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(x.view.NetworkSets(), func(n *datastore.NetworkSet) bool { return sel.Matches(n.Metadata.Labels) }) ||
		slices.ContainsFunc(x.view.Endpoints(), func(e *datastore.Endpoint) bool { return sel.Matches(labelsOf(x.view, e)) })
}

// places are the rules that were asked.
func (s explainedSide) places() (list []datastore.RulePlace) {
	of := []control.Explanation{s.Explanation}
	if s.Staged != nil {
		of = append(of, *s.Staged)
	}
	for _, e := range of {
		for _, p := range e.Passed {
			list = append(list, p.RulePlace)
		}
		if e.By != nil {
			list = append(list, *e.By)
		}
	}
	return list
}

// way is the packet's, from the source's node on.
func (x *explainer) way(ctx context.Context) (traced, error) {
	t := tracer{settings: x.settings, view: x.view, addr: x.dst.Address}
	start := x.src.Node
	if start == "" {
		start = x.dst.Node
	}
	if start == x.settings.Node && x.src.Node != "" {
		return t.run(ctx)
	}
	out := traced{Address: x.dst.Address}
	switch {
	case x.dst.endpoint != nil || x.dst.Node != "" || t.pool() != "":
		t.goOn(&out, start, nil)
	default:
		out.Arrives, out.End = true, fmt.Sprintf("%s hands it on by a route of its own, which is not known here", start)
	}
	return out, nil
}
