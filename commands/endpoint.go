package commands

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
)

func newEndpointCommand(a *app) *cobra.Command {
	cmd := group("endpoint", "Show and change endpoints: interfaces of containers and other workloads",
		"  netctl endpoint show --detailed\n  netctl endpoint slave/cni/3f2a/eth0 profile append web",
		newEndpointShowCommand(a), newEndpointAddCommand(a), newEndpointRemoveCommand(a),
		named("ID", "Show and change one endpoint; its ID is node/orchestrator/workload/interface",
			"  netctl endpoint slave/cni/3f2a/eth0 profile show\n  netctl endpoint slave/cni/3f2a/eth0 profile set web db",
			newEndpointProfileCommand(a), newEndpointRateCommand(a), newEndpointPrefixCommand(a), newEndpointGuardCommand(a)))
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindEndpoint, endpointNames)
	return cmd
}

func newEndpointShowCommand(a *app) *cobra.Command {
	var host, orchestrator, workload, iface, name string
	var detailed bool
	differs := func(filter, value string) bool { return filter != "" && filter != value }
	return newListCommand(a, listing{
		kind:  datastore.KindEndpoint,
		short: "Show how many endpoints there are where, or with --detailed each of them",
		long: "Show how many endpoints there are where, or with --detailed each of them. What other commands take as an ID is the first\n" +
			"four columns of --detailed with / between them; -o wide has it in a column. Given an ID, or the name of a workload or of a\n" +
			"TAP, it shows that. With -o cloud-init it prints what a virtual machine's cloud-init takes as network-config (version 2).",
		example: "  netctl endpoint show\n  netctl endpoint show --host slave --detailed\n  netctl endpoint show vm1 -o cloud-init >network-config",
		named:   "ID",
		given:   func(s string) { name, detailed = s, true },
		more:    map[format]func([]datastore.Object) (string, error){formatCloudInit: func(list []datastore.Object) (string, error) { return a.cloudInit(name, list) }},
		flags: func(cmd *cobra.Command) {
			cmd.Flags().StringVar(&host, "host", "", "of this `node` only")
			cmd.Flags().StringVar(&orchestrator, "orchestrator", "", "of this `orchestrator` only: cni, docker, manual, …")
			cmd.Flags().StringVar(&workload, "workload", "", "of this `workload` only")
			cmd.Flags().StringVar(&iface, "endpoint", "", "with this `interface` in the workload only")
			cmd.Flags().BoolVar(&detailed, "detailed", false, "one row for each endpoint")
			_ = cmd.RegisterFlagCompletionFunc("host", a.complete(datastore.KindNode, nodeNames))
		},
		keep: func(o datastore.Object) bool {
			s := o.(*datastore.Endpoint).Spec
			if name != "" && name != o.Meta().Name && name != s.Workload && name != s.Tap.Name {
				return false
			}
			return !differs(host, s.Node) && !differs(orchestrator, s.Orchestrator) && !differs(workload, s.Workload) && !differs(iface, s.Interface)
		},
		layout: func(f format) (layout, bool) { return layout{text: endpointCounts}, !detailed && f != formatWide },
	})
}

// endpointCounts has a row for each orchestrator of each node.
func endpointCounts(_ *datastore.View, list []datastore.Object) string {
	spec := func(i int) datastore.EndpointSpec { return list[i].(*datastore.Endpoint).Spec }
	var rows [][]string
	for len(list) > 0 {
		s := spec(0)
		n := 0
		workloads := map[string]bool{}
		for n < len(list) && spec(n).Node == s.Node && spec(n).Orchestrator == s.Orchestrator {
			workloads[spec(n).Workload] = true
			n++
		}
		rows = append(rows, []string{s.Node, s.Orchestrator, strconv.Itoa(len(workloads)), strconv.Itoa(n)})
		list = list[n:]
	}
	return table([]string{"Hostname", "Orchestrator ID", "Number of Workloads", "Number of Endpoints"}, rows)
}

// concerns says whether a problem names an endpoint, not one whose name begins so.
func concerns(problem, name string) bool {
	_, rest, ok := strings.Cut(problem, name)
	return ok && (rest == "" || strings.ContainsRune(" :,;)\"", rune(rest[0])))
}

// endpointState is what the endpoint's node says of it.
func endpointState(view *datastore.View, e *datastore.Endpoint) string {
	n := view.Node(e.Spec.Node)
	if n == nil {
		return "node gone"
	}
	if r := view.Report(e.Spec.Node, datastore.ReportAgent); r != nil {
		for _, p := range r.Status.Problems {
			if concerns(p, e.Metadata.Name) {
				return "error"
			}
		}
	}
	return "active"
}

