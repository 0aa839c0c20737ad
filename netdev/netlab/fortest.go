package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// TB is what this package needs of a testing.TB.
type TB interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Logf(format string, args ...any)
	TempDir() string
	Context() context.Context
	Failed() bool
}

// ForTest makes a lab that is removed when the test ends. Without o.Dir it lies in
// the test's temporary folder, without o.Nodes it has two. When the test failed,
// the logs of what was started in the hosts are printed.
func ForTest(t TB, o Options) *Lab {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "lab")
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	l, err := New(o)
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.printLogs(t)
		}
		if err := l.Remove(); err != nil {
			t.Errorf("%v", err)
		}
	})
	return l
}

func (l *Lab) printLogs(t TB) {
	const most = 8000
	logs, _ := filepath.Glob(filepath.Join(l.Dir, "*", "log", "*.log"))
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if len(b) > most {
			b = append([]byte("…"), b[len(b)-most:]...)
		}
		rel, _ := filepath.Rel(l.Dir, name)
		t.Logf("--- %s ---\n%s", rel, b)
	}
}

// Must runs a command in a place and returns its output; the test ends if it
// fails or takes longer than a minute.
func Must(t TB, p Place, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := p.Exec(ctx, Cmd{Args: args})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// Try is Must for a command that may fail; it returns stdout, or the *ExecError
// of the command. Any other error ends the test.
func Try(t TB, p Place, args ...string) (string, *ExecError) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := p.Exec(ctx, Cmd{Args: args})
	var failed *ExecError
	if err != nil && !errors.As(err, &failed) {
		t.Fatalf("%v", err)
	}
	return out, failed
}

// Until waits until ok returns "", and ends the test with its last answer when
// that takes longer than d.
func Until(t TB, d time.Duration, what string, ok func() string) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		not := ok()
		if not == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, d, not)
		}
		pause(20 * time.Millisecond)
	}
}

// Attached is a new container with an endpoint in the given network, wired by the
// CNI plugin; args is CNI_ARGS (e.g. "IP=10.0.0.48"). It is detached and removed
// when the test ends.
func Attached(t TB, h *Host, name, network, args string) *Container {
	t.Helper()
	c, err := h.Container(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	conf := Conf(network)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := c.CNI(ctx, "DEL", conf, args); err != nil {
			t.Logf("container %s: DEL: %v", name, err)
		}
		if err := c.Remove(); err != nil {
			t.Errorf("container %s: %v", name, err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.CNI(ctx, "ADD", conf, args); err != nil {
		t.Fatalf("container %s: ADD: %v", name, err)
	}
	return c
}

// Conf is a CNI configuration of one network.
func Conf(network string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"type":"netctl"}`, network)
}

// Binary is the netctl to test: NETCTL_BINARY, or one built from this source, once
// per process. What processes that are gone built is removed.
func Binary(t TB) string {
	t.Helper()
	if path := os.Getenv("NETCTL_BINARY"); path != "" {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatalf("NETCTL_BINARY: %v", err)
		}
		return path
	}
	return built(t, "netctl", "netctl")
}

// Older is netctl as it was at the last tag before this source, or at the commit that
// NETCTL_OLDER names, built once per process. Without either the test is skipped.
func Older(t interface {
	TB
	Name() string
	Skip(why ...any)
}) string {
	t.Helper()
	ref := os.Getenv("NETCTL_OLDER")
	if ref == "" {
		tag, err := exec.Command("git", "describe", "--tags", "--abbrev=0", "HEAD^").Output()
		if ref = strings.TrimSpace(string(tag)); err != nil || ref == "" {
			const why = "the repository has no tag: there is no older netctl to go on from (NETCTL_OLDER=COMMIT is one)"
			fmt.Printf("skipped: %s: %s\n", t.Name(), why)
			t.Skip(why)
		}
	}
	root, err := exec.Command("git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		t.Fatalf("git: %v", err)
	}
	dir := t.TempDir()
	binary := filepath.Join(dir, "netctl")
	cmd := exec.Command("sh", "-ec", `git archive "$1" | tar -x -C "$2"; cd "$2"; go build -trimpath -buildvcs=false -o "$3" .`, "sh", ref, dir, binary)
	cmd.Dir = strings.TrimSpace(string(root)) // git archive is of the folder that it is in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("netctl at %s: %v\n%s", ref, err, out)
	}
	t.Logf("older: netctl at %s", ref)
	return binary
}

// Becomes makes a program the netctl of a host, for commands and runtimes; what runs stays.
func (h *Host) Becomes(binary string) error {
	for _, link := range []string{"/opt/cni/bin/netctl", toolFolder + "/netctl"} {
		if err := os.Remove(h.Path(link)); err != nil {
			return err
		}
		if err := os.Symlink(binary, h.Path(link)); err != nil {
			return err
		}
	}
	return nil
}

// Plugin is the program for container runtimes, built from this source once per process.
func Plugin(t TB) string {
	t.Helper()
	return built(t, "plugin", "netctl/commands/plugin")
}

// built is a program of this source, in a folder that later processes remove.
func built(t TB, program, pkg string) string {
	t.Helper()
	const name = "netctl-test-"
	sweep(name)
	dir := filepath.Join(os.TempDir(), name+strconv.Itoa(os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatalf("binary: %v", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatalf("binary: %v", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatalf("binary: lock: %v", err)
	}
	path := filepath.Join(dir, program)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", path, pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// sweep removes the folders prefix<PID> whose process is gone.
func sweep(prefix string) {
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), prefix))
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = os.RemoveAll(dir)
		}
	}
}

// FreeAddress is a TCP address of the loopback that nobody listens on.
func FreeAddress(t TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer l.Close()
	return l.Addr().String()
}
