package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"netctl/commands/install"
	"netctl/datastore"
)

func newUninstallCommand(a *app) *cobra.Command {
	var root string
	var dryRun, force bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take away what netctl install laid down, and nothing else",
		Long: "End the roles and take away what `netctl install` laid down, and the networks that netctl made in Docker, Podman and for CNI, unless endpoints\n" +
			"use them. Files and networks that were changed since are kept, and said, and so is the node's state in /var/lib/netctl-node. It refuses while endpoints live: their links, routes and rules stay in the kernel, and nobody looks after them any more.\n" +
			"`netctl cleanup` takes those off the host.",
		Example: "  netctl uninstall\n  netctl uninstall --dry-run",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&root, "root", "", "take it out of the `folder` of an image")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen")
	cmd.Flags().BoolVar(&force, "force", false, "although endpoints live")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := namesRoot(cmd); err != nil {
			return err
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		return a.uninstall(cmd.Context(), s, root, dryRun, force)
	}
	return cmd
}

func (a *app) uninstall(ctx context.Context, s *settings, root string, dryRun, force bool) error {
	if root == "" && os.Geteuid() != 0 {
		return errors.New("uninstall: must run as root")
	}
	p, err := install.NewUninstall(root)
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	if p == nil {
		return a.print("Nothing to take away: netctl install did not install here.\n")
	}
	if dryRun {
		return a.print(installed(p, true, wouldRemove(ctx, s, root)...))
	}
	var m *services
	if root == "" {
		survey, err := s.host().LookAt(ctx)
		if err != nil && !force {
			return fmt.Errorf("uninstall: %w", err)
		}
		if len(survey.Endpoints) > 0 && !force {
			return fmt.Errorf("uninstall: %s: remove them first (netctl cleanup --force does), or say --force and they stay as they are", living(survey.Endpoints))
		}
		if m = servicesHere(); m != nil {
			units, err := m.stop(ctx)
			if err != nil {
				return fmt.Errorf("uninstall: nothing was changed: %w", err)
			}
			for _, u := range units {
				if err := a.print("stopped " + u + "\n"); err != nil {
					return err
				}
			}
		}
		if running := s.host().Roles(); len(running) > 0 && !force {
			return fmt.Errorf("uninstall: %s runs, and no unit of netctl's does that: end it first, or say --force and it runs on", running[0])
		}
	}
	var networks []string
	if root == "" {
		if networks, err = a.removeMade(ctx, s, force); err != nil {
			return err
		}
	}
	if err := install.Disable(root); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	if err := p.Apply(); err != nil {
		return fmt.Errorf("uninstall: not all is taken away, say it again: %w", err)
	}
	if m != nil {
		if err := m.reload(ctx); err != nil {
			return err
		}
	}
	if err := a.print(installed(p, false, networks...)); err != nil || root != "" {
		return err
	}
	if left, err := s.host().LookAt(ctx); err == nil && len(left.Lines()) > 0 {
		a.warn("what runs on this host keeps %s: `cleanup` of any copy of netctl's file takes that off", strings.Join(left.Lines(), ", "))
	}
	return nil
}

// wouldRemove says which networks in runtimes would go, or why they would not.
func wouldRemove(ctx context.Context, s *settings, root string) []string {
	if root != "" {
		return nil
	}
	made, err := s.madeNetworks(ctx)
	steps := made.steps()
	if err != nil {
		steps = append(steps, datastore.Line(err.Error()))
	}
	return steps
}

// removeMade removes the networks in runtimes, and says which; forced: what cannot be is
// said and no more.
func (a *app) removeMade(ctx context.Context, s *settings, force bool) ([]string, error) {
	made, err := s.madeNetworks(ctx)
	if err == nil || force {
		err = errors.Join(err, made.remove(ctx))
	}
	if err != nil && !force {
		return nil, fmt.Errorf("uninstall: %w", err)
	}
	if err != nil {
		a.warn("%v", err)
		return nil, nil
	}
	return made.steps(), nil
}

// linesOf is text of lines.
func linesOf(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// host is where the roles of this machine keep what they have.
func (s *settings) host() install.Host {
	return install.Host{StateDir: s.StateDir, RunDir: s.RunDir, Protocols: []int{s.Routes.AgentProtocol, s.Routes.SpeakerProtocol}}
}

// mostNamed is how many endpoints a refusal names.
const mostNamed = 5

// living names endpoints that live.
func living(names []string) string {
	text := count(len(names), "endpoint")
	if len(names) == 1 {
		text += " lives: "
	} else {
		text += " live: "
	}
	if more := len(names) - mostNamed; more > 0 {
		return text + strings.Join(names[:mostNamed], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return text + strings.Join(names, ", ")
}
