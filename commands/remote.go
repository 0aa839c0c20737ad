package commands

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"netctl/commands/api"
	"netctl/datastore"
)

// remoteError is what an API says of a command that it ran.
type remoteError struct {
	text string
	exit int
}

func (e remoteError) Error() string { return e.text }

// api is the API that is to do what is asked; nil: this machine is, by the datastore.
func (a *app) api() (*api.Client, error) {
	if a.server != nil || a.caller != nil || a.opened != nil {
		return a.server, nil
	}
	s, err := a.settings()
	if err != nil || s.Client.Server == "" {
		return nil, err
	}
	a.server, err = api.NewClient(s.server())
	return a.server, err
}

func (s *settings) server() api.Server {
	return api.Server{URL: s.Client.Server, CA: s.Client.CA, Cert: s.Client.Cert, Key: s.Client.Key}
}

// byServer runs a command that is an action at the API that is to do it, if there is one.
func (a *app) byServer(cmd *cobra.Command, args []string) (done bool, err error) {
	path := commandPath(cmd)
	r, ok := remotes()[path]
	if !ok || r.here || a.caller != nil {
		f := cmd.Flags().Lookup("server")
		if local, is := localCommands()[path]; is && !local && f != nil && f.Changed {
			return true, usage("%s works on this machine: --server has no place there", path)
		}
		return false, nil
	}
	c, err := a.api()
	if err != nil || c == nil {
		return err != nil, err
	}
	q, err := a.request(cmd, args, r)
	if err != nil {
		return true, err
	}
	defer a.waiting("the API")()
	answer, err := a.do(cmd.Context(), c, strings.ReplaceAll(path, " ", "/"), q)
	if err != nil {
		return true, err
	}
	if err := a.print(answer.Output); err != nil {
		return true, err
	}
	return true, failureIn(answer)
}

// do has an action done and tells its warnings.
func (a *app) do(ctx context.Context, c *api.Client, path string, q api.Request) (api.Answer, error) {
	answer, err := c.Do(ctx, path, q)
	for _, w := range answer.Warnings {
		a.warn("%s", w)
	}
	return answer, err
}

func failureIn(answer api.Answer) error {
	switch answer.Exit {
	case exitOK:
		return nil
	case exitUsage:
		return usageError{errors.New(answer.Error)}
	case exitNo:
		if answer.Error == "" {
			return errNo
		}
	}
	return remoteError{answer.Error, answer.Exit}
}

// request is the command line as the API has it, with the files that it names.
func (a *app) request(cmd *cobra.Command, args []string, r remote) (q api.Request, err error) {
	q = api.Request{Name: nameOf(cmd), Args: args, Flags: map[string]any{}, Files: map[string]string{}}
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			q.Flags[f.Name] = valueOf(f)
		}
	})
	if f := cmd.LocalNonPersistentFlags().Lookup("output"); f != nil {
		q.Flags["output"] = f.Value.String() // text is wanted, whatever the format
	}
	var files []string
	for _, name := range r.files {
		switch v := q.Flags[name].(type) {
		case string:
			files = append(files, v)
		case []string:
			files = append(files, v...)
		}
	}
	if r.reads {
		files = append(files, "-")
		if len(args) > 0 {
			files = args[:1]
		}
	}
	size := 0
	for _, name := range files {
		text, err := readInput(cmd.Context(), a.in, name, api.MaxAction)
		if err != nil {
			return q, unread(cmd, err)
		}
		if size += len(text); size > api.MaxAction {
			return q, fmt.Errorf("%s: more than %d bytes, which is the most that goes to an API at once: do it in parts, or on a node", inputName(name), api.MaxAction)
		}
		if name == "-" {
			q.Stdin = string(text)
		} else {
			q.Files[name] = string(text)
		}
	}
	return q, nil
}

// unread says of a file that is the command's argument that it cannot be read, as the
// command does.
func unread(cmd *cobra.Command, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) && cmd.Flags().Lookup("filename") == nil {
		return fmt.Errorf("%s %s: %w", cmd.Name(), path.Path, path.Err)
	}
	return err
}

func valueOf(f *pflag.Flag) any {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return list.GetSlice()
	}
	return f.Value.String()
}

// remoteView reads the objects of kinds from an API.
func remoteView(ctx context.Context, c *api.Client, kinds []datastore.Kind) (*datastore.View, error) {
	view := datastore.NewView()
	for _, k := range kinds {
		objects, _, err := c.List(ctx, k, nil)
		if err != nil {
			return nil, err
		}
		for _, o := range objects {
			key, err := datastore.KeyOf(o)
			if err != nil {
				return nil, err
			}
			value, err := datastore.Encode(o)
			if err != nil {
				return nil, err
			}
			if _, err := view.Apply(datastore.Entry{Key: key, Value: value, Revision: max(o.Meta().Revision, 1)}); err != nil {
				return nil, err
			}
		}
	}
	return view, nil
}

// writeEdited writes an object that was edited here.
func (a *app) writeEdited(ctx context.Context, c *api.Client, o datastore.Object, revision int64) error {
	o.Meta().Revision = revision
	mode := api.Replace
	if revision == 0 {
		mode = api.Create
	}
	w, err := c.Write(ctx, o, mode)
	if err != nil {
		return err
	}
	for _, text := range w.Warnings {
		a.warn("%s", text)
	}
	return a.print(fmt.Sprintf("%s %s\n", label(o), w.Verb))
}

// remoteBackup has an API read everything.
func (a *app) remoteBackup(ctx context.Context, c *api.Client) ([]byte, error) {
	defer a.waiting("the API")()
	answer, err := a.do(ctx, c, "backup", api.Request{Args: []string{"-"}})
	if err == nil {
		err = failureIn(answer)
	}
	return []byte(answer.Output), err
}
