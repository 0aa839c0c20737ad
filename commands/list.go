package commands

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// listing is the command that shows a noun's objects.
type listing struct {
	kind                 datastore.Kind
	short, long, example string
	flags                func(*cobra.Command)        // nil: those of every listing
	keep                 func(datastore.Object) bool // nil: every object
	layout               func(format) (layout, bool) // nil or false: the kind's usual one
}

// newListCommand is NOUN show.
func newListCommand(a *app, l listing) *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: l.short, Long: l.long, Example: l.example, Args: cobra.NoArgs}
	f := addFormat(cmd)
	if l.flags != nil {
		l.flags(cmd)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		shown := layoutOf(l.kind, *f)
		if l.layout != nil {
			if other, ok := l.layout(*f); ok {
				shown = other
			}
		}
		return a.showKind(cmd.Context(), *f, l.kind, nil, shown, l.keep)
	}
	return cmd
}

// showKind prints the named objects of a kind (none: all that keep keeps; nil keeps
// every one), as manifests or in a layout.
func (a *app) showKind(ctx context.Context, f format, kind datastore.Kind, names []string, l layout, keep func(datastore.Object) bool) error {
	need := needed{}
	if !f.manifests() {
		need.all(l.reads...)
	}
	if len(names) == 0 {
		need.all(kind)
	}
	for _, name := range names {
		need.one(kind, nameOfKind(kind, name))
	}
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	view, err := a.list(ctx, s, need)
	if err != nil {
		return err
	}
	objects := objectsOf(view, kind)
	if len(names) > 0 {
		if objects, err = objectsNamed(view, kind, names); err != nil {
			return err
		}
	}
	if keep != nil {
		objects = slices.DeleteFunc(objects, func(o datastore.Object) bool { return !keep(o) })
	}
	return a.show(f, objects, func() string { return l.text(view, objects) })
}
