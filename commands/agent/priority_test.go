package agent

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHurry: every thread of the process has the priority, and its session where that is
// its own.
func TestHurry(t *testing.T) {
	const child = "NETCTL_TEST_HURRY"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHurry$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
		return
	}
	if err := hurry(); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, thread := range threads {
		id, _ := strconv.Atoi(thread.Name())
		// The system call's answer is 20 minus the priority (getpriority(2)).
		if got, err := unix.Getpriority(unix.PRIO_PROCESS, id); err != nil || 20-got != nice {
			t.Errorf("thread %d has %d, want %d: %v", id, 20-got, nice, err)
		}
	}
	if group, err := os.ReadFile("/proc/self/autogroup"); err == nil && !strings.HasSuffix(strings.TrimSpace(string(group)), " nice "+strconv.Itoa(nice)) {
		t.Errorf("the session has %q", group)
	}
}
