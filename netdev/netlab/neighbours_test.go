package netlab

import (
	"strings"
	"testing"
)

// TestManyHostsKnowTheirNeighbours: what the hosts of a large lab say to each other
// takes nothing of the kernel's neighbour table, which all namespaces share.
func TestManyHostsKnowTheirNeighbours(t *testing.T) {
	l := ForTest(t, Options{Nodes: mostLearning + 2, Subnets: 2, IPv6: true})
	for _, to := range l.Hosts[1:] {
		if strings.HasPrefix(to.Name, "node1") { // some of both subnets
			Must(t, l.Hosts[0], "ping", "-c1", "-W5", to.Addr.Addr().String())
			Must(t, l.Hosts[0], "ping", "-c1", "-W5", to.Addr6.Addr().String())
		}
	}
	sameSubnet := (len(l.Hosts)+1)/2 - 1
	for _, h := range []*Host{l.Hosts[0], l.Hosts[len(l.Hosts)-1]} {
		out := Must(t, h, "ip", "neigh", "show", "dev", "eth1", "nud", "permanent")
		if n := strings.Count(out, "\n"); n != 2*sameSubnet {
			t.Errorf("%s has %d permanent entries, want %d:\n%s", h.Name, n, 2*sameSubnet, out)
		}
	}
	for line := range strings.Lines(Must(t, l.Hosts[0], "ip", "neigh", "show", "dev", "eth1")) {
		if !strings.Contains(line, "PERMANENT") && !strings.Contains(line, "192.168.99.1 ") && !strings.Contains(line, "fd00:99::1 ") && !strings.HasPrefix(line, "fe80:") {
			t.Errorf("%s learned %s", l.Hosts[0].Name, line)
		}
	}
}
