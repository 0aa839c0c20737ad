package control

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"time"

	"netctl/datastore"
)

// The pace of reports. A change is written reportSoon after the last report, a
// number of endpoints alone after reportLate, and without any change a report is
// written anew each heartbeat. A large report is written less often, so that it
// costs at most so many bytes a second: the sessions of 1,000 nodes are 100 MB.
const (
	reportSoon    = 3 * time.Second
	reportLate    = time.Minute
	heartbeat     = 5 * time.Minute
	changeRate    = 1024 // bytes a second
	heartbeatRate = 256
)

// Silence is after how long a node that reports nothing is taken for dead.
const Silence = 21 * time.Minute

// Reporter writes the report of one role of a node to the datastore, calmly and
// with jitter. Nobody else writes that report, so it compares nothing.
type Reporter struct {
	// Name is datastore.ReportName of the node and the role.
	Name  string
	Store datastore.Store
	// Status is what to report now. false: nothing, as the role is not in sync or
	// the node not its own. It is asked at most every three seconds.
	Status func(context.Context) (datastore.ReportStatus, bool)
	Log    *slog.Logger

	changed chan struct{} // holds one
	lost    atomic.Bool   // the datastore does not have what was written

	last    datastore.ReportStatus // as it was written
	written bool                   // the last try of it succeeded
	size    int                    // of it, in bytes
	tried   time.Time              // when that was; before the first, Run's start
	asked   time.Time              // when Status was asked last
	jitter  float64                // 1 to 1.5, drawn anew for each try
}

// NewReporter returns a Reporter that Run makes work.
func NewReporter(node, role string, store datastore.Store, status func(context.Context) (datastore.ReportStatus, bool), log *slog.Logger) *Reporter {
	return &Reporter{Name: datastore.ReportName(node, role), Store: store, Status: status, Log: log, changed: make(chan struct{}, 1)}
}

// Wake notes that something may have changed; it never blocks.
func (r *Reporter) Wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Anew has a report written whatever the last one said: the datastore is another one,
// and by the report people see that the role is there.
func (r *Reporter) Anew() {
	r.lost.Store(true)
	r.Wake()
}

// String names the task.
func (r *Reporter) String() string { return "report to the datastore" }

// Run writes reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	r.try()
	due := time.NewTimer(r.after(heartbeat, heartbeatRate))
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
		case <-due.C:
		}
		due.Reset(r.look(ctx))
	}
}

// look writes a report if it is due and returns when to look again.
func (r *Reporter) look(ctx context.Context) time.Duration {
	if soon := max(r.after(reportSoon, changeRate), time.Until(r.asked.Add(reportSoon))); soon > 0 {
		return soon
	}
	r.asked = time.Now()
	beat := r.after(heartbeat, heartbeatRate)
	now, ok := r.Status(ctx)
	if ok && r.lost.Swap(false) {
		r.written = false
	}
	switch {
	case !ok:
		r.try()
		return r.after(heartbeat, heartbeatRate)
	case !r.written, beat <= 0, !sameReport(now, r.last, true):
	case !sameReport(now, r.last, false):
		if late := r.after(reportLate, changeRate); late > 0 {
			return late
		}
	default:
		return beat
	}
	err := r.write(ctx, now)
	r.try()
	if r.written = err == nil; !r.written {
		r.Log.Debug("not reported", "error", err)
		return r.after(reportSoon, changeRate)
	}
	return r.after(heartbeat, heartbeatRate)
}

// sameReport compares what two reports say, leaving out when; mostly: and the
// number of endpoints too.
func sameReport(a, b datastore.ReportStatus, mostly bool) bool {
	a.Seen = b.Seen
	if mostly {
		a.Endpoints = b.Endpoints
	}
	return reflect.DeepEqual(a, b)
}

// try begins the wait for the next report.
func (r *Reporter) try() { r.tried, r.jitter = time.Now(), 1+rand.Float64()/2 }

// after is how long it is until the last try is so old.
func (r *Reporter) after(age time.Duration, rate int) time.Duration {
	age += time.Duration(r.size) * time.Second / time.Duration(rate)
	return time.Until(r.tried.Add(time.Duration(float64(age) * r.jitter)))
}

// write puts the report.
func (r *Reporter) write(ctx context.Context, s datastore.ReportStatus) error {
	s.Seen = time.Now().UTC().Truncate(time.Second)
	_, op, err := datastore.OpPut(&datastore.Report{Metadata: datastore.Metadata{Name: r.Name}, Status: s})
	if err != nil {
		return err
	}
	if _, err = r.Store.Commit(ctx, datastore.Txn{Then: []datastore.Op{op}}); err != nil {
		return err
	}
	r.last, r.size = s, len(op.Value)
	return nil
}
