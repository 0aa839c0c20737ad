package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/retry"
	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/netdev/kernel"
)

func TestPendingDetachComesFirst(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	if got := w.endpoints(); len(got) != 0 {
		t.Errorf("serving with %v", got)
	}
	if left, err := control.ReadPending(w.cfg.pendingDir()); len(left) != 0 || err != nil {
		t.Errorf("pending: %v, %v", left, err)
	}
}

// TestDetachCutOffBeforeItsEnd: an agent that ended between giving the addresses back
// and removing the record has the record removed by the detach that comes again.
func TestDetachCutOffBeforeItsEnd(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	records := func() []string {
		files, err := filepath.Glob(filepath.Join(w.cfg.recordsDir(), "*"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}
	w.mustAttach("c1", "web", 101)
	files := records()
	if len(files) != 1 {
		t.Fatalf("records %v", files)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.detach("c1"), w.stop(), os.WriteFile(files[0], text, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	if left := records(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// fullStore is a datastore that takes no writes while it is full.
type fullStore struct {
	datastore.Store
	full *atomic.Bool
}

func (s fullStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if s.full.Load() {
		return 0, fmt.Errorf("write: %w", datastore.ErrFull)
	}
	return s.Store.Commit(ctx, t)
}

// TestPendingDetachIsTriedAgain: a detach that the full datastore refused is finished
// when there is room again, of itself and with the next write.
func TestPendingDetachIsTriedAgain(t *testing.T) {
	for _, by := range []string{"time", "write"} {
		t.Run(by, func(t *testing.T) {
			w := newWorld(t)
			full := &atomic.Bool{}
			w.wrap = func(s datastore.Store) datastore.Store { return fullStore{s, full} }
			w.pool("10.0.0.0/24")
			w.start()
			w.mustAttach("c1", "web", 101)
			w.mustAttach("c2", "web", 102)
			full.Store(true)
			if err := w.detach("c1"); !errors.Is(err, datastore.ErrFull) {
				t.Fatal(err)
			}
			if by == "write" { // time does not help
				_ = w.a.loop.do(t.Context(), func() { w.a.loop.problems.again = retry.New(time.Hour, time.Hour, func() {}) })
			}
			if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}}); err != nil {
				t.Fatal(err)
			}
			w.until(func() string {
				if text := strings.Join(w.status().Problems, "\n"); !strings.Contains(text, "datastore full") {
					return "problems: " + text
				}
				return ""
			})
			// It is one problem, not also that the link is gone.
			if p := w.status().Problems; len(p) != 1 || strings.Count(p[0], "pending") != 2 { // the folder is called so, too
				t.Errorf("problems: %q", p)
			}
			if by == "time" { // writes, of a report say, do not help
				w.a.detaches.left.Store(false)
			}
			full.Store(false)
			if by == "write" {
				if err := w.detach("c2"); err != nil {
					t.Fatal(err)
				}
			}
			w.until(func() string {
				left, err := control.ReadPending(w.cfg.pendingDir())
				if held := w.holders(); err != nil || len(left) > 0 || by == "write" && len(held) > 0 || len(held) > 1 {
					return fmt.Sprintf("pending %v, %v; held by %v", left, err, held)
				}
				if text := strings.Join(w.status().Problems, "\n"); strings.Contains(text, "pending") {
					return "problems: " + text
				}
				return ""
			})
		})
	}
}

// TestFilesComeBack takes a running agent's files away: its records, which make a
// repeated ADD the same, the folder where plugins leave detaches, and the host's ID,
// without which its node would be another host's after the next start.
func TestFilesComeBack(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	first := w.mustAttach("c1", "web", 101)
	w.mustAttach("c2", "web", 102)
	if err := w.detach("c2"); err != nil {
		t.Fatal(err)
	}
	files := []string{filepath.Join(w.cfg.recordsDir(), first.Link+".json"), filepath.Join(w.cfg.StateDir, hostIDFile), w.cfg.debtFile()}
	w.a.loop.filtering.debt.owe() // and is not cut yet
	before := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		before[f] = string(text)
	}
	remove := func() (err error) {
		entries, err := filepath.Glob(filepath.Join(w.cfg.RunDir, "*"))
		for _, e := range append(entries, files[1:]...) {
			err = errors.Join(err, os.RemoveAll(e))
		}
		if err != nil && strings.Contains(err.Error(), "not empty") {
			return nil
		}
		return err
	}
	cut := func() (err error) { // in place
		for _, f := range files[:2] {
			err = errors.Join(err, os.WriteFile(f, []byte("{"), 0o600))
		}
		return err
	}
	replace := func() (err error) {
		for _, f := range files[:2] {
			err = errors.Join(err, os.WriteFile(f+".other", []byte("{}"), 0o600), os.Rename(f+".other", f))
		}
		return err
	}
	for _, hand := range []func() error{remove, remove, cut, replace, remove, cut} {
		if err := hand(); err != nil {
			t.Fatal(err)
		}
		w.until(func() string {
			for f, want := range before {
				if text, err := os.ReadFile(f); err != nil || string(text) != want {
					return fmt.Sprintf("%s: %q, %v", f, text, err)
				}
			}
			return ""
		})
	}
	if got := w.records(); len(got) != 1 {
		t.Errorf("records %v: that of an endpoint that was detached came back", got)
	}
	if again := w.mustAttach("c1", "web", 101); again.Link != first.Link || again.MAC != first.MAC {
		t.Errorf("attached again as %+v, was %+v", again, first)
	}
	// A detach that is stored now is still seen.
	if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}}); err != nil {
		t.Fatal(err)
	}
	w.until(func() string { return strings.Join(w.endpoints(), " ") })
}

