package commands

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

func newIPAMCommand(a *app) *cobra.Command {
	return group("ipam", "Show and check who holds which address", "  netctl ipam show --blocks\n  netctl ipam check",
		newIPAMShowCommand(a), newIPAMInfoCommand(a), newIPAMReleaseCommand(a), newIPAMCheckCommand(a))
}

func newIPAMShowCommand(a *app) *cobra.Command {
	var blocks bool
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show how much of each pool is used, with --blocks of each block too",
		Example: "  netctl ipam show\n  netctl ipam show --blocks",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.Flags().BoolVar(&blocks, "blocks", false, "a row for each block")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		view, err := a.view(cmd.Context(), ipam.Kinds()...)
		if err != nil {
			return err
		}
		pools := ipam.Use(view)
		if f.manifests() {
			return a.showPlain(*f, pools)
		}
		return a.print(poolUseTable(pools, blocks || *f == formatWide))
	}
	return cmd
}

func poolUseTable(pools []ipam.PoolUse, blocks bool) string {
	if len(pools) == 0 {
		return "No pools.\n"
	}
	var rows [][]string
	for _, p := range pools {
		rows = append(rows, []string{"Pool", p.CIDR.String(), "", p.Size.String(), strconv.Itoa(p.Used), p.Free.String()})
		if !blocks {
			continue
		}
		for _, b := range p.Blocks {
			rows = append(rows, []string{"Block", b.CIDR.String(), b.Affinity, strconv.Itoa(b.Size), strconv.Itoa(b.Used), strconv.Itoa(b.Free)})
		}
	}
	header := []string{"Grouping", "CIDR", "Node", "Addresses", "Used", "Free"}
	if !blocks {
		header = []string{"Pool", "Addresses", "Used", "Free"}
		for i, r := range rows {
			rows[i] = append([]string{r[1]}, r[3:]...)
		}
	}
	return table(header, rows)
}

// parseAddress reads an argument that is an address.
func parseAddress(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, usage("%q is no IP address", s)
	}
	return addr.Unmap(), nil
}

func newIPAMInfoCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "info IP",
		Short:             "Show who holds an address",
		Example:           "  netctl ipam info 10.0.0.48\n  netctl ipam info 10.0.0.48 -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindBlock, heldAddresses),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		addr, err := parseAddress(args[0])
		if err != nil {
			return err
		}
		s, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		defer a.waiting("the datastore")()
		i, err := ipam.Info(cmd.Context(), s, addr)
		if err != nil {
			return err
		}
		if f.manifests() {
			return a.showPlain(*f, i)
		}
		return a.print(addressText(i))
	}
	return cmd
}

func addressText(i ipam.AddressInfo) string {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name+":", datastore.Line(value))
		}
	}
	state := "free"
	switch {
	case i.Allocation != nil:
		state = "in use"
	case !i.Pool.IsValid():
		state = "in no pool"
	case i.Excluded != "":
		state = "not given out: it is in " + i.Excluded
	case i.Released:
		state = "released, resting"
	}
	line("Address", i.Address.String())
	line("State", state)
	if h := i.Allocation; h != nil {
		line("Handle", h.Handle)
		line("Workload", h.Workload)
		line("Node", h.Node)
		line("Since", seen(h.Time))
	}
	if i.Endpoint != nil {
		line("Endpoint", i.Endpoint.Metadata.Name)
		line("Network", i.Endpoint.Spec.Network)
		line("Profiles", strings.Join(i.Endpoint.Spec.Profiles, ","))
	}
	if i.Block.IsValid() {
		line("Block", i.Block.String()+" of node "+i.Affinity)
	}
	if i.Pool.IsValid() {
		line("Pool", i.Pool.String())
	}
	return b.String()
}

// heldAddresses are the addresses that are allocated.
func heldAddresses(v *datastore.View) []string {
	var out []string
	for _, e := range v.Endpoints() {
		for _, addr := range e.Spec.Addresses {
			out = append(out, addr.String())
		}
	}
	return out
}

func newIPAMReleaseCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "release IP",
		Short:             "Give an address back that leaked",
		Long:              "Give an address back that leaked. An address that an endpoint has is not released; --force does it all the same, and\nanother endpoint may then get it too.",
		Example:           "  netctl ipam release 10.0.0.48\n  netctl ipam release 10.0.0.48 --force",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&force, "force", false, "although an endpoint has it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		addr, err := parseAddress(args[0])
		if err != nil {
			return err
		}
		s, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		defer a.waiting("the datastore")()
		handle, err := ipam.ReleaseAddress(cmd.Context(), s, addr, force)
		if err != nil {
			return err
		}
		return a.print(fmt.Sprintf("%s released, was held by %s\n", addr, handle))
	}
	return cmd
}

func newIPAMCheckCommand(a *app) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check that blocks, addresses, endpoints and nodes agree",
		Long: "Check that blocks, addresses, endpoints and nodes agree. With --repair leaked addresses are given back, endpoints'\n" +
			"addresses noted again, and blocks of nodes that are gone freed; the rest needs a decision.",
		Example:     "  netctl ipam check\n  netctl ipam check --repair",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{exitCodes: "0 nothing wrong (any more), 1 failed, 2 usage, 3 something is wrong"},
	}
	f := addFormat(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "put right what needs no decision")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		defer a.waiting("the datastore")()
		check := ipam.Check
		if repair {
			check = ipam.Repair
		}
		r, err := check(cmd.Context(), s)
		if err != nil {
			return err
		}
		if f.manifests() {
			err = a.showPlain(*f, r)
		} else {
			err = a.print(a.checkText(r))
		}
		for _, finding := range r.Findings {
			if err == nil && !finding.Repaired {
				err = errNo
			}
		}
		return err
	}
	return cmd
}

func (a *app) checkText(r ipam.Report) string {
	var b strings.Builder
	for _, f := range r.Findings {
		if f.Repaired {
			fmt.Fprintf(&b, "repaired: %s\n", f.Message)
		} else {
			fmt.Fprintln(&b, a.bad("! "+f.Message))
		}
	}
	fmt.Fprintf(&b, "%s, %s, %s and %s checked: %s.\n", count(r.Pools, "pool"), count(r.Blocks, "block"),
		countWord(r.Addresses, "address", "addresses"), count(r.Endpoints, "endpoint"), findings(len(r.Findings)))
	return b.String()
}

func findings(n int) string {
	if n == 0 {
		return "nothing wrong"
	}
	return count(n, "finding")
}

func countWord(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
