package commands

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

func newNetworkShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show the networks, or how one is on every node",
		Long: "Show the networks with their pools and profiles or, with a name, how that one is in the container runtimes of every node, as the nodes last\n" +
			"reported: present, missing, differs (a person made or changed it; it stays), unknown; and how many endpoints of the node are in it.",
		Example:           "  netctl network show\n  netctl network show dataman\n  netctl network show dataman -o json",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNetwork, networkNames),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return a.showKind(cmd.Context(), *f, datastore.KindNetwork, nil, layoutOf(datastore.KindNetwork, *f), nil)
		}
		if err := checkNames(datastore.KindNetwork, args...); err != nil {
			return err
		}
		return a.showNetwork(cmd.Context(), *f, args[0])
	}
	return cmd
}

// networkPlace is how a network is in one runtime of one node.
type networkPlace struct {
	Node    string `json:"node"`
	Runtime string `json:"runtime,omitempty"`
	State   string `json:"state,omitempty"`
	Used    int    `json:"used"`
	Reason  string `json:"reason,omitempty"`
}

func (a *app) showNetwork(ctx context.Context, f format, name string) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	need := needed{}
	need.one(datastore.KindNetwork, name)
	need.all(datastore.KindNode, datastore.KindReport, datastore.KindEndpoint)
	view, err := a.list(ctx, s, need)
	if err != nil {
		return err
	}
	n := view.Network(name)
	if n == nil {
		return fmt.Errorf("network %s: %w", name, datastore.ErrNotFound)
	}
	places := networkPlaces(view, n, time.Now())
	if f.manifests() {
		return a.showPlain(f, places)
	}
	var rows [][]string
	for _, p := range places {
		rows = append(rows, []string{p.Node, p.Runtime, p.State, strconv.Itoa(p.Used), p.Reason})
	}
	return a.print(fmt.Sprintf("network %s: %s\n", name, networkWords(n.Spec)) + table([]string{"Node", "Runtime", "State", "Used by", "Why"}, rows))
}

// networkPlaces are where a network is, or should be.
func networkPlaces(view *datastore.View, n *datastore.Network, now time.Time) []networkPlace {
	list := []networkPlace{}
	for _, node := range view.Nodes() {
		list = append(list, placesOn(view, n, node.Metadata.Name, now)...)
	}
	return list
}

// placesOn are those of one node: its runtimes that are to have the network or have it all
// the same, and whatever else has endpoints in it.
func placesOn(view *datastore.View, n *datastore.Network, node string, now time.Time) (list []networkPlace) {
	used := map[string]int{} // by orchestrator, which are called as the runtimes are
	for _, e := range view.EndpointsIn(n.Metadata.Name) {
		if e.Spec.Node == node {
			used[e.Spec.Orchestrator]++
		}
	}
	report := view.Report(node, datastore.ReportAgent)
	silent := ""
	switch {
	case report == nil:
		silent = "the node has never reported"
	case now.Sub(report.Status.Seen) > control.Silence:
		silent = "the node has not reported for " + since(now.Sub(report.Status.Seen))
	}
	if silent == "" {
		for _, s := range report.Status.Runtimes {
			p := networkPlace{Node: node, Runtime: s.Runtime, Used: used[s.Runtime]}
			p.State, p.Reason = s.Of(n)
			if !slices.Contains(n.Spec.Runtimes, s.Runtime) && p.State != datastore.NetworkLeft {
				continue
			}
			delete(used, s.Runtime)
			list = append(list, p)
		}
	}
	for _, orchestrator := range slices.Sorted(maps.Keys(used)) {
		list = append(list, networkPlace{Node: node, Runtime: orchestrator, Used: used[orchestrator], Reason: silent})
	}
	switch {
	case silent != "" && len(n.Spec.Runtimes) > 0:
		return append(list, networkPlace{Node: node, State: datastore.NetworkUnknown, Reason: silent})
	case len(list) == 0 && len(n.Spec.Runtimes) > 0:
		return append(list, networkPlace{Node: node, Reason: "has none of the network's runtimes"})
	}
	return list
}
