// Package lab owns `netctl lab`: a cluster of test hosts on this machine, each of
// which runs the real roles with certificates and a configuration of its own.
//
// It never touches the machine's own netctl: its configuration, state and sockets
// stay out of sight of the hosts (netdev/netlab). It decides nothing that a role
// decides.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// DefaultDir is the folder of the lab unless another is named.
const DefaultDir = "/var/lib/netctl-lab"

// Config says what lab to make.
type Config struct {
	Dir            string
	Nodes, Subnets int
	IPv6           bool // addresses of fd00:99::/64 on the nodes
	IPv6Only       bool // those and no others
	// Settings is YAML in block style that is added to every node's configuration;
	// it must not hold the keys of Reserved.
	Settings string
	// Binary is the netctl that the nodes run.
	Binary string
	// Ready bounds the wait until every node is healthy; 0: two minutes.
	Ready time.Duration
	// OneProcess lets the lab die with this process; for tests.
	OneProcess bool
}

const (
	defaultReady = 2 * time.Minute
	pollEvery    = 100 * time.Millisecond
	etcdPort     = 2379
)

// Up makes the hosts and starts `netctl node` in each, the embedded datastore in
// the first; it returns when every node is healthy. What fails leaves nothing
// behind. progress takes a line for each step.
func Up(ctx context.Context, cfg Config, progress io.Writer) (_ *netlab.Lab, err error) {
	began := time.Now()
	options := netlab.Options{
		Dir: cfg.Dir, Nodes: cfg.Nodes, Subnets: cfg.Subnets, IPv6: cfg.IPv6, IPv6Only: cfg.IPv6Only, Persist: !cfg.OneProcess, Binary: cfg.Binary,
	}
	tables := neighbourTables("/proc", cfg.IPv6 || cfg.IPv6Only)
	for _, t := range tables {
		if err := t.roomFor(options.Neighbours()); err != nil {
			return nil, err
		}
	}
	crowd := watchCrowding(tables)
	l, err := netlab.New(options)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Remove())
		}
	}()
	fmt.Fprintf(progress, "%d hosts made in %s\n", len(l.Hosts), l.Dir)
	if err := certificates(l); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	ended := map[*netlab.Host]<-chan struct{}{}
	for _, h := range l.Hosts {
		if err := os.WriteFile(h.Path("/etc/netctl.yaml"), []byte(nodeConfig(l, h, cfg.Settings)), 0o600); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		p, err := StartNode(h)
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		ended[h] = p.Done()
	}
	if cfg.Ready == 0 {
		cfg.Ready = defaultReady
	}
	wait, cancel := context.WithTimeout(ctx, cfg.Ready)
	defer cancel()
	for _, h := range l.Hosts {
		if err := healthy(wait, h, len(l.Hosts)-1, ended[h]); err != nil {
			if ctx.Err() == nil {
				fmt.Fprintf(progress, "the log of %s ends:\n%s\n", h.Name, logTail(h))
			}
			if cause := crowd.cause(); cause != nil && wait.Err() != nil && ctx.Err() == nil {
				err = fmt.Errorf("%w; %w", err, cause)
			}
			return nil, err
		}
		fmt.Fprintf(progress, "%s is healthy at %s, %.1f s after the start\n", h.Name, h.Addr.Addr(), time.Since(began).Seconds())
	}
	return l, nil
}

// StartNode starts `netctl node` in a host of a lab.
func StartNode(h *netlab.Host) (*netlab.Process, error) {
	return h.Start("netctl", netlab.Cmd{Args: []string{"netctl", "node", "--config", "/etc/netctl.yaml"}})
}

// certificates makes the lab's authority and a certificate for each node; the
// authority's key stays outside the hosts.
func certificates(l *netlab.Lab) error {
	ca, err := pki.Create(filepath.Join(l.Dir, "tls"))
	if err != nil {
		return err
	}
	for _, h := range l.Hosts {
		addrs := []netip.Addr{h.Addr.Addr(), netip.MustParseAddr("127.0.0.1")}
		if h.Addr6.IsValid() {
			addrs = append(addrs, h.Addr6.Addr())
		}
		if _, err := ca.Issue(h.Path(tlsFolder), pki.Node{Name: h.Name, Addresses: addrs, Hosts: []string{h.Name, "localhost"}}); err != nil {
			return err
		}
	}
	return nil
}

const tlsFolder = "/var/lib/netctl-node/tls"

