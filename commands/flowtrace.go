package commands

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// Times of a trace: until the agents of all nodes watch, and then until they have told.
const (
	traceReady = 3 * time.Second
	traceTold  = 6 * time.Second
)

// flowTrace is what the kernels did with a packet, as it is printed.
type flowTrace struct {
	Verdict     string       `json:"verdict"` // arrived, dropped or unknown
	Source      party        `json:"source"`
	Destination party        `json:"destination"`
	Packet      string       `json:"packet"`
	Sent        string       `json:"sent"` // what came of it at the sender
	Answered    bool         `json:"answered"`
	End         string       `json:"end"`
	Nodes       []tracedNode `json:"nodes"`
	// Disagrees is where the rules of the datastore say otherwise; "": nowhere.
	Disagrees string    `json:"disagrees,omitempty"`
	Model     explained `json:"model"`
}

// tracedNode is what one node did.
type tracedNode struct {
	Node string `json:"node"`
	datastore.Answer
}

const (
	traceArrived = "arrived"
	traceDropped = "dropped"
	traceUnknown = "unknown"
)

func newTraceCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace SRC DST [PROTO [PORT]]",
		Short: "Send a packet from one to another, and show what the kernels of both nodes do with it",
		Long: "Send a packet from SRC, an endpoint or a node, to DST, and show each chain that it passes and each rule that it matches in the kernels of both nodes,\n" +
			"whichever program's they are. What `netctl explain` says of it by the datastore's rules is held against that. SRC, DST, PROTO and PORT are as there;\n" +
			"without PROTO it is an echo request. It is sent from SRC's own network namespace: TCP connects and closes, UDP sends \"netctl trace\".\n\n" +
			"The agents of the nodes do it, asked by the datastore, within some seconds. No other packet is traced. Nothing is left behind: the nftables table by\n" +
			"which a flow is traced belongs to the agent's socket. Other packet filters than nftables, iptables-legacy too, are not seen.",
		Example:           "  netctl trace web-1 db-1 tcp 5432\n  netctl trace node1/cni/web-1/eth0 10.65.1.7\n  netctl trace web-1 world udp 53 -o json",
		Args:              cobra.RangeArgs(2, 4),
		ValidArgsFunction: a.completeExplain,
		Annotations:       map[string]string{exitCodes: "0 it arrived, 1 failed or could not tell, 2 usage, 3 it was dropped"},
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out, err := a.trace(cmd.Context(), args)
		if err != nil {
			return err
		}
		if f.manifests() {
			err = a.showPlain(*f, out)
		} else {
			err = a.print(out.text())
		}
		switch {
		case err != nil || out.Verdict == traceArrived:
			return err
		case out.Verdict == traceDropped:
			return errNo
		}
		return errors.New("nobody can tell whether it arrived")
	}
	return cmd
}

// trace sends a packet, and gathers what became of it.
func (a *app) trace(ctx context.Context, args []string) (out flowTrace, err error) {
	s, err := a.settings()
	if err != nil {
		return out, err
	}
	view, err := a.view(ctx, explainKinds()...)
	if err != nil {
		return out, err
	}
	x := explainer{settings: s, view: view}
	flow, nodes, words, err := x.flowOf(args)
	if err != nil {
		return out, err
	}
	out.Source, out.Destination = x.src, x.dst
	model := explainer{settings: s, view: view, sourcePort: flow.SourcePort}
	said := words
	if flow.Protocol == datastore.ProtocolICMP || flow.Protocol == datastore.ProtocolICMPv6 {
		model.sourcePort = 0
	}
	if out.Model, err = model.answer(ctx, said); err != nil {
		a.warn("the datastore's rules say nothing of it: %s", oneLine(err))
	}
	store, err := a.store(ctx)
	if err != nil {
		return out, err
	}
	defer a.waiting("the agents")()
	answers, err := askTrace(ctx, store, s.Node, nodes, flow)
	if err != nil {
		return out, err
	}
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, tracedNode{n, answers[n]})
	}
	t := traffic{Protocol: nameOfProtocol(flow.Protocol), number: flow.Protocol, first: flow.DestinationPort, last: flow.DestinationPort}
	if t.icmp() {
		t, _ = parseTraffic([]string{t.Protocol}) // echo request
	}
	out.Packet = t.done().between(flow.Sources[0], flow.Destination)
	out.judge()
	return out, nil
}

