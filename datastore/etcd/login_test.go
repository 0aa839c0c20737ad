package etcd_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
)

// TestExternalLogin: an etcd that knows users and passwords and asks for no certificate,
// with the roles of docs/datastore.md. A node writes what is its own.
func TestExternalLogin(t *testing.T) {
	m := newMember(t)
	cmd, said := startExternal(t, m, 64<<20, "--client-cert-auth=false", "--trusted-ca-file=", "--auth-token=simple", "--auth-token-ttl=2")
	admin := m.secure(m.issue(t, pki.Node{Name: "client"}))
	eventually(t, func() error {
		_, err := open(t, admin).ID(t.Context())
		return err
	})
	grantRoles(t, admin)
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := etcd.Options{Endpoints: admin.Endpoints, CA: admin.CA, User: "n2", PasswordFile: file}
	s := open(t, o)
	write := func(key string) error {
		_, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte("1")}}})
		return err
	}
	for key, allowed := range map[string]bool{
		datastore.Prefix + "nodes/n2": true, datastore.Prefix + "endpoints/n2/cni/a/eth0": true, datastore.ReportPrefix + "n2/agent": true, datastore.EventsPrefix + "n2/last": true,
		datastore.Prefix + "blocks/10.0.0.0-26": true, datastore.Prefix + "profiles/web": true,
		datastore.Prefix + "nodes/n1": false, datastore.Prefix + "endpoints/n1/cni/a/eth0": false, datastore.ReportPrefix + "n1/agent": false, datastore.EventsPrefix + "n1/last": false,
		datastore.Prefix + "pools/10.0.0.0-16": false, datastore.ClusterKey: false, "/other": false,
	} {
		if err := write(key); allowed != (err == nil) || !allowed && !errors.Is(err, datastore.ErrDenied) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := s.List(t.Context(), datastore.Prefix); err != nil {
		t.Error(err)
	}
	watched := make(chan error, 1)
	go func() {
		watched <- s.Watch(t.Context(), []string{datastore.Prefix}, 1, func(datastore.Batch) error { return errors.New("seen") })
	}()
	if err := <-watched; err == nil || err.Error() != "seen" {
		t.Errorf("watch: %v", err)
	}
	// A token that etcd forgot is asked for again; so it is of an etcd that was away.
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	restarted := exec.Command(cmd.Path, cmd.Args[1:]...)
	restarted.Stdout, restarted.Stderr = said, said
	if err := restarted.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = restarted.Process.Kill()
		_ = restarted.Wait()
	})
	eventually(t, func() error { return write(datastore.Prefix + "nodes/n2") })

	for what, change := range map[string]func(*etcd.Options){
		"etcd does not know user n2": func(o *etcd.Options) {
			o.PasswordFile = filepath.Join(t.TempDir(), "x")
			mustWrite(t, o.PasswordFile, "wrong")
		},
		"the password of user n2 cannot be used":   func(o *etcd.Options) { o.PasswordFile = "/none" },
		"etcd's authentication is on and does not": func(o *etcd.Options) { *o = admin; o.Members = "" },
	} {
		other := o
		change(&other)
		_, err := open(t, other).Get(t.Context(), datastore.Prefix+"nodes/n2")
		if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), what) {
			t.Errorf("%v; want %q", err, what)
		}
	}
}

func mustWrite(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// rawClient is etcd's own client.
func rawClient(t *testing.T, o etcd.Options) *clientv3.Client {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(o.Cert, o.Key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(o.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	c, err := clientv3.New(clientv3.Config{Endpoints: o.Endpoints, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// grantRoles makes the users root and n2, and turns authentication on.
func grantRoles(t *testing.T, o etcd.Options) {
	t.Helper()
	c := rawClient(t, o)
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.RoleAdd(t.Context(), "root"))
	must(c.UserAdd(t.Context(), "root", "root"))
	must(c.UserGrantRole(t.Context(), "root", "root"))
	must(c.RoleAdd(t.Context(), "node"))
	must(c.RoleAdd(t.Context(), "n2"))
	read, write := clientv3.PermissionType(clientv3.PermRead), clientv3.PermissionType(clientv3.PermReadWrite)
	prefix := clientv3.GetPrefixRangeEnd
	must(c.RoleGrantPermission(t.Context(), "node", "/netctl/", prefix("/netctl/"), read))
	for _, kind := range []string{"blocks/", "networks/", "profiles/"} {
		p := datastore.Prefix + kind
		must(c.RoleGrantPermission(t.Context(), "node", p, prefix(p), write))
	}
	must(c.RoleGrantPermission(t.Context(), "n2", datastore.Prefix+"nodes/n2", "", write))
	for _, p := range []string{datastore.Prefix + "endpoints/n2/", datastore.ReportPrefix + "n2/", datastore.EventsPrefix + "n2/"} {
		must(c.RoleGrantPermission(t.Context(), "n2", p, prefix(p), write))
	}
	must(c.UserAdd(t.Context(), "n2", "secret"))
	must(c.UserGrantRole(t.Context(), "n2", "node"))
	must(c.UserGrantRole(t.Context(), "n2", "n2"))
	must(c.AuthEnable(t.Context()))
}
