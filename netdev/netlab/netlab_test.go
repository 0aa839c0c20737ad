package netlab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in\n%s", w, text)
		}
	}
}

func TestHostsAreMachines(t *testing.T) {
	l := ForTest(t, Options{Nodes: 2, IPv6: true})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	if n1.Addr.String() != "192.168.99.102/24" || n2.Addr.String() != "192.168.99.103/24" || n2.Addr6.String() != "fd00:99::103/64" {
		t.Errorf("addresses %s, %s, %s", n1.Addr, n2.Addr, n2.Addr6)
	}
	contains(t, Must(t, n1, "ip", "route"), "default via 192.168.1.1 dev eth0", "192.168.99.0/24 dev eth1 proto kernel scope link src 192.168.99.102")
	Must(t, n1, "ping", "-n", "-c1", "-W5", "192.168.99.103")
	Must(t, n1, "ping", "-n", "-c1", "-W5", "fd00:99::103")
	Must(t, n2, "ping", "-n", "-c1", "-W5", "192.168.1.1")
	if got := Must(t, n2, "hostname"); got != "node2\n" {
		t.Errorf("hostname = %q", got)
	}
	contains(t, Must(t, n1, "ls", "/sys/class/net"), "eth0", "eth1")
	if _, err := os.Stat("/sys/fs/cgroup"); err == nil {
		Must(t, n1, "ls", "/sys/fs/cgroup/.")
		here, _ := os.ReadDir("/sys/fs/cgroup")
		if got := len(strings.Fields(Must(t, n1, "ls", "/sys/fs/cgroup"))); got != len(here) {
			t.Errorf("%d entries in /sys/fs/cgroup, the machine has %d", got, len(here))
		}
	}
	contains(t, Must(t, n1, "cat", "/etc/iproute2/rt_protos.d/netctl.conf"), "87\tnetctl")
	Must(t, n1, "ip", "route", "add", "blackhole", "10.0.0.0/26", "proto", "netctl")
	contains(t, Must(t, n1, "ip", "route"), "blackhole 10.0.0.0/26 proto netctl")
}

func TestPlacesArePrivate(t *testing.T) {
	l := ForTest(t, Options{Nodes: 2})
	for _, place := range []string{"/etc/netctl.yaml", "/etc/cni/net.d/x", "/run/netctl-node/x", "/var/lib/netctl-node/x", "/var/lib/cni/x", "/opt/cni/bin/x", "/run/xtables.lock"} {
		before, was := os.Stat(place)
		Must(t, l.Hosts[0], "sh", "-c", "echo mine > "+place)
		if got := Must(t, l.Hosts[0], "cat", place); got != "mine\n" {
			t.Errorf("%s = %q", place, got)
		}
		if b, err := os.ReadFile(l.Hosts[0].Path(place)); err != nil || string(b) != "mine\n" {
			t.Errorf("%s from outside = %q, %v", place, b, err)
		}
		if out, failed := Try(t, l.Hosts[1], "cat", place); failed == nil && out != "" {
			t.Errorf("%s is seen on the other host", place)
		}
		after, is := os.Stat(place)
		if (was == nil) != (is == nil) || was == nil && (before.Size() != after.Size() || !before.ModTime().Equal(after.ModTime())) {
			t.Errorf("%s of the machine changed", place)
		}
	}
}

