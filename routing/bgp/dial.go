package bgp

import (
	"context"
	"math/rand/v2"
	"time"
)

// backOff is the time to the next dial: 0.1, 0.2, 0.4 … s up to the connect
// retry time.
func (f *fsm) backOff() time.Duration {
	limit := f.config.ConnectRetry
	if limit <= 0 {
		limit = DefaultConnectRetry
	}
	d := firstDial << min(f.failures, 16)
	f.failures++
	return min(d, limit)
}

// dial starts a dial unless one is under way; the first one waits for up to
// 100 ms, so that two peers that start together do not meet halfway.
func (f *fsm) dial(ctx context.Context) {
	if f.dialled != nil {
		return
	}
	ctx, f.stopDial = context.WithTimeout(ctx, max(f.config.ConnectRetry, DefaultConnectRetry))
	wait := time.Duration(0)
	if f.failures == 0 {
		wait = rand.N(firstDial)
	}
	config, out := f.config.turn(f.silent), make(chan dialled, 1)
	f.dialled = out
	go func() {
		var d dialled
		select {
		case <-time.After(wait):
			d.conn, d.err = f.speaker.dial(ctx, config)
		case <-ctx.Done():
			d.err = ctx.Err()
		}
		out <- d
	}()
}

// abandon gives up the dial under way.
func (f *fsm) abandon() {
	if f.dialled == nil {
		return
	}
	out := f.dialled
	f.dialled = nil
	f.stopDial()
	go func() {
		if d := <-out; d.conn != nil {
			_ = d.conn.Close()
		}
	}()
}
