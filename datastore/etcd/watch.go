package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"netctl/datastore"
)

// Watch implements datastore.Store as one stream to one member. It ends with the
// connection, and when the member loses its leader: whoever watches decides
// whether what answers next is still the same store. A batch without events
// says that nothing changed up to its revision.
//
// Each prefix is a watch of its own within the stream, and the member promises
// nothing of one by what it sends for another. So what is complete is the least
// of what is known of each: its last event, or the member's word (every minute or
// ten) that there was none.
func (s *Store) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	what := "watch " + strings.Join(prefixes, " ")
	if err := s.connect(ctx); err != nil {
		return s.unusable(what, err)
	}
	streamCtx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	stream, err := s.watch.Watch(streamCtx, callOptions()...)
	if err != nil {
		return s.explain(ctx, ctx, what, err)
	}
	parts := make([]part, len(prefixes))
	for i, p := range prefixes {
		parts[i].complete = after
		if err := stream.Send(watchRequest(p, after, int64(i+1))); err != nil {
			// The stream's own error is what Recv says.
			_, err = stream.Recv()
			return s.explain(ctx, ctx, what, err)
		}
	}
	for {
		r, err := stream.Recv()
		if err != nil {
			return s.explain(ctx, ctx, what, err)
		}
		if r.Canceled {
			return s.cancelled(ctx, what, r)
		}
		if r.Created || r.WatchId < 1 || r.WatchId > int64(len(parts)) {
			continue
		}
		if batch, whole := parts[r.WatchId-1].take(r); whole {
			batch.Revision = slices.MinFunc(parts, func(a, b part) int { return int(a.complete - b.complete) }).complete
			if err := fn(batch); err != nil {
				return err
			}
		}
	}
}

// watchRequest asks for the changes of a prefix. The IDs of a stream begin at 1: 0
// leaves the choice to the member.
func watchRequest(prefix string, after, id int64) *etcdserverpb.WatchRequest {
	return &etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{
		CreateRequest: &etcdserverpb.WatchCreateRequest{
			Key:            []byte(prefix),
			RangeEnd:       rangeEnd(prefix),
			StartRevision:  after + 1,
			ProgressNotify: true,
			Fragment:       true,
			WatchId:        id,
		},
	}}
}

// part is the watch of one prefix.
type part struct {
	complete int64             // revision up to which everything was given
	events   []datastore.Entry // fragments that the rest of follows
}

// take adds a response; whole: no fragment is missing.
func (p *part) take(r *etcdserverpb.WatchResponse) (b datastore.Batch, whole bool) {
	for _, e := range r.Events {
		p.events = append(p.events, event(e))
	}
	if r.Fragment {
		return b, false // the rest of the same revisions follows
	}
	b.Events, p.events = p.events, nil
	p.complete = max(p.complete, r.Header.Revision)
	if n := len(b.Events); n > 0 {
		p.complete = b.Events[n-1].Revision
	}
	return b, true
}

// cancelled is why the server ended the watch.
func (s *Store) cancelled(ctx context.Context, what string, r *etcdserverpb.WatchResponse) error {
	if r.CompactRevision != 0 {
		return fmt.Errorf("%s: history before revision %d is gone: %w", what, r.CompactRevision, datastore.ErrCompacted)
	}
	return s.explain(ctx, ctx, what, errors.New(r.CancelReason))
}

func event(e *mvccpb.Event) datastore.Entry {
	if e.Type == mvccpb.Event_DELETE {
		return datastore.Entry{Key: string(e.Kv.Key), Revision: e.Kv.ModRevision}
	}
	return entry(e.Kv)
}
