package lab

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// kills ends a member's datastore without notice and returns once another process is up.
func kills(t *testing.T, h *netlab.Host) {
	t.Helper()
	was := pid(t, h, "datastore", 0)
	if err := syscall.Kill(was, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pid(t, h, "datastore", was)
}

// held stops a member's datastore without ending it, and returns what lets it go on. Once
// the test ended it goes on in any case.
func held(t *testing.T, h *netlab.Host) (release func()) {
	t.Helper()
	is := pid(t, h, "datastore", 0)
	release = func() { _ = syscall.Kill(is, syscall.SIGCONT) }
	t.Cleanup(release)
	if err := syscall.Kill(is, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	return release
}

// TestRotateKilled: of three members one or two are killed in each phase of the
// replacement of the authorities, the command that began it is killed and interrupted, and
// one on another member goes on. In each phase it waits for whom it has to, and for
// nobody else.
func TestRotateKilled(t *testing.T) {
	l := bareHosts(t, 4)
	n1, n2, n3, node := l.Hosts[0], l.Hosts[1], l.Hosts[2], l.Hosts[3]
	token := found(t, n1)
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, node, "netctl", "join", token)
	starts(t, node)
	for i, h := range []*netlab.Host{n2, n3} {
		joins(t, n1, h, true)
		voting(t, n1, 2+i)
	}
	sound(t, l.Hosts...)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	_, a4, _ := attach(t, n1, "a", "web")
	b, _, _ := attach(t, n2, "b", "web")
	pings(t, b, a4)
	flood, err := netlab.StartFlood(b, a4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	clients, peers := trusts(t, n1, "tls/ca.crt"), trusts(t, n1, "etcd-tls/ca.crt")
	waits := func(at *netlab.Host, phase string, whom ...string) {
		t.Helper()
		netlab.Until(t, 2*patience, fmt.Sprintf("phase %s waits for %q", phase, whom), func() string {
			if is, awaited := authorityOf(t, at); is != phase || !slices.Equal(awaited, whom) {
				return fmt.Sprint(is, awaited)
			}
			return ""
		})
	}

	// Members: one does not answer; another is killed, and the command too.
	release := held(t, n3)
	if _, failed := netlab.Try(t, n1, "timeout", "-s", "KILL", "2", "netctl", "datastore", "ca", "rotate"); failed == nil {
		t.Error("the command ended before all members knew of it")
	}
	waits(n1, "members", n3.Name)
	began := trusts(t, n1, "tls/ca.crt")
	kills(t, n2)
	waits(n2, "members", n3.Name)
	if is := trusts(t, node, "tls/ca.crt"); !slices.Equal(is, clients) {
		t.Errorf("before all members know the new authority a node trusts %q", is)
	}
	// Nodes: one is away; two members are killed. The command, interrupted, says what goes on.
	ends(t, node)
	release()
	waits(n1, "nodes", node.Name)
	kills(t, n1)
	kills(t, n3)
	waits(n3, "nodes", node.Name)
	if _, failed := netlab.Try(t, n2, "timeout", "-s", "INT", "1", "netctl", "datastore", "ca", "rotate"); failed == nil || !strings.Contains(failed.Stderr, "goes on by itself") {
		t.Errorf("interrupted: %v", failed)
	}
	if is := trusts(t, n1, "tls/ca.crt"); !slices.Equal(is, began) || len(is) != 2 {
		t.Errorf("one that goes on has other authorities: %q, and began with %q", is, began)
	}
	// Servers: one does not answer; another is killed.
	release = held(t, n2)
	starts(t, node)
	waits(n1, "servers", n2.Name)
	kills(t, n3)
	kills(t, n1)
	waits(n3, "servers", n2.Name)
	if is := trusts(t, node, "tls/ca.crt"); len(is) != 2 {
		t.Errorf("while a member shows the old certificate a node trusts %q", is)
	}
	// Done: one that was killed just before is not there, two others start again and are
	// killed.
	supervisor, err := n3.Find("netctl")
	if err != nil || len(supervisor) != 1 {
		t.Fatalf("netctl node: %v %v", supervisor, err)
	}
	on := func() { _ = syscall.Kill(supervisor[0], syscall.SIGCONT) }
	t.Cleanup(on)
	if err := errors.Join(syscall.Kill(supervisor[0], syscall.SIGSTOP), syscall.Kill(pid(t, n3, "datastore", 0), syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	release()
	waits(n1, "done", n3.Name)
	kills(t, n1)
	kills(t, n2)
	waits(n2, "done", n3.Name)
	on()
	waits(n3, "done")
	now, ofPeers := trusts(t, n1, "tls/ca.crt"), trusts(t, n1, "etcd-tls/ca.crt")
	if len(now) != 1 || now[0] != began[1] || len(ofPeers) != 1 || ofPeers[0] == peers[0] {
		t.Errorf("clients' authority %q, before %q; members' %q, before %q", now, began, ofPeers, peers)
	}
	for _, h := range l.Hosts {
		netlab.Until(t, patience, h.Name+" trusts the new authority alone", func() string {
			if is := trusts(t, h, "tls/ca.crt"); !slices.Equal(is, now) {
				return fmt.Sprint(is)
			}
			return ""
		})
	}
	voting(t, n1, 3)
	sound(t, l.Hosts...)
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("across all of it: %s", r)
	}
}
