package embed

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"google.golang.org/grpc"

	"netctl/datastore"
)

// How much history stays: what a watcher that was away may resume from.
const (
	historyTime = 10 * time.Minute
	lookEvery   = time.Minute
	alarmEvery  = time.Second // while the quota alarm is on
	defragEvery = 10 * time.Minute
	// maxWindow bounds the history in bytes, whatever the quota.
	maxWindow = 64 << 20
	// worthwhile is the size of a file that is worth defragmenting at half use.
	worthwhile = 256 << 20
)

// keeper keeps the database below its quota. etcd compacts by the clock alone
// and never shrinks its file; a burst of writes would fill it between two ticks.
// The keeper counts what is written: after a window of bytes it compacts to the
// window before, and writers that run ahead of it wait. It also bounds the history of changes.
type keeper struct {
	quota  int64
	window int64 // bytes
	log    *slog.Logger
	wake   chan struct{} // capacity 1

	mu      sync.Mutex
	written int64         // bytes since the last compaction by size
	alarmed bool          // as of the last look
	done    chan struct{} // closed after each compaction by size

	// Only run's goroutine.
	mark      int64  // revision at the last compaction by size
	compacted int64  // last revision compacted to
	past      []mark // one each lookEvery
	defragged time.Time
	records   int64     // of the history of changes, after the last tidying
	tidied    time.Time // when that was
	full      bool      // and it was said
}

type mark struct {
	at       time.Time
	revision int64
}

func newKeeper(quota int64, log *slog.Logger) *keeper {
	return &keeper{
		quota: quota, window: min(quota/16, maxWindow), log: log,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// unary sees every call: it counts writes and holds back those that would
// outrun compaction.
func (k *keeper) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if n := cost(req); n > 0 {
		if err := k.admit(ctx, n); err != nil {
			return nil, err
		}
	}
	resp, err := next(ctx, req)
	if errors.Is(err, rpctypes.ErrGRPCNoSpace) {
		k.poke()
	}
	return resp, err
}

// cost is about what a request adds to the file, in bytes.
func cost(req any) int64 {
	const overhead = 256 // of one key in etcd's pages
	switch r := req.(type) {
	case *etcdserverpb.PutRequest:
		return int64(len(r.Key)+len(r.Value)) + overhead
	case *etcdserverpb.DeleteRangeRequest:
		return overhead
	case *etcdserverpb.TxnRequest:
		var sum int64
		for _, op := range r.Success {
			if put := op.GetRequestPut(); put != nil {
				sum += cost(put)
			} else if op.GetRequestDeleteRange() != nil {
				sum += overhead
			}
		}
		return sum
	}
	return 0
}

// admit returns when n more bytes may be written.
func (k *keeper) admit(ctx context.Context, n int64) error {
	k.mu.Lock()
	k.written += n
	for k.written >= 3*k.window {
		k.poke()
		done := k.done
		k.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
		k.mu.Lock()
	}
	poke := k.written >= k.window || k.alarmed
	k.mu.Unlock()
	if poke {
		k.poke()
	}
	return nil
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run looks after the server until ctx ends. Writers that wait are let go then.
func (k *keeper) run(ctx context.Context, s *etcdserver.EtcdServer) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	k.past = []mark{{time.Now(), s.KV().Rev()}}
	for {
		k.look(ctx, s)
		if k.isAlarmed() {
			// Not at every write that fails.
			select {
			case <-time.After(alarmEvery):
			case <-ctx.Done():
			}
		}
		select {
		case <-k.wake:
		case <-tick.C:
		case <-ctx.Done():
			k.release()
			return
		}
	}
}

func (k *keeper) isAlarmed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.alarmed
}

// release lets waiting writers go on.
func (k *keeper) release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.written = 0
	close(k.done)
	k.done = make(chan struct{})
}