// TestEndWritesIdentity: what the agent saw last of the datastore is on the disk when
// it has ended.
func TestEndWritesIdentity(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Node: "n1", StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), BootIDFile: kernel.BootIDFile}
	if err := cfg.finish(); err != nil {
		t.Fatal(err)
	}
	a := &agent{cfg: cfg, log: slog.New(slog.DiscardHandler), state: control.Keep(cfg.StateDir, datastore.FileOptions{})}
	if err := a.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.guard.Check(t.Context(), memory.New(), datastore.Snapshot{Revision: 1}); err != nil {
		t.Fatal(err)
	}
	a.guard.Progress(4711)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(cfg.StateDir, "cluster.json"))
	if err != nil || !strings.Contains(string(text), "4711") {
		t.Errorf("%s, %v", text, err)
	}
}

// TestDetachWhileTheAgentStarts: who cannot wait for the datastore is told so, and
// the interface is out of service.
func TestDetachWhileTheAgentStarts(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101)
	_ = w.a.loop.do(t.Context(), func() { w.a.loop.standing.stage = starting })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := w.api.detach(ctx, control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}})
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "the agent starts") {
		t.Errorf("got %v", err)
	}
	w.until(func() string {
		if text := w.links.String(); strings.Contains(text, a.Link) {
			return text
		}
		return ""
	})
}

// TestAttachAfterAPendingDetach: a container that is started again while its detach is
// still to be worked off keeps what it is given, whoever comes first.
func TestAttachAfterAPendingDetach(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	for try := range 20 {
		id := fmt.Sprint("c", try)
		target := control.Target{Orchestrator: "cni", Workload: id, Interface: "eth0"}
		w.mustAttach(id, "web", 100+2*try)
		if try%2 == 0 {
			target.Interface = "" // of all its interfaces
		}
		w.a.detaches.turn <- struct{}{} // so that both wait
		if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: target}); err != nil {
			t.Fatal(err)
		}
		attached := make(chan error, 1)
		go func() {
			_, err := w.attach(id, "web", 101+2*try)
			attached <- err
		}()
		<-w.a.detaches.turn
		if err := <-attached; err != nil {
			t.Fatal(err)
		}
		if err := w.a.detaches.workOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.endpoints(); len(got) != 20 {
		t.Errorf("%d endpoints: %v", len(got), got)
	}
}

// TestAttachWhileTheStoreIsBack: an attach bears with a datastore that is away for a
// moment, and does without one that has been away for long.
func TestAttachWhileTheStoreIsBack(t *testing.T) {
	w := newWorld(t)
	down := &atomic.Int64{}
	w.wrap = func(s datastore.Store) datastore.Store { return downStore{s, down} }
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	down.Store(3)
	w.mustAttach("c1", "web", 101)
	why := fmt.Errorf("list: %w: refused", datastore.ErrUnavailable)
	_ = w.a.loop.do(t.Context(), func() {
		w.a.loop.standing.part(why)
		w.a.loop.standing.since = time.Now().Add(-storePatience)
		w.a.loop.standing.part(why) // once more: it is away since the first time
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	_, err := w.api.attach(ctx, control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c2", Interface: "eth0"}, NetnsFD: 102})
	if st := w.status(); err != nil || st.Waiting != 1 {
		t.Errorf("got %v, %+v", err, st)
	}
}

// downStore does not answer so many times.
type downStore struct {
	datastore.Store
	times *atomic.Int64
}

func (s downStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if s.times.Add(-1) >= 0 {
		return 0, fmt.Errorf("write: %w", datastore.ErrUnavailable)
	}
	return s.Store.Commit(ctx, t)
}
