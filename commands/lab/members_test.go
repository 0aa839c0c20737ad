package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// states are the members of the datastore as a host lists them: name to state.
func states(t *testing.T, h *netlab.Host) map[string]string {
	t.Helper()
	out, failed := netlab.Try(t, h, "netctl", "datastore", "member", "list", "-o", "json")
	if failed != nil {
		return map[string]string{"error": failed.Error()}
	}
	var list []struct{ Name, State string }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	m := map[string]string{}
	for _, x := range list {
		m[x.Name] = x.State
	}
	return m
}

// voting waits until a host sees so many members, all of them with a vote and well.
func voting(t *testing.T, h *netlab.Host, members int) (leader string) {
	t.Helper()
	netlab.Until(t, 2*patience, fmt.Sprint(members, " members that vote"), func() string {
		m := states(t, h)
		leader = ""
		voters := 0
		for name, state := range m {
			switch state {
			case "leader":
				leader = name
				voters++
			case "voter":
				voters++
			}
		}
		if len(m) != members || voters != members || leader == "" {
			return fmt.Sprint(m)
		}
		return ""
	})
	return leader
}

// joins makes a host a node by a token that is made on another.
func joins(t *testing.T, by, h *netlab.Host, member bool) {
	t.Helper()
	create, join := []string{"netctl", "token", "create"}, []string{"netctl", "join"}
	if member {
		create, join = append(create, "--datastore"), append(join, "--datastore")
	}
	netlab.Must(t, h, append(join, tokenOf(t, netlab.Must(t, by, create...)))...)
	starts(t, h)
}

// ends ends the roles of a host.
func ends(t *testing.T, h *netlab.Host) {
	t.Helper()
	netlab.Must(t, h, "sh", "-c", "kill $(cat /var/lib/netctl-node/node.lock)")
	netlab.Until(t, patience, "the end of "+h.Name, func() string {
		pids, err := h.Find("netctl")
		if err != nil || len(pids) > 0 {
			return fmt.Sprint(pids, err)
		}
		return ""
	})
}

// TestMembers: a datastore of three, of which one is lost, the leader, and two; nodes that
// are no members follow who they are.
func TestMembers(t *testing.T) {
	l := bareHosts(t, 5)
	n1, n2, n3, node, late := l.Hosts[0], l.Hosts[1], l.Hosts[2], l.Hosts[3], l.Hosts[4]
	byName := map[string]*netlab.Host{n1.Name: n1, n2.Name: n2, n3.Name: n3}
	token := found(t, n1)
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, node, "netctl", "join", token)
	starts(t, node)
	sound(t, n1, node)
	if out, err := netlab.Try(t, n1, "netctl", "datastore", "member", "remove", n1.Name); err == nil || !strings.Contains(err.Stderr, "is the last one") {
		t.Errorf("the last member: %s %v", out, err)
	}
	began := time.Now()
	joins(t, n1, n2, true)
	voting(t, n1, 2)
	t.Logf("%.1f s from the token to a vote", time.Since(began).Seconds())
	joins(t, n2, n3, true) // by a member that is not the first
	voting(t, n3, 3)
	sound(t, n1, n2, n3, node)
	netlab.Until(t, patience, "three endpoints", func() string {
		text, _ := os.ReadFile(node.Path("/var/lib/netctl-node/members.json"))
		if strings.Count(string(text), "https://") != 4 { // and the one that it was told
			return string(text)
		}
		return ""
	})
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	a, a4, _ := attach(t, n1, "a", "web")
	b, _, _ := attach(t, node, "b", "web")
	pings(t, b, a4)
	flood, err := netlab.StartFlood(b, a4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	pools := 0
	writes := func(h *netlab.Host) {
		t.Helper()
		pools++
		netlab.Until(t, patience, "a write on "+h.Name, func() string {
			if out, err := netlab.Try(t, h, "netctl", "pool", "add", fmt.Sprintf("10.66.%d.0/24", pools)); err != nil && !strings.Contains(err.Stderr, "exists") {
				return out + err.Stderr
			}
			return ""
		})
	}
	// The leader, then another: each time the others go on.
	for range 2 {
		lost := byName[voting(t, n1, 3)]
		began := time.Now()
		if err := syscall.Kill(pid(t, lost, "datastore", 0), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		rest := n1
		if lost == n1 {
			rest = n2
		}
		writes(rest)
		t.Logf("%.1f s until writes go on without the leader %s", time.Since(began).Seconds(), lost.Name)
		voting(t, rest, 3)
	}
	ends(t, n3)
	writes(n1)
	c, c4, _ := attach(t, node, "c", "web")
	pings(t, c, a4)

	// Two of three: nothing is written or read, everything goes on.
	ends(t, n2)
	out, failed := netlab.Try(t, n1, "netctl", "pool", "add", "10.67.0.0/24")
	if failed == nil || failed.Code != 1 || !strings.Contains(failed.Stderr, "majority") {
		t.Errorf("a write without a majority: %s %v", out, failed)
	}
	pings(t, a, c4)
	starts(t, n2)
	writes(n1)
	starts(t, n3)
	voting(t, n1, 3)
	sound(t, n1, n2, n3, node)

	// The first one is gone for good: another lets in and renews.
	ends(t, n1)
	writes(n2)
	warned, err := n2.Exec(t.Context(), netlab.Cmd{Args: []string{"sh", "-c", "netctl datastore member remove node1 2>&1"}})
	if err != nil || !strings.Contains(warned, "2 members now, and an even number") {
		t.Errorf("remove node1: %s %v", warned, err)
	}
	voting(t, n2, 2)
	netlab.Until(t, patience, "two endpoints", func() string {
		text, _ := os.ReadFile(node.Path("/var/lib/netctl-node/members.json"))
		if _, now, _ := strings.Cut(string(text), `"endpoints"`); strings.Contains(now, n1.Addr.Addr().String()+":") {
			return string(text)
		}
		return ""
	})
	joins(t, n2, late, true)
	voting(t, node, 3)
	writes(late)
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("across all of it: %s", r)
	}

	// One that runs and is taken out says so, and its node goes on by the others.
	netlab.Must(t, n2, "netctl", "datastore", "member", "remove", n3.Name)
	voting(t, n2, 2)
	netlab.Until(t, patience, "the word of a member that was removed", func() string {
		log := logTail(n3)
		if !strings.Contains(log, "was removed from the datastore") {
			return log
		}
		return ""
	})
	netlab.Must(t, n3, "netctl", "pool", "show")
}
