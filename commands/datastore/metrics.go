//go:build !bundled

package datastore

import (
	"bytes"
	"context"
	"errors"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"netctl/commands/telemetry"
)

// shownUntil runs what shows the role until ctx ends.
func shownUntil(ctx context.Context, shown *telemetry.Role) *sync.WaitGroup {
	var all sync.WaitGroup
	for _, t := range shown.Tasks() {
		all.Go(func() { _ = t.Run(ctx) }) // a role does not end because nobody sees it
	}
	return &all
}

// isServed says why the datastore is not ready.
func isServed(served <-chan struct{}) func(context.Context) error {
	return func(context.Context) error {
		select {
		case <-served:
			return nil
		default:
			return errors.New("the datastore serves no clients yet: it starts, or has no majority")
		}
	}
}

// etcdMetrics are those of the etcd server, and of the process, in Prometheus' text format.
func etcdMetrics() ([]byte, error) {
	families, err := prometheus.DefaultGatherer.Gather()
	var b bytes.Buffer
	for _, f := range families {
		if _, e := expfmt.MetricFamilyToText(&b, f); e != nil {
			err = errors.Join(err, e)
		}
	}
	return b.Bytes(), err
}
