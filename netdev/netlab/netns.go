package netlab

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Netns is a bare network namespace for a test that needs no lab; `ip netns`
// knows it too.
type Netns struct {
	Name string
	t    TB
}

// NetnsForTest makes a namespace with its loopback up; it is removed when the
// test ends.
func NetnsForTest(t TB) *Netns {
	t.Helper()
	n := &Netns{fmt.Sprintf("nctl%d-%s", os.Getpid(), rand.Text()[:6]), t}
	path := n.Path()
	if err := os.MkdirAll(netnsFolder, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	if err := nameNetns(path); err != nil {
		t.Fatalf("namespace %s: %v", n.Name, err)
	}
	t.Cleanup(func() {
		if err := removeNetns(path); err != nil {
			t.Errorf("%v", err)
		}
	})
	n.Run("ip", "link", "set", "lo", "up")
	return n
}

// Path is the namespace's file.
func (n *Netns) Path() string { return netnsFolder + "/" + n.Name }

// Command is a command that runs in the namespace.
func (n *Netns) Command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + n.Path(), "--"}, args...)...)
}

// Run runs a command in the namespace and returns what it prints; the test ends
// if it fails.
func (n *Netns) Run(args ...string) string {
	n.t.Helper()
	out, err := n.Command(args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %s: %v\n%s", n.Name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Do runs f on a thread inside the namespace.
func (n *Netns) Do(f func()) {
	n.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		fd, err := os.Open(n.Path())
		if err == nil {
			err = unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET)
			fd.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		n.t.Fatalf("enter %s: %v", n.Name, err)
	}
}
