package join

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
)

// etcdUsers are the users of an external etcd, with their passwords.
type etcdUsers map[string]string

func (u etcdUsers) CreateUser(_ context.Context, node, password string, _ []string) error {
	if _, is := u[node]; is {
		return datastore.ErrExists
	}
	u[node] = password
	return nil
}

func (u etcdUsers) RemoveUser(_ context.Context, node string) error {
	if _, is := u[node]; !is {
		return datastore.ErrNotFound
	}
	delete(u, node)
	return nil
}

// TestJoinExternal: who joins a cluster whose etcd is external gets a user there, another
// password where an answer was lost, and never the user of somebody else.
func TestJoinExternal(t *testing.T) {
	w := newWorld(t, time.Hour)
	users := etcdUsers{"taken": "of somebody"}
	w.service.Users, w.service.EtcdCA = users, filepath.Join(t.TempDir(), "ca.crt")
	w.service.Own = []string{"https://192.0.2.9:2379"}
	if err := os.WriteFile(w.service.EtcdCA, []byte("etcd's"), 0o600); err != nil {
		t.Fatal(err)
	}
	token, k := w.token(true, time.Hour), key(t)
	c := w.client(token)
	for name, peer := range map[string]string{"n2": "https://192.0.2.2:2380", "taken": ""} {
		_, err := c.Join(t.Context(), token, name, k, peer)
		if want := map[string]string{"n2": "leave --datastore out", "taken": "etcd has a user taken"}[name]; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
	if users["taken"] != "of somebody" || w.joined("taken", nil).Name != "" {
		t.Errorf("of a name that is taken there are %v and %v", users, w.joined("taken", nil))
	}
	var passwords []string
	for range 2 {
		a, err := c.Join(t.Context(), token, "n2", k, "")
		if err != nil {
			t.Fatal(err)
		}
		if u := a.User; u == nil || u.Name != "n2" || users["n2"] != u.Password || string(u.Authority) != "etcd's" || len(a.Endpoints) != 1 || a.Endpoints[0] != w.service.Own[0] {
			t.Fatalf("%+v %+v", a, u)
		}
		passwords = append(passwords, a.User.Password)
	}
	if len(passwords[0]) < 20 || passwords[0] == passwords[1] || !w.joined("n2", nil).User {
		t.Errorf("passwords %q", passwords)
	}
}