func newEndpointProfileCommand(a *app) *cobra.Command {
	show := &cobra.Command{
		Use:     "show",
		Short:   "Show the profiles of the endpoint, in order",
		Example: "  netctl endpoint slave/cni/3f2a/eth0 profile show\n  netctl endpoint slave/cni/3f2a/eth0 profile show -o yaml",
		Args:    cobra.NoArgs,
	}
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
			for _, p := range e.Spec.Profiles {
				text += p + "\n"
			}
			return text
		})
	}
	change := func(verb, short, example string, edit func(have, args []string) ([]string, error)) *cobra.Command {
		return &cobra.Command{
			Use:               verb + " PROFILE…",
			Short:             short,
			Example:           example,
			Args:              cobra.MinimumNArgs(1),
			ValidArgsFunction: a.complete(datastore.KindProfile, profileNames),
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.changeEndpointProfiles(cmd, args, edit)
			},
		}
	}
	return group("profile", "Show and change the profiles of the endpoint; the first rule that matches decides",
		"  netctl endpoint slave/cni/3f2a/eth0 profile show\n  netctl endpoint slave/cni/3f2a/eth0 profile append web",
		show,
		change("append", "Append profiles that the endpoint does not have yet",
			"  netctl endpoint slave/cni/3f2a/eth0 profile append web\n  netctl endpoint slave/cni/3f2a/eth0 profile append web db",
			func(have, args []string) ([]string, error) {
				for _, p := range args {
					if !slices.Contains(have, p) {
						have = append(have, p)
					}
				}
				return have, nil
			}),
		change("remove", "Remove profiles from the endpoint",
			"  netctl endpoint slave/cni/3f2a/eth0 profile remove web\n  netctl endpoint slave/cni/3f2a/eth0 profile remove web db",
			func(have, args []string) ([]string, error) {
				for _, p := range args {
					if !slices.Contains(have, p) {
						return nil, datastore.As(datastore.ErrNotFound, "the endpoint does not have the profile %s", p)
					}
				}
				return slices.DeleteFunc(have, func(p string) bool { return slices.Contains(args, p) }), nil
			}),
		change("set", "Set the profiles of the endpoint",
			"  netctl endpoint slave/cni/3f2a/eth0 profile set web\n  netctl endpoint slave/cni/3f2a/eth0 profile set web db",
			func(_, args []string) ([]string, error) { return args, nil }))
}

func (a *app) changeEndpointProfiles(cmd *cobra.Command, args []string, edit func(have, args []string) ([]string, error)) error {
	id := nameOf(cmd)
	if err := checkNames(datastore.KindEndpoint, id); err != nil {
		return err
	}
	if err := checkNames(datastore.KindProfile, args...); err != nil {
		return err
	}
	s, err := a.store(cmd.Context())
	if err != nil {
		return err
	}
	return modify(cmd.Context(), a, id, func(e *datastore.Endpoint) error {
		profiles, err := edit(e.Spec.Profiles, args)
		if err != nil {
			return err
		}
		e.Spec.Profiles = profiles
		if err := e.Validate(); err != nil {
			return argument(err)
		}
		return a.checkPut(cmd.Context(), s, e)
	})
}

// endpointUsed says which workload would lose an endpoint: there is one as long as the
// node's agent reports. nil: there is none.
func (a *app) endpointUsed(ctx context.Context, e *datastore.Endpoint) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	need := needed{}
	need.one(datastore.KindNode, e.Spec.Node)
	need.one(datastore.KindReport, datastore.ReportName(e.Spec.Node, datastore.ReportAgent))
	view, err := a.list(ctx, s, need)
	if err != nil {
		return err
	}
	ago := time.Since(lastSeen(view, e.Spec.Node))
	if view.Node(e.Spec.Node) == nil || ago >= control.Silence || ofAnotherLink(e) {
		return nil
	}
	return fmt.Errorf("%w by workload %s on node %s, whose agent reported %s ago", datastore.ErrInUse, e.Spec.Workload, e.Spec.Node, ago.Round(time.Second))
}

// ofAnotherLink says whether an endpoint names a link that is not its own, so that no agent
// goes by it.
func ofAnotherLink(e *datastore.Endpoint) bool {
	return !strings.HasSuffix(e.Spec.Link, datastore.LinkName("", e.Metadata.Name))
}

// mayTake refuses to take an endpoint that is used, but by force.
func mayTake(e *datastore.Endpoint, used error, force bool) error {
	switch {
	case used == nil || force && errors.Is(used, datastore.ErrInUse):
		return nil
	case errors.Is(used, datastore.ErrInUse):
		used = fmt.Errorf("%w: it would lose its interface %s; end it there, or use --force", used, e.Spec.Interface)
	}
	return fmt.Errorf("%s: %w", label(e), used)
}

// takeEndpoint has take remove an endpoint that no workload uses, or any by force.
func (a *app) takeEndpoint(ctx context.Context, e *datastore.Endpoint, force bool, take func() error) error {
	used := a.endpointUsed(ctx, e)
	if err := mayTake(e, used, force); err != nil {
		return err
	}
	if err := take(); err != nil || used == nil {
		return err
	}
	a.warn("%s was %v: the workload loses its interface %s, and %s can be given to others", label(e), used, e.Spec.Interface, joined(e.Spec.Addresses))
	return nil
}

// deleteEndpoint removes an endpoint and gives its addresses back, in one
// transaction. It is for endpoints whose node is gone: an agent that runs
// writes its own again.
func (a *app) deleteEndpoint(ctx context.Context, e *datastore.Endpoint) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	cond, op, err := datastore.OpDelete(e)
	if err != nil {
		return err
	}
	err = ipam.New(ipam.Config{Node: e.Spec.Node, Store: s}).Release(ctx, e.Metadata.Name, e.Spec.Addresses,
		func([]netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
			return []datastore.Condition{cond}, []datastore.Op{op}, nil
		})
	if err != nil {
		return fmt.Errorf("%s: %w", label(e), err)
	}
	return nil
}
