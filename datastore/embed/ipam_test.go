package embed_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/ipam"
)

const (
	workers  = 16
	nodes    = 8 // two processes for each
	kills    = 40
	perKill  = 60                   // operations of all workers between two kills
	mostHeld = 9                    // of a worker; together more than there are
	workEnv  = "NETCTL_IPAM_WORKER" // "slot socket folder"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(workEnv); job != "" {
		if err := work(context.Background(), strings.Fields(job)); err != nil {
			fmt.Println("FAIL", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestAllocatingProcesses lets 16 processes allocate and release at random, kills them at
// random and starts them again. That no address is held twice is not judged by
// the store: who holds an address holds a file of its name.
func TestAllocatingProcesses(t *testing.T) {
	server := config(t)
	run(t, server)
	store, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + server.Socket}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/25"), BlockSize: 29}}
	create(t, store, p)
	for i := range nodes {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: nodeOf(i)}}
		n.Spec.Addresses = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 24)}
		create(t, store, n)
	}
	held := filepath.Join(t.TempDir(), "held")
	if err := os.Mkdir(held, 0o700); err != nil {
		t.Fatal(err)
	}
	c := &crowd{t: t, socket: server.Socket, held: held, failed: make(chan string, workers), step: make(chan struct{}, 1)}
	for slot := range workers {
		c.start(slot)
	}
	for range kills {
		c.wait(perKill)
		slot := rand.IntN(workers)
		c.kill(slot)
		c.start(slot)
	}
	c.wait(perKill)
	for slot := range workers {
		c.kill(slot)
	}
	verify(t, store, held)
}

// verify compares files, blocks and endpoints when every worker is dead.
func verify(t *testing.T, store datastore.Store, held string) {
	t.Helper()
	before, err := ipam.Repair(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	leaked := 0
	for _, f := range before.Findings {
		if f.Problem != ipam.Leaked || !f.Repaired {
			t.Errorf("after the kills: %+v", f)
		}
		leaked++
	}
	after, err := ipam.Check(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Findings) > 0 {
		t.Errorf("after repair: %+v", after.Findings)
	}
	files, err := os.ReadDir(held)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		handle, err := os.Readlink(filepath.Join(held, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		i, err := ipam.Info(t.Context(), store, netip.MustParseAddr(f.Name()))
		if err != nil || i.Allocation == nil || i.Allocation.Handle != handle {
			t.Errorf("%s is used by %s; the store says %+v, %v", f.Name(), handle, i.Allocation, err)
		}
	}
	t.Logf("%d addresses held, %d of them allocated a moment before the kill, %d leaked and released", after.Addresses, after.Addresses-len(files), leaked)
}

func create(t *testing.T, s datastore.Store, o datastore.Object) {
	t.Helper()
	o.SetDefaults()
	if err := datastore.Create(t.Context(), s, o); err != nil {
		t.Fatal(err)
	}
}

func nodeOf(slot int) string { return "n" + strconv.Itoa(slot%nodes) }

// crowd is the running workers.
type crowd struct {
	t            *testing.T
	socket, held string
	running      [workers]*exec.Cmd
	ops          atomic.Int64
	step         chan struct{}
	failed       chan string
}

func (c *crowd) start(slot int) {
	c.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", workEnv, slot, c.socket, c.held))
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.running[slot] = cmd
	c.t.Cleanup(func() { _ = cmd.Process.Kill() })
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if text, bad := strings.CutPrefix(lines.Text(), "FAIL "); bad {
				c.failed <- fmt.Sprintf("worker %d: %s", slot, text)
				return
			}
			c.ops.Add(1)
			select {
			case c.step <- struct{}{}:
			default:
			}
		}
	}()
}

func (c *crowd) kill(slot int) {
	_ = c.running[slot].Process.Kill()
	_ = c.running[slot].Wait()
}

// wait returns when the workers have done n more operations.
func (c *crowd) wait(n int64) {
	c.t.Helper()
	until := c.ops.Load() + n
	deadline := time.After(patience)
	for c.ops.Load() < until {
		select {
		case <-c.step:
		case text := <-c.failed:
			c.t.Fatal(text)
		case <-deadline:
			c.t.Fatalf("only %d operations, waiting for %d", c.ops.Load(), until)
		}
	}
}

// worker is one process: an agent in small.
type worker struct {
	slot  int
	dir   string
	store datastore.Store
	alloc *ipam.Allocator
	has   map[string]netip.Addr // by endpoint name
}

