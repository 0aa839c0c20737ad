package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// TestStrangers: what is a peer's or was an endpoint's is nobody else's. The BGP port
// answers peers alone; a flow of an address that went to another endpoint is
// forgotten on the other nodes too, also by an agent that was not there.
func TestStrangers(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.0.0.0/16")
	netlab.Must(t, n1, "netctl", "network", "create", "web")
	netlab.Must(t, n1, "netctl", "network", "create", "db")
	waitHealthy(t, l)
	a, a4, _ := attach(t, n1, "a", "web")

	knock := func(from interface{ Do(func() error) error }) error {
		return from.Do(func() error {
			c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(t.Context(), "tcp", net.JoinHostPort(n2.Addr.Addr().String(), "179"))
			if err == nil {
				_ = c.Close()
			}
			return err
		})
	}
	netlab.Until(t, patience, "a ping across", func() string {
		out, failed := netlab.Try(t, a, "ping", "-n", "-c1", "-W1", n2.Addr.Addr().String())
		if failed != nil {
			return out
		}
		return ""
	})
	if err := knock(a); !os.IsTimeout(err) {
		t.Errorf("a container knocks at another node's BGP port: %v", err)
	}
	if err := knock(n1); err != nil {
		t.Errorf("a peer knocks: %v", err)
	}

	// A flow's entry would live for ten minutes.
	flow := func(to netip.Addr) {
		t.Helper()
		netlab.Must(t, n1, "conntrack", "-I", "-t", "600", "-p", "udp", "-s", a4.String(), "-d", to.String(), "--sport", "1000", "--dport", "9")
	}
	known := func(to netip.Addr) string {
		t.Helper()
		if out := netlab.Must(t, n1, "conntrack", "-L", "-p", "udp"); strings.Contains(out, "dst="+to.String()+" ") {
			return out
		}
		return ""
	}
	b, b4 := begin(t, n2, "b", "web")
	flow(b4)
	end(t, b, "web")
	if _, err := b.CNI(t.Context(), "ADD", netlab.Conf("db"), "IP="+b4.String()); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "node1 forgets the flow", func() string { return known(b4) })

	// Now node1 does not hear of it: its agent stands still, and is killed.
	_, stays, _ := attach(t, n2, "stays", "web")
	gone, gone4 := begin(t, n2, "gone", "web")
	netlab.Until(t, patience, "node1 has heard of them", func() string {
		var last struct{ Revision int64 }
		text, err := os.ReadFile(n1.Path("/run/netctl-node/flows-followed"))
		if err == nil {
			err = json.Unmarshal(text, &last)
		}
		if last.Revision < newest(t, n2) {
			return fmt.Sprintf("%s %v", text, err)
		}
		return ""
	})
	for _, to := range []netip.Addr{stays, gone4, b4} {
		flow(to)
	}
	agent := pid(t, n1, "agent", 0)
	if err := unix.Kill(agent, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	end(t, b, "db")
	if _, err := b.CNI(t.Context(), "ADD", netlab.Conf("web"), "IP="+b4.String()); err != nil {
		t.Fatal(err)
	}
	end(t, gone, "web")
	if err := unix.Kill(agent, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "an agent that starts forgets what went and what moved", func() string { return known(b4) + known(gone4) })
	if known(stays) == "" {
		t.Error("the flow of an endpoint that stayed is forgotten")
	}
	end(t, b, "web")
}

// newest is the revision of the endpoint that was written last.
func newest(t *testing.T, h *netlab.Host) (revision int64) {
	t.Helper()
	var list []struct{ Metadata struct{ Revision int64 } }
	if err := json.Unmarshal([]byte(netlab.Must(t, h, "netctl", "get", "endpoints", "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		revision = max(revision, e.Metadata.Revision)
	}
	return revision
}

// begin makes a container with an endpoint, which end detaches.
func begin(t *testing.T, h *netlab.Host, name, network string) (c *netlab.Container, v4 netip.Addr) {
	t.Helper()
	c, err := h.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	result, err := c.CNI(t.Context(), "ADD", netlab.Conf(network), "")
	if err != nil {
		t.Fatalf("ADD %s: %v", name, err)
	}
	v4, _ = addresses(t, result)
	return c, v4
}

func end(t *testing.T, c *netlab.Container, network string) {
	t.Helper()
	if _, err := c.CNI(t.Context(), "DEL", netlab.Conf(network), ""); err != nil {
		t.Fatal(err)
	}
}
