package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

const patience = 60 * time.Second

func forTest(t *testing.T, cfg Config) *netlab.Lab {
	t.Helper()
	cfg.Dir, cfg.Binary, cfg.OneProcess = filepath.Join(t.TempDir(), "lab"), netlab.Binary(t), true
	l, err := Up(t.Context(), cfg, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range l.Hosts {
				t.Logf("--- log of %s ends ---\n%s", h.Name, logTail(h))
			}
		}
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// addresses reads a CNI result: one address of each family, zero if there is none.
func addresses(t *testing.T, result string) (v4, v6 netip.Addr) {
	t.Helper()
	var r struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(result), &r); err != nil {
		t.Fatalf("result %s: %v", result, err)
	}
	for _, ip := range r.IPs {
		if ip.Address.Addr().Is4() {
			v4 = ip.Address.Addr()
		} else {
			v6 = ip.Address.Addr()
		}
	}
	return v4, v6
}

// attach makes a container with an endpoint, which the test detaches at its end.
func attach(t *testing.T, h *netlab.Host, name, network string) (c *netlab.Container, v4, v6 netip.Addr) {
	t.Helper()
	c, err := h.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	result, err := c.CNI(t.Context(), "ADD", netlab.Conf(network), "")
	if err != nil {
		t.Fatalf("ADD %s: %v", name, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := c.CNI(ctx, "DEL", netlab.Conf(network), ""); err != nil {
			t.Errorf("DEL %s: %v", name, err)
		}
	})
	v4, v6 = addresses(t, result)
	return c, v4, v6
}

// pid is the one process of a role on a host; it must not be the one before.
func pid(t *testing.T, h *netlab.Host, role string, before int) int {
	t.Helper()
	found := 0
	netlab.Until(t, patience, "netctl-"+role+" on "+h.Name, func() string {
		list, err := h.Find("netctl-" + role)
		if err != nil || len(list) != 1 || list[0] == before {
			return fmt.Sprint(list, err)
		}
		found = list[0]
		return ""
	})
	return found
}

func waitHealthy(t *testing.T, l *netlab.Lab) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, h := range l.Hosts {
		if err := healthy(ctx, h, len(l.Hosts)-1, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCluster: both families across two nodes, and every role of both killed in
// turn without a packet lost.
func TestCluster(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.0.0.0/16", "fd80:24e2:f998:72d6::/64")
	netlab.Must(t, n1, "netctl", "network", "create", "dual", "--ipv6")
	a, a4, a6 := attach(t, n1, "a", "dual")
	b, b4, b6 := attach(t, n2, "b", "dual")
	for _, to := range []struct {
		c    *netlab.Container
		addr netip.Addr
	}{{a, b4}, {a, b6}, {b, a4}, {b, a6}} {
		netlab.Until(t, patience, "ping", func() string {
			out, failed := netlab.Try(t, to.c, "ping", "-n", "-c2", "-i0.2", "-W1", to.addr.String())
			if failed != nil || !strings.Contains(out, "ttl=62") {
				return fmt.Sprint(out, failed)
			}
			return ""
		})
	}
	flood4, err := netlab.StartFlood(a, b4, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	flood6, err := netlab.StartFlood(b, a6, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := netlab.StartStream(a, b, b4)
	if err != nil {
		t.Fatal(err)
	}
	roles := map[*netlab.Host][]string{n1: {"datastore", "agent", "speaker"}, n2: {"agent", "speaker"}}
	for _, h := range l.Hosts {
		for _, role := range roles[h] {
			before := map[string]int{}
			for _, r := range roles[h] {
				before[r] = pid(t, h, r, 0)
			}
			if err := unix.Kill(before[role], unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			pid(t, h, role, before[role])
			waitHealthy(t, l)
			for _, r := range roles[h] {
				if now := pid(t, h, r, 0); r != role && now != before[r] {
					t.Errorf("%s: killing the %s restarted the %s", h.Name, role, r)
				}
			}
		}
	}
	more := flood4.Answered() + 100
	netlab.Until(t, patience, "traffic", func() string {
		if flood4.Answered() < more {
			return "none"
		}
		return ""
	})
	if r := flood4.Stop(); len(r.Lost) > 0 {
		t.Errorf("IPv4 across the faults: %s", r)
	}
	if r := flood6.Stop(); len(r.Lost) > 0 {
		t.Errorf("IPv6 across the faults: %s", r)
	}
	if r := stream.Stop(); r.Err != nil || r.Echoed == 0 {
		t.Errorf("TCP across the faults: %+v", r)
	}
}

// TestCommand drives `netctl lab` as a person does, with a second lab beside it.
func TestCommand(t *testing.T) {
	binary := netlab.Binary(t)
	lab := func(dir string, args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), binary, append([]string{"lab", "--dir", dir}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	first, second := filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")
	file := filepath.Join(t.TempDir(), "lab.yaml")
	if err := os.WriteFile(file, []byte("nodes: 1\nsettings:\n  agent:\n    lostAfter: 2s\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{first, second} {
		t.Cleanup(func() {
			if _, err := os.Stat(dir); err == nil {
				t.Errorf("%s is still there", dir)
				lab(dir, "down")
			}
		})
		if out, code := lab(dir, "up", "--file", file); code != 0 {
			t.Fatalf("up: %d\n%s", code, out)
		}
	}
	if out, code := lab(first, "status"); code != 0 || !strings.Contains(out, "node1  192.168.99.102/24") || !strings.Contains(out, "healthy") {
		t.Errorf("status: %d\n%s", code, out)
	}
	if out, code := lab(first, "exec", "node1", "--", "sh", "-c", "hostname; netctl config; exit 7"); code != 7 || !strings.HasPrefix(out, "node1\n") || !strings.Contains(out, "2s") {
		t.Errorf("exec: %d\n%s", code, out)
	}
	if out, code := lab(first, "exec", "node5", "--", "true"); code != 1 || !strings.Contains(out, `no host "node5": there are node1, fabric`) {
		t.Errorf("exec: %d\n%s", code, out)
	}
	if out, code := lab(first, "up", "--nodes", "1"); code != 1 || !strings.Contains(out, "is another lab up there?") {
		t.Errorf("up twice: %d\n%s", code, out)
	}
	if out, code := lab(first, "down"); code != 0 {
		t.Errorf("down: %d\n%s", code, out)
	}
	if out, code := lab(first, "down"); code != 1 || !strings.Contains(out, "no lab in "+first) {
		t.Errorf("down twice: %d\n%s", code, out)
	}
	if out, code := lab(second, "status"); code != 0 {
		t.Errorf("the other lab: %d\n%s", code, out)
	}
	if out, code := lab(second, "down"); code != 0 {
		t.Errorf("down: %d\n%s", code, out)
	}
}

func TestFileIsStrict(t *testing.T) {
	binary := netlab.Binary(t)
	for text, says := range map[string]string{
		"knodes: 2":                           "field knodes not found",
		"settings: {node: x}":                 "settings: node is set by the lab itself",
		"nodes: many":                         "lab.yaml",
		"nodes: 0":                            "0 nodes: must be 1 to 150",
		"nodes: 1\nsettings: {agent: {x: 1}}": "unknown key",
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "lab.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), binary, "lab", "--dir", dir+"/lab", "up", "--file", file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), says) {
			t.Errorf("%q: %v %s", text, err, out)
		}
		if _, err := os.Stat(dir + "/lab"); err == nil {
			t.Errorf("%q left a lab", text)
		}
	}
}
