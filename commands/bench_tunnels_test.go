//go:build bench

package commands_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestBenchTunnels measures TCP between containers of two nodes whose pool is VXLAN beside
// the same between namespaces that are routed by hand, without a tunnel or netctl.
// IPIP, which this machine's kernel need not have, is commands/lab's TestBenchIPIP.
func TestBenchTunnels(t *testing.T) {
	l := upLab(t, 2)
	netlab.Must(t, l.Hosts[0], "sh", "-c", `echo '{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": "10.65.0.0/16", "encap": "vxlan"}}' | netctl apply -f -`)
	at := netip.MustParseAddr("10.65.210.1")
	from, to := netlab.Attached(t, l.Hosts[0], "sender", "bench", ""), netlab.Attached(t, l.Hosts[1], "receiver", "bench", "IP="+at.String())
	netlab.Until(t, 20*time.Second, "the way through the tunnel", func() string {
		out, err := netlab.Try(t, l.Hosts[0], "ip", "route", "get", at.String())
		if err != nil || !strings.Contains(out, " dev vxlan.netctl ") {
			return out
		}
		return ""
	})
	plainFrom, plainTo, plainAt := handmade(t)
	var ours, theirs rates
	for range 9 { // in turn, so that what the machine does besides meets both
		theirs.add(t, plainFrom, plainTo, plainAt)
		ours.add(t, from.Do, to.Do, at)
	}
	ourWidth, ourWait := ours.medians()
	width, wait := theirs.medians()
	report(t, []row{
		// 1.54: 65 % of the bandwidth. The documents' overlay had 57 % of the host's.
		{"TCP between nodes by VXLAN, time for 1 GiB", 1024 / ourWidth, 1024 / width, "s", "routed by hand", 1.54},
		{"TCP between nodes by VXLAN, 1 byte to and fro", ourWait, wait, "us", "routed by hand", 0},
	})
}
