package commands

import (
	"slices"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newProfileCommand(a *app) *cobra.Command {
	cmd := group("profile", "Show and change profiles: tags and rules that endpoints take by name",
		"  netctl profile add web\n  netctl profile web rule add inbound --at=1 allow tcp to ports 80,443",
		newProfileShowCommand(a), newProfileAddCommand(a), newProfileRemoveCommand(a),
		named("NAME", "Show and change the tags and rules of one profile",
			"  netctl profile web rule show\n  netctl profile web tag add WEB",
			newProfileTagCommand(a), newProfileRuleCommand(a), newProfileRateCommand(a)))
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindProfile, profileNames)
	return cmd
}

func newProfileShowCommand(a *app) *cobra.Command {
	var detailed bool
	return newListCommand(a, listing{
		kind:    datastore.KindProfile,
		short:   "Show the profiles; --detailed adds their endpoints",
		example: "  netctl profile show\n  netctl profile show --detailed",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&detailed, "detailed", false, "one row for each endpoint")
		},
		layout: func(format) (layout, bool) {
			return layout{reads: []datastore.Kind{datastore.KindEndpoint, datastore.KindNode, datastore.KindReport}, text: profileEndpoints}, detailed
		},
	})
}

// profileEndpoints has a row for each endpoint of each profile; a profile
// without endpoints has one row of its own.
func profileEndpoints(view *datastore.View, profiles []datastore.Object) string {
	var rows [][]string
	for _, p := range profiles {
		name := p.Meta().Name
		endpoints := view.EndpointsWithProfile(name)
		if len(endpoints) == 0 {
			rows = append(rows, []string{name, "", "", "", "", ""})
		}
		for _, e := range endpoints {
			rows = append(rows, []string{name, e.Spec.Node, e.Spec.Orchestrator, e.Spec.Workload, e.Spec.Interface, endpointState(view, e)})
		}
	}
	return table([]string{"Name", "Host", "Orchestrator ID", "Workload ID", "Endpoint ID", "State"}, rows)
}

func newProfileAddCommand(a *app) *cobra.Command {
	var tenant string
	cmd := &cobra.Command{
		Use:   "add NAME…",
		Short: "Add profiles",
		Long: "Add profiles. A new profile has its own name as tag, lets in what comes from endpoints with that tag, and lets out\n" +
			"everything.",
		Example:           "  netctl profile add web\n  netctl profile add app-A app-B",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNames(datastore.KindProfile, args...); err != nil {
				return err
			}
			if tenant != "" {
				if err := a.checkTenant(cmd.Context(), tenant); err != nil {
					return err
				}
			}
			var list []manifest
			for _, name := range args {
				p, err := newProfile(tenant, name)
				if err != nil {
					return err
				}
				list = append(list, manifest{object: p})
			}
			return a.write(cmd.Context(), list, modeCreate, func(planned) {})
		},
	}
	a.tenantFlag(cmd, &tenant)
	return cmd
}

// newProfile is a profile with the usual rules, of a tenant ("": nobody's).
func newProfile(tenant, name string) (p *datastore.Profile, err error) {
	p = &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
	if tenant != "" {
		if p.Metadata.Name, err = tenantsOwn(tenant, name); err != nil {
			return nil, err
		}
		p.Spec.Labels = map[string]string{datastore.LabelTenant: tenant}
	}
	p.SetDefaults()
	return p, nil
}

func newProfileRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME…",
		Short:             "Remove profiles that nothing uses",
		Example:           "  netctl profile remove web\n  netctl profile remove web --force",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindProfile, profileNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove them although endpoints or networks use them")
	cmd.Flags().BoolVar(&force, "no-check", false, "the same, as calicoctl has it")
	_ = cmd.Flags().MarkHidden("no-check")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindProfile, args...); err != nil {
			return err
		}
		return a.remove(cmd.Context(), datastore.KindProfile, args, force, nil)
	}
	return cmd
}

func newProfileTagCommand(a *app) *cobra.Command {
	show := &cobra.Command{
		Use:     "show",
		Short:   "Show the tags of the profile",
		Example: "  netctl profile web tag show\n  netctl profile web tag show -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(show)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		p, err := readProfile(cmd, a)
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{p}, func() string {
			text := ""
			for _, t := range p.Spec.Tags {
				text += t + "\n"
			}
			return text
		})
	}
	return group("tag", "Show and change the tags of the profile",
		"  netctl profile web tag show\n  netctl profile web tag add WEB",
		show,
		&cobra.Command{
			Use:     "add TAG",
			Short:   "Add a tag to the profile",
			Example: "  netctl profile web tag add WEB\n  netctl profile app-A tag add dataman",
			Args:    cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return changeProfile(cmd, a, func(p *datastore.Profile) error {
					if slices.Contains(p.Spec.Tags, args[0]) {
						return nil
					}
					p.Spec.Tags = append(p.Spec.Tags, args[0])
					return argument(p.Validate())
				})
			},
		},
		&cobra.Command{
			Use:     "remove TAG",
			Short:   "Remove a tag from the profile",
			Example: "  netctl profile web tag remove WEB\n  netctl profile app-A tag remove app-A",
			Args:    cobra.ExactArgs(1),
			ValidArgsFunction: a.completeFirst(datastore.KindProfile, func(v *datastore.View) []string {
				if p := v.Profile(nameOf(a.cmd)); p != nil {
					return slices.Clone(p.Spec.Tags)
				}
				return nil
			}),
			RunE: func(cmd *cobra.Command, args []string) error {
				return changeProfile(cmd, a, func(p *datastore.Profile) error {
					i := slices.Index(p.Spec.Tags, args[0])
					if i < 0 {
						return datastore.As(datastore.ErrNotFound, "profile %s has no tag %s", p.Metadata.Name, args[0])
					}
					p.Spec.Tags = slices.Delete(p.Spec.Tags, i, i+1)
					return nil
				})
			},
		})
}

func readProfile(cmd *cobra.Command, a *app) (*datastore.Profile, error) {
	name := nameOf(cmd)
	if err := checkNames(datastore.KindProfile, name); err != nil {
		return nil, err
	}
	return read[*datastore.Profile](cmd.Context(), a, name)
}

func changeProfile(cmd *cobra.Command, a *app, change func(*datastore.Profile) error) error {
	name := nameOf(cmd)
	if err := checkNames(datastore.KindProfile, name); err != nil {
		return err
	}
	return modifyRules(cmd.Context(), a, name, change)
}
