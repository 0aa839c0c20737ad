package commands

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/install"
	"netctl/datastore"
)

// upgradeOptions are what the command line says of an upgrade.
type upgradeOptions struct {
	file    string // absolute
	version string // what file is
	all     bool
	force   bool
	dryRun  bool
	ssh     string
	wait    time.Duration
}

func newUpgradeCommand(a *app) *cobra.Command {
	o := upgradeOptions{}
	cmd := &cobra.Command{
		Use:   "upgrade FILE",
		Short: "Replace the file that this node, or every node, runs by another netctl, and put it back if that fails",
		Long: "Install FILE, a netctl of another version, over the one that `netctl install` laid down, restart its units one after the other, and wait until\n" +
			"`netctl status` is content. If that does not come to pass, the file that was there is put back, and runs again. Workloads notice nothing.\n\n" +
			"With --all every node of the cluster, one after the other and this one last: FILE goes there by ssh, to the address that the node is registered\n" +
			"with, and is run as root or by `sudo -n`. Each node must be healthy before the next one's turn. The first failure ends it: the nodes that were\n" +
			"not reached yet stay as they are, and the same command goes on where it ended. A node that runs FILE's version already is passed over.",
		Example:     "  netctl upgrade ./netctl\n  netctl upgrade ./netctl --all\n  netctl upgrade ./netctl --all --ssh 'ssh -l ops -i /root/ops.key'",
		Args:        cobra.ExactArgs(1),
		Annotations: map[string]string{exitCodes: "0 done, 1 failed, and what was there runs again, 2 usage"},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "every node of the cluster, one after the other")
	cmd.Flags().StringVar(&o.ssh, "ssh", "ssh -o BatchMode=yes -o ConnectTimeout=10", "`command` that runs another on a machine; it gets an address and one argument")
	cmd.Flags().DurationVar(&o.wait, "wait", time.Minute, "how `long` a node may take to be healthy again")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say what would happen")
	cmd.Flags().BoolVar(&o.force, "force", false, "also where something is wrong already, and whatever version runs")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		o.file = args[0]
		return a.upgrade(cmd.Context(), o)
	}
	return cmd
}

func (a *app) upgrade(ctx context.Context, o upgradeOptions) (err error) {
	if o.wait <= 0 {
		return usage("--wait %s: want a time above 0", o.wait)
	}
	if len(strings.Fields(o.ssh)) == 0 {
		return usage("--ssh: want a command")
	}
	if os.Geteuid() != 0 {
		return errors.New("upgrade: must run as root")
	}
	if o.file, err = filepath.Abs(o.file); err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if o.version, err = versionOf(ctx, o.file); err != nil {
		return err
	}
	if !o.all {
		return a.upgradeHere(ctx, o)
	}
	return a.upgradeAll(ctx, o)
}

// versionOf asks a program whether it is a netctl, and which.
func versionOf(ctx context.Context, file string) (string, error) {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return "", fmt.Errorf("upgrade: %w", err)
	case !st.Mode().IsRegular():
		return "", usage("upgrade: %s is no file: give it the netctl that is to run", file)
	case !executable(file):
		return "", fmt.Errorf("upgrade: %s is no program: give it the netctl that is to run", file)
	case st.Mode()&0o111 == 0:
		return "", fmt.Errorf("upgrade: %s cannot be run: chmod +x %s", file, file)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, file, "version").Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) < 2 || words[0] != "netctl" {
		return "", fmt.Errorf("upgrade: %s is no netctl for this machine: %w", file, cmp.Or(err, errors.New("it does not say its version")))
	}
	return words[1], nil
}

// executable says whether a file begins as a program of Linux does (ELF).
func executable(file string) bool {
	head := make([]byte, 4)
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == "\x7fELF"
}

