package speaker

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

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// crowdRole is many speakers in one process; nil: not for this run.
var crowdRole func(ctx context.Context, config []byte) error

// TestMain is also the roles: the test starts itself in the lab's hosts.
func TestMain(m *testing.M) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var err error
	switch role, text := os.Getenv("NETCTL_TEST_ROLE"), []byte(os.Getenv("NETCTL_TEST_CONFIG")); role {
	case "":
		os.Exit(m.Run())
	case "speaker":
		var c Config
		if err = json.Unmarshal(text, &c); err == nil {
			err = Run(ctx, c, log)
		}
	case "crowd":
		err = crowdRole(ctx, text)
	case "datastore":
		var c embed.Config
		if err = json.Unmarshal(text, &c); err == nil {
			c.Log = log
			err = embed.Run(ctx, c, nil)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// rig is a lab with a datastore that every host reaches.
type rig struct {
	t     testing.TB
	ctx   context.Context
	lab   *netlab.Lab
	dir   string
	etcd  *netlab.Process
	store datastore.Store
	nodes []*netctlNode
}

// netctlNode is a host that runs the speaker.
type netctlNode struct {
	rig  *rig
	host *netlab.Host
	cfg  Config
	proc *netlab.Process
	boot string // file
}

func newRig(t testing.TB, o netlab.Options) *rig {
	t.Helper()
	r := &rig{t: t, ctx: t.Context(), lab: netlab.ForTest(t, o), dir: t.TempDir()}
	r.startStore()
	store, err := etcd.Open(r.ctx, r.options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	r.store = store
	cluster, err := json.Marshal(datastore.Cluster{UUID: "5f0c1b1e-0000-4000-8000-000000000001", Created: time.Unix(1700000000, 0).UTC(), Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, 30*time.Second, "the datastore answers", func() string {
		_, err := store.Commit(r.ctx, datastore.Txn{Then: []datastore.Op{{Key: datastore.ClusterKey, Value: cluster}}})
		return text(err)
	})
	hold := 9
	r.create(&datastore.BGPConfig{Metadata: datastore.Metadata{Name: datastore.DefaultName}, Spec: datastore.BGPConfigSpec{HoldTime: &hold, RestartTime: 20}})
	return r
}

// sub runs a subtest that the rig reports to.
func (r *rig) sub(name string, fn func(t *testing.T)) {
	was := r.t
	defer func() { r.t = was }()
	was.(*testing.T).Run(name, func(t *testing.T) {
		r.t = t
		fn(t)
	})
}

func text(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func (r *rig) options() etcd.Options {
	return etcd.Options{Endpoints: []string{"unix://" + filepath.Join(r.dir, "s", "etcd.sock")}}
}

func (r *rig) startStore() {
	r.t.Helper()
	tls := pki.In(filepath.Join(r.dir, "tls"), "one")
	if _, err := os.Stat(tls.CA); err != nil {
		ca, err := pki.Create(filepath.Dir(tls.CA))
		if err != nil {
			r.t.Fatal(err)
		}
		if _, err := ca.Issue(filepath.Dir(tls.CA), pki.Node{Name: "one", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}); err != nil {
			r.t.Fatal(err)
		}
	}
	r.etcd = r.start(r.lab.Fabric, "datastore", embed.Config{
		Name: "one", Dir: filepath.Join(r.dir, "etcd"), Socket: filepath.Join(r.dir, "s", "etcd.sock"),
		CA: tls.CA, Cert: tls.Cert, Key: tls.Key,
	})
}

func (r *rig) start(h *netlab.Host, role string, config any) *netlab.Process {
	r.t.Helper()
	c, err := json.Marshal(config)
	if err != nil {
		r.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := h.Start(role, netlab.Cmd{Args: []string{self}, Env: []string{"NETCTL_TEST_ROLE=" + role, "NETCTL_TEST_CONFIG=" + string(c)}})
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) create(o datastore.Object) {
	r.t.Helper()
	if err := datastore.Create(r.ctx, r.store, o); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) pool(cidr string) {
	r.t.Helper()
	r.create(&datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr)}})
}

// register makes a host a node of the datastore, with all its addresses.
func (r *rig) register(h *netlab.Host) {
	r.t.Helper()
	n := machine(h.Name, h.Addr.String())
	if h.Addr6.IsValid() {
		n.Spec.Addresses = append(n.Spec.Addresses, h.Addr6)
	}
	r.create(n)
}

// node registers a host, makes it forward, and starts its speaker.
func (r *rig) node(h *netlab.Host) *netctlNode {
	r.t.Helper()
	r.register(h)
	return r.run(h)
}

// node6 is node for a host with an IPv6 address only.
func (r *rig) node6(h *netlab.Host) *netctlNode {
	r.t.Helper()
	r.create(machine(h.Name, h.Addr6.String()))
	return r.run(h)
}

func (r *rig) run(h *netlab.Host) *netctlNode {
	r.t.Helper()
	netlab.Must(r.t, h, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
	n := &netctlNode{rig: r, host: h, boot: filepath.Join(r.dir, h.Name+".boot")}
	n.reboot("first")
	n.cfg = Config{
		Store: r.options(), Node: h.Name, StateDir: filepath.Join(r.dir, h.Name), RunDir: filepath.Join(r.dir, h.Name),
		Version: "test", BootFile: n.boot,
	}
	n.identify()
	n.up()
	r.nodes = append(r.nodes, n)
	return n
}

func (n *netctlNode) reboot(id string) {
	n.rig.t.Helper()
	if err := os.WriteFile(n.boot, []byte(id+"\n"), 0o600); err != nil {
		n.rig.t.Fatal(err)
	}
}

// identify is what the agent does before it registers the host.
func (n *netctlNode) identify() {
	n.rig.t.Helper()
	err := os.MkdirAll(n.cfg.StateDir, 0o700)
	if err == nil {
		err = os.WriteFile(filepath.Join(n.cfg.StateDir, "host"), []byte(hostOf(n.host.Name)+"\n"), 0o600)
	}
	if err != nil {
		n.rig.t.Fatal(err)
	}
}

func (n *netctlNode) up() { n.proc = n.rig.start(n.host, "speaker", n.cfg) }

func (n *netctlNode) status() (control.SpeakerStatus, error) {
	ctx, cancel := context.WithTimeout(n.rig.ctx, 5*time.Second)
	defer cancel()
	return control.NewSpeakerClient(filepath.Join(n.cfg.RunDir, "speaker.sock")).Status(ctx)
}

// settled says "" if this run of the speaker has that many sessions, all
// Established, and nothing stale.
func (n *netctlNode) settled(sessions int) string {
	s, err := n.status()
	if err != nil {
		return err.Error()
	}
	if s.PID != n.proc.PID {
		return fmt.Sprintf("%s: PID %d answers, not %d", n.host.Name, s.PID, n.proc.PID)
	}
	if len(s.Sessions) != sessions {
		return fmt.Sprintf("%s has %d sessions, want %d; %v", n.host.Name, len(s.Sessions), sessions, s.Problems)
	}
	for _, x := range s.Sessions {
		if x.State != "Established" || x.Stale > 0 || x.Reason != "" {
			return fmt.Sprintf("%s: %+v", n.host.Name, x)
		}
	}
	return ""
}

func (r *rig) settle(sessions int) {
	r.t.Helper()
	netlab.Until(r.t, 30*time.Second, "every session is up and nothing is stale", func() string {
		for _, n := range r.nodes {
			if why := n.settled(sessions); why != "" {
				return why
			}
		}
		return ""
	})
}

func (n *netctlNode) ip(args string) string {
	n.rig.t.Helper()
	return netlab.Must(n.rig.t, n.host, append([]string{"ip"}, strings.Fields(args)...)...)
}

// block is what the agent does for a block of its node.
func (n *netctlNode) block(cidr string) {
	n.rig.t.Helper()
	n.ip("route add blackhole " + cidr + " proto 87")
}

// endpoint is what the agent does for a workload, wired by hand.
func (n *netctlNode) endpoint(name, addr string) *netlab.Container {
	n.rig.t.Helper()
	t := n.rig.t
	c, err := n.host.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddr(addr)
	link, gateway := "nc"+name, "169.254.1.1"
	if a.Is6() {
		gateway = "fe80::ecee:eeff:feee:eeee"
	}
	n.ip("link add " + link + " address ee:ee:ee:ee:ee:ee type veth peer name eth0 netns " + c.ID)
	n.ip("link set " + link + " up")
	for _, args := range []string{
		"link set lo up", "link set eth0 up", "addr add " + addr + " dev eth0 nodad",
		"neigh add " + gateway + " lladdr ee:ee:ee:ee:ee:ee nud permanent dev eth0",
		"route add default via " + gateway + " dev eth0 onlink",
	} {
		if a.Is4() {
			args = strings.TrimSuffix(args, " nodad")
		}
		netlab.Must(t, c, append([]string{"ip"}, strings.Fields(args)...)...)
	}
	n.ip("route add " + addr + " dev " + link + " proto 87")
	return c
}

// nextHopObject is what FRR's routes show beside their next hop.
var nextHopObject = regexp.MustCompile(` nhid \d+`)

// learnt is the routes of the speaker, as `ip route` prints them, sorted.
func learnt(t testing.TB, h *netlab.Host, proto string) []string {
	t.Helper()
	out := netlab.Must(t, h, "ip", "-4", "route", "show", "proto", proto) + netlab.Must(t, h, "ip", "-6", "route", "show", "proto", proto)
	var lines []string
	for _, l := range strings.Split(out, "\n") {
		l = nextHopObject.ReplaceAllString(l, "")
		if strings.HasPrefix(l, "\t") {
			lines[len(lines)-1] += " " + strings.TrimSpace(l)
		} else if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	slices.Sort(lines)
	return lines
}

// expect waits until a host has exactly these routes of a protocol.
func (r *rig) expect(h *netlab.Host, proto string, want ...string) {
	r.t.Helper()
	want = slices.Clone(want)
	for i, w := range want {
		switch {
		case proto != "88":
		case strings.HasPrefix(w, "fd"):
			want[i] += " metric 1056 pref medium"
		default:
			want[i] += " metric 32"
		}
	}
	slices.Sort(want)
	netlab.Until(r.t, 20*time.Second, h.Name+" has exactly the routes of its peers", func() string {
		if got := learnt(r.t, h, proto); !slices.Equal(got, want) {
			return fmt.Sprintf("has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return ""
	})
}

// monitor records every route change on a host.
type monitor struct {
	host *netlab.Host
	proc *netlab.Process
}

func (r *rig) monitor(h *netlab.Host) *monitor {
	r.t.Helper()
	p, err := h.Start("monitor", netlab.Cmd{Args: []string{"ip", "-o", "monitor", "route"}})
	if err != nil {
		r.t.Fatal(err)
	}
	m := &monitor{h, p}
	m.mark(r.t, "198.18.0.1")
	return m
}

// mark waits until the monitor has shown everything up to now.
func (m *monitor) mark(t testing.TB, addr string) {
	t.Helper()
	netlab.Until(t, 20*time.Second, "ip monitor listens", func() string {
		netlab.Must(t, m.host, "ip", "route", "add", "blackhole", addr, "proto", "static")
		netlab.Must(t, m.host, "ip", "route", "del", "blackhole", addr, "proto", "static")
		if !strings.Contains(m.proc.Output(), addr) {
			return "not shown yet"
		}
		return ""
	})
}

// deletions ends the recording and returns the deletions that it holds.
func (m *monitor) deletions(t testing.TB) []string {
	t.Helper()
	m.mark(t, "198.18.0.2")
	m.proc.Kill()
	var out []string
	for _, l := range strings.Split(m.proc.Output(), "\n") {
		if strings.HasPrefix(l, "Deleted") && !strings.Contains(l, " 198.18.0.") && !strings.Contains(l, "proto kernel") {
			out = append(out, strings.TrimSpace(l))
		}
	}
	return out
}
