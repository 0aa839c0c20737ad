package lab

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/commands/doctor"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// bareHosts are hosts without a configuration.
func bareHosts(t *testing.T, nodes int) *netlab.Lab {
	t.Helper()
	return netlab.ForTest(t, netlab.Options{Nodes: nodes, Binary: netlab.Binary(t)})
}

// found makes a host the first node of a cluster and returns the token that it prints.
func found(t *testing.T, h *netlab.Host, options ...string) string {
	t.Helper()
	return tokenOf(t, netlab.Must(t, h, append([]string{"netctl", "init", "--address", h.Addr.Addr().String()}, options...)...))
}

// tokenOf is the token in the one line that says what to run.
func tokenOf(t *testing.T, out string) string {
	t.Helper()
	words := strings.Fields(out)
	if len(words) < 3 || words[0] != "netctl" || words[1] != "join" || strings.Count(out, "\n") != 1 {
		t.Fatalf("want one line `netctl join TOKEN`: %q", out)
	}
	return words[len(words)-1]
}

// starts runs the roles of hosts until each is healthy and has a session to every other.
func starts(t *testing.T, hosts ...*netlab.Host) {
	t.Helper()
	for _, h := range hosts {
		if _, err := StartNode(h); err != nil {
			t.Fatal(err)
		}
	}
}

