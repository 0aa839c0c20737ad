package lab

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"netctl/datastore"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// external starts Debian's etcd on a host, with a user root if auth, and returns the
// settings by which that is reached.
func external(t *testing.T, h *netlab.Host) string {
	t.Helper()
	dir := "/var/lib/netctl-node/external"
	ca, err := pki.Create(h.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(h.Path(dir), pki.Node{Name: "etcd", Addresses: []netip.Addr{h.Addr.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	url := "https://" + h.Addr.Addr().String() + ":2379"
	if _, err := h.Start("etcd", netlab.Cmd{Args: []string{
		"/usr/bin/etcd", "--name=external", "--data-dir=" + dir + "/data", "--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380", "--initial-cluster=external=http://127.0.0.1:2380",
		"--cert-file=" + dir + "/etcd.crt", "--key-file=" + dir + "/etcd.key", "--auth-token=simple",
	}}); err != nil {
		t.Fatalf("%v (Debian package etcd-server)", err)
	}
	netlab.Must(t, h, "sh", "-c", "printf root >"+dir+"/root.password")
	c := passwordClient(t, h, url, files.CA, "", "")
	netlab.Until(t, patience, "etcd", func() string {
		_, err := c.Get(t.Context(), "a")
		if err != nil {
			return err.Error()
		}
		return ""
	})
	for _, err := range []error{
		second(c.RoleAdd(t.Context(), "root")), second(c.UserAdd(t.Context(), "root", "root")), second(c.UserGrantRole(t.Context(), "root", "root")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	settings := func(user, password string) string {
		return fmt.Sprintf("datastore: {endpoints: [%q], ca: %s/ca.crt, user: %s, passwordFile: %s}\n", url, dir, user, password)
	}
	mustWrite(t, h.Path("/etc/netctl.yaml"), "node: admin\n"+settings("root", dir+"/root.password"))
	// Before authentication is on that is said.
	if out, err := h.Exec(t.Context(), netlab.Cmd{Args: []string{"sh", "-c", "cd " + dir + "; netctl datastore user create early 2>&1"}}); err != nil || !strings.Contains(out, "authentication is off") {
		t.Errorf("%s %v", out, err)
	}
	if _, err := c.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return settings("%s", dir+"/password")
}

// passwordClient is an etcd client of no netctl's on a host.
func passwordClient(t *testing.T, h *netlab.Host, url, ca, user, password string) *clientv3.Client {
	t.Helper()
	text, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{url}, TLS: &tls.Config{RootCAs: roots}, Username: user, Password: password, Logger: zap.NewNop(), DialOptions: dialFrom(h),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func second(_ any, err error) error { return err }

func mustWrite(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestExternalEtcd: two nodes with users of their own in an external etcd. Each has what its
// roles need; with a client of its own it gets no further.
func TestExternalEtcd(t *testing.T) {
	l := bareHosts(t, 3)
	admin, n1, n2 := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	settings := external(t, admin)
	const dir = "/var/lib/netctl-node/external/"
	for _, h := range []*netlab.Host{n1, n2} {
		netlab.Must(t, admin, "netctl", "datastore", "user", "create", h.Name, "--password", dir+h.Name+".password")
		if err := os.MkdirAll(h.Path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		for from, to := range map[string]string{"ca.crt": "ca.crt", h.Name + ".password": "password"} {
			text, err := os.ReadFile(admin.Path(dir + from))
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, h.Path(dir+to), string(text))
		}
		mustWrite(t, h.Path("/etc/netctl.yaml"), "node: "+h.Name+"\nroles: [agent, speaker]\n"+fmt.Sprintf(settings, h.Name)+"agent: {addresses: ["+h.Addr.Addr().String()+"]}\n")
	}
	if _, failed := netlab.Try(t, admin, "netctl", "datastore", "user", "create", n1.Name, "--password", dir+"again"); failed == nil || !strings.Contains(failed.Stderr, "user remove") {
		t.Errorf("a second time: %v", failed)
	}
	if _, err := os.Stat(admin.Path(dir + "again")); err == nil {
		t.Error("a password that is nobody's is left")
	}
	if out := netlab.Must(t, admin, "netctl", "datastore", "user", "list"); out != "early\nnode2\nnode3\n" {
		t.Errorf("users: %s", out)
	}
	starts(t, n1, n2)
	sound(t, n1, n2)
	netlab.Must(t, admin, "netctl", "pool", "add", "10.65.0.0/16")
	other, err := n1.Container("early")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := other.CNI(t.Context(), "ADD", netlab.Conf("web"), ""); err == nil || !strings.Contains(out+err.Error(), "etcd's roles do not let it") {
		t.Errorf("a network that a node may not make: %s %v", out, err)
	}
	netlab.Must(t, admin, "netctl", "profile", "add", "web")
	netlab.Must(t, admin, "netctl", "profile", "web", "rule", "add", "inbound", "allow", "from", "tag", "web")
	netlab.Must(t, admin, "netctl", "network", "create", "web")
	a, a4, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	pings(t, a, b4)
	pings(t, b, a4)

	password, err := os.ReadFile(n1.Path(dir + "password"))
	if err != nil {
		t.Fatal(err)
	}
	c := passwordClient(t, n1, "https://"+admin.Addr.Addr().String()+":2379", n1.Path(dir+"ca.crt"), n1.Name, strings.TrimSpace(string(password)))
	keys := []string{datastore.PoolsKey, datastore.MembersKey, datastore.AuthorityKey, datastore.HistoryPrefix + "9", "/other", datastore.Prefix + "policies/x", datastore.Prefix + "tiers/x", datastore.Prefix + "reservations/x", datastore.EventsPrefix + "node3/last"}
	for _, prefix := range []string{datastore.Prefix, datastore.ReportPrefix} {
		r, err := c.Get(t.Context(), prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range r.Kvs {
			keys = append(keys, string(kv.Key))
		}
	}
	others := 0
	for _, key := range keys {
		if strings.HasSuffix(key, "nodes/node2") || strings.Contains(key, "endpoints/node2/") || strings.HasPrefix(key, datastore.ReportPrefix+"node2/") || strings.Contains(key, "/blocks/") {
			continue
		}
		others++
		_, write := c.Put(t.Context(), key, "x")
		_, remove := c.Delete(t.Context(), key)
		for _, err := range []error{write, remove} {
			if !errors.Is(err, rpctypes.ErrPermissionDenied) {
				t.Errorf("%s: %v", key, err)
			}
		}
	}
	if others < 15 {
		t.Errorf("%d keys of others: %q", others, keys)
	}
	for _, key := range []string{datastore.JoinPrefix, datastore.APIUserPrefix, "/"} {
		if _, err := c.Get(t.Context(), key, clientv3.WithPrefix()); !errors.Is(err, rpctypes.ErrPermissionDenied) {
			t.Errorf("read %s: %v", key, err)
		}
	}
	if _, err := c.UserAdd(t.Context(), "x", "x"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Errorf("make a user: %v", err)
	}
	// Who was removed has no rights with the next call; what runs there goes on.
	netlab.Must(t, admin, "netctl", "datastore", "user", "remove", n1.Name)
	if _, err := c.Get(t.Context(), datastore.ClusterKey); err == nil {
		t.Error("a user that was removed reads")
	}
	pings(t, b, a4)
}
