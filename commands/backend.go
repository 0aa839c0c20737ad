package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"netctl/commands/api"
	"netctl/datastore"
)

// caller is who has an API do something, and the files that came along.
type caller struct {
	name  string
	role  datastore.APIRole
	files map[string]string
	does  string // as the history says it
	// oneValue says that all it prints is to be one JSON value.
	oneValue bool
}

// may refuses a caller of the API who may not write a kind by hand.
func (a *app) may(k datastore.Kind) error {
	if need := datastore.KindRole(k); a.caller != nil && a.caller.role < need {
		return fmt.Errorf("writing %s needs the role %s: %w", api.Plural(k), need, datastore.ErrDenied)
	}
	return nil
}

// backend does what the API is asked to, as the command line would here.
type backend struct {
	settings *settings
	store    clusterStore
}

// run is an app of one request, whose changes are recorded; what it prints is kept.
func (b *backend) run(who caller, stdin string) (a *app, out, errs *bytes.Buffer) {
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	host, _ := os.Hostname() // it is said without
	store := recorded(b.store, datastore.HistoryRecord{User: who.name, Host: host, Node: b.settings.Node, Command: "api " + who.does})
	return &app{in: strings.NewReader(stdin), out: out, err: errs, loaded: b.settings, opened: store, caller: &who}, out, errs
}

// warned are the warnings among what was printed.
func warned(errs *bytes.Buffer) (list []string) {
	for line := range strings.Lines(errs.String()) {
		list = append(list, strings.TrimPrefix(strings.TrimSuffix(line, "\n"), warningPrefix))
	}
	return list
}

// List implements api.Backend.
func (b *backend) List(ctx context.Context, k datastore.Kind) ([]datastore.Object, int64, error) {
	a, _, _ := b.run(caller{}, "")
	need := needed{}
	need.all(k)
	view, err := a.list(ctx, b.store, need)
	if err != nil {
		return nil, 0, err
	}
	return objectsOf(view, k), view.Revision(), nil
}

// Read implements api.Backend.
func (b *backend) Read(ctx context.Context, k datastore.Kind, name string) (datastore.Object, error) {
	a, _, _ := b.run(caller{}, "")
	need := needed{}
	need.one(k, name)
	view, err := a.list(ctx, b.store, need)
	if err != nil {
		return nil, err
	}
	list, err := objectsNamed(view, k, []string{name})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// Name implements api.Backend.
func (b *backend) Name(k datastore.Kind, s string) string { return nameOfKind(k, s) }

// Write implements api.Backend.
func (b *backend) Write(ctx context.Context, who api.Caller, o datastore.Object, revision int64, m api.Mode) (w api.Written, err error) {
	verb := map[api.Mode]string{api.Apply: "apply", api.Create: "create", api.Replace: "replace"}[m]
	a, _, errs := b.run(caller{name: who.Name, role: datastore.APIAdmin, does: verb + " " + label(o)}, "") // its role was looked at
	mode := map[api.Mode]writeMode{api.Apply: modeApply, api.Create: modeCreate, api.Replace: modeReplace}[m]
	err = a.write(ctx, []manifest{{object: o, revision: revision}}, mode, func(p planned) {
		a.noted(p)
		w.Verb = p.verb
	})
	if pool, ok := o.(*datastore.Pool); ok && err == nil && w.Verb == "created" {
		err = a.warnSubnets(ctx, []netip.Prefix{pool.Spec.CIDR})
	}
	if err != nil {
		return w, err
	}
	w.Warnings = warned(errs)
	w.Object, err = b.Read(ctx, o.Kind(), o.Meta().Name)
	return w, err
}

// Delete implements api.Backend.
func (b *backend) Delete(ctx context.Context, who api.Caller, k datastore.Kind, name string, force bool) ([]string, error) {
	a, _, errs := b.run(caller{name: who.Name, role: datastore.APIAdmin, does: "delete " + labelOf(k, name)}, "")
	err := a.delete(ctx, k, name, force)
	return warned(errs), err
}

// Do implements api.Backend.
func (b *backend) Do(ctx context.Context, who api.Caller, action api.Action, q api.Request) (answer api.Answer) {
	does := append(strings.Fields(q.Name), q.Args...)
	a, out, errs := b.run(caller{name: who.Name, role: who.Role, files: q.Files, does: strings.Join(append([]string{action.Path}, does...), " ")}, q.Stdin)
	_, chosen := q.Flags["output"]
	result := action.Prints && !chosen
	a.caller.oneValue = result
	err := a.runAction(ctx, action, q, result)
	answer.Output, answer.Warnings = out.String(), warned(errs)
	if result && json.Valid(out.Bytes()) {
		answer.Output, answer.Result = "", out.Bytes()
	}
	if err != nil {
		answer.Err, answer.Exit, answer.Error = err, a.exitCode(err), oneLine(err)
	}
	return answer
}

// runAction runs the action's command as if it had been typed; asJSON: with -o json.
func (a *app) runAction(ctx context.Context, action api.Action, q api.Request, asJSON bool) error {
	root := newRootCommand(a)
	root.SetOut(io.Discard) // help; commands print to the app's
	line := append(commandLine(root, strings.Split(action.Path, "/"), q.Name), "--")
	line = append(line, q.Args...)
	bindName(root, line)
	cmd, _, err := root.Find(line)
	// A name may be a word of the command line, too.
	if err != nil || commandPath(cmd) != strings.ReplaceAll(action.Path, "/", " ") {
		return usage("name %q: is none that %s can have", q.Name, action.Path)
	}
	for name, v := range q.Flags {
		if err := setFlag(cmd.Flags().Lookup(name), v); err != nil {
			return usage("flag %s: %v", name, err)
		}
	}
	if asJSON {
		_ = cmd.Flags().Set("output", string(formatJSON))
	}
	root.SetArgs(line)
	cmd, err = root.ExecuteContextC(ctx)
	return requiredError(cmd, err)
}

// commandLine are the words of a command, with the name in its place.
func commandLine(root *cobra.Command, words []string, name string) (line []string) {
	at := root
	for _, w := range words {
		next := subcommand(at, func(c *cobra.Command) bool { return c.Name() == w })
		if next == nil {
			if holder := subcommand(at, func(c *cobra.Command) bool { return c.Annotations[nameHolder] != "" }); holder != nil {
				line = append(line, name)
				next = subcommand(holder, func(c *cobra.Command) bool { return c.Name() == w })
			}
		}
		if next != nil {
			at = next
		}
		line = append(line, w)
	}
	return line
}

func subcommand(c *cobra.Command, is func(*cobra.Command) bool) *cobra.Command {
	for _, sub := range c.Commands() {
		if is(sub) {
			return sub
		}
	}
	return nil
}

// setFlag gives a flag a value of JSON.
func setFlag(f *pflag.Flag, v any) error {
	list, isList := v.([]any)
	if slice, ok := f.Value.(pflag.SliceValue); ok {
		if !isList {
			list = []any{v}
		}
		var texts []string
		for _, item := range list {
			text, err := flagText(item)
			if err != nil {
				return err
			}
			texts = append(texts, text)
		}
		f.Changed = true
		return slice.Replace(texts)
	}
	text, err := flagText(v)
	if err != nil {
		return err
	}
	if err := f.Value.Set(text); err != nil {
		return fmt.Errorf("%q: %w", text, err)
	}
	f.Changed = true
	return nil
}

func flagText(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case bool:
		return fmt.Sprint(v), nil
	}
	return "", fmt.Errorf("must be a string, a number, true or false, or a list of strings for a flag that may be repeated")
}
