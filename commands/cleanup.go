package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

func newCleanupCommand(a *app) *cobra.Command {
	var dryRun, force bool
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Take every link, route, rule and table of netctl's off this host",
		Long: "Take everything of netctl's out of this host's kernel: links of endpoints, tunnels, routes of its two protocols in every table, the rules\n" +
			"and next-hop objects of those, its nftables tables, its rules in the host's iptables, what lies below /run, and the networks that it made in\n" +
			"Docker, Podman and for CNI. Everything else stays: networks that people made or changed, the datastore's and the files of `netctl install`. It refuses while roles run, which would put it back, or endpoints live, and names them; with --force\n" +
			"the roles are ended first, and endpoints lose their network.",
		Example: "  netctl cleanup --dry-run\n  netctl cleanup --force",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what there is")
	cmd.Flags().BoolVar(&force, "force", false, "end the roles that run, and cut endpoints that live off")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("cleanup: must run as root")
		}
		return a.cleanup(cmd.Context(), s, dryRun, force)
	}
	return cmd
}

func (a *app) cleanup(ctx context.Context, s *settings, dryRun, force bool) error {
	h := s.host()
	survey, err := h.LookAt(ctx)
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	made, err := s.madeNetworks(ctx)
	if err != nil {
		a.warn("%v", err)
	}
	gone, stays := made.lines()
	found := append(survey.Lines(), gone...)
	lines := linesOf(found)
	if len(found) == 0 {
		lines = "Nothing of netctl's is on this host.\n"
	}
	if dryRun {
		return a.print(lines + linesOf(stays))
	}
	if !force {
		var why []string
		for _, r := range survey.Running {
			why = append(why, r.String()+" runs")
		}
		if len(survey.Endpoints) > 0 {
			why = append(why, living(survey.Endpoints))
		}
		if len(why) > 0 {
			return fmt.Errorf("cleanup: %s: end them first, or say --force", strings.Join(why, "; "))
		}
	}
	if m := servicesHere(); m != nil && len(survey.Running) > 0 {
		if _, err := m.stop(ctx); err != nil { // else it would start them again
			return fmt.Errorf("cleanup: nothing was changed: %w", err)
		}
	}
	if err := h.End(ctx); err != nil {
		return fmt.Errorf("cleanup: nothing was changed: %w", err)
	}
	if err := errors.Join(h.Clean(ctx), made.remove(ctx)); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	left, err := h.LookAt(ctx)
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	if rest := left.Lines(); len(rest) > 0 {
		return fmt.Errorf("cleanup: left over: %s", strings.Join(rest, "; "))
	}
	if len(found) > 0 {
		lines = "taken off this host:\n" + lines
	}
	return a.print(lines + linesOf(stays))
}
