package commands

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newEditCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "edit KIND NAME",
		Short: "Change an object in an editor",
		Long: "Change an object's manifest in the editor that VISUAL or EDITOR names (else vi). Nothing is written if the text stays\n" +
			"the same, or if somebody else changed the object meanwhile. A text that is refused is kept, and the message says where.",
		Example:           "  netctl edit profile dataman\n  EDITOR=nano netctl edit pool 10.0.0.0/26",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeKindAndName,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			o, err := a.readNamed(cmd.Context(), kind, args[1])
			if err != nil {
				return err
			}
			return a.edit(cmd, o)
		},
	}
}

// readNamed reads the object of a kind that people call so.
func (a *app) readNamed(ctx context.Context, kind datastore.Kind, name string) (datastore.Object, error) {
	if err := checkNames(kind, nameOfKind(kind, name)); err != nil {
		return nil, err
	}
	if c, err := a.api(); err != nil {
		return nil, err
	} else if c != nil {
		return c.Read(ctx, kind, nameOfKind(kind, name))
	}
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	need := needed{}
	need.one(kind, nameOfKind(kind, name))
	view, err := a.list(ctx, s, need)
	if err != nil {
		return nil, err
	}
	objects, err := objectsNamed(view, kind, []string{name})
	if err != nil {
		return nil, err
	}
	return objects[0], nil
}

func (a *app) edit(cmd *cobra.Command, o datastore.Object) (err error) {
	before, err := manifestYAML([]datastore.Object{o})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "netctl-*.yaml")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.Remove(f.Name())
		} else {
			err = fmt.Errorf("%w; the text is kept in %s", err, f.Name())
		}
	}()
	if _, err := f.Write(before); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := a.runEditor(cmd, f.Name()); err != nil {
		return err
	}
	after, err := os.ReadFile(f.Name())
	if err != nil {
		return err
	}
	if bytes.Equal(before, after) {
		return a.print(label(o) + " unchanged\n")
	}
	list, err := parseManifests(f.Name(), after)
	if err != nil {
		return err
	}
	edited := list[0].object
	if len(list) != 1 || edited.Kind() != o.Kind() || edited.Meta().Name != o.Meta().Name {
		return fmt.Errorf("%s: edit changes one object and neither its kind nor its name: %w", f.Name(), datastore.ErrInvalid)
	}
	if a.server != nil {
		return a.writeEdited(cmd.Context(), a.server, edited, o.Meta().Revision)
	}
	mode := modeReplace
	if o.Meta().Revision == 0 {
		mode = modeCreate // of what is there without being stored
	}
	var printing error
	err = a.write(cmd.Context(), []manifest{{object: edited, revision: o.Meta().Revision}}, mode, func(p planned) {
		printing = a.tell(p, "")
	})
	return cmp.Or(err, printing)
}

func (a *app) runEditor(cmd *cobra.Command, file string) error {
	words := editor(os.Getenv("VISUAL"), os.Getenv("EDITOR"))
	c := exec.CommandContext(cmd.Context(), words[0], append(words[1:], file)...)
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	if err := c.Run(); err != nil {
		return fmt.Errorf("editor %s: %w", strings.Join(words, " "), err)
	}
	return nil
}

// editor is the command, with its arguments, that the first variable that is not
// blank names.
func editor(variables ...string) []string {
	for _, v := range variables {
		if words := strings.Fields(v); len(words) > 0 {
			return words
		}
	}
	return []string{"vi"}
}
