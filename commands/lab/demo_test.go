package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// output is what a script wrote so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// demo prepares docs/demo.sh in a process group of its own, as a terminal does.
func demo(t *testing.T) (*exec.Cmd, *output) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	out := &output{}
	cmd := exec.CommandContext(ctx, "bash", "../../docs/demo.sh")
	cmd.Env = append(os.Environ(), "NETCTL="+netlab.Binary(t), "KEEP=")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	return cmd, out
}

// nothingLeft checks for what a demo with this process ID may leave.
func nothingLeft(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	for _, pattern := range []string{"/var/lib/netctl-demo-%d", "/run/netns/demo%d-*"} {
		left, err := filepath.Glob(fmt.Sprintf(pattern, cmd.Process.Pid))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func TestDemo(t *testing.T) {
	cmd, out := demo(t)
	if err := cmd.Run(); err != nil || !strings.HasSuffix(out.String(), "demo: every claim holds\n") {
		t.Fatalf("%v\n%s", err, out)
	}
	nothingLeft(t, cmd)
}

// TestDemoInterrupted presses Ctrl-C in the middle.
func TestDemoInterrupted(t *testing.T) {
	cmd, out := demo(t)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "the first container", func() string {
		if !strings.Contains(out.String(), "CNI_COMMAND=ADD") {
			return "so far: " + out.String()
		}
		return ""
	})
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("%v\n%s", err, out)
	}
	nothingLeft(t, cmd)
}
