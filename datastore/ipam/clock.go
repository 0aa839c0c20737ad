package ipam

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
)

// Boottime is the time since the machine started, suspension included
// (CLOCK_BOOTTIME, clock_gettime(2)); nobody can set this clock.
func Boottime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// clock judges quarantines at one moment.
type clock struct {
	boot string
	now  time.Duration
	rest time.Duration
}

// resting reports whether r is still in quarantine. Only the node that a block
// belongs to can tell another boot of its own from another node's clock.
func (c clock) resting(r datastore.Released, owner bool) bool {
	if r.Boot != c.boot {
		return !owner || r.Boot == ""
	}
	return c.now < time.Duration(r.At)*time.Millisecond+c.rest
}

// released is the entry for an address given back now. Who does not own the
// block leaves the clock to the owner: see space.settle.
func (c clock) released(ordinal int, owner bool) datastore.Released {
	if !owner {
		return datastore.Released{Ordinal: ordinal}
	}
	return datastore.Released{Ordinal: ordinal, Boot: c.boot, At: c.now.Milliseconds()}
}

// pause waits a little longer each time a race was lost, so that many nodes
// that fill the same blocks do not starve one of them.
func pause(ctx context.Context, try int) error {
	if try < 2 {
		return ctx.Err()
	}
	t := time.NewTimer(rand.N(time.Millisecond << min(try, 6)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
