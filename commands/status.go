package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

// statusTime bounds how long status waits, first for the datastore, then for the
// sockets: that the one is away must not look as if the other were.
const statusTime = 5 * time.Second

// nodeReport is the state of one node.
type nodeReport struct {
	Node string `json:"node"`
	// Healthy: nothing is wrong.
	Healthy   bool              `json:"healthy"`
	Problems  []string          `json:"problems"`
	Limited   []control.Limited `json:"limited,omitempty"`
	Running   bool              `json:"running"`
	InSync    bool              `json:"inSync"`
	Reflector bool              `json:"reflector,omitempty"` // and no agent is on the machine
	Started   time.Time         `json:"started,omitzero"`
	Endpoints int               `json:"endpoints"`
	// Waiting is how many of them the datastore, which was away, has yet to hear of.
	Waiting int `json:"waiting,omitempty"`
	// Taps is how many of them have a TAP, and Closed are those whose TAP no virtual
	// machine has open.
	Taps    int      `json:"taps,omitempty"`
	Closed  []string `json:"closed,omitempty"`
	Version string   `json:"version,omitempty"`
	// Datastore is one line on the datastore, as the asking machine sees it.
	Datastore string `json:"datastore"`
	// Authority says how far it is, while the cluster's authority is replaced.
	Authority string            `json:"authority,omitempty"`
	Addresses []netip.Addr      `json:"addresses"`
	AS        string            `json:"as,omitempty"` // "64511 (inherited)"
	Sessions  []control.Session `json:"sessions"`
	// RefusedCount is how many prefixes of peers were not believed; Refused names
	// them with the reason, as far as this machine knows.
	RefusedCount int      `json:"refusedCount"`
	Refused      []string `json:"refused"`
	// Filter is what filters packets, and Lacks what that does less than nftables.
	Filter string   `json:"filter,omitempty"`
	Lacks  []string `json:"lacks,omitempty"`
	// Notes are what may be meant so: rules that name what does not exist.
	Notes []string `json:"notes,omitempty"`
	// Unread is what other nodes have in the datastore that cannot be read: theirs to put right.
	Unread []string `json:"unread,omitempty"`
	// Refusing are other programs' chains that may refuse what netctl allows.
	Refusing []string `json:"refusing,omitempty"`

	hangs  bool // the agent is there, but did not answer in time
	remote bool // known by its reports, which have no numbers of prefixes
}

func (r *nodeReport) problem(format string, args ...any) {
	p := datastore.Line(fmt.Sprintf(format, args...))
	if !slices.Contains(r.Problems, p) {
		r.Problems = append(r.Problems, p)
	}
}

func newStatusCommand(a *app) *cobra.Command {
	var node string
	var all bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show whether this node is healthy, and its BGP sessions",
		Long: "Show whether this node is healthy, and its BGP sessions. Whatever is wrong is said at the top and makes the exit code 3.\n" +
			"With --node or --all the answer is what the nodes last reported to the datastore.",
		Example:     "  netctl status\n  netctl status --all -o wide",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{exitCodes: "0 healthy, 1 could not tell, 2 usage, 3 something is wrong"},
	}
	f := addFormat(cmd)
	cmd.Flags().StringVar(&node, "node", "", "`name` of the node (default: this one)")
	cmd.Flags().BoolVar(&all, "all", false, "every node of the cluster")
	cmd.MarkFlagsMutuallyExclusive("node", "all")
	_ = cmd.RegisterFlagCompletionFunc("node", a.complete(datastore.KindNode, nodeNames))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		reports, err := a.reports(cmd.Context(), node, all)
		if err != nil {
			return err
		}
		return a.showReports(*f, reports, all)
	}
	return cmd
}

