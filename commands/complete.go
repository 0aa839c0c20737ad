package commands

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// completionTime bounds how long a shell waits for names.
const completionTime = 2 * time.Second

type completer = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// complete completes every argument from the live cluster's objects of a kind; what
// the command line has already is not offered again.
func (a *app) complete(kind datastore.Kind, names func(v *datastore.View) []string) completer {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		a.cmd = cmd
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		v, err := a.view(ctx, kind)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		out := slices.DeleteFunc(names(v), func(n string) bool {
			return !strings.HasPrefix(n, word) || slices.Contains(args, n)
		})
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFirst completes the first argument only.
func (a *app) completeFirst(kind datastore.Kind, names func(v *datastore.View) []string) completer {
	all := a.complete(kind, names)
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return all(cmd, args, word)
	}
}

func objectNames[T datastore.Object](list []T) []string {
	out := make([]string, 0, len(list))
	for _, o := range list {
		out = append(out, o.Meta().Name)
	}
	return out
}

func nodeNames(v *datastore.View) []string     { return objectNames(v.Nodes()) }
func profileNames(v *datastore.View) []string  { return objectNames(v.Profiles()) }
func networkNames(v *datastore.View) []string  { return objectNames(v.Networks()) }
func endpointNames(v *datastore.View) []string { return objectNames(v.Endpoints()) }

func poolCIDRs(v *datastore.View) []string {
	var out []string
	for _, p := range v.Pools() {
		out = append(out, p.Spec.CIDR.String())
	}
	return out
}

func tagNames(v *datastore.View) []string {
	var out []string
	for _, p := range v.Profiles() {
		out = append(out, p.Spec.Tags...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
