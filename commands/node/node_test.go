package node

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
)

// childDir, if set, makes this binary a role of the tests: it notes its start and
// its end in that folder. The role "dying" ends at once, "synced" when it has said that
// it is in sync; "hanging" gives one sign of life; "top" is a supervisor of the role "steady".
const childDir = "NETCTL_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	role := strings.TrimPrefix(os.Args[0], "netctl-")
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, unix.SIGTERM)
	note(dir, "start", role, os.Getpid())
	switch role {
	case "dying":
		os.Exit(1)
	case "synced":
		control.NewService(slog.New(slog.DiscardHandler)).Synced()
		os.Exit(1)
	case "hanging": // after a sign of life; what the runtime writes at its end is of no interest
		os.Stderr.Close()
		service := control.NewService(slog.New(slog.DiscardHandler))
		service.Synced()
		go func() { _ = service.Run(context.Background(), nil) }()
	case "top":
		err := Run(context.Background(), config(dir, os.Stderr, "steady"), slog.New(slog.DiscardHandler))
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	<-terminated
	note(dir, "end", role, os.Getpid())
}

func config(dir string, output *os.File, roles ...string) Config {
	return Config{Roles: roles, Executable: "/proc/self/exe", Output: output,
		Env: append(os.Environ(), childDir+"="+dir, control.SupervisorVariable+"="+strconv.Itoa(os.Getpid()))}
}

// note appends a line to the folder's journal.
func note(dir, what, role string, pid int) {
	f, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(f, "%s %s %d\n", what, role, pid)
		f.Close()
	}
	if err != nil {
		panic(err)
	}
}

// journal is the lines so far that begin with the given words.
func journal(t *testing.T, dir, prefix string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// pidOf is the process of the role's last start.
func pidOf(t *testing.T, dir, role string) int {
	t.Helper()
	starts := journal(t, dir, "start "+role+" ")
	if len(starts) == 0 {
		t.Fatalf("%s never started", role)
	}
	pid, err := strconv.Atoi(starts[len(starts)-1][len("start "+role+" "):])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestRolesAreApart kills each role in turn: it comes back, the others do not
// notice; in the end all end, the last one first.
func TestRolesAreApart(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error)
	roles := []string{"store", "agent", "speaker"}
	go func() {
		ended <- Run(ctx, config(dir, os.Stderr, roles...), slog.New(slog.DiscardHandler))
	}()
	until(t, "three roles run", func() bool { return len(journal(t, dir, "start ")) == 3 })
	for _, role := range roles {
		before := map[string]int{}
		for _, r := range roles {
			before[r] = pidOf(t, dir, r)
		}
		if err := unix.Kill(before[role], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		until(t, role+" started again", func() bool { return pidOf(t, dir, role) != before[role] })
		for _, r := range roles {
			if r != role && (pidOf(t, dir, r) != before[r] || unix.Kill(before[r], 0) != nil) {
				t.Errorf("killing the %s ended the %s too", role, r)
			}
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var order []string
	for _, line := range journal(t, dir, "end ") {
		order = append(order, strings.Fields(line)[1])
	}
	if want := []string{"speaker", "agent", "store"}; !slices.Equal(order, want) {
		t.Errorf("ended in order %v, want %v", order, want)
	}
}

// TestEndWhileWaiting ends a supervisor whose only role does not stay up.
func TestEndWhileWaiting(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- Run(ctx, config(dir, os.Stderr, "dying"), slog.New(slog.DiscardHandler)) }()
	until(t, "two starts", func() bool { return len(journal(t, dir, "start dying")) >= 2 })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestChildrenEndWithTheSupervisor kills the supervisor itself.
func TestChildrenEndWithTheSupervisor(t *testing.T) {
	dir := t.TempDir()
	top := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"netctl-top"}, Env: append(os.Environ(), childDir+"="+dir), Stderr: os.Stderr}
	if err := top.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the child runs", func() bool { return len(journal(t, dir, "start steady")) == 1 })
	if err := top.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = top.Wait()
	until(t, "the child ended", func() bool { return len(journal(t, dir, "end steady")) == 1 })
}

// TestSynced: the supervisor hears of a role that it was in sync, and does not wait
// for it to say so.
func TestSynced(t *testing.T) {
	for role, want := range map[string]bool{"synced": true, "dying": false} {
		told := false
		s := supervisor{cfg: config(t.TempDir(), os.Stderr, role), role: role, log: slog.New(slog.DiscardHandler), synced: func() { told = true }}
		synced, err := s.once()
		if synced != want || told && !want || err == nil || err.Error() != "exit status 1" {
			t.Errorf("%s: in sync %v, %v", role, synced, err)
		}
	}
}

// TestHanging: a role without signs of life is ended and started again; all were in
// sync before.
func TestHanging(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ended, ready := make(chan error), make(chan struct{})
	cfg := config(dir, os.Stderr, "hanging")
	cfg.Watchdog, cfg.Ready = 100*time.Millisecond, func() { close(ready) }
	go func() { ended <- Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	<-ready
	until(t, "two starts", func() bool { return len(journal(t, dir, "start hanging")) >= 2 })
	if n := len(journal(t, dir, "end hanging")); n != 0 {
		t.Errorf("%d ends by SIGTERM: SIGQUIT tells where it hangs", n)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestBackoff(t *testing.T) {
	for _, c := range []struct {
		role   string
		synced int // before which end it was in sync; 0: never
		want   []time.Duration
	}{
		{"agent", 0, []time.Duration{0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480, 30000, 30000}},
		{"agent", 1, []time.Duration{0, 10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000}},
		{"agent", 11, []time.Duration{0, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 2000, 2000}},
		{"speaker", 0, []time.Duration{0, 10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000}},
	} {
		b := newBackoff(c.role)
		for i, want := range c.want {
			if got := b.after(syncedReset-time.Millisecond, i+1 == c.synced); got != want*time.Millisecond {
				t.Errorf("%s, in sync before end %d, end %d: wait %s, want %d ms", c.role, c.synced, i+1, got, want)
			}
		}
		if got := b.after(backoffReset, false); got != 0 {
			t.Errorf("%s: wait %s after a long run", c.role, got)
		}
		b.after(0, true)
		if got := b.after(syncedReset, false); got == 0 {
			t.Errorf("%s: no wait after a short run out of sync", c.role)
		}
		if got := b.after(syncedReset, true); got != 0 {
			t.Errorf("%s: wait %s for who was in sync and was ended", c.role, got)
		}
	}
}

func TestNoRoles(t *testing.T) {
	if err := Run(t.Context(), Config{}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "roles: [") {
		t.Errorf("got %v, want what to set", err)
	}
}