func (a *app) reports(ctx context.Context, node string, all bool) ([]*nodeReport, error) {
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	store, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	health := make(chan storeHealth, 1)
	reading, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	local := !all && (node == "" || node == s.Node)
	own := ""
	if local && s.Client.Server == "" {
		own = filepath.Join(s.RunDir, "etcd.sock")
	}
	go func() { health <- storeLine(reading, store, own) }()
	listing := ctx // of a large cluster: each page has its own deadline
	if local {
		listing = reading
	}
	view, storeErr := a.list(listing, store, neededForStatus(cmp.Or(node, s.Node), local, all))
	if errors.Is(storeErr, context.DeadlineExceeded) {
		storeErr = fmt.Errorf("%w: no answer within %s", datastore.ErrUnavailable, statusTime)
	}
	how := <-health
	switch {
	case local:
		r := localReport(ctx, s, view, storeErr)
		r.Datastore = how.line
		replaced, wrong := s.authorityState(reading, store)
		r.Authority = replaced
		for _, w := range append(how.wrong, wrong...) {
			r.problem("%s", w)
		}
		if full := s.fullDisk(); full != "" {
			r.problem("%s", full)
		}
		r.Healthy = len(r.Problems) == 0
		return []*nodeReport{r}, nil
	case storeErr != nil:
		return nil, storeErr
	}
	nodes := view.Nodes()
	if !all {
		if err := checkNames(datastore.KindNode, node); err != nil {
			return nil, err
		}
		n := view.Node(node)
		if n == nil {
			return nil, fmt.Errorf("node %s: %w", node, datastore.ErrNotFound)
		}
		nodes = []*datastore.Node{n}
	}
	var out []*nodeReport
	for _, n := range nodes {
		r := remoteReport(view, n, time.Now())
		r.Datastore = how.line
		for _, w := range how.wrong {
			r.problem("%s", w)
			r.Healthy = false
		}
		out = append(out, r)
	}
	return out, nil
}

// count is a number with its noun: "1 member", "3 members".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// localReport asks the sockets of this node; view may be nil.
func localReport(ctx context.Context, s *settings, view *datastore.View, storeErr error) *nodeReport {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	r := &nodeReport{Node: s.Node, Version: version}
	if view != nil {
		if n := view.Node(s.Node); n != nil {
			r.identity(view, n)
		}
	}
	var (
		speaker    control.SpeakerStatus
		speakerErr error
		asked      = make(chan struct{})
	)
	go func() { // beside the agent: one that hangs must not use up the other's time
		defer close(asked)
		speaker, speakerErr = control.NewSpeakerClient(s.Speaker.Socket).Status(ctx)
	}()
	agent, agentErr := control.NewAgentClient(s.Agent.Socket).Status(ctx)
	r.hangs = agentErr != nil && ctx.Err() != nil
	<-asked
	r.lost(storeErr, agent, speaker)
	switch {
	case agentErr != nil && speakerErr == nil && speaker.Bare:
		r.Reflector = true
	case agentErr != nil:
		r.problem("%v", agentErr)
	default:
		r.fromAgent(agent)
	}
	if speakerErr != nil {
		r.problem("%v", speakerErr)
	} else {
		r.fromSpeaker(speaker)
	}
	r.finish()
	return r
}

// lost says why the datastore does not answer or is not followed, each reason
// once, and whose it is unless we see it ourselves.
func (r *nodeReport) lost(storeErr error, agent control.AgentStatus, speaker control.SpeakerStatus) {
	type reason struct {
		text string
		of   []string
	}
	var reasons []reason
	add := func(who, text string) {
		for _, cause := range []error{datastore.ErrUnavailable, datastore.ErrDetached} {
			if i := strings.Index(text, cause.Error()); i >= 0 {
				text = text[i:] // not what was tried
			}
		}
		i := slices.IndexFunc(reasons, func(x reason) bool { return x.text == text })
		switch {
		case text == "":
		case i < 0:
			reasons = append(reasons, reason{text, []string{who}})
		default:
			reasons[i].of = append(reasons[i].of, who)
		}
	}
	if storeErr != nil {
		add("", storeErr.Error())
	}
	add("agent", agent.Detached+agent.Store)
	add("speaker", speaker.Detached+speaker.Store)
	for _, x := range reasons {
		if x.of[0] == "" {
			r.problem("%s", x.text)
		} else {
			r.problem("%s: %s", strings.Join(x.of, ", "), x.text)
		}
	}
}

