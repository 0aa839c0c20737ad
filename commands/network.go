package commands

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newNetworkCommand(a *app) *cobra.Command {
	return group("network", "Show and change networks: named groups of endpoints",
		"  netctl network show\n  netctl network create dataman --pool 10.0.0.0/26 --pool 192.168.0.0/16",
		newNetworkShowCommand(a), newNetworkCreateCommand(a), newNetworkRemoveCommand(a))
}

func newNetworkShowCommand(a *app) *cobra.Command {
	return newListCommand(a, listing{
		kind:    datastore.KindNetwork,
		short:   "Show the networks with their pools and profiles",
		example: "  netctl network show\n  netctl network show -o yaml",
	})
}

func newNetworkCreateCommand(a *app) *cobra.Command {
	var pools []string
	var profile string
	var v4, v6 bool
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a network, and its profile if there is none",
		Example: "  netctl network create dataman --pool 10.0.0.0/26 --pool 192.168.0.0/16\n  netctl network create app-A --profile web\n" +
			"  netctl network create six --ipv4=false",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringSliceVar(&pools, "pool", nil, "`CIDR` of a pool its addresses come from (default: every pool of the node)")
	cmd.Flags().StringVar(&profile, "profile", "", "`name` of its endpoints' profile (default: the network's name)")
	cmd.Flags().BoolVar(&v6, "ipv6", false, "give endpoints an IPv6 address too")
	cmd.Flags().BoolVar(&v4, "ipv4", true, "give endpoints an IPv4 address; false: IPv6 alone")
	_ = cmd.RegisterFlagCompletionFunc("pool", a.complete(datastore.KindPool, poolCIDRs))
	_ = cmd.RegisterFlagCompletionFunc("profile", a.complete(datastore.KindProfile, profileNames))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cidrs, err := parseCIDRs(pools)
		if err != nil {
			return err
		}
		n := &datastore.Network{Metadata: datastore.Metadata{Name: args[0]}, Spec: datastore.NetworkSpec{Pools: cidrs, Profile: profile, IPv6: v6}}
		if !v4 {
			n.Spec.IPv4 = &v4
		}
		n.SetDefaults()
		if err := n.Validate(); err != nil {
			return argument(fmt.Errorf("network %s: %w", args[0], err))
		}
		list := []manifest{{object: n}}
		switch _, err := read[*datastore.Profile](cmd.Context(), a, n.Spec.Profile); {
		case errors.Is(err, datastore.ErrNotFound):
			p := &datastore.Profile{Metadata: datastore.Metadata{Name: n.Spec.Profile}}
			p.SetDefaults()
			list = append(list, manifest{object: p})
		case err != nil:
			return err
		}
		return a.write(cmd.Context(), list, modeCreate, func(planned) {})
	}
	return cmd
}

func newNetworkRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME",
		Short:             "Remove a network that has no endpoint; its profile stays",
		Example:           "  netctl network remove dataman\n  netctl network remove dataman --force",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNetwork, networkNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it although endpoints belong to it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindNetwork, args...); err != nil {
			return err
		}
		return a.remove(cmd.Context(), datastore.KindNetwork, args, force, nil)
	}
	return cmd
}

// joined is a list in a table's cell.
func joined[T fmt.Stringer](list []T) string {
	var out []string
	for _, x := range list {
		out = append(out, x.String())
	}
	return strings.Join(out, ",")
}
