package commands

import (
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// newEndpointPrefixCommand shows and changes the networks behind an endpoint.
func newEndpointPrefixCommand(a *app) *cobra.Command {
	const of = "  netctl endpoint slave/manual/vpn/eth0 prefix "
	show := &cobra.Command{Use: "show", Short: "Show the networks behind the endpoint", Example: of + "show\n" + of + "show -o yaml", Args: cobra.NoArgs}
	f := addFormat(show)
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		id := nameOf(cmd)
		if err := checkNames(datastore.KindEndpoint, id); err != nil {
			return err
		}
		e, err := read[*datastore.Endpoint](cmd.Context(), a, id)
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{e}, func() string {
			text := ""
			for _, p := range e.Spec.AllowedPrefixes {
				text += p.String() + "\n"
			}
			return text
		})
	}
	change := func(verb, short, long, example string, edit func(have, args []netip.Prefix) ([]netip.Prefix, error)) *cobra.Command {
		return &cobra.Command{
			Use: verb + " CIDR…", Short: short, Long: long, Example: example, Args: cobra.MinimumNArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
			RunE: func(cmd *cobra.Command, args []string) error { return a.changePrefixes(cmd, args, edit) },
		}
	}
	return group("prefix", "Show and change the networks behind the endpoint: of a router or a VPN in a container", of+"show\n"+of+"add 10.8.0.0/24", show,
		change("add", "Allow and route networks behind the endpoint",
			"Allow and route networks behind the endpoint, of a router or a VPN in a container: it may send from them, its node routes them to its address, other\n"+
				"nodes and BGP peers are told, and rules take their addresses for the endpoint's own. They lie in a pool that gives out no addresses, as\n"+
				"netctl pool add CIDR --disabled makes one. The workload itself has to route and to forward.",
			of+"add 10.8.0.0/24\n"+of+"add 10.8.0.0/24 fd08::/64",
			func(have, args []netip.Prefix) ([]netip.Prefix, error) {
				for _, p := range args {
					if !slices.Contains(have, p) {
						have = append(have, p)
					}
				}
				return have, nil
			}),
		change("remove", "Remove networks from behind the endpoint", "", of+"remove 10.8.0.0/24\n"+of+"remove 10.8.0.0/24 fd08::/64",
			func(have, args []netip.Prefix) ([]netip.Prefix, error) {
				for _, p := range args {
					if !slices.Contains(have, p) {
						return nil, datastore.As(datastore.ErrNotFound, "the endpoint does not have the prefix %s", p)
					}
				}
				return slices.DeleteFunc(have, func(p netip.Prefix) bool { return slices.Contains(args, p) }), nil
			}))
}

func (a *app) changePrefixes(cmd *cobra.Command, args []string, edit func(have, args []netip.Prefix) ([]netip.Prefix, error)) error {
	id := nameOf(cmd)
	if err := checkNames(datastore.KindEndpoint, id); err != nil {
		return err
	}
	prefixes, err := parseCIDRs(args)
	if err != nil {
		return err
	}
	s, err := a.store(cmd.Context())
	if err != nil {
		return err
	}
	return modify(cmd.Context(), a, id, func(e *datastore.Endpoint) error {
		had := slices.Clone(e.Spec.AllowedPrefixes)
		now, err := edit(e.Spec.AllowedPrefixes, prefixes)
		if err != nil {
			return err
		}
		e.Spec.AllowedPrefixes = now
		if err := e.Validate(); err != nil {
			return argument(err)
		}
		if len(now) < len(had) {
			return nil
		}
		return a.checkPut(cmd.Context(), s, e)
	})
}
