package commands

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newNetworkSetCommand(a *app) *cobra.Command {
	cidrs := func(n *datastore.NetworkSet) *[]netip.Prefix { return &n.Spec.CIDRs }
	domains := func(n *datastore.NetworkSet) *[]string { return &n.Spec.Domains }
	const cidrExample = "  netctl networkset blocked cidr add 203.0.113.0/24\n  netctl networkset blocked cidr remove 192.0.2.0/24"
	const domainExample = "  netctl networkset updates domain add example.com '*.example.org'\n  netctl networkset updates domain remove example.com"
	cmd := group("networkset", "Show and change network sets: named networks and domains that rules refer to",
		"  netctl networkset create blocked 192.0.2.0/24 198.51.100.7/32\n  netctl networkset blocked cidr add 203.0.113.0/24\n  netctl networkset create updates --domain example.com",
		newNetworkSetShowCommand(a), newNetworkSetCreateCommand(a), newNetworkSetRemoveCommand(a),
		named("NAME", "Change the networks and domains of one set", cidrExample+"\n  netctl networkset updates domain add example.com",
			group("cidr", "Change the networks of the set", cidrExample,
				inSetCommand(a, "add CIDR…", "Add networks to the set", "  netctl networkset blocked cidr add 203.0.113.0/24\n  netctl networkset blocked cidr add 203.0.113.0/24 2001:db8::/32", parseNetworks, cidrs, ""),
				inSetCommand(a, "remove CIDR…", "Remove networks from the set", "  netctl networkset blocked cidr remove 203.0.113.0/24\n  netctl networkset blocked cidr remove 203.0.113.0/24 2001:db8::/32", parseNetworks, cidrs, "network")),
			group("domain", "Change the domains of the set", domainExample,
				inSetCommand(a, "add DOMAIN…", "Add domains to the set", "  netctl networkset updates domain add example.com\n  netctl networkset updates domain add example.com '*.example.org'", parseDomains, domains, ""),
				inSetCommand(a, "remove DOMAIN…", "Remove domains from the set", "  netctl networkset updates domain remove example.com\n  netctl networkset updates domain remove '*.example.org'", parseDomains, domains, "domain"))))
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindNetworkSet, networkSetNames)
	return cmd
}

// changed is a list with a value more or, if gone says what it is, one less.
func changed[T comparable](list []T, v T, gone string) ([]T, error) {
	i := slices.Index(list, v)
	switch {
	case gone == "" && i < 0:
		return append(list, v), nil
	case gone == "":
		return list, nil
	case i < 0:
		return nil, datastore.As(datastore.ErrNotFound, "the set has no %s %v", gone, v)
	}
	return slices.Delete(list, i, i+1), nil
}

func newNetworkSetShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show [NAME]",
		Short:             "Show the network sets, or what is in one",
		Long:              "Show the network sets, or the networks and domains of one; of domains also the addresses that this node has learned, and for how long they are in the set.",
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
			if len(n.Spec.Domains) > 0 {
				text += strings.Join(n.Spec.Domains, "\n") + "\n" + a.learnedText(cmd.Context(), args[0])
			}
			return text
		})
	}
	return cmd
}

func newNetworkSetCreateCommand(a *app) *cobra.Command {
	var labels, domains []string
	cmd := &cobra.Command{
		Use:   "create NAME [CIDR…]",
		Short: "Create a network set",
		Long: "Create a network set. Rules refer to it by its name (`from set NAME`) and, with their selectors, by its labels, as to endpoints. Networks may lie in\n" +
			"one another. A domain is a name, or *. and a name for all names below that; what it stands for each node learns from the answers that DNS servers give\n" +
			"to its endpoints.",
		Example: "  netctl networkset create blocked 192.0.2.0/24 198.51.100.7/32\n  netctl networkset create offices 203.0.113.0/24 --label kind=office\n" +
			"  netctl networkset create updates --domain example.com --domain '*.example.org'",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringSliceVar(&labels, "label", nil, "`NAME=VALUE` labels")
	cmd.Flags().StringSliceVar(&domains, "domain", nil, "`names` whose addresses are in the set")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if len(args) == 1 && len(domains) == 0 {
			return usage("networkset %s: name what is in it: networks, or --domain", args[0])
		}
		n := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: args[0]}, Spec: datastore.NetworkSetSpec{Domains: domains}}
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

// inSetCommand changes what is in a list of a set one by one; gone is that of changed.
func inSetCommand[T comparable](a *app, use, short, example string, parse func([]string) ([]T, error), list func(*datastore.NetworkSet) *[]T, gone string) *cobra.Command {
	return &cobra.Command{
		Use:     use,
		Short:   short,
		Example: example,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := nameOf(cmd)
			if err := checkNames(datastore.KindNetworkSet, name); err != nil {
				return err
			}
			values, err := parse(args)
			if err != nil {
				return err
			}
			s, err := a.store(cmd.Context())
			if err != nil {
				return err
			}
			return modify(cmd.Context(), a, name, func(n *datastore.NetworkSet) (err error) {
				in := list(n)
				for _, v := range values {
					if *in, err = changed(*in, v, gone); err != nil {
						return err
					}
				}
				n.SetDefaults()
				if err := n.Validate(); err != nil || len(n.Spec.Domains) == 0 {
					return argument(err)
				}
				return a.checkPut(cmd.Context(), s, n)
			})
		},
	}
}

// parseDomains reads names.
func parseDomains(args []string) (list []string, err error) {
	for _, d := range args {
		d = datastore.CanonicalDomain(d)
		if err := datastore.CheckDomain(d); err != nil {
			return nil, argument(fmt.Errorf("domain %w", err))
		}
		list = append(list, d)
	}
	return list, nil
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
			var list []string
			for _, c := range n.Spec.CIDRs {
				list = append(list, c.String())
			}
			if list = append(list, n.Spec.Domains...); len(list) <= few {
				return strings.Join(list, ",")
			}
			return strings.Join(list[:few], ",") + " and " + strconv.Itoa(len(list)-few) + " more"
		}),
		col("Labels", labels[*datastore.NetworkSet]),
	}
}
