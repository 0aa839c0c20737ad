//go:build bench

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev/netlab"
)

// child starts this test's binary as a role, in a network namespace if there is one.
func child(t *testing.T, ns *netlab.Netns, role string, conf map[string]any) (pid int) {
	t.Helper()
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(own(t))
	if ns != nil {
		cmd = ns.Command(own(t))
	}
	cmd.Env = append(os.Environ(), roleEnv+"="+role, confEnv+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(t.TempDir(), role+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		log.Close()
		if text, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("%s:\n%s", role, text[:min(len(text), 4000)])
		}
	})
	return cmd.Process.Pid
}

// cpuOf is what all threads of a process have run.
func cpuOf(t *testing.T, pid int) (sum time.Duration) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads of %d: %v", pid, err)
	}
	for _, f := range files {
		var ran int64
		if text, err := os.ReadFile(f); err == nil { // else the thread has ended
			if _, err := fmt.Sscan(string(text), &ran); err != nil {
				t.Fatal(err)
			}
		}
		sum += time.Duration(ran)
	}
	return sum
}

// TestBenchCluster runs one node in a cluster of 1,000 nodes with 100,000 endpoints and
// 1,000 profiles, and measures what it costs this node: the agent in this process, on
// fakes of the kernel, its speaker in another one, in a network namespace, and the
// datastore, a real etcd, in a third.
func TestBenchCluster(t *testing.T) {
	const nodes, each, profiles, events = 1000, 100, 1000, 200
	w := newWorld(t)
	w.log = slog.New(slog.DiscardHandler)
	dir := t.TempDir()
	socket := filepath.Join(dir, "closed", "etcd.sock")
	child(t, nil, "datastore", map[string]any{"Node": "store", "StateDir": filepath.Join(dir, "etcd"), "Socket": socket, "PeerURL": "https://" + netlab.FreeAddress(t)})
	endpoints := []string{"unix://" + socket}
	netlab.Until(t, time.Minute, "the datastore answers", func() string {
		if w.etcd == nil {
			s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: endpoints})
			if err != nil {
				return err.Error()
			}
			t.Cleanup(func() { s.Close() })
			w.etcd = s
		}
		if _, err := w.etcd.List(t.Context(), datastore.ClusterKey); err != nil {
			return err.Error()
		}
		return ""
	})
	var t0 datastore.Txn
	flush := func() {
		if len(t0.Then) > 0 {
			if _, err := w.db().Commit(t.Context(), t0); err != nil {
				t.Fatal(err)
			}
		}
		t0 = datastore.Txn{}
	}
	put := func(o datastore.Object) {
		o.SetDefaults()
		_, op, err := datastore.OpPut(o)
		if err != nil {
			t.Fatal(err)
		}
		if t0.Then = append(t0.Then, op); len(t0.Then) == datastore.MaxTxnOps {
			flush()
		}
	}
	w.pool("10.0.0.0/8")
	for i := range profiles {
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("p", i)}})
	}
	at := netip.MustParseAddr("10.0.0.0")
	for i := range nodes {
		name := fmt.Sprint("other", i)
		put(&datastore.Node{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 16)}}})
		for j := range each {
			if j%50 == 0 {
				b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.PrefixFrom(at, 26), Affinity: name}}
				a := at
				for o := range 50 {
					b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: o, Node: name, Workload: fmt.Sprint("w", j+o),
						Handle: datastore.EndpointName(name, "cni", fmt.Sprint("w", j+o), "eth0"), Time: time.Unix(1700000000, 0)})
				}
				put(b)
				for o := range 50 {
					put(remote(name, fmt.Sprint("w", j+o), a, fmt.Sprint("p", (i*each+j+o)%profiles)))
					a = a.Next()
				}
				at = netip.AddrFrom4([4]byte{10, byte((i*2 + j/50 + 1) >> 10), byte((i*2 + j/50 + 1) >> 2), byte((i*2 + j/50 + 1) << 6)})
			}
		}
	}
	flush()
	heap := func() float64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / (1 << 20)
	}
	cpu := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before, began := heap(), time.Now()
	w.start()
	w.ready()
	start, live := time.Since(began), heap()-before

	ns := netlab.NetnsForTest(t)
	ns.Run("ip", "link", "set", "lo", "up")
	run := filepath.Join(dir, "run")
	began = time.Now()
	speaker := child(t, ns, "speaker", map[string]any{"Node": "n1", "StateDir": w.cfg.StateDir, "RunDir": run, "Store": map[string]any{"Endpoints": endpoints}})
	client := control.NewSpeakerClient(filepath.Join(run, "speaker.sock"))
	netlab.Until(t, time.Minute, "the speaker has its peers", func() string {
		s, err := client.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		if len(s.Sessions) != nodes {
			return fmt.Sprintf("%d sessions", len(s.Sessions))
		}
		return ""
	})
	meshed := time.Since(began)

	// measure has others make events, and returns milliseconds of the agent's and of the
	// speaker's CPU for each. What this process pays for the writing is left out, and
	// what the speaker pays for dialling peers that are not there in as long a time.
	measure := func(make func(i int) datastore.Object) (agent, peers float64) {
		write := func(s datastore.Store) time.Duration {
			from := cpu()
			for i := range events {
				if err := datastore.Create(t.Context(), s, make(i)); err != nil {
					t.Fatal(err)
				}
			}
			if s == w.db() {
				w.settled()
			}
			return cpu() - from
		}
		w.settled()
		runtime.GC()
		alone := write(scratch{w.db()}) // what writing costs, which others do
		idle, from := cpuOf(t, speaker), time.Now()
		<-time.After(2 * time.Second)
		idle = cpuOf(t, speaker) - idle
		rate := float64(idle) / float64(time.Since(from))
		w.settled()
		before, from := cpuOf(t, speaker), time.Now()
		used := write(w.db())
		ran := float64(cpuOf(t, speaker)-before) - rate*float64(time.Since(from))
		each := func(ns float64) float64 { return ns / events / 1e6 }
		return each(float64(used - alone)), each(ran)
	}
	free := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 200, byte(i >> 2), byte(i << 6)}) }
	block, blockPeers := measure(func(i int) datastore.Object {
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.PrefixFrom(free(i), 26), Affinity: "other1"}}
		b.SetDefaults()
		return b
	})
	elsewhere, elsewherePeers := measure(func(i int) datastore.Object {
		e := remote("other2", fmt.Sprint("new", i), free(i), "p7")
		e.SetDefaults()
		return e
	})
	for _, r := range []struct {
		what     string
		got, may float64
		unit     string
	}{
		{"start of one agent until ready", start.Seconds(), 3, "s"},
		{"  its live memory", live, 120, "MiB"},
		{"start of its speaker until all peers are configured", meshed.Seconds(), 3, "s"},
		{"one new block elsewhere, CPU of both", max(0, block) + max(0, blockPeers), 1, "ms"},
		{"  of that the speaker", blockPeers, 1, "ms"},
		{"one attach elsewhere, CPU of both", max(0, elsewhere) + max(0, elsewherePeers), 0.1, "ms"},
		{"  of that the speaker", elsewherePeers, 0.1, "ms"},
	} {
		over := ""
		if r.got > r.may {
			over = "  OVER"
			t.Errorf("%s: %.2f %s is over %.1f", r.what, r.got, r.unit, r.may)
		}
		fmt.Printf("%-52s %9.3f %-3s %9.2f %-3s  limit%s\n", r.what, r.got, r.unit, r.may, r.unit, over)
	}
}

// scratch writes beside what is followed.
type scratch struct{ datastore.Store }

// Commit implements datastore.Store.
func (s scratch) Commit(ctx context.Context, txn datastore.Txn) (int64, error) {
	moved := datastore.Txn{}
	for _, c := range txn.If {
		c.Key = "/scratch" + c.Key
		moved.If = append(moved.If, c)
	}
	for _, o := range txn.Then {
		o.Key = "/scratch" + o.Key
		moved.Then = append(moved.Then, o)
	}
	return s.Store.Commit(ctx, moved)
}
