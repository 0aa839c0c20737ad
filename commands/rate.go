package commands

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

// newRateCommand is `rate` of an endpoint or a profile: show is what shows the limits of
// the object, controls where it keeps them.
func newRateCommand(noun, name string, show func(cmd *cobra.Command, f format) error, change func(cmd *cobra.Command, edit func(*datastore.QoSControls) error) error) *cobra.Command {
	of := "netctl " + noun + " " + name + " rate "
	showing := &cobra.Command{
		Use: "show", Short: "Show what limits the " + noun, Example: "  " + of + "show\n  " + of + "show -o yaml", Args: cobra.NoArgs,
	}
	f := addFormat(showing)
	showing.RunE = func(cmd *cobra.Command, _ []string) error { return show(cmd, *f) }
	names := func(suffix string) []string {
		var list []string
		for _, l := range (datastore.QoSControls{}).All() {
			list = append(list, l.Name+suffix)
		}
		return list
	}
	return group("rate", "Show and change limits of the "+noun+": bandwidth, packets, connections",
		"  "+of+"show\n  "+of+"set ingressBandwidth=100M egressPacketRate=20k ingressMaxConnections=500",
		showing,
		&cobra.Command{
			Use:   "set LIMIT=VALUE…",
			Short: "Set limits of the " + noun + "; 0 ends one",
			Long: "Set limits; 0 ends one. Of what an endpoint has and what its profiles have the least of each applies. A VALUE may end in k, M or G, of a thousand\n" +
				"each. In and out, as the endpoint sees it:\n" + limitHelp(),
			Example: "  " + of + "set ingressBandwidth=100M egressBandwidth=20M\n  " + of + "set egressNewConnections=50 egressMaxConnections=0",
			Args:    cobra.MinimumNArgs(1),
			ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return names("="), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				return change(cmd, func(q *datastore.QoSControls) error { return setLimits(q, args) })
			},
		},
		&cobra.Command{
			Use:     "remove [LIMIT…]",
			Short:   "Remove limits of the " + noun + ", or all of them",
			Example: "  " + of + "remove\n  " + of + "remove ingressBandwidth ingressBurst",
			ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
				return names(""), cobra.ShellCompDirectiveNoFileComp
			},
			RunE: func(cmd *cobra.Command, args []string) error {
				return change(cmd, func(q *datastore.QoSControls) error {
					if len(args) == 0 {
						*q = datastore.QoSControls{}
					}
					for _, name := range args {
						if err := q.Set(name, 0); err != nil {
							return argument(err)
						}
					}
					return nil
				})
			},
		})
}

func limitHelp() string {
	var lines []string
	for _, l := range (datastore.QoSControls{}).All() {
		lines = append(lines, fmt.Sprintf("  %-22s %s", l.Name, l.Unit))
	}
	return strings.Join(lines, "\n")
}

func setLimits(q *datastore.QoSControls, args []string) error {
	for _, arg := range args {
		name, text, ok := strings.Cut(arg, "=")
		if !ok {
			return usage("%s: want LIMIT=VALUE, such as ingressBandwidth=100M", arg)
		}
		value, err := parseCount(text)
		if err != nil {
			return usage("%s: %v", name, err)
		}
		if err := q.Set(name, value); err != nil {
			return argument(err)
		}
	}
	return nil
}

