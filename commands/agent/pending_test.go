package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"netctl/commands/control"
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
