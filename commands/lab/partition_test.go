package lab

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// partition has no packet pass between a host and the others, in both directions, until
// heal.
func partition(t *testing.T, h *netlab.Host, others ...*netlab.Host) (heal func()) {
	t.Helper()
	var addrs []string
	for _, o := range others {
		addrs = append(addrs, o.Addr.Addr().String())
	}
	set := "{ " + strings.Join(addrs, ", ") + " }"
	netlab.Must(t, h, "nft", "add table inet cut; add chain inet cut in { type filter hook prerouting priority -400; }; add chain inet cut out { type filter hook postrouting priority 400; };"+
		"add rule inet cut in ip saddr "+set+" drop; add rule inet cut out ip daddr "+set+" drop")
	return func() { netlab.Must(t, h, "nft", "delete table inet cut") }
}

// TestPartition: one of three members is cut off from the two others. Those go on; it says
// that it has no majority, what runs on it goes on, and containers start from its own
// block. When the network is whole again everything settles by itself, and nothing is
// there twice.
func TestPartition(t *testing.T) {
	l := bareHosts(t, 3)
	n1, n2, n3 := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	found(t, n1)
	starts(t, n1)
	sound(t, n1)
	joins(t, n1, n2, true)
	voting(t, n1, 2)
	joins(t, n1, n3, true)
	voting(t, n1, 3)
	sound(t, n1, n2, n3)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	a, a4, _ := attach(t, n1, "a", "web")
	_, b4, _ := attach(t, n2, "b", "web")
	c, c4, _ := attach(t, n3, "c", "web")
	d, d4, _ := attach(t, n3, "d", "web")
	for _, to := range []netip.Addr{b4, c4, d4} {
		pings(t, a, to)
	}
	across, err := netlab.StartFlood(a, b4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := netlab.StartFlood(c, d4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	heal := partition(t, n3, n1, n2)

	netlab.Until(t, patience, "the majority writes", func() string {
		if out, failed := netlab.Try(t, n1, "netctl", "pool", "add", "10.66.0.0/16"); failed != nil && !strings.Contains(failed.Stderr, "exists") {
			return out + failed.Stderr
		}
		return ""
	})
	e, e4, _ := attach(t, n1, "e", "web")
	netlab.Until(t, patience, "the minority says that it is one", func() string {
		out, failed := netlab.Try(t, n3, "netctl", "status")
		if failed == nil || failed.Code != 3 || !strings.Contains(out, "majority") {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	f, f4, _ := attach(t, n3, "f", "web")
	pings(t, c, f4)
	pings(t, f, d4)
	if out, _ := netlab.Try(t, n3, "netctl", "status"); !strings.Contains(out, "3 endpoints (1 attached without the datastore, which is yet to be told)") {
		t.Errorf("the minority says\n%s", out)
	}

	heal()
	voting(t, n3, 3)
	sound(t, n1, n2, n3)
	netlab.Until(t, patience, "the datastore is told, and everything is in order", func() string {
		out, failed := netlab.Try(t, n3, "netctl", "ipam", "check")
		if failed != nil || !strings.Contains(out, "6 endpoints checked: nothing wrong") {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	have := map[netip.Addr]bool{}
	for _, x := range []netip.Addr{a4, b4, c4, d4, e4, f4} {
		if have[x] {
			t.Errorf("%s is there twice", x)
		}
		have[x] = true
	}
	pings(t, e, f4)
	pings(t, f, a4)
	pings(t, d, b4)

	// A member that the others do not hear, and that nodes reach, is no one to ask.
	netlab.Must(t, n3, "nft", "add table inet cut; add chain inet cut in { type filter hook input priority -400; }; add chain inet cut out { type filter hook output priority -400; };"+
		"add rule inet cut in tcp dport 2380 drop; add rule inet cut in tcp sport 2380 drop; add rule inet cut out tcp dport 2380 drop; add rule inet cut out tcp sport 2380 drop")
	netlab.Until(t, patience, "it has no leader", func() string {
		out, _ := netlab.Try(t, n1, "netctl", "status")
		if !strings.Contains(out, "not https://"+n3.Addr.Addr().String()+":2379: etcdserver: no leader") {
			return out
		}
		return ""
	})
	for i := range 6 { // one of three times it is the first
		netlab.Must(t, n1, "netctl", "pool", "show")
		netlab.Must(t, n3, "netctl", "profile", "add", fmt.Sprint("late-", i))
	}
	for what, flood := range map[string]*netlab.Flood{"within the majority": across, "within the minority": inside} {
		if r := flood.Stop(); len(r.Lost) > 0 {
			t.Errorf("%s: %s", what, r)
		}
	}
}

// absence is how long the datastore is away: NETCTL_ABSENCE, or so long.
func absence(t *testing.T, least time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("NETCTL_ABSENCE")
	if text == "" {
		return least
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestStoreAway: the whole datastore is away for a while (NETCTL_ABSENCE; `make test-all`
// has it away for ten minutes), with the agent and the speaker of a node killed in the
// middle. No packet is lost, containers come, and all of it is in order afterwards.
func TestStoreAway(t *testing.T) {
	absence := absence(t, 5*time.Second)
	l := bareHosts(t, 3)
	n1, n2, n3 := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	token := found(t, n1)
	role := func(name string) { // each by itself: the datastore is to be away, and its node is not
		t.Helper()
		if _, err := n1.Start("netctl-"+name, netlab.Cmd{Args: []string{"netctl", name, "--config", "/etc/netctl.yaml"}}); err != nil {
			t.Fatal(err)
		}
	}
	role("datastore")
	role("agent")
	role("speaker")
	sound(t, n1)
	netlab.Must(t, n2, "netctl", "join", token)
	starts(t, n2)
	joins(t, n1, n3, false)
	sound(t, n1, n2, n3)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	a, a4, _ := attach(t, n2, "a", "web")
	b, b4, _ := attach(t, n3, "b", "web")
	c, _, _ := attach(t, n1, "c", "web")
	var floods []*netlab.Flood
	flood := func(from *netlab.Container, to netip.Addr) {
		pings(t, from, to)
		f, err := netlab.StartFlood(from, to, 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	flood(a, b4)
	flood(b, a4)
	flood(c, b4)
	back := time.Now().Add(absence)
	netlab.Must(t, n1, "sh", "-c", "kill $(cat /var/lib/netctl-node/datastore.lock)")
	away := func(until time.Time, say string) {
		netlab.Until(t, absence+patience, say, func() string {
			if left := time.Until(until); left > 0 {
				return fmt.Sprint(left, " left")
			}
			return ""
		})
	}
	away(back.Add(-absence/2), "half of the time")
	for _, name := range []string{"agent", "speaker"} {
		was := pid(t, n3, name, 0)
		if err := unix.Kill(was, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid(t, n3, name, was)
	}
	_, d4, _ := attach(t, n3, "d", "web")
	flood(a, d4)
	away(back, "the rest")
	role("datastore")
	sound(t, n1, n2, n3)
	netlab.Until(t, patience, "everything is in order", func() string {
		out, failed := netlab.Try(t, n2, "netctl", "ipam", "check")
		if failed != nil || !strings.Contains(out, "4 endpoints checked: nothing wrong") {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	for i, f := range floods {
		r := f.Stop()
		t.Logf("flood %d: %s", i, r)
		if len(r.Lost) > 0 {
			t.Errorf("flood %d: %s", i, r)
		}
	}
}
