package commands

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

// nodeNouns are the subcommands of netctl node beside the role.
func nodeNouns(a *app) []*cobra.Command {
	return []*cobra.Command{newNodeShowCommand(a), newNodeAddCommand(a), newNodeRemoveCommand(a), newNodeDrainCommand(a), newNodeUndrainCommand(a), newNodeRotateKeyCommand(a),
		named("NAME", "Change one node", "  netctl node slave set as 64512\n  netctl node slave set labels rack=A1",
			group("set", "Set a property of the node", "  netctl node slave set ip 192.168.99.102/24\n  netctl node slave set labels rack=A1 zone-",
				newNodeSetIPCommand(a), newNodeSetASCommand(a), newNodeSetLabelsCommand(a), newNodeSetReflectorCommand(a)))}
}

func newNodeShowCommand(a *app) *cobra.Command {
	return newListCommand(a, listing{
		kind:    datastore.KindNode,
		short:   "Show the nodes with their addresses and AS numbers",
		example: "  netctl node show\n  netctl node show -o wide",
	})
}

func newNodeAddCommand(a *app) *cobra.Command {
	var addresses, labels []string
	var as uint32
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a node before its agent runs; an agent adds its own node itself",
		Example: "  netctl node add slave3 --ip 192.168.99.104/24\n" +
			"  netctl node add slave3 --ip 192.168.99.104/24 --as 64512 --label rack=A1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringSliceVar(&addresses, "ip", nil, "BGP `address` with prefix length, at most one a family")
	cmd.Flags().Uint32Var(&as, "as", 0, "AS `number` (default: the cluster's)")
	cmd.Flags().StringSliceVar(&labels, "label", nil, "`NAME=VALUE` labels")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: args[0]}, Spec: datastore.NodeSpec{AS: as}}
		var err error
		if n.Spec.Addresses, err = parseCIDRs(addresses); err != nil {
			return err
		}
		if n.Metadata.Labels, err = parseLabels(labels); err != nil {
			return err
		}
		if err := n.Validate(); err != nil {
			return argument(fmt.Errorf("node %s: %w", args[0], err))
		}
		return a.create(cmd.Context(), n)
	}
	return cmd
}

func newNodeRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a node that is gone for good, and its empty blocks",
		Long: "Remove a node and its empty blocks. A node that reported lately, or has endpoints or addresses in use, is not removed; with\n" +
			"--force its endpoints are removed with it and their addresses given back; so is what of it cannot be read.",
		Example:           "  netctl node remove slave3\n  netctl node remove slave3 --force",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNode, nodeNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove its endpoints too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindNode, args...); err != nil {
			return err
		}
		return a.removeNode(cmd.Context(), args[0], force)
	}
	return cmd
}

// nodeAlive refuses to remove a node whose agent runs.
func nodeAlive(view *datastore.View, name string) error {
	ago := time.Since(lastSeen(view, name))
	if view.Node(name) == nil || ago >= control.Silence {
		return nil
	}
	return fmt.Errorf("node %s: %w: its agent reported %s ago and would register again: end netctl there, then remove the node with --force",
		name, datastore.ErrInUse, ago.Round(time.Second))
}

func (a *app) removeNode(ctx context.Context, name string, force bool) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	need := needed{}
	need.one(datastore.KindNode, name)
	need.one(datastore.KindReport, datastore.ReportName(name, datastore.ReportAgent))
	if force {
		need.all(datastore.KindEndpoint)
	}
	view, err := a.list(ctx, s, need)
	if err != nil {
		return err
	}
	if err := nodeAlive(view, name); err != nil && !force {
		return err
	}
	joined, discarded := false, false
	if force {
		// First of all: its agent, if it runs, would write everything back.
		if joined, err = forgetJoined(ctx, s, s, name); err != nil {
			return err
		}
		if discarded, err = a.discardOf(ctx, s, name); err != nil {
			return err
		}
		for _, e := range view.EndpointsOf(name) {
			if err := a.deleteEndpoint(ctx, e); err != nil {
				return err
			}
		}
		if n := view.Node(name); n != nil {
			if used := view.CheckDelete(n); used != nil {
				a.warn("%s was %v: workloads that still run lose their interfaces, and their addresses can be given to others", label(n), used)
			}
		}
	}
	err = a.remove(ctx, datastore.KindNode, []string{name}, force, func(view *datastore.View, _ datastore.Object) ([]datastore.Object, error) {
		return asObjects(slices.DeleteFunc(view.BlocksOf(name), (*datastore.Block).InUse)), nil
	})
	if err != nil && (!errors.Is(err, datastore.ErrNotFound) || view.Node(name) != nil) {
		return err
	}
	if !joined {
		var failed error
		if joined, failed = forgetJoined(ctx, s, s, name); failed != nil {
			return failed
		}
	}
	if err != nil && !joined && !discarded { // one that joined and never ran is gone with its name
		return err
	}
	return a.removeReports(ctx, name)
}