// upgradeHere installs the file on this machine. What was there is held open until the
// node is well: it is put back from there, and nothing is left behind.
func (a *app) upgradeHere(ctx context.Context, o upgradeOptions) error {
	prefix, err := install.Prefix("")
	if err != nil || prefix == "" {
		return cmp.Or(err, fmt.Errorf("upgrade: `netctl install` did not lay down what runs here: use what did, or run `%s install --now`", o.file))
	}
	if servicesHere() == nil {
		return fmt.Errorf("upgrade: no systemd runs here: run `%s install`, and start the roles anew by what runs them", o.file)
	}
	binary := (&install.Options{Prefix: prefix}).Binary()
	old, err := os.Open(binary)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer old.Close()
	if wrong := unwell(ctx, binary); wrong != nil && !o.force {
		return fmt.Errorf("upgrade: this node is not healthy, and nothing was changed: %w; put that right first, or say --force", wrong)
	}
	if o.dryRun {
		return a.print(fmt.Sprintf("%s: to %s\n", binary, o.version))
	}
	err = a.installFile(ctx, o.file, prefix)
	if err == nil && !o.force {
		err = a.becomesWell(ctx, binary, o.wait)
	}
	if err == nil {
		return a.print("this node runs " + o.version + "\n")
	}
	a.warn("upgrade failed: what was there is put back")
	// The file may have no name any more. What is put back is waited for even by somebody who is gone.
	before := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), old.Fd())
	if back := a.installFile(context.WithoutCancel(ctx), before, prefix); back != nil {
		return fmt.Errorf("upgrade: %w; and the file that was there does not start either: %w", err, back)
	}
	return fmt.Errorf("upgrade: what was there runs again: %w", err)
}

// installFile has a netctl install itself and restart what runs an older one.
func (a *app) installFile(ctx context.Context, file, prefix string) error {
	cmd := exec.CommandContext(ctx, file, "install", "--now", "--prefix", prefix)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	said := &prefixed{to: a.err}
	cmd.Stdout, cmd.Stderr = a.out, said
	if err := cmd.Run(); err != nil {
		return errors.New(cmp.Or(strings.TrimPrefix(said.last, "netctl: "), "install: "+err.Error()))
	}
	return said.end()
}

