package commands

import (
	"fmt"
	"slices"
	"strings"

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
		return a.showKind(cmd.Context(), *f, kind, args[1:], layoutOf(kind, *f), nil)
	}
	return cmd
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
