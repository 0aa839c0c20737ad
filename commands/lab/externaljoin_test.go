package lab

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestExternalJoin: a cluster in an external etcd is made by init, and another node comes in
// by the one line that this prints, with a user and a password of its own. What cannot
// work leaves nothing behind, here or in etcd.
func TestExternalJoin(t *testing.T) {
	l := bareHosts(t, 4)
	admin, n1, n2, n3 := l.Hosts[0], l.Hosts[1], l.Hosts[2], l.Hosts[3]
	external(t, admin)
	const dir = "/var/lib/netctl-node/external/"
	url := "https://" + admin.Addr.Addr().String() + ":2379"
	root := passwordClient(t, admin, url, admin.Path(dir+"ca.crt"), "root", "root")
	for _, h := range []*netlab.Host{n1, n3} {
		if err := os.MkdirAll(h.Path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		for from, text := range map[string]string{"root.password": "root\n", "wrong.password": "wrong", "weak.password": "weak"} {
			mustWrite(t, h.Path(dir+from), text)
		}
		text, err := os.ReadFile(admin.Path(dir + "ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, h.Path(dir+"ca.crt"), string(text))
	}
	into := func(h *netlab.Host, user, password string, more ...string) []string {
		return append([]string{"netctl", "init", "--address", h.Addr.Addr().String(), "--datastore-endpoints", url, "--datastore-ca", dir + "ca.crt",
			"--datastore-user", user, "--datastore-password-file", dir + password + ".password"}, more...)
	}

	// The identity that `datastore user create` made, and a user who is not root.
	if _, err := root.UserAdd(t.Context(), "weak", "weak"); err != nil {
		t.Fatal(err)
	}
	refused(t, n1, 1, "holds the cluster", into(n1, "root", "root")...)
	if _, err := root.Delete(t.Context(), "/netctl/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, admin, "netctl", "datastore", "user", "remove", "early")
	refused(t, n1, 1, "does not know user root with the password", into(n1, "root", "wrong")...)
	refused(t, n1, 1, "needs etcd's role root", into(n1, "weak", "weak")...)
	elsewhere := into(n1, "root", "root")
	elsewhere[slices.Index(elsewhere, url)] = strings.Replace(url, "2379", "2399", 1)
	refused(t, n1, 1, "connection refused", elsewhere...)
	refused(t, n1, 2, "leave --datastore-cert and --datastore-key out", into(n1, "root", "root", "--datastore-cert", dir+"ca.crt", "--datastore-key", dir+"ca.crt")...)
	if r, err := root.Get(t.Context(), "/netctl/", clientv3.WithPrefix(), clientv3.WithKeysOnly()); err != nil || len(r.Kvs) > 0 {
		t.Fatalf("left in etcd: %v %v", r, err)
	}

	token := tokenOf(t, netlab.Must(t, n1, into(n1, "root", "root", "--roles", "agent,speaker,api")...))
	refused(t, n1, 1, "in a cluster already", into(n1, "root", "root")...)
	refused(t, n3, 1, "holds the cluster", into(n3, "root", "root")...)
	starts(t, n1)
	sound(t, n1)
	no := func(h *netlab.Host, says string, args ...string) {
		t.Helper()
		if out, failed := netlab.Try(t, h, args...); failed == nil || failed.Code != 1 || !strings.Contains(failed.Stderr, says) {
			t.Errorf("%s: %q %v; want %q", strings.Join(args, " "), out, failed, says)
		}
	}
	no(n1, "no node becomes a member", "netctl", "token", "create", "--datastore")
	no(n1, "not netctl's to replace", "netctl", "datastore", "ca", "rotate")
	netlab.Must(t, n2, "netctl", "join", token)
	if st, err := os.Stat(n2.Path("/var/lib/netctl-node/tls/etcd.password")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the password: %v %v", st, err)
	}
	starts(t, n2)
	sound(t, n1, n2)
	no(n2, "run it on the cluster's first node", "netctl", "token", "create")
	refused(t, n3, 1, "was used by node "+n2.Name, "netctl", "join", token)

	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	netlab.Must(t, n1, "netctl", "network", "create", "web")
	netlab.Must(t, n1, "netctl", "profile", "web", "rule", "add", "inbound", "allow")
	a, a4, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	pings(t, a, b4)
	pings(t, b, a4)

	// The password that came with the line is that of a node, and no more.
	password, err := os.ReadFile(n2.Path("/var/lib/netctl-node/tls/etcd.password"))
	if err != nil {
		t.Fatal(err)
	}
	c := passwordClient(t, n2, url, admin.Path(dir+"ca.crt"), n2.Name, strings.TrimSpace(string(password)))
	if _, err := c.Get(t.Context(), datastore.ClusterKey); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(t.Context(), datastore.JoinPrefix, clientv3.WithPrefix()); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("tokens are read: %v", err)
	}
	if _, err := c.Put(t.Context(), datastore.KindPrefix(datastore.KindNode)+n1.Name, "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("another node is written: %v", err)
	}
	if _, err := c.UserAdd(t.Context(), "x", "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("a user is made: %v", err)
	}

	// A name that is somebody's in etcd is not taken over, and the token stays good.
	netlab.Must(t, n1, "netctl", "datastore", "user", "create", n3.Name, "--password", dir+"by-hand")
	third := tokenOf(t, netlab.Must(t, n1, "netctl", "token", "create"))
	refused(t, n3, 1, "etcd has a user "+n3.Name, "netctl", "join", third)
	netlab.Must(t, n1, "netctl", "datastore", "user", "remove", n3.Name)
	netlab.Must(t, n3, "netctl", "join", third)
	if out := netlab.Must(t, n1, "netctl", "datastore", "user", "list"); out != n2.Name+"\n"+n3.Name+"\n" {
		t.Errorf("users: %s", out)
	}
	netlab.Must(t, n1, "netctl", "node", "remove", "--force", n3.Name)
	netlab.Must(t, n3, "sh", "-c", "rm -rf /var/lib/netctl-node/* ; : >/etc/netctl.yaml")

	// The API makes and removes users, too; the password comes to who asks.
	const server = "--server=unix:///run/netctl-node/api.sock"
	no(n1, "already exists", "netctl", "datastore", "user", "create", n2.Name, server, "--password", dir+"again")
	netlab.Must(t, n1, "netctl", "datastore", "user", "create", "far", server, "--password", dir+"far", "--may", "history")
	if out := netlab.Must(t, n1, "netctl", "datastore", "user", "list", server); out != "far\n"+n2.Name+"\n" {
		t.Errorf("users: %s", out)
	}
	of, err := os.ReadFile(n1.Path(dir + "far"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := passwordClient(t, n2, url, admin.Path(dir+"ca.crt"), "far", strings.TrimSpace(string(of))).Get(t.Context(), datastore.ClusterKey); err != nil {
		t.Errorf("with the password that the API gave: %v", err)
	}
	netlab.Must(t, n1, "netctl", "datastore", "user", "remove", "far", server)
	if left, err := os.ReadDir(n1.Path(dir)); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() == "again" }) {
		t.Errorf("a password that is nobody's is left: %v %v", left, err)
	}

	// A node that is removed has no user any more, and with the next call no rights.
	netlab.Must(t, n1, "netctl", "node", "remove", "--force", n2.Name)
	if out := netlab.Must(t, n1, "netctl", "datastore", "user", "list"); out != "No users of nodes.\n" {
		t.Errorf("users: %s", out)
	}
	if _, err := c.Get(t.Context(), datastore.ClusterKey); err == nil {
		t.Error("a node that was removed reads")
	}
}
