package commands

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// endpointGuard is a guard of endpoints that can be switched.
type endpointGuard struct {
	name, drops string
	usual       bool // it is on unless somebody switches it off
	// field says that it is not as usual.
	field func(e *datastore.Endpoint) *bool
}

func endpointGuards() []endpointGuard {
	return []endpointGuard{
		{"encapsulation", "VXLAN and IPIP that the workload sends", true, func(e *datastore.Endpoint) *bool { return &e.Spec.AllowEncapsulation }},
		{"mac", "frames with another MAC than the endpoint's", false, func(e *datastore.Endpoint) *bool { return &e.Spec.GuardMAC }},
	}
}

// state is on or off.
func (g endpointGuard) state(e *datastore.Endpoint) string {
	if *g.field(e) != g.usual {
		return "on"
	}
	return "off"
}

// switchedGuards are those of an endpoint that are not as usual, as guard set takes them.
func switchedGuards(e *datastore.Endpoint) string {
	var list []string
	for _, g := range endpointGuards() {
		if *g.field(e) {
			list = append(list, g.name+"="+g.state(e))
		}
	}
	return strings.Join(list, ",")
}

// newEndpointGuardCommand shows and changes which guards an endpoint has.
func newEndpointGuardCommand(a *app) *cobra.Command {
	const of = "  netctl endpoint slave/docker/3f2a/eth0 guard "
	show := &cobra.Command{Use: "show", Short: "Show the guards of the endpoint that can be switched", Example: of + "show\n" + of + "show -o yaml", Args: cobra.NoArgs}
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
			var rows [][]string
			for _, g := range endpointGuards() {
				rows = append(rows, []string{g.name, g.state(e), g.drops})
			}
			return table([]string{"Guard", "State", "Drops"}, rows)
		})
	}
	var words []string
	for _, g := range endpointGuards() {
		words = append(words, g.name+"=on", g.name+"=off")
	}
	set := &cobra.Command{
		Use:   "set GUARD=on|off…",
		Short: "Switch guards of the endpoint on or off",
		Long: "Switch guards of the endpoint on or off. `encapsulation`, which is on, drops VXLAN and IPIP that the workload sends; off, it may run an overlay among\n" +
			"endpoints and to others. What it sends to the address of a node is dropped all the same. `mac`, which is off, drops frames with another source than the\n" +
			"endpoint's MAC, ARP with another sender's included.",
		Example: of + "set encapsulation=off\n" + of + "set mac=on", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id := nameOf(cmd)
			if err := checkNames(datastore.KindEndpoint, id); err != nil {
				return err
			}
			for _, arg := range args {
				if !slices.Contains(words, arg) {
					return usage("%q: want one of %s", arg, strings.Join(words, ", "))
				}
			}
			store, err := a.store(cmd.Context())
			if err != nil {
				return err
			}
			return modify(cmd.Context(), a, id, func(e *datastore.Endpoint) error {
				was := e.Spec.GuardMAC
				for _, g := range endpointGuards() {
					for _, arg := range args {
						if state, is := strings.CutPrefix(arg, g.name+"="); is {
							*g.field(e) = (state == "on") != g.usual
						}
					}
				}
				if e.Spec.GuardMAC && !was {
					return a.checkPut(cmd.Context(), store, e)
				}
				return nil
			})
		},
	}
	return group("guard", "Show and change the guards of the endpoint", of+"show\n"+of+"set encapsulation=off", show, set)
}
