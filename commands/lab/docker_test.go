package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// TestDocker has a real Docker on both nodes, which came before netctl on one and
// after it on the other: what workloads send is forwarded by both all along, and
// the rules for it are there once.
func TestDocker(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	after, before := l.Hosts[0], l.Hosts[1]
	stopNode(t, before)
	netlab.Must(t, before, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
	startDocker(t, before)
	if out := netlab.Must(t, before, "iptables", "-S", "FORWARD"); !strings.Contains(out, "-P FORWARD DROP\n") {
		t.Fatalf("Docker lets through what it does not know:\n%s", out)
	}
	if _, err := StartNode(before); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	wantForward(t, before)

	netlab.Must(t, after, "netctl", "pool", "add", "10.0.0.0/16")
	a, _, _ := attach(t, after, "a", "net")
	b, b4, _ := attach(t, before, "b", "net")
	netlab.Until(t, patience, "ping", func() string {
		out, failed := netlab.Try(t, a, "ping", "-n", "-c1", "-W1", b4.String())
		if failed != nil || !strings.Contains(out, "ttl=62") {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	flood, err := netlab.StartFlood(a, b4, 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := netlab.StartStream(a, b, b4)
	if err != nil {
		t.Fatal(err)
	}
	docker := startDocker(t, after)
	wantForward(t, after)
	if err := docker.Stop(); err != nil {
		t.Error(err)
	}
	startDocker(t, after)
	wantForward(t, after)
	stopNode(t, before)
	if _, err := StartNode(before); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	wantForward(t, before)
	more := flood.Answered() + 100
	netlab.Until(t, patience, "traffic", func() string {
		if flood.Answered() < more {
			return "none"
		}
		return ""
	})
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("beside Docker: %s", r)
	}
	if r := stream.Stop(); r.Err != nil || r.Echoed == 0 {
		t.Errorf("TCP beside Docker: %+v", r)
	}
}

// stopNode ends `netctl node` on a host, and with it the roles.
func stopNode(t *testing.T, h *netlab.Host) {
	t.Helper()
	top, err := h.Find("netctl")
	if err != nil || len(top) != 1 {
		t.Fatalf("netctl node on %s: %v, %v", h.Name, top, err)
	}
	if err := unix.Kill(top[0], unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantNoRoles(t, h)
}

func wantNoRoles(t *testing.T, h *netlab.Host) {
	t.Helper()
	netlab.Until(t, patience, "end of all roles on "+h.Name, func() string {
		var left []string
		for _, name := range []string{"netctl", "netctl-datastore", "netctl-agent", "netctl-speaker"} {
			if list, err := h.Find(name); err != nil || len(list) > 0 {
				left = append(left, fmt.Sprint(name, list, err))
			}
		}
		return strings.Join(left, ", ")
	})
}

// startDocker starts Docker, with folders that only it sees, and waits for it.
func startDocker(t *testing.T, h *netlab.Host) *netlab.Process {
	t.Helper()
	const script = `mkdir -p /run/docker && mount -t tmpfs none /run/docker &&
exec dockerd --data-root /run/docker/lib --exec-root /run/docker/run --pidfile /run/docker/pid -H unix:///run/docker.sock`
	p, err := h.Start("docker", netlab.Cmd{Args: []string{"unshare", "-m", "--propagation", "slave", "sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "Docker on "+h.Name, func() string {
		select {
		case <-p.Done():
			t.Fatalf("dockerd (apt-get install --no-install-recommends docker.io) ended:\n%s", p.Output())
		default:
		}
		if _, failed := netlab.Try(t, h, "docker", "-H", "unix:///run/docker.sock", "version"); failed != nil {
			return failed.Error()
		}
		return ""
	})
	return p
}

// wantForward waits for netctl's two rules, and that neither is there twice, in
// whatever flavour and chain.
func wantForward(t *testing.T, h *netlab.Host) {
	t.Helper()
	want := []string{
		"-A DOCKER-USER -i nc+ -m comment --comment netctl -j ACCEPT",
		"-A DOCKER-USER -o nc+ -m comment --comment netctl -j ACCEPT",
	}
	netlab.Until(t, patience, "rules on "+h.Name, func() string {
		var have []string
		for _, binary := range []string{"iptables-nft", "iptables-legacy"} {
			for line := range strings.Lines(netlab.Must(t, h, binary, "-S")) {
				if strings.Contains(line, "--comment netctl ") {
					have = append(have, strings.TrimSpace(line))
				}
			}
		}
		slices.Sort(have)
		if !slices.Equal(have, want) {
			return strings.Join(have, "\n")
		}
		return ""
	})
}
