package commands

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newGetCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KIND [NAME…]",
		Short: "Print objects of a kind, as a table or as manifests",
		Long: "Print objects of a kind, as a table or, with -o yaml or json, as manifests that apply reads back.\nThe kinds are " +
			strings.Join(kindNames(), ", ") + ".",
		Example:           "  netctl get pools\n  netctl get profile dataman -o yaml > dataman.yaml",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeKindAndName,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		kind, err := parseKind(args[0])
		if err != nil {
			return err
		}
		need := needed{}
		need.all(shownWith(kind, *f)...)
		if names := args[1:]; len(names) > 0 {
			delete(need, kind)
			for _, name := range names {
				need.one(kind, nameOfKind(kind, name))
			}
		}
		s, err := a.store(cmd.Context())
		if err != nil {
			return err
		}
		view, err := a.list(cmd.Context(), s, need)
		if err != nil {
			return err
		}
		objects := objectsOf(view, kind)
		if len(args) > 1 {
			if objects, err = objectsNamed(view, kind, args[1:]); err != nil {
				return err
			}
		}
		if kind == datastore.KindPool {
			return a.showPools(cmd.Context(), *f, asPools(objects))
		}
		return a.show(*f, objects, func() string { return kindTable(view, kind, objects, *f == formatWide) })
	}
	return cmd
}

// shownWith are the kinds that a table of objects of a kind, or their manifests,
// are made of.
func shownWith(kind datastore.Kind, f format) []datastore.Kind {
	kinds := []datastore.Kind{kind}
	switch {
	case f == formatJSON || f == formatYAML:
	case kind == datastore.KindNode:
		kinds = append(kinds, datastore.KindBGPConfig, datastore.KindEndpoint, datastore.KindReport)
	case kind == datastore.KindEndpoint:
		kinds = append(kinds, datastore.KindNode, datastore.KindReport)
	case f == formatWide && (kind == datastore.KindNetwork || kind == datastore.KindProfile):
		kinds = append(kinds, datastore.KindEndpoint)
	}
	return kinds
}

// objectsOf are the objects of a kind; what configures the cluster is there even
// if nobody wrote it, with its defaults.
func objectsOf(view *datastore.View, kind datastore.Kind) []datastore.Object {
	switch kind {
	case datastore.KindBGPConfig:
		return []datastore.Object{view.BGP()}
	case datastore.KindConfig:
		return []datastore.Object{view.Config()}
	}
	return view.Objects(kind)
}

func objectsNamed(view *datastore.View, kind datastore.Kind, names []string) ([]datastore.Object, error) {
	all := objectsOf(view, kind)
	var out []datastore.Object
	for _, n := range names {
		n = nameOfKind(kind, n)
		if err := checkNames(kind, n); err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all, func(o datastore.Object) bool { return o.Meta().Name == n })
		if err := view.Unreadable(kind, n); err != nil {
			return nil, fmt.Errorf("%s: %w", labelOf(kind, n), err)
		}
		if i < 0 {
			return nil, fmt.Errorf("%s: %w", labelOf(kind, n), datastore.ErrNotFound)
		}
		out = append(out, all[i])
	}
	return out, nil
}

func asPools(objects []datastore.Object) []*datastore.Pool {
	var out []*datastore.Pool
	for _, o := range objects {
		out = append(out, o.(*datastore.Pool))
	}
	return out
}

// completeKindAndName completes a kind and then the names of its objects.
func (a *app) completeKindAndName(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return slices.DeleteFunc(kindNames(), func(k string) bool { return !strings.HasPrefix(k, word) }), cobra.ShellCompDirectiveNoFileComp
	}
	kind, err := parseKind(args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(kind, func(v *datastore.View) []string { return objectNames(v.Objects(kind)) })(cmd, args, word)
}

// kindTable is the table of objects of one kind.
func kindTable(view *datastore.View, kind datastore.Kind, objects []datastore.Object, wide bool) string {
	header := kindHeader(kind, wide)
	var rows [][]string
	for _, o := range objects {
		row := kindRow(view, o)
		rows = append(rows, row[:min(len(row), len(header))])
	}
	return table(header, rows)
}

