package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// serialOf is the serial number of a certificate on a host, and until when it holds.
func serialOf(t *testing.T, h *netlab.Host, name string) (string, time.Time) {
	t.Helper()
	cert, err := pki.ReadCertificate(h.Path("/var/lib/netctl-node/tls/" + name + ".crt"))
	if err != nil {
		t.Fatal(err)
	}
	return cert.SerialNumber.String(), cert.NotAfter
}

// connections are the TCP connections of a host's roles to the datastore's port.
func connections(t *testing.T, h *netlab.Host) (list []string) {
	t.Helper()
	for line := range strings.Lines(netlab.Must(t, h, "ss", "-Htnp", "state", "established", "dport", "=", ":2379")) {
		f := strings.Fields(line)
		list = append(list, f[2]+" "+f[len(f)-1])
	}
	slices.Sort(list)
	return list
}

// TestRenew: certificates that hold seconds. They are renewed, all of them, with more than
// a third left; no connection is lost by it, and those that come later are let in.
func TestRenew(t *testing.T) {
	l := bareHosts(t, 2)
	n1, n2 := l.Hosts[0], l.Hosts[1]
	const life = 20 * time.Second
	token := found(t, n1, "--etcd-certificate-life", life.String())
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, n2, "netctl", "join", token)
	starts(t, n2)
	sound(t, n1, n2)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	had := connections(t, n2)
	if len(had) < 2 { // the agent's and the speaker's
		t.Fatalf("connections: %q", had)
	}
	type certificate struct {
		host *netlab.Host
		name string
	}
	serials := map[certificate]string{}
	_, firstEnd := serialOf(t, n2, "node")
	for _, c := range []certificate{{n1, "node"}, {n1, "server"}, {n2, "node"}} {
		serials[c], _ = serialOf(t, c.host, c.name)
	}
	netlab.Until(t, 2*patience, "certificates that replace those that expired", func() string {
		if left := time.Until(firstEnd); left > -time.Second {
			return fmt.Sprint("the first one holds ", left)
		}
		for c, was := range serials {
			is, end := serialOf(t, c.host, c.name)
			if is == was {
				return fmt.Sprintf("%s of %s is the first still, until %s", c.name, c.host.Name, end)
			}
			if left := time.Until(end); left < life/6 { // a machine may be busy; the lab's patience is the limit
				t.Errorf("%s of %s has %s left", c.name, c.host.Name, left)
			}
		}
		return ""
	})
	if now := connections(t, n2); !slices.Equal(had, now) {
		t.Errorf("connections\n%q, before\n%q", now, had)
	}
	sound(t, n1, n2)
	attach(t, n2, "b", "web")
	netlab.Must(t, n2, "netctl", "status") // a connection of its own, with the new certificate
	// A role that starts now has the new files alone.
	netlab.Must(t, n2, "sh", "-c", "kill $(cat /var/lib/netctl-node/agent.lock)")
	sound(t, n1, n2)

	// Who was removed is not renewed.
	netlab.Must(t, n1, "netctl", "node", "remove", "--force", "node2")
	is, end := serialOf(t, n2, "node")
	netlab.Until(t, 2*patience, "the end of the certificate of a node that was removed", func() string {
		if now, _ := serialOf(t, n2, "node"); now != is {
			is, end = serialOf(t, n2, "node") // it was asked for before
		}
		if left := time.Until(end); left > 0 {
			return fmt.Sprint("it holds ", left)
		}
		return ""
	})
	if log := logTail(n2); !strings.Contains(log, "node node2 was removed") {
		t.Errorf("node2 says %s", log)
	}
}
