package lab

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// hostEndpoints makes node2 a host endpoint: what explain says of its own packets, and of those
// that it forwards from web to its endpoint db, is what becomes of them, and the cluster goes on.
func hostEndpoints(t *testing.T, n1, n2 *netlab.Host, web, db *netlab.Container, db4 netip.Addr) {
	own := n2.Addr.Addr()
	netlab.Must(t, n1, "netctl", "hostendpoint", "create", "edge", "--node", "node2", "--interface", "*", "--expected-ip", own.String(), "--label", "tier=edge")
	asks := func(from netlab.Place, allowed bool, says string, words ...string) {
		t.Helper()
		to := own
		if words[1] == db.ID {
			to = db4
		}
		agrees(t, n1, from, to, allowed, says, words...)
	}
	asks(n1, false, "inbound of hostendpoint edge: denied: no inbound rule allows it", "node1", "node2", "tcp", "8000")
	asks(n1, true, "inbound of hostendpoint edge: allowed: failsafe port", "node1", "node2", "tcp", "22")
	netlab.Must(t, n1, "netctl", "policy", "create", "edge", "--selector", "tier == 'edge'", "--ingress", "allow tcp to ports 8000", "--ingress", "deny tcp to ports 179,2379", "--type", "ingress,egress")
	asks(n1, true, "inbound of hostendpoint edge: allowed by tier default, policy edge, ingress rule 1: allow tcp to ports 8000", "node1", "node2", "tcp", "8000")
	if out, code := exitOf(t, n2, "netctl", "explain", "node1", "node2", "tcp", "8001", "--live"); code != 3 || !strings.Contains(out, "inbound of hostendpoint edge (as its agent has it): denied: no ingress rule of tier default allows it") {
		t.Errorf("live: exit %d\n%s", code, out)
	}
	p, err := n2.Start("drops", netlab.Cmd{Args: []string{"netctl", "drops", "-f"}})
	if err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "what the host endpoint denies", func() string {
		answered(t, n1, own, "tcp", 8001, 100*time.Millisecond)
		if out := p.Output(); !strings.Contains(out, "inbound: hostendpoint edge: no ingress rule of tier default allows it") {
			return "shown: " + out
		}
		return ""
	})
	if err := p.Stop(); err != nil {
		t.Errorf("drops -f: %v\n%s", err, p.Output())
	}
	// Whoever would lock the node out of its cluster does not.
	for _, h := range []*netlab.Host{n1, n2} {
		if out, code := exitOf(t, h, "netctl", "status"); code != 0 || !strings.Contains(out, "Established") {
			t.Errorf("status of %s: exit %d\n%s", h.Name, code, out)
		}
	}
	netlab.Must(t, n1, "netctl", "policy", "create", "through", "--selector", "tier == 'edge'", "--ingress", "deny tcp to ports 7000", "--ingress", "allow", "--apply-on-forward")
	asks(web, false, "policy through, ingress rule 1: deny tcp to ports 7000", web.ID, db.ID, "tcp", "7000")
	netlab.Must(t, n1, "netctl", "policy", "remove", "through")
	asks(web, true, "policy open", web.ID, db.ID, "tcp", "7000")
	// A flushed table comes back with it, and failsafe ports answer meanwhile.
	netlab.Must(t, n2, "nft", "flush", "ruleset")
	asks(n1, true, "failsafe port", "node1", "node2", "tcp", "22")
	asks(n1, false, "no ingress rule of tier default allows it", "node1", "node2", "tcp", "8001")
	netlab.Must(t, n1, "netctl", "hostendpoint", "remove", "edge")
	netlab.Must(t, n1, "netctl", "policy", "remove", "edge")
	netlab.Until(t, patience, "node2 to be open again", func() string {
		if !answered(t, n1, own, "tcp", 8001, patience) {
			return netlab.Must(t, n2, "nft", "list", "table", "inet", "netctl")
		}
		return ""
	})
}
