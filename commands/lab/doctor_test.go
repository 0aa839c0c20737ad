package lab

import (
	"encoding/json"
	"strings"
	"testing"

	"netctl/commands/doctor"
	"netctl/netdev/netlab"
)

// TestDoctor: on nodes that run, with tunnels that are used, nothing is found; a packet
// filter of somebody's that cuts the tunnels off is, and so is a way that is too narrow.
func TestDoctor(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	one, two := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.65.0.0/16", "--vxlan")
	netlab.Until(t, patience, "every path is tried, and nothing is found", func() string {
		bad, states := examine(t, one)
		for _, name := range []string{"path-mtu", "path-bgp", "path-vxlan", "clock", "certificates", "ports", "pools"} {
			if states[name] != doctor.Fine {
				bad = append(bad, name+" is "+string(states[name]))
			}
		}
		return strings.Join(bad, "\n")
	})
	netlab.Must(t, two, "nft", "add table inet hurt; add chain inet hurt in { type filter hook input priority 0; }; add rule inet hurt in udp dport 4789 drop")
	if bad, _ := examine(t, one); len(bad) != 1 || !strings.HasPrefix(bad[0], "path-vxlan: UDP to port 4789 from "+one.Addr.Addr().String()+" to node2") {
		t.Errorf("with UDP 4789 dropped: %q", bad)
	}
	netlab.Must(t, two, "nft", "delete table inet hurt")
	netlab.Must(t, l.Fabric, "ip", "link", "set", "n2.1", "mtu", "1400")
	if bad, _ := examine(t, one); len(bad) != 1 || !strings.Contains(bad[0], "may have 1400 bytes") {
		t.Errorf("with an MTU of 1400 on the way: %q", bad)
	}
	netlab.Must(t, l.Fabric, "ip", "link", "set", "n2.1", "mtu", "1500")
	if bad, _ := examine(t, one); len(bad) > 0 {
		t.Errorf("undone: %q", bad)
	}
}

// examine is what doctor finds on a host, and what became of each check. How slow the disk
// of a test's machine is does not count.
func examine(t *testing.T, h *netlab.Host, args ...string) (bad []string, states map[string]doctor.State) {
	t.Helper()
	out, failed := netlab.Try(t, h, append([]string{"netctl", "doctor", "-o", "json"}, args...)...)
	if failed != nil {
		out = failed.Stdout
	}
	var r doctor.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v in %q, %v", err, out, failed)
	}
	states = map[string]doctor.State{}
	for _, c := range r.Checks {
		states[c.Name] = c.State
		if c.Name == "disk-sync" {
			continue
		}
		for _, f := range c.Findings {
			bad = append(bad, c.Name+": "+f.What)
		}
		if c.State == doctor.Unknown {
			bad = append(bad, c.Name+": could not tell: "+c.Reason)
		}
	}
	return bad, states
}
