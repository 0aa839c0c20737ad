package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	datastorerole "netctl/commands/datastore"
	"netctl/commands/speaker"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev/netlab"
)

// The environment that makes this test's binary a role in a lab's host.
const (
	roleEnv = "AGENT_TEST_ROLE"
	confEnv = "AGENT_TEST_CONF"
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch role {
	case "agent":
		var cfg Config
		if err = json.Unmarshal([]byte(os.Getenv(confEnv)), &cfg); err == nil {
			err = Run(ctx, cfg, log)
		}
	case "speaker":
		var cfg speaker.Config
		if err = json.Unmarshal([]byte(os.Getenv(confEnv)), &cfg); err == nil {
			err = speaker.Run(ctx, cfg, log)
		}
	case "datastore":
		cfg := datastorerole.Config{Node: "node1", StateDir: "/var/lib/netctl-node", Socket: "/run/netctl-node/etcd.sock"}
		if text := os.Getenv(confEnv); text != "" {
			err = json.Unmarshal([]byte(text), &cfg)
		}
		if err == nil {
			err = datastorerole.Run(ctx, cfg, log)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "netctl:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// site is a lab with a datastore and an agent on its first host.
type site struct {
	t     *testing.T
	lab   *netlab.Lab
	node  *netlab.Host
	etcd  *netlab.Process
	agent *netlab.Process
	cfg   Config
	store *etcd.Store
	wait  time.Duration // for an agent that starts again, of attaches
}

func newSite(t *testing.T, o netlab.Options, change func(*Config)) *site {
	t.Helper()
	s := &site{t: t, lab: netlab.ForTest(t, o)}
	s.node = s.lab.Hosts[0]
	s.cfg = Config{Node: "node1", Interface: "eth1", Version: "test", LostAfter: time.Hour}
	if change != nil {
		change(&s.cfg)
	}
	s.agent = s.startAgent(s.node, s.cfg)
	s.until("agent before the datastore", func() string {
		if why := s.status().Store; !strings.Contains(why, "etcd.sock") {
			return why
		}
		return ""
	})
	began := time.Now()
	s.startStore()
	store, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + s.node.Path("/run/netctl-node/etcd.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	s.store = store
	s.synced()
	t.Logf("agent in sync %v after the datastore's start", time.Since(began))
	return s
}

func (s *site) startStore() {
	s.t.Helper()
	p, err := s.node.Start("datastore", netlab.Cmd{Args: []string{own(s.t)}, Env: []string{roleEnv + "=datastore"}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.etcd = p
}

func (s *site) startAgent(h *netlab.Host, cfg Config) *netlab.Process {
	s.t.Helper()
	text, err := json.Marshal(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := h.Start("agent", netlab.Cmd{Args: []string{own(s.t)}, Env: []string{roleEnv + "=agent", confEnv + "=" + string(text)}})
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func own(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func (s *site) client() *control.AgentClient {
	return control.NewAgentClient(s.node.Path("/run/netctl-node/agent.sock"))
}

func (s *site) status() control.AgentStatus {
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	st, err := s.client().Status(ctx)
	if err != nil {
		st.Store = err.Error()
	}
	return st
}

func (s *site) until(what string, ok func() string) {
	s.t.Helper()
	netlab.Until(s.t, 30*time.Second, what, ok)
}

func (s *site) synced() {
	s.t.Helper()
	s.until("in sync", func() string {
		if st := s.status(); !st.InSync {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
}

func (s *site) pool(cidr string) {
	s.t.Helper()
	p := netip.MustParsePrefix(cidr)
	err := datastore.Create(s.t.Context(), s.store, &datastore.Pool{Metadata: datastore.Metadata{Name: datastore.PoolName(p)}, Spec: datastore.PoolSpec{CIDR: p}})
	if err != nil {
		s.t.Fatal(err)
	}
}

// container makes a container, not attached to anything.
func (s *site) container(name string) *netlab.Container {
	s.t.Helper()
	c, err := s.node.Container(name)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Remove() })
	return c
}

func (s *site) tryAttach(c *netlab.Container, network string, change func(*control.AttachRequest)) (control.Attachment, error) {
	s.t.Helper()
	ns, err := os.Open(c.Path())
	if err != nil {
		s.t.Fatal(err)
	}
	defer ns.Close()
	r := control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: c.ID, Interface: "eth0"}, Network: network, NetnsFD: int(ns.Fd()), NetnsPath: c.Path()}
	if change != nil {
		change(&r)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	return s.client().Waiting(s.wait).Attach(ctx, r)
}

// attach is a new container with an interface in network.
func (s *site) attach(name, network string, change func(*control.AttachRequest)) (*netlab.Container, control.Attachment) {
	s.t.Helper()
	c := s.container(name)
	a, err := s.tryAttach(c, network, change)
	if err != nil {
		s.t.Fatal(err)
	}
	return c, a
}

func (s *site) detach(c *netlab.Container) error {
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	return s.client().Detach(ctx, control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: c.ID}})
}

// ping says whether one echo request of three is answered.
func (s *site) ping(from netlab.Place, to netip.Addr) bool {
	s.t.Helper()
	_, failed := netlab.Try(s.t, from, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", to.String())
	return failed == nil
}

func (s *site) reaches(from netlab.Place, to netip.Addr) {
	s.t.Helper()
	s.until("ping "+to.String(), func() string {
		if !s.ping(from, to) {
			return "no answer"
		}
		return ""
	})
}

// meter is a set whose elements come and go with packets and time, as nft lists it.
var meter = regexp.MustCompile(`(?s)\tset (?:m_|cut|unseen_)\w+ \{.*?\n\t\}`)

// kernel is the host's links of ours, routes of ours and packet filter, in
// pieces, sorted: nft lists what was made anew in another order.
func (s *site) kernel() string {
	s.t.Helper()
	text := netlab.Must(s.t, s.node, "sh", "-c", "ip -o link show group 28259 | sed 's/^[0-9]*: //; s/ qlen .*//'; ip route show proto 87; ip -6 route show proto 87")
	lines := strings.Split(text, "\n")
	text = strings.ReplaceAll(netlab.Must(s.t, s.node, "nft", "-s", "list", "ruleset"), "elements =", "")
	text = meter.ReplaceAllString(text, "")
	lines = append(lines, strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(";{},\n", r) })...)
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// ourLink finds the names of links of ours.
var ourLink = regexp.MustCompile(`\bnc[0-9a-f]{11}\b`)

// settled is the kernel's state once it names no link that is gone: a detach returns
// before the packet filter has forgotten the endpoint.
func (s *site) settled() (state string) {
	s.t.Helper()
	s.until("what left is forgotten", func() string {
		links := netlab.Must(s.t, s.node, "ip", "-o", "link", "show", "group", "28259")
		state = s.kernel()
		for _, name := range ourLink.FindAllString(state, -1) {
			if !strings.Contains(links, name) {
				return name + " is gone and still named"
			}
		}
		return ""
	})
	return state
}

func (s *site) has(what string, wants ...string) {
	s.t.Helper()
	s.until(what, func() string {
		k := s.kernel()
		for _, w := range wants {
			if !strings.Contains(k, w) {
				return fmt.Sprintf("lacks %q:\n%s", w, k)
			}
		}
		return ""
	})
}

// across runs a flood and a TCP stream from one container to another while fault
// happens; nothing may be lost or reset.
func (s *site) across(what string, from, to *netlab.Container, addr netip.Addr, fault func()) {
	s.t.Helper()
	flood, err := netlab.StartFlood(from, addr, 2*time.Millisecond)
	if err != nil {
		s.t.Fatal(err)
	}
	stream, err := netlab.StartStream(from, to, addr)
	if err != nil {
		flood.Stop()
		s.t.Fatal(err)
	}
	more := func(n int) {
		answered, echoed := flood.Answered(), stream.Echoed()
		s.until(what+": traffic", func() string {
			if flood.Answered() < answered+n || stream.Echoed() < echoed+int64(n)/2 {
				return fmt.Sprintf("%d pings, %d numbers", flood.Answered()-answered, stream.Echoed()-echoed)
			}
			return ""
		})
	}
	more(100)
	fault()
	more(100)
	if r := flood.Stop(); len(r.Lost) > 0 {
		s.t.Errorf("%s: %s", what, r)
	}
	if r := stream.Stop(); r.Err != nil {
		s.t.Errorf("%s: stream: %v", what, r.Err)
	}
}

func (s *site) endpoints() (names []string) {
	s.t.Helper()
	var list []*datastore.Endpoint
	s.until("store", func() string {
		var err error
		if list, err = datastore.List[*datastore.Endpoint](s.t.Context(), s.store); err != nil {
			return err.Error()
		}
		return ""
	})
	for _, e := range list {
		names = append(names, e.Metadata.Name)
	}
	return names
}

func (s *site) stopStore() {
	s.t.Helper()
	if err := s.etcd.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// emptyStore replaces the datastore by one that was made anew.
func (s *site) emptyStore() {
	s.t.Helper()
	s.stopStore()
	if err := os.RemoveAll(filepath.Join(s.node.Path("/var/lib/netctl-node"), "etcd")); err != nil {
		s.t.Fatal(err)
	}
	s.startStore()
}

func (s *site) kill(sig unix.Signal) {
	s.t.Helper()
	if err := s.agent.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
	<-s.agent.Done()
	s.agent = s.startAgent(s.node, s.cfg)
	s.synced()
}
