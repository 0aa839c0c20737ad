package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"netctl/datastore"
)

// Commit implements datastore.Store as one etcd transaction. After an error
// that wraps datastore.ErrUnavailable, or when ctx ended, t may have been applied
// or not.
func (s *Store) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	r, byRoles, err := s.txn(ctx, t)
	if byRoles && len(t.Then) > 1 {
		err = s.denying(ctx, t, err)
	}
	if err != nil {
		return 0, err
	}
	if r.Succeeded {
		return r.Header.Revision, nil
	}
	// The reads of the failed transaction are of the moment it failed.
	for i, c := range t.If {
		var have int64
		if kvs := r.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			have = kvs[0].ModRevision
		}
		if have != c.Revision {
			return 0, c.Failed(have)
		}
	}
	return 0, fmt.Errorf("%s: %w", describe(t), datastore.ErrConflict)
}

// txn is one try; byRoles says of an error that etcd's roles do not let it.
func (s *Store) txn(ctx context.Context, t datastore.Txn) (r *etcdserverpb.TxnResponse, byRoles bool, err error) {
	err = s.write(ctx, describe(t), func(ctx context.Context) (err error) {
		r, err = s.kv.Txn(ctx, request(t), callOptions()...)
		byRoles = errors.Is(rpctypes.Error(err), rpctypes.ErrPermissionDenied)
		return err
	})
	return r, byRoles, err
}

// denying is the error of a transaction that etcd's roles do not let, with the key that it
// is about: etcd does not say. It asks with each operation alone, on a condition that never
// holds, so that nothing is written.
func (s *Store) denying(ctx context.Context, t datastore.Txn, err error) error {
	for _, op := range t.Then {
		never := datastore.Condition{Key: op.Key, Revision: math.MaxInt64}
		if _, byRoles, one := s.txn(ctx, datastore.Txn{If: []datastore.Condition{never}, Then: []datastore.Op{op}}); byRoles {
			return one
		}
	}
	return err
}

// request compares every condition's key and, if one fails, reads all of their
// revisions to tell which.
func request(t datastore.Txn) *etcdserverpb.TxnRequest {
	r := &etcdserverpb.TxnRequest{}
	for _, c := range t.If {
		r.Compare = append(r.Compare, &etcdserverpb.Compare{
			Key:         []byte(c.Key),
			Target:      etcdserverpb.Compare_MOD,
			Result:      etcdserverpb.Compare_EQUAL,
			TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: c.Revision},
		})
		r.Failure = append(r.Failure, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{
			RequestRange: &etcdserverpb.RangeRequest{Key: []byte(c.Key), KeysOnly: true},
		}})
	}
	for _, op := range t.Then {
		if op.Value == nil {
			r.Success = append(r.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(op.Key)},
			}})
			continue
		}
		r.Success = append(r.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{
			RequestPut: &etcdserverpb.PutRequest{Key: []byte(op.Key), Value: op.Value},
		}})
	}
	return r
}

// describe names the first key of t, for messages.
func describe(t datastore.Txn) string {
	switch {
	case len(t.Then) > 0:
		return "write " + t.Then[0].Key
	case len(t.If) > 0:
		return "compare " + t.If[0].Key
	default:
		return "write nothing"
	}
}

// entry is the stored key; its value is never nil.
func entry(kv *mvccpb.KeyValue) datastore.Entry {
	value := kv.Value
	if value == nil {
		value = []byte{}
	}
	return datastore.Entry{Key: string(kv.Key), Value: value, Revision: kv.ModRevision}
}
