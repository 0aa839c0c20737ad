package commands

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newNetworkSetCommand(a *app) *cobra.Command {
	cmd := group("networkset", "Show and change network sets: named networks that rules refer to",
		"  netctl networkset create blocked 192.0.2.0/24 198.51.100.7/32\n  netctl networkset blocked cidr add 203.0.113.0/24",
		newNetworkSetShowCommand(a), newNetworkSetCreateCommand(a), newNetworkSetRemoveCommand(a),
		named("NAME", "Change the networks of one set", "  netctl networkset blocked cidr add 203.0.113.0/24\n  netctl networkset blocked cidr remove 192.0.2.0/24",
			group("cidr", "Change the networks of the set", "  netctl networkset blocked cidr add 203.0.113.0/24\n  netctl networkset blocked cidr remove 192.0.2.0/24",
				newNetworksCommand(a, "add", "Add networks to the set", func(list []netip.Prefix, c netip.Prefix) ([]netip.Prefix, error) {
					if slices.Contains(list, c) {
						return list, nil
					}
					return append(list, c), nil
				}),
				newNetworksCommand(a, "remove", "Remove networks from the set", func(list []netip.Prefix, c netip.Prefix) ([]netip.Prefix, error) {
					i := slices.Index(list, c)
					if i < 0 {
						return nil, datastore.As(datastore.ErrNotFound, "the set has no network %s", c)
					}
					return slices.Delete(list, i, i+1), nil
				}))))
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindNetworkSet, networkSetNames)
	return cmd
}

func newNetworkSetShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show [NAME]",
		Short:             "Show the network sets, or the networks of one",
		Example:           "  netctl networkset show\n  netctl networkset show blocked",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindNetworkSet, networkSetNames),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return a.showKind(cmd.Context(), *f, datastore.KindNetworkSet, nil, layoutOf(datastore.KindNetworkSet, *f), nil)
		}
		if err := checkNames(datastore.KindNetworkSet, args...); err != nil {
			return err
		}
		n, err := read[*datastore.NetworkSet](cmd.Context(), a, args[0])
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{n}, func() string {
			text := ""
			for _, c := range n.Spec.CIDRs {
				text += c.String() + "\n"
			}
			return text
		})
	}
	return cmd
}

func newNetworkSetCreateCommand(a *app) *cobra.Command {
	var labels []string
	cmd := &cobra.Command{
		Use:   "create NAME CIDR…",
		Short: "Create a network set",
		Long: "Create a network set. Rules refer to it by its name (`from set NAME`) and, with their selectors, by its labels, as to endpoints. Networks may lie in\n" +
			"one another.",
		Example:           "  netctl networkset create blocked 192.0.2.0/24 198.51.100.7/32\n  netctl networkset create offices 203.0.113.0/24 --label kind=office",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringSliceVar(&labels, "label", nil, "`NAME=VALUE` labels")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		n := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: args[0]}}
		if n.Spec.CIDRs, err = parseNetworks(args[1:]); err != nil {
			return err
		}
		if n.Metadata.Labels, err = parseLabels(labels); err != nil {
			return err
		}
		n.SetDefaults()
		if err := n.Validate(); err != nil {
			return argument(fmt.Errorf("networkset %s: %w", args[0], err))
		}
		return a.write(cmd.Context(), []manifest{{object: n}}, modeCreate, func(planned) {})
	}
	return cmd
}

func newNetworkSetRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME…",
		Short:             "Remove network sets that no rule names",
		Example:           "  netctl networkset remove blocked\n  netctl networkset remove blocked --force",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindNetworkSet, networkSetNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove them although rules name them")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindNetworkSet, args...); err != nil {
			return err
		}
		return a.remove(cmd.Context(), datastore.KindNetworkSet, args, force, nil)
	}
	return cmd
}

// newNetworksCommand changes the networks of a set one by one.
func newNetworksCommand(a *app, verb, short string, change func([]netip.Prefix, netip.Prefix) ([]netip.Prefix, error)) *cobra.Command {
	return &cobra.Command{
		Use:     verb + " CIDR…",
		Short:   short,
		Example: "  netctl networkset blocked cidr " + verb + " 203.0.113.0/24\n  netctl networkset blocked cidr " + verb + " 203.0.113.0/24 2001:db8::/32",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := nameOf(cmd)
			if err := checkNames(datastore.KindNetworkSet, name); err != nil {
				return err
			}
			cidrs, err := parseNetworks(args)
			if err != nil {
				return err
			}
			return modify(cmd.Context(), a, name, func(n *datastore.NetworkSet) (err error) {
				for _, c := range cidrs {
					if n.Spec.CIDRs, err = change(n.Spec.CIDRs, c); err != nil {
						return err
					}
				}
				return argument(n.Validate())
			})
		},
	}
}

// parseNetworks reads CIDRs; an address is one of its own.
func parseNetworks(args []string) ([]netip.Prefix, error) {
	texts := slices.Clone(args)
	for i, s := range texts {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			texts[i] = netip.PrefixFrom(a, a.BitLen()).String()
		}
	}
	return parseCIDRs(texts)
}

func networkSetColumns() []column {
	return []column{
		col("Name", name[*datastore.NetworkSet]),
		col("Networks", func(n *datastore.NetworkSet) string {
			const few = 3
			if len(n.Spec.CIDRs) <= few {
				return joined(n.Spec.CIDRs)
			}
			return joined(n.Spec.CIDRs[:few]) + " and " + strconv.Itoa(len(n.Spec.CIDRs)-few) + " more"
		}),
		col("Labels", labels[*datastore.NetworkSet]),
	}
}