// kindHeader is the columns of a kind's table; those of -o wide come last.
func kindHeader(kind datastore.Kind, wide bool) []string {
	var header, more []string
	switch kind {
	case datastore.KindNode:
		header, more = []string{"Name", "Addresses", "AS Number", "Endpoints", "Seen"}, []string{"Version", "Labels", "Subnets"}
	case datastore.KindBlock:
		header, more = []string{"CIDR", "Node", "Used", "Free"}, []string{"In quarantine"}
	case datastore.KindReservation:
		header = []string{"Name", "CIDRs", "For"}
	case datastore.KindNetwork:
		header, more = []string{"Name", "Pools", "Profile", "IPv6"}, []string{"Endpoints", "Labels"}
	case datastore.KindEndpoint:
		header = endpointHeader()
		more = []string{"ID", "Network", "Host interface", "Labels"}
	case datastore.KindProfile:
		header, more = []string{"Name"}, []string{"Tags", "Inbound rules", "Outbound rules", "Endpoints"}
	case datastore.KindBGPConfig:
		header = []string{"Name", "Default AS", "Mesh", "Hold time", "Restart time"}
	case datastore.KindConfig:
		header = []string{"Name", "MTU"}
	case datastore.KindReport:
		header = []string{"Node", "Role", "Seen", "Started", "Problems", "Endpoints", "Sessions"}
	}
	if wide {
		header = append(header, more...)
	}
	return header
}

func kindRow(view *datastore.View, o datastore.Object) []string {
	name := o.Meta().Name
	switch o := o.(type) {
	case *datastore.Node:
		return []string{name, joined(o.Spec.Addresses), asNumber(view, o), strconv.Itoa(len(view.EndpointsOf(name))), seen(lastSeen(view, name)),
			o.Status.Version, labels(o.Metadata.Labels), joined(o.Status.Subnets)}
	case *datastore.Block:
		used := len(o.Spec.Allocations)
		return []string{o.Spec.CIDR.String(), o.Spec.Affinity, strconv.Itoa(used), strconv.Itoa(o.Size() - used), strconv.Itoa(len(o.Spec.Released))}
	case *datastore.Reservation:
		return []string{name, joined(o.Spec.CIDRs), o.Spec.For}
	case *datastore.Network:
		return []string{name, joined(o.Spec.Pools), o.Spec.Profile, yes(o.Spec.IPv6), strconv.Itoa(len(view.EndpointsIn(name))), labels(o.Metadata.Labels)}
	case *datastore.Endpoint:
		return append(endpointRow(view, o), name, o.Spec.Network, o.Spec.Link, labels(o.Metadata.Labels))
	case *datastore.Profile:
		return []string{name, strings.Join(o.Spec.Tags, ","), strconv.Itoa(len(o.Spec.Inbound)), strconv.Itoa(len(o.Spec.Outbound)),
			strconv.Itoa(len(view.EndpointsWithProfile(name)))}
	case *datastore.BGPConfig:
		return []string{name, strconv.FormatUint(uint64(o.Spec.DefaultAS), 10), onOff(*o.Spec.Mesh), strconv.Itoa(*o.Spec.HoldTime) + " s", strconv.Itoa(o.Spec.RestartTime) + " s"}
	case *datastore.Config:
		mtu := "of the node's interface"
		if o.Spec.MTU > 0 {
			mtu = strconv.Itoa(o.Spec.MTU)
		}
		return []string{name, mtu}
	case *datastore.Report:
		node, role := o.Of()
		s := o.Status
		return []string{node, role, seen(s.Seen), seen(s.Started), strconv.Itoa(len(s.Problems)), strconv.Itoa(s.Endpoints), strconv.Itoa(len(s.Sessions))}
	}
	return []string{name}
}

// asNumber is the node's AS number, and whether it is the cluster's.
func asNumber(view *datastore.View, n *datastore.Node) string {
	if n.Spec.AS != 0 {
		return strconv.FormatUint(uint64(n.Spec.AS), 10)
	}
	return strconv.FormatUint(uint64(view.BGP().Spec.DefaultAS), 10) + " (inherited)"
}

func labels(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// lastSeen is when the node's agent last reported; zero: never.
func lastSeen(view *datastore.View, node string) (t time.Time) {
	if r := view.Report(node, datastore.ReportAgent); r != nil {
		t = r.Status.Seen
	}
	return t
}

func seen(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}