// parseCount reads a number that may end in k, M or G.
func parseCount(text string) (uint64, error) {
	scale := uint64(1)
	digits := text
	for suffix, by := range map[string]uint64{"k": 1e3, "M": 1e6, "G": 1e9} {
		if rest, ok := strings.CutSuffix(text, suffix); ok {
			digits, scale = rest, by
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > 1<<62/scale {
		return 0, fmt.Errorf("%q: want a number, which may end in k, M or G", text)
	}
	return n * scale, nil
}

// countText is its opposite.
func countText(n uint64) string {
	for _, s := range []struct {
		by     uint64
		suffix string
	}{{1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= s.by && n%s.by == 0 {
			return strconv.FormatUint(n/s.by, 10) + s.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}

// limitOwner says which of them an endpoint's limit is of.
func limitOwner(e *datastore.Endpoint, view *datastore.View, name string, value uint64) string {
	has := func(q datastore.QoSControls) bool {
		return slices.ContainsFunc(q.All(), func(l datastore.QoSLimit) bool { return l.Name == name && l.Value == value })
	}
	if has(e.Spec.QoSControls) {
		return "the endpoint"
	}
	for _, p := range e.Spec.Profiles {
		if o := view.Profile(p); o != nil && has(o.Spec.QoSControls) {
			return "profile " + p
		}
	}
	return "its runtime"
}

// limitText is a limit that applies to an endpoint, and whose it is.
func limitText(e *datastore.Endpoint, view *datastore.View, name string) string {
	for _, l := range e.Limits(view.Profile).All() {
		if l.Name == name && l.Value > 0 {
			return fmt.Sprintf(" %s %s, of %s", countText(l.Value), l.Unit, limitOwner(e, view, name, l.Value))
		}
	}
	return ", which has changed since"
}

// newEndpointRateCommand shows what applies.
func newEndpointRateCommand(a *app) *cobra.Command {
	return newRateCommand("endpoint", "slave/cni/3f2a/eth0",
		func(cmd *cobra.Command, f format) error {
			id := nameOf(cmd)
			if err := checkNames(datastore.KindEndpoint, id); err != nil {
				return err
			}
			e, err := read[*datastore.Endpoint](cmd.Context(), a, id)
			if err != nil {
				return err
			}
			view, err := a.profilesOf(cmd.Context(), e)
			if err != nil {
				return err
			}
			dropped := a.limitedOf(cmd.Context(), id)
			return a.show(f, []datastore.Object{e}, func() string {
				var rows [][]string
				for _, l := range e.Limits(view.Profile).All() {
					if l.Value > 0 {
						rows = append(rows, []string{l.Name, countText(l.Value), l.Unit, limitOwner(e, view, l.Name, l.Value), dropped[l.Name]})
					}
				}
				return table([]string{"Limit", "Value", "Unit", "Of", "Dropped"}, rows)
			})
		},
		func(cmd *cobra.Command, edit func(*datastore.QoSControls) error) error {
			id := nameOf(cmd)
			if err := checkNames(datastore.KindEndpoint, id); err != nil {
				return err
			}
			return modify(cmd.Context(), a, id, func(e *datastore.Endpoint) error {
				if err := edit(&e.Spec.QoSControls); err != nil {
					return err
				}
				return argument(e.Validate())
			})
		})
}

// profilesOf reads an endpoint's profiles.
func (a *app) profilesOf(ctx context.Context, e *datastore.Endpoint) (*datastore.View, error) {
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	need := needed{}
	for _, p := range e.Spec.Profiles {
		need.one(datastore.KindProfile, p)
	}
	return a.list(ctx, s, need)
}

// limitedOf is how many packets each limit of an endpoint dropped, if it is one of this node
// and the agent answers.
func (a *app) limitedOf(ctx context.Context, endpoint string) map[string]string {
	out := map[string]string{}
	s, err := a.settings()
	if err != nil {
		return out
	}
	st, err := control.NewAgentClient(s.Agent.Socket).Status(ctx)
	if err != nil || !strings.HasPrefix(endpoint, st.Node+"/") {
		return out
	}
	for _, l := range st.Limited {
		if l.Endpoint == endpoint {
			out[l.Limit] = fmt.Sprintf("%d packets", l.Packets)
		}
	}
	return out
}

// newProfileRateCommand shows what the profile says.
func newProfileRateCommand(a *app) *cobra.Command {
	return newRateCommand("profile", "web",
		func(cmd *cobra.Command, f format) error {
			p, err := readProfile(cmd, a)
			if err != nil {
				return err
			}
			return a.show(f, []datastore.Object{p}, func() string {
				var rows [][]string
				for _, l := range p.Spec.QoSControls.All() {
					if l.Value > 0 {
						rows = append(rows, []string{l.Name, countText(l.Value), l.Unit})
					}
				}
				return table([]string{"Limit", "Value", "Unit"}, rows)
			})
		},
		func(cmd *cobra.Command, edit func(*datastore.QoSControls) error) error {
			return changeProfile(cmd, a, func(p *datastore.Profile) error {
				if err := edit(&p.Spec.QoSControls); err != nil {
					return err
				}
				return argument(p.Validate())
			})
		})
}
