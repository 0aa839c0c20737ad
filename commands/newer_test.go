package commands

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/rogpeppe/go-internal/testscript"

	"netctl/datastore"
	"netctl/datastore/etcd"
)

// stores puts the content of a file under a key of the script's etcd, as a newer
// netctl would; without a file it prints what is there: stores KEY [FILE].
func stores(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: stores KEY [FILE]")
	}
	ctx := context.Background()
	s, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + filepath.Join(ts.Getenv("NETCTL_RUN_DIR"), "etcd.sock")}})
	ts.Check(err)
	defer func() { _ = s.Close() }()
	e, err := s.Get(ctx, args[0])
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		ts.Check(err)
	}
	if len(args) == 1 {
		_, err = ts.Stdout().Write(append(e.Value, '\n'))
		ts.Check(err)
		return
	}
	_, err = s.Commit(ctx, datastore.Txn{
		If:   []datastore.Condition{{Key: args[0], Revision: e.Revision}},
		Then: []datastore.Op{{Key: args[0], Value: []byte(ts.ReadFile(args[1]))}},
	})
	ts.Check(err)
}
