package commands

import (
	"fmt"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newNodeRotateKeyCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate-key NAME",
		Short: "Have a node make another key for its WireGuard tunnels",
		Long: "Have a node make another key for its WireGuard tunnels. The other nodes are told the public one, and shake hands anew; the private one\n" +
			"never leaves the node. Packets that are on their way while the nodes change are lost. A node whose agent does not run does so when it starts.",
		Example:           "  netctl node rotate-key slave\n  netctl get node slave -o yaml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNode, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNames(datastore.KindNode, args...); err != nil {
				return err
			}
			var old string
			err := modify(cmd.Context(), a, args[0], func(n *datastore.Node) error {
				end, ok := n.TunnelOf(datastore.TunnelWireGuard)
				if !ok {
					return fmt.Errorf("key of node %s: %w: no pool asks for WireGuard tunnels, or its kernel has none (`netctl status --node %s`)", args[0], datastore.ErrNotFound, args[0])
				}
				old, n.Spec.RetiredKey = end.Key, end.Key
				return argument(n.Validate())
			})
			if err != nil {
				return err
			}
			return a.print(fmt.Sprintf("node %s takes another key in place of %s\n", args[0], old))
		},
	}
}
