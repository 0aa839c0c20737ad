package commands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"netctl/commands/install"
)

// installOptions are what the command line says of an install.
type installOptions struct {
	install.Options
	dryRun, enable, now, ignoreChecks bool
	brief                             bool // say in one line what was done: it is a part of something else
}

func newInstallCommand(a *app) *cobra.Command {
	o := installOptions{}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Install this file, its units, CNI plugin, completions and man pages on this machine",
		Long: "Install this very file as PREFIX/bin/netctl, the plugin of container runtimes, a network configuration and /etc/netctl.yaml if there are none, systemd\n" +
			"units, the names of the route protocols, completions and man pages. What a person wrote is kept, and said. All of it happens or nothing,\n" +
			"and doing it again changes nothing; `netctl uninstall` takes away what was laid down and nothing else.\n\n" +
			"--now has the roles run now and at each boot: netctl-node.service for all of /etc/netctl.yaml, or with --roles a unit for each of those. After\n" +
			"an upgrade it restarts the units that run an older file, one after the other; workloads notice nothing. --enable is for the next boot, and images.\n" +
			"Units of roles that --roles leaves out are stopped, and start at no boot any more; the agent's is not while endpoints live.",
		Example: "  netctl install --now\n  netctl install --roles agent,speaker --now\n  netctl install --root /mnt/image --enable",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringSliceVar(&o.Roles, "roles", nil, "`roles` of this machine, each in a unit of its own: datastore, agent, speaker, reflector")
	cmd.Flags().StringVar(&o.Root, "root", "", "install into the `folder` of an image")
	cmd.Flags().StringVar(&o.Prefix, "prefix", install.DefaultPrefix, "`folder` of bin and share")
	cmd.Flags().StringVar(&o.Conflist, "conflist", "", "`name` of the CNI network configuration (default 10-netctl.conflist, if there is no other)")
	cmd.Flags().BoolVar(&o.Replace, "replace", false, "replace files that are not netctl's, keeping them as NAME.orig")
	cmd.Flags().BoolVar(&o.enable, "enable", false, "have the roles start at each boot")
	cmd.Flags().BoolVar(&o.now, "now", false, "have the roles start at each boot, and now")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say what would happen")
	ignoreChecks(cmd, &o.ignoreChecks)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := namesRoot(cmd); err != nil {
			return err
		}
		return a.install(cmd.Context(), o)
	}
	return cmd
}

// namesRoot refuses a --root that names nothing, as an unset variable of a script does: that
// would be this machine.
func namesRoot(cmd *cobra.Command) error {
	if f := cmd.Flags().Lookup("root"); f.Changed && f.Value.String() == "" {
		return usage("%s: --root is empty: name the folder of the image, or leave it out for this machine", cmd.Name())
	}
	return nil
}

// ownFile is the file that runs. os.Executable hides that another one is in its place.
func ownFile() (string, error) {
	self, err := os.Readlink("/proc/self/exe")
	if strings.HasSuffix(self, " (deleted)") {
		self = "/proc/self/exe"
	}
	return self, err
}