func work(ctx context.Context, job []string) error {
	slot, err := strconv.Atoi(job[0])
	if err != nil {
		return err
	}
	store, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + job[1]}})
	if err != nil {
		return err
	}
	w := &worker{slot: slot, dir: job[2], store: store, has: map[string]netip.Addr{}}
	cfg := ipam.Config{Node: nodeOf(slot), Store: store, Boot: nodeOf(slot)}
	if slot%4 != 0 { // most work on a view, which lags behind
		if cfg.Index, err = follow(ctx, store); err != nil {
			return err
		}
	}
	w.alloc = ipam.New(cfg)
	if err := w.recover(ctx); err != nil {
		return err
	}
	for n := 0; ; n++ {
		if err := w.step(ctx, fmt.Sprintf("%d-%d-%d", slot, os.Getpid(), n)); err != nil {
			return err
		}
		fmt.Println(len(w.has))
	}
}

// follow keeps an index of the store.
func follow(ctx context.Context, store datastore.Store) (*ipam.Index, error) {
	snap, err := store.List(ctx, datastore.Prefix)
	if err != nil {
		return nil, err
	}
	x, v := ipam.NewIndex(nil), datastore.NewView()
	if _, err := v.Replace(snap); err != nil {
		return nil, err
	}
	x.Reset(v)
	go func() {
		err := store.Watch(ctx, []string{datastore.Prefix}, snap.Revision, func(b datastore.Batch) error {
			var changes []datastore.Change
			for _, e := range b.Events {
				c, err := v.Apply(e)
				if err != nil {
					return err
				}
				changes = append(changes, c)
			}
			x.Apply(changes, b.Revision)
			return nil
		})
		fmt.Println("FAIL watch:", err)
		os.Exit(1)
	}()
	return x, nil
}

// recover finds what this slot held when it was killed.
func (w *worker) recover(ctx context.Context) error {
	all, err := datastore.List[*datastore.Endpoint](ctx, w.store)
	if err != nil {
		return err
	}
	for _, ep := range all {
		if strings.HasPrefix(ep.Spec.Workload, strconv.Itoa(w.slot)+"-") {
			if err := w.use(ep.Metadata.Name, ep.Spec.Addresses[0]); err != nil {
				return err
			}
		}
	}
	return nil
}

// use marks the address as in use, which nobody else may have done.
func (w *worker) use(handle string, a netip.Addr) error {
	path := filepath.Join(w.dir, a.String())
	if err := os.Symlink(handle, path); err != nil {
		if other, _ := os.Readlink(path); other != handle {
			return fmt.Errorf("address %s: given to %s while %s has it", a, handle, other)
		}
	}
	w.has[handle] = a
	return nil
}

func (w *worker) step(ctx context.Context, workload string) error {
	names := slices.Sorted(maps.Keys(w.has))
	if len(names) > 0 && (len(names) >= mostHeld || rand.IntN(4) == 0) {
		return w.release(ctx, names[rand.IntN(len(names))])
	}
	ep := &datastore.Endpoint{Spec: datastore.EndpointSpec{Node: nodeOf(w.slot), Orchestrator: "cni", Workload: workload, Interface: "eth0",
		Link: datastore.LinkName("nc", datastore.EndpointName(nodeOf(w.slot), "cni", workload, "eth0"))}}
	ep.SetDefaults()
	req := ipam.Request{Handle: ep.Metadata.Name, Workload: workload}
	if rand.IntN(4) == 0 {
		req.Wants = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(rand.IntN(128))})}
	}
	apart := rand.IntN(10) == 0 // as who writes the endpoint later, and may die before
	if !apart {
		req.Commit = func(addrs []netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
			ep.Spec.Addresses = addrs
			cond, op, err := datastore.OpPut(ep)
			return []datastore.Condition{cond}, []datastore.Op{op}, err
		}
	}
	res, err := w.alloc.Assign(ctx, req)
	switch {
	case errors.Is(err, datastore.ErrInUse) && len(req.Wants) > 0, errors.Is(err, datastore.ErrExhausted):
		return nil
	case err != nil:
		return err
	}
	if apart {
		ep.Spec.Addresses = res.Addresses
		if err := datastore.Create(ctx, w.store, ep); err != nil {
			return err
		}
	}
	return w.use(ep.Metadata.Name, res.Addresses[0])
}

func (w *worker) release(ctx context.Context, name string) error {
	if err := os.Remove(filepath.Join(w.dir, w.has[name].String())); err != nil {
		return err
	}
	var where []netip.Addr
	if rand.IntN(4) > 0 {
		where = []netip.Addr{w.has[name]}
	}
	delete(w.has, name)
	return w.alloc.Release(ctx, name, where, func([]netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
		key, err := datastore.Key(datastore.KindEndpoint, name)
		return nil, []datastore.Op{{Key: key}}, err
	})
}
