package iptables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/acl/nft"
)

func ensure(t *testing.T, n *netns, want int) {
	t.Helper()
	n.Do(func() {
		added, err := EnsureForward("nc")
		if err != nil {
			t.Error(err)
		}
		if added != want {
			t.Errorf("added %d rules, want %d", added, want)
		}
	})
}

// rules are the rules of a chain that are ours.
func rules(n *netns, binary, chain string) []string {
	n.t.Helper()
	var out []string
	for _, line := range strings.Split(n.Run(binary, "-S", chain), "\n") {
		if strings.Contains(line, "--comment netctl") {
			out = append(out, line)
		}
	}
	return out
}

func wantRules(t *testing.T, n *netns, binary, chain string) {
	t.Helper()
	want := fmt.Sprintf("-A %[1]s -o nc+ -m comment --comment netctl -j ACCEPT\n-A %[1]s -i nc+ -m comment --comment netctl -j ACCEPT", chain)
	if got := strings.Join(rules(n, binary, chain), "\n"); got != want {
		t.Errorf("%s %s:\n%s", binary, chain, got)
	}
}

// TestNothingToDo: without a policy and without Docker nothing is written, and
// no table is made by looking.
func TestNothingToDo(t *testing.T) {
	n := newNetns(t)
	ensure(t, n, 0)
	if out := n.Run("nft", "list", "ruleset"); out != "" {
		t.Errorf("made %s", out)
	}
	if out := n.Run("cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"); out != "" {
		t.Errorf("made the legacy tables %s", out)
	}
	n.Run("iptables-nft", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
	n.Run("iptables-legacy", "-A", "FORWARD", "-s", "192.0.2.1", "-j", "DROP")
	ensure(t, n, 0)
}

func TestPolicyDrop(t *testing.T) {
	for _, binary := range []string{"iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"} {
		n := newNetns(t)
		n.Run(binary, "-P", "FORWARD", "DROP")
		n.Run(binary, "-A", "FORWARD", "-j", "DROP")
		n.Run(binary, "-A", "FORWARD", "-i", "old+", "-m", "comment", "--comment", "netctl", "-j", "ACCEPT")
		ensure(t, n, 2)
		wantRules(t, n, binary, "FORWARD")
		before := n.Run(binary, "-S")
		ensure(t, n, 0)
		if after := n.Run(binary, "-S"); after != before {
			t.Errorf("%s changed by the second time:\n%s\nwas\n%s", binary, after, before)
		}
		n.Run(binary, "-F", "FORWARD")
		ensure(t, n, 2)
		wantRules(t, n, binary, "FORWARD")
	}
}

// TestForwardingWorks sends packets between two links of ours through a FORWARD
// chain that drops by policy.
func TestForwardingWorks(t *testing.T) {
	router, a, b := newNetns(t), newNetns(t), newNetns(t)
	router.Run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
	for i, h := range []*netns{a, b} {
		link, addr := fmt.Sprintf("nc%d", i), fmt.Sprintf("10.0.0.%d", i+1)
		router.Run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", h.Name)
		router.Run("ip", "addr", "add", "10.9.9.9/32", "dev", link)
		router.Run("ip", "link", "set", link, "up")
		router.Run("ip", "route", "add", addr, "dev", link)
		h.Run("ip", "link", "set", "eth0", "up")
		h.Run("ip", "addr", "add", addr+"/32", "dev", "eth0")
		h.Run("ip", "route", "add", "10.9.9.9", "dev", "eth0")
		h.Run("ip", "route", "add", "default", "via", "10.9.9.9")
	}
	a.Run("ping", "-c1", "-W5", "10.0.0.2")
	for _, binary := range []string{"iptables-nft", "iptables-legacy"} {
		router.Run(binary, "-P", "FORWARD", "DROP")
		if out, err := a.Command("ping", "-c1", "-W1", "10.0.0.2").CombinedOutput(); err == nil {
			t.Fatalf("%s: the policy does not drop:\n%s", binary, out)
		}
		ensure(t, router, 2)
		a.Run("ping", "-c1", "-W5", "10.0.0.2")
	}
}

// TestRunFollows: a change of the nft flavour is followed at once, by the
// channel; the errors of a missing table are not fatal.
func TestRunFollows(t *testing.T) {
	n := newNetns(t)
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := make(chan struct{}), make(chan error, 1)
	go n.Do(func() { done <- Run(ctx, "nc", changed, failOn(t)) })
	n.Run("iptables-nft", "-P", "FORWARD", "DROP")
	for range 3 {
		changed <- struct{}{}
	}
	eventually(t, "the rules", func() bool { return len(rules(n, "iptables-nft", "FORWARD")) == 2 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s", what)
		}
	}
}

func failOn(t *testing.T) func(int, error) {
	return func(_ int, err error) {
		if err != nil {
			t.Error(err)
		}
	}
}

// TestDocker20 starts a real Docker after us and before us: both ways end with
// our rules in DOCKER-USER, and Docker's next start does not lose them.
func TestDocker20(t *testing.T) {
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Fatal("dockerd is missing: apt-get install --no-install-recommends docker.io")
	}
	n := newNetns(t)
	n.Run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
	n.Run("ip", "link", "set", "up1", "up")
	n.Run("ip", "link", "set", "up0", "up")
	n.Run("ip", "addr", "add", "192.168.99.1/24", "dev", "up0")
	n.Run("ip", "route", "add", "default", "via", "192.168.99.2")
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := make(chan struct{}, 1), make(chan error, 2)
	go n.Do(func() { done <- Run(ctx, "nc", changed, failOn(t)) })
	go n.Do(func() {
		table, err := nft.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			done <- err
			return
		}
		defer table.Close()
		done <- table.WatchOthers(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	d := startDocker(t, n)
	eventually(t, "the rules", func() bool { return len(rules(n, "iptables", "DOCKER-USER")) == 2 })
	wantRules(t, n, "iptables", "DOCKER-USER")
	cancel()
	for range 2 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	d.stop()
	d = startDocker(t, n)
	wantRules(t, n, "iptables", "DOCKER-USER")
	ensure(t, n, 0)
	for _, r := range rules(n, "iptables", "DOCKER-USER") {
		n.Run(append([]string{"iptables", "-D"}, strings.Fields(r)[1:]...)...)
	}
	ensure(t, n, 2)
	wantRules(t, n, "iptables", "DOCKER-USER")
	if out := n.Run("iptables", "-S", "FORWARD"); !strings.Contains(out, "-A FORWARD -j DOCKER-USER") {
		t.Errorf("forward chain:\n%s", out)
	}
	d.stop()
}

type docker struct {
	t   *testing.T
	cmd *exec.Cmd
}

// startDocker runs dockerd in the namespace and in a mount namespace of its own.
func startDocker(t *testing.T, n *netns) *docker {
	t.Helper()
	dir := t.TempDir()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	script := `mkdir -p /run/docker && mount -t tmpfs none /run/docker && mount -t tmpfs none "$1" && mkdir "$1/data" &&
exec dockerd --data-root "$1/data" --exec-root "$1/run" --pidfile "$1/pid" -H "unix://$2"`
	socket := filepath.Join(dir, "s")
	work := filepath.Join(dir, "w")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := n.Command("unshare", "-m", "--propagation", "slave", "bash", "-c", script, "docker", work, socket)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &docker{t, cmd}
	t.Cleanup(d.stop)
	eventually(t, "dockerd", func() bool {
		if exec.Command("docker", "-H", "unix://"+socket, "version").Run() == nil {
			return true
		}
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("dockerd ended:\n%s", text)
		}
		return false
	})
	return d
}

// stop ends dockerd, which ends its containerd, and waits for both.
func (d *docker) stop() {
	if d.cmd.ProcessState != nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	_ = d.cmd.Wait()
	_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
}
