package lab

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// TestGuard: a packet filter that is flushed while the agent cannot look is closed by the
// supervisor, and is the agent's again when that goes on.
func TestGuard(t *testing.T) {
	l := forTest(t, Config{Nodes: 1})
	n := l.Hosts[0]
	netlab.Must(t, n, "netctl", "pool", "add", "10.0.0.0/16")
	netlab.Must(t, n, "netctl", "network", "create", "web")
	netlab.Must(t, n, "netctl", "network", "create", "db")
	_, to, _ := attach(t, n, "a", "web")
	friend, _, _ := attach(t, n, "friend", "web")
	stranger, _, _ := attach(t, n, "stranger", "db")
	waitHealthy(t, l)

	agent := pid(t, n, "agent", 0)
	if err := unix.Kill(agent, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(agent, unix.SIGCONT) })
	stopped := func() string {
		return netlab.Must(t, n, "sh", "-c", fmt.Sprintf("grep -hs ^State: /proc/%d/task/*/status | grep -v T || :", agent))
	}
	netlab.Until(t, patience, "every thread is stopped", stopped)
	netlab.Must(t, n, "nft", "flush", "ruleset")
	netlab.Until(t, patience, "closed", func() string {
		out, err := netlab.Try(t, n, "nft", "list", "table", "inet", "netctl")
		if err == nil && strings.Contains(out, "shut for a moment") {
			return ""
		}
		return fmt.Sprint(out, err)
	})
	for _, from := range []*netlab.Container{stranger, friend} { // nobody knows any more who may
		if out, err := netlab.Try(t, from, "ping", "-n", "-c1", "-W1", to.String()); err == nil {
			t.Errorf("it is open:\n%s", out)
		}
	}
	if out := stopped(); out != "" {
		t.Errorf("the agent has been running: %s", out)
	}
	if err := unix.Kill(agent, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "open for who may", func() string {
		out, err := netlab.Try(t, friend, "ping", "-n", "-c1", "-W1", to.String())
		if err == nil {
			return ""
		}
		return fmt.Sprint(out, err)
	})
	if out, err := netlab.Try(t, stranger, "ping", "-n", "-c1", "-W1", to.String()); err == nil {
		t.Errorf("who may not gets through:\n%s", out)
	}
	if out := netlab.Must(t, n, "nft", "list", "table", "inet", "netctl"); strings.Contains(out, "shut for a moment") {
		t.Errorf("what closed it is left:\n%s", out)
	}
}
