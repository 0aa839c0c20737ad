package commands

import (
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// guardEncapsulation is the name of the guard that drops encapsulated packets of workloads.
const guardEncapsulation = "encapsulation"

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
			state := map[bool]string{false: "on", true: "off"}[e.Spec.AllowEncapsulation]
			return table([]string{"Guard", "State", "Drops"}, [][]string{{guardEncapsulation, state, "VXLAN and IPIP that the workload sends"}})
		})
	}
	set := &cobra.Command{
		Use:   "set GUARD=on|off…",
		Short: "Switch guards of the endpoint on or off",
		Long: "Switch guards of the endpoint on or off. `encapsulation` drops VXLAN and IPIP that the workload sends; off, it may run an overlay among endpoints\n" +
			"and to others. What it sends to the address of a node is dropped all the same.",
		Example: of + "set encapsulation=off\n" + of + "set encapsulation=on", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{guardEncapsulation + "=on", guardEncapsulation + "=off"}, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id := nameOf(cmd)
			if err := checkNames(datastore.KindEndpoint, id); err != nil {
				return err
			}
			off := false
			for _, arg := range args {
				name, state, _ := strings.Cut(arg, "=")
				if name != guardEncapsulation || state != "on" && state != "off" {
					return usage("%q: want encapsulation=on or encapsulation=off", arg)
				}
				off = state == "off"
			}
			return modify(cmd.Context(), a, id, func(e *datastore.Endpoint) error {
				e.Spec.AllowEncapsulation = off
				return nil
			})
		},
	}
	return group("guard", "Show and change the guards of the endpoint", of+"show\n"+of+"set encapsulation=off", show, set)
}
