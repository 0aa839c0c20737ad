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
	"time"

	"github.com/spf13/cobra"

	"netctl/acl"
	"netctl/acl/nflog"
	"netctl/datastore"
)

// drop is a packet that a rule dropped or wrote, or several alike, as it is printed.
type drop struct {
	Time time.Time `json:"time"`
	// Action is "denied", "limited", "logged" by a rule of that action, or "staged": it passed,
	// and would be denied if the staged policies were in force.
	Action      string               `json:"action"`
	Direction   string               `json:"direction"` // as the endpoint of this node sees it
	Protocol    string               `json:"protocol"`
	Source      dropEnd              `json:"source"`
	Destination dropEnd              `json:"destination"`
	Rule        *datastore.RulePlace `json:"rule,omitempty"`
	Tier        string               `json:"tier,omitempty"` // whose rules did not decide
	Reason      string               `json:"reason,omitempty"`
	// HostEndpoint is what it was denied to, or by, where that is no endpoint of this node.
	HostEndpoint string `json:"hostEndpoint,omitempty"`
	// Staged says of what is denied that it would pass if the staged policies were in force.
	Staged bool `json:"allowedIfPromoted,omitempty"`
	Count  int  `json:"count"`
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
		Long: "Show the packets from and to endpoints of this node, and its host endpoints, that are dropped, those that rules `log`, and those that staged policies would deny (`staged`), with the\n" +
			"endpoints' names and the rule that decides: for some seconds, counted, or with -f each as it comes. The kernel tells of 50 packets a second of each pair of\n" +
			"interfaces, and one program at a time (NFLOG group 1); of what guards drop it tells the reverse path alone. As root.",
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
		ctx := cmd.Context()
		if follow {
			d := dropper{app: a, settings: s}
			return nflog.Listen(ctx, acl.NFLogGroup, func(e nflog.Entry) error {
				if one, ok := d.explain(ctx, e); ok {
					return a.showDrop(*f, one)
				}
				return nil
			})
		}
		all, err := a.watchDrops(ctx, s, period)
		if err != nil {
			return err
		}
		return a.showDrops(*f, all, period)
	}
	return cmd
}

// watchDrops is what is dropped in a time, counted.
func (a *app) watchDrops(ctx context.Context, s *settings, period time.Duration) (all []drop, err error) {
	if period <= 0 {
		return nil, usage("--for %s: must be longer than nothing", period)
	}
	d := dropper{app: a, settings: s}
	within, cancel := context.WithTimeout(ctx, period)
	defer cancel()
	err = nflog.Listen(within, acl.NFLogGroup, func(e nflog.Entry) error {
		if one, ok := d.explain(ctx, e); ok {
			all = counted(all, one)
		}
		return nil
	})
	return all, err
}

// dropper says of packets that were logged whose they are and which rule decides.
type dropper struct {
	app      *app
	settings *settings
	view     *datastore.View
	read     time.Time // when the view was
	rules    map[string]datastore.RulePlace
}

// staleView is how old what the datastore says may be; of a rule that it does not know,
// newView.
const (
	staleView = time.Second
	newView   = 100 * time.Millisecond
)

// refresh reads what the datastore says, if that is due.
func (d *dropper) refresh(ctx context.Context, rule string) {
	age := time.Since(d.read)
	if d.view != nil {
		if _, known := d.places()[rule]; age < newView || age < staleView && (known || rule == "") {
			return
		}
	}
	switch view, err := d.app.view(ctx, explainKinds()...); {
	case err == nil:
		d.view, d.rules = view, nil
	case d.view == nil:
		d.app.warn("no names and rules: %v", err)
		d.view = datastore.NewView()
	}
	d.read = time.Now()
}

// explain says it by what the datastore has now; while that does not answer, by what it
// had, or without names. It is false of what staged policies would not deny after all.
func (d *dropper) explain(ctx context.Context, e nflog.Entry) (drop, bool) {
	l := acl.ParseLog(e.Prefix)
	d.refresh(ctx, l.Rule)
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
	if limit, inwards, limited := acl.Limited(e.Prefix); limited {
		return out.limited(limit, inwards, x), true
	}
	out.decide(l, d.places())
	own, other := x.src, x.dst
	if l.Inbound {
		own, other = x.dst, x.src
	}
	if own.endpoint == nil || own.Node != d.settings.Node {
		out.HostEndpoint = x.hostAt(map[bool]string{true: e.InLink, false: e.OutLink}[l.Inbound])
	}
	if !x.judges(own, other) || !l.Denied && !l.Staged || !hasStaged(d.view) {
		return out, true
	}
	side, err := x.side(ctx, own, other, l.Inbound, t)
	switch {
	case err != nil:
		return out, true
	case l.Denied:
		out.Staged = !side.Allowed && side.Staged != nil && side.Staged.Allowed
		return out, true
	case !side.Allowed || side.Staged == nil || side.Staged.Allowed:
		return out, false
	}
	out.Rule, out.Reason = side.Staged.By, side.Staged.Reason
	return out, true
}

// limited is the drop of a packet that was over a limit of an endpoint here.
func (d drop) limited(limit string, inwards bool, x *explainer) drop {
	own := x.src
	if inwards {
		d.Direction, own = inbound, x.dst
	}
	if d.Action, d.Reason = "limited", "over "+limit; own.endpoint != nil {
		d.Reason += limitText(own.endpoint, x.view, limit)
	}
	return d
}

// places are the rules of the view by their IDs.
func (d *dropper) places() map[string]datastore.RulePlace {
	if d.rules == nil {
		d.rules = map[string]datastore.RulePlace{}
		for _, kind := range []datastore.Kind{datastore.KindProfile, datastore.KindPolicy} {
			for _, o := range d.view.Objects(kind) {
				for _, p := range acl.Places(o) {
					d.rules[p.ID] = p
				}
			}
		}
	}
	return d.rules
}

// decide says what the prefix of the packet's message does.
func (d *drop) decide(l acl.Log, rules map[string]datastore.RulePlace) {
	if l.Inbound {
		d.Direction = inbound
	}
	switch {
	case l.Staged:
		d.Action = "staged"
	case !l.Denied:
		d.Action = "logged"
	}
	place, known := rules[l.Rule]
	switch {
	case known:
		d.Rule = &place
	case l.Rule != "":
		d.Reason = "a rule of " + l.Whose + " that has changed since"
	default:
		d.Reason, d.Tier = l.Reason(), l.Whose
	}
}

// counted adds a drop to those like it: between the same two, whatever port it came from.
func counted(all []drop, d drop) []drop {
	like := func(o drop) bool {
		same := func(x, y *datastore.RulePlace) bool { return (x == nil) == (y == nil) && (x == nil || *x == *y) }
		return o.Action == d.Action && o.Staged == d.Staged && o.Direction == d.Direction && o.Protocol == d.Protocol && o.Source.Address == d.Source.Address &&
			o.Destination == d.Destination && o.Reason == d.Reason && o.HostEndpoint == d.HostEndpoint && same(o.Rule, d.Rule)
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
	why := d.Reason
	if d.Rule != nil {
		why = d.Rule.String()
	}
	if d.HostEndpoint != "" {
		why = hostWords(d.HostEndpoint) + ": " + why
	}
	if d.Staged {
		why += "; allowed with the staged policies in force"
	}
	return why
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
