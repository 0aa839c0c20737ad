package commands

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/commands/doctor"
	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/etcd"
)

func newDoctorCommand(a *app) *cobra.Command {
	var fix bool
	var to []string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show what on this host will break the network, and the fix of each",
		Long: "Show what on this host will break the network without a word: what it means, and the commands that mend it.\n" +
			"It works before anything is installed, without a datastore, and on a running node. What could not be found out is said as that.\n\n" +
			"With --fix it mends itself what is safe: settings of the kernel (now, and in /etc/sysctl.d for the next boot), files that keep NetworkManager and\n" +
			"systemd-networkd off netctl's interfaces, and the two rules that let packets of workloads pass FORWARD. Each change is told with its old value.\n" +
			"All else is the operator's to decide. With --to it tries the paths to machines that are not registered as nodes.",
		Example:     "  netctl doctor\n  netctl doctor --fix\n  netctl doctor --to 192.168.99.103",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{exitCodes: "0 healthy, 1 could not tell, 2 usage, 3 something is wrong"},
	}
	f := addFormat(cmd)
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what can be mended safely")
	cmd.Flags().StringSliceVar(&to, "to", nil, "`addresses` of machines to try the paths to")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var addrs []netip.Addr
		for _, text := range to {
			addr, err := netip.ParseAddr(strings.TrimSpace(text))
			if err != nil || addr.Zone() != "" || !addr.IsGlobalUnicast() {
				return usage("--to %q: want the address of another machine", text)
			}
			addrs = append(addrs, addr.Unmap())
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("doctor: must run as root: others do not see what it looks at")
		}
		r, err := a.examine(cmd.Context(), s, addrs, fix)
		if err != nil {
			return err
		}
		return a.showExamination(*f, r)
	}
	return cmd
}

// examine makes all checks of this machine.
func (a *app) examine(ctx context.Context, s *settings, to []netip.Addr, fix bool) (*doctor.Report, error) {
	host, closer, err := doctor.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, fmt.Errorf("doctor: %w", err)
	}
	defer func() { _ = closer() }()
	cfg := s.doctorConfig()
	cfg.To = to
	if s.hasStore() {
		cfg.Cluster, cfg.ClusterErr = a.doctorCluster(ctx, s.Node)
	} else {
		cfg.MayFound = true
	}
	defer a.waiting("answers of other nodes")()
	return doctor.Run(ctx, host, cfg, fix)
}

// preflight refuses a machine that cannot be a node with the roles of its settings.
func (a *app) preflight(ctx context.Context, s *settings) error {
	host, closer, err := doctor.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { _ = closer() }()
	_, err = doctor.Preflight(ctx, host, s.doctorConfig())
	var refused *doctor.RefusedError
	if errors.As(err, &refused) {
		err = fmt.Errorf("%w, --ignore-checks goes on all the same", err)
	}
	return err
}

// ignoreChecks is the flag of what asks preflight.
func ignoreChecks(cmd *cobra.Command, ignore *bool) {
	cmd.Flags().BoolVar(ignore, "ignore-checks", false, "go on where `netctl doctor` would say that it cannot work")
}

// hasStore says whether there is a datastore to ask: before anything is installed there
// is none, and that is no trouble.
func (s *settings) hasStore() bool {
	if len(s.Roles) > 0 || s.origin["datastore::endpoints"] != "default" {
		return true
	}
	for _, file := range []string{filepath.Join(s.RunDir, "etcd.sock"), filepath.Join(s.StateDir, "cluster.json")} {
		if _, err := os.Stat(file); err == nil {
			return true
		}
	}
	return false
}

// doctorCluster reads what the checks look at.
func (a *app) doctorCluster(ctx context.Context, node string) (*doctor.Cluster, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	view, err := a.view(ctx, datastore.KindNode, datastore.KindPool, datastore.KindPeer, datastore.KindConfig)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: no answer within %s", datastore.ErrUnavailable, statusTime)
	}
	if err != nil {
		return nil, err
	}
	c := &doctor.Cluster{Nodes: view.Nodes(), Pools: view.Pools(), Peers: view.Peers(), Config: view.Config()}
	s, err := a.store(ctx)
	if err != nil {
		return nil, err
	}
	// Of a large cluster all reports are too much: those that this node compares with.
	for _, name := range append(doctor.Sample(c.Nodes, node), node) {
		for _, role := range []string{datastore.ReportAgent, datastore.ReportSpeaker} {
			r, err := datastore.Get[*datastore.Report](ctx, s, datastore.ReportName(name, role))
			if errors.Is(err, datastore.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			c.Reports = append(c.Reports, r)
		}
	}
	return c, nil
}