func sound(t *testing.T, hosts ...*netlab.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for _, h := range hosts {
		if err := healthy(ctx, h, len(hosts)-1, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// refused runs what must fail with one line that says so, and leave the host as it was.
func refused(t *testing.T, h *netlab.Host, code int, says string, args ...string) {
	t.Helper()
	before := filesOf(t, h)
	out, err := netlab.Try(t, h, args...)
	switch {
	case err == nil:
		t.Errorf("%s: %s: did it, and printed %q; want %q", h.Name, strings.Join(args, " "), out, says)
	case err.Code != code || !strings.Contains(err.Stderr, says) || strings.Count(err.Stderr, "\n") != 1 || out != "":
		t.Errorf("%s: %s: code %d, %q %q; want code %d and one line with %q", h.Name, strings.Join(args, " "), err.Code, out, err.Stderr, code, says)
	}
	if after := filesOf(t, h); after != before {
		t.Errorf("%s: %s left\n%s\nbefore\n%s", h.Name, strings.Join(args, " "), after, before)
	}
}

// filesOf lists the host's configuration and the files of its state that stay.
func filesOf(t *testing.T, h *netlab.Host) string {
	t.Helper()
	return netlab.Must(t, h, "sh", "-c", "cat /etc/netctl.yaml; find /var/lib/netctl-node -not -path '*/etcd/*' -not -name members.json -not -name cluster.json -not -name '*.lock' -not -name '.*' | sort")
}

// TestJoin: a first node, a second by the line that the first one printed, and every
// token that must not be good for a third.
func TestJoin(t *testing.T) {
	l := bareHosts(t, 3)
	n1, n2, n3 := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	began := time.Now()
	token := found(t, n1)
	refused(t, n1, 1, "in a cluster already", "netctl", "init")
	refused(t, n1, 1, "in a cluster already", "netctl", "join", token)
	for path, mode := range map[string]os.FileMode{"tls/ca.key": 0o600, "tls/node.key": 0o600, "tls": 0o700, "etcd-first.json": 0o600} {
		if st, err := os.Stat(n1.Path("/var/lib/netctl-node/" + path)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	a, a4, _ := attach(t, n1, "a", "web")
	t.Logf("%.1f s from init to the first container", time.Since(began).Seconds())

	// Before it joins: the node's silence to strangers is no finding, and its clock is told.
	if bad, states := examine(t, n2, "--to", n1.Addr.Addr().String()); len(bad) != 1 || !strings.HasPrefix(bad[0], "path-bgp: could not tell: ") || states["clock"] != doctor.Fine {
		t.Errorf("doctor --to a node: %q, clock %s", bad, states["clock"])
	}
	for cut := range len(token) {
		if _, err := datastore.ParseToken(token[:cut]); err == nil {
			t.Errorf("a token of %d of %d letters is one", cut, len(token))
		}
	}
	refused(t, n2, 2, "is cut off", "netctl", "join", token[:len(token)/2])
	refused(t, n2, 2, "this is none", "netctl", "join", "hello")
	refused(t, n2, 2, "is damaged", "netctl", "join", strings.Replace(token, token[20:22], "AA", 1))
	wrong, err := datastore.ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	wrong.Authority[3] ^= 1
	refused(t, n2, 1, "its authority is another", "netctl", "join", wrong.String())
	refused(t, n2, 2, "no member of the datastore", "netctl", "join", "--datastore", token)
	refused(t, n2, 1, "node node1 is in the cluster since", "netctl", "join", "--node-name", "node1", token)

	began = time.Now()
	netlab.Must(t, n2, "netctl", "join", token)
	refused(t, n2, 1, "in a cluster already", "netctl", "join", token)
	refused(t, n2, 1, "in a cluster already", "netctl", "init")
	starts(t, n2)
	sound(t, n1, n2)
	t.Logf("%.1f s from join to a node that is healthy", time.Since(began).Seconds())
	b, b4, _ := attach(t, n2, "b", "web")
	pings(t, a, b4)
	pings(t, b, a4)

	refused(t, n3, 1, "was used by node node2", "netctl", "join", token)
	revoked := tokenOf(t, netlab.Must(t, n1, "netctl", "token", "create"))
	r, err := datastore.ParseToken(revoked)
	if err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, n1, "netctl", "token", "revoke", r.Name())
	refused(t, n3, 1, "not known here", "netctl", "join", revoked)
	refused(t, n1, 1, "not found", "netctl", "token", "revoke", r.Name())
	short := tokenOf(t, netlab.Must(t, n1, "netctl", "token", "create", "--expires", "1s"))
	netlab.Until(t, patience, "a token that expires", func() string {
		if out := netlab.Must(t, n1, "netctl", "token", "list"); !strings.Contains(out, "expired") {
			return out
		}
		return ""
	})
	refused(t, n3, 1, "the token expired at", "netctl", "join", short)
	if out := netlab.Must(t, n1, "netctl", "token", "list"); !strings.Contains(out, "used by node2") || strings.Contains(out, r.Name()) {
		t.Errorf("tokens:\n%s", out)
	}
	third := tokenOf(t, netlab.Must(t, n1, "netctl", "token", "create"))
	person := n3.Path("/etc/netctl.yaml")
	if err := os.WriteFile(person, []byte("node: n3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, n3, 1, "somebody's configuration", "netctl", "join", third)
	refused(t, n3, 1, "somebody's configuration", "netctl", "init")
	if err := os.Truncate(person, 0); err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, n3, "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", "/var/lib/netctl-node")
	refused(t, n3, 1, "the disk of /var/lib/netctl-node is full", "netctl", "join", third)
	refused(t, n3, 1, "the disk of /var/lib/netctl-node is full", "netctl", "init")
	netlab.Must(t, n3, "umount", "/var/lib/netctl-node")
	if err := os.WriteFile(n3.Path("/var/lib/netctl-node/tls"), nil, 0o600); err != nil { // in place of a folder
		t.Fatal(err)
	}
	refused(t, n3, 1, "/var/lib/netctl-node/tls is there", "netctl", "join", third)
	if err := os.Remove(n3.Path("/var/lib/netctl-node/tls")); err != nil {
		t.Fatal(err)
	}
	var taken net.Listener
	if err := n3.Do(func() (err error) {
		taken, err = net.Listen("tcp", n3.Addr.Addr().String()+":2380")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	refused(t, n3, 1, "port 2380 of 192.168.99.104 is taken", "netctl", "init", "--address", n3.Addr.Addr().String())
	if bad, _ := examine(t, n3); len(bad) != 1 || !strings.HasPrefix(bad[0], "ports: TCP port 2380, which the datastore of `netctl init`") {
		t.Errorf("doctor before init, with a port taken: %q", bad)
	}
	taken.Close()
	// A node that begins anew with its old routes in the kernel.
	netlab.Must(t, n3, "ip", "route", "add", "169.254.1.1/32", "dev", "lo", "protocol", "87")
	refused(t, n3, 1, "routes of an earlier netctl are here (to 169.254.1.1/32, protocol number 87), and what it knew of them in /var/lib/netctl-node is not (fix: netctl cleanup)", "netctl", "join", third)
	netlab.Must(t, n3, "netctl", "cleanup")
	netlab.Must(t, n3, "netctl", "join", third)
	starts(t, n3)
	sound(t, n1, n2, n3)
	if _, err := os.Stat(filepath.Join(n1.Path("/var/lib/netctl-node"), "etcd-first.json")); err == nil {
		t.Error("the first token's file is left")
	}
}