// identity is the node's addresses and AS number.
func (r *nodeReport) identity(view *datastore.View, n *datastore.Node) {
	for _, p := range n.Spec.Addresses {
		r.Addresses = append(r.Addresses, p.Addr())
	}
	r.AS = asNumber(view, n)
}

func (r *nodeReport) fromAgent(st control.AgentStatus) {
	r.Running, r.InSync, r.Started, r.Endpoints, r.Version = true, st.InSync, st.Started, st.Endpoints, st.Version
	r.Filter, r.Lacks = st.Filter, st.Lacks
	r.Waiting, r.Taps, r.Closed, r.Notes, r.Unread, r.Refusing, r.Limited = st.Waiting, st.Taps, st.Closed, st.Notes, st.Unread, st.Refusing, st.Limited
	if len(r.Addresses) == 0 {
		r.Addresses = st.Address
	}
	for _, p := range st.Problems {
		r.problem("%s", p)
	}
	if !st.InSync && len(r.Problems) == 0 {
		r.problem("agent: not yet in sync")
	}
}

func (r *nodeReport) fromSpeaker(st control.SpeakerStatus) {
	r.Sessions, r.Refused = st.Sessions, st.Refused
	if len(r.Addresses) == 0 {
		r.Addresses = st.Addresses
	}
	if r.AS == "" && st.AS != 0 {
		r.AS = strconv.FormatUint(uint64(st.AS), 10)
		if st.ASSource == "inherited" {
			r.AS += " (inherited)"
		}
	}
	for _, p := range st.Problems {
		r.problem("%s", p)
	}
}

// remoteReport is what a node's roles last said of it. Numbers of prefixes are not
// among that.
func remoteReport(view *datastore.View, n *datastore.Node, now time.Time) *nodeReport {
	var st datastore.ReportStatus
	if agent := view.Report(n.Metadata.Name, datastore.ReportAgent); agent != nil {
		st = agent.Status
	}
	r := &nodeReport{Node: n.Metadata.Name, Running: true, InSync: !st.Behind, Started: st.Started, Endpoints: st.Endpoints,
		Version: n.Status.Version, remote: true}
	if speaker := view.Report(n.Metadata.Name, datastore.ReportSpeaker); speaker != nil {
		for _, s := range speaker.Status.Sessions {
			r.Sessions = append(r.Sessions, control.Session{SessionStatus: s})
		}
		if speaker.Status.Bare {
			st, r.Running, r.Reflector = speaker.Status, false, true
		}
	}
	r.identity(view, n)
	for _, p := range st.Problems {
		r.problem("%s", p)
	}
	switch {
	case st.Seen.IsZero():
		r.Running = false
		r.problem("node %s has never reported", r.Node)
	case now.Sub(st.Seen) > control.Silence:
		r.Running, r.Reflector = false, false
		r.problem("node %s has not reported for %s", r.Node, since(now.Sub(st.Seen)))
	}
	r.finish()
	return r
}

// finish adds what follows from the rest.
func (r *nodeReport) finish() {
	r.RefusedCount = 0
	for _, s := range r.Sessions {
		r.RefusedCount += s.Received - s.Accepted
		if s.State != established && !s.Off {
			r.problem("BGP session to %s is down: %s", s.Name(), sessionInfo(s))
		}
	}
	// An empty list is one in JSON too.
	r.Problems, r.Refused = control.CausesFirst(r.Problems), append([]string{}, r.Refused...)
	r.Sessions = append([]control.Session{}, r.Sessions...)
	slices.SortFunc(r.Sessions, func(x, y control.Session) int {
		return cmp.Or(x.Peer.WithZone("").Compare(y.Peer.WithZone("")), strings.Compare(x.Interface, y.Interface))
	})
	r.Healthy = len(r.Problems) == 0
}