// flowOf is the flow of a packet, the nodes that see it, and the words for explain.
func (x *explainer) flowOf(args []string) (f datastore.TraceFlow, nodes, words []string, err error) {
	t, err := parseTraffic(args[2:])
	if err != nil {
		return f, nil, nil, err
	}
	if err := x.between(args[0], args[1], t); err != nil {
		return f, nil, nil, err
	}
	words = args
	if len(args) == 2 {
		words = append(slices.Clone(args), map[bool]string{true: "icmp", false: "icmpv6"}[x.dst.Address.Is4()])
		t, _ = parseTraffic(words[2:])
	}
	if err := t.named(x.dst, words); err != nil {
		return f, nil, nil, err
	}
	switch {
	case x.src.Node == "":
		return f, nil, nil, usage("%s: nobody can send from there but itself; SRC is an endpoint or a node", args[0])
	case t.icmp() && len(args) == 4:
		return f, nil, nil, usage("%s: only echo requests are sent: leave out %s", t.Protocol, args[3])
	case t.parted() && !t.icmp() && t.first != t.last || t.parted() && !t.icmp() && t.first == 0:
		return f, nil, nil, usage("%s: name a PORT", t.Protocol)
	case x.src.endpoint != nil && x.src.endpoint == x.dst.endpoint:
		return f, nil, nil, usage("%s and %s are the same: the packet does not leave the workload", args[0], args[1])
	case x.src.endpoint == nil && x.src.Node == x.dst.Node && x.dst.endpoint == nil:
		return f, nil, nil, usage("%s and %s are the same node: the packet does not leave it", args[0], args[1])
	}
	f = datastore.TraceFlow{From: x.src.Node, Endpoint: x.src.Endpoint, Sources: []netip.Addr{x.src.Address}, Destination: x.dst.Address, Protocol: t.number}
	n, err := rand.Int(rand.Reader, big.NewInt(10000))
	if err != nil {
		return f, nil, nil, err
	}
	if t.parted() {
		f.SourcePort = uint16(50000 + n.Int64())
	}
	if t.parted() && !t.icmp() {
		f.DestinationPort = t.first
	}
	nodes = []string{x.src.Node}
	if x.dst.Node != "" && x.dst.Node != x.src.Node {
		nodes = append(nodes, x.dst.Node)
	}
	if node := x.view.Node(x.src.Node); node != nil && x.src.endpoint != nil { // natOutgoing
		for _, p := range node.Spec.Addresses {
			if p.Addr().Is4() == x.dst.Address.Is4() && len(f.Sources) < 4 {
				f.Sources = append(f.Sources, p.Addr())
			}
		}
	}
	return f, nodes, words, f.Check()
}

// askTrace asks the agents of nodes what becomes of the packet of a flow.
func askTrace(ctx context.Context, store datastore.Store, node string, nodes []string, flow datastore.TraceFlow) (map[string]datastore.Answer, error) {
	q := question{store: store, Ask: datastore.Ask{Nodes: nodes, Trace: &flow}}
	if err := q.put(ctx, node); err != nil {
		return nil, err
	}
	defer q.remove(ctx)
	answers, err := q.await(ctx, traceReady, func(a datastore.Answer) bool { return a.Ready || a.Error != "" })
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		switch a, ok := answers[n]; {
		case !ok:
			return nil, fmt.Errorf("the agent of %s does not answer: it is not running, away from the datastore, or older than netctl trace", n)
		case a.Error != "":
			return nil, fmt.Errorf("%s: %s", n, a.Error)
		}
	}
	q.Go = true
	if err := q.put(ctx, node); err != nil {
		return nil, err
	}
	return q.await(ctx, traceTold, func(a datastore.Answer) bool { return a.Told || a.Error != "" },
		func(a datastore.Answer) bool { return a.Fate != datastore.Forwarded }) // it goes no farther
}

