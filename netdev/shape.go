package netdev

import (
	"time"

	"netctl/datastore"
)

// ShaperName is what the device is called that delays what the workload behind a link
// sends: a rate can be held only where packets leave an interface.
func ShaperName(link string) string {
	return "ni" + link[max(0, len(link)-datastore.LinkDigits):]
}

// Bucket is a token bucket filter (tc-tbf(8)) that holds a rate.
type Bucket struct {
	Rate  uint64 // bytes per second
	Burst uint32 // bytes at once
	Limit uint32 // bytes that wait
}

// maxWait is how long a packet waits for tokens before others are dropped: what the
// reference plugin for bandwidth takes, too.
const maxWait = 25 * time.Millisecond

// The least and the largest burst in bytes: a packet as large as a link has any (what is
// larger is cut up by the filter), and what the filter's clock, 64 ns a tick in 32 bits,
// can count at any rate.
const (
	minBurst = 16 << 10
	maxBurst = 256 << 20
)

// NewBucket is the filter for a rate; a Burst of 0 is what goes at it in maxWait.
func NewBucket(r datastore.Rate) Bucket {
	b := Bucket{Rate: max(r.Bits/8, 1)}
	waiting := b.Rate / uint64(time.Second/maxWait)
	burst := r.Burst / 8
	if burst == 0 {
		burst = waiting
	}
	// The time that the burst takes at the rate must fit the filter's clock.
	longest := b.Rate * 200 // seconds
	burst = min(max(burst, minBurst), maxBurst, max(longest, minBurst))
	b.Burst = uint32(burst)
	b.Limit = uint32(min(waiting+burst, 1<<31))
	return b
}