// becomesWell waits until the node's status is content.
func (a *app) becomesWell(ctx context.Context, binary string, within time.Duration) (err error) {
	defer a.waiting("netctl status")()
	until := time.After(within)
	for {
		if err = unwell(ctx, binary); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("interrupted: %w", ctx.Err())
		case <-until:
			return fmt.Errorf("not healthy within %s: %w", within, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// unwell asks the netctl of a machine what is wrong with it.
func unwell(ctx context.Context, binary string) error {
	out, err := exec.CommandContext(ctx, binary, "status").Output()
	if err == nil {
		return nil
	}
	for line := range strings.Lines(string(out)) {
		if wrong, ok := strings.CutPrefix(strings.TrimSpace(line), "! "); ok {
			return errors.New(wrong)
		}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return errors.New(lastLine(string(exit.Stderr)))
	}
	return fmt.Errorf("netctl status: %w", err)
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimPrefix(lines[len(lines)-1], "netctl: ")
}

// upgradeAll upgrades node by node.
func (a *app) upgradeAll(ctx context.Context, o upgradeOptions) error {
	s, err := a.settings()
	if err != nil {
		return err
	}
	reports, err := a.clusterWell(ctx, o, "", settleTime)
	if err != nil {
		return fmt.Errorf("upgrade: nothing was changed: %w; put that right first, or say --force", err)
	}
	// This node last: it is the one that tells what happens.
	slices.SortStableFunc(reports, func(x, y *nodeReport) int {
		switch s.Node {
		case x.Node:
			return 1
		case y.Node:
			return -1
		}
		return 0
	})
	for i, r := range reports {
		if o.dryRun {
			if err := a.print(fmt.Sprintf("%s: %s to %s\n", r.Node, strings.TrimPrefix(r.Version, "v"), o.version)); err != nil {
				return err
			}
			continue
		}
		if strings.TrimPrefix(r.Version, "v") == o.version && !o.force {
			if err := a.print(fmt.Sprintf("%s: runs %s already\n", r.Node, o.version)); err != nil {
				return err
			}
			continue
		}
		if r.Node == s.Node {
			err = a.upgradeHere(ctx, o)
		} else {
			err = a.upgradeThere(ctx, o, r)
		}
		if err == nil {
			_, err = a.clusterWell(ctx, o, r.Node, o.wait)
		}
		if err != nil {
			return fmt.Errorf("node %s: %w; %d of %s were done, the others stay as they are: the same command goes on from here", r.Node, err, i, count(len(reports), "node"))
		}
	}
	return nil
}

// remoteScript takes a netctl from stdin and has it upgrade the machine that it runs on.
const remoteScript = `set -e; f=$(mktemp /var/tmp/netctl.XXXXXX); trap 'rm -f "$f"' EXIT; cat >"$f"; chmod 755 "$f"; ` +
	`if [ "$(id -u)" = 0 ]; then s=; else s="sudo -n"; fi; $s "$f" upgrade "$f" --wait %s%s`

// upgradeThere has another node upgrade itself.
func (a *app) upgradeThere(ctx context.Context, o upgradeOptions, r *nodeReport) error {
	if len(r.Addresses) == 0 {
		return fmt.Errorf("upgrade: it has no address: %w", datastore.ErrInvalid)
	}
	file, err := os.Open(o.file)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer file.Close()
	force := ""
	if o.force {
		force = " --force"
	}
	words := strings.Fields(o.ssh)
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], r.Addresses[0].String(), fmt.Sprintf(remoteScript, o.wait, force))...)
	out := &prefixed{to: a.out, prefix: r.Node + ": "}
	said := &prefixed{to: a.err, prefix: r.Node + ": "}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = file, out, said
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", words[0], r.Addresses[0], err, strings.TrimPrefix(cmp.Or(said.last, out.last), "netctl: "))
	}
	return errors.Join(out.end(), said.end())
}

// prefixed writes whole lines with something before each. The last one it keeps until there
// is another, or end: it may be the cause that is told with the failure.
type prefixed struct {
	to     io.Writer
	prefix string
	rest   []byte
	last   string
}

func (p *prefixed) Write(b []byte) (int, error) {
	p.rest = append(p.rest, b...)
	for {
		line, rest, whole := bytes.Cut(p.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		if err := p.end(); err != nil {
			return 0, err
		}
		p.rest, p.last = rest, strings.TrimRight(string(line), "\r")
	}
}

// end writes the last line.
func (p *prefixed) end() (err error) {
	if p.last != "" {
		_, err = fmt.Fprintf(p.to, "%s%s\n", p.prefix, p.last)
	}
	p.last = ""
	return err
}

// settleTime is how long a cluster may take to be healthy before an upgrade: a role that
// just started reports after some seconds.
const settleTime = 15 * time.Second

// clusterWell waits until every node is healthy, and the cluster sees the one that was
// upgraded in its new version.
func (a *app) clusterWell(ctx context.Context, o upgradeOptions, node string, within time.Duration) ([]*nodeReport, error) {
	defer a.waiting("the cluster to be healthy")()
	until := time.After(within)
	for {
		reports, err := a.reports(ctx, "", true)
		for _, r := range reports {
			switch {
			case !r.Healthy:
				err = fmt.Errorf("node %s is not healthy: %s", r.Node, r.Problems[0])
			case r.Node == node && strings.TrimPrefix(r.Version, "v") != o.version:
				err = fmt.Errorf("node %s says that it runs %s", node, r.Version)
			}
		}
		if err == nil || o.force && reports != nil {
			return reports, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-until:
			return nil, fmt.Errorf("for %s, %w", within, err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
