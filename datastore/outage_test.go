package datastore_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
)

// lockedBuffer takes what timers log beside the test.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// take returns what was written since the last time.
func (b *lockedBuffer) take() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.buf.Reset()
	return b.buf.String()
}

// TestOutage: what a person reads of a datastore that comes and goes.
func TestOutage(t *testing.T) {
	away := fmt.Errorf("list: %w: refused", datastore.ErrUnavailable)
	synctest.Test(t, func(t *testing.T) {
		var b lockedBuffer
		plain := func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == "error" {
				return slog.Attr{}
			}
			return a
		}
		log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: plain}))
		expect := func(step string, want ...string) {
			t.Helper()
			synctest.Wait()
			got := strings.TrimSpace(b.take())
			if got != strings.Join(want, "\n") {
				t.Errorf("%s: said\n%s\nwant\n%s", step, got, strings.Join(want, "\n"))
			}
		}
		o := datastore.NewOutage(log)
		o.Lost(away)
		o.Lost(fmt.Errorf("list: %w: starting", datastore.ErrUnavailable))
		expect("start", `level=INFO msg="datastore away"`)
		o.Lost(datastore.ErrUnidentified)
		o.Lost(datastore.ErrUnidentified)
		time.Sleep(time.Minute)
		expect("no identity yet", `level=INFO msg="waiting for the cluster's identity"`)
		o.Over()
		expect("reached for the first time")
		o.Lost(away)
		o.Lost(fmt.Errorf("list: %w: no leader", datastore.ErrUnavailable))
		expect("outage", `level=WARN msg="datastore away"`)
		o.Lost(datastore.ErrDetached)
		o.Lost(fmt.Errorf("%w: it is empty", datastore.ErrDetached))
		expect("came back wrong", `level=ERROR msg="detached from the datastore, nothing changes"`)
		o.Over()
		expect("adopted", `level=INFO msg="datastore is back"`)
		o.Over()
		expect("read again")

		o = datastore.NewOutage(log)
		o.Lost(away)
		time.Sleep(4 * time.Second)
		expect("slow start", `level=INFO msg="datastore away"`)
		time.Sleep(2 * time.Second)
		expect("too slow", `level=WARN msg="datastore away"`)
		o.Over()
		expect("at last")

		o = datastore.NewOutage(log)
		time.Sleep(6 * time.Second)
		o.Lost(away)
		time.Sleep(time.Minute)
		expect("lost before it was reached", `level=WARN msg="datastore away"`)
	})
}