// install installs, and starts what is to run.
func (a *app) install(ctx context.Context, o installOptions) error {
	s, err := settingsOf(ctx, o.Root)
	if err != nil {
		return err
	}
	var m *services
	switch {
	case o.now && o.Root != "":
		return usage("install: --now is for this machine, --root for an image: say --enable")
	case o.Root == "" && os.Geteuid() != 0 && !o.dryRun:
		return fmt.Errorf("install: must run as root")
	case o.Root == "":
		if m = servicesHere(); o.now && m == nil {
			return fmt.Errorf("install: --now needs systemd, and it does not run here: start netctl node --config %s by other means", install.ConfigFile)
		}
	}
	if o.Self, err = ownFile(); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	if o.now {
		if err := m.alone(ctx, s.host()); err != nil {
			return fmt.Errorf("install: %w", err)
		}
	}
	asked := o.Roles
	o.AgentProtocol, o.SpeakerProtocol, o.Writable = s.Routes.AgentProtocol, s.Routes.SpeakerProtocol, s.writable()
	switch {
	case len(asked) > 0:
	case len(s.Roles) > 0:
		o.Roles = s.Roles
	default:
		o.Roles = install.DefaultRoles()
	}
	if o.Root == "" && !o.dryRun && !o.ignoreChecks {
		checked := *s
		checked.Roles = o.Roles
		if err := a.preflight(ctx, &checked); err != nil {
			return fmt.Errorf("install: nothing was changed: %w", err)
		}
	}
	left, err := o.leftOut(ctx, s, asked, m)
	if err != nil {
		return err
	}
	if o.Share, err = shareFiles(a.cmd.Root()); err != nil {
		return err
	}
	if o.Plugin, err = install.Plugin(); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	p, err := install.New(o.Options)
	if err != nil {
		var wrong *install.OptionError
		if err = fmt.Errorf("install: %w", err); errors.As(err, &wrong) {
			err = usageError{err}
		}
		return err
	}
	if !o.dryRun {
		if err := p.Apply(); err != nil {
			return fmt.Errorf("install: nothing was changed: %w", err)
		}
	}
	roles, err := toStart(o.Root, asked)
	if err != nil {
		return err
	}
	if o.dryRun {
		return a.print(installed(p, true, append(wouldEnd(left), o.wouldStart(roles)...)...))
	}
	if err := a.print(o.did(p)); err != nil {
		return err
	}
	kept := func(s install.Step) bool { return s.Path == install.ConfigFile && s.Action == install.Kept }
	if len(asked) > 0 && !slices.Equal(asked, s.Roles) && slices.ContainsFunc(p.Changes(), kept) {
		a.warn("%s is kept: its roles are %s, and netctl node runs those", s.File, strings.Join(s.Roles, ", "))
	}
	if err := a.end(ctx, o.Root, left, m); err != nil {
		return err
	}
	return a.startInstalled(ctx, o, roles, m)
}

// did is what to say of an install that is done.
func (o *installOptions) did(p *install.Plan) string {
	if o.brief {
		return fmt.Sprintf("installed %s, its units, plugin, completions and man pages (netctl uninstall takes them away)\n", o.Binary())
	}
	return installed(p, false)
}

// toStart are the roles, or "node", whose units --enable and --now are about: those that
// --roles asks for, or are enabled.
func toStart(root string, asked []string) ([]string, error) {
	if len(asked) > 0 {
		return asked, nil
	}
	roles, err := install.Enabled(root)
	if err == nil && len(roles) == 0 {
		roles = []string{"node"}
	}
	return roles, err
}

// leftOut are the roles whose units are enabled or run although --roles does not ask for
// them. The one unit for all roles is not among them: it goes when others take its place.
// The agent is not left out while endpoints live.
func (o *installOptions) leftOut(ctx context.Context, s *settings, asked []string, m *services) (left []string, err error) {
	if len(asked) == 0 {
		return nil, nil
	}
	if left, err = install.Enabled(o.Root); err != nil {
		return nil, fmt.Errorf("install: %w", err)
	}
	if m != nil {
		running, err := m.activeRoles(ctx)
		if err != nil {
			return nil, fmt.Errorf("install: %w", err)
		}
		left = append(left, running...)
	}
	slices.Sort(left)
	left = slices.DeleteFunc(slices.Compact(left), func(role string) bool { return role == "node" || slices.Contains(asked, role) })
	// With --now the one unit for all roles ends too.
	ends := slices.Contains(left, "agent") || o.now && !slices.Contains(asked, "agent")
	if ends && o.Root == "" && !o.ignoreChecks && os.Geteuid() == 0 {
		err = s.agentNeeded(ctx)
	}
	return left, err
}

// wouldEnd says which units would be ended.
func wouldEnd(roles []string) (lines []string) {
	for _, role := range roles {
		lines = append(lines, fmt.Sprintf("%-8s%s", "end", install.UnitName(role)))
	}
	return lines
}

// end stops the units of roles and has them start at no boot; m may be nil.
func (a *app) end(ctx context.Context, root string, roles []string, m *services) error {
	did, err := install.DisableRoles(root, roles...)
	if err == nil && m != nil {
		var stopped []string
		stopped, err = m.stopRoles(ctx, roles...)
		for _, unit := range stopped {
			did = append(did, "stopped "+unit)
		}
	}
	return errors.Join(a.print(linesOf(did)), err)
}

// agentNeeded refuses to end the agent while endpoints live.
func (s *settings) agentNeeded(ctx context.Context) error {
	survey, err := s.host().LookAt(ctx)
	if err == nil && len(survey.Endpoints) > 0 {
		err = fmt.Errorf("--roles leaves the agent out, and %s: name it too, remove them first (netctl endpoint remove), or say --ignore-checks and they stay as they are", living(survey.Endpoints))
	}
	if err != nil {
		return fmt.Errorf("install: nothing was changed: %w", err)
	}
	return nil
}