// established is the state of a session that is up (RFC 4271, section 8.2.2).
const established = "Established"

func (a *app) showReports(f format, reports []*nodeReport, all bool) error {
	var err error
	switch f {
	case formatJSON, formatYAML:
		err = a.showPlain(f, reports)
	default:
		var b strings.Builder
		for i, r := range reports {
			if i > 0 {
				b.WriteString("\n")
			}
			if all {
				fmt.Fprintf(&b, "Node %s\n", r.Node)
			}
			b.WriteString(a.reportText(r, f == formatWide, time.Now()))
		}
		err = a.print(b.String())
	}
	if err == nil && slices.ContainsFunc(reports, func(r *nodeReport) bool { return !r.Healthy }) {
		err = errNo
	}
	return err
}

func (a *app) reportText(r *nodeReport, wide bool, now time.Time) string {
	var b strings.Builder
	for _, p := range r.Problems {
		b.WriteString(a.bad("! "+p) + "\n")
	}
	if len(r.Problems) > 0 {
		b.WriteString("\n")
	}
	if r.Running {
		sync := "in sync"
		if !r.InSync {
			sync = "not in sync"
		}
		endpoints := count(r.Endpoints, "endpoint")
		if r.Waiting > 0 {
			endpoints += fmt.Sprintf(" (%d attached without the datastore, which is yet to be told)", r.Waiting)
		}
		fmt.Fprintf(&b, "netctl agent is running. Up %s, %s, %s\n", since(now.Sub(r.Started)), sync, endpoints)
		if len(r.Lacks) > 0 {
			than := "than nftables"
			if r.Filter == "nftables" {
				than = "on this kernel than on newer ones"
			}
			fmt.Fprintf(&b, "Packets are filtered by %s, which does less %s:\n  %s\n", r.Filter, than, strings.Join(r.Lacks, "\n  "))
		}
		b.WriteString(r.tapText())
		for _, l := range r.Limited {
			fmt.Fprintf(&b, "Endpoint %s: %d packets were over %s %d\n", l.Endpoint, l.Packets, l.Limit, l.Value)
		}
	} else if r.Reflector {
		b.WriteString("netctl reflector is running.\n")
	} else if r.hangs {
		b.WriteString("netctl agent does not answer.\n")
	} else {
		b.WriteString("netctl agent is not running.\n")
	}
	fmt.Fprintf(&b, "netctl version %s, %s\n", cmp.Or(strings.TrimPrefix(r.Version, "v"), "unknown"), r.Datastore)
	if r.Authority != "" {
		b.WriteString(r.Authority + "\n")
	}
	for _, v6 := range []bool{false, true} {
		b.WriteString("\n" + r.familyText(v6, wide, now))
	}
	b.WriteString(r.refusedText())
	if len(r.Refusing) > 0 {
		b.WriteString("\nOther packet filters, which netctl cannot overrule:\n  " + strings.Join(r.Refusing, "\n  ") + "\n")
	}
	if len(r.Unread) > 0 {
		text := "\nOf other nodes, and passed over here because it cannot be read:\n  " + strings.Join(r.Unread[:min(len(r.Unread), mostRefused)], "\n  ") + "\n"
		if more := len(r.Unread) - mostRefused; more > 0 {
			text += fmt.Sprintf("  and %d more, which `netctl ipam check` names\n", more)
		}
		b.WriteString(text)
	}
	if len(r.Notes) > 0 {
		b.WriteString("\nNamed, and taken for empty:\n  " + strings.Join(r.Notes, "\n  ") + "\n")
	}
	return b.String()
}

// mostRefused bounds how many refused prefixes the text names.
const mostRefused = 5
