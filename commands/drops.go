package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/acl"
	"netctl/acl/nflog"
	"netctl/datastore"
)

// drop is a packet that a rule dropped or wrote, or several alike, as it is printed.
type drop struct {
	Time time.Time `json:"time"`
	// Action is "denied", or "logged" by a rule of that action.
	Action      string               `json:"action"`
	Direction   string               `json:"direction"` // as the endpoint of this node sees it
	Protocol    string               `json:"protocol"`
	Source      dropEnd              `json:"source"`
	Destination dropEnd              `json:"destination"`
	Rule        *datastore.RulePlace `json:"rule,omitempty"`
	Reason      string               `json:"reason,omitempty"`
	Count       int                  `json:"count"`
}

// dropEnd is one end of it.
type dropEnd struct {
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port,omitempty"`
	Endpoint string     `json:"endpoint,omitempty"`
	Node     string     `json:"node,omitempty"`
}

// defaultDropsFor is how long drops are waited for.
const defaultDropsFor = 5 * time.Second

func newDropsCommand(a *app) *cobra.Command {
	var follow bool
	var period time.Duration
	cmd := &cobra.Command{
		Use:   "drops",
		Short: "Show what the packet filter of this node drops, and by which rule",
		Long: "Show the packets from and to endpoints of this node that are dropped, and those that rules `log`, with the endpoints' names and the rule that\n" +
			"decides as the datastore has it: for some seconds, counted, or with -f each as it comes. The kernel tells of 50 packets a second of each pair of\n" +
			"interfaces, and one program at a time (NFLOG group 1); what guards drop it does not tell. As root.",
		Example: "  netctl drops --for 30s\n  netctl drops -f -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted, one line for each packet")
	cmd.Flags().DurationVar(&period, "for", defaultDropsFor, "`time` to wait for packets")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		d := dropper{app: a, settings: s}
		ctx := cmd.Context()
		if follow {
			return nflog.Listen(ctx, acl.NFLogGroup, func(e nflog.Entry) error { return a.showDrop(*f, d.explain(ctx, e)) })
		}
		if period <= 0 {
			return usage("--for %s: must be longer than nothing", period)
		}
		within, cancel := context.WithTimeout(ctx, period)
		defer cancel()
		var all []drop
		if err := nflog.Listen(within, acl.NFLogGroup, func(e nflog.Entry) error {
			all = counted(all, d.explain(ctx, e))
			return nil
		}); err != nil {
			return err
		}
		return a.showDrops(*f, all, period)
	}
	return cmd
}

// dropper says of packets that were logged whose they are and which rule decides.
type dropper struct {
	app      *app
	settings *settings
	view     *datastore.View
	read     time.Time // when the view was
}

// staleView is how old what the datastore says may be.
const staleView = time.Second

// explain says it by what the datastore has now; while that does not answer, by what it
// had, or without names.
func (d *dropper) explain(ctx context.Context, e nflog.Entry) drop {
	if time.Since(d.read) > staleView {
		switch view, err := d.app.view(ctx, explainKinds()...); {
		case err == nil:
			d.view = view
		case d.view == nil:
			d.app.warn("no names and rules: %v", err)
			d.view = datastore.NewView()
		}
		d.read = time.Now()
	}
	x := &explainer{settings: d.settings, view: d.view, sourcePort: e.SrcPort}
	x.src, x.dst = x.partyAt("", e.Src), x.partyAt("", e.Dst)
	x.src.Address, x.dst.Address = e.Src, e.Dst
	t := traffic{number: e.Protocol, Protocol: nameOfProtocol(e.Protocol), first: e.DstPort}
	if t.icmp() {
		t.first = uint16(e.Type)<<8 + uint16(e.Code)
	}
	t.last = t.first
	out := drop{
		Time: e.Time, Action: "denied", Direction: outbound, Protocol: t.Protocol, Count: 1,
		Source:      dropEnd{Address: e.Src, Port: e.SrcPort, Endpoint: x.src.Endpoint, Node: x.src.Node},
		Destination: dropEnd{Address: e.Dst, Port: e.DstPort, Endpoint: x.dst.Endpoint, Node: x.dst.Node},
	}
	if t.icmp() {
		out.Protocol = t.done().String()
	}
	what, whose, _ := strings.Cut(e.Prefix, "|")
	own, other := x.src, x.dst
	if strings.HasPrefix(what, "DPI") || strings.HasPrefix(what, "LPI") {
		out.Direction, own, other = inbound, x.dst, x.src
	}
	if strings.HasPrefix(what, "L") {
		out.Action, out.Reason = "logged", "a log rule of "+whose
		return out
	}
	if strings.HasPrefix(what, "DPH") {
		out.Reason = "a workload may not open this on its own host (agent.workloadToHost)"
		return out
	}
	out.decide(ctx, x, own, other, t)
	return out
}