// wouldStart says which units would be enabled and started.
func (o *installOptions) wouldStart(roles []string) (lines []string) {
	for _, role := range roles {
		if o.enable || o.now {
			lines = append(lines, fmt.Sprintf("%-8s%s", "enable", install.UnitName(role)))
		}
		if o.now {
			lines = append(lines, fmt.Sprintf("%-8s%s", "start", install.UnitName(role)))
		}
	}
	return lines
}

// startInstalled enables and starts units as the command line says, and tells what is
// left to do.
func (a *app) startInstalled(ctx context.Context, o installOptions, roles []string, m *services) error {
	if o.now || o.enable {
		changed, err := install.Enable(o.Root, o.UnitFolder(), roles...)
		if err != nil {
			return err
		}
		for _, line := range changed {
			if err := a.print(line + "\n"); err != nil {
				return err
			}
		}
	}
	if m == nil {
		return nil
	}
	if err := m.reload(ctx); err != nil {
		return err
	}
	if o.now {
		return a.startUnits(ctx, m, o, roles)
	}
	old, err := m.outdated(ctx, o)
	if err != nil || len(old) > 0 {
		if err == nil {
			err = a.print(fmt.Sprintf("still run what was there before: %s; netctl install --now restarts them one by one\n", strings.Join(old, " ")))
		}
		return err
	}
	if running, err := m.active(ctx); err != nil || len(running) > 0 || o.brief {
		return err
	}
	return a.print("next: netctl install --now has the roles run now and at each boot\n")
}

// settingsOf is what the units of this machine, or of an image, will run with: the
// configuration's file alone.
func settingsOf(ctx context.Context, root string) (*settings, error) {
	file := filepath.Join(root, install.ConfigFile)
	if root == "" {
		file = install.ConfigFile
	}
	if _, err := os.Stat(file); err != nil {
		file = os.DevNull
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.String("config", "", "")
	if err := flags.Set("config", file); err != nil {
		return nil, err
	}
	s, err := loadSettingsFrom(ctx, flags, false)
	if err != nil {
		return nil, usageError{err}
	}
	if s.File == os.DevNull {
		s.File = ""
	}
	return s, nil
}

// writable are the folders that the roles write and the units do not know.
func (s *settings) writable() (list []string) {
	for dir, def := range map[string]string{s.StateDir: "/var/lib/netctl-node", s.RunDir: "/run/netctl-node"} {
		if dir != def {
			list = append(list, dir)
		}
	}
	slices.Sort(list)
	return list
}

// shareFiles are what goes below PREFIX/share, made from the command tree.
func shareFiles(root *cobra.Command) (map[string][]byte, error) {
	files := map[string][]byte{}
	for name, page := range manPages(root) {
		files["man/man1/"+name] = page
	}
	for name, write := range map[string]func(*bytes.Buffer) error{
		"bash-completion/completions/netctl":    func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) },
		"zsh/site-functions/_netctl":            func(b *bytes.Buffer) error { return root.GenZshCompletion(b) },
		"fish/vendor_completions.d/netctl.fish": func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) },
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return nil, fmt.Errorf("completions: %w", err)
		}
		files[name] = b.Bytes()
	}
	return files, nil
}

// installed says what an install or uninstall did, or would do; more are lines that
// follow. Man pages are one line.
func installed(p *install.Plan, dry bool, more ...string) string {
	var b strings.Builder
	pages := map[install.Action]int{}
	changes := p.Changes()
	for _, s := range changes {
		if strings.HasSuffix(s.Path, ".1") && s.Why == "" {
			pages[s.Action]++
			continue
		}
		fmt.Fprintf(&b, "%-8s%s", s.Action, s.Path)
		if s.Why != "" {
			b.WriteString(" (" + s.Why + ")")
		}
		b.WriteByte('\n')
	}
	for _, action := range []install.Action{install.Write, install.Replace, install.Remove} {
		if n := pages[action]; n > 0 {
			fmt.Fprintf(&b, "%-8s%s\n", action, count(n, "man page"))
		}
	}
	for _, line := range more {
		b.WriteString(line + "\n")
	}
	switch {
	case len(changes) == 0 && len(more) == 0:
		b.WriteString("all is as it should be\n")
	case dry:
		b.WriteString("nothing was done\n")
	}
	return b.String()
}
