package lab

import (
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestMajorityLost: two of three members are gone for good, and the third begins anew, as
// docs/datastore.md says. No packet is lost, every endpoint is known again, and nodes that
// had joined need no other certificate.
func TestMajorityLost(t *testing.T) {
	l := bareHosts(t, 4)
	n1, n2, n3, node := l.Hosts[0], l.Hosts[1], l.Hosts[2], l.Hosts[3]
	token := found(t, n1)
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, node, "netctl", "join", token)
	starts(t, node)
	joins(t, n1, n2, true)
	voting(t, n1, 2)
	joins(t, n1, n3, true)
	voting(t, n1, 3)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	_, a4, _ := attach(t, n2, "a", "web")
	b, _, _ := attach(t, node, "b", "web")
	pings(t, b, a4)
	flood, err := netlab.StartFlood(b, a4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*netlab.Host{n1, n3, n2} {
		ends(t, h)
	}
	// Without its data alone it is not to come back as the member that it was.
	netlab.Must(t, n2, "sh", "-c", "cd /var/lib/netctl-node && mkdir old && mv etcd old")
	starts(t, n2)
	netlab.Until(t, patience, "the word of a member without its data", func() string {
		log := logTail(n2)
		if !strings.Contains(log, "the data of this member is gone") {
			return log
		}
		return ""
	})
	ends(t, n2)
	netlab.Must(t, n2, "mv", "/var/lib/netctl-node/etcd-joined.json", "/var/lib/netctl-node/old")
	starts(t, n2)
	netlab.Until(t, 2*patience, "what there was, back", func() string {
		out, err := netlab.Try(t, n2, "netctl", "datastore", "rebuild", "--without", n1.Name, "--without", n3.Name)
		if err != nil {
			return out + err.Error()
		}
		return ""
	})
	netlab.Until(t, 2*patience, "the node attaches again, and knows the one member", func() string {
		out, err := netlab.Try(t, node, "netctl", "status")
		if !strings.Contains(out, "in sync") || strings.Contains(out, "detached") || !strings.Contains(out, "https://192.168.99.103:2379 healthy (1 member)\n") {
			return out + err.Error()
		}
		return ""
	})
	c, _, _ := attach(t, node, "c", "web")
	pings(t, c, a4)
	if out := netlab.Must(t, n2, "netctl", "ipam", "check"); !strings.Contains(out, "3 endpoints checked: nothing wrong") {
		t.Error(out)
	}
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("across all of it: %s", r)
	}
}
