package commands

import (
	"context"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newPolicyPromoteCommand(a *app) *cobra.Command {
	return stageCommand(a, &cobra.Command{
		Use:   "promote NAME…",
		Short: "Put staged policies in force",
		Long: "Put staged policies in force: from now on they decide. All in one transaction, which fails if somebody changes one of them meanwhile.\n" +
			"What they would deny show `netctl drops`, `netctl policy counters` and `netctl explain`, before.",
		Example: "  netctl policy promote web\n  netctl policy promote web db",
	}, false, "is in force already")
}

func newPolicyStageCommand(a *app) *cobra.Command {
	return stageCommand(a, &cobra.Command{
		Use:   "stage NAME…",
		Short: "Take policies out of force: they count and log what they would deny",
		Long: "Take policies out of force: they decide nothing any more, but what they would deny is counted and logged. Whoever they kept out gets in, unless another\n" +
			"policy or a profile denies it. All in one transaction, which fails if somebody changes one of them meanwhile.",
		Example: "  netctl policy stage web\n  netctl policy stage web db",
	}, true, "is staged already")
}

// stageCommand makes policies staged or not; already says of one that is so.
func stageCommand(a *app, cmd *cobra.Command, staged bool, already string) *cobra.Command {
	cmd.Args = cobra.MinimumNArgs(1)
	cmd.ValidArgsFunction = a.complete(datastore.KindPolicy, func(v *datastore.View) (names []string) {
		for _, p := range v.Policies() {
			if p.Spec.Staged != staged {
				names = append(names, p.Metadata.Name)
			}
		}
		return names
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindPolicy, args...); err != nil {
			return err
		}
		return a.setStaged(cmd.Context(), args, staged, already)
	}
	return cmd
}

func (a *app) setStaged(ctx context.Context, names []string, staged bool, already string) error {
	var list []manifest
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		p, err := read[*datastore.Policy](ctx, a, name)
		if err != nil {
			return err
		}
		if p.Spec.Staged == staged {
			a.warn("policy %s %s", name, already)
			continue
		}
		p.Spec.Staged = staged
		p.SetDefaults()
		list = append(list, manifest{object: p}) // with its revision
	}
	return a.write(ctx, list, modeReplace, func(planned) {})
}