// decide finds the rule.
func (d *drop) decide(ctx context.Context, x *explainer, own, other party, t traffic) {
	switch {
	case x.judges(own, other):
	case x.hasHosts(x.settings.Node):
		d.Reason = "by a host endpoint, of what this node forwards, or at an address that it has beside those by which it is known"
		return
	default:
		d.Reason = "by a rule of an endpoint that the datastore does not know"
		return
	}
	side, err := x.side(ctx, own, other, d.Direction == inbound, t)
	switch {
	case err != nil:
		d.Reason = oneLine(err)
	case side.Allowed:
		d.Reason = "by a rule that has changed since"
	default:
		d.Rule, d.Reason = side.By, side.Reason
	}
}

// counted adds a drop to those like it: between the same two, whatever port it came from.
func counted(all []drop, d drop) []drop {
	like := func(o drop) bool {
		same := func(x, y *datastore.RulePlace) bool { return (x == nil) == (y == nil) && (x == nil || *x == *y) }
		return o.Action == d.Action && o.Direction == d.Direction && o.Protocol == d.Protocol && o.Source.Address == d.Source.Address &&
			o.Destination == d.Destination && o.Reason == d.Reason && same(o.Rule, d.Rule)
	}
	if i := slices.IndexFunc(all, like); i >= 0 {
		all[i].Count++
		all[i].Time = d.Time
		return all
	}
	return append(all, d)
}

// String is the end in words.
func (e dropEnd) String() string {
	text := e.Address.String()
	if e.Port != 0 {
		text = net.JoinHostPort(text, strconv.Itoa(int(e.Port)))
	}
	if who := cmp.Or(e.Endpoint, e.Node); who != "" {
		text += " (" + who + ")"
	}
	return text
}

func (d drop) why() string {
	if d.Rule != nil {
		return d.Rule.String()
	}
	return d.Reason
}

// showDrop prints one packet as one line.
func (a *app) showDrop(f format, d drop) error {
	if f.manifests() {
		b, err := json.Marshal(d)
		return errors.Join(err, a.print(string(b)+"\n"))
	}
	return a.print(fmt.Sprintf("%s %s %s %s to %s: %s: %s\n", d.Time.Local().Format("15:04:05.000"), d.Action, d.Protocol, d.Source, d.Destination, d.Direction, d.why()))
}

// showDrops prints what was counted, the most first.
func (a *app) showDrops(f format, all []drop, period time.Duration) error {
	slices.SortStableFunc(all, func(x, y drop) int { return cmp.Compare(y.Count, x.Count) })
	if f.manifests() {
		if all == nil {
			all = []drop{}
		}
		return a.showPlain(f, all)
	}
	if len(all) == 0 {
		return a.print(fmt.Sprintf("Nothing was dropped in %s.\n", period))
	}
	var rows [][]string
	for _, d := range all {
		src := d.Source
		src.Port = 0 // another one each time
		rows = append(rows, []string{strconv.Itoa(d.Count), d.Action, d.Protocol, src.String(), d.Destination.String(), d.Direction, d.why()})
	}
	return a.print(table([]string{"Packets", "Action", "Protocol", "From", "To", "Direction", "Rule"}, rows))
}