// look does whatever is due.
func (k *keeper) look(ctx context.Context, s *etcdserver.EtcdServer) {
	alarmed := ourAlarm(s)
	k.mu.Lock()
	k.alarmed = alarmed
	bySize := k.written >= k.window
	k.mu.Unlock()
	now := time.Now()
	if alarmed || bySize || s.Leader() == s.MemberID() {
		k.tidy(ctx, s, now, alarmed)
	}
	revision := s.KV().Rev()
	to := k.byTime(now, revision)
	if bySize {
		to, k.mark = max(to, k.mark), revision
	}
	if alarmed {
		to = revision
	}
	k.compact(ctx, s, to)
	if alarmed {
		// What was freed counts as unused only some commits later, and while writes are
		// refused there are no others.
		s.Backend().ForceCommit()
	}
	k.defrag(s, now, alarmed)
	if bySize {
		k.release()
	}
	if alarmed {
		k.disarm(ctx, s)
	} else {
		k.full = false
	}
}

// byTime is the revision of historyTime ago.
func (k *keeper) byTime(now time.Time, revision int64) int64 {
	if now.Sub(k.past[len(k.past)-1].at) >= lookEvery {
		k.past = append(k.past, mark{now, revision})
	}
	for len(k.past) > 1 && now.Sub(k.past[1].at) >= historyTime {
		k.past = k.past[1:]
	}
	if now.Sub(k.past[0].at) < historyTime {
		return 0
	}
	return k.past[0].revision
}

func (k *keeper) compact(ctx context.Context, s *etcdserver.EtcdServer, to int64) {
	if to <= max(k.compacted, 1) {
		return
	}
	_, err := s.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: to, Physical: true})
	switch {
	case err == nil, errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted):
		k.compacted = to
	case ctx.Err() == nil:
		// Another member's is in progress, or there is no leader: the next look.
		k.log.Debug("compaction not done", "revision", to, "error", err)
	}
}

// defrag shrinks the file if that is worth it. Calls wait meanwhile: about a second for
// each 100 MiB in use.
func (k *keeper) defrag(s *etcdserver.EtcdServer, now time.Time, alarmed bool) {
	size := s.Backend().Size()
	if !k.worth(size, s.Backend().SizeInUse(), alarmed, now) {
		return
	}
	k.defragged = now
	if err := s.Defragment(); err != nil {
		k.log.Warn("datastore not defragmented", "error", err)
		return
	}
	k.log.Info("datastore defragmented", "before", size, "after", s.Backend().Size())
}

// worth says whether a file is to be shrunk: when half of it is unused, or when it comes
// near the quota and there is something to win, the end of the quota alarm at last.
func (k *keeper) worth(size, inUse int64, alarmed bool, now time.Time) bool {
	unused := size - inUse
	if (alarmed || size > k.quota/4*3) && unused > k.quota/16 {
		return true
	}
	if room := datastore.RoomAgain(k.quota); alarmed && size > room && inUse <= room {
		return true
	}
	return size > min(k.quota/2, worthwhile) && unused > size/2 && now.Sub(k.defragged) > defragEvery
}

// disarm clears our quota alarm once there is room again.
func (k *keeper) disarm(ctx context.Context, s *etcdserver.EtcdServer) {
	size := s.Backend().Size()
	if size > datastore.RoomAgain(k.quota) {
		k.sayFull(size, s.Backend().SizeInUse())
		return
	}
	_, err := s.Alarm(ctx, &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_DEACTIVATE, MemberID: uint64(s.MemberID()), Alarm: etcdserverpb.AlarmType_NOSPACE,
	})
	if err != nil {
		k.log.Warn("quota alarm not cleared", "error", err)
		return
	}
	k.mu.Lock()
	k.alarmed = false
	k.mu.Unlock()
	k.log.Info("quota alarm cleared", "size", size, "quota", k.quota, datastore.EventProblem.Mark())
}

// sayFull logs that the database is full, once until it is no more; sizes are in bytes.
func (k *keeper) sayFull(size, inUse int64) {
	if !k.full {
		k.log.Error("datastore full", "size", size, "in_use", inUse, "quota", k.quota, datastore.EventProblem.Mark())
	}
	k.full = true
}

func ourAlarm(s *etcdserver.EtcdServer) bool {
	for _, a := range s.Alarms() {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE && a.MemberID == uint64(s.MemberID()) {
			return true
		}
	}
	return false
}
