package commands

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// drainGrace is how long peers have to turn to other paths before the sessions end.
const drainGrace = 5 * time.Second

func newNodeDrainCommand(a *app) *cobra.Command {
	var reason string
	var grace time.Duration
	var force bool
	cmd := &cobra.Command{
		Use:   "drain NAME",
		Short: "Take a node out of use: no new endpoints, no traffic through it",
		Long: "Take a node out of use. It takes no new endpoints from now on, and its peers are told to prefer every other path (the community\n" +
			"GRACEFUL_SHUTDOWN, RFC 8326). After --grace its BGP sessions end, and peers are told why (RFC 9003). A node that still has endpoints\n" +
			"stays in the first state: they would lose their routes. Move them and drain it again, or say --force.",
		Example:           "  netctl node drain slave --reason 'new disks'\n  netctl node drain slave --grace 30s --force",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNode, nodeNames),
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`text` that people and its peers are told")
	cmd.Flags().DurationVar(&grace, "grace", drainGrace, "how `long` peers have to turn to other paths")
	cmd.Flags().BoolVar(&force, "force", false, "end the sessions of a node with endpoints too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindNode, args...); err != nil {
			return err
		}
		return a.drainNode(cmd.Context(), args[0], reason, grace, force)
	}
	return cmd
}

func (a *app) drainNode(ctx context.Context, name, reason string, grace time.Duration, force bool) error {
	ended := false
	err := modify(ctx, a, name, func(n *datastore.Node) error {
		if n.Spec.Drain == nil {
			n.Spec.Drain = &datastore.Drain{}
		}
		if ended = n.Spec.Drain.Shutdown; reason != "" {
			n.Spec.Drain.Reason = reason
		}
		return argument(n.Validate())
	})
	if err != nil || ended {
		return err
	}
	if err := a.print(fmt.Sprintf("node %s takes no new endpoints, and its peers prefer other paths\n", name)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("node %s keeps its sessions: %w", name, ctx.Err())
	case <-time.After(grace):
	}
	if !force {
		view, err := a.view(ctx, datastore.KindEndpoint)
		if err != nil {
			return err
		}
		if list := view.EndpointsOf(name); len(list) > 0 {
			names := objectNames(list[:min(len(list), 3)])
			return fmt.Errorf("node %s: %w: it has %s (%s) and keeps its sessions: move them and drain it again, use --force, or take it back into use by `netctl node undrain %[1]s`",
				name, datastore.ErrInUse, count(len(list), "endpoint"), strings.Join(names, ", "))
		}
	}
	err = modify(ctx, a, name, func(n *datastore.Node) error {
		if n.Spec.Drain == nil {
			return fmt.Errorf("node %s was undrained meanwhile: %w", name, datastore.ErrConflict)
		}
		n.Spec.Drain.Shutdown = true
		return nil
	})
	if err != nil {
		return err
	}
	return a.print(fmt.Sprintf("node %s is drained\n", name))
}

func newNodeUndrainCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "undrain NAME",
		Short:             "Take a drained node into use again",
		Example:           "  netctl node undrain slave\n  netctl node show -o wide",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNode, nodeNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNames(datastore.KindNode, args...); err != nil {
				return err
			}
			return modify(cmd.Context(), a, args[0], func(n *datastore.Node) error { n.Spec.Drain = nil; return nil })
		},
	}
}
