package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"netctl/datastore"
)

// Watch implements datastore.Store as one stream to one member. It ends with the
// connection, and when the member loses its leader: whoever watches decides
// whether what answers next is still the same store. A batch without events
// says that nothing changed up to its revision.
func (s *Store) Watch(ctx context.Context, prefix string, after int64, fn func(datastore.Batch) error) error {
	what := "watch " + prefix
	streamCtx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	stream, err := s.watch.Watch(streamCtx, callOptions()...)
	if err != nil {
		return s.explain(ctx, what, err)
	}
	err = stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
		CreateRequest: &etcdserverpb.WatchCreateRequest{
			Key:            []byte(prefix),
			RangeEnd:       []byte(clientv3.GetPrefixRangeEnd(prefix)),
			StartRevision:  after + 1,
			ProgressNotify: true,
			Fragment:       true,
		},
	}})
	if err != nil {
		// The stream's own error is what Recv says.
		_, err = stream.Recv()
		return s.explain(ctx, what, err)
	}
	var batch datastore.Batch
	for {
		r, err := stream.Recv()
		if err != nil {
			return s.explain(ctx, what, err)
		}
		if r.Canceled {
			return s.cancelled(ctx, what, r)
		}
		if r.Created {
			continue
		}
		for _, e := range r.Events {
			batch.Events = append(batch.Events, event(e))
		}
		if r.Fragment {
			continue // the rest of the same revisions follows
		}
		batch.Revision = r.Header.Revision
		if n := len(batch.Events); n > 0 {
			batch.Revision = batch.Events[n-1].Revision
		}
		if err := fn(batch); err != nil {
			return err
		}
		batch = datastore.Batch{}
	}
}

// cancelled is why the server ended the watch.
func (s *Store) cancelled(ctx context.Context, what string, r *etcdserverpb.WatchResponse) error {
	if r.CompactRevision != 0 {
		return fmt.Errorf("%s: history before revision %d is gone: %w", what, r.CompactRevision, datastore.ErrCompacted)
	}
	return s.explain(ctx, what, errors.New(r.CancelReason))
}

func event(e *mvccpb.Event) datastore.Entry {
	if e.Type == mvccpb.Event_DELETE {
		return datastore.Entry{Key: string(e.Kv.Key), Revision: e.Kv.ModRevision}
	}
	return entry(e.Kv)
}