// discardOf discards what a node has that nobody can read: the node itself, its endpoints,
// whatever else is stored under its name; done: there was something.
func (a *app) discardOf(ctx context.Context, s datastore.Store, node string) (done bool, err error) {
	nodes, endpoints := datastore.KindPrefix(datastore.KindNode), datastore.KindPrefix(datastore.KindEndpoint)
	snap, err := s.List(ctx, nodes+node, nodes+node+"/", endpoints+node+"/")
	if err != nil {
		return false, err
	}
	for _, e := range snap.Entries {
		kind, at := datastore.KindEndpoint, endpoints
		if strings.HasPrefix(e.Key, nodes) {
			kind, at = datastore.KindNode, nodes
		}
		gone, err := a.discard(ctx, s, kind, strings.TrimPrefix(e.Key, at))
		if err != nil {
			return done, err
		}
		done = done || gone
	}
	return done, nil
}

// forgetJoined makes certificates of a node that is gone, its user in an external etcd, and
// tokens that it used, good for nothing, and its name free; had: it joined.
func forgetJoined(ctx context.Context, s datastore.Store, u users, name string) (had bool, err error) {
	return changeJoined(ctx, s, name, func(n *datastore.JoinedNode) (also []datastore.Op, do bool, err error) {
		if !n.Removed.IsZero() {
			return nil, false, nil
		}
		if n.User {
			if err := u.RemoveUser(ctx, name); err != nil && !errors.Is(err, datastore.ErrNotFound) {
				return nil, false, err
			}
			n.User = false
		}
		n.Member, n.Removed = false, time.Now().UTC().Truncate(time.Second)
		tokens, err := datastore.ListTokens(ctx, s)
		if err != nil {
			return nil, false, err
		}
		for _, t := range tokens {
			if t.UsedBy != name || len(also) == datastore.MaxTxnOps-1 { // more of them let nobody in either
				continue
			}
			at, err := datastore.TokenKey(t.ID)
			if err != nil {
				return nil, false, err
			}
			also = append(also, datastore.Op{Key: at})
		}
		return also, true, nil
	})
}

// removeReports removes what the roles of a node that is gone reported, its events too.
func (a *app) removeReports(ctx context.Context, node string) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	events, err := datastore.EventsKey(node)
	if err != nil {
		return err
	}
	t := datastore.Txn{Then: []datastore.Op{{Key: events}}}
	for _, role := range []string{datastore.ReportAgent, datastore.ReportSpeaker} {
		key, err := datastore.Key(datastore.KindReport, datastore.ReportName(node, role))
		if err != nil {
			return err
		}
		t.Then = append(t.Then, datastore.Op{Key: key})
	}
	_, err = s.Commit(ctx, t)
	return err
}

// changeNode changes the node that the command line names before the verb.
func changeNode(cmd *cobra.Command, a *app, change func(*datastore.Node)) error {
	name := nameOf(cmd)
	if err := checkNames(datastore.KindNode, name); err != nil {
		return err
	}
	return modify(cmd.Context(), a, name, func(n *datastore.Node) error {
		change(n)
		return argument(n.Validate())
	})
}

func newNodeSetIPCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "ip ADDRESS/LENGTH…",
		Short:             "Set the node's BGP addresses, at most one of each family",
		Example:           "  netctl node slave set ip 192.168.99.102/24\n  netctl node slave set ip 192.168.99.102/24 fd00:99::2/64",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var addresses []netip.Prefix
			addresses, err := parseCIDRs(args)
			if err != nil {
				return err
			}
			return changeNode(cmd, a, func(n *datastore.Node) { n.Spec.Addresses = addresses })
		},
	}
}

func newNodeSetASCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "as (AS|inherit)",
		Short:             "Set the node's AS number, or let it have the cluster's",
		Example:           "  netctl node slave set as 64512\n  netctl node slave set as inherit",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.FixedCompletions([]string{"inherit"}, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			var as uint32
			if args[0] != "inherit" {
				var err error
				if as, err = parseAS(args[0]); err != nil {
					return err
				}
			}
			return changeNode(cmd, a, func(n *datastore.Node) { n.Spec.AS = as })
		},
	}
}

func newNodeSetLabelsCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "labels (NAME=VALUE|NAME-)…",
		Short:             "Set labels of the node; NAME- takes one away",
		Example:           "  netctl node slave set labels rack=A1 topology.zone=z1\n  netctl node slave set labels rack-",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var away, add []string
			for _, arg := range args {
				if name, ok := strings.CutSuffix(arg, "-"); ok && !strings.Contains(arg, "=") {
					away = append(away, name)
				} else {
					add = append(add, arg)
				}
			}
			labels, err := parseLabels(add)
			if err != nil {
				return err
			}
			return changeNode(cmd, a, func(n *datastore.Node) {
				if n.Metadata.Labels == nil {
					n.Metadata.Labels = map[string]string{}
				}
				for k, v := range labels {
					n.Metadata.Labels[k] = v
				}
				for _, k := range away {
					delete(n.Metadata.Labels, k)
				}
			})
		},
	}
}
