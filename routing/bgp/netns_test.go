package bgp

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// host is a network namespace that lives as long as its anchor process.
type host struct {
	t   testing.TB
	pid int
}

// newHost makes a namespace without a name; the kernel removes it with the
// anchor, also when the test is killed.
func newHost(t testing.TB) *host {
	t.Helper()
	cmd := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep infinity")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("namespace: %q %v", line, err)
	}
	return &host{t, cmd.Process.Pid}
}

func (h *host) path() string { return fmt.Sprintf("/proc/%d/ns/net", h.pid) }

// command is a command inside the namespace.
func (h *host) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + h.path(), name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// ip runs one ip command.
func (h *host) ip(args string) string {
	h.t.Helper()
	out, err := h.command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		h.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
	return string(out)
}

// wire connects two hosts by eth0 with two addresses each.
func wire(a, b *host, addressesA, addressesB []string) {
	a.ip(fmt.Sprintf("link add eth0 type veth peer name eth0 netns %d", b.pid))
	for h, list := range map[*host][]string{a: addressesA, b: addressesB} {
		for _, address := range list {
			h.ip("addr add " + address + " dev eth0 nodad")
		}
		h.ip("link set eth0 up")
	}
}

// within runs f with the thread in the namespace.
func (h *host) within(f func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(h.path())
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	f()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // the thread must not be used again
	}
	return nil
}

// settle makes a speaker's sockets be opened in the namespace.
func (h *host) settle(s *Speaker) {
	s.dial = func(ctx context.Context, p PeerConfig) (c net.Conn, err error) {
		if e := h.within(func() { c, err = dial(ctx, p) }); e != nil {
			return nil, e
		}
		return c, err
	}
	s.open = func(ctx context.Context, a netip.AddrPort) (l net.Listener, err error) {
		if e := h.within(func() { l, err = openListener(ctx, a) }); e != nil {
			return nil, e
		}
		return l, err
	}
}

// routes lists the kernel's routes of a protocol as "prefix via hop".
func (h *host) routes(protocol string) []string {
	lines := []string{}
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(h.ip(family + " route show proto " + protocol)) {
			f := strings.Fields(line)
			if i := slices.Index(f, "via"); i > 0 {
				if !strings.Contains(f[0], "/") {
					f[0] += map[string]string{"-4": "/32", "-6": "/128"}[family]
				}
				lines = append(lines, f[0]+" via "+f[i+1])
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// watch follows `ip monitor route`; what it returns lists the deletions so far.
func (h *host) watch() func() []string {
	h.t.Helper()
	cmd := h.command("ip", "monitor", "route")
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var mu sync.Mutex
	var deleted []string
	seen := map[string]bool{}
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			mu.Lock()
			line := strings.TrimSpace(lines.Text())
			seen[line] = true
			if strings.HasPrefix(line, "Deleted") && !strings.Contains(line, "192.0.2.") {
				deleted = append(deleted, line)
			}
			mu.Unlock()
		}
	}()
	// A route of our own shows that the monitor listens, now and later.
	n := 0
	sync := func() {
		n++
		p := fmt.Sprintf("192.0.2.%d", n)
		eventually(h.t, "ip monitor sees "+p, func() bool {
			h.ip("route replace blackhole " + p)
			h.ip("route del blackhole " + p)
			mu.Lock()
			defer mu.Unlock()
			for line := range seen {
				if strings.HasPrefix(line, "Deleted blackhole "+p) {
					return true
				}
			}
			return false
		})
	}
	sync()
	return func() []string {
		sync()
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(deleted)
	}
}

// daemon starts a program in the namespace; kill ends it at once.
func (h *host) daemon(name string, args ...string) (kill func()) {
	h.t.Helper()
	cmd := h.command(name, args...)
	logged, err := os.Create(filepath.Join(h.t.TempDir(), "log"))
	if err != nil {
		h.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = logged, logged
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	var once sync.Once
	kill = func() {
		once.Do(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if text, _ := os.ReadFile(logged.Name()); h.t.Failed() {
				h.t.Logf("%s: %s", name, text)
			}
			_ = logged.Close()
		})
	}
	h.t.Cleanup(kill)
	return kill
}
