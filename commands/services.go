package commands

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"netctl/commands/install"
)

// services are netctl's units under the systemd of this machine.
type services struct{}

// servicesHere is nil where systemd does not run (sd_booted(3)).
func servicesHere() *services {
	if st, err := os.Lstat("/run/systemd/system"); err != nil || !st.IsDir() {
		return nil
	}
	return &services{}
}

func (m *services) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, said)
	}
	return string(out), nil
}

func (m *services) reload(ctx context.Context) error {
	_, err := m.run(ctx, "daemon-reload")
	return err
}

// service is how a unit is.
type service struct {
	active bool
	began  time.Time // of its process; zero: none
	status string
}

func (m *services) service(ctx context.Context, unit string) (s service, err error) {
	out, err := m.run(ctx, "show", "--timestamp=us+utc", "-p", "ActiveState,ExecMainStartTimestamp,StatusText", unit)
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ActiveState":
			s.active = value == "active" || value == "activating" || value == "reloading"
		case "StatusText":
			s.status = value
		case "ExecMainStartTimestamp":
			if value == "" || value == "n/a" {
				continue
			}
			if s.began, err = time.Parse("Mon 2006-01-02 15:04:05.999999 MST", value); err != nil {
				return s, fmt.Errorf("systemctl show %s: %w", unit, err)
			}
		}
	}
	return s, nil
}

// activeRoles are the roles, or "node", whose units run.
func (m *services) activeRoles(ctx context.Context) (roles []string, err error) {
	for _, role := range append([]string{"node"}, install.Roles()...) {
		s, err := m.service(ctx, install.UnitName(role))
		if err != nil {
			return nil, err
		}
		if s.active {
			roles = append(roles, role)
		}
	}
	return roles, nil
}

// active are the units that run.
func (m *services) active(ctx context.Context) (units []string, err error) {
	roles, err := m.activeRoles(ctx)
	for _, role := range roles {
		units = append(units, install.UnitName(role))
	}
	return units, err
}

// alone refuses to start units beside roles that somebody else started.
func (m *services) alone(ctx context.Context, h install.Host) error {
	running := h.Roles()
	if len(running) == 0 {
		return nil
	}
	units, err := m.active(ctx)
	if err == nil && len(units) == 0 {
		err = fmt.Errorf("%s runs, and no unit of netctl's does that: end it first, the kernel forwards on meanwhile", running[0])
	}
	return err
}

// outdated are the units that run and began before their file, or the program, was laid
// down as it is now.
func (m *services) outdated(ctx context.Context, o installOptions) (units []string, err error) {
	for _, role := range append([]string{"node"}, install.Roles()...) {
		unit := install.UnitName(role)
		s, err := m.service(ctx, unit)
		if err != nil {
			return nil, err
		}
		if s.active && !s.began.IsZero() && s.began.Before(changedLast(o.Binary(), o.UnitFolder()+"/"+unit)) {
			units = append(units, unit)
		}
	}
	return units, nil
}

// changedLast is when the latest of the files was put there.
func changedLast(files ...string) (last time.Time) {
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			if sys, ok := st.Sys().(*syscall.Stat_t); ok {
				if t := time.Unix(sys.Ctim.Unix()); t.After(last) {
					last = t
				}
			}
		}
	}
	return last
}

// startUnits starts the units of roles, and restarts those that run something older, one
// after the other: each is in sync before the next.
func (a *app) startUnits(ctx context.Context, m *services, o installOptions, roles []string) error {
	old, err := m.outdated(ctx, o)
	if err != nil {
		return err
	}
	restart := map[string]bool{}
	for _, unit := range old {
		restart[unit] = true
	}
	for _, role := range roles {
		unit := install.UnitName(role)
		s, err := m.service(ctx, unit)
		if err != nil {
			return err
		}
		if s.active && !restart[unit] {
			continue
		}
		verb, did := "start", "started"
		if s.active {
			verb, did = "restart", "restarted"
		}
		began := time.Now()
		done := a.waiting(unit)
		_, err = m.run(ctx, verb, unit)
		done()
		if err != nil {
			return fmt.Errorf("%w; journalctl -u %s says why", err, unit)
		}
		if s, err = m.service(ctx, unit); err != nil {
			return err
		}
		if err := a.print(fmt.Sprintf("%s %s: %s after %.1f s\n", did, unit, s.status, time.Since(began).Seconds())); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the units that run.
func (m *services) stop(ctx context.Context) (units []string, err error) {
	return m.stopRoles(ctx, append(install.Roles(), "node")...)
}

// stopRoles ends those units of roles that run.
func (m *services) stopRoles(ctx context.Context, roles ...string) (units []string, err error) {
	running, err := m.activeRoles(ctx)
	if err != nil {
		return nil, err
	}
	for _, role := range running {
		if slices.Contains(roles, role) {
			units = append(units, install.UnitName(role))
		}
	}
	if len(units) == 0 {
		return nil, nil
	}
	if _, err = m.run(ctx, append([]string{"stop"}, units...)...); err != nil {
		return nil, err
	}
	return units, nil
}
