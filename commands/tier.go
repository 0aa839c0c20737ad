package commands

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newTierCommand(a *app) *cobra.Command {
	return group("tier", "Show and change tiers: ordered groups of policies",
		"  netctl tier show\n  netctl tier create security --order 100",
		newListCommand(a, listing{
			kind:    datastore.KindTier,
			short:   "Show the tiers with their policies; the tier default is there without being shown",
			example: "  netctl tier show\n  netctl tier show -o yaml",
		}),
		newTierCreateCommand(a), newTierRemoveCommand(a))
}

func newTierCreateCommand(a *app) *cobra.Command {
	var order orderFlag
	var action string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Create a tier",
		Long: "Create a tier. Tiers are asked by their order, those without one last, and then by name, each by its policies for the endpoint; behind the last come\n" +
			"its profiles. A rule `pass` leaves the rest of a tier out. The tier `default`, which policies belong to that name none, is there by itself, without an order.",
		Example:           "  netctl tier create security --order 100\n  netctl tier create audit --order 10 --default-action pass",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	order.add(cmd, "among tiers")
	cmd.Flags().StringVar(&action, "default-action", string(datastore.TierDeny), "what becomes of what no rule of its policies decides: deny, or pass to the next tier")
	_ = cmd.RegisterFlagCompletionFunc("default-action", cobra.FixedCompletions([]string{string(datastore.TierDeny), string(datastore.TierPass)}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t := &datastore.Tier{Metadata: datastore.Metadata{Name: args[0]}, Spec: datastore.TierSpec{Order: order.value, DefaultAction: datastore.Action(action)}}
		t.SetDefaults()
		if err := t.Validate(); err != nil {
			return argument(fmt.Errorf("tier %s: %w", args[0], err))
		}
		return a.write(cmd.Context(), []manifest{{object: t}}, modeCreate, func(planned) {})
	}
	return cmd
}

func newTierRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME…",
		Short:             "Remove tiers that have no policy",
		Example:           "  netctl tier remove audit\n  netctl tier remove audit --force",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindTier, tierNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove them although policies belong to them")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindTier, args...); err != nil {
			return err
		}
		return a.remove(cmd.Context(), datastore.KindTier, args, force, nil)
	}
	return cmd
}

func tierColumns() []column {
	return []column{
		col("Name", name[*datastore.Tier]),
		col("Order", func(t *datastore.Tier) string { return orderText(t.Spec.Order) }),
		col("Default action", func(t *datastore.Tier) string { return string(t.Spec.DefaultAction) }),
		lookup("Policies", func(v *datastore.View, t *datastore.Tier) string {
			n := 0
			for _, p := range v.Policies() {
				if p.Spec.Tier == t.Metadata.Name {
					n++
				}
			}
			return strconv.Itoa(n)
		}, datastore.KindPolicy),
	}
}
