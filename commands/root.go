package commands

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"netctl/commands/api"
	"netctl/datastore"
	"netctl/datastore/etcd"
)

// app is one run of the command line: its streams, and the configuration once
// something asked for it.
type app struct {
	in       io.Reader
	out, err io.Writer
	// cmd is the command that runs; started tells that its flags and arguments
	// were right.
	cmd     *cobra.Command
	args    []string
	started bool
	loaded  *settings
	opened  clusterStore
	// confirming is set while what is changed is to be confirmed.
	confirming *confirming
	// server is the API that does what is asked, once something asked for it.
	server *api.Client
	// caller is set where this is an API's, and somebody else asks.
	caller *caller
}

// clusterStore is the datastore, and how it is; *etcd.Store is one.
type clusterStore interface {
	datastore.Store
	Health(ctx context.Context) []etcd.EndpointHealth
	Members(ctx context.Context) ([]etcd.Member, error)
	RemoveMember(ctx context.Context, m etcd.Member) error
	users
}

// users are the nodes that an external etcd knows.
type users interface {
	CreateUser(ctx context.Context, node, password string, extras []string) error
	RemoveUser(ctx context.Context, node string) error
	Users(ctx context.Context) ([]string, error)
	Protected(ctx context.Context) (bool, error)
}

func (a *app) run(ctx context.Context, args []string) error {
	a.args = args
	root := newRootCommand(a)
	root.SetArgs(args)
	bindName(root, args)
	if err := helpFor(root, args); err != nil {
		return err
	}
	defer func() {
		if a.opened != nil {
			_ = a.opened.Close()
		}
		if a.server != nil {
			a.server.Close()
		}
	}()
	cmd, err := root.ExecuteContextC(ctx)
	return requiredError(cmd, err)
}

// newRootCommand is the whole command tree.
func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "netctl",
		Short: "Routed container networking in one file",
		Long: "netctl gives every container a routed address, announces it over BGP and filters it per endpoint.\n" +
			"This file is the CNI plugin, the node's agent, the BGP speaker, the embedded datastore and this command line.\n\n" +
			"Exit codes: 0 done, 1 failed or could not tell, 2 usage, 3 the answer is no.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			a.cmd = cmd
		},
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.PersistentFlags().String("config", "", "configuration `file` (default "+defaultConfigFile+" if it exists)")
	addSettingFlags(root.PersistentFlags(), "")
	root.AddCommand(
		newAgentCommand(a),
		newBenchCommand(a),
		newAPICommand(a),
		newCleanupCommand(a),
		newDockerCommand(a),
		newCompletionCommand(a),
		newConfigCommand(a),
		newDatastoreCommand(a),
		newHookCommand(a),
		newInstallCommand(a),
		newLabCommand(a),
		newNodeCommand(a),
		newSpeakerCommand(a),
		newReflectorCommand(a),
		newUICommand(a),
		newUninstallCommand(a),
		newUpgradeCommand(a),
		newVersionCommand(a),
	)
	root.AddCommand(nouns(a)...)
	root.SetFlagErrorFunc(flagError)
	root.InitDefaultHelpCmd()
	finish(a, root)
	return root
}

// isTerminal reports whether f is a character device other than the null device.
func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(st, null)
}

// roleCommand makes the command that starts a role. A typed noun never starts a
// daemon by itself: it wants --config, NETCTL_CONFIG or a flag of the role.
func roleCommand(a *app, name, short, example string, sections []string, run func(context.Context, *settings) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:     name,
		Short:   short,
		Example: example,
		Args:    cobra.NoArgs,
	}
	for _, s := range sections {
		addSettingFlags(cmd.Flags(), s)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		named := os.Getenv("NETCTL_CONFIG") != "" || cmd.Flags().Changed("config")
		for _, st := range settingTable() {
			named = named || st.section() != "" && cmd.Flags().Changed(st.flag)
		}
		if !named {
			return cmd.Help()
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return fmt.Errorf("%s: must run as root", name)
		}
		switch enough, err := allowFiles(); {
		case !enough:
			return fmt.Errorf("%s: %w", name, err)
		case err != nil:
			a.warn("%s: %v", name, err)
		}
		return run(cmd.Context(), s)
	}
	return cmd
}

// How many files a role may have open: one for each caller and peer, and more while
// it works. Go takes what the hard limit allows; root may raise that. With fewer than
// startFiles no role comes so far as to say what it lacks.
const (
	openFiles  = 65536
	leastFiles = 1024
	startFiles = 64
)

// allowFiles raises the limit where that can be done, and says where it has to be; not
// enough: a role cannot start.
func allowFiles() (enough bool, err error) {
	var have syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &have); err != nil || have.Max >= openFiles {
		return true, err
	}
	err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: openFiles, Max: openFiles})
	if err == nil || have.Max >= leastFiles {
		return true, nil
	}
	return have.Max >= startFiles, fmt.Errorf("only %d files may be open, which is too few: raise the limit (ulimit -n, LimitNOFILE=) to %d: %w", have.Max, openFiles, err)
}
