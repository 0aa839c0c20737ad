package api

import (
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"netctl/commands/telemetry"
	"netctl/datastore"
)

// meters count what clients ask.
type meters struct {
	took     telemetry.Histogram
	requests telemetry.Counter // by status
	dropped  atomic.Uint64     // watchers
}

// metered is the answer to a request.
type metered struct {
	http.ResponseWriter
	began   time.Time
	status  int  // 0: nothing was answered yet
	watches bool // it does not end by itself
}

// Unwrap is for http.ResponseController.
func (m *metered) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (m *metered) WriteHeader(status int) {
	m.status = status
	m.ResponseWriter.WriteHeader(status)
}

func (m *meters) note(a *metered) {
	if a.status == 0 {
		return // the client was gone
	}
	m.requests.Add(strconv.Itoa(a.status), 1)
	if !a.watches {
		m.took.Observe(time.Since(a.began))
	}
}

// readyKey is read to see whether the datastore answers, in readyTime.
const (
	readyKey  = datastore.ClusterKey
	readyTime = 3 * time.Second
)

// ready says why requests cannot be answered.
func (s *server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	var there struct{}
	_, err := datastore.Record(ctx, s.Store, readyKey, &there)
	return err
}

func (s *server) collect(_ context.Context, p *telemetry.Page) error {
	p.Durations("netctl_api_request_seconds", &s.meters.took)
	p.Counts("netctl_api_requests_total", &s.meters.requests)
	s.watch.mu.Lock()
	watchers := len(s.watch.watchers)
	s.watch.mu.Unlock()
	p.Put("netctl_api_watchers", float64(watchers))
	p.Put("netctl_api_watchers_dropped_total", float64(s.meters.dropped.Load()))
	return nil
}
