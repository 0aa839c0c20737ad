//go:build bench

package speaker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/identity"
	"netctl/netdev/netlab"
	"netctl/routing"
	"netctl/routing/fib"
)

// crowd is a number of speakers in one process: real sessions, a real datastore, and a
// Fake in place of each one's kernel.
type crowd struct {
	Store etcd.Options
	Dir   string
	Nodes int

	speakers []*speaker
	hosts    []*fib.Fake
	watched  atomic.Pointer[watch]
}

// watch counts the nodes whose kernel has a prefix.
type watch struct {
	prefix netip.Prefix
	left   atomic.Int64
	all    chan struct{}
}

// crowdResult is what was measured.
type crowdResult struct {
	Settled, Filled         float64 // s from the start: every session, every route
	CPU                     float64 // s until then
	Reflectors              int
	Sessions                int // of all
	OfOne, OfAReflector     int // the most that one has
	RSS                     float64
	Block                   float64 // ms of CPU that one costs a node
	BlockTypical, BlockLast float64 // ms until the last node has it: the median, and of 20 the slowest but one
	Plan                    float64 // ms that working out a plan takes
}

func init() { crowdRole = runCrowd }

func crowdNode(i int) string { return fmt.Sprintf("n%04d", i) }

func crowdAddress(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 200, byte(i >> 8), byte(i)}).Next()
}

// crowdBlock is block i of the pool.
func crowdBlock(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(i>>10), byte(i >> 2), byte(i << 6)}), 26)
}

// crowdTable tells what is watched for.
type crowdTable struct {
	*fib.Table
	crowd *crowd
}

func (t crowdTable) Apply(ctx context.Context, c routing.Changes) error {
	err := t.Table.Apply(ctx, c)
	if w := t.crowd.watched.Load(); w != nil {
		for _, r := range c.Put {
			if r.Prefix == w.prefix && w.left.Add(-1) == 0 {
				close(w.all)
			}
		}
	}
	return err
}

func runCrowd(ctx context.Context, text []byte) error {
	c := &crowd{}
	if err := json.Unmarshal(text, c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for i := range c.Nodes {
		if err := c.start(ctx, g, i); err != nil {
			return err
		}
	}
	var r crowdResult
	result := make(chan error, 1)
	go func() { result <- c.measure(ctx, began, &r) }()
	failed := make(chan error, 1)
	go func() { failed <- g.Wait() }()
	select {
	case err := <-failed:
		return err
	case err := <-result:
		if err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// start starts speaker i, whose node has one block.
func (c *crowd) start(ctx context.Context, g *errgroup.Group, i int) error {
	name := crowdNode(i)
	cfg := Config{Store: c.Store, Node: name, StateDir: filepath.Join(c.Dir, name), RunDir: filepath.Join(c.Dir, name), Version: "test"}
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(cfg.StateDir, "host"), []byte(hostOf(name)+"\n"), 0o600); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	guard, err := identity.Open(cfg.StateDir, false, log)
	if err != nil {
		return err
	}
	listener, err := control.Listen(cfg.Socket, log)
	if err != nil {
		return err
	}
	host := fib.NewFake()
	host.Put(2, connected("10.200.0.0/16", "eth1"))
	host.Put(routing.ProtocolAgent, routing.Route{Prefix: crowdBlock(i), Type: routing.Blackhole})
	cfg.Store.Log = log
	store, err := etcd.Open(ctx, cfg.Store)
	if err != nil {
		return err
	}
	own := crowdTable{host.Table(routing.ProtocolSpeaker), c}
	s := newSpeaker(ctx, cfg, host.Table(routing.ProtocolAgent), own, store, guard, log)
	c.speakers, c.hosts = append(c.speakers, s), append(c.hosts, host)
	g.Go(func() error { return s.run(ctx, listener) })
	return nil
}

func (c *crowd) measure(ctx context.Context, began time.Time, r *crowdResult) error {
	for _, s := range c.speakers {
		if err := c.until(ctx, s.node(), func() bool { return s.isUp(c.Nodes) }); err != nil {
			return err
		}
	}
	r.Settled = time.Since(began).Seconds()
	for _, s := range c.speakers {
		err := c.until(ctx, s.node(), func() bool {
			routes, err := s.own.Routes(ctx)
			return err == nil && len(routes) == c.Nodes-1
		})
		if err != nil {
			return err
		}
	}
	r.Filled, r.CPU = time.Since(began).Seconds(), cpuTime().Seconds()
	for _, s := range c.speakers {
		sessions, _ := s.state.sessions()
		r.Sessions += len(sessions)
		reflects := false
		for _, e := range sessions {
			reflects = reflects || e.Type == "client"
		}
		if reflects {
			r.Reflectors++
			r.OfAReflector = max(r.OfAReflector, len(sessions))
		} else {
			r.OfOne = max(r.OfOne, len(sessions))
		}
	}
	r.Sessions /= 2
	if err := c.blocks(ctx, r); err != nil {
		return err
	}
	runtime.GC()
	text, err := os.ReadFile("/proc/self/smaps_rollup")
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "Rss:"); ok {
			_, _ = fmt.Sscan(n, &r.RSS)
			r.RSS /= 1024
		}
	}
	f := c.speakers[len(c.speakers)-1].follower
	f.mu.Lock()
	planned := time.Now()
	f.plan()
	r.Plan = time.Since(planned).Seconds() * 1000
	f.mu.Unlock()
	return err
}

