package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// holding is which endpoint has which addresses, as the datastore has it.
func holding(t *testing.T, h *netlab.Host) map[string][]netip.Addr {
	t.Helper()
	var list []struct {
		Metadata struct{ Name string }
		Spec     struct{ Addresses []netip.Addr }
	}
	if err := json.Unmarshal([]byte(netlab.Must(t, h, "netctl", "get", "endpoints", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	out := map[string][]netip.Addr{}
	for _, e := range list {
		out[e.Metadata.Name] = e.Spec.Addresses
	}
	return out
}

// tunnelled is who holds which address in tunnels, as the datastore has it.
func tunnelled(t *testing.T, h *netlab.Host) string {
	t.Helper()
	var blocks []struct {
		Spec struct {
			CIDR        netip.Prefix
			Allocations []struct {
				Ordinal int
				Handle  string
			}
		}
	}
	if err := json.Unmarshal([]byte(netlab.Must(t, h, "netctl", "get", "blocks", "-o", "json")), &blocks); err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, b := range blocks {
		for _, a := range b.Spec.Allocations {
			if strings.HasPrefix(a.Handle, "tunnel/") {
				out += fmt.Sprintf("%s %d %s\n", b.Spec.CIDR, a.Ordinal, a.Handle)
			}
		}
	}
	return out
}

// loseStore has the datastore start with nothing, once it was away for so long, and waits
// until no node follows it.
func loseStore(t *testing.T, l *netlab.Lab, away time.Duration) {
	t.Helper()
	h := l.Hosts[0]
	before := pid(t, h, "datastore", 0)
	dir := h.Path("/var/lib/netctl-node/etcd")
	if err := os.Rename(dir, dir+".lost"); err != nil {
		t.Fatal(err)
	}
	if away > 0 { // no member starts on a file
		mustWrite(t, dir, "")
	}
	if err := unix.Kill(before, unix.SIGKILL); err != nil && err != unix.ESRCH {
		t.Fatal(err)
	}
	if back := time.Now().Add(away); away > 0 {
		netlab.Until(t, away+patience, "the datastore's absence", func() string {
			if left := time.Until(back); left > 0 {
				return fmt.Sprint(left, " left")
			}
			return ""
		})
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range l.Hosts {
		netlab.Until(t, 2*patience, h.Name+" is detached", func() string {
			out, _ := netlab.Try(t, h, "netctl", "status")
			if !strings.Contains(out, "holds no cluster identity") {
				return out
			}
			return ""
		})
	}
}

// ended takes a container's endpoint away, and the container with it.
func ended(t *testing.T, c *netlab.Container, network string) {
	t.Helper()
	if _, err := c.CNI(t.Context(), "DEL", netlab.Conf(network), ""); err != nil {
		t.Fatal(err)
	}
}

// TestRestore: the store is lost under running containers and comes back from a backup
// that is older than some of them. Nothing is lost, what runs has its addresses, nothing
// else gets one of them, and every rule is as it was.
func TestRestore(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/24", "--vxlan")
	netlab.Must(t, n1, "netctl", "profile", "add", "lb")
	a, a4, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	netlab.Must(t, n1, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "tcp", "from", "tag", "lb", "to", "ports", "80,443")
	old := netlab.Attached(t, n1, "old", "web", "IP=10.65.0.200")
	moved := netlab.Attached(t, n2, "moved", "web", "IP=10.65.0.201")
	file := filepath.Join(t.TempDir(), "netctl.backup")
	t.Log(netlab.Must(t, n1, "netctl", "backup", file))
	rules := netlab.Must(t, n1, "netctl", "get", "profiles", "-o", "yaml")

	// After the backup: an address goes to another node's container, a container is
	// attached again with another address, and some are new.
	ended(t, old, "web")
	thief := netlab.Attached(t, n2, "thief", "web", "IP=10.65.0.200")
	ended(t, moved, "web")
	if _, err := moved.CNI(t.Context(), "ADD", netlab.Conf("web"), "IP=10.65.0.202"); err != nil {
		t.Fatal(err)
	}
	_, later4, _ := attach(t, n2, "later", "web")
	netlab.Must(t, n1, "netctl", "profile", "web", "rule", "add", "inbound", "deny", "udp")
	before, tunnels := holding(t, n1), tunnelled(t, n1)
	for _, to := range []netip.Addr{b4, later4, netip.MustParseAddr("10.65.0.200"), netip.MustParseAddr("10.65.0.202")} {
		pings(t, a, to)
	}

	var floods []*netlab.Flood
	for _, way := range []struct {
		from *netlab.Container
		to   netip.Addr
	}{{a, b4}, {b, a4}, {thief, a4}} {
		f, err := netlab.StartFlood(way.from, way.to, 5*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	loseStore(t, l, absence(t, 0))
	if out := netlab.Must(t, n1, "netctl", "restore", "--dry-run", file); !strings.Contains(out, "Nothing was written") {
		t.Error(out)
	}
	if out := netlab.Must(t, n1, "netctl", "get", "pools"); strings.Contains(out, "10.65") {
		t.Errorf("a dry run wrote: %s", out)
	}
	out := netlab.Must(t, n1, "netctl", "restore", file)
	t.Log(out)
	for _, want := range []string{"its address 10.65.0.200 is held by n", "it runs with other addresses", "generation 2"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not said", want)
		}
	}
	waitHealthy(t, l)

	after := holding(t, n1)
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("endpoints before %v, now %v", before, after)
	}
	if now := tunnelled(t, n1); now != tunnels {
		t.Errorf("ends of tunnels before:\n%s\nnow:\n%s", tunnels, now)
	}
	if now := netlab.Must(t, n1, "netctl", "get", "profiles", "-o", "yaml"); stripRevisions(now) != stripRevisions(rules) {
		t.Errorf("profiles as of the backup:\n%s\nnow:\n%s", rules, now)
	}
	if out := netlab.Must(t, n1, "netctl", "get", "pools", "-o", "yaml"); strings.Contains(out, "restoring") || strings.Contains(out, "disabled: true") {
		t.Errorf("pools stay closed: %s", out)
	}
	if out, err := netlab.Try(t, n1, "netctl", "ipam", "check"); err != nil {
		t.Errorf("ipam check: %s %v", out, err)
	}
	live := map[netip.Addr]string{}
	for name, addrs := range after {
		for _, x := range addrs {
			live[x] = name
		}
	}
	for i, h := range []*netlab.Host{n1, n2, n1, n2} {
		_, x, _ := attach(t, h, fmt.Sprintf("new%d", i), "web")
		if who := live[x]; who != "" {
			t.Errorf("%s was given to a new container, %s has it", x, who)
		}
		live[x] = "a new one"
	}
	for _, taken := range []netip.Addr{later4, netip.MustParseAddr("10.65.0.202")} {
		c, err := n1.Container("robber" + strings.ReplaceAll(taken.String(), ".", "-"))
		if err != nil {
			t.Fatal(err)
		}
		if out, err := c.CNI(t.Context(), "ADD", netlab.Conf("web"), "IP="+taken.String()); err == nil {
			t.Errorf("%s was given away: %s", taken, out)
		}
	}

	// Into a datastore that is well: what runs stays, and it is soon through.
	before = holding(t, n1)
	t.Log(netlab.Must(t, n2, "netctl", "restore", "--wait", patience.String(), file))
	waitHealthy(t, l)
	if after := holding(t, n1); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("endpoints before %v, now %v", before, after)
	}
	attach(t, n2, "last", "web")
	for i, f := range floods {
		more := f.Answered() + 100
		netlab.Until(t, patience, "traffic", func() string {
			if f.Answered() < more {
				return "none"
			}
			return ""
		})
		r := f.Stop()
		t.Logf("flood %d: %s", i, r)
		if len(r.Lost) > 0 {
			t.Errorf("flood %d: %s", i, r)
		}
	}
}

func stripRevisions(yaml string) string {
	lines := slices.DeleteFunc(strings.Split(yaml, "\n"), func(s string) bool { return strings.Contains(s, "revision:") })
	return strings.Join(lines, "\n")
}

// TestRestoreWithoutNode: while a node that may run something is away, no pool gives out
// an address; what it runs has its addresses afterwards.
func TestRestoreWithoutNode(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/24")
	attach(t, n2, "b", "web")
	file := filepath.Join(t.TempDir(), "netctl.backup")
	netlab.Must(t, n1, "netctl", "backup", file)
	_, later4, _ := attach(t, n2, "later", "other")
	before := holding(t, n1)
	top, err := n2.Find("netctl")
	if err != nil || len(top) != 1 {
		t.Fatalf("netctl node: %v, %v", top, err)
	}
	if err := unix.Kill(top[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wantNoRoles(t, n2)
	only := *l
	only.Hosts = l.Hosts[:1]
	loseStore(t, &only, 0)

	out, failed := netlab.Try(t, n1, "netctl", "restore", "--wait", "1s", file)
	if failed == nil || !strings.Contains(failed.Error(), n2.Name+" did not come within 1s") {
		t.Fatalf("%v %s", failed, out)
	}
	c, err := n1.Container("early")
	if err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "no address is given out", func() string {
		out, err := c.CNI(t.Context(), "ADD", netlab.Conf("web"), "")
		if err == nil {
			t.Fatalf("an address was given out: %s", out)
		}
		if !strings.Contains(err.Error()+out, "is disabled") {
			return fmt.Sprint(err, out)
		}
		return ""
	})
	if _, err := StartNode(n2); err != nil {
		t.Fatal(err)
	}
	t.Log(netlab.Must(t, n1, "netctl", "restore", file))
	waitHealthy(t, l)
	if after := holding(t, n1); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("endpoints before %v, now %v", before, after)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := c.CNI(ctx, "ADD", netlab.Conf("web"), "IP="+later4.String()); err == nil {
		t.Errorf("%s was given away: %s", later4, out)
	}
}
