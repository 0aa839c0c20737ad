package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// cutOff has a node's packets to the datastore refused, until goOn.
func cutOff(t *testing.T, h *netlab.Host) (goOn func()) {
	t.Helper()
	netlab.Must(t, h, "nft", "add table inet cut; add chain inet cut out { type filter hook output priority 0; }; add rule inet cut out meta l4proto tcp th dport 2379 reject with tcp reset")
	goOn = func() { netlab.Must(t, h, "nft", "delete table inet cut") }
	netlab.Until(t, patience, h.Name+" misses the datastore", func() string {
		if log := logTail(h); !strings.Contains(log, `msg="datastore away" role=agent`) {
			return log
		}
		return ""
	})
	return goOn
}

// TestAway: while the datastore does not answer, containers come, are reached from their
// node and from another one, and go; the agent is killed, and containers still come and
// go. When it answers again it hears of what is left, and every address is in order.
func TestAway(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/24")
	a, _, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	pings(t, a, b4)
	var floods []*netlab.Flood
	flood := func(from *netlab.Container, to netip.Addr) {
		f, err := netlab.StartFlood(from, to, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	flood(a, b4)
	goOn := cutOff(t, n2)

	began := time.Now()
	c, c4, _ := attach(t, n2, "c", "web")
	t.Logf("attached after %v", time.Since(began))
	pings(t, b, c4)
	pings(t, a, c4)
	flood(a, c4)
	flood(b, c4)
	began = time.Now()
	d := netlab.Attached(t, n2, "d", "web", "")
	t.Logf("another one after %v", time.Since(began))
	ended(t, d, "web")
	e := netlab.Attached(t, n2, "e", "web", "")
	if out, _ := netlab.Try(t, n2, "netctl", "status"); !strings.Contains(out, "3 endpoints (2 attached without the datastore, which is yet to be told)") {
		t.Error(out)
	}
	if pending, _ := netlab.Try(t, n2, "ls", "/run/netctl-node/pending"); pending != "" {
		t.Errorf("pending: %s", pending)
	}
	other, err := n2.Container("other2")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := other.CNI(t.Context(), "ADD", netlab.Conf("nowhere"), ""); err == nil || !strings.Contains(out+err.Error(), "Network nowhere is not known on this node") {
		t.Errorf("%s %v", out, err)
	}
	agent := pid(t, n2, "agent", 0)
	if err := unix.Kill(agent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pid(t, n2, "agent", agent)
	ended(t, e, "web")
	netlab.Attached(t, n2, "f", "web", "")
	goOn()
	waitHealthy(t, l)
	netlab.Until(t, patience, "the datastore is told", func() string {
		if has := holding(t, n1); len(has) != 4 {
			return fmt.Sprint(has)
		}
		out, err := netlab.Try(t, n1, "netctl", "ipam", "check")
		if err != nil || !strings.Contains(out, "nothing wrong") {
			return out
		}
		return ""
	})
	pings(t, c, b4)
	for i, f := range floods {
		more := f.Answered() + 100
		netlab.Until(t, patience, "traffic", func() string {
			if f.Answered() < more {
				return "none"
			}
			return ""
		})
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("flood %d: %s", i, r)
		}
	}
}
