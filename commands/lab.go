package commands

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

func newLabCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Run a cluster of network namespaces on this machine",
		Long: "Run a cluster on this machine: network, mount and UTS namespaces as hosts, a fabric between them, and `netctl node`\n" +
			"in each, with an embedded datastore behind TLS on the first. Everything of a lab lies in one folder.",
		Example: "  netctl lab up --nodes 2\n  netctl lab exec node1 -- netctl status",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	dir := cmd.PersistentFlags().String("dir", lab.DefaultDir, "`folder` of the lab")
	cmd.AddCommand(newLabUpCommand(a, dir), newLabStatusCommand(a, dir), newLabExecCommand(dir), newLabDownCommand(a, dir))
	return cmd
}

// labFile is what --file holds.
type labFile struct {
	Nodes    int            `yaml:"nodes"`
	Subnets  int            `yaml:"subnets"`
	IPv6     bool           `yaml:"ipv6"`
	IPv6Only bool           `yaml:"ipv6Only"`
	Settings map[string]any `yaml:"settings"`
}

func newLabUpCommand(a *app, dir *string) *cobra.Command {
	var file string
	cfg := lab.Config{Nodes: 2, Subnets: 1}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Make the hosts, start the roles and wait until they are healthy",
		Long: "Make the hosts, start the roles and wait until every node is healthy.\n\n" +
			"The file may hold `nodes`, `subnets`, `ipv6`, `ipv6Only` and `settings`, which are added to every node's configuration.",
		Example: "  netctl lab up --nodes 2\n  netctl lab up --nodes 6 --subnets 2 --ipv6 --dir /tmp/lab",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().IntVar(&cfg.Nodes, "nodes", cfg.Nodes, "`number` of hosts")
	cmd.Flags().IntVar(&cfg.Subnets, "subnets", cfg.Subnets, "`number` of subnets that the hosts are spread over")
	cmd.Flags().BoolVar(&cfg.IPv6, "ipv6", false, "give the hosts IPv6 addresses too")
	cmd.Flags().BoolVar(&cfg.IPv6Only, "ipv6-only", false, "give the hosts IPv6 addresses alone")
	cmd.MarkFlagsMutuallyExclusive("ipv6", "ipv6-only")
	cmd.Flags().StringVar(&file, "file", "", "YAML `file` that describes the lab; flags win")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if file != "" {
			if err := readLabFile(file, cmd, &cfg); err != nil {
				return usageError{err}
			}
		}
		if err := netlab.CheckSize(cfg.Nodes, cmp.Or(cfg.Subnets, 1)); err != nil {
			return usageError{err}
		}
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		cfg.Dir, cfg.Binary = *dir, self
		l, err := lab.Up(cmd.Context(), cfg, a.out)
		if err != nil {
			return err
		}
		at := ""
		if *dir != lab.DefaultDir {
			at = " --dir " + *dir
		}
		_, err = fmt.Fprintf(a.out, "enter a host with `netctl lab%s exec %s -- bash`, remove all with `netctl lab%s down`\n", at, l.Hosts[0].Name, at)
		return errors.Join(err, l.Close())
	}
	return cmd
}

// readLabFile fills cfg from a file, but for what a flag says.
func readLabFile(name string, cmd *cobra.Command, cfg *lab.Config) error {
	text, err := readInput(cmd.Context(), nil, name, maxConfigFile)
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	in := labFile{Nodes: cfg.Nodes, Subnets: cfg.Subnets, IPv6: cfg.IPv6, IPv6Only: cfg.IPv6Only}
	if cfg.Settings, err = in.parse(text); err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	if !cmd.Flags().Changed("nodes") {
		cfg.Nodes = in.Nodes
	}
	if !cmd.Flags().Changed("subnets") {
		cfg.Subnets = in.Subnets
	}
	if !cmd.Flags().Changed("ipv6") && !cmd.Flags().Changed("ipv6-only") {
		cfg.IPv6, cfg.IPv6Only = in.IPv6, in.IPv6Only
	}
	return nil
}

// parse fills what the text says and returns the settings alone.
func (l *labFile) parse(text []byte) (settings string, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(l); err != nil && !errors.Is(err, io.EOF) {
		return "", errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if dec.Decode(new(yaml.Node)) == nil {
		return "", errors.New("one document only")
	}
	for _, key := range lab.Reserved() {
		if _, ok := l.Settings[key]; ok {
			return "", fmt.Errorf("settings: %s is set by the lab itself", key)
		}
	}
	if agent, ok := l.Settings["agent"].(map[string]any); ok && len(agent) == 0 {
		delete(l.Settings, "agent") // the lab writes that section
	}
	if len(l.Settings) == 0 {
		return "", nil
	}
	out, err := yaml.Marshal(l.Settings)
	if err != nil {
		return "", fmt.Errorf("settings: %w", err)
	}
	return string(out), nil
}

func newLabStatusCommand(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Say how every host is",
		Example: "  netctl lab status\n  netctl lab status --dir /tmp/lab",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := lab.Status(cmd.Context(), *dir)
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "HOST\tADDRESSES\tANCHOR\tSTATE")
			var sick error
			for _, n := range list {
				state := "healthy"
				if n.Problem != "" {
					state, sick = n.Problem, errNo
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", n.Name, strings.Trim(fmt.Sprint(n.Addresses), "[]"), n.PID, state)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			return sick
		},
	}
}

func newLabExecCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "exec HOST -- COMMAND [ARG]…",
		Short: "Run a command in a host",
		Long: "Run a command in the namespaces of a host, with this terminal and environment; its exit code is this one's.\n" +
			"The host `fabric` is the router between the others.",
		Example: "  netctl lab exec node1 -- netctl status\n  netctl lab exec node2 -- ip route",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return lab.Exec(*dir, args[0], args[1:])
		},
	}
}

func newLabDownCommand(a *app, dir *string) *cobra.Command {
	return &cobra.Command{
		Use:     "down",
		Short:   "End everything in the lab and remove it",
		Example: "  netctl lab down\n  netctl lab down --dir /tmp/lab",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := lab.Down(*dir); err != nil {
				return err
			}
			_, err := fmt.Fprintf(a.out, "the lab in %s is gone\n", *dir)
			return err
		},
	}
}
