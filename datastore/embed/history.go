package embed

import (
	"context"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"netctl/datastore"
)

// tidyEvery is how often records of the history are looked at for their age alone.
const tidyEvery = time.Hour

// historyBytes is how much of its quota a server leaves to the history of changes.
func (k *keeper) historyBytes() int64 { return min(datastore.HistoryBytes, k.quota/8) }

// tidy has the history of changes stay within its bounds: nodes may write to it and not
// delete. Of a server that is full it leaves less.
func (k *keeper) tidy(ctx context.Context, s *etcdserver.EtcdServer, now time.Time, alarmed bool) {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	records, err := count(ctx, s)
	if err != nil || records == k.records && now.Sub(k.tidied) < tidyEvery && !alarmed {
		return
	}
	most := k.historyBytes()
	if alarmed {
		most = datastore.FullHistory(most)
	}
	if err = datastore.TidyHistory(ctx, within{s}, most, now); err == nil {
		records, err = count(ctx, s)
	}
	if err != nil {
		k.log.Debug("history not tidied", "error", err)
		return
	}
	k.records, k.tidied = records, now
}

// ofHistory asks for all records, as this member knows them.
func ofHistory() *etcdserverpb.RangeRequest {
	end := datastore.HistoryPrefix[:len(datastore.HistoryPrefix)-1] + "0" // '0' follows '/'
	return &etcdserverpb.RangeRequest{Key: []byte(datastore.HistoryPrefix), RangeEnd: []byte(end), Serializable: true}
}

// count is how many records there are.
func count(ctx context.Context, s *etcdserver.EtcdServer) (int64, error) {
	r := ofHistory()
	r.CountOnly = true
	resp, err := s.Range(ctx, r)
	if err != nil {
		return 0, err
	}
	return resp.Count, nil
}

// within is the history in a server, for that itself.
type within struct{ *etcdserver.EtcdServer }

// List implements datastore.HistoryStore: of all records.
func (w within) List(ctx context.Context, _ ...string) (snap datastore.Snapshot, err error) {
	resp, err := w.Range(ctx, ofHistory())
	if err != nil {
		return snap, err
	}
	for _, kv := range resp.Kvs {
		snap.Entries = append(snap.Entries, datastore.Entry{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
	}
	return snap, nil
}

// Commit implements datastore.HistoryStore: it deletes.
func (w within) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	r := &etcdserverpb.TxnRequest{}
	for _, op := range t.Then {
		r.Success = append(r.Success, &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(op.Key)},
		}})
	}
	resp, err := w.Txn(ctx, r)
	if err != nil {
		return 0, err
	}
	return resp.Header.Revision, nil
}
