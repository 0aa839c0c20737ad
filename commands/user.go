package commands

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"netctl/commands/api"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/identity"
)

func newUserCommand(a *app) *cobra.Command {
	return group("user", "Make and remove the users of nodes in an external etcd",
		"  netctl datastore user create n1\n  netctl datastore user list", newUserCreateCommand(a), newUserListCommand(a), newUserRemoveCommand(a))
}

func newUserCreateCommand(a *app) *cobra.Command {
	var file string
	var certificate bool
	var extras []string
	cmd := &cobra.Command{
		Use:   "create NODE",
		Short: "Make a node's user in an external etcd, with the rights of that node",
		Long: "Make a user of that node's name in an external etcd, with a password that is written to a file, and roles by which it writes its own\n" +
			"node, endpoints and reports, and blocks. It is run with the rights of etcd's root (datastore.user and datastore.passwordFile, or a\n" +
			"certificate of that name). --may adds what etcd cannot limit to what a node needs: every network, profile, or record of the history.",
		Example:           "  netctl datastore user create n1\n  netctl datastore user create n1 --certificate\n  netctl datastore user create n1 --may networks,profiles",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&file, "password", "", "the `file` to write the password to (default NODE.password)")
	cmd.Flags().BoolVar(&certificate, "certificate", false, "no password: etcd knows the node by its certificate's common name")
	cmd.Flags().StringSliceVar(&extras, "may", nil, "also write every one of: networks, profiles, history")
	cmd.MarkFlagsMutuallyExclusive("password", "certificate")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		name := args[0]
		if err := datastore.CheckName(name); err != nil {
			return usage("node %w", err)
		}
		for _, extra := range extras {
			if !slices.Contains(etcd.UserExtras(), extra) {
				return usage("--may %q: want some of %s", extra, strings.Join(etcd.UserExtras(), ", "))
			}
		}
		if a.caller != nil && file != "" {
			return usage("flag password: is a file of who asks, who is told the password: leave it out")
		}
		if file == "" && !certificate {
			file = name + ".password"
		}
		if err := a.createUser(cmd.Context(), name, file, extras); err != nil {
			return fmt.Errorf("datastore user create: %w", err)
		}
		return nil
	}
	return cmd
}

// createUser makes a node's user; an empty file is of one without a password. Who asks by
// the API is told the password.
func (a *app) createUser(ctx context.Context, name, file string, extras []string) error {
	password := ""
	if file != "" {
		password = rand.Text()
	}
	if a.caller != nil {
		if err := a.makeUser(ctx, name, password, extras); err != nil || password == "" {
			return err
		}
		return a.print(password + "\n")
	}
	if file != "" {
		var err error
		if file, err = filepath.Abs(file); err != nil {
			return err
		}
		if err := datastore.WriteFile(file, []byte(password+"\n"), datastore.FileOptions{New: true}); err != nil {
			return err
		}
	}
	if err := a.askForUser(ctx, name, password, file, extras); err != nil {
		if file != "" {
			err = errors.Join(err, os.Remove(file))
		}
		return err
	}
	if file == "" {
		return a.print(fmt.Sprintf("User %s is known by a certificate of that common name.\n", name))
	}
	return a.print(fmt.Sprintf("User %s has the password in %s: give that file to the node, root's alone, as datastore.passwordFile, with datastore.user: %s.\n", name, file, name))
}

// askForUser makes a node's user, here or by the API. That makes a password of its own,
// which replaces the one in the file.
func (a *app) askForUser(ctx context.Context, name, password, file string, extras []string) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	if c == nil {
		return a.makeUser(ctx, name, password, extras)
	}
	q := api.Request{Args: []string{name}, Flags: map[string]any{"certificate": file == ""}}
	if len(extras) > 0 {
		q.Flags["may"] = extras
	}
	defer a.waiting("the API")()
	answer, err := a.do(ctx, c, "datastore/user/create", q)
	if err == nil {
		err = failureIn(answer)
	}
	if err != nil || file == "" {
		return err
	}
	if err := datastore.WriteFile(file, []byte(answer.Output), datastore.FileOptions{}); err != nil {
		_, failed := a.do(ctx, c, "datastore/user/remove", api.Request{Args: []string{name}})
		return errors.Join(err, failed)
	}
	return nil
}

// makeUser makes a node's user in the datastore.
func (a *app) makeUser(ctx context.Context, name, password string, extras []string) error {
	s, err := a.externalStore(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	// Nodes may not make it.
	if _, _, _, err := identity.Create(ctx, s); err != nil {
		return err
	}
	if err := s.CreateUser(ctx, name, password, extras); errors.Is(err, datastore.ErrExists) {
		return fmt.Errorf("%w: `netctl datastore user remove %s` first", err, name)
	} else if err != nil {
		return err
	}
	if on, err := s.Protected(ctx); err != nil {
		return err
	} else if !on {
		a.warn("etcd's authentication is off, and everybody may do everything: make a user root with the role root there, then `etcdctl auth enable`")
	}
	return nil
}

// externalStore opens the datastore, if it is not netctl's own, which knows no users.
func (a *app) externalStore(ctx context.Context) (clusterStore, error) {
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	var members datastore.Members
	if _, err := datastore.Record(ctx, s, datastore.MembersKey, &members); err != nil {
		return nil, err
	}
	if members.JoinPort != 0 {
		return nil, fmt.Errorf("this datastore is netctl's own, which knows nodes by their certificates: `netctl token create` lets one in: %w", datastore.ErrInvalid)
	}
	return s, nil
}

func newUserListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "Show the nodes that have a user in an external etcd",
		Example: "  netctl datastore user list\n  netctl datastore user list -o json",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.externalStore(cmd.Context())
		if err != nil {
			return fmt.Errorf("datastore user list: %w", err)
		}
		defer a.waiting("the datastore")()
		list, err := s.Users(cmd.Context())
		if err != nil {
			return fmt.Errorf("datastore user list: %w", err)
		}
		if f.manifests() {
			return a.showPlain(*f, append([]string{}, list...))
		}
		if len(list) == 0 {
			return a.print("No users of nodes.\n")
		}
		return a.print(strings.Join(list, "\n") + "\n")
	}
	return cmd
}

func newUserRemoveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "remove NODE",
		Short:             "Remove a node's user from an external etcd: its rights end at once",
		Long:              "Remove a node's user and role from an external etcd: its rights end with the next call. What it wrote stays until `netctl node remove`.",
		Example:           "  netctl datastore user remove n1\n  netctl datastore user remove n2",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := datastore.CheckName(args[0]); err != nil {
				return usage("node %w", err)
			}
			s, err := a.externalStore(cmd.Context())
			if err == nil {
				defer a.waiting("the datastore")()
				err = s.RemoveUser(cmd.Context(), args[0])
			}
			if err != nil {
				return fmt.Errorf("datastore user remove: %w", err)
			}
			return nil
		},
	}
}
