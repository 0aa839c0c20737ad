package commands

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"netctl/commands/install"
	"netctl/commands/runtimes"
	"netctl/commands/workload"
)

// madeNetworks are the networks that netctl made in runtimes of this host, and what keeps
// some of them from being removed.
type madeNetworks struct {
	list []runtimes.Made
	used map[[2]string][]string // endpoints by orchestrator and network
}

// madeNetworks looks for them. Beside an error are those of the runtimes that could be
// looked at.
func (s *settings) madeNetworks(ctx context.Context) (m madeNetworks, err error) {
	records, err := workload.NewRecords(filepath.Join(s.RunDir, "endpoints")).All()
	if err != nil {
		return m, err // any of them may be in use
	}
	if m.list, err = runtimes.All(ctx, runtimes.Config{DockerAPI: s.Docker.API, DockerDriver: s.Docker.Socket}); err != nil {
		err = fmt.Errorf("networks in runtimes: %w", err)
	}
	m.used = map[[2]string][]string{}
	for _, r := range records {
		at := [2]string{r.Endpoint.Spec.Orchestrator, r.Endpoint.Spec.Network}
		m.used[at] = append(m.used[at], r.Endpoint.Metadata.Name)
	}
	return m, err
}

// kept says why a network is not removed; "": it is.
func (m madeNetworks) kept(n runtimes.Made) string {
	if n.Changed {
		return "was changed by hand"
	}
	var by []string
	for _, o := range n.Orchestrators {
		by = append(by, m.used[[2]string{o, n.Network}]...)
	}
	if len(by) > 0 {
		slices.Sort(by)
		return "in use by " + strings.Join(by[:min(len(by), mostNamed)], ", ")
	}
	return ""
}

// lines say what goes and what stays, one a line.
func (m madeNetworks) lines() (gone, stays []string) {
	for _, n := range m.list {
		if why := m.kept(n); why != "" {
			stays = append(stays, fmt.Sprintf("stays: network %s: %s (%s)", n.Network, n.At, why))
		} else {
			gone = append(gone, fmt.Sprintf("network %s: %s", n.Network, n.At))
		}
	}
	return gone, stays
}

// steps are lines as uninstall prints them.
func (m madeNetworks) steps() []string {
	gone, stays := m.lines()
	for i, line := range gone {
		gone[i] = fmt.Sprintf("%-8s%s", install.Remove, line)
	}
	return append(gone, stays...)
}

// remove removes those that nothing keeps; what could not be is in the error.
func (m madeNetworks) remove(ctx context.Context) error {
	var errs []error
	for _, n := range m.list {
		if m.kept(n) == "" {
			errs = append(errs, n.Remove(ctx))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("left over: %w", err)
	}
	return nil
}
