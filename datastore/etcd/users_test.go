package etcd_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"netctl/datastore"
	"netctl/datastore/pki"
)

// TestCreateUser: a user that is there keeps the rights that it has, one that is made has
// those that were asked for and none of before, and one that cannot be made is not there.
func TestCreateUser(t *testing.T) {
	m := newMember(t)
	startExternal(t, m, 64<<20)
	admin := m.secure(m.issue(t, pki.Node{Name: "client"}))
	eventually(t, func() error {
		_, err := open(t, admin).ID(t.Context())
		return err
	})
	s, c := open(t, admin), rawClient(t, admin)
	grants := func(node string) string {
		r, err := c.RoleGet(t.Context(), "netctl-node-"+node)
		if err != nil {
			return err.Error()
		}
		var keys []string
		for _, p := range r.Perm {
			keys = append(keys, string(p.Key))
		}
		return strings.Join(keys, " ")
	}
	if err := s.CreateUser(t.Context(), "n1", "secret", nil); err != nil {
		t.Fatal(err)
	}
	had := grants("n1")
	if err := s.CreateUser(t.Context(), "n1", "other", []string{"networks"}); !errors.Is(err, datastore.ErrExists) || grants("n1") != had {
		t.Errorf("again: %v; it may write %s", err, grants("n1"))
	}

	// What somebody left of a role gives a new user nothing.
	for _, err := range []error{
		second(c.RoleAdd(t.Context(), "netctl-node-n2")),
		second(c.RoleGrantPermission(t.Context(), "netctl-node-n2", "/", "0", clientv3.PermissionType(clientv3.PermReadWrite))),
		s.CreateUser(t.Context(), "n2", "secret", []string{"profiles"}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, want := grants("n2"), strings.ReplaceAll(had, "n1", "n2"); !slices.Contains(strings.Fields(got), datastore.Prefix+"profiles/") || len(strings.Fields(got)) != len(strings.Fields(want))+1 {
		t.Errorf("n2 may write %s", got)
	}

	// It fails in the middle: a request is too large for etcd.
	if err := s.CreateUser(t.Context(), "n3", "secret", []string{strings.Repeat("x", 1600<<10)}); err == nil {
		t.Fatal("made")
	}
	users, err := c.UserList(t.Context())
	if err != nil || !slices.Equal(users.Users, []string{"n1", "n2"}) || !strings.Contains(grants("n3"), "not found") {
		t.Errorf("users %v, %v; n3 may write %s", users.Users, err, grants("n3"))
	}
}

// TestCertificateDenied: a node that etcd knows by its certificate has the rights of its
// name, and what it may not write is told as not allowed.
func TestCertificateDenied(t *testing.T) {
	m := newMember(t)
	startExternal(t, m, 64<<20)
	root := m.secure(m.issue(t, pki.Node{Name: "root"}))
	eventually(t, func() error {
		_, err := open(t, root).ID(t.Context())
		return err
	})
	c := rawClient(t, root)
	for _, err := range []error{
		second(c.RoleAdd(t.Context(), "root")), second(c.UserAdd(t.Context(), "root", "root")), second(c.UserGrantRole(t.Context(), "root", "root")),
		open(t, root).CreateUser(t.Context(), "n1", "", nil), second(c.AuthEnable(t.Context())),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, m.secure(m.issue(t, pki.Node{Name: "n1"})))
	for key, allowed := range map[string]bool{datastore.EventsPrefix + "n1/last": true, datastore.EventsPrefix + "n2/last": false, datastore.HistoryPrefix + "1": false} {
		_, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte("1")}}})
		if allowed != (err == nil) || !allowed && !errors.Is(err, datastore.ErrDenied) {
			t.Errorf("%s: %v", key, err)
		}
	}
	// Of several, the key is named that is not let, and nothing is written.
	block, network := datastore.KindPrefix(datastore.KindBlock)+"10.0.0.0-26", datastore.KindPrefix(datastore.KindNetwork)+"shop"
	_, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: block, Value: []byte("1")}, {Key: network, Value: []byte("1")}}})
	if !errors.Is(err, datastore.ErrDenied) || !strings.HasPrefix(err.Error(), "write "+network+": ") {
		t.Errorf("a network: %v", err)
	}
	if _, err := s.Get(t.Context(), block); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("a block is written: %v", err)
	}
}

func second(_ any, err error) error { return err }