// doctorConfig is what the settings say of this node.
func (s *settings) doctorConfig() doctor.Config {
	c := doctor.Config{
		Node: s.Node, Roles: s.Roles, StateDir: s.StateDir, RunDir: s.RunDir, LinkPrefix: s.Agent.LinkPrefix,
		Gateway: netip.MustParseAddr(s.Agent.Gateway), Interface: s.Agent.Interface, MTU: s.Agent.MTU, // checked by settings.finish
		Tunnels: s.tunnels(), WireGuardPort: uint16(s.Tunnels.WireGuardPort), BGPPort: uint16(s.Speaker.Port),
		AgentProtocol: s.Routes.AgentProtocol, SpeakerProtocol: s.Routes.SpeakerProtocol,
	}
	for _, text := range s.Agent.Addresses {
		c.Addresses = append(c.Addresses, netip.MustParseAddr(text))
	}
	if s.external() { // the role lets nodes in, and no etcd runs here
		c.Roles = slices.DeleteFunc(slices.Clone(s.Roles), func(role string) bool { return role == "datastore" })
	}
	for _, text := range append([]string{s.Etcd.PeerURL}, s.Etcd.Listen...) {
		if u, err := url.Parse(text); err == nil {
			if addr, err := netip.ParseAddrPort(u.Host); err == nil {
				c.EtcdListen = append(c.EtcdListen, addr)
			}
		}
	}
	if s.Datastore.Cert != "" && !s.external() {
		members := etcd.ReadMembers(s.storeOptions().Members, s.Datastore.Endpoints)
		c.Members = join.Endpoints(slices.Compact(slices.Sorted(slices.Values(slices.Concat(s.Datastore.Endpoints, members.Endpoints)))), cmp.Or(members.JoinPort, s.Etcd.JoinPort))
	}
	for _, file := range []string{s.Datastore.CA, s.Datastore.Cert, s.Etcd.TLS.CA, s.Etcd.TLS.Cert} {
		if file != "" && !slices.Contains(c.Certificates, file) {
			c.Certificates = append(c.Certificates, file)
		}
	}
	return c
}

func (a *app) showExamination(f format, r *doctor.Report) error {
	var err error
	switch f {
	case formatJSON, formatYAML:
		err = a.showExaminationPlain(f, r)
	default:
		err = a.print(a.examinationText(r, f == formatWide))
	}
	switch {
	case err != nil:
		return err
	case r.Count(doctor.Wrong) > 0:
		return errNo
	case r.Count(doctor.Unknown) > 0:
		return fmt.Errorf("doctor: %s could not be made", count(r.Count(doctor.Unknown), "check"))
	}
	return nil
}

func (a *app) showExaminationPlain(f format, r *doctor.Report) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if f == formatJSON {
		b, err := indented(raw)
		if err != nil {
			return err
		}
		return a.print(string(b))
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return err
	}
	plain(&doc)
	b, err := yaml.Marshal(&doc)
	if err != nil {
		return err
	}
	return a.print(string(b))
}

// examinationText is what a person reads: what is wrong first, and its fix.
func (a *app) examinationText(r *doctor.Report, wide bool) string {
	var b strings.Builder
	for _, c := range r.Checks {
		for _, change := range c.Changes {
			fmt.Fprintf(&b, "mended %s: %s\n", c.Name, change)
		}
		for _, f := range c.Findings {
			b.WriteString(a.bad("! "+c.Name+": "+f.What) + "\n")
			fmt.Fprintf(&b, "    meaning: %s\n", c.Meaning)
			for i, line := range f.Fix {
				head := "    fix:     "
				if i > 0 {
					head = "             "
				}
				b.WriteString(head + line + "\n")
			}
			if f.Fixable {
				b.WriteString("             or `netctl doctor --fix` does it\n")
			}
		}
		if c.State == doctor.Wrong && c.Reason != "" {
			fmt.Fprintf(&b, "? %s: and this could not be told: %s\n", c.Name, c.Reason)
		}
	}
	for _, c := range r.Checks {
		if c.State == doctor.Unknown {
			fmt.Fprintf(&b, "? %s: could not tell: %s\n", c.Name, c.Reason)
		}
	}
	if wide {
		width := 0
		for _, c := range r.Checks {
			width = max(width, len(c.Name))
		}
		for _, c := range r.Checks {
			fmt.Fprintf(&b, "%-7s %-*s %s\n", c.State, width, c.Name, cmp.Or(c.Reason, c.Meaning))
		}
	}
	if b.Len() > 0 {
		b.WriteString("\n")
	}
	var parts []string
	for _, p := range []struct {
		state doctor.State
		words string
	}{{doctor.Wrong, "wrong"}, {doctor.Unknown, "could not be told"}, {doctor.Fine, "fine"}, {doctor.Skipped, "do not apply here"}} {
		if n := r.Count(p.state); n > 0 {
			parts = append(parts, strconv.Itoa(n)+" "+p.words)
		}
	}
	fmt.Fprintf(&b, "%s: %s\n", count(len(r.Checks), "check"), strings.Join(parts, ", "))
	return b.String()
}
