package commands

import (
	"context"
	"maps"
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
	// named is what the command can be given to show of all objects, "": nothing; given
	// takes it.
	named string
	given func(string)
	// more are further formats, with what they print.
	more map[format]func([]datastore.Object) (string, error)
}

// newListCommand is NOUN show.
func newListCommand(a *app, l listing) *cobra.Command {
	cmd := &cobra.Command{Use: "show", Short: l.short, Long: l.long, Example: l.example, Args: cobra.NoArgs}
	f := addFormat(cmd, slices.Sorted(maps.Keys(l.more))...)
	if l.named != "" {
		cmd.Use, cmd.Args = "show ["+l.named+"]", cobra.MaximumNArgs(1)
	}
	if l.flags != nil {
		l.flags(cmd)
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			l.given(args[0])
		}
		if text := l.more[*f]; text != nil {
			return a.showText(cmd.Context(), l, text)
		}
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

// showText prints objects as text makes them.
func (a *app) showText(ctx context.Context, l listing, text func([]datastore.Object) (string, error)) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	need := needed{}
	need.all(l.kind)
	view, err := a.list(ctx, s, need)
	if err != nil {
		return err
	}
	objects := slices.DeleteFunc(objectsOf(view, l.kind), func(o datastore.Object) bool { return !l.keep(o) })
	out, err := text(objects)
	if err != nil {
		return err
	}
	return a.print(out)
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