// TestPlacesOfAContainer: where the machine's root is an overlay, as a container's is, a
// host has what the machine lacks too.
func TestPlacesOfAContainer(t *testing.T) {
	l := ForTest(t, Options{Nodes: 1})
	dir := t.TempDir()
	root, place := filepath.Join(dir, "root"), filepath.Join(dir, "root/lib/new/folder")+"/"
	err := l.Hosts[0].Do(func() error {
		if err := os.MkdirAll(filepath.Join(root, "lib/own"), 0o755); err != nil {
			return err
		}
		if err := overlay(root, filepath.Join(dir, "layer")); err != nil && !errors.Is(err, unix.EINVAL) { // else it is one already
			return err
		}
		defer func() { _ = unix.Unmount(root, unix.MNT_DETACH) }()
		err := target(filepath.Join(root, "lib/own"), place)
		if err == nil {
			_, err = os.Stat(place)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(place); err == nil {
		t.Error("the machine has it, too")
	}
}

func TestSubnetsAreRouted(t *testing.T) {
	l := ForTest(t, Options{Nodes: 3, Subnets: 2, IPv6: true})
	if got := l.Hosts[1].Addr.String(); got != "192.168.100.103/24" {
		t.Errorf("node2 = %s", got)
	}
	contains(t, Must(t, l.Hosts[0], "ping", "-n", "-c1", "-W5", "192.168.100.103"), "ttl=63")
	contains(t, Must(t, l.Hosts[0], "ping", "-n", "-c1", "-W5", l.Hosts[1].Addr6.Addr().String()), "ttl=63")
	contains(t, Must(t, l.Hosts[0], "ping", "-n", "-c1", "-W5", "192.168.99.104"), "ttl=64")
}

func TestContainers(t *testing.T) {
	l := ForTest(t, Options{Nodes: 2})
	c, err := l.Hosts[0].Container("web")
	if err != nil {
		t.Fatal(err)
	}
	if got := Must(t, c, "ip", "-br", "link"); strings.Count(got, "\n") != 1 {
		t.Errorf("a new container has\n%s", got)
	}
	if got := Must(t, c, "hostname"); got != "node1\n" {
		t.Errorf("hostname = %q", got)
	}
	for _, h := range l.Hosts { // made after the hosts: it must propagate
		Must(t, h, "nsenter", "--net="+c.Path(), "true")
	}
	if err := c.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), Cmd{Args: []string{"true"}}); err == nil {
		t.Error("a removed container still runs commands")
	}
	if got := Must(t, l.Hosts[0], "hostname"); got != "node1\n" {
		t.Errorf("the host after its container: %q", got)
	}
}

func TestExecTellsCodeAndOutput(t *testing.T) {
	l := ForTest(t, Options{Nodes: 1})
	_, failed := Try(t, l.Hosts[0], "sh", "-c", "echo out; echo err >&2; exit 7")
	if failed == nil || failed.Code != 7 || failed.Stdout != "out\n" || failed.Stderr != "err\n" {
		t.Errorf("failed = %+v", failed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	context.AfterFunc(t.Context(), cancel)
	go cancel()
	if _, err := l.Hosts[0].Exec(ctx, Cmd{Args: []string{"sleep", "60"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled command: %v", err)
	}
	if _, err := l.Hosts[0].Exec(t.Context(), Cmd{Args: []string{"no-such-program"}}); err == nil {
		t.Error("a program that is not there ran")
	}
}

func TestStartAndStop(t *testing.T) {
	l := ForTest(t, Options{Nodes: 1})
	p, err := l.Hosts[0].Start("loop", Cmd{Args: []string{"sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"}})
	if err != nil {
		t.Fatal(err)
	}
	Until(t, 30*time.Second, "start", func() string {
		if !strings.Contains(p.Output(), "up") {
			return "no output"
		}
		return ""
	})
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	contains(t, p.Output(), "bye")
}

func TestRemoveTakesEverything(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	l, err := New(Options{Dir: dir, Nodes: 1, Persist: true})
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Hosts[0].Container("c")
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := l.Hosts[0].Exec(t.Context(), Cmd{Args: []string{"sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := again.Host("node1")
	if err != nil || !h.Alive() {
		t.Fatalf("node1: %v", err)
	}
	if got := Must(t, h, "hostname"); got != "node1\n" {
		t.Errorf("hostname = %q", got)
	}
	if _, err := again.Host("node9"); err == nil || !strings.Contains(err.Error(), "there are node1, fabric") {
		t.Errorf("Host(node9): %v", err)
	}
	if _, err := New(Options{Dir: dir, Nodes: 1}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second lab in the folder: %v", err)
	}
	if err := again.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder is still there")
	}
	if _, err := os.Stat(c.Path()); err == nil {
		t.Error("the container is still there")
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(daemon)); err != nil || !zombie(pid) {
		t.Error("a daemon in the host is still there")
	}
	if h.Alive() {
		t.Error("the anchor is still there")
	}
	if _, err := Open(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open after Remove: %v", err)
	}
}

func TestProbes(t *testing.T) {
	l := ForTest(t, Options{Nodes: 2, IPv6: true})
	a, b := l.Hosts[0], l.Hosts[1]
	for _, to := range []netip.Addr{b.Addr.Addr(), b.Addr6.Addr()} {
		flood, err := StartFlood(a, to, time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := StartStream(a, b, to)
		if err != nil {
			t.Fatal(err)
		}
		Until(t, 30*time.Second, "traffic", func() string {
			if flood.Answered() < 50 || stream.Echoed() < 50 {
				return "too little"
			}
			return ""
		})
		if r := stream.Stop(); r.Err != nil {
			t.Errorf("stream to %s: %+v", to, r)
		}
		if r := flood.Stop(); len(r.Lost) != 0 || r.Received < 50 {
			t.Errorf("flood to %s: %s", to, r)
		}
	}
	flood, err := StartFlood(a, b.Addr.Addr(), time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := StartStream(a, b, b.Addr.Addr())
	if err != nil {
		t.Fatal(err)
	}
	Until(t, 30*time.Second, "traffic", func() string {
		if flood.Answered() < 20 {
			return "too little"
		}
		return ""
	})
	Must(t, b, "ip", "addr", "del", b.Addr.String(), "dev", "eth1")
	if _, failed := Try(t, a, "ping", "-n", "-c20", "-i0.01", "-W1", b.Addr.Addr().String()); failed == nil {
		t.Error("the address is gone and still answers")
	}
	if r := flood.Stop(); len(r.Lost) == 0 || r.Received < 20 {
		t.Errorf("flood across a fault: %s", r)
	}
	if r := stream.Stop(); r.Err == nil && r.Stall < 100*time.Millisecond {
		t.Errorf("stream across a fault: %+v", r)
	}
}

func TestTwoLabs(t *testing.T) {
	first, second := ForTest(t, Options{Nodes: 1}), ForTest(t, Options{Nodes: 1})
	if first.ID == second.ID {
		t.Fatal("two labs have one ID")
	}
	c1, err := first.Hosts[0].Container("c")
	if err != nil {
		t.Fatal(err)
	}
	c2, err := second.Hosts[0].Container("c")
	if err != nil {
		t.Fatal(err)
	}
	if c1.Path() == c2.Path() {
		t.Error("two labs have one container")
	}
	if err := first.Remove(); err != nil {
		t.Error(err)
	}
	Must(t, c2, "true")
	Must(t, second.Hosts[0], "ping", "-n", "-c1", "-W5", "192.168.1.1")
}

func TestLabDiesWithItsProcess(t *testing.T) {
	l := ForTest(t, Options{Nodes: 1})
	h := l.Hosts[0]
	_ = h.hold.Close() // what the end of this process does
	Until(t, 30*time.Second, "end of the anchor", func() string {
		if unix.Kill(h.PID, 0) == nil && !zombie(h.PID) {
			return "it runs"
		}
		return ""
	})
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{{}, {Dir: "x"}, {Dir: "x", Nodes: 1000}, {Dir: "x", Nodes: 1, Subnets: 51}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v: accepted", o)
		}
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
}
