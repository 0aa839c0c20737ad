package commands

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// tenantsOwn is a name as a tenant's own: TENANT.NAME.
func tenantsOwn(tenant, name string) (string, error) {
	if err := checkNames(datastore.KindProfile, tenant, name); err != nil {
		return "", err
	}
	if strings.HasPrefix(name, tenant+".") {
		return name, nil
	}
	return tenant + "." + name, nil
}

// tenantFlag is --tenant.
func (a *app) tenantFlag(cmd *cobra.Command, tenant *string) {
	cmd.Flags().StringVar(tenant, "tenant", "", "`name` of the tenant that it is to be of; its own name begins with that")
	_ = cmd.RegisterFlagCompletionFunc("tenant", a.complete(datastore.KindPolicy, tenantNames))
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("tenant") && *tenant == "" { // as of a variable that is not set: nobody's is open to all
			return usage("--tenant: a name is missing")
		}
		return nil
	}
}

func newTenantCommand(a *app) *cobra.Command {
	return group("tenant", "Show and change tenants: whose networks and profiles are kept from those of others",
		"  netctl tenant add acme\n  netctl network create web --tenant acme\n  netctl tenant show",
		newTenantShowCommand(a), newTenantAddCommand(a), newTenantRemoveCommand(a))
}

func newTenantAddCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME…",
		Short: "Add tenants, whose endpoints and those of other tenants do not reach each other",
		Long: "Add tenants. What `network create --tenant` and `profile add --tenant` make is the tenant's, and is named for it: TENANT.NAME. Between endpoints of\n" +
			"two tenants nothing passes, whatever their profiles and the policies of later tiers say: a policy for each tenant, in the tier `tenants`, of order 0,\n" +
			"denies it. Only a tier before that one lets two of them talk. Endpoints of no tenant are reached as rules say.",
		Example:           "  netctl tenant add acme\n  netctl tenant add acme globex",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNames(datastore.KindProfile, args...); err != nil {
				return err
			}
			for _, tenant := range args {
				if err := a.addTenant(cmd.Context(), tenant); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// addTenant writes a tenant's policy, and the tier of such if there is none yet.
func (a *app) addTenant(ctx context.Context, tenant string) error {
	p := datastore.NewTenantPolicy(tenant)
	if err := p.Validate(); err != nil {
		return argument(fmt.Errorf("tenant %s: %w", tenant, err))
	}
	for again := false; ; again = true {
		list := []manifest{{object: p}}
		switch is, err := read[*datastore.Tier](ctx, a, datastore.TenantTier); {
		case errors.Is(err, datastore.ErrNotFound):
			list = []manifest{{object: datastore.NewTenantTier()}, {object: p}}
		case err != nil:
			return err
		case is.Spec.DefaultAction != datastore.TierPass || is.Spec.Order == nil || *is.Spec.Order != 0:
			return fmt.Errorf("tenant %s: %w: there is a tier %s that is not for tenants, which is to have order 0 and the default action %s: remove it, or change it to that",
				tenant, datastore.ErrExists, datastore.TenantTier, datastore.TierPass)
		}
		err := a.write(ctx, list, modeCreate, func(planned) {})
		if errors.Is(err, datastore.ErrExists) {
			if is, e := read[*datastore.Policy](ctx, a, p.Metadata.Name); e == nil {
				if is.Tenant() != tenant {
					return fmt.Errorf("tenant %s: %w: there is a policy %s that is not in the tier %s: remove it", tenant, datastore.ErrExists, p.Metadata.Name, datastore.TenantTier)
				}
				return fmt.Errorf("tenant %s: %w", tenant, datastore.ErrExists)
			}
			if len(list) > 1 && !again {
				continue // somebody else made the tier
			}
		}
		return err
	}
}

// checkTenant wants a tenant that was added.
func (a *app) checkTenant(ctx context.Context, tenant string) error {
	p, err := read[*datastore.Policy](ctx, a, datastore.NewTenantPolicy(tenant).Metadata.Name)
	if errors.Is(err, datastore.ErrNotFound) || err == nil && p.Tenant() != tenant {
		return fmt.Errorf("tenant %s: %w: `netctl tenant add %s` adds it", tenant, datastore.ErrNotFound, tenant)
	}
	return err
}

// tenantNames are the tenants, by their policies.
func tenantNames(view *datastore.View) (names []string) {
	for _, p := range view.Policies() {
		if tenant := p.Tenant(); tenant != "" {
			names = append(names, tenant)
		}
	}
	return names
}

// tenantsProfiles are the profiles of each tenant.
func tenantsProfiles(view *datastore.View) map[string][]*datastore.Profile {
	of := map[string][]*datastore.Profile{}
	for _, p := range view.Profiles() {
		if tenant := p.Spec.Labels[datastore.LabelTenant]; tenant != "" {
			of[tenant] = append(of[tenant], p)
		}
	}
	return of
}

func newTenantShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show", Short: "Show the tenants with what they have",
		Example: "  netctl tenant show\n  netctl tenant show -o yaml", Args: cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		store, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		need := needed{}
		need.all(datastore.KindPolicy, datastore.KindProfile, datastore.KindNetwork, datastore.KindEndpoint)
		view, err := a.list(cmd.Context(), store, need)
		if err != nil {
			return err
		}
		var policies []datastore.Object
		var rows [][]string
		profiles := tenantsProfiles(view)
		for _, tenant := range tenantNames(view) {
			policies = append(policies, view.Policy(datastore.NewTenantPolicy(tenant).Metadata.Name))
			networks, endpoints := 0, 0
			for _, own := range profiles[tenant] {
				endpoints += len(view.EndpointsWithProfile(own.Metadata.Name))
				for _, n := range view.Networks() {
					if n.Spec.Profile == own.Metadata.Name {
						networks++
					}
				}
			}
			rows = append(rows, []string{tenant, strconv.Itoa(networks), strconv.Itoa(len(profiles[tenant])), strconv.Itoa(endpoints)})
		}
		return a.show(*f, policies, func() string {
			return table([]string{"Tenant", "Networks", "Profiles", "Endpoints"}, rows)
		})
	}
	return cmd
}

func newTenantRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME…",
		Short:             "Remove tenants that have no profile",
		Example:           "  netctl tenant remove acme\n  netctl tenant remove acme --force",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindPolicy, tenantNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove them although profiles are theirs, which are kept from others no more")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindProfile, args...); err != nil {
			return err
		}
		store, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		need := needed{}
		need.all(datastore.KindProfile)
		view, err := a.list(cmd.Context(), store, need)
		if err != nil {
			return err
		}
		var names []string
		for _, tenant := range args {
			if err := a.checkTenant(cmd.Context(), tenant); err != nil {
				return err
			}
			if own := tenantsProfiles(view)[tenant]; len(own) > 0 && !force {
				return fmt.Errorf("tenant %s: %w by profile %s: remove its networks and profiles first, or say --force", tenant, datastore.ErrInUse, own[0].Metadata.Name)
			}
			names = append(names, datastore.NewTenantPolicy(tenant).Metadata.Name)
		}
		return a.remove(cmd.Context(), datastore.KindPolicy, names, force, nil)
	}
	return cmd
}