// judge says what became of the packet, and whether the model agrees.
func (t *flowTrace) judge() {
	t.Sent, t.Answered = t.Nodes[0].Sent, t.Nodes[0].Answered
	t.Verdict = traceUnknown
	for i, n := range t.Nodes {
		last := i == len(t.Nodes)-1
		switch {
		case n.Error != "":
			t.End = n.Node + ": " + n.Error
		case !n.Told:
			t.End = n.Node + " did not tell what it saw"
		case n.Fate == datastore.Unseen && i == 0:
			t.End = "it did not leave " + t.Source.Said + ": " + t.Sent
		case n.Fate == datastore.Unseen:
			t.End = fmt.Sprintf("it left %s and did not come to %s", t.Nodes[i-1].Node, n.Node)
		case n.Fate == datastore.Dropped:
			t.Verdict, t.End = traceDropped, "on "+n.Node+", "+n.why()
		case n.Fate == datastore.Vanished && n.Lost:
			t.End = n.Node + " did not tell all that it saw"
		case n.Fate == datastore.Vanished:
			t.Verdict, t.End = traceDropped, "on "+n.Node+", by no rule of nftables: by its routes, its reverse-path filter, or iptables-legacy"
		case !last && n.Fate == datastore.Forwarded:
			continue
		case n.arrives(t.Destination):
			t.Verdict, t.End = traceArrived, "at "+n.destination(t.Destination)
		case t.Answered:
			t.Verdict, t.End = traceArrived, "somewhere behind "+n.Node+": it was answered"
		case n.Fate == datastore.Forwarded:
			t.End = fmt.Sprintf("it left %s by %s, and was not answered", n.Node, n.out())
		default:
			t.End = "it came to " + n.Node + " itself, which is not where it was for"
		}
		break
	}
	t.compare()
}

// compare holds the model's answer against it.
func (t *flowTrace) compare() {
	model := t.Model.Verdict
	switch {
	case t.Verdict == traceArrived && model == verdictDenied:
		t.Disagrees = "by the datastore's rules it is denied, and it arrived"
	case t.Verdict == traceDropped && model == verdictAllowed:
		t.Disagrees = "by the datastore's rules it is allowed, and it was dropped"
	case t.Verdict == traceDropped && model == verdictDenied:
		var last *datastore.RulePlace
		for _, n := range t.Nodes {
			if n.Fate == datastore.Dropped {
				last = n.decider()
			}
		}
		for _, s := range t.Model.Flows[0].Sides {
			if s.Allowed {
				continue
			}
			if (s.By == nil) != (last == nil) || s.By != nil && s.By.ID != last.ID {
				t.Disagrees = "by the datastore's rules it is " + verdictText(s.Explanation)
			}
			break
		}
	}
}

// decider is the rule of the model that dropped the packet; nil: none did.
func (n tracedNode) decider() *datastore.RulePlace {
	for _, s := range slices.Backward(n.Steps) {
		switch {
		case s.Table != ours:
			return nil
		case s.Rule != nil && (s.Verdict == "drop" || denies(s)):
			return s.Rule
		case !denying(s.Chain):
			return nil
		}
	}
	return nil
}

func (n tracedNode) out() string { return n.Steps[len(n.Steps)-1].Out }

// arrives says whether the packet is where it was for.
func (n tracedNode) arrives(dst party) bool {
	if len(n.Steps) == 0 {
		return false
	}
	last := n.Steps[len(n.Steps)-1]
	if n.Fate == datastore.Delivered {
		return dst.endpoint == nil && dst.Node == n.Node
	}
	return last.Endpoint != "" && (dst.Endpoint == last.Endpoint || dst.endpoint == nil && dst.Node == n.Node) // a published port leads on
}

func (n tracedNode) destination(dst party) string {
	if e := n.Steps[len(n.Steps)-1].Endpoint; e != "" {
		return "endpoint " + e + ", interface " + n.out() + " of " + n.Node
	}
	return "node " + dst.Node
}
