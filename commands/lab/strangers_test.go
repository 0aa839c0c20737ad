package lab

import (
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestStrangers: what is a peer's or was an endpoint's is nobody else's. The BGP port
// answers peers alone; a flow of an address that went to another endpoint is
// forgotten on the other nodes too, though its entry would live for ten minutes.
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

	b, err := n2.Container("b")
	if err != nil {
		t.Fatal(err)
	}
	result, err := b.CNI(t.Context(), "ADD", netlab.Conf("web"), "")
	if err != nil {
		t.Fatal(err)
	}
	b4, _ := addresses(t, result)
	netlab.Must(t, n1, "conntrack", "-I", "-t", "600", "-p", "udp", "-s", a4.String(), "-d", b4.String(), "--sport", "1000", "--dport", "9")
	if _, err := b.CNI(t.Context(), "DEL", netlab.Conf("web"), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CNI(t.Context(), "ADD", netlab.Conf("db"), "IP="+b4.String()); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "node1 forgets the flow", func() string {
		out := netlab.Must(t, n1, "conntrack", "-L", "-p", "udp")
		if strings.Contains(out, "dst="+b4.String()+" ") {
			return out
		}
		return ""
	})
	if _, err := b.CNI(t.Context(), "DEL", netlab.Conf("db"), ""); err != nil {
		t.Fatal(err)
	}
}
