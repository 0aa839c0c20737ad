package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newNetworkCommand(a *app) *cobra.Command {
	return group("network", "Show and change networks: named groups of endpoints",
		"  netctl network create dataman --pool 10.0.0.0/26 --pool 192.168.0.0/16\n  netctl network show dataman",
		newNetworkShowCommand(a), newNetworkCreateCommand(a), newNetworkRemoveCommand(a))
}

func newNetworkCreateCommand(a *app) *cobra.Command {
	var pools []string
	var profile, tenant string
	var v4, v6 bool
	made := datastore.Runtimes()
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a network on every node, and its profile if there is none",
		Long: "Create a network, and its profile if there is none. Every node's agent makes it in those container runtimes that the node has: as a\n" +
			"network of Docker's, as one of Podman's, as a network configuration list of CNI. A node that is away makes it when it is back. What a\n" +
			"person made under that name stays, and is a problem of the node's status. `netctl network show NAME` says how far it is.",
		Example: "  netctl network create dataman --pool 10.0.0.0/26 --pool 192.168.0.0/16\n  netctl network create app-A --profile web --runtime docker\n" +
			"  netctl network create vms --runtime none\n  netctl network create six --ipv4=false",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringSliceVar(&pools, "pool", nil, "`CIDR` of a pool its addresses come from (default: every pool of the node)")
	cmd.Flags().StringVar(&profile, "profile", "", "`name` of its endpoints' profile (default: the network's name)")
	a.tenantFlag(cmd, &tenant)
	cmd.MarkFlagsMutuallyExclusive("tenant", "profile")
	cmd.Flags().BoolVar(&v6, "ipv6", false, "give endpoints an IPv6 address too")
	cmd.Flags().BoolVar(&v4, "ipv4", true, "give endpoints an IPv4 address; false: IPv6 alone")
	cmd.Flags().StringSliceVar(&made, "runtime", made, "`runtimes` that get it: docker, podman, cni; or none")
	_ = cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(append(datastore.Runtimes(), noRuntime), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("pool", a.complete(datastore.KindPool, poolCIDRs))
	_ = cmd.RegisterFlagCompletionFunc("profile", a.complete(datastore.KindProfile, profileNames))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cidrs, err := parseCIDRs(pools)
		if err != nil {
			return err
		}
		name := args[0]
		if tenant != "" {
			if name, err = tenantsOwn(tenant, name); err == nil {
				err = a.checkTenant(cmd.Context(), tenant)
			}
			if err != nil {
				return err
			}
		}
		n := &datastore.Network{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NetworkSpec{Pools: cidrs, Profile: profile, IPv6: v6, Runtimes: made}}
		if !v4 {
			n.Spec.IPv4 = &v4
			if !cmd.Flags().Changed("runtime") { // Docker knows no network without IPv4
				n.Spec.Runtimes = []string{datastore.RuntimePodman, datastore.RuntimeCNI}
			}
		}
		if slices.Equal(made, []string{noRuntime}) {
			n.Spec.Runtimes = nil
		}
		n.SetDefaults()
		if err := n.Validate(); err != nil {
			return argument(fmt.Errorf("network %s: %w", name, err))
		}
		return a.createNetwork(cmd.Context(), n, tenant)
	}
	return cmd
}

// createNetwork creates a network, and its profile if there is none, of a tenant ("":
// nobody's). Somebody else may make either at the same time.
func (a *app) createNetwork(ctx context.Context, n *datastore.Network, tenant string) error {
	for races := 0; ; races++ {
		list := []manifest{{object: n}}
		switch have, err := read[*datastore.Profile](ctx, a, n.Spec.Profile); {
		case errors.Is(err, datastore.ErrNotFound):
			p, err := newProfile(tenant, n.Spec.Profile)
			if err != nil {
				return err
			}
			list = append(list, manifest{object: p})
		case err != nil:
			return err
		case have.Spec.Labels[datastore.LabelTenant] != tenant && tenant != "":
			return fmt.Errorf("profile %s: %w, and is not of tenant %s: give it the label %s: %s", n.Spec.Profile, datastore.ErrExists, tenant, datastore.LabelTenant, tenant)
		}
		err := a.write(ctx, list, modeCreate, func(planned) {})
		if !errors.Is(err, datastore.ErrExists) {
			return err
		}
		switch have, e := read[*datastore.Network](ctx, a, n.Metadata.Name); {
		case e == nil:
			return otherNetwork(have, n)
		case !errors.Is(e, datastore.ErrNotFound) || races == maxRaces:
			return err
		}
	}
}

// noRuntime is the flag's word for a network that is in the cluster alone.
const noRuntime = "none"

// otherNetwork says that a network exists, and in what it is not as it was to be.
func otherNetwork(have, n *datastore.Network) error {
	err := fmt.Errorf("network %s: %w", n.Metadata.Name, datastore.ErrExists)
	if networkWords(have.Spec) == networkWords(n.Spec) {
		return err
	}
	return fmt.Errorf("%w, with %s; `netctl edit network %s` changes it", err, networkWords(have.Spec), n.Metadata.Name)
}

// networkWords are what a network was created with.
func networkWords(s datastore.NetworkSpec) string {
	words := "every pool"
	if len(s.Pools) > 0 {
		words = "the pools " + joined(s.Pools)
	}
	words += ", profile " + s.Profile
	switch {
	case s.IPv6Only():
		words += ", IPv6 alone"
	case s.IPv6:
		words += ", IPv6"
	}
	return words + ", runtimes " + cmp.Or(strings.Join(s.Runtimes, ","), noRuntime)
}

func newNetworkRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a network that has no endpoint, from every node; its profile stays",
		Long: "Remove a network that has no endpoint. Every node's agent takes away what it made in the node's container runtimes, one that is away when\n" +
			"it is back; what a person made or changed stays, and what is in use (--force) until it is not. The profile stays.",
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
