package commands

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

func newPolicyCountersCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "counters [NAME]",
		Short: "Show how many packets and bytes each rule has met on this node",
		Long: "Show how many packets and bytes each rule of policies and profiles has met on this node, or those of the policy or profile NAME, by the node's agent (with --server that of the API's node):\n" +
			"of the endpoints here, the packets that begin a connection (answers and what follows are not judged again). Policies come in the order in which they are\n" +
			"asked, profiles behind them. A rule keeps its count for as long as an endpoint of the node is judged by it and it says the same.",
		Example:           "  netctl policy counters\n  netctl policy counters web -o json",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindPolicy, policyNames),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var r control.CountersRequest
		if len(args) > 0 {
			if err := checkNames(datastore.KindPolicy, args...); err != nil {
				return err
			}
			r.Name = args[0]
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		c, err := control.NewAgentClient(s.Agent.Socket).Waiting(rolePatience).Counters(cmd.Context(), r)
		if err != nil {
			return err
		}
		return a.showCounters(*f, c)
	}
	return cmd
}

func (a *app) showCounters(f format, c control.Counters) error {
	if f.manifests() {
		return a.showPlain(f, c)
	}
	if len(c.Rules) == 0 {
		return a.print(fmt.Sprintf("No endpoint of %s is judged by such a rule.\n", c.Node))
	}
	var rows [][]string
	for _, r := range c.Rules {
		rows = append(rows, []string{strconv.FormatUint(r.Packets, 10), strconv.FormatUint(r.Bytes, 10), r.RulePlace.String()})
	}
	return a.print(table([]string{"Packets", "Bytes", "Rule"}, rows))
}
