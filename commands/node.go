package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"netctl/datastore"

	"netctl/commands/control"
	"netctl/commands/node"
	"netctl/commands/telemetry"
)

// supervisedRoles are the roles that netctl node can run, in the order in which
// they start.
func supervisedRoles() []string {
	return []string{"datastore", "agent", "speaker", "reflector", "docker", "api"}
}

func newNodeCommand(a *app) *cobra.Command {
	cmd := roleCommand(a, "node", "Run every role of this node, or show and change nodes",
		"  netctl node --config /etc/netctl.yaml\n  netctl node show",
		[]string{"metrics", "etcd", "agent", "speaker", "docker", "api", "routes", "tunnels"},
		func(ctx context.Context, s *settings) error { return runNode(ctx, a, s) })
	for _, st := range settingTable() {
		if st.key == "roles" {
			st.addTo(cmd.Flags())
		}
	}
	cmd.AddCommand(nodeNouns(a)...)
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindNode, nodeNames)
	return cmd
}

func runNode(ctx context.Context, a *app, s *settings) error {
	lock, err := control.Lock(s.StateDir, "node")
	if err != nil {
		return err
	}
	defer lock.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	cfg := node.Config{Executable: self, Env: childEnv(a), Output: os.Stderr}
	for _, r := range supervisedRoles() {
		if slices.Contains(s.Roles, r) {
			cfg.Roles = append(cfg.Roles, r)
		}
	}
	if s.File != "" {
		cfg.Args = []string{"--config", s.File}
	}
	shown := telemetry.New(s.telemetry("node"), newLogger(a.err, "node", s))
	defer shown.Close()
	log := shown.Logger()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	manager, told := control.NewService(log), make(chan error, 1)
	cfg.Ready = manager.Synced
	go func() { told <- manager.Run(ctx, nil) }()
	watched := make(chan error, 1)
	go func() {
		defer stop()
		watched <- control.WatchFolders(ctx, log, append(shown.Folders(), lock.Folder())...)
	}()
	var beside sync.WaitGroup
	for _, t := range shown.Tasks() {
		beside.Go(func() { _ = t.Run(ctx) })
	}
	if slices.Contains(cfg.Roles, "agent") {
		defer s.guard(ctx, log)()
	}
	err = node.Run(ctx, cfg, log)
	stop()
	beside.Wait()
	return errors.Join(err, <-watched, <-told)
}

// childEnv is the environment with the flags of this command line in it, so that
// the roles see the same settings.
func childEnv(a *app) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		// systemd hears the supervisor, which hears the roles.
		return strings.HasPrefix(kv, "CNI_") || strings.HasPrefix(kv, "NOTIFY_SOCKET=") || strings.HasPrefix(kv, "WATCHDOG_")
	})
	for _, st := range settingTable() {
		f := a.cmd.Flags().Lookup(st.flag)
		if f == nil || !f.Changed {
			continue
		}
		text := f.Value.String()
		if _, list := st.def.([]string); list {
			text = strings.Trim(text, "[]")
		}
		env = append(env, st.env+"="+text)
	}
	return append(env, fmt.Sprintf("%s=%d", control.SupervisorVariable, os.Getpid()))
}
