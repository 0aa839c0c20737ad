// Package serve owns the side of control sockets that answers: HTTP with JSON bodies, on
// the listener of commands/control.
//
// It is apart from commands/control, which the thin plugins (CNI, netavark) are made of:
// net/http alone costs a process that makes one call more than all the rest of it.
package serve

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"netctl/commands/control"
)

// shutdownGrace is how long Serve lets calls in progress finish.
const shutdownGrace = 10 * time.Second

type peerKey struct{}

// PeerPID is the PID of the process whose request ctx belongs to; 0 if ctx is
// not of a request that Serve took.
func PeerPID(ctx context.Context) int {
	pid, _ := ctx.Value(peerKey{}).(int)
	return pid
}

// Serve answers requests with h until ctx ends, then lets those in progress
// finish for a bounded time and closes l. It returns nil when ctx ended.
func Serve(ctx context.Context, l *control.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(l.Log().Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(interface{ PeerPID() int }); ok {
				ctx = context.WithValue(ctx, peerKey{}, p.PeerPID())
			}
			return ctx
		},
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	<-ended
	return nil
}

// Call makes a handler of a function: the body is decoded strictly (unknown
// fields and trailing bytes are refused), errors are answered as Error. A
// request without a body leaves the zero Q. A caller who said how long it waits is
// answered by then.
func Call[Q, A any](fn func(context.Context, Q) (A, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var (
			q   Q
			a   any
			err = control.Decode(http.MaxBytesReader(w, r.Body, control.MaxBody), &q)
		)
		if err == nil {
			ctx := r.Context()
			if limit, e := time.ParseDuration(r.Header.Get(control.TimeoutHeader)); e == nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, limit)
				defer cancel()
			}
			if began, e := time.Parse(time.RFC3339Nano, r.Header.Get(control.BeganHeader)); e == nil {
				ctx = control.WithBegan(ctx, began)
			}
			a, err = fn(ctx, q)
		}
		status := http.StatusOK
		if e := control.ErrorOf(err); e != nil {
			a, status = e, e.Status()
		}
		body, err := json.Marshal(a)
		if err != nil {
			body, status = []byte(`{"code":"internal","message":"answer cannot be encoded"}`), http.StatusInternalServerError
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})
}