// nodeConfig is the host's /etc/netctl.yaml.
func nodeConfig(l *netlab.Lab, h *netlab.Host, settings string) string {
	first := l.Hosts[0]
	server := fmt.Sprintf("https://%s", netip.AddrPortFrom(first.Addr.Addr(), etcdPort))
	files := pki.In(tlsFolder, h.Name)
	tls := fmt.Sprintf("ca: %q, cert: %q, key: %q", files.CA, files.Cert, files.Key)
	addrs := []string{fmt.Sprintf("%q", h.Addr.Addr())}
	if h.Addr6.IsValid() {
		addrs = append(addrs, fmt.Sprintf("%q", h.Addr6.Addr()))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# made by netctl lab\nnode: %s\n", h.Name)
	if h == first {
		fmt.Fprintf(&b, "roles: [datastore, agent, speaker]\netcd: {listen: [%q], tls: {%s}}\n", server, tls)
	} else {
		fmt.Fprintf(&b, "roles: [agent, speaker]\n")
	}
	fmt.Fprintf(&b, "datastore: {endpoints: [%q], %s}\n", server, tls)
	// The file's own agent section, if it has one, continues this one.
	agent := fmt.Sprintf("agent:\n    addresses: [%s]\n", strings.Join(addrs, ", "))
	before, after, has := strings.Cut("\n"+settings, "\nagent:\n")
	if !strings.Contains(after, " runtimes:") {
		agent += "    runtimes: [docker, cni]\n" // Podman's folders are the machine's own
	}
	if !has {
		return b.String() + agent + settings
	}
	return b.String() + strings.TrimPrefix(before+"\n", "\n") + agent + after
}

// Reserved are the keys of a node's configuration that the lab itself sets.
func Reserved() []string { return []string{"node", "roles", "etcd", "datastore"} }

// healthy waits until the roles of a host find nothing wrong and it has sessions to
// so many peers; ended, which may be nil, tells that `netctl node` there has ended.
func healthy(ctx context.Context, h *netlab.Host, peers int, ended <-chan struct{}) error {
	for {
		wrong := ailments(ctx, h, peers)
		if len(wrong) == 0 {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("lab: netctl node on %s has ended", h.Name)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("lab: %w while waiting for %s", ctx.Err(), h.Name)
			}
			if wrong = ailments(context.Background(), h, peers); len(wrong) == 0 {
				return nil
			}
			more := ""
			if len(wrong) > 1 {
				more = fmt.Sprintf(" (and %d more)", len(wrong)-1)
			}
			return fmt.Errorf("lab: %s is not healthy: %s%s", h.Name, short(wrong[0]), more)
		case <-time.After(pollEvery):
		}
	}
}

// mostSaid bounds what an error tells of a host, in bytes.
const mostSaid = 200

func short(text string) string {
	if len(text) > mostSaid {
		text = strings.ToValidUTF8(text[:mostSaid], "") + " …"
	}
	return text
}

// ailments asks the roles of a host by their sockets what is wrong, which costs far
// less than a process in it: at the start of many hosts they need the machine.
func ailments(ctx context.Context, h *netlab.Host, peers int) (wrong []string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	run := fmt.Sprintf("/proc/%d/root/run/netctl-node/", h.PID)
	agent, err := control.NewAgentClient(run + "agent.sock").Status(ctx)
	switch {
	case err != nil:
		return []string{err.Error()}
	case !agent.InSync:
		wrong = append(wrong, "the agent is not in sync with the datastore")
	}
	wrong = append(wrong, agent.Problems...)
	speaker, err := control.NewSpeakerClient(run + "speaker.sock").Status(ctx)
	if err != nil {
		return append(wrong, err.Error())
	}
	wrong = append(wrong, speaker.Problems...)
	missing := 0
	for _, s := range speaker.Sessions { // with all nodes, or with their reflectors
		switch {
		case s.State == "Established":
		case s.Reason != "":
			wrong = append(wrong, fmt.Sprintf("session to %s is down: %s", s.Name(), s.Reason))
		default:
			missing++
		}
	}
	if unknown := peers + 1 - speaker.Nodes; unknown > 0 {
		wrong = append(wrong, fmt.Sprintf("%d nodes are not known yet", unknown))
	} else if missing > 0 || peers > 0 && len(speaker.Sessions) == 0 {
		wrong = append(wrong, fmt.Sprintf("%d sessions are missing", max(missing, 1)))
	}
	return wrong
}

func logTail(h *netlab.Host) string {
	const most = 2000
	b, _ := os.ReadFile(h.Path("log/netctl.log"))
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return strings.TrimSpace(string(b))
}

// NodeState is one host as Status finds it.
type NodeState struct {
	Name      string
	Addresses []netip.Prefix
	PID       int // of the process that holds its namespaces
	// Problem is empty when `netctl status` on the host finds nothing wrong.
	Problem string
}

// Status asks every host of the lab in dir.
func Status(ctx context.Context, dir string) ([]NodeState, error) {
	l, err := open(dir)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	var list []NodeState
	for _, h := range l.Hosts {
		s := NodeState{Name: h.Name, PID: h.PID, Addresses: []netip.Prefix{h.Addr}}
		if h.Addr6.IsValid() {
			s.Addresses = append(s.Addresses, h.Addr6)
		}
		if _, err := h.Exec(ctx, netlab.Cmd{Args: []string{"netctl", "status"}}); err != nil {
			s.Problem = problem(err)
		}
		list = append(list, s)
	}
	return list, nil
}

// problem is the first line of what a failed `netctl status` says.
func problem(err error) string {
	var failed *netlab.ExecError
	if !errors.As(err, &failed) {
		return err.Error()
	}
	text := strings.TrimSpace(failed.Stderr)
	if text == "" {
		text = strings.TrimSpace(failed.Stdout)
	}
	line, _, _ := strings.Cut(text, "\n")
	return short(line)
}

// Exec makes this process the command in a host ("fabric" is the router between
// them); it returns only if that fails.
func Exec(dir, host string, args []string) error {
	l, err := open(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	h, err := l.Host(host)
	if err != nil {
		return err
	}
	return h.Replace(args)
}

// Down removes the lab in dir.
func Down(dir string) error {
	l, err := open(dir)
	if err != nil {
		return err
	}
	return l.Remove()
}

func open(dir string) (*netlab.Lab, error) {
	l, err := netlab.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no lab in %s: make one with `netctl lab up`, or name its folder with --dir", dir)
	}
	return l, err
}
