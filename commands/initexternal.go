package commands

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
)

// foundedIn is the user by whom init reaches the external etcd that it was given; "": it
// was given none.
func (s *settings) foundedIn() (user string, err error) {
	d := s.Datastore
	switch {
	case s.origin["datastore::endpoints"] == "default" && d.User == "":
		return "", nil
	case s.origin["datastore::endpoints"] == "default":
		return "", usage("init: --datastore-user is of an external etcd: say --datastore-endpoints and --datastore-ca too, or neither for netctl's own")
	case d.User == "":
		return "", usage("init: an external etcd wants --datastore-user and --datastore-password-file of one who has its role root (nodes known by certificates alone are set up by hand: docs/datastore.md)")
	case d.Cert != "" || d.Key != "":
		return "", usage("init: nodes that join are known to an external etcd by user and password, without certificates: leave --datastore-cert and --datastore-key out")
	}
	return d.User, nil
}

// etcdCA and etcdPassword are where a node has what it reaches an external etcd with.
func (n *newNode) etcdCA() string { return filepath.Join(n.s.StateDir, tlsFolder, "etcd-ca.crt") }
func (n *newNode) etcdPassword() string {
	return filepath.Join(n.s.StateDir, tlsFolder, "etcd.password")
}

// writeUser writes what a node reaches an external etcd with.
func (n *newNode) writeUser(ca, password []byte) error {
	if err := n.write(n.etcdPassword(), password, 0o600); err != nil {
		return err
	}
	return n.write(n.etcdCA(), ca, 0o644)
}

// foundIn makes a cluster in an external etcd: this node lets others in there. Nothing is
// written before etcd said that it may.
func (n *newNode) foundIn(ctx context.Context, ca *pki.Authority, life time.Duration) (token datastore.Token, err error) {
	d := n.s.Datastore
	// Roles cannot look into people's home folders: they get copies.
	authority, err := os.ReadFile(d.CA)
	if err != nil {
		return token, fmt.Errorf("init: %w", err)
	}
	password, err := os.ReadFile(d.PasswordFile)
	if err != nil {
		return token, fmt.Errorf("init: %w", err)
	}
	o := n.s.storeOptions()
	o.Members = ""
	s, err := etcd.Open(ctx, o)
	if err != nil {
		return token, fmt.Errorf("init: %w", err)
	}
	defer s.Close()
	defer n.a.waiting("the datastore")()
	if err := vacant(ctx, s, d.User, d.Endpoints); err != nil {
		return token, fmt.Errorf("init: %w", err)
	}
	if err := n.writeAuthority(n.files("ca"), ca); err != nil {
		return token, err
	}
	if err := n.writeUser(authority, password); err != nil {
		return token, err
	}
	key, _, err := pki.NewKey()
	if err != nil {
		return token, err
	}
	now := time.Now()
	token = n.token(ca, now.Add(life))
	undo, err := n.enterFirst(ctx, s, key, token.Record(now))
	if err != nil {
		return token, fmt.Errorf("init: %w", err)
	}
	if err := n.configure(d.Endpoints, join.DefaultPort); err != nil {
		return token, errors.Join(err, undo())
	}
	return token, nil
}

// vacant refuses an etcd in which this user cannot make a cluster, or in which one is.
func vacant(ctx context.Context, s *etcd.Store, user string, endpoints []string) error {
	if on, err := s.Protected(ctx); err != nil {
		return err
	} else if !on {
		return fmt.Errorf("etcd's authentication is off, and everybody may do everything: make a user root with the role root there, then `etcdctl auth enable`: %w", datastore.ErrInvalid)
	}
	if _, err := s.Users(ctx); errors.Is(err, datastore.ErrDenied) {
		return fmt.Errorf("user %s may not make the users of nodes: it needs etcd's role root (`etcdctl user grant-role %s root`): %w", user, user, datastore.ErrDenied)
	} else if err != nil {
		return err
	}
	snap, err := s.List(ctx, datastore.Prefix, datastore.JoinPrefix)
	if err != nil || len(snap.Entries) == 0 {
		return err
	}
	what := "keys of netctl's"
	if c, _, err := snap.Cluster(); err == nil && c != nil {
		what = "the cluster " + c.UUID
	}
	return fmt.Errorf("the etcd at %s holds %s already: its first node lets this machine in (`netctl token create` there), and with another etcd it is a cluster of its own: %w", strings.Join(endpoints, ", "), what, datastore.ErrExists)
}

// enterFirst writes the cluster, its first node and the token for the second in one
// transaction, and returns how that is taken back.
func (n *newNode) enterFirst(ctx context.Context, s datastore.Store, key *ecdsa.PrivateKey, t datastore.JoinToken) (undo func() error, err error) {
	now := time.Now()
	hash, err := pki.KeyHash(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	nodeAt, err := datastore.JoinedKey(n.s.Node)
	if err != nil {
		return nil, err
	}
	tokenAt, err := datastore.TokenKey(t.ID)
	if err != nil {
		return nil, err
	}
	var begin, forget datastore.Txn
	for _, record := range []struct {
		key   string
		value any
	}{
		{datastore.ClusterKey, datastore.NewCluster(now)},
		{nodeAt, datastore.JoinedNode{Name: n.s.Node, Key: hash, Member: true, Since: now.UTC().Truncate(time.Second)}},
		{tokenAt, t},
	} {
		op, err := datastore.RecordOp(record.key, record.value)
		if err != nil {
			return nil, err
		}
		begin.If, begin.Then = append(begin.If, datastore.Condition{Key: record.key}), append(begin.Then, op)
		forget.Then = append(forget.Then, datastore.Op{Key: record.key})
	}
	if _, err := s.Commit(ctx, begin); err != nil {
		return nil, err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, err := s.Commit(ctx, forget)
		return err
	}, nil
}
