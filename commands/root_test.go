package commands

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestAllowFiles: a role raises a limit of open files that is too low, or says which
// it is where it may not. The limit is a process's, so it is one of its own.
func TestAllowFiles(t *testing.T) {
	if os.Getenv("NETCTL_TEST_FILES") == "" {
		self := exec.Command(os.Args[0], "-test.run=^TestAllowFiles$", "-test.v")
		self.Env = append(os.Environ(), "NETCTL_TEST_FILES=1")
		if out, err := self.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestAllowFiles") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 63, Max: 63}); err != nil {
		t.Fatal(err)
	}
	enough, said := allowFiles()
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	if said == nil && now.Cur != openFiles || said != nil && !strings.Contains(said.Error(), "only 63 files") || enough != (said == nil) {
		t.Errorf("said %v with a limit of %d", said, now.Cur)
	}
}