// blocks has some nodes claim a block, and measures what that takes beyond what the
// process uses anyway.
func (c *crowd) blocks(ctx context.Context, r *crowdResult) error {
	const times, each = 20, 500 * time.Millisecond
	if err := c.rest(ctx); err != nil {
		return err
	}
	idle, started := cpuTime(), time.Now()
	<-time.After(times * each)
	idle = (cpuTime() - idle) * each / time.Since(started)
	var took []float64
	before, started := cpuTime(), time.Now()
	for n := range times {
		w := &watch{prefix: crowdBlock(c.Nodes + n), all: make(chan struct{})}
		w.left.Store(int64(c.Nodes - 1))
		c.watched.Store(w)
		told := time.Now()
		c.hosts[n*c.Nodes/times].Put(routing.ProtocolAgent, routing.Route{Prefix: w.prefix, Type: routing.Blackhole})
		select {
		case <-w.all:
		case <-time.After(time.Minute):
			return fmt.Errorf("block %s: %d nodes lack it", w.prefix, w.left.Load())
		}
		took = append(took, time.Since(told).Seconds()*1000)
		<-time.After(each - time.Since(told))
	}
	spent := cpuTime() - before - idle*time.Since(started)/each
	slices.Sort(took)
	r.BlockTypical, r.BlockLast = took[times/2], took[times-2]
	r.Block = max(0, spent.Seconds()*1000/times/float64(c.Nodes))
	return nil
}

// rest waits until the process uses as little as it does.
func (c *crowd) rest(ctx context.Context) error {
	last := cpuTime()
	for range 60 {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
		now := cpuTime()
		if now-last < 200*time.Millisecond {
			return nil
		}
		last = now
	}
	return nil
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (s *speaker) node() string { return s.cfg.Node }

// isUp says whether every planned session is, and that all nodes are known.
func (s *speaker) isUp(nodes int) bool {
	sessions, _ := s.state.sessions()
	s.state.mu.Lock()
	known := s.state.plan.NodeCount()
	s.state.mu.Unlock()
	for _, e := range sessions {
		if e.State != "Established" {
			return false
		}
	}
	return known == nodes && len(sessions) > 0
}

func (c *crowd) until(ctx context.Context, what string, ok func() bool) error {
	late := time.Now().Add(10 * time.Minute)
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(late) {
			return fmt.Errorf("%s is not there", what)
		}
	}
	return nil
}

// simulate has so many speakers in one process find each other.
func simulate(t *testing.T, nodes int) (r crowdResult) {
	rig := newRig(t, netlab.Options{Nodes: 1})
	if _, err := datastore.Modify(rig.ctx, rig.store, datastore.DefaultName, func(c *datastore.BGPConfig) error {
		c.Spec = datastore.BGPConfigSpec{}
		c.SetDefaults()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		rig.pool(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(i)}), 16).String())
	}
	var batch strings.Builder
	var wait sync.WaitGroup
	for i := range nodes {
		fmt.Fprintf(&batch, "addr add %s/32 dev lo\n", crowdAddress(i))
		wait.Go(func() { rig.create(machine(crowdNode(i), crowdAddress(i).String()+"/16")) })
	}
	wait.Wait()
	if _, err := rig.lab.Fabric.Exec(t.Context(), netlab.Cmd{Args: []string{"ip", "-batch", "-"}, Stdin: batch.String()}); err != nil {
		t.Fatal(err)
	}
	p := rig.start(rig.lab.Fabric, "crowd", &crowd{Store: rig.options(), Dir: filepath.Join(rig.dir, "crowd"), Nodes: nodes})
	select {
	case <-p.Done():
	case <-time.After(110 * time.Minute):
		t.Fatal("the nodes do not settle")
	}
	out := p.Output()
	if err := json.Unmarshal([]byte(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:]), &r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	t.Logf("%d nodes: %+v", nodes, r)
	return r
}

// TestBenchCrowd: 1,000 nodes settle behind reflectors, and a new block costs each of
// them next to nothing.
func TestBenchCrowd(t *testing.T) {
	const nodes = 1000
	r := simulate(t, nodes)
	fmt.Printf("\n%-52s %12s %12s\n", "1,000 speakers in one process", "netctl", "limit")
	for _, row := range []struct {
		what            string
		measured, limit float64
		unit            string
	}{
		{"CPU of each from the start to every route", r.CPU * 1000 / nodes, 300, "ms"},
		{"reflectors", float64(r.Reflectors), 2, ""},
		{"sessions of a node that is none", float64(r.OfOne), 2, ""},
		{"sessions in all", float64(r.Sessions), 2*(nodes-2) + 1, ""},
		{"one new block: CPU of each node", r.Block, 1, "ms"},
		{"resident memory of each node", r.RSS / nodes, 10, "MiB"},
	} {
		verdict := ""
		if row.measured > row.limit {
			verdict = "  OVER"
			t.Errorf("%s: %.2f is over %.2f", row.what, row.measured, row.limit)
		}
		fmt.Printf("%-52s %9.2f %-3s %9.2f %-3s%s\n", row.what, row.measured, row.unit, row.limit, row.unit, verdict)
	}
}
